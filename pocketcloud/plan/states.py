"""States of a lab beside what it is now: which there are, what of them is kept, and the plans that take and forget them.

Going back to one is plan/reset.py's.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping
from dataclasses import replace

from pocketcloud.errors import NoSpace, NotFound, Refused
from pocketcloud.model.base import Firmware
from pocketcloud.model.inventory import DomainState, Inventory
from pocketcloud.model.names import Name, joined
from pocketcloud.model.record import CLEAN, UNDO, MachineRecord, Record, Snapshot, SnapshotPart, Stage
from pocketcloud.model.sizes import size_text
from pocketcloud.plan.drafting import ROOM_PER_MACHINE, Draft, Ground, draw_sweep, known_record, leftovers, next_generation
from pocketcloud.plan.steps import CommitRecord, Plan, RemoveVolumes, TakeSnapshot
from pocketcloud.plan.waking import check_saved

UNDO_DAYS = 7
"""How long what a reset left can be brought back."""
# A clock that went wrong (a dead battery, a wrong date set by hand) is off by more than this, and expires nothing.
_MISDATED_DAYS = 365


def known_state(record: Record, state: str) -> Snapshot:
    """A state that has to be there; raises NotFound."""
    if snapshot := record.snapshots.get(Name(state)):
        return snapshot
    there = ", ".join(f"{record.instance}@{name}" for name in record.snapshots)
    hint = f"pocketcloud lab tree {record.instance} shows the states it has: {there or 'none'}"
    raise NotFound(f"lab {record.instance} has no state {state}", hint=hint)


def without_states(record: Record, names: Collection[str]) -> Record:
    """The record without these states; what came from them comes from what they came from."""

    def kept(name: str) -> str:
        while name in names and name in record.snapshots:
            name = record.snapshots[Name(name)].parent
        return "" if name in names else name

    left = {n: replace(s, parent=kept(s.parent)) for n, s in record.snapshots.items() if n not in names}
    return replace(record, snapshots=left, at=kept(record.at))


def without_machines(record: Record, machines: Collection[str]) -> Record:
    """The record with these machines taken out of all its states; a state that has no other goes."""
    parts = {
        name: {m: part for m, part in snapshot.machines.items() if m not in machines}
        for name, snapshot in record.snapshots.items()
    }
    record = replace(record, snapshots={n: replace(s, machines=parts[n]) for n, s in record.snapshots.items()})
    return without_states(record, [name for name, left in parts.items() if not left])


def check_lost_states(draft: Draft, record: Record, lost: Collection[Name]) -> None:
    """Name the states that go with machines. Raises Refused where one of them is protected and would be forgotten."""
    for state, snapshot in record.snapshots.items():
        gone = [name for name in snapshot.machines if name in lost]
        if not gone or state in (CLEAN, UNDO):
            continue
        named = f"{record.instance}@{state}"
        if len(gone) == len(snapshot.machines) and snapshot.protected:
            raise Refused(
                f"{named} is protected, and would be forgotten: {', '.join(gone)} would be made anew or removed",
                hint=f"pocketcloud lab protect {named} --off takes the protection away; lab restore {named} goes there",
            )
        if len(gone) == len(snapshot.machines):
            draft.notes.append(f"{named} is forgotten: it is of {', '.join(gone)} alone")
        elif snapshot.protected:
            draft.notes.append(f"{named}, which is protected, loses {', '.join(gone)}")


def without_expired(draft: Draft, record: Record, ground: Ground) -> Record:
    """The record without what was kept for `lab undo`, if that is old or the kit has no space for it any more; that is said. For
    want of space it does not go while a machine is still brought back: it is what such a machine left."""
    undo = record.undo
    if undo is None:
        return record
    if _is_old(undo.taken, ground.now):
        why = f"it is older than {UNDO_DAYS} days"
    elif not has_room(ground, len(undo.machines)) and not any(machine.restoring for machine in record.machines.values()):
        why = f"kit {ground.kit} has no space for it any more"
    else:
        return record
    draft.notes.append(f"what was kept for `lab undo {record.instance}` is dropped: {why}")
    return without_states(record, [UNDO])


def has_room(ground: Ground, machines: int) -> bool:
    """Whether there is space to keep what so many machines leave, beside what they write from here on."""
    return ground.space >= ROOM_PER_MACHINE * (machines + 1)


def _is_old(taken: str, now: str) -> bool:
    try:
        age = datetime.datetime.fromisoformat(now) - datetime.datetime.fromisoformat(taken)
    except (ValueError, TypeError):
        return False
    return UNDO_DAYS <= age.days < _MISDATED_DAYS


def left_part(instance: str, name: Name, machine: MachineRecord, generation: int) -> SnapshotPart:
    """What a machine leaves when it is brought back: its live volumes as they are, and a copy of its UEFI variables."""
    # The dot keeps it apart from those of states, whose names have none.
    nvram = f"{joined(instance, name)}@{UNDO}.g{generation}.fd" if machine.firmware is Firmware.EFI else ""
    return SnapshotPart(machine.disks, nvram, machine.definition)


def plan_snapshot(
    instance: Name, state: str, have: Inventory, ground: Ground, *, protected: bool = False, ram: bool = False
) -> Plan:
    """Take the state of all machines at one moment, those that are off as they lie; with `ram` the memory of those that run is
    kept with it. Raises NotFound, Refused and NoSpace."""
    record = known_record(instance, have, ground.kit)
    _check_free(record, state)
    draft = Draft(instance)
    machines = _settled(record, have, draft)
    if not machines:
        raise Refused(f"lab {instance} has no machine of which a state could be taken", hint=f"pocketcloud lab up {instance}")
    running = [name for name in machines if (d := have.domains.get(name)) is not None and d.active]
    check_saved(record, running, ground, ram=ram)
    needed = sum(record.machines[name].definition.memory for name in running)
    if needed and needed + ROOM_PER_MACHINE > ground.space:
        raise NoSpace(
            f"taking a state of lab {instance} saves the memory of {', '.join(running)}{'' if ram else ' for a moment'},"
            f" {size_text(needed)};"
            f" kit {ground.kit} has {size_text(max(ground.space, 0))} free",
            hint=f"stop the lab first (pocketcloud lab down {instance}), or make room: pocketcloud kit status",
        )
    if lack := ground.lacks_memory_space(needed):
        raise NoSpace(
            f"taking a state of lab {instance} saves the memory of {', '.join(running)}: {lack}",
            hint=f"stop the lab first (pocketcloud lab down {instance}), or remove media and caches: pocketcloud cache prune",
        )
    kept = without_expired(draft, record, ground)
    before: tuple[str, ...] = ()
    if kept != record:
        before = (draft.add(CommitRecord(id="commit", reason="what is too old goes", record=kept)),)
    lent = _lent(record, have)
    if loose := [volume for volume in leftovers(record, have) if have.volumes[volume].parent in lent]:
        reason = "a snapshot that was interrupted left them"
        before = (draft.add(RemoveVolumes(id="loose", reason=reason, after=before, names=tuple(loose))),)
    step = TakeSnapshot(
        id="state",
        reason="asked for",
        after=before,
        name=state,
        machines=tuple(machines),
        generation=next_generation(record, have),
        protected=protected,
        memory=tuple(running) if ram else (),
    )
    draw_sweep(draft, kept, have, ground, (draft.add(step),))
    return draft.plan()


def _check_free(record: Record, state: str) -> None:
    if state in (CLEAN, UNDO):
        meaning = "what reset returns to" if state == CLEAN else "what the last reset or restore left"
        raise Refused(f"{state} is {meaning}; it is not taken by hand", hint="give the state another name")
    if state in record.snapshots:
        raise Refused(
            f"lab {record.instance} has a state {state} already, taken {record.snapshots[Name(state)].taken}",
            hint=f"another name, or first: pocketcloud lab forget {record.instance}@{state}",
        )


def _settled(record: Record, have: Inventory, draft: Draft) -> list[Name]:
    """The machines to take. Refuses a lab that is on its way from one state to another, as what would be taken is neither; what
    left its file cannot be completed, and is left out."""
    found = []
    for name in record.machines:
        why = _half_way(record, name, have)
        if why and name in record.lab.machines:
            up = f"pocketcloud lab up {record.instance} completes it"
            raise Refused(f"{name} of lab {record.instance} {why}", hint=up)
        if why:
            draft.notes.append(f"{name} is no longer in the file, and {why}; it is left out (lab up --prune removes it)")
        else:
            found.append(name)
    return found


def _half_way(record: Record, name: Name, have: Inventory) -> str:
    """Why no state of a machine can be taken now; empty: it can."""
    machine, domain = record.machines[name], have.domains.get(name)
    lost = [volume for volume in machine.disks.values() if volume not in have.volumes]
    if machine.stage is not Stage.PROVISIONED:
        return "was never ready; there is no state to take"
    if lost:
        return f"has lost its disk {lost[0]}"
    sealed = {volume for volume in machine.disks.values() if have.volumes[volume].sealed}
    if domain is None or not domain.active:
        # As a snapshot that was interrupted leaves it: without those clones the disks are as they were.
        sealed -= _lent(record, have)
    if machine.restoring or sealed:
        return "was left half way by an interrupted command"
    if domain is None or not domain.active:
        return ""
    if domain.state is not DomainState.RUNNING:
        return f"is {domain.state}: its state cannot be taken"
    old = not {have.volumes[volume].path for volume in machine.disks.values()} <= set(domain.disks.values())
    return "runs on old disks: a reset was interrupted" if old else ""


def _lent(record: Record, have: Inventory) -> set[str]:
    """The live volumes that are sealed only for clones which the record does not name."""
    loose = set(leftovers(record, have))
    live = {volume for machine in record.machines.values() for volume in machine.disks.values() if volume in have.volumes}
    lent = {volume for volume in live if have.volumes[volume].sealed and not have.volumes[volume].kept}
    return {name for name in lent if {v.name for v in have.volumes.values() if v.parent == name and not v.spare} <= loose}


def plan_forget(instance: Name, state: str, have: Inventory, ground: Ground) -> Plan:
    """Forget a state; what came from it stays. Raises NotFound, and Refused for `clean` and for one that is protected."""
    record = known_record(instance, have, ground.kit)
    snapshot = known_state(record, state)
    if state == CLEAN:
        raise Refused(f"{instance}@{CLEAN} is what reset returns to; it goes with the lab", hint="pocketcloud lab destroy")
    if snapshot.protected:
        raise Refused(
            f"{instance}@{state} is protected", hint=f"pocketcloud lab protect {instance}@{state} --off takes the protection away"
        )
    draft = Draft(instance)
    left = without_states(record, [state])
    commit = draft.add(CommitRecord(id="commit", reason="nothing names it from here on", record=left))
    draw_sweep(draft, left, have, ground, (commit,))
    return draft.plan(left)


def plan_protect(instance: Name, state: str, have: Inventory, kit: str, *, protected: bool) -> Plan:
    """Protect a state from being forgotten, or not any more. Raises NotFound, and Refused for `undo`, which is replaced, and for
    `clean` to be protected no more: it is never forgotten."""
    record = known_record(instance, have, kit)
    snapshot = known_state(record, state)
    if state == UNDO:
        raise Refused(
            f"{instance}@{UNDO} is replaced by the next reset or restore, and cannot be protected",
            hint=f"to keep it: pocketcloud lab undo {instance}, then lab snapshot {instance}@NAME --protect",
        )
    if state == CLEAN and not protected:
        raise Refused(
            f"{instance}@{CLEAN} is what reset returns to, and is never forgotten by itself; it goes with the lab",
            hint=f"pocketcloud lab destroy {instance}",
        )
    draft = Draft(instance)
    if snapshot.protected is not protected:
        changed: Mapping[Name, Snapshot] = {**record.snapshots, Name(state): replace(snapshot, protected=protected)}
        record = replace(record, snapshots=changed)
        draft.add(CommitRecord(id="commit", reason="asked for", record=record))
    return draft.plan(record)
