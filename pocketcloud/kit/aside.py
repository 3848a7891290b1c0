"""A kit's file system mounted for a moment, aside from where it belongs, to look into it or to change a file: for commands
that work on kits which are not attached. Attaching mounts it where people find it, and is not done here."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pocketcloud.system import Runner

_PREFIX = "pocketcloud-aside-"
_MOUNTINFO = Path("/proc/self/mountinfo")
_UNTRUSTED = "nosuid,nodev,noexec"


@contextmanager
def aside(device: Path, run: Runner, *, read_only: bool = False) -> Iterator[Path]:
    """The ext4 file system on `device`, mounted in a folder that only root can enter, and gone from there afterwards.

    With `read_only` not even its journal is replayed, so what is seen can be as of some seconds before a crash. Raises
    CommandFailed if it cannot be mounted.
    """
    release(device, run)
    options = f"{_UNTRUSTED},ro,noload" if read_only else _UNTRUSTED
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder:
        inner = Path(folder, "state")
        inner.mkdir()
        run(["mount", "-t", "ext4", "-o", options, device, inner])
        try:
            yield inner
        finally:
            run(["umount", inner])


def release(device: Path, run: Runner) -> None:
    """Unmount what a killed command left mounted aside; mounts of anybody else stay."""
    for point in mount_points(device):
        if point.parent.name.startswith(_PREFIX):
            run(["umount", point])
            point.rmdir()
            point.parent.rmdir()


def mount_points(device: Path, mountinfo: Path = _MOUNTINFO) -> tuple[Path, ...]:
    """Where the file system on `device` is mounted; nowhere if there is no such device."""
    try:
        number = device.stat().st_rdev
    except FileNotFoundError:
        return ()
    wanted = f"{os.major(number)}:{os.minor(number)}"
    # Fields: proc(5); blanks in a path are written in octal.
    rows = (line.split() for line in mountinfo.read_text().splitlines())
    return tuple(Path(row[4].encode().decode("unicode_escape")) for row in rows if row[2] == wanted)
