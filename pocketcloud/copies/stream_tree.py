"""A kit's own files in its stream: a tar archive (POSIX ustar) of regular files and folders, and nothing else.

Headers are read one block at a time: what tarfile does for longer names and extensions takes as much memory as a stranger wants.
Whatever an archive says, files are made anew, in folders that were made here, and links are never made or followed.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.copies.stream import damaged
from pocketcloud.errors import NoSpace, Refused
from pocketcloud.model.kit import TREE
from pocketcloud.model.sizes import GIB, size_text

MOST_FILES = 1 << 16
"""How many files and folders a stream has at most."""

_BLOCK = tarfile.BLOCKSIZE
# Of an archive in a stream, and of files that are looked at for holes.
_PIECE, _PART = 1 << 20, 64 << 10
# Holes count, too: a stranger's must not be read for days.
_LONGEST = 64 * GIB
_NAME = re.compile(r"[^\x00-\x1f\x7f/]{1,255}")
# Those of a computer, of the file system, or written anew in each kit.
_LEFT_OUT = frozenset({"kit.json", "copies.json", "shipped", "lost+found"})
_VOLUMES = "volumes"  # what begins with a dot there tells of what is being made


@dataclass(frozen=True, slots=True)
class _Entry:
    """A file or folder: where it lies in the tree, its permissions, and the bytes of a file."""

    name: str
    folder: bool
    mode: int
    size: int
    mtime: int


# -- writing


def tree_pieces(tree: Path) -> Iterator[bytes]:
    """The archive of a kit's files, in pieces. Raises Refused for what it cannot have."""
    waiting = bytearray()
    for part in _archived(tree):
        waiting += part
        while len(waiting) >= _PIECE:
            yield bytes(waiting[:_PIECE])
            del waiting[:_PIECE]
    yield bytes(waiting)


def _archived(tree: Path) -> Iterator[bytes]:
    for count, path in enumerate(_walked(tree)):
        told = path.lstat()
        if count == MOST_FILES:
            raise Refused(f"the kit has more than {MOST_FILES} files of its own", hint="copy it: pocketcloud kit clone")
        yield _header(path, tree, told)
        if stat.S_ISREG(told.st_mode):
            yield from _content(path, told.st_size)
    yield bytes(2 * _BLOCK)


def _walked(tree: Path) -> Iterator[Path]:
    """Files and folders, folders before what is in them; not what is mounted there."""
    device = tree.lstat().st_dev
    folders = [tree]
    while folders:
        for entry in sorted(folders.pop().iterdir()):
            told = entry.lstat()
            top = entry.parent == tree
            if (top and entry.name in _LEFT_OUT) or (entry.parent == tree / _VOLUMES and entry.name.startswith(".")):
                continue
            yield entry
            # A mount point is a folder of the kit, what is mounted on it is not.
            if stat.S_ISDIR(told.st_mode) and told.st_dev == device:
                folders.append(entry)


def _header(path: Path, tree: Path, told: os.stat_result) -> bytes:
    name = str(path.relative_to(tree))
    if not stat.S_ISREG(told.st_mode) and not stat.S_ISDIR(told.st_mode):
        raise Refused(f"{path} is neither file nor folder: it cannot travel", hint=f"move it away: {path}")
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE if stat.S_ISDIR(told.st_mode) else tarfile.REGTYPE
    info.size = 0 if info.isdir() else told.st_size
    info.mode, info.mtime = stat.S_IMODE(told.st_mode) & 0o777, max(int(told.st_mtime), 0)
    try:
        return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    except (ValueError, UnicodeError) as error:
        raise Refused(f"{path} cannot travel: {error}", hint="give it a shorter name") from None


def _content(path: Path, size: int) -> Iterator[bytes]:
    left = size
    with path.open("rb") as file:
        while left:
            part = file.read(min(left, _PIECE))
            if not part:
                raise Refused(f"{path} was cut short while it was read", hint="run the command again")
            yield part
            left -= len(part)
    yield bytes(-size % _BLOCK)


# -- reading


class _Pieces:
    """The bytes of an archive that comes in pieces."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._waiting = memoryview(b"")

    def take(self, most: int) -> memoryview:
        """Some bytes, no more than `most`. Raises Refused at the end."""
        while not self._waiting:
            piece = next(self._pieces, None)
            if piece is None:
                raise damaged("its archive of files is cut short")
            self._waiting = memoryview(piece)
        part, self._waiting = self._waiting[:most], self._waiting[most:]
        return part

    def block(self) -> bytes:
        """One block."""
        found = b""
        while len(found) < _BLOCK:
            found += bytes(self.take(_BLOCK - len(found)))
        return found

    def end(self) -> None:
        """Raises Refused if more than empty blocks follow."""
        for piece in (self._waiting, *self._pieces):
            if any(piece):
                raise damaged("something follows the end of its archive of files")


def unpack_tree(pieces: Iterable[bytes], tree: Path, most: int, tick: Callable[[], None] = lambda: None) -> None:
    """Make the files of an archive in `tree`, which is an empty folder, with no more than `most` bytes that are not holes.
    Raises Refused for what is damaged or hostile, NoSpace."""
    archive, room = _Pieces(pieces), _Room(most)
    seen = {"": True}
    while (entry := _entry(archive.block())) is not None:
        if len(seen) > MOST_FILES:
            raise damaged(f"it has more than {MOST_FILES} files")
        # What is not in a folder that was made here is in none: no link leads out.
        if entry.name in seen or seen.get(entry.name.rpartition("/")[0]) is not True:
            raise damaged(f"its file {entry.name[:80]!r} is there twice, or in no folder")
        seen[entry.name] = entry.folder
        try:
            _make(tree / entry.name, entry, archive, room, tick)
        except OSError as error:
            raise NoSpace(f"the kit's files cannot be written: {error.strerror}", hint="make room in /var/tmp") from error
    archive.end()
    for name in TREE:
        if seen.get(name) is False:
            raise damaged(f"its {name} is no folder")
        (tree / name).mkdir(exist_ok=True)


@dataclass(slots=True)
class _Room:
    """How much may still be written, and be said to be there."""

    most: int
    longest: int = _LONGEST

    def take(self, length: int) -> None:
        """Raises Refused where it does not suffice."""
        self.most -= length
        if self.most < 0:
            raise damaged("its files are more than the kit to be has room for")


def _entry(block: bytes) -> _Entry | None:
    """What a header says; None for the end."""
    if not any(block):
        return None
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError, OverflowError):
        raise damaged("its archive of files has a header that is none") from None
    if info.type not in (tarfile.REGTYPE, tarfile.DIRTYPE):
        raise damaged(f"its archive has what is neither file nor folder: {info.name[:80]!r}")
    # 512 bytes cannot say more with these digits than eight GiB; other forms of numbers can.
    if not 0 <= info.size <= 8 * GIB or (info.isdir() and info.size):
        raise damaged(f"its file {info.name[:80]!r} is of {info.size} bytes")
    parts = tuple(info.name.split("/"))
    if any(part in (".", "..") or not _NAME.fullmatch(part) for part in parts):
        raise damaged(f"its archive has a file {info.name[:80]!r}, which a kit cannot have")
    if parts[0] in _LEFT_OUT or (parts[0] == _VOLUMES and len(parts) == 2 and parts[1].startswith(".")):
        raise damaged(f"its archive has {info.name!r}, which each kit has of its own")
    return _Entry(info.name, info.isdir(), info.mode & 0o777, info.size, max(0, min(int(info.mtime), 1 << 33)))


def _make(path: Path, entry: _Entry, archive: _Pieces, room: _Room, tick: Callable[[], None]) -> None:
    room.take(_BLOCK)
    if entry.folder:
        # Its owner is to write into it until all is there.
        path.mkdir()
        path.chmod(entry.mode | 0o700)
        return
    room.longest -= entry.size
    if room.longest < 0:
        raise damaged(f"its files are longer than {size_text(_LONGEST)} together")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, entry.mode), "wb") as file:
        left = entry.size
        while left:
            part = archive.take(min(left, _PART))
            left -= len(part)
            tick()
            if part.tobytes().count(0) == len(part):
                file.seek(len(part), os.SEEK_CUR)
            else:
                room.take(len(part))
                file.write(part)
        file.truncate(entry.size)
        os.fchmod(file.fileno(), entry.mode)
    os.utime(path, (entry.mtime, entry.mtime))
    for _ in range(-entry.size % _BLOCK):
        archive.take(1)
