"""Which machines have their memory kept with a state, and which are woken from it. Pure; whether memory fits is memory_fit's."""

from __future__ import annotations

from collections.abc import Iterable

from pocketcloud.errors import Refused
from pocketcloud.model.lab import Lab, Machine, ResetKind
from pocketcloud.model.names import Name
from pocketcloud.model.record import CLEAN, Memory, Record, SnapshotPart
from pocketcloud.plan.drafting import Draft, Ground
from pocketcloud.plan.steps import StartMachine, Step, WakeMachine

# Linux, Documentation/virt/kvm/x86/running-nested-guests.rst: what is saved of such a machine on AMD does not run again.
_NESTED = "it runs machines of its own, whose state does not survive that on a processor of AMD"


def start_or_wake(name: Name, part: SnapshotPart, definition: Machine, reason: str, up: tuple[str, ...], ground: Ground) -> Step:
    """The step that brings a machine up on disks of that part of a state: from its memory, where that is kept and wanted."""
    memory = _wanted(part, definition, ground)
    if memory is None:
        return StartMachine(id=f"start.{name}", reason=reason, machine=name, after=up)
    return WakeMachine(id=f"start.{name}", reason=reason, machine=name, after=up, memory=memory)


def _wanted(part: SnapshotPart, definition: Machine, ground: Ground) -> Memory | None:
    return None if ground.cold or _not_kept(definition, ground) else part.memory


def note_cold(draft: Draft, lab: Lab, parts: Iterable[tuple[Name, SnapshotPart]], state: str, ground: Ground) -> None:
    """Say which machines of a lab that is to be reset warm start cold, as there is no memory of them."""
    if lab.reset is not ResetKind.WARM or ground.cold or state != CLEAN:
        return
    for name, part in parts:
        if why := _not_kept(lab.machines[name], ground) if name in lab.machines else "":
            draft.notes.append(f"{name} starts cold: {why}")
        elif part.memory is None:
            draft.notes.append(f"{name} starts cold: {state} holds no memory of it")


def kept_with_clean(draft: Draft, lab: Lab, record: Record, fresh: tuple[Name, ...], ground: Ground) -> tuple[Name, ...]:
    """Of the machines that `clean` is about to be taken of, those whose memory is kept with it. Says which are not, and which
    had theirs taken without."""
    if lab.reset is not ResetKind.WARM:
        return ()
    whys = {name: _not_kept(lab.machines[name], ground) for name in lab.machines}
    draft.notes += [f"{name}: its memory is not kept: {why}" for name, why in whys.items() if why and name in fresh]
    clean = record.clean.machines if record.clean else {}
    bare = [name for name, part in clean.items() if part.memory is None and not whys.get(name)]
    if bare:
        draft.notes.append(
            f"{', '.join(bare)}: {CLEAN} holds no memory, a reset starts cold; after one, `lab snapshot {record.instance}@NAME"
            f" --ram` takes a state to which `lab restore` goes back warm"
        )
    return tuple(name for name in fresh if not whys[name])


def check_kept(record: Record, running: Iterable[Name], ground: Ground) -> None:
    """Refuse to keep the memory of these machines with a state, where that cannot be."""
    whys = {name: _not_kept(record.machines[name].definition, ground) for name in running}
    if not whys:
        raise Refused(f"no machine of lab {record.instance} runs: there is no memory to keep", hint="leave --ram out")
    if refused := [f"the memory of {name} cannot be kept: {why}" for name, why in whys.items() if why]:
        raise Refused("\n".join(refused), hint="leave --ram out: the state is restored with a cold start")


def _not_kept(definition: Machine, ground: Ground) -> str:
    """Why the memory of such a machine is not kept; empty: it is."""
    return _NESTED if ground.svm and definition.runs_machines else ""
