"""Images that are packed: compressed (xz, gzip, zstd), or a member of an archive (an OVA). Unpacked with bounds, without a shell.

What comes out of a small file can be without end, and an archive can name places outside of its folder: what is written is
bounded by the disk's room and by LARGEST_PACKED, and an archive with a single such member is refused as a whole.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import lzma
import os
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from pocketcloud.bases.disk_image import Format, Packing, kind_of
from pocketcloud.disk_space import spare
from pocketcloud.downloads.sums import entries
from pocketcloud.errors import NoSpace, Refused
from pocketcloud.model.sizes import GIB, KIB, MIB, size_text

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdError, ZstdFile
else:
    from backports.zstd import ZstdError, ZstdFile

LARGEST_PACKED = 512 * GIB
"""The most that comes out of a packed file."""

Share = Callable[[float], None]

_PIECE = MIB
_MEMBERS = 200
# What one header of an archive may take, and all of them together: an honest member has two KiB of them, and no name is longer
# than 4 KiB. From one header much larger than that, older versions of Python make gigabytes of keywords (CVE-2024-6232).
_HEADER, _HEADERS = 4 * KIB, 512 * KIB
_XZ_MEMORY = 512 * MIB
_DEEPEST = 3
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DISKS = (".vmdk", ".qcow2", ".img", ".raw", ".vdi", ".vhdx")
_AGAIN = "fetch it again; is it whole?"


class _Readable(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...


def unpacked(path: Path, work: Path, tell: Share, most: int = LARGEST_PACKED) -> tuple[Path, Format]:
    """The image in `path`, unpacked into the folder `work` if it is packed (once more if what comes out is), and its format.

    Raises Refused for what is broken, hostile or no image; NoSpace.
    """
    for depth in range(_DEEPEST + 1):
        kind = kind_of(path)
        if isinstance(kind, Format):
            return path, kind
        target = work / f"unpacked-{depth}"
        if kind is Packing.TAR:
            _member(path, target, tell, most)
        else:
            _decompressed(path, kind, target, tell, most)
        if depth:
            path.unlink()
        path = target
    raise Refused(f"{path.name} is packed more than {_DEEPEST} times", hint="unpack it by hand")


def _decompressed(path: Path, kind: Packing, target: Path, tell: Share, most: int) -> None:
    size = max(path.stat().st_size, 1)
    with path.open("rb", buffering=0) as packed:
        try:
            _write(path, pieces(kind, packed), target, most, lambda: tell(min(packed.tell() / size, 1.0)))
        except (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError, ZstdError) as error:
            raise Refused(f"{path.name} cannot be unpacked ({kind}): {error}", hint=_AGAIN) from error


def pieces(kind: Packing, packed: BinaryIO) -> Iterator[bytes]:
    """What comes out of a compressed stream, a MiB at a time at most, with a bound on what unpacking takes of the memory. Raises
    LZMAError, BadGzipFile, zlib.error, EOFError or ZstdError."""
    match kind:
        case Packing.XZ:
            yield from _xz(packed)
        case Packing.GZ:
            with gzip.GzipFile(fileobj=packed) as file:
                yield from _read(file)
        case Packing.ZST:
            with ZstdFile(packed) as file:
                yield from _read(file)
        case Packing.TAR:
            raise ValueError("an archive is no stream")


def _read(file: _Readable) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece


def _xz(packed: BinaryIO) -> Iterator[bytes]:
    """One stream after another, with a bound on memory, which Python's LZMAFile does not take."""
    rest = packed.read(_PIECE)
    while rest:
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
        while not stream.eof:
            if stream.needs_input and not rest and not (rest := packed.read(_PIECE)):
                raise EOFError("it ends in the middle")
            piece = stream.decompress(rest, _PIECE)
            rest = b""
            if piece:
                yield piece
        rest = stream.unused_data
        while rest.count(0) == len(rest) and (more := packed.read(_PIECE)):
            rest = more
        rest = rest.lstrip(b"\0")  # padding between streams (The .xz File Format, 2.2)


def _write(path: Path, pieces: Iterator[bytes], target: Path, most: int, told: Callable[[], None]) -> None:
    """Write pieces to a new file, zeros as holes."""
    done = 0
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb", buffering=0) as file:
        for piece in pieces:
            done += len(piece)
            if done > most:
                raise Refused(
                    f"{path.name} holds more than {size_text(most)}: that is no disk image that was meant",
                    hint="unpack it by hand, and look at what comes out",
                )
            if piece.count(0) == len(piece):
                file.seek(len(piece), os.SEEK_CUR)
            else:
                _put(file, piece, path)
            told()
        file.truncate(done)


def _put(file: BinaryIO, piece: bytes, path: Path) -> None:
    if len(piece) > spare(file.fileno()):
        raise NoSpace(
            f"{path.name} does not fit when it is unpacked: too little would stay free", hint="remove what is not needed"
        )
    try:
        view = memoryview(piece)
        while view:
            view = view[file.write(view) :]
    except OSError as error:
        if error.errno in _FULL:
            raise NoSpace(f"{path.name} does not fit when it is unpacked", hint="remove what is not needed") from error
        raise


# -- archives ---------------------------------------------------------------------------------------------------------


class _Headers(io.FileIO):
    """An archive whose headers are read: a header says itself how long it is, and tarfile reads it whole. When there are none to
    come, `bounded` becomes False."""

    bounded = True
    _seen = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """See io.RawIOBase. Raises tarfile.ReadError before a header is read that is too long."""
        wanted = -1 if size is None else size
        if self.bounded:
            if not 0 <= wanted <= _HEADER:
                raise tarfile.ReadError(
                    f"it has a header of {size_text(wanted)}" if wanted > 0 else "it has a header without end"
                )
            self._seen += wanted
            if self._seen > _HEADERS:
                raise tarfile.ReadError(f"its headers take more than {size_text(_HEADERS)}")
        return super().read(wanted)


def _member(path: Path, target: Path, tell: Share, most: int) -> None:
    """Unpack the only disk of an archive; if it has a manifest, its checksum is verified."""
    try:
        with _Headers(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            members = _checked(path, archive)
            file.bounded = False
            disk = _disk(path, members)
            content = archive.extractfile(disk)
            if content is None:
                raise Refused(f"{path.name}: its member {disk.name} has no content", hint=_AGAIN)
            digests = {name: hashlib.new(name) for name in ("sha256", "sha512")}

            def digested() -> Iterator[bytes]:
                for piece in _read(content):
                    for digest in digests.values():
                        digest.update(piece)
                    yield piece

            _write(path, digested(), target, most, lambda: tell(min(content.tell() / max(disk.size, 1), 1.0)))
            for wanted in _manifest(archive, members, disk.name):
                if digests[wanted[0]].hexdigest() != wanted[1]:
                    raise Refused(f"{path.name}: {disk.name} is not what its manifest says", hint=_AGAIN)
    except (tarfile.TarError, EOFError, OverflowError, ValueError, RecursionError) as error:
        # Numbers that are none, and headers of headers of headers, tarfile leaves to its caller.
        raise Refused(f"{path.name} is no whole archive: {error}", hint=_AGAIN) from error


def _checked(path: Path, archive: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """The members. Raises Refused if one leaves the archive's folder, is no file or folder, or there are too many."""
    members = []
    for member in archive:
        try:
            tarfile.data_filter(member, "/nowhere/folder")
        except tarfile.FilterError as error:
            raise _outside(path, member.name) from error
        if member.name.startswith("/"):
            raise _outside(path, member.name)
        members.append(member)
        if len(members) > _MEMBERS:
            raise Refused(f"{path.name} has more than {_MEMBERS} members: it is no appliance", hint="is it the right file?")
    return members


def _outside(path: Path, name: str) -> Refused:
    return Refused(
        f"{path.name} is not unpacked: its member {name[:200]!r} would lie outside of its folder, or is no file",
        hint="no honest archive has such a member; fetch it from elsewhere",
    )


def _disk(path: Path, members: list[tarfile.TarInfo]) -> tarfile.TarInfo:
    disks = [member for member in members if member.isfile() and _is_disk(member.name)]
    if len(disks) != 1:
        found = ", ".join(member.name for member in disks) or "none"
        raise Refused(
            f"{path.name} has to have one disk image in it; it has {len(disks)}: {found}",
            hint="unpack it and import the disk that the system starts from" if disks else "is it the right file?",
        )
    return disks[0]


def _is_disk(name: str) -> bool:
    bare = name.lower()
    for suffix in (".gz", ".xz", ".zst"):
        bare = bare.removesuffix(suffix)
    return bare.endswith(_DISKS)


def _manifest(archive: tarfile.TarFile, members: list[tarfile.TarInfo], name: str) -> list[tuple[str, str]]:
    """What the archive's manifest (NAME.mf, DMTF DSP0243, 5.1) has for a member: algorithm and sum."""
    found = []
    for member in members:
        if member.isfile() and member.name.endswith(".mf") and member.size <= MIB and (file := archive.extractfile(member)):
            listed = entries(file.read().decode(errors="replace"))
            found += [(each.algorithm, each.hexadecimal) for entry, each in listed if entry == name]
    return found
