"""The names of running processes, from /proc (proc(5), /proc/PID/comm: the first 15 characters)."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pocketcloud.host.files import line


def running(root: Path, names: Collection[str]) -> frozenset[str]:
    """Those of `names` that are names of processes."""
    try:
        entries = [entry.name for entry in (root / "proc").iterdir() if entry.name.isascii() and entry.name.isdecimal()]
    except OSError:
        return frozenset()
    return frozenset(names) & {line(root, f"proc/{entry}/comm") for entry in entries}
