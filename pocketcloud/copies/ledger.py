"""What copies a kit has made: `copies.json` in its tree. Names go on from there, and who hands kits out finds them again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pocketcloud.documents import dump_json, parse_json
from pocketcloud.errors import BadDocument, Refused, UsageError
from pocketcloud.files import write_whole
from pocketcloud.model.kit import Kit
from pocketcloud.model.names import Name

FILE = "copies.json"
_LONGEST = 31


@dataclass(frozen=True, slots=True)
class CopyEntry:
    """A copy that was made: its name, id, the serial of its disk, when (ISO 8601 in UTC), of which map of the pool, and what it
    was shipped (`generation`). Cheap adapters share serials: `port` and `size` (bytes) tell more of the disk; empty and 0 in what
    was written by older versions."""

    name: Name
    id: str
    serial: str
    made: str
    digest: str
    generation: str = ""
    port: str = ""
    size: int = 0


@dataclass(frozen=True, slots=True)
class Ledger:
    """All that were made, in their order."""

    copies: tuple[CopyEntry, ...] = ()


def read_ledger(kit: Kit) -> Ledger:
    """What copies the kit has made. Raises Refused if that is damaged or cannot be read."""
    path = kit.path / FILE
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return Ledger()
    except OSError as error:
        raise Refused(
            f"the list of copies of kit {kit.name} cannot be read: {error.strerror}", hint="is the kit's disk still plugged in?"
        ) from error
    try:
        return parse_json(text, Ledger, str(path))
    except BadDocument as error:
        raise Refused(
            f"the list of copies of kit {kit.name} is damaged: {error.message.splitlines()[0]}",
            hint=f"move it away: mv {path} {path}.damaged",
        ) from error


def add_copies(kit: Kit, entries: Iterable[CopyEntry]) -> None:
    """Add copies to the kit's list, in place of what it had of them. Raises Refused if that cannot be written."""
    new = {entry.id: entry for entry in entries}
    try:
        write_whole(
            kit.path / FILE, dump_json(Ledger((*(old for old in read_ledger(kit).copies if old.id not in new), *new.values())))
        )
    except OSError as error:
        raise Refused(
            f"the list of copies of kit {kit.name} cannot be written: {error.strerror}",
            hint="is the kit's disk still plugged in? The copies that were verified are whole",
        ) from error


def next_names(kit: Kit, count: int, taken: Iterable[str]) -> tuple[Name, ...]:
    """Names for `count` copies: KIT-01 and so on, after the highest that was ever made or is `taken`. Raises UsageError where
    they would be too long."""
    pattern = re.compile(rf"{re.escape(kit.name)}-(\d+)")
    known = [entry.name for entry in read_ledger(kit).copies]
    numbers = [int(found[1]) for name in (*known, *taken) if (found := pattern.fullmatch(name))]
    first = max(numbers, default=0) + 1
    names = [f"{kit.name}-{number:02}" for number in range(first, first + count)]
    too_long: Sequence[str] = [name for name in names if len(name) > _LONGEST]
    if too_long:
        raise UsageError(f"{too_long[0]} is too long for a name", hint="name the copies: --name NAME, once for each disk")
    return tuple(map(Name.parse, names))
