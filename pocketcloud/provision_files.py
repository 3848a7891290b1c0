"""`from: PATH` under `provision:` of a lab file: the content of a file beside it is taken for the `content:` of a `write:`.

It is taken when the file is read, so that whoever has the lab, as the kit's record, has all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pocketcloud.below import read_below
from pocketcloud.model.sizes import MIB, size_text

ReadFile = Callable[[str], bytes]
"""Gives the content of the file of a relative path; ValueError says why it does not."""

MOST_OF_ONE = 1 * MIB
MOST_OF_ALL = 4 * MIB


def files_below(folder: Path) -> ReadFile:
    """Reads files below a folder."""
    return lambda name: read_below(folder, name, MOST_OF_ONE)


def put_in(raw: Any, read: ReadFile | None) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Put `content` in place of every `from`; yields the place of each that is wrong, and why. `read` None: no files."""
    room = MOST_OF_ALL
    machines = raw.get("machines") if isinstance(raw, dict) else None
    for name, machine in machines.items() if isinstance(machines, dict) else ():
        steps = machine.get("provision") if isinstance(machine, dict) else None
        for index, step in enumerate(steps if isinstance(steps, list) else ()):
            if not isinstance(step, dict) or "from" not in step:
                continue
            at = ("machines", str(name), "provision", index)
            source, doubled = step.pop("from"), "content" in step
            step.setdefault("content", "")
            if "write" not in step:
                del step["content"]
            try:
                if "write" not in step or doubled:
                    raise ValueError("goes with `write:`, in place of `content:`")
                content = _text(source, read)
                room -= len(content)
                if room < 0:
                    raise ValueError(f"the files of this lab are more than {size_text(MOST_OF_ALL)}")
                step["content"] = content.decode()
            except UnicodeDecodeError as error:
                yield (*at, "from"), f"{source}: not UTF-8 text (byte {error.start}); fetch or unpack such a file with `run:`"
            except ValueError as error:
                yield (*at, "from"), str(error)


def _text(source: object, read: ReadFile | None) -> bytes:
    if not isinstance(source, str):
        raise ValueError("expected the path of a file beside the lab file")
    if read is None:
        raise ValueError("there is no folder here to take it from")
    shown = "".join(c if c.isprintable() else "?" for c in source[:60])
    try:
        return read(source)
    except ValueError as error:
        raise ValueError(f"{shown}: {error}") from None
