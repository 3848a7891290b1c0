"""A throw-away guest: started through libvirt as a lab's machines are, listened to, gone afterwards. For whoever needs one.

It boots a kernel or its first disk; it may have more disks (a seed among them), a network of its own, and ports, which its
programs find as /dev/virtio-ports/NAME and which are heard here. It never starts again after a reboot.

Nothing is left of it: it is tied to our process, and its definition and network, if we are killed (`kill -9`), go with the next
throw-away guest. Its folder is its maker's to remove.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address
from pathlib import Path
from typing import Protocol

from pocketcloud.bases.install.tail import Tail
from pocketcloud.errors import PocketcloudError, Refused
from pocketcloud.host.files import text as file_text
from pocketcloud.hypervisor import Domain, DomainState, Hypervisor
from pocketcloud.model.base import Arch, Firmware
from pocketcloud.model.facts import Facts
from pocketcloud.model.inventory import NO_SPACE
from pocketcloud.model.lab import NetworkKind
from pocketcloud.model.machine import DiskSpec, KernelBoot, Lease, MachineSpec, Mark, NetworkSpec, NicSpec, PortSpec
from pocketcloud.model.names import Name, bridge_name, joined, mac_address
from pocketcloud.model.profile import DiskTuning, Profile
from pocketcloud.profiles import shape
from pocketcloud.subnets import choose, supernet

PREFIX = "pocketcloud-build"
KIT_ID = "3b8f6a52-7c1e-4a0b-9f43-52d1c6f0ae77"
"""The mark of throw-away guests: as if of a kit, which no kit has."""

DISPOSABLE = DiskTuning("unsafe", "threads")
"""How a disk is opened whose content counts only once it is whole: nothing waits for the host's disk meanwhile."""

CONSOLE = "console"
_QEMU_LOGS = Path("/var/log/libvirt/qemu")
_POLL = 0.25
_QUIET = 2.0
_TRIES = 5


@dataclass(frozen=True, slots=True)
class GuestNetwork:
    """A network for one guest: its libvirt `name`, the host's address on it, and what DHCP gives the guest."""

    name: str
    host: IPv4Address
    lease: Lease


@dataclass(frozen=True, slots=True)
class GuestOrder:
    """A guest. `purpose` becomes part of its name (a process has one guest of a purpose at a time); `folder`, on a path that
    QEMU's user may pass through, receives its console (`console.log`), its ports (`PORT.log`) and its firmware's variables;
    `memory` in bytes. Of `disks` the first is booted, unless there is a `kernel`. `network` is one that `networked` made for the
    same purpose; None: it has none."""

    purpose: Name
    title: str
    folder: Path
    arch: Arch
    facts: Facts
    profile: Profile
    memory: int
    vcpus: int
    firmware: Firmware
    disks: tuple[DiskSpec, ...]
    kernel: KernelBoot | None = None
    ports: tuple[str, ...] = ()
    network: GuestNetwork | None = None


class End(StrEnum):
    """How a guest ended: OFF, it switched itself off or rebooted; STOPPED, its watcher had heard enough; KILLED, somebody else
    ended it; CRASHED, QEMU ended by itself; FULL, it could not go on for want of space; STUCK, for another fault of its disk."""

    OFF = "off"
    STOPPED = "stopped"
    KILLED = "killed"
    CRASHED = "crashed"
    FULL = "full"
    STUCK = "stuck"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a guest ended, and after how many seconds."""

    end: End
    seconds: float


class Watcher(Protocol):
    """Hears a guest."""

    def hear(self, source: str, said: bytes, now: float) -> None:
        """Take what came from CONSOLE, or from the port of that name; `now` in seconds of a clock that only goes on."""
        ...

    def enough(self, now: float) -> bool:
        """Asked again and again, also in silence: whether the guest is to be ended now."""
        ...


@dataclass(slots=True)
class Guest:
    """A running guest. `address` is what DHCP gives it on its network, None without one; `logs` are the files that its console
    (CONSOLE) and its ports go to."""

    name: str
    address: IPv4Address | None
    logs: Mapping[str, Path]
    _hypervisor: Hypervisor
    _tails: dict[str, Tail] = field(default_factory=dict)

    def domain(self) -> Domain | None:
        """As libvirt has it now."""
        return self._hypervisor.domain(self.name)

    def heard(self) -> Iterator[tuple[str, bytes]]:
        """What it said since the last time, by source: a bounded piece of each."""
        for source, log in self.logs.items():
            if said := self._tails.setdefault(source, Tail(log)).read():
                yield source, said


def run_guest(
    hypervisor: Hypervisor, order: GuestOrder, watcher: Watcher, *, clock: Callable[[], float] = time.monotonic
) -> Outcome:
    """Start a guest and let `watcher` hear it until it ends, or the watcher has heard enough. Gone afterwards, whatever happens;
    what it said is left in its folder. Raises what the hypervisor room raises."""
    with throw_away(hypervisor, order) as guest:
        begun = clock()
        while True:
            # First the state, then the words: what a guest said before it went off is heard all the same.
            ended = _ended(guest.domain())
            _listen(guest, watcher, clock, until_quiet=ended is not None)
            if watcher.enough(clock()) and ended is None:
                ended = End.STOPPED
            if ended is not None:
                return Outcome(ended, clock() - begun)
            time.sleep(_POLL)


def _listen(guest: Guest, watcher: Watcher, clock: Callable[[], float], *, until_quiet: bool) -> None:
    """Hand on what there is. Of a guest that is off all of it: the console is another process's to write (virtlogd), and that may
    be a moment behind."""
    quiet_since = clock()
    while True:
        pieces = list(guest.heard())
        for source, said in pieces:
            watcher.hear(source, said, clock())
        if pieces:
            quiet_since = clock()
        if not until_quiet or clock() - quiet_since >= _QUIET:
            return
        time.sleep(_POLL / 5)


def _ended(domain: Domain | None) -> End | None:
    if domain is None:
        return End.KILLED
    match domain.state:
        case DomainState.RUNNING:
            return None
        case DomainState.PAUSED:
            return None if domain.reason == "suspended" else End.FULL if domain.reason == NO_SPACE else End.STUCK
        case DomainState.OFF:
            return End.OFF if domain.clean else End.KILLED
        case DomainState.CRASHED:
            return End.CRASHED


@contextlib.contextmanager
def throw_away(hypervisor: Hypervisor, order: GuestOrder) -> Iterator[Guest]:
    """A guest that runs in here. Raises what the hypervisor room raises, and HostLacks where the profile cannot run its kind."""
    sweep(hypervisor)
    with contextlib.ExitStack() as undo:
        spec = machine_spec(order)
        undo.callback(_tolerant, hypervisor.undefine, spec.name)
        hypervisor.define(spec)
        hypervisor.start(spec.name, tied=True)
        # The ports first: what a guest says on its console after it is done must not be heard before that.
        logs = {**{port.name: port.log for port in spec.ports}, CONSOLE: spec.serial_log}
        yield Guest(spec.name, order.network.lease.address if order.network else None, logs, hypervisor)
        domain = hypervisor.domain(spec.name)
        crashed = domain is not None and domain.state is DomainState.CRASHED
    if not crashed:
        # libvirt keeps a log of QEMU for each machine, of those too that are gone; only a crash is explained by it.
        with contextlib.suppress(OSError):
            (_QEMU_LOGS / f"{_name(order.purpose)}.log").unlink()


def sweep(hypervisor: Hypervisor) -> None:
    """Remove machines and networks of processes that are gone; one that cannot be removed is left for the next time, and others
    may sweep too. Raises HostLacks without a daemon."""
    for domain in hypervisor.domains(KIT_ID):
        if not _alive(domain.mark.part):
            _tolerant(hypervisor.undefine, domain.name)
    for network in hypervisor.networks(KIT_ID):
        if not _alive(network.mark.part):
            _tolerant(hypervisor.remove_network, network.name)


def machine_spec(order: GuestOrder) -> MachineSpec:
    """The guest for the hypervisor room. Raises HostLacks where the profile cannot run its architecture."""
    name = _name(order.purpose)
    shaped = shape(order.profile, order.facts, order.arch)
    return MachineSpec(
        name=name,
        uuid=str(uuid.uuid5(uuid.UUID(KIT_ID), name)),
        mark=_mark(order.purpose),
        title=f"{order.title} (pocketcloud: goes by itself)",
        arch=order.arch,
        machine=shaped.machine,
        acceleration=shaped.acceleration,
        cpu_mode=shaped.cpu_mode,
        vcpus=order.vcpus,
        memory=order.memory,
        firmware=order.firmware,
        nvram=order.folder / "nvram.fd" if order.firmware is Firmware.EFI else None,
        disks=order.disks,
        nics=(NicSpec(order.network.lease.mac, order.network.name),) if order.network else (),
        serial_log=order.folder / f"{CONSOLE}.log",
        cpus=shaped.cpus,
        kernel=order.kernel,
        ports=tuple(PortSpec(port, order.folder / f"{port}.log") for port in order.ports),
        restarts=False,
    )


@contextlib.contextmanager
def networked(hypervisor: Hypervisor, facts: Facts, purpose: Name, kind: NetworkKind = NetworkKind.NAT) -> Iterator[GuestNetwork]:
    """A network for a guest of that purpose, while the context lasts; on an ISOLATED one there is nobody but the host. Raises
    what the hypervisor room raises."""
    sweep(hypervisor)
    name = _name(purpose)
    try:
        yield _made(hypervisor, facts, purpose, kind)
    finally:
        _tolerant(hypervisor.remove_network, name)


def _made(hypervisor: Hypervisor, facts: Facts, purpose: Name, kind: NetworkKind) -> GuestNetwork:
    """Another process may be quicker with a subnet: then the next one is tried."""
    name, mark = _name(purpose), _mark(purpose)
    within = supernet(facts)
    for attempt in range(_TRIES):
        subnet = choose(within, (*facts.subnets, *hypervisor.subnets()), seed=f"{name}.{attempt}")
        lease = Lease(mac_address(PREFIX, f"{purpose}.{_process()}", 0), subnet[2], purpose)
        bridge = bridge_name(KIT_ID, purpose, mark.part)
        identity = str(uuid.uuid5(uuid.UUID(KIT_ID), f"network.{name}"))
        try:
            hypervisor.ensure_network(NetworkSpec(name, identity, mark, bridge, kind, subnet, "", (lease,)))
        except Refused:
            if attempt == _TRIES - 1:
                raise
        else:
            return GuestNetwork(name, subnet[1], lease)
    raise AssertionError("the last attempt raises or returns")


def _name(purpose: Name) -> str:
    return joined(PREFIX, purpose, _process())


def _mark(purpose: Name) -> Mark:
    return Mark(PREFIX, KIT_ID, purpose, _process())


def _process() -> str:
    """This process, told apart from a later one of the same number by when it began."""
    number = os.getpid()
    return f"{number}-{_began(number)}"


def _alive(process: str) -> bool:
    number, _, began = process.partition("-")
    return number.isdecimal() and _began(int(number)) == began


def _began(number: int) -> str:
    """proc(5), /proc/PID/stat, field 22, behind the name in parentheses, which may hold anything; empty where there is no such
    process."""
    fields = file_text(Path("/"), f"proc/{number}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


def _tolerant(remove: Callable[[str], None], name: str) -> None:
    # With a daemon that went meanwhile it cannot be; then the next guest's sweep does it.
    with contextlib.suppress(PocketcloudError):
        remove(name)
