"""What all plans share: the ground a lab stands on, a plan while it is drawn up, names, room and leftovers.

Networks and addresses are networks.py's."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network

from pocketcloud.errors import NoSpace, NotFound, Refused
from pocketcloud.model.base import Arch, CpuLevel
from pocketcloud.model.facts import Subnet
from pocketcloud.model.inventory import Clone, Inventory
from pocketcloud.model.lab import NATIVE, Lab
from pocketcloud.model.names import Name, joined
from pocketcloud.model.profile import Profile
from pocketcloud.model.record import CLEAN, UNDO, MachineRecord, Record
from pocketcloud.model.sizes import MIB, size_text
from pocketcloud.plan.demands import Lack
from pocketcloud.plan.steps import (
    CloneVolumes,
    EndRestoring,
    KillMachine,
    Plan,
    PrepareVolumes,
    RemoveFiles,
    RemoveNetwork,
    RemoveVolumes,
    Step,
    StopMachine,
    TakeSnapshot,
    UndefineMachine,
)

# What a machine writes while it boots and is provisioned, at the least; a lab is not started on a store without that.
ROOM_PER_MACHINE = 256 * MIB


@dataclass(frozen=True, slots=True)
class Ground:
    """Where a lab is to stand. `memory` in bytes is what labs may still use here, `space` in bytes what the store has free,
    `memory_space` what the file system has that memory is saved in (None: the store's own);
    `taken` the subnets in use here, this instance's own left out; lab networks come from `supernet`; `spares` whether clones
    are worth making in advance in this store; `cache` whether the lab is served from the kit's cache, `online` whether it may use
    the network. `arch` is the architecture of the lab's machines, `buildable` names the bases that have a definition (None: not
    known), `other_bases` says which bases the kit has for another one, `cpu_lacks` what machines lack here of
    levels of processors, in words, for each level that they do not come up to; `no_nesting` why machines in machines have no KVM
    here, `no_secure_boot` why the lab's machines have no firmware with keys; `cold`: machines are not woken from memory that is
    kept; `svm`: the host's processor is AMD's, and shows machines in machines what it can do for them."""

    kit: str
    arch: Arch
    profile: Profile
    memory: int
    space: int
    taken: tuple[Subnet, ...]
    supernet: IPv4Network
    now: str
    made_with: str
    spares: bool = False
    cache: bool = False
    online: bool = True
    buildable: Collection[str] | None = None
    other_bases: Mapping[str, Sequence[Arch]] = field(default_factory=dict)
    bridges: Sequence[str] = ()
    kit_id: str = ""
    cpu_lacks: Mapping[CpuLevel, str] = field(default_factory=dict)
    no_nesting: Lack | None = None
    cold: bool = False
    svm: bool = False
    no_secure_boot: Lack | None = None
    memory_space: int | None = None

    def lacks_memory_space(self, needed: int) -> str:
        """Why so many bytes of memory cannot be saved here, beside what the store itself lacks; empty if they can."""
        if self.memory_space is None or needed <= self.memory_space:
            return ""
        return (
            f"saving memory takes {size_text(needed)}; the media of kit {self.kit}, where it goes, have"
            f" {size_text(max(self.memory_space, 0))} free"
        )


def volume_name(instance: str, machine: str, disk: str, generation: int) -> str:
    """The name of a lab's volume."""
    return joined("lab", instance, machine, disk, f"g{generation}")


def next_generation(record: Record, have: Inventory) -> int:
    """The generation of the volumes to be made: above the record's, and above that of every volume there is, as an interrupted
    command leaves volumes of a generation that no record knows yet."""
    found = [name.rpartition(".g")[2] for name in have.volumes if belongs_to(name, record.instance)]
    return 1 + max([record.generation, *(int(number) for number in found if number.isdecimal())])


def belongs_to(volume: str, instance: str) -> bool:
    """Whether a volume is one of this instance's."""
    return volume.startswith(joined("lab", instance, ""))


class Draft:
    """A plan while it is drawn up."""

    def __init__(self, instance: str) -> None:
        self.instance = instance
        self.steps: list[Step] = []
        self.notes: list[str] = []
        self.loses: list[str] = []
        self.keeps: list[str] = []

    def add(self, step: Step) -> str:
        self.steps.append(step)
        return step.id

    def chain(self, *steps: Step) -> str:
        """Add steps that come one after the other; the id of the last."""
        last = ""
        for step in steps:
            last = self.add(replace(step, after=(*step.after, last)) if last else step)
        return last

    def plan(self, record: Record | None = None) -> Plan:
        return Plan(self.instance, tuple(self.steps), tuple(self.notes), tuple(self.loses), tuple(self.keeps), record)


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one machine: `volumes` to clone (from, to, size) or create (None, to, size) by disk name; `restart`
    why a running one is stopped first (empty: it is not); `fresh` whether it starts from its base, `nvram` the UEFI variables
    that it goes back to (empty: it keeps its own)."""

    name: Name
    record: MachineRecord
    volumes: Mapping[str, tuple[str | None, str, int]]
    fresh: bool
    restart: str
    reason: str
    nvram: str = ""


def known_record(instance: Name, have: Inventory, kit: str) -> Record:
    """The record of an instance that has to be there; raises NotFound."""
    if have.record is None:
        half = " (there are remains of it: pocketcloud lab destroy removes them)" if not have.empty else ""
        raise NotFound(f"kit {kit} has no lab {instance}{half}", hint="pocketcloud lab list shows what there is")
    return have.record


def check_known(machines: Sequence[str], record: Record) -> None:
    """Raise NotFound for a machine that the lab does not have."""
    for name in machines:
        if name not in record.machines:
            raise NotFound(f"lab {record.instance} has no machine {name}", hint=f"it has: {', '.join(record.machines)}")


def check_native(lab: Lab, record: Record, ground: Ground) -> None:
    """Refuse to emulate machines that were made on a computer of another architecture, if the lab does not ask for that."""
    foreign = [name for name, machine in record.machines.items() if name in lab.machines and machine.arch is not ground.arch]
    if foreign and lab.arch == NATIVE:
        arch = record.machines[foreign[0]].arch
        raise Refused(
            f"lab {record.instance}: {', '.join(foreign)} {'were' if len(foreign) > 1 else 'was'} made for {arch}, this host is"
            f" {ground.arch}; a lab that is `arch: native` is not emulated",
            hint=f"say `arch: {arch}` in its file and run pocketcloud lab up FILE, to have it emulated (slowly);"
            f" or lab up FILE --reconfigure, which makes it anew for {ground.arch}: what is on its disks is lost",
        )


def check_processor(fates: Sequence[Fate], have: Inventory, ground: Ground) -> None:
    """Refuse to start what would not get far: machines whose system was built for newer processors than they get here, as on the
    other laptop that a kit was carried to."""
    problems = []
    for fate in fates:
        domain, base = have.domains.get(fate.name), have.bases.get(fate.record.definition.base)
        starts = domain is None or not domain.active
        if starts and base and base.cpu and (text := ground.cpu_lacks.get(base.cpu)):
            problems.append(f"{fate.name} ({base.name}): {text}")
    if problems:
        raise Refused(
            "\n".join(problems), hint="take a base that older processors can run (base list --available), or another computer"
        )


def check_room(
    fates: Sequence[Fate],
    have: Inventory,
    ground: Ground,
    saved: Collection[Name] = (),
    more: Sequence[str] = (),
    *,
    frees: bool = False,
) -> None:
    """Refuse what the host cannot carry, with the figures, all at once. `saved` are the machines whose memory will be saved
    to files while their state is taken; `more` is what was found lacking elsewhere, told with it. What `frees` space in the end
    is not refused for want of it."""
    problems = list(more)
    profile, overhead = ground.profile, ground.profile.machine_overhead
    starting = [f for f in fates if (d := have.domains.get(f.name)) is None or not d.active]
    growth = {f.name: _growth(f, have) for f in fates if f not in starting}
    memory = sum(f.record.definition.memory + overhead for f in starting) + sum(growth.values())
    if memory > ground.memory:
        parts = [f"{f.name} {size_text(f.record.definition.memory)}" for f in starting]
        parts += [f"{name} {size_text(more)} more" for name, more in growth.items() if more]
        problems.append(
            f"memory: {len(parts)} machine{'s' * (len(parts) != 1)} need{'s' * (len(parts) == 1)} {size_text(memory)}"
            f" ({', '.join(parts)}, and {size_text(overhead)} each for QEMU); this host can give labs"
            f" {size_text(max(ground.memory, 0))} (profile {profile.profile} keeps {size_text(profile.host_memory)} for the host)"
        )
    hints = ["stop another lab (pocketcloud lab list), or give the machines less"] if problems else []
    kept = sum(f.record.definition.memory for f in fates if f.name in saved)
    if lack := ground.lacks_memory_space(kept):
        hints.append("remove media or caches that are not needed (pocketcloud cache prune), or use a larger kit")
        problems.append(f"space: {lack}")
    space = kept + ROOM_PER_MACHINE * len(starting)
    if space > ground.space and not frees:
        hints.append(
            "pocketcloud kit status shows what takes the space; what another lab keeps for undo goes with"
            f" pocketcloud lab forget LAB@{UNDO}"
        )
        free = size_text(ground.space)
        problems.append(f"space: the lab needs at least {size_text(space)}; kit {ground.kit} has {free} free")
    for fate in fates:
        if (vcpus := fate.record.definition.vcpus) > profile.max_vcpus:
            problems += [f"{fate.name}: {vcpus} vcpus; profile {profile.profile} allows {profile.max_vcpus}"]
    if problems:
        raise NoSpace("\n".join(problems), hint="; ".join(hints) or "give the machines less")


def _growth(fate: Fate, have: Inventory) -> int:
    """The memory, in bytes, that a running machine takes more when it is started again as wanted."""
    return max(0, fate.record.definition.memory - have.domains[fate.name].memory) if fate.restart else 0


def leftovers(record: Record | None, have: Inventory, needed_too: Collection[str] = ()) -> list[str]:
    """Volumes of the instance that its record neither names nor stands on, those that stand on others first; without those
    that are needed for another reason."""
    needed: set[str] = set()
    for volume in (*(record.named_volumes() if record else ()), *needed_too):
        current: str | None = volume
        while current is not None and current not in needed:
            needed.add(current)
            current = have.volumes[current].parent if current in have.volumes else None
    # A volume can go only after those that stand on it.
    loose = {name for name in have.volumes if name not in needed and record_owns(name, record, have)}
    loose -= _useful_spares(record, have, needed)
    ordered: list[str] = []
    while loose:
        parents = {have.volumes[name].parent for name in loose}
        tops = sorted(loose - parents) or sorted(loose)
        ordered += tops
        loose -= set(tops)
    return ordered


def _useful_spares(record: Record | None, have: Inventory, needed: Collection[str]) -> set[str]:
    """Of the spares one for each volume of the clean state: its first name, so that two looks agree."""
    sources = {v for part in record.clean.machines.values() for v in part.disks.values()} if record and record.clean else set()
    found: dict[str, str] = {}
    for name in sorted(have.volumes):
        volume = have.volumes[name]
        if volume.spare and name not in needed and volume.parent in sources:
            found.setdefault(volume.parent, name)
    return set(found.values())


def record_owns(volume: str, record: Record | None, have: Inventory) -> bool:
    """Whether a volume of the inventory belongs to the instance (bases are in the inventory too, for their paths)."""
    return volume.startswith("lab.") and volume in have.volumes and (record is None or belongs_to(volume, record.instance))


def draw_end_restoring(draft: Draft, machines: Sequence[Name], after: tuple[str, ...]) -> tuple[str, ...]:
    """End the way back of `machines` when all of them are ready; `after` are those waits. The id of what others come after."""
    if not machines:
        return after
    return (draft.add(EndRestoring(id="back", reason="all are ready", after=after, machines=tuple(machines))),)


def draw_sweep(draft: Draft, record: Record, have: Inventory, ground: Ground, after: tuple[str, ...]) -> None:
    """Remove what no record names: volumes of the generation before, and what interrupted commands left. Then prepare the
    next reset, where that is worth while."""
    drawn = {step.machine for step in draft.steps if isinstance(step, UndefineMachine)}
    for name in sorted(set(have.domains) - set(record.machines) - drawn):
        last = draft.add(UndefineMachine(id=f"undefine.{name}", reason="no record names it", after=after, machine=name))
        draft.add(RemoveFiles(id=f"files.{name}", reason="no record names it", after=(last,), machine=name))
    after = (*after, *(step.id for step in draft.steps if isinstance(step, UndefineMachine)))
    for name in sorted(set(have.networks) - set(record.networks)):
        draft.add(RemoveNetwork(id=f"network.{name}", reason="no record names it", after=after, network=name))
    cloned = [clone for step in draft.steps if isinstance(step, CloneVolumes) for clone in step.clones]
    kept = [*(clone.source for clone in cloned), *(clone.name for clone in cloned), *_open_volumes(draft, have)]
    gone = {name for step in draft.steps if isinstance(step, RemoveVolumes) for name in step.names}
    if found := [name for name in leftovers(record, have, kept) if name not in gone]:
        after = (draft.add(RemoveVolumes(id="remove", reason="no record names them", after=after, names=tuple(found))),)
    if ground.spares:
        _draw_spares(draft, record, have, after)


def spare_of(source: str, have: Inventory, but: Collection[str] = ()) -> str | None:
    """A clone of `source` that was made in advance."""
    found = (name for name, volume in have.volumes.items() if volume.spare and volume.parent == source and name not in but)
    return next(found, None)


def marks(instance: str, machine: str, disk: str) -> dict[str, str]:
    """What the volumes of a machine are marked with."""
    return {"lab": instance, "machine": machine, "disk": disk}


def _draw_spares(draft: Draft, record: Record, have: Inventory, after: tuple[str, ...]) -> None:
    """A spare for each volume of the clean state that has none. Their generation is above all that this plan makes."""
    used = {clone.name for step in draft.steps if isinstance(step, CloneVolumes) for clone in step.clones}
    generation = max(record.generation, next_generation(record, have)) + 2
    clean = {name: part.disks for name, part in record.clean.machines.items()} if record.clean else {}
    taken = [
        Name(name) for step in draft.steps if isinstance(step, TakeSnapshot) and step.name == CLEAN for name in step.machines
    ]
    clean |= {name: record.machines[name].disks for name in taken}
    wanted = tuple(
        Clone(volume, volume_name(record.instance, name, disk, generation), marks=marks(record.instance, name, disk))
        for name, disks in clean.items()
        for disk, volume in disks.items()
        if spare_of(volume, have, used) is None
    )
    if wanted:
        draft.add(PrepareVolumes(id="spares", reason="the next reset finds its disks made", after=after, clones=wanted))


def _open_volumes(draft: Draft, have: Inventory) -> list[str]:
    """The volumes of machines that run and that the plan lets run: after an interrupted reset those may be old ones, which
    go when the machine is started again."""
    ended = {step.machine for step in draft.steps if isinstance(step, (StopMachine, KillMachine, UndefineMachine))}
    running = [d for name, d in have.domains.items() if d.active and name not in ended]
    paths = {path for domain in running for path in domain.disks.values()}
    return [name for name, volume in have.volumes.items() if volume.path in paths]
