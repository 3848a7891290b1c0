"""Takes a state of machines: all their disks and UEFI variables at one moment, with the machines running on afterwards.

Frozen through the agent (so that the file systems on the disks are whole), saved to memory files (which closes the disks),
the disks snapshotted, the record replaced, the machines restored from their memory, thawed, and told the time. An interruption
leaves machines that are off, and loses none of their disks: before the commit they live on the old volumes, after it on the
new. Which of them ran is in the record from before the first is frozen until all are back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from pocketcloud.apply.memory import catch_up, kept
from pocketcloud.apply.readiness import thaw
from pocketcloud.apply.world import World
from pocketcloud.errors import NotReady
from pocketcloud.events import Note, StepProgress
from pocketcloud.files import copy_whole, write_whole
from pocketcloud.hypervisor import AgentFailed
from pocketcloud.model.base import Firmware
from pocketcloud.model.inventory import Clone
from pocketcloud.model.names import Name
from pocketcloud.model.record import Record, Snapshot, SnapshotPart, Taking
from pocketcloud.plan.drafting import marks, volume_name

_T = TypeVar("_T")


def take_snapshot(
    world: World,
    name: Name,
    machines: Sequence[Name],
    generation: int,
    step_id: str,
    *,
    protected: bool = False,
    memory: Collection[Name] = (),
) -> None:
    """Take (or complete) the snapshot `name` with `machines`; they live on volumes of `generation` afterwards. Those that run go
    on, and the memory of those of `memory` is kept; those that are off stay so."""

    def say(fraction: float, text: str) -> None:
        world.emit(StepProgress(step_id, fraction, text))

    world.files.make()
    for machine in machines:
        # What an interrupted snapshot left must never be taken for the memory of this one.
        world.files.memory(machine).unlink(missing_ok=True)
    running = [machine for machine in machines if _runs(world, machine)]
    kept_at = {machine: world.files.kept_memory(machine, name, generation) for machine in running if machine in memory}
    saved = {machine: kept_at.get(machine, world.files.memory(machine)) for machine in running}
    with ExitStack() as undo, ThreadPoolExecutor(max(1, len(machines)), "snapshot") as pool:
        # Entered first and so left last: until then the machines come back from these files, and who finds that this command has
        # ended brings them up.
        if running:
            world.commit(lambda record: replace(record, taking=Taking(name, tuple(running))))
            undo.callback(_end_taking, world, running)
        unkept = undo.enter_context(ExitStack())
        for path in kept_at.values():
            unkept.callback(_remove_memory, world, path)
        say(0.0, "freezing")
        failing = undo.enter_context(ExitStack())
        for machine in running:
            failing.callback(catch_up, world, machine)
            undo.callback(world.hypervisor.thaw, world.domain(machine))
        frozen = _all(pool, lambda m: _freeze(world, m), running)
        say(0.1, "saving memory")
        for machine in running:
            undo.callback(_bring_back, world, machine, saved)
        _all(pool, lambda m: world.hypervisor.save(world.domain(m), saved[m]), running)
        say(0.4, "snapshotting disks")
        with ExitStack() as unmade:
            parts, disks = _snapshot_disks(world, name, machines, generation, unmade)
            if kept_at:
                say(0.5, "reading the memory that is kept")
                parts |= _all(pool, lambda m: replace(parts[m], memory=kept(world, m, kept_at[m])), kept_at)
            fresh = Snapshot(world.now(), parts, protected=protected)
            world.commit(lambda record: _with_snapshot(record, name, fresh, disks, generation))
            unmade.pop_all()
            unkept.pop_all()
        say(0.6, "restoring")
        _all(pool, lambda m: _bring_back(world, m, saved), running)
        say(0.9, "thawing")
        _all(pool, lambda m: _thaw(world, m, frozen=frozen[m]), running)
        failing.pop_all()
        _all(pool, lambda m: catch_up(world, m), running)


def _all(pool: ThreadPoolExecutor, verb: Callable[[Name], _T], machines: Iterable[Name]) -> dict[Name, _T]:
    """Do `verb` for all machines at once, and say what came of it; raise the first error after all have ended."""
    futures = {machine: pool.submit(verb, machine) for machine in machines}
    for error in [future.exception() for future in futures.values()]:
        if error is not None:
            raise error
    return {machine: future.result() for machine, future in futures.items()}


def _runs(world: World, machine: Name) -> bool:
    domain = world.hypervisor.domain(world.domain(machine))
    return domain is not None and domain.active


def _freeze(world: World, machine: Name) -> bool:
    """Whether it is frozen. An agent that does not is no reason to take no state: file systems can do with a power cut."""
    why = f"{machine} has no guest agent that freezes its file systems"
    try:
        if world.hypervisor.freeze(world.domain(machine)):
            return True
        if not world.machine(machine).definition.needs_ssh:
            return False
    except AgentFailed as error:
        why = error.message
    world.emit(Note(f"{why}; its state is taken as after a power cut", warn=True))
    return False


def _thaw(world: World, machine: Name, *, frozen: bool) -> None:
    """An agent that did not answer may have frozen, or not; one that answers no more is only told of then."""
    try:
        thaw(world, machine)
    except NotReady as error:
        if frozen:
            raise
        world.emit(Note(f"{error.message}; {error.hint}", warn=True))


def _bring_back(world: World, machine: Name, saved: dict[Name, Path]) -> None:
    """Restore the machine from its memory file, on the disks the record has by now. One that runs (its memory could not be saved,
    or it is back already) needs nothing; nor has one without a file anything to come back from."""
    path = saved[machine]
    if not path.exists() or _runs(world, machine):
        return
    spec = world.spec(machine)
    world.storage.activate(*world.machine(machine).disks.values())
    world.hypervisor.define(spec)
    world.hypervisor.restore(spec, path)
    if path == world.files.memory(machine):
        path.unlink(missing_ok=True)


def _end_taking(world: World, machines: Sequence[Name]) -> None:
    if all(_runs(world, machine) for machine in machines):
        world.commit(lambda record: record.settled(machines))


def _remove_memory(world: World, path: Path) -> None:
    if path.name not in world.known.memories():
        path.unlink(missing_ok=True)


def _remove_clones(world: World, clones: Collection[str]) -> None:
    """Without their clones the disks are live again, and the machines can go on with them; unless the record names them: it may
    have been replaced, and that not have come to a good end."""
    if not world.known.named_volumes() & set(clones):
        world.storage.remove(*clones)


def _snapshot_disks(
    world: World, name: Name, machines: Sequence[Name], generation: int, unmade: ExitStack
) -> tuple[dict[Name, SnapshotPart], dict[Name, dict[str, str]]]:
    parts: dict[Name, SnapshotPart] = {}
    disks: dict[Name, dict[str, str]] = {}
    clones: list[Clone] = []
    for machine in machines:
        record = world.machine(machine)
        disks[machine] = {disk: volume_name(world.instance, machine, disk, generation) for disk in record.disks}
        clones += [
            Clone(volume, disks[machine][disk], marks=marks(world.instance, machine, disk))
            for disk, volume in record.disks.items()
        ]
    unmade.callback(_remove_clones, world, [clone.name for clone in clones])
    world.storage.clone_all(clones)
    for machine in machines:
        record = world.machine(machine)
        nvram = ""
        if record.firmware is Firmware.EFI:
            variables = world.files.nvram(machine, name)
            if world.files.nvram(machine).exists():
                copy_whole(world.files.nvram(machine), variables, 0o600)
            else:
                write_whole(variables, b"", 0o600)  # it was never started: see SetNvram
            nvram = variables.name
        parts[machine] = SnapshotPart(record.disks, nvram, record.definition)
    return parts, disks


def _with_snapshot(record: Record, name: Name, fresh: Snapshot, disks: dict[Name, dict[str, str]], generation: int) -> Record:
    """The record with the snapshot, or with one that is there completed, and with the lab where it is now in their tree."""
    before = record.snapshots.get(name)
    if before:
        snapshot = replace(before, machines={**before.machines, **fresh.machines})
    else:
        snapshot = replace(fresh, parent=record.at, networks=record.raised_networks)
    machines = {m: replace(r, disks=disks[m]) if m in disks else r for m, r in record.machines.items()}
    snapshots = {**record.snapshots, name: snapshot}
    at = record.at if before else name
    return replace(record, generation=generation, machines=machines, snapshots=snapshots, at=at)
