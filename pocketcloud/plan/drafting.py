"""What all plans share: the ground a lab stands on, a plan while it is drawn up, names, subnets, room and leftovers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

from pocketcloud.errors import NoSpace, NotFound
from pocketcloud.model.base import Arch
from pocketcloud.model.facts import Subnet
from pocketcloud.model.inventory import DomainState, Inventory
from pocketcloud.model.lab import Lab
from pocketcloud.model.names import Name, joined
from pocketcloud.model.profile import Profile
from pocketcloud.model.record import MachineRecord, NetworkRecord, Record
from pocketcloud.model.sizes import MIB, size_text
from pocketcloud.plan.steps import CloneVolume, EnsureNetwork, Plan, RemoveVolume, Step
from pocketcloud.subnets import choose

# What a machine writes while it boots and is provisioned, at the least; a lab is not started on a store without that.
ROOM_PER_MACHINE = 256 * MIB


@dataclass(frozen=True, slots=True)
class Ground:
    """Where a lab is to stand. `memory` in bytes is what labs may still use here, `space` in bytes what the store has free;
    `taken` the subnets in use here, this instance's own left out; lab networks come from `supernet`."""

    kit: str
    arch: Arch
    profile: Profile
    memory: int
    space: int
    taken: tuple[Subnet, ...]
    supernet: IPv4Network
    now: str
    made_with: str


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
        return Plan(self.instance, tuple(self.steps), tuple(self.notes), tuple(self.loses), record)


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one machine: `volumes` to clone (from, to, size) or create (None, to, size) by disk name; `restart`
    why a running one is stopped first (empty: it is not); `fresh` whether it starts from its base; `definition` as it will be."""

    name: Name
    record: MachineRecord
    volumes: Mapping[str, tuple[str | None, str, int]]
    fresh: bool
    restart: str
    reason: str


def known_record(instance: Name, have: Inventory, kit: str) -> Record:
    """The record of an instance that has to be there; raises NotFound."""
    if have.record is None:
        half = " (there are remains of it: pocketcloud lab destroy removes them)" if not have.empty else ""
        raise NotFound(f"kit {kit} has no lab {instance}{half}", hint="pocketcloud lab list shows what there is")
    return have.record


def settled_networks(
    lab: Lab, instance: Name, record: Record, have: Inventory, ground: Ground, draft: Draft, *, reconfigure: bool
) -> dict[Name, NetworkRecord]:
    taken = list(ground.taken)
    found: dict[Name, NetworkRecord] = {}
    for name, wanted in lab.networks.items():
        known = record.networks.get(name)
        kind = wanted.kind
        if known and known.kind != wanted.kind and not reconfigure:
            draft.notes.append(f"network {name}: kind {known.kind} -> {wanted.kind} waits for --reconfigure")
            kind = known.kind
        there = have.networks.get(name)
        if known and there and there.active and there.subnet == str(known.subnet):
            subnet = known.subnet
        else:
            subnet = choose(ground.supernet, taken, keep=known.subnet if known else None, seed=f"{ground.kit}.{instance}.{name}")
            if known and subnet != known.subnet:
                draft.notes.append(f"network {name} moves from {known.subnet} to {subnet}: the old one is taken here")
        found[name] = NetworkRecord(kind, subnet)
        taken.append(Subnet(subnet, f"network {name} of this lab"))
    for name, known in record.networks.items():
        found.setdefault(name, known)
    return found


def addressed(machines: Mapping[Name, MachineRecord], networks: Mapping[Name, NetworkRecord]) -> dict[Name, MachineRecord]:
    """Give every machine its address on each of its networks: the one of the file, else the one it has, else the next free."""
    result = dict(machines)
    for network, known in networks.items():
        base = int(known.subnet.network_address)
        used: dict[int, Name] = {}
        for name, machine in result.items():
            attachment = machine.definition.networks.get(network)
            if attachment and attachment.address is not None:
                used[attachment.address] = name
        for name, machine in result.items():
            attachment = machine.definition.networks.get(network)
            if attachment is None:
                continue
            before = machine.addresses.get(network)
            part = attachment.address or (int(before) & 0xFF if before else 0)
            if not part or used.get(part, name) != name:
                part = next(n for n in range(10, 255) if n not in used)
            used[part] = name
            result[name] = replace(result[name], addresses={**result[name].addresses, network: IPv4Address(base + part)})
    return result


def draw_networks(draft: Draft, record: Record, have: Inventory, after: tuple[str, ...], *, changed: bool) -> dict[str, str]:
    used = {n for m in record.machines.values() for n in m.definition.networks} & set(record.networks)
    steps: dict[str, str] = {}
    for name in sorted(used):
        there = have.networks.get(name)
        if changed or there is None or not there.active:
            reason = "its leases may have changed" if there and there.active else "it is not running"
            steps[name] = draft.add(EnsureNetwork(id=f"network.{name}", reason=reason, after=after, network=name))
    return steps


def check_room(fates: Sequence[Fate], have: Inventory, ground: Ground) -> None:
    """Refuse what the host cannot carry, with the figures, all at once."""
    starting = [f for f in fates if (d := have.domains.get(f.name)) is None or d.state is DomainState.OFF]
    memory = sum(f.record.definition.memory + ground.profile.machine_overhead for f in starting)
    problems: list[str] = []
    if memory > ground.memory:
        parts = ", ".join(f"{f.name} {size_text(f.record.definition.memory)}" for f in starting)
        each, keeps = size_text(ground.profile.machine_overhead), size_text(ground.profile.host_memory)
        problems.append(
            f"memory: {len(starting)} machines need {size_text(memory)} ({parts}, and {each} each for QEMU); this host can give"
            f" labs {size_text(max(ground.memory, 0))} (profile {ground.profile.profile} keeps {keeps} for the host)"
        )
    snapshotted = sum(f.record.definition.memory for f in fates if f.fresh)
    space = snapshotted + ROOM_PER_MACHINE * len(starting)
    if starting and space > ground.space:
        free = size_text(ground.space)
        problems.append(f"space: the lab needs at least {size_text(space)}; kit {ground.kit} has {free} free")
    profile = ground.profile
    for fate in fates:
        if (vcpus := fate.record.definition.vcpus) > profile.max_vcpus:
            problems += [f"{fate.name}: {vcpus} vcpus; profile {profile.profile} allows {profile.max_vcpus}"]
    if problems:
        raise NoSpace("\n".join(problems), hint="stop another lab (pocketcloud lab list), or give the machines less")


def leftovers(record: Record | None, have: Inventory, sources: Collection[str] = ()) -> list[str]:
    """Volumes of the instance that its record neither names nor stands on, those that stand on others first. `sources` are
    volumes that others are about to be cloned from: not seen in the inventory yet, and needed."""
    needed: set[str] = set()
    for volume in (*(record.named_volumes() if record else ()), *sources):
        current: str | None = volume
        while current is not None and current not in needed:
            needed.add(current)
            current = have.volumes[current].parent if current in have.volumes else None
    # A volume can go only after those that stand on it.
    loose = {name for name in have.volumes if name not in needed and record_owns(name, record, have)}
    ordered: list[str] = []
    while loose:
        parents = {have.volumes[name].parent for name in loose}
        tops = sorted(loose - parents) or sorted(loose)
        ordered += tops
        loose -= set(tops)
    return ordered


def record_owns(volume: str, record: Record | None, have: Inventory) -> bool:
    """Whether a volume of the inventory belongs to the instance (bases are in the inventory too, for their paths)."""
    return volume.startswith("lab.") and volume in have.volumes and (record is None or belongs_to(volume, record.instance))


def draw_sweep(draft: Draft, record: Record, have: Inventory, after: tuple[str, ...]) -> None:
    """Remove what no record names: volumes of the generation before, and of interrupted commands."""
    previous = after
    sources = [step.source for step in draft.steps if isinstance(step, CloneVolume)]
    for name in leftovers(record, have, sources):
        previous = (draft.add(RemoveVolume(id=f"remove.{name}", reason="no record names it", after=previous, name=name)),)
