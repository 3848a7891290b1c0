"""What is in a disk image: partitions, the names and sizes of all files, the content of small ones. Mounts nothing.

ext4 is read by debugfs, XFS by xfs_db, the EFI partition by mtools: in the namespace, because an image may come from strangers
and those tools were not made for that. What none of them reads is told (`Content.unread`), not passed over.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from pocketcloud.bases.namespace import confined, give
from pocketcloud.disk_space import spare
from pocketcloud.errors import NoSpace, Refused
from pocketcloud.model.sizes import size_text
from pocketcloud.system import CommandFailed, Completed, Runner, which

BLOCK = 4096
_SECTOR = 512
_MOST_FILES = 3_000_000
_MOST_LEVELS = 200
_LONGEST_TEXT = 256 * 1024
# What a tool may say in all: room for the names of _MOST_FILES in one folder, at some 40 bytes each.
_LONGEST_SAID = 128 * 1024 * 1024
# Runs what follows, and lets no more than $1 bytes of what it says through: an image can make a tool say terabytes, of a file
# that is one hole, say. The tool ends when it finds its pipe closed. Standard input, complaints and exit code are the tool's own.
_BOUNDED = """
most=$1
shift
exec 3>&1
code=$({ { "$@" 3>&- 4>&-; echo $? >&4; } | head -c "$most" >&3; } 4>&1)
exit "$code"
"""
_CLOSED = 128 + 13
"""The exit code of what SIGPIPE has ended."""
_ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
# EFI system, BIOS boot and PReP partitions, and swap: no files of the system, or looked into in another way.
_NO_TREES = {_ESP, "21686148-6449-6E6F-744E-656564454649", "9E1A2D38-C612-4316-AA26-8B49521E5A8B",
             "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F", "ef", "82"}  # fmt: skip


class Kind(StrEnum):
    """What a name stands for; `other` are devices, sockets and pipes."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "link"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in a file system: `inode` tells hard links, `size` is in bytes."""

    kind: Kind
    size: int
    inode: int

    @property
    def blocks(self) -> int:
        """The bytes it takes, in whole blocks; a folder one at least, a short link none: that lies in its inode."""
        if self.kind is Kind.FOLDER:
            return max(BLOCK, -(-self.size // BLOCK) * BLOCK)
        if self.kind is Kind.OTHER or (self.kind is Kind.LINK and self.size < 60):
            return 0
        return -(-self.size // BLOCK) * BLOCK


Tree = Mapping[str, Entry]
"""All names of a file system, by path from its root, which is itself left out (`/etc/hostname`)."""


class Reader(Protocol):
    """One file system of an image."""

    name: str

    def tree(self) -> Tree:
        """All that is in it. Raises Refused for one that cannot be looked through."""
        ...

    def text(self, entry: Entry) -> str:
        """What a small file holds; of a larger one its beginning."""
        ...


@dataclass(frozen=True, slots=True)
class Content:
    """What was found in an image: `tree` of the whole system, its file systems laid into one another, `esp` the names on the EFI
    partition, `files` the bytes of all in blocks of 4 KiB. `read` names the file systems that were looked through, `unread` what
    was not. `text` gives the content of one of the paths."""

    tree: Tree
    esp: tuple[str, ...]
    files: int
    read: tuple[str, ...]
    unread: tuple[str, ...]
    text: Callable[[str], str]


@dataclass(frozen=True, slots=True)
class _Partition:
    number: int
    start: int
    size: int
    type: str


def look(work: Path, raw: str, run: Runner) -> Content:
    """Look through the raw image of the name `raw` in `work`, a folder of the namespace's root. Raises Refused for an image that
    is damaged, or made to be in the way."""
    inside = _Inside(work, raw, run)
    found, unread, esp, esp_size = list[tuple[Reader, Tree]](), list[str](), list[str](), 0
    for part in inside.partitions():
        if part.type == _ESP or part.type == "ef":
            try:
                names, size = inside.fat(part)
            except CommandFailed:
                unread.append(f"partition {part.number} (no FAT, though it is called an EFI partition)")
                continue
            esp += names
            esp_size += size
        elif part.type not in _NO_TREES:
            reader = _reader(inside, part)
            if isinstance(reader, str):
                unread.append(f"partition {part.number} ({reader})")
            else:
                with _readable(reader.name):
                    found.append((reader, reader.tree()))
    owners: dict[str, tuple[Reader, Entry]] = {}
    for reader, tree in found:
        # The system's own has /etc; what was mounted in it elsewhere is told by what lies in it.
        below = (
            "" if "/etc" in tree else "/boot" if any(path.startswith(("/grub", "/loader", "/vmlinuz")) for path in tree) else ""
        )
        if not below and "/etc" not in tree:
            unread.append(f"{reader.name}: no system in it")
            continue
        owners |= {below + path: (reader, entry) for path, entry in tree.items()}
    files = sum(entry.blocks for _, tree in found for entry in {e.inode: e for e in tree.values()}.values())

    def text(path: str) -> str:
        reader, entry = owners[path]
        with _readable(reader.name):
            return reader.text(entry)

    whole = {path: entry for path, (_, entry) in owners.items()}
    return Content(whole, tuple(esp), files + esp_size, tuple(reader.name for reader, _ in found), tuple(unread), text)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Raise Refused for what a damaged file system ends in: a tool that fails, or says what it never says of a whole one."""
    try:
        yield
    except CommandFailed as error:
        said = (error.completed.err or error.completed.out).strip().splitlines()
        raise _damaged(name, said[-1][:200] if said else "it is damaged") from error
    except (ValueError, IndexError, OverflowError) as error:
        raise _damaged(name, "it is damaged") from error


def _damaged(name: str, why: str) -> Refused:
    return Refused(f"{name} cannot be looked through: {why}", hint="is the image whole? Fetch it again, or build it anew")


class _Inside:
    """The image, and how tools are run on it."""

    def __init__(self, work: Path, raw: str, run: Runner) -> None:
        self.work = work
        self.raw = raw
        self._run = run

    def ask(self, argv: Sequence[str], stdin: str = "", codes: Sequence[int] = (0,)) -> str:
        """What a tool says in the namespace, in the work folder."""
        return self.told(argv, stdin, codes).out

    def told(self, argv: Sequence[str], stdin: str = "", codes: Sequence[int] = (0,)) -> Completed:
        """The same, with its complaints. Raises Refused if it does not come to an end."""
        done = self._bounded(argv, stdin, codes, _LONGEST_SAID)
        # Decoded, what is no UTF-8 is longer than it was, never shorter.
        if 4 * len(done.out) >= _LONGEST_SAID and len(done.out.encode()) >= _LONGEST_SAID:
            raise _damaged(self.raw, f"what {argv[0]} says of it does not end")
        return done

    def begin(self, argv: Sequence[str], stdin: str = "") -> str:
        """The beginning of what a tool says: at most _LONGEST_TEXT bytes; it is ended when it has said those."""
        return self._bounded(argv, stdin, (0,), _LONGEST_TEXT).out

    def _bounded(self, argv: Sequence[str], stdin: str, codes: Sequence[int], most: int) -> Completed:
        command = confined(self.work, ["sh", "-c", _BOUNDED, "bounded", str(most), *argv])
        return self._run(command, stdin=stdin.encode(), codes=(*codes, _CLOSED), env={"MTOOLS_SKIP_CHECK": "1"})

    def partitions(self) -> Iterator[_Partition]:
        """Those of the table; without one the whole image counts as one."""
        # sfdisk ends with 1 where there is no table.
        said = self.ask(["sfdisk", "--json", self.raw], codes=(0, 1))
        size = (self.work / self.raw).stat().st_size
        if not said.strip():
            yield _Partition(0, 0, size, "")
            return
        table = json.loads(said)["partitiontable"]
        unit = int(table.get("sectorsize", _SECTOR))
        for index, part in enumerate(table.get("partitions", ()), 1):
            start, length = int(part["start"]) * unit, int(part["size"]) * unit
            if 0 <= start < size and part["type"] not in ("5", "f", "85"):
                yield _Partition(index, start, min(length, size - start), str(part["type"]))

    def magic(self, part: _Partition, at: int, length: int) -> bytes:
        """Bytes of a partition."""
        with (self.work / self.raw).open("rb") as image:
            image.seek(part.start + at)
            return image.read(length)

    def fat(self, part: _Partition) -> tuple[list[str], int]:
        """The names of the files on an EFI partition, and the bytes that they take."""
        place = f"{self.raw}@@{part.start}"
        names = [line.removeprefix("::") for line in self.ask(["mdir", "-/", "-a", "-b", "-i", place, "::/"]).splitlines()]
        listed = self.ask(["mdir", "-/", "-a", "-i", place, "::/"])
        total = re.search(r"Total files listed:\s+\d+ files?\s+([\d ]+) bytes", listed)
        size = int(total[1].replace(" ", "")) if total else 0
        return [name for name in names if not name.endswith("/")], -(-size // BLOCK) * BLOCK


def _reader(inside: _Inside, part: _Partition) -> Reader | str:
    """Who reads the partition; a few words on what it is where nobody does."""
    if inside.magic(part, 0x438, 2) == b"\x53\xef":
        return _Ext(inside, part)
    if inside.magic(part, 0, 4) == b"XFSB":
        return _Xfs(inside, part) if which("xfs_db") else "XFS, and xfs_db is not installed"
    known = {"btrfs": (0x10040, b"_BHRfS_M"), "LVM": (512, b"LABELONE"), "LUKS": (0, b"LUKS\xba\xbe")}
    names = [name for name, (at, mark) in known.items() if inside.magic(part, at, len(mark)) == mark]
    return names[0] if names else "of no file system that is known here"


def _walk(name: str, root: int, level: Callable[[Sequence[int]], Iterator[tuple[int, str, Entry]]]) -> dict[str, Entry]:
    """A tree, a level at a time: `level` gives what is in folders, by inode: (folder, name, entry)."""
    found: dict[str, Entry] = {}
    folders, seen = {root: ""}, {root}
    for _ in range(_MOST_LEVELS):
        if not folders:
            return found
        below: dict[int, str] = {}
        for folder, label, entry in level(list(folders)):
            if label in (".", ".."):
                continue
            found[f"{folders[folder]}/{label}"] = entry
            if entry.kind is Kind.FOLDER:
                if entry.inode in seen:
                    raise _damaged(name, f"the folder {folders[folder]}/{label} has two names")
                seen.add(entry.inode)
                below[entry.inode] = f"{folders[folder]}/{label}"
        if len(found) > _MOST_FILES:
            raise _damaged(name, f"it has more than {_MOST_FILES} files")
        folders = below
    raise _damaged(name, f"it has folders in more than {_MOST_LEVELS} levels")


_KINDS = {0o100000: Kind.FILE, 0o040000: Kind.FOLDER, 0o120000: Kind.LINK}


def _kind(mode: int) -> Kind:
    return _KINDS.get(mode & 0o170000, Kind.OTHER)


class _Ext:
    """ext2, 3 and 4, by debugfs(8): `ls -p` prints /inode/mode/uid/gid/name/size/."""

    _LINE = re.compile(r"/(\d+)/(\d+)/\d+/\d+/(.*)/(\d*)/$")

    def __init__(self, inside: _Inside, part: _Partition) -> None:
        self.name = f"ext4 on partition {part.number}"
        self._inside = inside
        self._place = f"{inside.raw}?offset={part.start}"

    def tree(self) -> Tree:
        """See Reader.tree."""
        return _walk(self.name, 2, self._level)

    def _level(self, folders: Sequence[int]) -> Iterator[tuple[int, str, Entry]]:
        # debugfs repeats each command before its answer.
        done = self._inside.told(["debugfs", "-f", "-", self._place], "".join(f"ls -p <{folder}>\n" for folder in folders))
        # It ends with 0 whatever happened; beside its version it complains only.
        wrong = [line for line in done.err.splitlines() if line.strip() and not line.startswith("debugfs 1.")]
        if wrong:
            raise _damaged(self.name, wrong[0][:200])
        folder = 0
        for line in done.out.splitlines():
            if line.startswith("debugfs: ls -p <"):
                folder = int(line[16:].rstrip("> "))
            elif match := self._LINE.match(line):
                # A name that was removed stays with the inode 0.
                if match[3] and match[1] != "0":
                    yield (
                        folder,
                        match[3],
                        Entry(_kind(int(match[2], 8)), int(match[4] or 0) or self._short(match), int(match[1])),
                    )
            elif line.strip():
                raise _damaged(self.name, f"{line[:80]!r}")

    @staticmethod
    def _short(match: re.Match[str]) -> int:
        """debugfs leaves a folder's size out."""
        return BLOCK if _kind(int(match[2], 8)) is Kind.FOLDER else 0

    def text(self, entry: Entry) -> str:
        """See Reader.text."""
        return self._inside.begin(["debugfs", "-R", f"cat <{entry.inode}>", self._place])


_XFS_KINDS = {"regular": Kind.FILE, "directory": Kind.FOLDER, "symlink": Kind.LINK}


class _Xfs:
    """XFS, by xfs_db(8), which takes a file of its own: the partition is copied out of the image, without its holes."""

    _LINE = re.compile(r"\d+ +(\d+) +(\w+) +0x[0-9a-f]+ +\d+ (.*) \(good\)$")

    def __init__(self, inside: _Inside, part: _Partition) -> None:
        self.name = f"XFS on partition {part.number}"
        self._inside = inside
        self._file = f"{inside.raw}.{part.number}"
        self._size = part.size
        target = inside.work / self._file
        if not target.exists():
            size, room = (inside.work / inside.raw).stat().st_blocks * _SECTOR, max(0, spare(inside.work))
            if size > room:
                raise NoSpace(
                    f"{self.name} cannot be looked through: a copy of {size_text(size)} is made for that, and {size_text(room)} "
                    "may be filled in the kit",
                    hint="remove labs or bases that are not needed (pocketcloud kit status shows what holds how much)",
                )
            cut(inside.work / inside.raw, part.start, part.size, target)
            give(target)

    def _ask(self, commands: Sequence[str]) -> str:
        return self._inside.ask(["xfs_db", "-r", self._file], "".join(f"{command}\n" for command in commands))

    def tree(self) -> Tree:
        """See Reader.tree."""
        root = int(self._ask(["sb 0", "print rootino"]).rpartition("=")[2])
        found = _walk(self.name, root, self._level)
        inodes = sorted({entry.inode for entry in found.values() if entry.kind in (Kind.FILE, Kind.LINK)})
        said = self._ask([f"inode {inode}\nprint core.size" for inode in inodes])
        sizes = dict(
            zip(inodes, (int(line.rpartition("=")[2]) for line in said.splitlines() if "core.size" in line), strict=True)
        )
        return {path: Entry(e.kind, sizes.get(e.inode, BLOCK), e.inode) for path, e in found.items()}

    def _level(self, folders: Sequence[int]) -> Iterator[tuple[int, str, Entry]]:
        # The inode's number is printed before its answer, so that answers can be told apart.
        said = self._ask([f"inode {folder}\nprint core.nlinkv2\nls" for folder in folders])
        at = -1
        for line in said.splitlines():
            text = line.replace("xfs_db> ", "")
            if text.startswith("core.nlinkv2"):
                at += 1
            elif match := self._LINE.match(text.strip()):
                yield folders[at], match[3], Entry(_XFS_KINDS.get(match[2], Kind.OTHER), 0, int(match[1]))
            elif text.strip():
                raise _damaged(self.name, f"{text[:80]!r}")

    def text(self, entry: Entry) -> str:
        """See Reader.text: where it lies says xfs_db, the blocks are read from the image."""
        commands = ["sb 0", "print blocksize agblocks", f"inode {entry.inode}", "bmap"]
        # Of a file in many pieces the first ones suffice: each is a block at least.
        said = self._inside.begin(["xfs_db", "-r", self._file], "".join(f"{command}\n" for command in commands))
        block, group = (int(match) for match in re.findall(r"(?:blocksize|agblocks) = (\d+)", said)[:2])
        content, most = b"", min(entry.size, _LONGEST_TEXT)
        with (self._inside.work / self._file).open("rb") as image:
            for match in re.finditer(r"startblock \d+ \((\d+)/(\d+)\) count (\d+)", said):
                if len(content) >= most:
                    break
                place = (int(match[1]) * group + int(match[2])) * block
                if place >= self._size:
                    raise ValueError("a piece beyond the end")
                image.seek(place)
                content += image.read(min(int(match[3]) * block, most - len(content)))
        return content.decode(errors="replace")


def cut(source: Path, start: int, size: int, target: Path) -> None:
    """Copy a part of a raw image into a new file, leaving its holes out."""
    with source.open("rb", buffering=0) as read, target.open("xb", buffering=0) as write:
        os.truncate(write.fileno(), size)
        at, end = start, start + size
        while at < end:
            try:
                at = os.lseek(read.fileno(), at, os.SEEK_DATA)
            except OSError:
                break  # ENXIO: only holes follow
            stop = min(os.lseek(read.fileno(), at, os.SEEK_HOLE), end)
            while at < stop:
                at += os.pwrite(write.fileno(), os.pread(read.fileno(), min(4 << 20, stop - at), at), at - start)
