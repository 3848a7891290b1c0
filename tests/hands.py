"""A hypervisor without machines, for where none can run: what a guest would do to its disks and ports, a function does.

It is a hypervisor as far as throw-away guests go: definitions, starts, states. Nothing is emulated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pocketcloud.hypervisor import Domain, DomainState, HypervisorFacts, LibvirtNetwork
from pocketcloud.model.base import Arch
from pocketcloud.model.facts import Subnet
from pocketcloud.model.machine import MachineSpec, NetworkSpec


@dataclass
class Hands:
    """See Hypervisor. `act` does the guest's work when it is started; then it has switched itself off."""

    act: Callable[[MachineSpec], None]
    machines: dict[str, MachineSpec] = field(default_factory=dict)
    nets: dict[str, NetworkSpec] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)

    def facts(self) -> HypervisorFacts:
        return HypervisorFacts("hands:///", "0.0.0", "9.0.0", tuple(Arch), ())

    def domains(self, kit_id: str | None = None) -> tuple[Domain, ...]:
        found = (self.domain(name) for name, spec in self.machines.items() if kit_id in (None, spec.mark.kit_id))
        return tuple(domain for domain in found if domain)

    def domain(self, name: str) -> Domain | None:
        spec = self.machines.get(name)
        if spec is None:
            return None
        return Domain(name, spec.mark, DomainState.OFF, {}, agent=False, memory=spec.memory, clean=name in self.started)

    def define(self, spec: MachineSpec) -> None:
        self.machines[spec.name] = spec

    def start(self, name: str, *, tied: bool = False) -> None:
        assert tied, "a throw-away guest ends with its process"
        self.started.append(name)
        self.act(self.machines[name])

    def undefine(self, name: str) -> None:
        self.machines.pop(name, None)

    def networks(self, kit_id: str | None = None) -> tuple[LibvirtNetwork, ...]:
        found = [spec for spec in self.nets.values() if kit_id in (None, spec.mark.kit_id)]
        return tuple(
            LibvirtNetwork(spec.name, spec.mark, active=True, bridge=spec.bridge, subnet=str(spec.subnet)) for spec in found
        )

    def ensure_network(self, spec: NetworkSpec) -> None:
        self.nets[spec.name] = spec

    def settle_fence(self, spec: NetworkSpec) -> None:
        assert spec.name in self.nets

    def remove_network(self, name: str) -> None:
        self.nets.pop(name, None)

    def subnets(self) -> tuple[Subnet, ...]:
        return tuple(Subnet(spec.range, spec.name) for spec in self.nets.values())


def says(spec: MachineSpec, port: str, line: str) -> None:
    """Write a line to a port of the guest."""
    log = next(each.log for each in spec.ports if each.name == port)
    with log.open("a") as file:
        file.write(f"{line}\n")


def writes(spec: MachineSpec, at: int, content: bytes) -> None:
    """Write to the disk that is installed on, as QEMU does."""
    with spec.disks[0].path.open("r+b") as disk:
        disk.seek(at)
        disk.write(content)
