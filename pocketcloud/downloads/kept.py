"""What is kept of downloads in a folder, and its removal: all of it can be fetched again."""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_KEPT = re.compile(r"[0-9a-f]{16}-.+", re.ASCII)
_PART = re.compile(r"\.[0-9a-f]{16}\.part", re.ASCII)


def kept(into: Path) -> tuple[Path, ...]:
    """The files that `fetch` has put into the folder, verified or begun, by name; not those that somebody is fetching now."""
    return tuple(path for path in sorted(into.glob("*")) if _is_ours(path))


def occupied(files: tuple[Path, ...]) -> int:
    """The bytes that they take on their disk."""
    return sum(path.stat().st_blocks * 512 for path in files if path.exists())


def forget(into: Path, files: tuple[Path, ...]) -> None:
    """Remove these files of the folder, and what is known of all that are not there any more. The caller sees to it that nobody
    reads them."""
    for path in files:
        path.unlink(missing_ok=True)
        if _PART.fullmatch(path.name):
            path.with_suffix(".json").unlink(missing_ok=True)
    for index in _stale(into):
        index.unlink(missing_ok=True)


def _stale(into: Path) -> Iterator[Path]:
    names = {path.name for path in into.glob("*")}
    for index in (into / "index").glob("*.json"):
        text = index.read_text(encoding="utf-8", errors="replace")
        if not any(f'"{name}"' in text for name in names):
            yield index


def _is_ours(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    if not _PART.fullmatch(path.name):
        return bool(_KEPT.fullmatch(path.name))
    with suppress(BlockingIOError), path.open("rb") as part:
        fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
