"""Which machines have their memory kept with a state, and which are woken from it. Pure; whether memory fits is memory_fit's."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from pocketcloud.errors import Refused
from pocketcloud.model.lab import Machine, ResetKind
from pocketcloud.model.names import Name
from pocketcloud.model.record import CLEAN, Memory, Record, SnapshotPart
from pocketcloud.plan.drafting import Draft, Ground
from pocketcloud.plan.steps import DefineMachine, StartMachine, Step, StopMachine, TakeSnapshot, WaitReady, WakeMachine

# Linux, Documentation/virt/kvm/x86/running-nested-guests.rst: what is saved of such a machine on AMD does not run again.
_NESTED = "it runs machines of its own, whose state does not survive that on a processor of AMD"
# What has machines of its own to switch off takes longer than others.
_REST_SECONDS = 180.0


def memory_to_wake(name: Name, part: SnapshotPart, record: Record, state: str, ground: Ground) -> Memory | None:
    """The memory from which a machine is brought up on disks of that part of a state, where it is kept and wanted. `record` has
    the machine as that state declares it."""
    cold = ground.cold or (state == CLEAN and record.lab.reset is not ResetKind.WARM)
    return None if cold or _not_kept(record.machines[name].definition, ground) else part.memory


def start_or_wake(name: Name, memory: Memory | None, reason: str, up: tuple[str, ...]) -> Step:
    """The step that brings a machine up, from memory or cold."""
    if memory is None:
        return StartMachine(id=f"start.{name}", reason=reason, machine=name, after=up)
    return WakeMachine(id=f"start.{name}", reason=reason, machine=name, after=up, memory=memory)


def note_cold(draft: Draft, record: Record, parts: Iterable[tuple[Name, SnapshotPart]], state: str, ground: Ground) -> None:
    """Say which machines of a lab that is to be reset warm start cold, as there is no memory of them."""
    if record.lab.reset is not ResetKind.WARM or ground.cold or state != CLEAN:
        return
    for name, part in parts:
        if why := _not_kept(record.machines[name].definition, ground):
            draft.notes.append(f"{name} starts cold: {why}")
        elif part.memory is None:
            draft.notes.append(f"{name} starts cold: {state} holds no memory of it")


def kept_with_clean(draft: Draft, record: Record, fresh: tuple[Name, ...], ground: Ground) -> tuple[Name, ...]:
    """Of the machines that `clean` is about to be taken of, those whose memory is kept with it. Says which are not, and which
    had theirs taken without."""
    if record.lab.reset is not ResetKind.WARM:
        return ()
    whys = {name: _not_kept(record.machines[name].definition, ground) for name in record.lab.machines}
    draft.notes += [f"{name}: its memory is not kept: {why}" for name, why in whys.items() if why and name in fresh]
    clean = record.clean.machines if record.clean else {}
    bare = [name for name, part in clean.items() if part.memory is None and not whys.get(name)]
    if bare:
        draft.notes.append(
            f"{', '.join(bare)}: {CLEAN} holds no memory, a reset starts cold; after one, `lab snapshot {record.instance}@NAME"
            f" --ram` takes a state to which `lab restore` goes back warm"
        )
    return tuple(name for name in fresh if not whys[name])


def draw_clean(
    draft: Draft, record: Record, fresh: tuple[Name, ...], generation: int, ready: Mapping[Name, str], ground: Ground
) -> list[str]:
    """Take `clean` of machines, which are `ready` after these steps; the ids of what comes last."""
    memory = kept_with_clean(draft, record, fresh, ground)
    off = off_for_state(record, fresh, ground)
    why = "its state is taken while it is off, for the machines that run in it"
    stops = [draft.add(StopMachine(id=f"rest.{n}", reason=why, machine=n, after=(ready[n],), within=_REST_SECONDS)) for n in off]
    take = TakeSnapshot(
        id="clean",
        reason="what reset returns to",
        after=(*(ready[name] for name in fresh), *stops),
        name=CLEAN,
        machines=fresh,
        generation=generation,
        memory=memory,
    )
    taken = draft.add(take)
    again = "it was off for its state"
    return [taken] + [
        draft.chain(
            DefineMachine(id=f"redefine.{name}", reason="its disks are new", machine=name, after=(taken,)),
            StartMachine(id=f"restart.{name}", reason=again, machine=name),
            WaitReady(id=f"again.{name}", reason=again, machine=name),
        )
        for name in off
    ]


def off_for_state(record: Record, machines: Iterable[Name], ground: Ground) -> tuple[Name, ...]:
    """Of these machines those whose state is taken only while they are off: whoever runs is saved to memory for that, and brought
    back from it."""
    return tuple(name for name in machines if _not_kept(record.machines[name].definition, ground))


def check_saved(record: Record, running: Collection[Name], ground: Ground, *, ram: bool) -> None:
    """Refuse to take a state of these machines while they run, where they would not outlive that; and with `ram` where none
    does."""
    if off := off_for_state(record, running, ground):
        raise Refused(
            f"no state is taken of {', '.join(off)} of lab {record.instance} while running: {_NESTED}",
            hint=f"pocketcloud lab down {record.instance} {' '.join(off)}; its disks are taken as they lie then",
        )
    if ram and not running:
        raise Refused(f"no machine of lab {record.instance} runs: there is no memory to keep", hint="leave --ram out")


def _not_kept(definition: Machine, ground: Ground) -> str:
    """Why the memory of such a machine is not kept; empty: it is."""
    return _NESTED if ground.svm and definition.runs_machines else ""
