"""Fills the store of a new kit with the volumes of another, parents first, and reads them again afterwards."""

from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from pocketcloud.copies.reading import Reading, cut, levels
from pocketcloud.errors import Refused
from pocketcloud.model.inventory import Clone, Marks, Volume
from pocketcloud.model.kit import Kit
from pocketcloud.plan.drafting import marks
from pocketcloud.storage import Storage, open_storage
from pocketcloud.storage.extents import Extent, taken
from pocketcloud.storage.volume_data import opened
from pocketcloud.system import Runner

_DIGEST = 16
_PIECE = struct.Struct(">QQ?")


@dataclass(frozen=True, slots=True)
class Contents:
    """What is to be copied: the volumes of a kit by what they stand on, and what each has of its own."""

    reading: Reading
    levels: Sequence[Sequence[Volume]]
    extents: dict[str, list[Extent]]

    @property
    def volumes(self) -> Iterator[Volume]:
        """All volumes, parents first."""
        return (volume for level in self.levels for volume in level)

    @property
    def bytes(self) -> int:
        """How much is read and written; zeros do not count."""
        return sum(taken(extents) for extents in self.extents.values())


def contents_of(reading: Reading) -> Contents:
    """What there is to be copied. Raises Refused."""
    found = levels(reading.volumes)
    return Contents(reading, found, {volume.name: reading.extents(volume) for level in found for volume in level})


@dataclass(slots=True)
class Progress:
    """How far a copy is, in bytes, and what each volume's own content is known by; `stop` ends it, `tick` shows it."""

    stop: threading.Event
    tick: Callable[[], None]
    written: int = 0
    verified: int = 0
    digests: dict[str, bytes] = field(default_factory=dict)

    def look(self) -> None:
        """Raises InterruptedError when `stop` was set."""
        if self.stop.is_set():
            raise InterruptedError
        self.tick()

    def digest(self) -> str:
        """What the content of all volumes is known by, as a hexadecimal digest."""
        told = hashlib.blake2b(digest_size=32)
        for name, known in sorted(self.digests.items()):
            told.update(f"{name} {known.hex()}\n".encode())
        return told.hexdigest()


def fill(contents: Contents, kit: Kit, chunk: int, progress: Progress, run: Runner) -> None:
    """Make all volumes in a kit that has none: `chunk` is that of its pool, in bytes, 0 in a folder. Raises Refused, NoSpace,
    OSError."""
    store = open_storage(kit)
    for level in contents.levels:
        for volume in level:
            if volume.parent is None:
                store.create(volume.name, volume.size, marks=_marks(volume))
        clones = [Clone(volume.parent, volume.name, volume.size, _marks(volume)) for volume in level if volume.parent is not None]
        if clones:
            store.clone_all(clones)
        store.activate(*(volume.name for volume in level if contents.extents[volume.name]))
        for volume in level:
            _write(contents, volume, store, chunk, progress, run)
            if volume.kept:
                store.seal(volume.name)


def _marks(volume: Volume) -> Marks:
    """Those it has, or that its name tells: a store of images keeps none."""
    kind, *words = volume.name.split(".")
    if not volume.marks and kind == "lab" and len(words) == 4:
        return marks(*words[:3])
    return volume.marks


def _write(contents: Contents, volume: Volume, store: Storage, chunk: int, progress: Progress, run: Runner) -> None:
    digest = hashlib.blake2b(digest_size=_DIGEST)
    extents = contents.extents[volume.name]
    if extents:
        with opened(*store.place(volume.name), run, writable=True, chunk=chunk) as target:
            for piece, data in contents.reading.pieces(volume, extents):
                progress.look()
                _count(digest, piece, data)
                if data is None:
                    target.zero(piece.begin, piece.length)
                else:
                    target.write(piece.begin, data)
                    progress.written += piece.length
            target.flush()
    progress.digests[volume.name] = digest.digest()


def _count(digest: hashlib.blake2b, piece: Extent, data: memoryview | None) -> None:
    digest.update(_PIECE.pack(piece.begin, piece.length, piece.zero))
    if data is not None:
        digest.update(data)


def check(contents: Contents, kit: Kit, progress: Progress, run: Runner) -> None:
    """Read all volumes of a kit that was filled, as a guest would see them. Raises Refused where one is not what was written, or
    is not as it is in the source: sealed, its size, what it stands on."""
    store = open_storage(kit)
    there = {volume.name: volume for volume in store.volumes()}
    for volume in contents.volumes:
        copy = there.pop(volume.name, None)
        if copy is None or not _alike(volume, copy):
            raise Refused(f"volume {volume.name} of the copy is not as the one it was made from")
        extents = contents.extents[volume.name]
        if extents:
            store.activate(volume.name)
            if _read_again(copy, extents, progress, run) != progress.digests[volume.name]:
                raise Refused(
                    f"volume {volume.name} read again is not what was written: the disk is failing, or smaller than it says"
                )
    if there:
        raise Refused(f"the copy has volumes that nobody made: {', '.join(sorted(there)[:5])}")


def _alike(one: Volume, copy: Volume) -> bool:
    # LVM rounds sizes up to its extents.
    same = (one.sealed, one.kept, one.parent) == (copy.sealed, copy.kept, copy.parent)
    return same and copy.size >= one.size


def _read_again(copy: Volume, extents: Sequence[Extent], progress: Progress, run: Runner) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST)
    with opened(copy.path, copy.format, run) as source:
        for piece in cut(extents):
            progress.look()
            data = source.read(piece.begin, piece.length)
            zeros = piece.zero and data == bytes(piece.length)
            _count(digest, piece, None if zeros else data)
            progress.verified += 0 if piece.zero else piece.length
    return digest.digest()
