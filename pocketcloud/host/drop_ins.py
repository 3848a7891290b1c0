"""Settings that are spread over folders of small files, as systemd's and sysctl's are (logind.conf(5), sysctl.d(5)): a file hides
those of its name in later folders, files count in the order of their names, and the last word on a setting holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pocketcloud.host.files import text


def drop_ins(root: Path, folders: Sequence[str]) -> tuple[str, ...]:
    """The `*.conf` files that count, as names under `root`, in their order; `folders` from the strongest to the weakest."""
    files: dict[str, str] = {}
    for folder in folders:
        try:
            names = [entry.name for entry in (root / folder).iterdir() if entry.suffix == ".conf"]
        except OSError:
            continue
        for name in names:
            files.setdefault(name, f"{folder}/{name}")
    return tuple(files[name] for name in sorted(files))


def assignments(root: Path, file: str) -> Iterator[tuple[str, str]]:
    """The settings in a file, without comments: `NAME = VALUE`."""
    for row in text(root, file).splitlines():
        name, sign, value = row.partition("=")
        if sign and not name.strip().startswith(("#", ";")):
            yield name.strip(), value.strip()
