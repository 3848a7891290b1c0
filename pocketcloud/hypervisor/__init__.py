"""The hypervisor room: domains and networks. What is asked of libvirt stands here; no other room speaks to it.

Only domains and networks that carry our mark in libvirt's metadata are ever changed; one of the same name without it
raises NotOurs. Absence is a value in queries, NotFound in commands, success in removals.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pocketcloud.errors import HostLacks
from pocketcloud.hypervisor import complaints
from pocketcloud.hypervisor.complaints import AgentFailed
from pocketcloud.model.base import Arch
from pocketcloud.model.facts import Subnet
from pocketcloud.model.inventory import Domain, DomainState, LibvirtNetwork
from pocketcloud.model.machine import MachineSpec, NetworkSpec

__all__ = ["AgentFailed", "Domain", "DomainState", "Hypervisor", "HypervisorFacts", "LibvirtNetwork", "open_hypervisor"]


@dataclass(frozen=True, slots=True)
class HypervisorFacts:
    """The daemon: its URI and versions (`9.0.0`), the guest architectures it can run, those of them with KVM."""

    uri: str
    libvirt: str
    qemu: str
    emulated: tuple[Arch, ...]
    kvm: tuple[Arch, ...]


class Hypervisor(Protocol):
    """One connection. Thread-safe. Every verb is atomic; all raise HostLacks if the daemon cannot be reached or denies."""

    def facts(self) -> HypervisorFacts:
        """What this daemon is and can run."""
        ...

    def cpu_features(self, arch: Arch) -> frozenset[str]:
        """The features of the processor that `host-model` gives machines under KVM; empty where KVM is not offered.
        For x86; libvirt knows too little of ARM's processors."""
        ...

    def domains(self, kit_id: str | None = None) -> tuple[Domain, ...]:
        """Our domains, of one kit or of all, by name."""
        ...

    def domain(self, name: str) -> Domain | None:
        """Our domain of that name, None if there is none. Raises NotOurs if one is there without our mark."""
        ...

    def define(self, spec: MachineSpec) -> None:
        """Define the domain, or redefine ours of the same name and UUID (it takes effect at its next start)."""
        ...

    def start(self, name: str, *, tied: bool = False) -> None:
        """Cold start, never from saved memory; a running one is left running. Truncates its serial log first, so that the
        log holds this start only. With `tied` it ends with this connection, so with our process at the latest, however that
        ends. Raises Refused with libvirt's reason and our hint."""
        ...

    def shutdown(self, name: str, within: float) -> bool:
        """Ask the guest to power off (agent, else ACPI) and wait up to `within` seconds; whether it is off."""
        ...

    def kill(self, name: str) -> None:
        """Power off at once; off or absent is success."""
        ...

    def resume(self, name: str) -> None:
        """Let a paused machine go on; one that is not paused, or off, is left so. What it waited for may still be missing:
        then it is paused again."""
        ...

    def save(self, name: str, path: Path) -> None:
        """Save the memory to a file, which stops the domain and closes its disks."""
        ...

    def restore(self, spec: MachineSpec, path: Path) -> None:
        """Bring a saved domain back, with the disks of `spec`, running. The file is kept. Where it has a VM generation id, that
        is another one afterwards, so that its kernel knows that its past may have been used before."""
        ...

    def set_clock(self, name: str, seconds: float) -> bool:
        """Set the guest's clock to `seconds` since 1970 through its agent, which has AGENT_SECONDS for it; False where there is
        no agent to ask, or it did not."""
        ...

    def freeze(self, name: str) -> bool:
        """Freeze the guest's file systems through its agent; False where there is no agent to ask, or it does not answer. Raises
        AgentFailed with its reason where it answers that it could not; what it had frozen by then is thawed."""
        ...

    def thaw(self, name: str) -> bool:
        """Thaw what was frozen; whether nothing of it is frozen any more. Off, or never frozen, is success."""
        ...

    def forget_frozen(self, name: str) -> None:
        """Take the guest's file systems for thawed from now on: its agent does not say so, but something else does."""
        ...

    def trim(self, name: str) -> bool:
        """Have the guest discard what its file systems do not use, through its agent; False where there is no agent to ask."""
        ...

    def undefine(self, name: str) -> None:
        """Remove the definition with its managed save and its metadata (the NVRAM file stays: it is the kit's); absent is
        success. Kills it first if it runs."""
        ...

    def networks(self, kit_id: str | None = None) -> tuple[LibvirtNetwork, ...]:
        """Our networks, of one kit or of all, by name."""
        ...

    def check_network(self, name: str) -> None:
        """Raise NotOurs if a network of that name is there without our mark."""
        ...

    def ensure_network(self, spec: NetworkSpec) -> None:
        """Define and start the network, or bring ours of that name to `spec` (leases are updated live; another subnet or
        bridge restarts it)."""
        ...

    def settle_fence(self, spec: NetworkSpec) -> None:
        """Have the network, which is up, fenced or not, as `spec` says; the rest of it is left as it is."""
        ...

    def remove_network(self, name: str) -> None:
        """Stop and undefine it; absent is success."""
        ...

    def subnets(self) -> tuple[Subnet, ...]:
        """The IPv4 subnets of all libvirt networks, active or not, ours and others; the holder names the network."""
        ...

    def machine_xml(self, spec: MachineSpec) -> str:
        """The exact domain XML that `define` would use."""
        ...

    def network_xml(self, spec: NetworkSpec) -> str:
        """The exact network XML that `ensure_network` would use."""
        ...


def open_hypervisor(uri: str | None = None) -> Hypervisor:
    """Connect to `uri`, else LIBVIRT_DEFAULT_URI, else qemu:///system. Raises HostLacks with the remedy for this host."""
    try:
        import libvirt  # noqa: F401 - its own complaint would be about a module; ours below would hide faults of our own
    except ImportError as missing:  # the C library below the binding can be gone
        raise HostLacks(f"libvirt's library cannot be loaded: {missing}", hint=complaints.CHECK) from None
    from pocketcloud.hypervisor.libvirt import LibvirtHypervisor

    return LibvirtHypervisor.connect(uri)
