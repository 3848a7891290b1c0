"""A kit's file system mounted for a moment, aside from where it belongs, to look into it or to change a file: for commands
that work on kits which are not attached. Attaching mounts it where people find it, and is not done here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pocketcloud.kit.mounts import OPTIONS, mounted_at, mounts, number_of, unmount
from pocketcloud.system import Runner

_PREFIX = "pocketcloud-aside-"


@contextmanager
def aside(device: Path, run: Runner, *, read_only: bool = False) -> Iterator[Path]:
    """The ext4 file system on `device`, mounted in a folder that only root can enter, and gone from there afterwards.

    With `read_only` not even its journal is replayed, so what is seen can be as of some seconds before a crash. Raises
    CommandFailed if it cannot be mounted, Refused if somebody keeps it mounted; the next `aside` or `release` ends that.
    """
    release(device, run)
    options = f"{OPTIONS},ro,noload" if read_only else OPTIONS
    # Nothing here may remove folders with what is in them: should the file system still be mounted, that would empty it.
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX)).resolve()
    inner = folder / "state"
    inner.mkdir()
    try:
        run(["mount", "-t", "ext4", "-o", options, device, inner])
        try:
            yield inner
        finally:
            unmount(inner, run)
    finally:
        if mounted_at(inner) is None:
            inner.rmdir()
            folder.rmdir()


def release(device: Path, run: Runner) -> None:
    """Unmount what a killed command left mounted aside; mounts of anybody else stay. Raises Refused if somebody uses it."""
    number = number_of(device)
    for mount in mounts():
        if number and mount.number == number and mount.path.parent.name.startswith(_PREFIX):
            unmount(mount.path, run)
            mount.path.rmdir()
            mount.path.parent.rmdir()
