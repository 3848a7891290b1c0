"""Files that are whole or not there: written aside, flushed to the disk, renamed into place."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pocketcloud.errors import NoSpace

_ASIDE = ".aside"


def write_whole(path: Path, content: bytes | str, mode: int = 0o644) -> None:
    """Put `content` into `path` so that a reader, and a power cut, see the old content or the new. Raises NoSpace."""
    with _replacing(path, mode) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def copy_whole(source: Path, target: Path, mode: int = 0o644) -> None:
    """Copy a file as `write_whole` does, holes kept (firmware variables on ARM are 64 MiB of almost nothing)."""
    with source.open("rb") as read, _replacing(target, mode) as write:
        while chunk := read.read(1 << 16):
            if chunk.count(0) == len(chunk):
                write.seek(len(chunk), os.SEEK_CUR)
            else:
                write.write(chunk)
        write.truncate(read.tell())


@contextmanager
def _replacing(path: Path, mode: int) -> Iterator[BinaryIO]:
    """A file beside `path` that takes its place when it is written whole, and is gone when it is not."""
    aside = path.with_name(f".{path.name}.{os.getpid()}{_ASIDE}")
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "remove what is not needed, then run again"
            raise NoSpace(f"{path}: no space left on its file system", hint=hint) from error
        raise
    finally:
        aside.unlink(missing_ok=True)


def is_unfinished(path: Path) -> bool:
    """Whether a file is one of those written aside; left behind, it is the remains of an interrupted command."""
    return path.name.startswith(".") and path.name.endswith(_ASIDE)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Make durable what others wrote into a file or block device without waiting for the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_tree(folder: Path) -> None:
    """Remove a folder of ours with all in it; absent is success."""
    if folder.exists():
        shutil.rmtree(folder)
