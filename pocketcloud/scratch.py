"""Folders for what is needed for a moment and may be large; what a killed run left in its own is removed by the next.

They lie in /var/tmp, which is a disk where /tmp may be memory. Who works in one holds a lock on it (flock), which the kernel
drops with its process.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pocketcloud.errors import PocketcloudError
from pocketcloud.system import Runner

PLACE = Path("/var/tmp")  # noqa: S108 - a folder in it is made anew, and only its owner enters it
_PREFIX = "pocketcloud-scratch-"


@contextmanager
def scratch(run: Runner, place: Path = PLACE) -> Iterator[Path]:
    """An empty folder that only we enter, gone afterwards. Those that nobody works in any more go first, with the loop devices of
    files in them."""
    _sweep(run, place)
    folder, handle = _taken(place)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _taken(place: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        if (handle := _locked(folder)) is not None:
            return folder, handle
        # Somebody has swept it, between its making and our lock.


def _sweep(run: Runner, place: Path) -> None:
    for folder in place.glob(f"{_PREFIX}*"):
        if (handle := _locked(folder)) is None:
            continue
        try:
            for file in folder.iterdir():
                if file.is_file() and not file.is_symlink():
                    _take_loops_away(file, run)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)


def _locked(folder: Path) -> int | None:
    """A handle that holds the folder, if it is there, ours, and nobody else's at this moment."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine, there = os.fstat(handle), folder.lstat()
        if stat.S_ISDIR(there.st_mode) and (mine.st_ino, mine.st_uid) == (there.st_ino, os.geteuid()):
            return handle
    os.close(handle)
    return None


def _take_loops_away(file: Path, run: Runner) -> None:
    with suppress(PocketcloudError):
        for device in run(["losetup", "--noheadings", "--output", "NAME", "--associated", file]).out.split():
            run(["losetup", "--detach", device])
