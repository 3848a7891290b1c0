"""The states of a lab as a tree: what came from what, how old and how large each is, who stands on it."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from pocketcloud.bases import records as base_records
from pocketcloud.kit.space import Role, kit_space
from pocketcloud.lab.workbench import Workbench
from pocketcloud.model.names import Name
from pocketcloud.model.record import CLEAN, UNDO, Record, Snapshot
from pocketcloud.plan.drafting import known_record
from pocketcloud.records import InstanceFiles


@dataclass(frozen=True, slots=True)
class StateNode:
    """A state: `age` in seconds (None: this computer's clock is behind the one it was taken by), `exclusive` and `shared` in
    bytes (None: not counted; see kit/space.py for what they mean; saved memory is exclusive), `machines` those in it and
    `memory` those of them whose memory is kept; `here`: the lab was last brought to it, or it was taken of it last; `used_by`
    who came from it: states, and `now`."""

    name: str
    parent: str
    taken: str
    age: float | None
    machines: tuple[str, ...]
    memory: tuple[str, ...]
    protected: bool
    here: bool
    exclusive: int | None
    shared: int | None
    used_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StateTree:
    """All states of an instance, parents before their children; `exclusive` and `shared` of the lab as it is now, in bytes."""

    instance: str
    states: tuple[StateNode, ...]
    exclusive: int | None
    shared: int | None
    uncounted: str = ""

    def below(self, parent: str) -> tuple[StateNode, ...]:
        """The states that came from `parent` (empty: from none)."""
        return tuple(node for node in self.states if node.parent == parent)


def state_tree(bench: Workbench, instance: Name) -> StateTree:
    """The tree of an instance's states. Raises NotFound."""
    record = known_record(instance, bench.observe(instance), bench.kit.name)
    space = kit_space(bench.kit, bench.storage, base_records.built(bench.kit))
    held = {(holding.role, holding.name): (holding.exclusive, holding.shared) for holding in space.holdings}
    nodes = []
    for name, snapshot in _ordered(record):
        exclusive, shared = held.get((Role.SNAPSHOT, f"{instance}@{name}"), (0, 0))
        if exclusive is not None:
            exclusive += _memory_size(InstanceFiles(bench.kit, instance), snapshot)
        users = [str(n) for n, other in record.snapshots.items() if _parent(record, other) == name]
        nodes.append(
            StateNode(
                name=str(name),
                parent=_parent(record, snapshot),
                taken=snapshot.taken,
                age=_age(snapshot.taken, bench.now()),
                machines=tuple(map(str, snapshot.machines)),
                memory=tuple(str(n) for n, part in snapshot.machines.items() if part.memory),
                protected=snapshot.protected or name == CLEAN,
                here=record.at == name,
                exclusive=exclusive,
                shared=shared,
                used_by=(*users, *(["now"] if record.at == name else [])),
            )
        )
    now = held.get((Role.LAB, str(instance)), (None, None))
    return StateTree(str(instance), tuple(nodes), *now, uncounted=space.uncounted)


def _memory_size(files: InstanceFiles, snapshot: Snapshot) -> int:
    """What a state's saved memory takes of the kit, in bytes: less than the memory, where that is empty."""
    size = 0
    for part in snapshot.machines.values():
        with suppress(OSError):
            size += files.memory_file(part.memory.file).stat().st_blocks * 512 if part.memory else 0
    return size


def _ordered(record: Record) -> Iterator[tuple[Name, Snapshot]]:
    """Parents first, brothers by age, `undo` after them."""

    def below(parent: str) -> Iterator[tuple[Name, Snapshot]]:
        found = [(name, snapshot) for name, snapshot in record.snapshots.items() if _parent(record, snapshot) == parent]
        for name, snapshot in sorted(found, key=lambda item: (item[0] == UNDO, item[1].taken, item[0])):
            yield name, snapshot
            yield from below(name)

    yield from below("")


def _parent(record: Record, snapshot: Snapshot) -> str:
    """The parent, if it is there: a record that somebody mended by hand may name one that is not, or itself."""
    seen: set[str] = set()
    current = snapshot
    while current.parent and Name(current.parent) in record.snapshots:
        if current.parent in seen:
            return ""
        seen.add(current.parent)
        current = record.snapshots[Name(current.parent)]
    return snapshot.parent if Name(snapshot.parent) in record.snapshots else ""


def _age(taken: str, now: str) -> float | None:
    try:
        seconds = (datetime.datetime.fromisoformat(now) - datetime.datetime.fromisoformat(taken)).total_seconds()
    except (ValueError, TypeError):
        return None
    return seconds if seconds >= 0 else None
