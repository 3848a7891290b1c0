"""`pocketcloud base list` of what the kit has, and the words for sizes and ages."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from pocketcloud.cli.view import print_json, print_table

if TYPE_CHECKING:
    from pocketcloud.bases.listing import BaseLine
    from pocketcloud.model.base import Base
    from pocketcloud.model.inventory import Volume
    from pocketcloud.model.kit import Kit

_COLUMNS = ("BASE", "ARCH", "SIZE", "UNSEALED", "AGE", "DIGEST", "UPDATES", "USED BY", "REMARKS")


def show(kit: Kit, output: str, *, offline: bool) -> None:
    """List the bases of a kit."""
    from pocketcloud.bases import freshness
    from pocketcloud.bases.listing import base_lines
    from pocketcloud.storage import open_storage

    now = datetime.datetime.now(datetime.UTC)
    lines = base_lines(kit, open_storage(kit), now, ask=None if offline else freshness.ask)
    if output == "json":
        print_json(lines)
        return
    print_table(_COLUMNS, [_row(line) for line in lines], empty="No bases yet. pocketcloud base build debian-12 builds one.")


def _row(line: BaseLine) -> tuple[str, ...]:
    from pocketcloud.model.sizes import size_text

    base = line.base
    unsealed = size_text(base.sizes.unsealed) if base.sizes.unsealed else "-"
    users = ", ".join((*line.labs, *(f"base {layer}" for layer in line.layers)))
    size = size_of(line.volume, base) if line.volume else "VOLUME MISSING"
    return (
        base.name,
        base.arch,
        size,
        unsealed,
        age(line.age),
        base.digest[:12],
        line.updates,
        users or "-",
        _remarks(line) or "-",
    )


def _remarks(line: BaseLine) -> str:
    base = line.base
    said = [line.stale] if line.stale else []
    said += ["proven"] if base.proven else []
    said += ["not looked into"] if not base.sealed or not base.sizes.files else []
    said += [f"one built {_day(base.earlier[0])} is kept for rollback"] if base.earlier else []
    said += [f"one built {_day(base.failed)} failed and is kept"] if base.failed else []
    return "; ".join(said)


def _day(base: Base) -> str:
    return base.built[:10]


def size_of(volume: Volume, base: Base) -> str:
    """What it occupies, or its files where the store does not know without counting, and how large it is."""
    from pocketcloud.model.sizes import size_text

    used = volume.used if volume.used is not None else base.sizes.files
    whole = size_text(volume.size)
    return f"{size_text(used)} of {whole}" if used else whole


def age(seconds: float) -> str:
    """`3 days`: how long ago, for people."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        number = int(seconds // length)
        if number >= 1:
            return f"{number} {unit}{'s' * (number != 1)}"
    return "new"
