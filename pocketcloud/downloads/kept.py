"""What is kept of downloads in a folder, and its removal: all of it can be fetched again."""

from __future__ import annotations

import fcntl
import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

_KEPT = re.compile(r"[0-9a-f]{16}-.+", re.ASCII)
_PART = re.compile(r"\.[0-9a-f]{16}\.part", re.ASCII)


def kept(into: Path) -> tuple[Path, ...]:
    """The files that `fetch` has put into the folder, verified or begun, by name; not those that somebody is fetching now."""
    known = _texts(into)
    return tuple(path for path in sorted(into.glob("*")) if _is_ours(path, known))


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
    for index, text in _texts(into).items():
        if not any(f'"{name}"' in text for name in names):
            yield index


def _texts(into: Path) -> dict[Path, str]:
    return {index: index.read_text(encoding="utf-8", errors="replace") for index in (into / "index").glob("*.json")}


def _is_ours(path: Path, index: Mapping[Path, str]) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    if _KEPT.fullmatch(path.name):
        # A fetch that was ended between giving a file its name and noting it leaves one that the index does not have.
        return any(f'"{path.name}"' in text for text in index.values()) or _is_named_by_its_sum(path)
    if not _PART.fullmatch(path.name):
        return False
    with suppress(BlockingIOError), path.open("rb") as part:
        fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _is_named_by_its_sum(path: Path) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(path.name.partition("-")[0])
