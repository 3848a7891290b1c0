"""Trees of files from elsewhere, looked into before anything is done with them: folders and archives, which may be hostile.

All of a tree is held in memory, within bounds; nothing is unpacked. What cannot be taken is named and refused whole.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import tarfile
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pocketcloud.below import read_below, wrong_path
from pocketcloud.errors import NotFound, PocketcloudError, Refused
from pocketcloud.model.sizes import MIB, size_text
from pocketcloud.sharing.bundle import LAB_FILE, SUMS

MOST_OF_ONE = 1 * MIB
MOST_PACKED = 16 * MIB
MOST_UNPACKED = 32 * MIB
MOST_ENTRIES = 2000
_SUM = re.compile(r"([0-9a-f]{64})  ([^\n]+)")
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """What lies at a path: its content, or why that is not taken (`wrong`, else empty)."""

    read: Callable[[], bytes]
    wrong: str = ""


@dataclass(frozen=True, slots=True)
class Tree:
    """Files by their paths. `source` names it in messages."""

    source: str
    entries: Mapping[str, Entry]

    def read(self, name: str) -> bytes:
        """The content of a file; ValueError says why it is not taken."""
        if name not in self.entries:
            raise ValueError(wrong_path(name) or "no such file")
        entry = self.entries[name]
        if entry.wrong:
            raise ValueError(entry.wrong)
        return entry.read()

    def take(self, name: str) -> bytes:
        """As `read`; raises Refused, naming the entry."""
        try:
            return self.read(name)
        except ValueError as error:
            raise refusal(self.source, name, str(error)) from None


def refusal(source: str, name: str, why: str) -> Refused:
    """The refusal of a tree for one of its entries."""
    return Refused(f"{source}: {shown(name)}: {why}", hint="nothing was kept of it; do you trust where it is from?")


def shown(text: str) -> str:
    """A stranger's text for a line of a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)[:120]


def tree_at(path: Path, source: str) -> tuple[Tree, bool]:
    """The files of a folder or of an archive, and whether it is an archive. Raises NotFound, Refused."""
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        raise _unreadable(source, error) from None
    return (folder_tree(path, source), False) if is_folder else (archive_tree(path, source), True)


def _unreadable(source: str, error: OSError) -> PocketcloudError:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return NotFound(f"there is no {source}", hint="a folder, a .tar.gz or a git address")
    hint = "run the command as root" if isinstance(error, PermissionError) else "a folder, a .tar.gz or a git address"
    return Refused(f"{source} cannot be read: {error.strerror}", hint=hint)


def folder_tree(folder: Path, source: str) -> Tree:
    """The files of a folder, but for `.git`. Raises NotFound, or Refused where there are too many, or a folder in it is
    closed."""
    entries: dict[str, Entry] = {}
    try:
        for name, wrong in _walked(folder, ""):
            if len(entries) >= MOST_ENTRIES:
                raise Refused(
                    f"{source}: more than {MOST_ENTRIES} files; this is hardly a shared lab", hint="name the lab's own folder"
                )
            entries[name] = Entry(partial(read_below, folder, name, MOST_OF_ONE), wrong)
    except OSError as error:
        raise _unreadable(f"{source}: {shown(os.path.relpath(error.filename or folder, folder))}", error) from None
    return Tree(source, entries)


def _walked(folder: Path, below: str) -> Iterator[tuple[str, str]]:
    for item in sorted(os.scandir(folder), key=lambda item: item.name):
        name = f"{below}{item.name}"
        if name == ".git":
            continue
        if item.is_dir(follow_symlinks=False):
            if name.count("/") < 8:
                yield from _walked(Path(item.path), f"{name}/")
            continue
        mode = item.stat(follow_symlinks=False).st_mode
        wrong = wrong_path(name) or (
            "" if stat.S_ISREG(mode) else "a symbolic link" if stat.S_ISLNK(mode) else "not a plain file"
        )
        yield name, wrong or ("a set-uid or set-gid file" if mode & (stat.S_ISUID | stat.S_ISGID) else "")


def archive_tree(path: Path, source: str, *, strict: bool = True) -> Tree:
    """The files of a .tar.gz or .tar. Raises NotFound, or Refused naming the entry that cannot be taken: every one has to be a
    plain file or a folder, at a path of its own below the archive's. Not `strict`, one of another kind, or that is too large, is
    refused only when it is read: there may be anything in a repository beside a lab."""
    try:
        with path.open("rb") as file:
            packed = file.read(MOST_PACKED + 1)
    except OSError as error:
        raise _unreadable(source, error) from None
    if packed.startswith(b"PK\x03\x04"):
        raise Refused(f"{source}: a .zip; archives are .tar.gz", hint="unpack it, and import the folder")
    if len(packed) > MOST_PACKED:
        hint = "pocketcloud lab export makes smaller ones" if strict else "name the lab's own folder: URL#REF:FOLDER"
        raise Refused(f"{source}: more than {size_text(MOST_PACKED)}; this is hardly a shared lab", hint=hint)
    plain = _unpacked(packed, source) if packed.startswith(b"\x1f\x8b") else packed
    try:
        with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as tar:
            return _one_folder_less(Tree(source, _members(tar, source, strict=strict)))
    # What a broken archive does to tarfile has many names, a chain of headers without end among them.
    except (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError, OSError) as error:
        raise Refused(f"{source}: not an archive that can be read ({type(error).__name__})", hint="fetch it again") from None


def _unpacked(packed: bytes, source: str) -> bytes:
    inflater = zlib.decompressobj(wbits=31)
    try:
        plain = inflater.decompress(packed, MOST_UNPACKED + 1)
    except zlib.error as error:
        raise Refused(f"{source}: damaged: {error}", hint="fetch it again") from None
    if len(plain) > MOST_UNPACKED:
        raise Refused(f"{source}: unpacks to more than {size_text(MOST_UNPACKED)}; this is hardly a shared lab")
    if not inflater.eof:
        raise Refused(f"{source}: it ends too early", hint="fetch it again")
    if inflater.unused_data:
        raise Refused(f"{source}: there is more after its end", hint="fetch it again; do you trust where it is from?")
    return plain


def _members(tar: tarfile.TarFile, source: str, *, strict: bool) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    count = 0
    for member in tar:
        count += 1
        if count > MOST_ENTRIES:
            raise Refused(f"{source}: more than {MOST_ENTRIES} entries; this is hardly a shared lab")
        name = member.name.removeprefix("./")
        if member.isdir() and name in ("", "."):
            continue
        lost, wrong = wrong_path(name.removesuffix("/") if member.isdir() else name), _wrong_member(member)
        if lost or (wrong and strict):
            raise refusal(source, member.name, lost or wrong)
        if member.isdir():
            continue
        if wrong:
            entries[name] = Entry(bytes, wrong)
            continue
        content = tar.extractfile(member)
        held = content.read() if content else b""
        if len(held) != member.size:
            raise refusal(source, name, "the archive ends in the middle of it")
        if name in entries:
            raise refusal(source, name, "there are two of this name")
        entries[name] = Entry(partial(bytes, held))
    _refuse_collisions(entries, source)
    return entries


def _wrong_member(member: tarfile.TarInfo) -> str:
    if not (member.isdir() or member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)) or member.issparse():
        return f"{_KINDS.get(member.type, 'something else')}; only plain files and folders are taken"
    if member.mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX):
        return "a set-uid, set-gid or sticky entry"
    if not 0 <= member.size <= MOST_OF_ONE:
        return f"{size_text(member.size)}; at most {size_text(MOST_OF_ONE)} are taken"
    return ""


def _folded(name: str) -> str:
    """A name as a file system may take it that does not tell cases or forms of characters apart."""
    return unicodedata.normalize("NFKC", name).casefold()


def _refuse_collisions(entries: Mapping[str, Entry], source: str) -> None:
    seen: dict[str, str] = {}
    for name in entries:
        parts = name.split("/")
        # The folders on the way are names as well: `a` cannot be a file and a folder, nor `A` another folder than `a`.
        for length in range(1, len(parts) + 1):
            part = "/".join(parts[:length])
            known = seen.setdefault(_folded(part), part)
            if known != part or (part in entries and length < len(parts)):
                raise refusal(source, name, f"cannot lie beside {shown(known)}, as some file systems take them for one")


def _one_folder_less(tree: Tree) -> Tree:
    """A tree whose files all lie in one folder, as in an archive, without that."""
    tops = {name.partition("/")[0] for name in tree.entries}
    if LAB_FILE in tree.entries or len(tops) != 1 or not all("/" in name for name in tree.entries):
        return tree
    return Tree(tree.source, {name.partition("/")[2]: entry for name, entry in tree.entries.items()})


def check_sums(tree: Tree, *, strict: bool) -> Tree:
    """Refuse a tree in which anything is not as SHA256SUMS says, or is missing; what is not listed is refused, too, if `strict`,
    else left out: there may be anything in a folder beside a lab."""
    listed: dict[str, str] = {}
    for line in tree.take(SUMS).decode(errors="replace").splitlines():
        match = _SUM.fullmatch(line)
        if match is None or match[2] in listed:
            raise refusal(tree.source, SUMS, f"a line that is not a sum, or a second one for its file: {shown(line)!r}")
        listed[match[2]] = match[1]
    for name in tree.entries:
        if strict and name not in listed and name != SUMS:
            raise refusal(tree.source, name, f"not listed in {SUMS}")
    for name, digest in listed.items():
        if name not in tree.entries:
            raise refusal(tree.source, name, f"missing, though {SUMS} lists it")
        if hashlib.sha256(tree.take(name)).hexdigest() != digest:
            raise refusal(tree.source, name, f"not the file that {SUMS} lists: its sum is another")
    return Tree(tree.source, {name: entry for name, entry in tree.entries.items() if name in listed or name == SUMS})
