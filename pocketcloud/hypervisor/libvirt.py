"""The hypervisor through libvirt. What is promised stands in the package's docstring.

XML is written and read in xml.py, what a domain's handle tells and takes is in handles.py, what libvirt raises in raising.py,
its complaints are explained in complaints.py. Nothing of ours is kept between calls but the
connection: each verb looks its object up anew and checks the mark in its metadata before it changes anything.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import libvirt

from pocketcloud.errors import HostLacks, NotFound, NotOurs, Refused
from pocketcloud.hypervisor import AgentFailed, Domain, HypervisorFacts, LibvirtNetwork, complaints, xml
from pocketcloud.hypervisor.firewall import Fences
from pocketcloud.hypervisor.handles import (
    AGENT_SECONDS,
    ask_to_power_off,
    domain_of,
    freeze,
    kill,
    look,
    remember_frozen,
    resume,
    set_clock,
)
from pocketcloud.hypervisor.raising import AGENT_FAILED, NO_AGENT, absence, explained
from pocketcloud.model.base import Arch
from pocketcloud.model.facts import Subnet, libvirt_holder
from pocketcloud.model.machine import MachineSpec, NetworkSpec
from pocketcloud.system import which

DEFAULT_URI = "qemu:///system"
_TRIM_SECONDS = 600  # an emulated guest's disk may take minutes
_POLL = 0.2
_ASK_AGAIN = 10.0
_UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
    | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
)


class LibvirtHypervisor:
    """One connection to one daemon, opened again once when the daemon was restarted meanwhile. Thread-safe."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._fences = Fences()
        self._lock = threading.Lock()
        self._connection: Any = None

    @classmethod
    def connect(cls, uri: str | None = None) -> Self:
        """Connect to `uri`, else LIBVIRT_DEFAULT_URI, else qemu:///system. Raises HostLacks with the remedy."""
        libvirt.registerErrorHandler(lambda *_: None, None)  # else it prints each error on stderr by itself
        hypervisor = cls(uri or os.environ.get("LIBVIRT_DEFAULT_URI") or DEFAULT_URI)
        hypervisor._open()
        return hypervisor

    def close(self) -> None:
        """Close the connection; the next verb would open another."""
        with self._lock:
            if self._connection is not None:
                with contextlib.suppress(libvirt.libvirtError):
                    self._connection.close()
                self._connection = None

    # -- facts

    def facts(self) -> HypervisorFacts:
        """See Hypervisor.facts."""
        connection = self._open()
        with explained("libvirt's capabilities cannot be read"):
            emulated, kvm = xml.guests(connection.getCapabilities())
            versions = connection.getLibVersion(), connection.getVersion()
        return HypervisorFacts(self._uri, xml.version(versions[0]), xml.version(versions[1]), emulated, kvm)

    def cpu_features(self, arch: Arch) -> frozenset[str]:
        """See Hypervisor.cpu_features."""
        connection = self._open()
        if arch not in self.facts().kvm:
            return frozenset()
        with explained(f"libvirt's domain capabilities for {arch} cannot be read"):
            model = xml.host_model(connection.getDomainCapabilities(None, arch, None, "kvm"))
            expand = libvirt.VIR_CONNECT_BASELINE_CPU_EXPAND_FEATURES
            # A model has features of its own, which the capabilities do not list (AMD's have svm).
            whole = connection.baselineHypervisorCPU(None, arch, None, "kvm", [model], expand) if model else "<cpu/>"
        return xml.cpu_features(whole)

    def machine_xml(self, spec: MachineSpec) -> str:
        """See Hypervisor.machine_xml."""
        return xml.machine_xml(spec)

    def network_xml(self, spec: NetworkSpec) -> str:
        """See Hypervisor.network_xml."""
        return xml.network_xml(spec)

    # -- domains

    def domains(self, kit_id: str | None = None) -> tuple[Domain, ...]:
        """See Hypervisor.domains."""
        connection = self._open()
        found = []
        with explained("the machines cannot be listed"):
            for handle in connection.listAllDomains():
                with absence(complaints.NO_DOMAIN):  # it may go while we look
                    domain = domain_of(handle)
                    if domain is not None and kit_id in (None, domain.mark.kit_id):
                        found.append(domain)
        return tuple(sorted(found, key=lambda domain: domain.name))

    def domain(self, name: str) -> Domain | None:
        """See Hypervisor.domain."""
        handle = self._find_domain(name)
        if handle is None:
            return None
        with explained(f"machine {name} cannot be looked at"), absence(complaints.NO_DOMAIN):
            return domain_of(handle)
        return None

    def define(self, spec: MachineSpec) -> None:
        """See Hypervisor.define."""
        text = xml.machine_xml(spec)
        self._check_identity(spec)
        with explained(f"machine {spec.name} cannot be defined"):
            self._open().defineXML(text)

    def start(self, name: str, *, tied: bool = False) -> None:
        """See Hypervisor.start. The log is truncated through `<log append='off'>`, by whoever writes it."""
        handle = self._ours(name)
        with explained(f"machine {name} cannot be started"):
            if handle.isActive():
                return
            if handle.hasManagedSaveImage():
                handle.managedSaveRemove()
            try:
                handle.createWithFlags(
                    libvirt.VIR_DOMAIN_START_FORCE_BOOT | (libvirt.VIR_DOMAIN_START_AUTODESTROY if tied else 0)
                )
            except libvirt.libvirtError:
                if not handle.isActive():  # else somebody else was quicker
                    raise

    def shutdown(self, name: str, within: float) -> bool:
        """See Hypervisor.shutdown. The button is pressed again now and then: firmware and boot loaders do not notice it."""
        handle = self._ours(name)
        deadline = time.monotonic() + within
        with explained(f"machine {name} cannot be shut down"):
            while handle.isActive():
                if handle.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                    return False  # it cannot hear
                ask_to_power_off(handle)
                again = min(deadline, time.monotonic() + _ASK_AGAIN)
                while handle.isActive() and time.monotonic() < again:
                    time.sleep(_POLL)
                if time.monotonic() >= deadline:
                    break
            return not handle.isActive()

    def kill(self, name: str) -> None:
        """See Hypervisor.kill."""
        handle = self._find_domain(name)
        if handle is None:
            return
        with explained(f"machine {name} cannot be powered off"), absence(complaints.NO_DOMAIN):
            kill(handle)

    def resume(self, name: str) -> None:
        """See Hypervisor.resume."""
        handle = self._ours(name)
        with explained(f"machine {name} cannot go on"):
            if handle.isActive():
                resume(handle)

    def save(self, name: str, path: Path) -> None:
        """See Hypervisor.save. An unfinished file (no space, a crash) is one that libvirt refuses to restore."""
        handle = self._ours(name)
        if not _is_active(handle, name):
            raise Refused(f"machine {name} is off: it has no memory to save", hint="pocketcloud lab up starts it")
        with explained(f"the memory of machine {name} cannot be saved to {path}"):
            handle.saveFlags(str(path), None, libvirt.VIR_DOMAIN_SAVE_RUNNING)

    def restore(self, spec: MachineSpec, path: Path) -> None:
        """See Hypervisor.restore. Afterwards the persistent definition is that of `spec`, too."""
        self._check_identity(spec)
        handle = self._find_domain(spec.name)
        if handle is not None and _is_active(handle, spec.name):
            raise Refused(f"machine {spec.name} runs: its memory cannot be restored", hint="stop it first (lab down)")
        if not path.exists():
            raise NotFound(
                f"machine {spec.name}: there is no saved memory at {path}", hint="pocketcloud lab reset starts it cold"
            )
        self.define(spec)
        connection = self._open()
        with explained(f"machine {spec.name} cannot be restored from {path}"):
            if (handle := connection.lookupByName(spec.name)).hasManagedSaveImage():
                handle.managedSaveRemove()
            saved = connection.saveImageGetXMLDesc(str(path), libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE)
            connection.restoreFlags(str(path), xml.restored_xml(saved, spec), libvirt.VIR_DOMAIN_SAVE_RUNNING)

    def set_clock(self, name: str, seconds: float) -> bool:
        """See Hypervisor.set_clock. One that cannot set the hardware clock after the system's says that it failed."""
        handle = self._ours(name)
        with explained(f"the clock of machine {name} cannot be set"), absence(*NO_AGENT, *AGENT_FAILED):
            return set_clock(handle, seconds)
        return False

    def freeze(self, name: str) -> bool:
        """See Hypervisor.freeze. The agent has AGENT_SECONDS to answer; one that does not is thawed again and not counted.
        The live metadata say that it is frozen, and go with the saved memory: so does the need to thaw."""
        handle = self._ours(name)
        with explained(f"the file systems of machine {name} cannot be frozen"):
            if not look(handle).agent:
                return False
            handle.agentSetResponseTimeout(AGENT_SECONDS, 0)
            try:
                freeze(handle)
            except libvirt.libvirtError as complaint:
                if complaint.get_error_code() in NO_AGENT:
                    return False
                if complaint.get_error_code() in AGENT_FAILED:
                    reason = (complaint.get_error_message() or str(complaint)).strip()
                    raise AgentFailed(f"the guest agent of machine {name} cannot freeze its file systems: {reason}") from None
                raise
        return True

    def thaw(self, name: str) -> bool:
        """See Hypervisor.thaw. After a restore the agent's channel needs a moment to open; with a machine that is known to
        be frozen it is waited for, up to AGENT_SECONDS."""
        handle = self._find_domain(name)
        if handle is None:
            return True
        deadline = time.monotonic() + AGENT_SECONDS
        with explained(f"the file systems of machine {name} cannot be thawed"), absence(complaints.NO_DOMAIN):
            while handle.isActive() and not (now := look(handle)).agent:
                if not now.frozen or time.monotonic() > deadline:
                    return not now.frozen
                time.sleep(_POLL)
            if not handle.isActive():
                return True
            handle.agentSetResponseTimeout(AGENT_SECONDS, 0)
            try:
                handle.fsThaw()
            except libvirt.libvirtError as complaint:
                if complaint.get_error_code() not in NO_AGENT | AGENT_FAILED:
                    raise
                return not look(handle).frozen
            remember_frozen(handle, None)
        return True

    def forget_frozen(self, name: str) -> None:
        """See Hypervisor.forget_frozen."""
        handle = self._ours(name)
        with explained(f"machine {name} cannot be told as thawed"):
            if handle.isActive():
                remember_frozen(handle, None)

    def trim(self, name: str) -> bool:
        """See Hypervisor.trim."""
        handle = self._ours(name)
        with explained(f"the file systems of machine {name} cannot be trimmed"), absence(*NO_AGENT):
            if look(handle).agent:
                handle.agentSetResponseTimeout(_TRIM_SECONDS, 0)
                handle.fSTrim(None, 0, 0)
                return True
        return False

    def undefine(self, name: str) -> None:
        """See Hypervisor.undefine."""
        handle = self._find_domain(name)
        if handle is None:
            return
        with explained(f"machine {name} cannot be removed"), absence(complaints.NO_DOMAIN):
            kill(handle)
            handle.undefineFlags(_UNDEFINE)

    # -- networks

    def networks(self, kit_id: str | None = None) -> tuple[LibvirtNetwork, ...]:
        """See Hypervisor.networks."""
        found = []
        for reading, active in self._all_networks():
            if reading.mark is not None and kit_id in (None, reading.mark.kit_id):
                found.append(reading.network(reading.mark, active=active))
        return tuple(sorted(found, key=lambda network: network.name))

    def check_network(self, name: str) -> None:
        """See Hypervisor.check_network."""
        self._find_network(name)

    def ensure_network(self, spec: NetworkSpec) -> None:
        """See Hypervisor.ensure_network. A network that is new and does not start is not left behind."""
        text = xml.network_xml(spec)
        known = self._check_network(spec) is not None
        self._fences.sweep(self._bridges)
        connection = self._open()
        with explained(f"network {spec.name} ({spec.subnet or spec.bridge}) cannot be set up"):
            handle = connection.networkDefineXML(text)  # an active one goes on as it was, until it is started anew
            # Before the first packet, and after libvirt knows the network: then its removal finds the fence, come what may.
            try:
                self._fences.settle(spec)
            except HostLacks:
                if not known:
                    handle.undefine()
                raise
            if handle.isActive():
                wanted, live = xml.read_network(text), xml.read_network(handle.XMLDesc(0))
                if wanted.shape == live.shape:
                    _update_hosts(handle, live, wanted)
                    return
                handle.destroy()
            try:
                handle.create()
            except libvirt.libvirtError:
                if handle.isActive():  # somebody else was quicker
                    return
                if not known:
                    self._fences.remove(spec.bridge)
                    with contextlib.suppress(libvirt.libvirtError):
                        handle.undefine()
                raise

    def settle_fence(self, spec: NetworkSpec) -> None:
        """See Hypervisor.settle_fence."""
        self._fences.settle(spec)

    def remove_network(self, name: str) -> None:
        """See Hypervisor.remove_network."""
        handle = self._find_network(name)
        if handle is None:
            return
        with explained(f"network {name} cannot be removed"), absence(complaints.NO_NETWORK):
            bridge, persistent = xml.read_network(handle.XMLDesc(0)).bridge, handle.isPersistent()
            if handle.isActive():
                handle.destroy()
            # As long as libvirt knows the network, a removal that was interrupted finds it again.
            self._fences.remove(bridge)
            if persistent:
                handle.undefine()
            self._fences.sweep(self._bridges)

    def subnets(self) -> tuple[Subnet, ...]:
        """See Hypervisor.subnets."""
        found = {Subnet(subnet, libvirt_holder(r.name)) for r, _ in self._all_networks() for subnet in r.subnets}
        return tuple(sorted(found, key=lambda taken: (taken.network, taken.holder)))

    # -- what the verbs stand on

    def _open(self) -> Any:
        """The connection, known to work a moment ago: asking costs one round trip, and the daemon may have been restarted."""
        with self._lock:
            if self._connection is not None:
                with contextlib.suppress(libvirt.libvirtError):
                    self._connection.getLibVersion()
                    if self._connection.isAlive():
                        return self._connection
                self._connection = None
            try:
                self._connection = _connection(self._uri)
            except libvirt.libvirtError as complaint:
                code, text = complaint.get_error_code(), complaint.get_error_message() or str(complaint)
                raise complaints.unreachable(code, text, self._uri, which) from None
            return self._connection

    def _bridges(self) -> frozenset[str]:
        return frozenset(reading.bridge for reading, _ in self._all_networks())

    def _find_domain(self, name: str) -> Any:
        """The handle of our domain, None if there is none of that name. Raises NotOurs if it lacks our mark."""
        connection = self._open()
        with explained(f"machine {name} cannot be looked up"), absence(complaints.NO_DOMAIN):
            handle = connection.lookupByName(name)
            if look(handle).mark is None:
                raise complaints.not_ours("domain", name)
            return handle
        return None

    def _ours(self, name: str) -> Any:
        handle = self._find_domain(name)
        if handle is None:
            raise NotFound(f"machine {name} is not defined in libvirt", hint="pocketcloud lab up defines it")
        return handle

    def _check_identity(self, spec: MachineSpec) -> None:
        """Refuse to take over a domain that is not the one `spec` means, by name or by UUID."""
        handle = self._find_domain(spec.name)
        if handle is not None:
            with explained(f"machine {spec.name} cannot be looked at"):
                reading = look(handle)
            complaints.check_same("domain", spec.name, (spec.uuid, spec.mark), (reading.uuid, reading.mark))
            return
        connection = self._open()
        with explained(f"machine {spec.name} cannot be looked up"), absence(complaints.NO_DOMAIN):
            other = connection.lookupByUUIDString(spec.uuid).name()
            raise NotOurs(f"domain {other} has the UUID of {spec.name} ({spec.uuid})", hint=f"virsh dominfo {other}")

    def _all_networks(self) -> Iterator[tuple[xml.NetworkReading, bool]]:
        """All networks, whoever's; one that is active comes a second time if its stored definition differs."""
        connection = self._open()
        with explained("the networks cannot be listed"):
            for handle in connection.listAllNetworks():
                with absence(complaints.NO_NETWORK):
                    active = bool(handle.isActive())
                    now = xml.read_network(handle.XMLDesc(0))
                    yield now, active
                    if active and handle.isPersistent():
                        stored = xml.read_network(handle.XMLDesc(libvirt.VIR_NETWORK_XML_INACTIVE))
                        if stored.subnets != now.subnets:
                            yield stored, False

    def _find_network(self, name: str) -> Any:
        connection = self._open()
        with explained(f"network {name} cannot be looked up"), absence(complaints.NO_NETWORK):
            handle = connection.networkLookupByName(name)
            if xml.read_network(handle.XMLDesc(0)).mark is None:
                raise complaints.not_ours("network", name)
            return handle
        return None

    def _check_network(self, spec: NetworkSpec) -> Any:
        handle = self._find_network(spec.name)
        if handle is not None:
            with explained(f"network {spec.name} cannot be looked at"):
                reading = xml.read_network(handle.XMLDesc(0))
            complaints.check_same("network", spec.name, (spec.uuid, spec.mark), (reading.uuid, reading.mark))
        return handle


# -- pieces of verbs


def _is_active(handle: Any, name: str) -> bool:
    with explained(f"machine {name} cannot be looked at"):
        return bool(handle.isActive())


def _update_hosts(handle: Any, live: xml.NetworkReading, wanted: xml.NetworkReading) -> None:
    """Bring leases and names of a network that is up to what is wanted; what goes comes first, its address may be reused."""
    add, delete = libvirt.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST, libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE
    leases, names = libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST, libvirt.VIR_NETWORK_SECTION_DNS_HOST
    changes = [(delete, leases, host) for host in sorted(live.leases - wanted.leases)]
    changes += [(delete, names, host) for host in sorted(live.names - wanted.names)]
    changes += [(add, leases, host) for host in sorted(wanted.leases - live.leases)]
    changes += [(add, names, host) for host in sorted(wanted.names - live.names)]
    for command, section, host in changes:
        handle.update(command, section, -1, host, libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE)


def _connection(uri: str) -> Any:
    """A connection; for an ordinary user whom libvirt does not let change things, one that can look only."""
    try:
        return libvirt.open(uri)
    except libvirt.libvirtError as refused:
        if os.geteuid() == 0:
            raise
        try:
            return libvirt.openReadOnly(uri)
        except libvirt.libvirtError:
            raise refused from None
