"""The kit's bases as people want to see them: who uses them, how old they are, and what would make a newer one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pocketcloud.bases import builder, definitions, freshness, records
from pocketcloud.errors import NotFound, PocketcloudError
from pocketcloud.model.base import UNKNOWN, Arch, Base, Definition, LayerDefinition, Newest
from pocketcloud.model.inventory import Volume
from pocketcloud.model.kit import Kit
from pocketcloud.model.names import Name
from pocketcloud.storage import Storage

_THREADS = 8

Ask = Callable[[Definition, Arch], Newest]
"""What the package sources have now; UNKNOWN where that cannot be told."""


@dataclass(frozen=True, slots=True)
class BaseLine:
    """One base: `labs` and `layers` stand on it or on what is kept of it; `age` in seconds; `stale` says what changed since it
    was built (empty: nothing), `updates` whether its sources have changed since: `none`, `since DATE`, `yes` (they do not say
    when) or `unknown (WHY)`."""

    base: Base
    volume: Volume | None
    labs: tuple[str, ...]
    layers: tuple[str, ...]
    age: float
    stale: str
    updates: str


def base_lines(
    kit: Kit,
    storage: Storage,
    now: datetime,
    *,
    folder: Path | None = None,
    ask: Ask | None = freshness.ask,
    recipes: builder.Recipes = builder.shipped,
) -> tuple[BaseLine, ...]:
    """The kit's bases, by name and architecture; `ask` None: the network is not asked. `folder` holds the definitions."""
    built = records.built(kit)
    volumes = {volume.name: volume for volume in storage.volumes()}
    known = {base.name: _definition(base.name, folder) for base in built}
    updates = _updates(built, known, ask)
    return tuple(
        BaseLine(
            base,
            volumes.get(base.volume),
            *records.users_of(storage, base.volumes),
            (now - datetime.fromisoformat(base.built)).total_seconds(),
            _stale(kit, base, known[base.name], recipes),
            updates[base.name, base.arch],
        )
        for base in built
    )


def _definition(name: str, folder: Path | None) -> Definition | None:
    try:
        return definitions.find(name, folder)
    except PocketcloudError:
        return None


def _stale(kit: Kit, base: Base, definition: Definition | None, recipes: builder.Recipes) -> str:
    if definition is None:
        return ""
    try:
        parent = builder.parent_of(kit, definition, base.arch)
    except NotFound:
        return f"its parent {definition.from_} is gone" if isinstance(definition, LayerDefinition) else ""
    if parent and parent.volume != base.parent:
        return f"{parent.name} was renewed"
    try:
        digest = builder.inputs_digest(definition, base.arch, parent, recipes)
    except PocketcloudError as error:
        # One that cannot be rendered takes its line, and not the list.
        return f"cannot be built now: {error.message.splitlines()[0]}"
    return "" if digest == base.digest else "its definition changed"


def _updates(built: Sequence[Base], known: Mapping[Name, Definition | None], ask: Ask | None) -> dict[tuple[Name, Arch], str]:
    asked = {(base.name, base.arch): base for base in built}
    with ThreadPoolExecutor(_THREADS) as pool:
        found = {key: pool.submit(_update, base, known[base.name], ask) for key, base in asked.items()}
        return {key: future.result() for key, future in found.items()}


def _update(base: Base, definition: Definition | None, ask: Ask | None) -> str:
    if definition is None:
        return "unknown (no definition)"
    if isinstance(definition, LayerDefinition):
        return f"see {definition.from_}"
    if base.packages == UNKNOWN:
        return "unknown (not recorded)"
    now = UNKNOWN if ask is None else ask(definition, base.arch)
    if now == UNKNOWN:
        return "unknown (offline)"
    if now.digest == base.packages.digest:
        return "none"
    return f"since {now.date[:10]}" if now.date else "yes"
