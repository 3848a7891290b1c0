"""A host as values: applies the steps of a plan to volumes, domains, networks and a record in memory, up to any cut.

It obeys the rules that storage and hypervisor promise (what is open is not cloned or removed, what others stand on is not
removed, a started machine needs its disks and networks), and refuses with an AssertionError what they would refuse. So a
plan that runs here does what the real rooms allow; whether those keep their promises is for tests/contract.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path

from pocketcloud.model.base import Arch, Base, Firmware
from pocketcloud.model.data_disk import Disk
from pocketcloud.model.facts import Subnet
from pocketcloud.model.inventory import Clone, Domain, DomainState, Inventory, LibvirtNetwork, Volume
from pocketcloud.model.lab import Attachment, Lab, LabNetwork, Machine, ProvisionStep, Ready
from pocketcloud.model.machine import Mark
from pocketcloud.model.names import Name
from pocketcloud.model.profile import Acceleration, DiskTuning, Medium, Profile, Selector
from pocketcloud.model.record import Memory, Record, Snapshot, SnapshotPart, Stage, Taking
from pocketcloud.model.sizes import GIB, MIB, Size
from pocketcloud.plan.drafting import Ground, volume_name
from pocketcloud.plan.steps import (
    CloneVolumes,
    CommitRecord,
    CreateVolume,
    DefineMachine,
    EndRestoring,
    EnsureNetwork,
    KeepNvram,
    KillMachine,
    Plan,
    PrepareVolumes,
    Provision,
    RemoveFiles,
    RemoveNetwork,
    RemoveVolumes,
    ResumeMachine,
    SetNvram,
    SettleFence,
    StartMachine,
    Step,
    StopMachine,
    TakeSnapshot,
    UndefineMachine,
    WaitReady,
    WakeMachine,
    WriteSeed,
)
from pocketcloud.specs import is_fenced

KIT, KIT_ID, INSTANCE = "k", "5e5a3c46-0000-4000-8000-000000000000", Name("demo")
STORE = Path("/store")
CONSOLE = Ready(console="hello")

PROFILE = Profile(
    profile=Name("emulated"),
    title="for tests",
    precedence=0,
    selects=Selector(),
    acceleration=Acceleration.EMULATION,
    machine={Arch.X86_64: "q35"},
    cpu_mode="maximum",
    host_memory=Size(GIB),
    machine_overhead=Size(100 * MIB),
    max_vcpus=4,
    media={Medium.DIR: DiskTuning("none", "threads")},
    disk_speed={},
)


def ground(*taken: str, memory: int = 16 * GIB, space: int = 100 * GIB, spares: bool = False) -> Ground:
    """The ground that a lab of the simulated host stands on; `taken` are subnets in use."""
    return Ground(
        kit=KIT,
        arch=Arch.X86_64,
        profile=PROFILE,
        memory=memory,
        space=space,
        taken=tuple(Subnet(IPv4Network(net), "a route of the host") for net in taken),
        supernet=IPv4Network("10.77.0.0/16"),
        now="2024-01-01T00:00:00+00:00",
        made_with="0",
        spares=spares,
        bridges=("br0", "br1"),
        kit_id=KIT_ID,
    )


def base(name: str = "tiny", digest: str = "d1", firmware: Firmware = Firmware.BIOS) -> Base:
    """A built base; its volume is `base.NAME.DIGEST`."""
    return Base(Name(name), Arch.X86_64, digest, f"base.{name}.{digest}", firmware, "2024-01-01T00:00:00+00:00")


def machine(
    *networks: str,
    base: str = "tiny",
    memory: int = 64 * MIB,
    provision: str = "",
    disks: Sequence[str] = (),
    address: int | None = None,
    vcpus: int = 1,
) -> Machine:
    """A machine that is ready when its console says hello."""
    return Machine(
        base=Name(base),
        memory=Size(memory),
        vcpus=vcpus,
        disks=tuple(Disk(Name(disk), Size(10 * MIB)) for disk in disks),
        networks={Name(network): Attachment(address) for network in networks},
        provision=(ProvisionStep(run=provision),) if provision else (),
        ready=CONSOLE,
    )


def lab(networks: Sequence[str] = ("front",), /, **machines: Machine) -> Lab:
    """A lab named demo of these machines."""
    nets = {Name(network): LabNetwork() for network in networks}
    return Lab(INSTANCE, {Name(name): made for name, made in machines.items()}, nets)


@dataclass
class Disc:
    """A volume: `content` is what was written to it, oldest first; `lent` whether it is sealed for those that stand on it."""

    size: int
    content: tuple[str, ...]
    parent: str | None
    sealed: bool = False
    lent: bool = False
    spare: bool = False


@dataclass
class Vm:
    """A domain: what it has open (or will have), how it is doing, and the addresses it got at its start by network."""

    state: DomainState
    disks: tuple[str, ...]
    memory: int
    places: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    stale: bool = False
    """Whether it was woken and not given the time and its own randomness yet."""


@dataclass
class Host:
    """One instance on one host. `bases` are the kit's built bases by name."""

    bases: dict[str, Base] = field(default_factory=dict)
    record: Record | None = None
    volumes: dict[str, Disc] = field(default_factory=dict)
    domains: dict[str, Vm] = field(default_factory=dict)
    networks: dict[str, LibvirtNetwork] = field(default_factory=dict)
    fences: dict[str, bool] = field(default_factory=dict)
    """Whether machines are kept from the host's networks, by the network that they are on."""
    seeds: dict[str, int] = field(default_factory=dict)
    nvrams: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """UEFI variables by the name of their file: the live ones under the name of their machine, with what was written to them."""
    memories: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    """Saved memory by the name of its file: whose it is, and what was on its machine's system disk when it was saved."""
    svm: bool = False
    """Whether the processor is AMD's, on which what runs machines of its own does not outlive that its memory is saved."""
    trace: list[str] = field(default_factory=list)

    @classmethod
    def with_bases(cls, *bases: Base) -> Host:
        """A host with a kit that has these bases and no lab."""
        host = cls()
        for each in bases:
            host.add_base(each)
        return host

    def add_base(self, made: Base) -> None:
        """Build a base: the kit's record of that name is replaced, volumes in use stay."""
        self.bases[made.name] = made
        self.volumes[made.volume] = Disc(GIB, (f"{made.name}.{made.digest}",), None, sealed=True)

    # -- what observe would say

    def inventory(self) -> Inventory:
        """What there is now."""
        return Inventory(
            self.record,
            {name: self._domain(name, vm) for name, vm in self.domains.items()},
            dict(self.networks),
            {n: Volume(n, STORE / n, "raw", v.size, None, v.sealed, v.parent, v.spare) for n, v in self.volumes.items()},
            dict(self.bases),
        )

    def _domain(self, name: str, vm: Vm) -> Domain:
        disks = {f"vd{letter}": STORE / disk for letter, disk in zip("abcdefgh", vm.disks, strict=False)}
        return Domain(
            f"{KIT}.{INSTANCE}.{name}", self._mark(name), vm.state, disks, agent=False, reason=vm.reason, memory=vm.memory
        )

    def _mark(self, part: str) -> Mark:
        return Mark(KIT, KIT_ID, INSTANCE, part)

    # -- what may happen to it from outside

    def reboot(self) -> None:
        """The host starts again: domains and networks are defined, and off."""
        for vm in self.domains.values():
            vm.state = DomainState.OFF
        self.networks = {name: replace(network, active=False) for name, network in self.networks.items()}

    def write(self, name: str, what: str) -> None:
        """Somebody works in a running machine: its system disk changes."""
        disk = self.volumes[self.domains[name].disks[0]]
        assert not disk.sealed
        disk.content = (*disk.content, what)
        if name in self.nvrams:
            self.nvrams[name] = (*self.nvrams[name], what)

    def content(self, name: str) -> tuple[str, ...]:
        """What is on a machine's system disk."""
        assert self.record is not None
        return self.volumes[self.record.machines[Name(name)].disks["root"]].content

    # -- the effects

    def apply(self, plan: Plan, *, cut: int | None = None, part: int = 0, order: random.Random | None = None) -> None:
        """Run the plan's steps, in their order or in another one that `after` allows. Before step number `cut` the power
        fails; `part` is how many of its inner effects are done by then."""
        for number, step in enumerate(_ordered(plan, order)):
            inner = self._effects(step)
            if number == cut:
                for effect in list(inner)[:part]:
                    effect()
                return
            for effect in inner:
                effect()
            self.trace.append(step.id)

    def _effects(self, step: Step) -> Iterator[Callable[[], None]]:
        """The atomic effects of a step; a cut may come between any two."""
        match step:
            case Provision():
                yield lambda: self._stage(step.machine, Stage.PROVISIONING)
                yield lambda: self._provision(step.machine)
                yield lambda: self._stage(step.machine, Stage.PROVISIONED)
            case TakeSnapshot():
                yield from self._snapshot(step)
            case StartMachine():
                yield lambda: self._starts_cold(step.machine)
                yield lambda: self._start(step.machine)
            case WakeMachine():
                yield lambda: self._wake(step)
            case CloneVolumes():
                yield from (partial(self._clone, clone) for clone in step.clones)
            case EndRestoring():
                yield lambda: self._end_restoring(step)
            case PrepareVolumes():
                yield from (partial(self._prepare, clone) for clone in step.clones)
            case RemoveVolumes():
                yield from (partial(self._remove, name) for name in step.names)
            case RemoveFiles() if not step.machine:
                yield self._forget
            case _:
                yield lambda: self._one(step)

    def _one(self, step: Step) -> None:
        name = step.machine
        match step:
            case CreateVolume():
                assert step.name not in self.volumes, f"{step.name} exists"
                self.volumes[step.name] = Disc(step.size, (), None)
            case EnsureNetwork() | RemoveNetwork() | SettleFence():
                self._network(step)
            case CommitRecord():
                self.record = step.record
            case DefineMachine():
                self._define(name)
            case ResumeMachine():
                assert self.domains[name].state is DomainState.PAUSED
                self.domains[name].state, self.domains[name].reason = DomainState.RUNNING, ""
            case KillMachine() | StopMachine() if name in self.domains:
                self.domains[name].state = DomainState.OFF
            case UndefineMachine():
                self.domains.pop(name, None)
            case WaitReady():
                self._wait(step)
            case WriteSeed():
                self.seeds[name] = step.generation
            case KeepNvram() | SetNvram():
                self._nvram(step)
            case KillMachine() | StopMachine() | RemoveFiles():
                pass
            case _:
                raise TypeError(f"a step that the simulation does not know: {type(step).__name__}")

    def _nvram(self, step: KeepNvram | SetNvram) -> None:
        match step:
            case KeepNvram():
                self.nvrams[step.target] = self.nvrams.get(step.machine, ())
            case SetNvram() if step.source:
                assert step.source in self.nvrams, f"{step.machine}: the UEFI variables {step.source} are not there"
                self.nvrams[step.machine] = self.nvrams[step.source]
            case SetNvram():
                self.nvrams.pop(step.machine, None)

    def sweep(self) -> None:
        """Remove what the next command sweeps before it begins: UEFI variables and memory that no record names."""
        kept_memory = self.record.memories() if self.record else frozenset()
        self.memories = {name: kept for name, kept in self.memories.items() if name in kept_memory}
        named = self.record.named_nvrams() if self.record else frozenset()
        self.nvrams = {name: kept for name, kept in self.nvrams.items() if not name.endswith(".fd") or name in named}

    def _network(self, step: EnsureNetwork | RemoveNetwork | SettleFence) -> None:
        if isinstance(step, RemoveNetwork):
            self.networks.pop(step.network, None)
            self.fences.pop(step.network, None)
            return
        if isinstance(step, SettleFence):
            assert self._is_up(step.network), f"the fence of {step.network}, which is down"
            self.fences[step.network] = is_fenced(self._known(), Name(step.network))
            return
        known = self._known().networks[Name(step.network)]
        leases = {
            mac: str(machine.addresses[network])
            for name, machine in self._known().machines.items()
            for network, mac in self._known().macs(name, KIT_ID)
            if network == step.network and network in machine.addresses
        }
        mark = self._mark(step.network)
        made = LibvirtNetwork(
            step.network, mark, active=True, bridge=known.bridge, subnet=known.subnet_text, kind=known.kind, leases=leases
        )
        for name, other in self.networks.items():
            if name != step.network and other.active and other.subnet and known.subnet:
                assert not known.subnet.overlaps(IPv4Network(other.subnet)), f"{step.network} is started on the subnet of {name}"
        before = self.networks.get(step.network)
        if (
            before is None
            or not before.active
            or (before.kind, before.subnet, before.bridge) != (made.kind, made.subnet, made.bridge)
        ):
            # libvirt makes it anew, and who was on it is on nothing.
            for vm in self.domains.values():
                vm.places.pop(step.network, None)
        self.networks[step.network] = made
        self.fences[step.network] = is_fenced(self._known(), Name(step.network))

    def _known(self) -> Record:
        assert self.record is not None, "this takes a committed record"
        return self.record

    def _stage(self, name: str, stage: Stage) -> None:
        known = self._known().machines[Name(name)]
        self.record = self._known().with_machine(Name(name), replace(known, stage=stage))

    def _open(self) -> set[str]:
        return {disk for vm in self.domains.values() if vm.state is not DomainState.OFF for disk in vm.disks}

    def _clone(self, clone: Clone) -> None:
        source, name = clone.source, clone.name
        assert source in self.volumes, f"{name}: its source {source} is not there"
        assert source not in self._open(), f"{source} is open and cannot be cloned"
        disc = self.volumes[source]
        if not disc.sealed:
            disc.sealed = disc.lent = True
        if (there := self.volumes.get(name)) is not None:
            assert there.spare, f"{name} exists"
            assert there.parent == source, f"{name} is a spare of something else"
            there.spare = False
        else:
            self.volumes[name] = Disc(max(clone.size, disc.size), disc.content, source)

    def _prepare(self, clone: Clone) -> None:
        assert clone.source in self.volumes, f"{clone.name}: its source {clone.source} is not there"
        assert clone.name not in self.volumes, f"{clone.name} exists"
        self.volumes[clone.name] = Disc(self.volumes[clone.source].size, self.volumes[clone.source].content, clone.source)
        self.volumes[clone.name].spare = True

    def _remove(self, name: str) -> None:
        if name not in self.volumes:
            return
        standing = [n for n, v in self.volumes.items() if v.parent == name and not v.spare]
        assert not standing, f"{name} cannot be removed: {standing} stand on it"
        assert name not in self._open(), f"{name} cannot be removed: it is open"
        parent = self.volumes.pop(name).parent
        for spare in [n for n, v in self.volumes.items() if v.parent == name]:
            del self.volumes[spare]
        lent = parent in self.volumes and self.volumes[parent].lent
        if parent and lent and not any(v.parent == parent and not v.spare for v in self.volumes.values()):
            self.volumes[parent].sealed = self.volumes[parent].lent = False

    def _define(self, name: str) -> None:
        known = self._known().machines[Name(name)]
        disks = tuple(sorted(known.disks.values(), key=lambda volume: (".root." not in volume, volume)))
        vm = self.domains.get(name)
        if vm is None or vm.state is DomainState.OFF:
            # What is restored from memory has the addresses it had; a start gives it others.
            self.domains[name] = Vm(DomainState.OFF, disks, known.definition.memory, vm.places if vm else {})

    def _start(self, name: str) -> None:
        vm = self.domains[name]
        if vm.state is not DomainState.OFF:
            return
        for disk in vm.disks:
            assert disk in self.volumes, f"{name} cannot start: {disk} is not there"
            assert not self.volumes[disk].sealed, f"{name} cannot start: {disk} is sealed"
        for network in self._known().machines[Name(name)].definition.networks:
            assert self._is_up(network), f"{name} cannot start: network {network} is down"
        vm.state = DomainState.RUNNING
        if self._known().machines[Name(name)].firmware is Firmware.EFI:
            self.nvrams.setdefault(name, ())
        vm.places = {str(n): str(address) for n, address in self._known().machines[Name(name)].addresses.items()}

    def _wake(self, step: WakeMachine) -> None:
        name = step.machine
        assert self.domains[name].state is DomainState.OFF, f"{name} is woken and runs"
        self._start(name)  # what a start needs it needs, too
        whose, disk = self.memories[step.memory.file]
        assert whose == name, f"{name} is woken from the memory of {whose}"
        assert disk == self.content(name), f"{name} is woken onto a disk that is not of the moment of its memory"
        self.domains[name].stale = True

    def _starts_cold(self, name: str) -> None:
        known = self._known().machines[Name(name)]
        if known.restoring and self.domains[name].state is DomainState.OFF:
            self.record = self._known().with_machine(Name(name), replace(known, restoring=replace(known.restoring, woken=False)))

    def _is_up(self, network: str) -> bool:
        there = self.networks.get(network)
        return there is not None and there.active

    def _running(self, name: str) -> None:
        known, vm = self._known().machines[Name(name)], self.domains.get(name)
        assert vm is not None, f"{name} is waited for and is not defined"
        assert vm.state is DomainState.RUNNING, f"{name} is waited for and is {vm.state}"
        assert set(known.disks.values()) == set(vm.disks), f"{name} runs on disks that are not its own"
        for network in known.definition.networks:
            assert self._is_up(network), f"{name}: network {network} is down"
            meant = self._known().networks[network].subnet_text
            assert self.networks[network].subnet == meant, f"{name}: network {network} is not as recorded"
            kind = self._known().networks[network].kind
            assert self.networks[network].kind is kind, f"{name}: network {network} is of another kind"
            wanted = is_fenced(self._known(), network)
            assert self.fences.get(network, False) is wanted, f"{name}: the fence of {network} is not as recorded"
            place = str(known.addresses[network]) if network in known.addresses else None
            assert vm.places.get(network) == place, f"{name} is not where its record says on {network}"

    def _provision(self, name: str) -> None:
        self._running(name)
        self.write(name, "provisioned")

    def _wait(self, step: WaitReady) -> None:
        self._running(step.machine)
        known, vm = self._known().machines[Name(step.machine)], self.domains[step.machine]
        assert not vm.stale or (known.restoring and known.restoring.woken), f"{step.machine} was woken, and nobody remembers"
        vm.stale = False
        if step.first:
            self._stage(step.machine, Stage.PROVISIONED)
        if known.restoring:
            back = replace(self._known().machines[Name(step.machine)], restoring=replace(known.restoring, ready=True))
            self.record = self._known().with_machine(Name(step.machine), back)

    def _end_restoring(self, step: EndRestoring) -> None:
        for name in map(Name, step.machines):
            self._running(name)
            assert not self.domains[name].stale, f"{name} was woken and not renewed"
        self.record = self._known().brought_back(step.machines)

    def _snapshot(self, step: TakeSnapshot) -> Iterator[Callable[[], None]]:
        running = [name for name in step.machines if name in self.domains and self.domains[name].state is not DomainState.OFF]
        for name in running:
            self._running(name)
            nests = self._known().machines[Name(name)].definition.runs_machines
            assert not (self.svm and nests), f"{name} runs machines, and its memory is saved"
        if running:
            yield lambda: self._take(step.name, running)
        for name in running:
            yield partial(setattr, self.domains[name], "state", DomainState.OFF)
        parts: dict[Name, SnapshotPart] = {}
        disks: dict[Name, dict[str, str]] = {}
        for name in map(Name, step.machines):
            known = self._known().machines[name]
            disks[name] = {disk: volume_name(INSTANCE, name, disk, step.generation) for disk in known.disks}
            nvram = f"{INSTANCE}.{name}@{step.name}.fd" if known.firmware is Firmware.EFI else ""
            if nvram:
                yield partial(self.nvrams.__setitem__, nvram, self.nvrams.get(name, ()))
            memory = Memory(f"{name}@{step.name}-g{step.generation}.ram", 1, "", {}) if name in step.memory else None
            if memory and name in running:
                yield partial(self.memories.__setitem__, memory.file, (str(name), self.content(name)))
            parts[name] = SnapshotPart(known.disks, nvram, known.definition, memory if name in running else None)
            for disk, volume in known.disks.items():
                yield partial(self._clone, Clone(volume, disks[name][disk]))
        yield lambda: self._commit_snapshot(step, parts, disks)
        for name in running:
            yield partial(self._restore, name)
        yield lambda: self._settle(running)

    def _take(self, state: str, running: Sequence[str]) -> None:
        self.record = replace(self._known(), taking=Taking(state, tuple(map(Name, running))))

    def _settle(self, machines: Sequence[str]) -> None:
        self.record = self._known().settled(machines)

    def _commit_snapshot(
        self, step: TakeSnapshot, parts: Mapping[Name, SnapshotPart], disks: Mapping[Name, dict[str, str]]
    ) -> None:
        record, name = self._known(), Name(step.name)
        before = record.snapshots.get(name)
        fresh = Snapshot("now", dict(parts), record.at, step.protected, record.raised_networks)
        snapshot = replace(before, machines={**before.machines, **parts}) if before else fresh
        machines = {n: replace(m, disks=disks[n]) if n in disks else m for n, m in record.machines.items()}
        snapshots = {**record.snapshots, name: snapshot}
        at = record.at if before else step.name
        self.record = replace(record, generation=step.generation, machines=machines, snapshots=snapshots, at=at)

    def _restore(self, name: str) -> None:
        self._define(name)
        self.domains[name].state = DomainState.RUNNING

    def _forget(self) -> None:
        self.record = None


def _ordered(plan: Plan, order: random.Random | None) -> Sequence[Step]:
    """The steps in an order that `after` allows: the plan's own, or one that `order` draws."""
    if order is None:
        return plan.steps
    left, chosen = list(plan.steps), list[Step]()
    done: set[str] = set()
    while left:
        step = order.choice([step for step in left if done.issuperset(step.after)])
        left.remove(step)
        done.add(step.id)
        chosen.append(step)
    return chosen
