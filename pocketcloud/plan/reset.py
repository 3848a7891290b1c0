"""The plans that bring a lab back: `lab reset` to `clean`, `lab restore` to any state, `lab undo` to what those left.

The new disks come first and the old ones go last; what the machines leave is kept for `lab undo`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from pocketcloud.errors import NotFound, Refused
from pocketcloud.model.inventory import Clone, Inventory
from pocketcloud.model.lab import Lab, LabNetwork, Machine
from pocketcloud.model.names import Name
from pocketcloud.model.record import CLEAN, UNDO, Memory, NetworkRecord, Record, Restoring, Snapshot, SnapshotPart, Stage
from pocketcloud.model.sizes import Size
from pocketcloud.plan.demands import check_demands
from pocketcloud.plan.drafting import (
    Draft,
    Fate,
    Ground,
    check_known,
    check_native,
    check_processor,
    check_room,
    draw_end_restoring,
    draw_sweep,
    known_record,
    marks,
    next_generation,
    spare_of,
    volume_name,
)
from pocketcloud.plan.networks import addressed, draw_networks, settled_networks
from pocketcloud.plan.protection import left_alone, refused
from pocketcloud.plan.states import has_room, known_state, left_part, without_expired, without_states
from pocketcloud.plan.steps import (
    CloneVolumes,
    CommitRecord,
    DefineMachine,
    KeepNvram,
    KillMachine,
    Plan,
    SetNvram,
    Step,
    WaitReady,
)
from pocketcloud.plan.up import plan_up
from pocketcloud.plan.waking import memory_to_wake, note_cold, start_or_wake


@dataclass(frozen=True, slots=True)
class _Way:
    """The way back: to `parts` of the state `state`, for the reason `reason`; `undo` whether what is left is kept; `at` where the
    lab is in the tree of its states afterwards."""

    state: str
    parts: Mapping[Name, SnapshotPart]
    reason: str
    undo: bool
    at: str


def plan_reset(
    instance: Name,
    machines: Sequence[str],
    have: Inventory,
    ground: Ground,
    *,
    undo: bool = False,
    but: Collection[str] = (),
) -> Plan:
    """Bring machines (none named: all) back to `clean` with a cold boot: new disks first, then the record, then the start,
    the old disks last, or kept with `undo`. Those of `but`, which are protected, are left out. Raises NotFound and Refused."""
    record = known_record(instance, have, ground.kit)
    check_known(machines, record)
    check_native(record.lab, record, ground)
    draft = Draft(instance)
    parts = record.clean.machines if record.clean else {}
    # As with `up`, a machine that left the file is left as it is, unless it is named.
    wanted = machines or [name for name in record.machines if name in record.lab.machines]
    missing = [name for name in wanted if name not in parts]
    if missing and (machines or len(missing) == len(wanted)):
        raise Refused(f"lab {instance} has no clean state of {', '.join(missing)} yet", hint=f"pocketcloud lab up {instance}")
    draft.notes += [f"{name} has no clean state yet and is left alone: pocketcloud lab up {instance}" for name in missing]
    chosen = {Name(name): parts[Name(name)] for name in wanted if name in parts and name not in but}
    gone = [name for name in record.machines if name not in record.lab.machines and not machines]
    draft.notes += [f"{name} is no longer in the file and is left as it is: lab reset {instance} {name}" for name in gone]
    draft.notes += left_alone(but)
    if but and not chosen:
        raise refused(instance, list(but), "reset")
    at = CLEAN if set(chosen) >= set(record.lab.machines) else record.at
    return _draw(draft, record, record, _Way(CLEAN, chosen, "back to clean", undo, at), have, ground)


def plan_restore(
    instance: Name, state: str, have: Inventory, ground: Ground, *, undo: bool = True, but: Collection[str] = ()
) -> Plan:
    """Bring the lab back to a state of it, its machines and networks as they were declared then, without machines of `but`, which
    are protected. Raises NotFound, Refused and NoSpace."""
    if state == UNDO:
        return plan_undo(instance, have, ground, keep=undo, but=but)
    if state == CLEAN:
        return plan_reset(instance, [], have, ground, undo=undo, but=but)
    record = known_record(instance, have, ground.kit)
    snapshot = known_state(record, state)
    return _draw_restore(record, _Way(state, snapshot.machines, f"back to {state}", undo, state), snapshot, have, ground, but)


def plan_undo(instance: Name, have: Inventory, ground: Ground, *, keep: bool = True, but: Collection[str] = ()) -> Plan:
    """Bring back what the last reset or restore left; with `keep` what that had brought is kept in its place, so that a second
    one takes the first back. One that was interrupted is completed. Raises NotFound, Refused and NoSpace."""
    record = known_record(instance, have, ground.kit)
    if any(m.restoring and m.restoring.state == UNDO for name, m in record.machines.items() if name in record.lab.machines):
        plan = plan_up(record.lab, instance, have, ground)
        return replace(plan, notes=(f"the last `lab undo {instance}` was interrupted; it is completed", *plan.notes))
    snapshot = record.undo
    if snapshot is None:
        raise NotFound(
            f"lab {instance} has nothing to undo: no reset or restore has left anything that is still kept",
            hint=f"pocketcloud lab tree {instance} shows the states it has",
        )
    way = _Way(UNDO, snapshot.machines, "back to what was left", undo=keep, at=snapshot.parent)
    return _draw_restore(record, way, snapshot, have, ground, but)


def _draw_restore(record: Record, way: _Way, snapshot: Snapshot, have: Inventory, ground: Ground, but: Collection[str]) -> Plan:
    """The plan for a state that has its own declarations of machines and networks."""
    check_native(record.lab, record, ground)
    draft = Draft(record.instance)
    # A machine that left the lab since is not brought back: its definition is not the lab's any more. What it left before that
    # can be taken back while it is kept.
    there = record.machines if way.state == UNDO else {n: m for n, m in record.machines.items() if n in record.lab.machines}
    parts = {name: part for name, part in way.parts.items() if name in there and name not in but}
    gone = [name for name in way.parts if name not in there]
    draft.notes += left_alone(but)
    draft.notes += [f"{name} is in {record.instance}@{way.state} and not in the lab any more; it is left out" for name in gone]
    others = [name for name in record.machines if name not in parts]
    draft.notes += [
        f"{name} is not in {record.instance}@{way.state} and is left as it is"
        for name in others
        if name not in but and name not in way.parts
    ]
    if not parts and but:
        raise refused(record.instance, list(but), "brought back")
    if not parts:
        raise Refused(f"{record.instance}@{way.state} has no machine that the lab still has", hint="pocketcloud lab tree")
    definitions = {name: _definition(part, record.machines[name].definition) for name, part in parts.items()}
    # A network that others are on stays what it is for them.
    shared = {network for name in others for network in record.machines[name].definition.networks}
    networks = {name: network for name, network in snapshot.networks.items() if name not in shared}
    lab = _declaring(record.lab, definitions, networks)
    machines = {
        name: replace(machine, definition=definitions.get(name, machine.definition)) for name, machine in record.machines.items()
    }
    # Recorded as wanted, so that they are settled as those and not as an edit that waits.
    known = {
        name: replace(network, kind=networks[name].kind) if name in networks else network
        for name, network in record.networks.items()
    }
    declared = replace(record, lab=lab, machines=machines, networks=known)
    return _draw(draft, record, declared, replace(way, parts=parts), have, ground)


def _declaring(lab: Lab, definitions: Mapping[Name, Machine], networks: Mapping[Name, LabNetwork]) -> Lab:
    """The lab with these declarations, and its `needs` no more than they allow."""
    machines = {name: definitions.get(name, machine) for name, machine in lab.machines.items()}
    least = Size(sum(machine.memory for machine in machines.values()))
    needs = replace(
        lab.needs,
        memory=max(lab.needs.memory, least) if lab.needs.memory else None,
        nesting=lab.needs.nesting and any(machine.runs_machines for machine in machines.values()),
    )
    return replace(lab, machines=machines, networks={**lab.networks, **networks}, needs=needs)


def _definition(part: SnapshotPart, now: Machine) -> Machine:
    """What a machine is declared as in a state; whether it is protected is not the state's to say."""
    return replace(part.definition, protected=now.protected) if part.definition else now


def _draw(draft: Draft, before: Record, record: Record, way: _Way, have: Inventory, ground: Ground) -> Plan:
    """The plan from the record as it was `before`, which is what can be undone, and as it is with the state's declarations."""
    generation = next_generation(record, have)
    clones: list[Clone] = []
    fates: list[Fate] = []
    memories: dict[Name, Memory | None] = {}
    for name, part in way.parts.items():
        if lost := [volume for volume in part.disks.values() if volume not in have.volumes]:
            raise _damaged(record, way.state, name, lost[0])
        disks = {
            disk: spare_of(source, have) or volume_name(record.instance, name, disk, generation)
            for disk, source in part.disks.items()
        }
        clones += [Clone(part.disks[disk], volume, marks=marks(record.instance, name, disk)) for disk, volume in disks.items()]
        memories[name] = memory_to_wake(name, part, record, way.state, ground)
        restoring = Restoring(way.state, part.nvram, woken=memories[name] is not None)
        machine = replace(record.machines[name], disks=disks, stage=Stage.PROVISIONED, restoring=restoring)
        fates.append(Fate(name, machine, {}, fresh=False, restart=way.reason, reason=way.reason))
    check_processor(fates, have, ground)
    check_demands(draft, fates, have, ground)
    check_room(fates, have, ground, frees=True)
    note_cold(draft, record, way.parts.items(), way.state, ground)
    record = replace(record, snapshots=_with_undo(draft, before, way, have, ground, generation).snapshots)
    opened = _stop_on_sources(draft, way, have, clones)
    # With the reserve: a reset soon frees more than it takes, and must work on a store that is full.
    made = [draft.add(CloneVolumes(id="volumes", reason=way.reason, after=opened, clones=tuple(clones), reserve=True))]
    made += _draw_kept_nvrams(draft, before, record, opened)
    networks = _kept_networks(draft, record, have, ground)
    record = replace(
        record,
        networks=networks,
        generation=generation,
        machines={**record.machines, **{f.name: f.record for f in fates}},
        at=way.at if way.at in record.snapshots else "",
    )
    record = replace(record, machines=addressed(record.machines, networks))
    what = "its clean state" if way.state == CLEAN else f"its state {way.state}"
    commit = (draft.add(CommitRecord(id="commit", reason=f"the lab is {what} from here on", after=tuple(made), record=record)),)
    stops = {fate.name: f"stop.{fate.name}" for fate in fates}
    for name, stop in stops.items():
        if stop not in opened:
            # What the guest has not written yet is worth a moment where its disks are kept.
            last, kept = (*commit, *opened), name in draft.keeps
            draft.add(KillMachine(id=stop, reason=way.reason, machine=name, after=last, flush=kept))
    nets = draw_networks(draft, record, have, commit, wholly=False, stops={name: (stop,) for name, stop in stops.items()})
    ready = []
    for fate in fates:
        name, part = fate.name, way.parts[fate.name]
        up = tuple(nets[n] for n in fate.record.definition.networks if n in nets)
        chain: list[Step] = []
        if part.nvram:
            chain.append(SetNvram(id=f"nvram.{name}", reason=way.reason, machine=name, source=part.nvram))
        chain.append(DefineMachine(id=f"define.{name}", reason="its disks are new", machine=name))
        chain.append(start_or_wake(name, memories[name], way.reason, up))
        chain.append(WaitReady(id=f"ready.{name}", reason=f"{_verb(way)} ends when it is ready", machine=name))
        chain[0] = replace(chain[0], after=(*commit, stops[name], *chain[0].after))
        ready.append(draft.chain(*chain))
    back = draw_end_restoring(draft, [fate.name for fate in fates], tuple(ready))
    draw_sweep(draft, record, have, ground, back)
    return draft.plan(record)


def _verb(way: _Way) -> str:
    return {CLEAN: "reset", UNDO: "undo"}.get(way.state, "restore")


def _damaged(record: Record, state: str, machine: str, volume: str) -> Refused:
    hint = (
        f"pocketcloud lab destroy {record.instance}, then up"
        if state == CLEAN
        else f"forget it: lab forget {record.instance}@{state}"
    )
    return Refused(f"the {state} state of {machine} is damaged: volume {volume} is gone", hint=hint)


def _with_undo(draft: Draft, record: Record, way: _Way, have: Inventory, ground: Ground, generation: int) -> Record:
    """The record with what the machines leave as its state `undo`; the draft says whose disks that keeps, and whose are lost."""
    old = record.undo
    earlier = old.machines if old else {}
    # What was not brought back now can be brought back by the next one.
    others = {name: part for name, part in earlier.items() if name not in way.parts} if way.state == UNDO or not way.undo else {}
    again = {name: earlier[name] for name in way.parts if name in earlier and way.undo and _goes_on(record, name, way)}
    left = {name: part for name in way.parts if name not in again and (part := _left(record, name, have, generation))}
    if not way.undo:
        left = {}
    elif left and not has_room(ground, len(way.parts)):
        draft.notes.append(f"kit {ground.kit} has no space to keep what the machines leave: `lab undo` will not bring it back")
        left = {}
    if way.undo and way.state != UNDO:
        _note_what_goes(draft, record, earlier, again, way)
    draft.keeps += left
    draft.loses += [name for name in way.parts if name not in left]
    if again and not left:
        return without_expired(draft, record, ground)
    if not left:
        return _replaced(record, old and replace(old, machines=others))
    return _replaced(record, Snapshot(ground.now, {**others, **again, **left}, record.at, networks=record.raised_networks))


def _note_what_goes(
    draft: Draft, record: Record, earlier: Mapping[Name, SnapshotPart], again: Mapping[Name, SnapshotPart], way: _Way
) -> None:
    """Say what `lab undo` will not bring back, though somebody may think so."""
    if replaced := [name for name in earlier if name not in way.parts]:
        draft.notes.append(
            f"`lab undo {record.instance}` will not bring back any more what {', '.join(replaced)} left before this {_verb(way)}"
        )
    if worked := [name for name in again if record.is_ready_again(name)]:
        draft.notes.append(
            f"the last {_verb(way)} never came to its end: `lab undo {record.instance}` brings back what {', '.join(worked)} left"
            " at that one, and what came since goes"
        )


def _goes_on(record: Record, name: Name, way: _Way) -> bool:
    """Whether a machine was never brought back wholly, and is now brought back again: what it left first stays the one to keep.
    An undo that is taken back is not one of those: its state left the record, and is on the machine's disks alone."""
    restoring = record.machines[name].restoring
    return way.state != UNDO and restoring is not None and restoring.state != UNDO and restoring.state in record.snapshots


def _left(record: Record, name: Name, have: Inventory, generation: int) -> SnapshotPart | None:
    """What a machine leaves, if that is worth keeping."""
    machine, domain = record.machines[name], have.domains.get(name)
    if machine.stage is not Stage.PROVISIONED or any(volume not in have.volumes for volume in machine.disks.values()):
        return None
    part = left_part(record.instance, name, machine, generation)
    started = (
        domain is not None
        and domain.active
        and {have.volumes[v].path for v in machine.disks.values()} <= set(domain.disks.values())
    )
    if machine.restoring and machine.restoring.nvram and not started:
        # What it has now may still be from before; these are what it would be started with.
        return replace(part, nvram=machine.restoring.nvram)
    return part


def _replaced(record: Record, undo: Snapshot | None) -> Record:
    if undo is None or not undo.machines:
        return without_states(record, [UNDO])
    return replace(record, snapshots={**record.snapshots, Name(UNDO): undo})


def _stop_on_sources(draft: Draft, way: _Way, have: Inventory, clones: Sequence[Clone]) -> tuple[str, ...]:
    """Stop machines that still run on what they are to be brought back to, as after a reset that was interrupted before it had
    stopped them: what is open cannot be cloned."""
    sources = {have.volumes[clone.source].path for clone in clones}
    return tuple(
        draft.add(KillMachine(id=f"stop.{name}", reason="it runs on the disks that are wanted", machine=name, flush=True))
        for name in way.parts
        if (domain := have.domains.get(name)) is not None and domain.active and sources & set(domain.disks.values())
    )


def _draw_kept_nvrams(draft: Draft, before: Record, record: Record, after: tuple[str, ...]) -> list[str]:
    """Keep the UEFI variables that the new record names and the old one does not."""
    undo = record.undo
    return [
        draft.add(KeepNvram(id=f"keep.{name}", reason="for `lab undo`", after=after, machine=name, target=part.nvram))
        for name, part in (undo.machines.items() if undo else ())
        if part.nvram and part.nvram not in before.named_nvrams()
    ]


def _kept_networks(draft: Draft, record: Record, have: Inventory, ground: Ground) -> dict[Name, NetworkRecord]:
    raised = {name: network for name, network in record.raised_networks.items() if name in record.networks}
    wanted = replace(record.lab, networks=raised)
    return settled_networks(wanted, record.instance, record, have, ground, draft, reconfigure=False)
