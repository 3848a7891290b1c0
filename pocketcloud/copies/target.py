"""A disk that becomes a copy of a kit: what goes where on it, what it is written with, and what makes it a kit at last.

What is written lies where LVM will look for it, but there is no label yet; it comes when all was read again and found right.
Killed before, the disk is an unfinished copy (unfinished.py).
"""

from __future__ import annotations

import mmap
import os
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pocketcloud.copies.ledger import FILE as LEDGER
from pocketcloud.copies.pieces import LARGEST, Piece, aims, placed
from pocketcloud.copies.pouring import digest
from pocketcloud.copies.shipped import Sums, drop, write_sums
from pocketcloud.copies.source import Source
from pocketcloud.copies.unfinished import Unfinished
from pocketcloud.errors import NoSpace, Refused
from pocketcloud.host import kits as host
from pocketcloud.kit import loops
from pocketcloud.kit.device import state_file_system
from pocketcloud.kit.identity import KIT, KIT_NAME, SCHEMA, fresh_group_name
from pocketcloud.kit.manifest import read_manifest, write_manifest
from pocketcloud.model.kit import KIT_SCHEMA
from pocketcloud.model.sizes import size_text
from pocketcloud.scratch import scratch
from pocketcloud.storage.lvm import Lvm, complaint
from pocketcloud.storage.lvm_copy import CopiedGroup, copied_group, fitting_layout
from pocketcloud.storage.lvm_layout import Layout
from pocketcloud.storage.thin_metadata import PoolMap, write_dump
from pocketcloud.system import CommandFailed, Runner


@dataclass(frozen=True, slots=True)
class Drawn:
    """Where everything goes on one device: its volume group to be, its pool's map, and the aims of the source's pieces."""

    note: Unfinished
    group: CopiedGroup
    pool: PoolMap
    aims: array[int]


def layout_of_copy(source: Source, size: int, run: Runner) -> Layout:
    """The layout of a copy on a device of `size` bytes. Raises NoSpace if what the source maps does not fit, or its files."""
    layout = fitting_layout(size, source.pool.chunk, source.used_metadata, run)
    needed = sum(length for _, length in source.pool.allocated()) * source.pool.chunk
    if needed > layout.pool:
        raise NoSpace(
            f"what is used of kit {source.kit.name} does not fit: it is {size_text(needed)}, the pool would have"
            f" {size_text(layout.pool)}",
            hint="choose a larger disk, or remove what is not needed: pocketcloud kit status shows what takes the space",
        )
    if source.files > layout.state // 10 * 9:
        raise NoSpace(
            f"the records and media of kit {source.kit.name}, {size_text(source.files)}, do not fit into"
            f" {size_text(layout.state)}",
            hint="choose a larger disk",
        )
    return layout


def draw(source: Source, note: Unfinished, size: int) -> Drawn:
    """What goes where on a device of `size` bytes. Raises NoSpace if there is no room for it."""
    tags = (f"{KIT}={note.id}", f"{KIT_NAME}={note.name}", f"{SCHEMA}={KIT_SCHEMA}")
    group = copied_group(source.group, fresh_group_name(), tags, note.layout, size)
    runs = source.pool.allocated()
    places = placed(runs, group.chunks)
    if places is None:
        raise NoSpace(f"what is used of kit {source.kit.name} does not fit into {size_text(note.layout.pool)}")
    # What is read may begin within a run, where the rest of that is nothing (the ballast).
    begins = [first for first, _ in runs]
    moved = {}
    for first, _ in source.runs:
        begin = begins[bisect_right(begins, first) - 1]
        moved[first] = places[begin] + first - begin
    return Drawn(
        note,
        group,
        source.pool.moved(places, group.chunks),
        aims(source.runs, source.pool.chunk, moved, group.places.data),
    )


# -- images


@contextmanager
def state_image(source: Source, size: int, sums: Sums, finish: Callable[[Path], None], run: Runner) -> Iterator[Path]:
    """A file of `size` bytes with the file system of a copy's `state`: the source's files and the digests of what the copy's
    pool holds; `finish` makes the rest of its tree that of a kit of its own. Raises NoSpace if that does not fit."""
    with scratch(run) as aside:
        tree, image = Path(aside, "tree"), Path(aside, "image")
        # Not what is mounted below: `content` is a volume of its own.
        with source.tree:
            run(["cp", "--archive", "--one-file-system", source.kit.path, tree])
        # The copy has made no copies, and nobody is making volumes in it.
        for path in (tree / LEDGER, *(tree / "volumes").glob(".*")):
            path.unlink(missing_ok=True)
        drop(tree, but=[source.shipped.generation])
        write_sums(tree, source.shipped.generation, sums)
        finish(tree)
        with image.open("wb") as file:
            file.truncate(size)
        try:
            run(state_file_system(image, tree))
        except CommandFailed as failed:
            raise NoSpace(
                f"the files of kit {source.kit.name} do not fit into {size_text(size)}: {complaint(failed)}",
                hint="choose a larger disk",
            ) from failed
        yield image


def own_manifest(source: Source, drawn: Drawn, now: str) -> Callable[[Path], None]:
    """What makes the copied tree of the source that of the drawn copy."""

    def finish(tree: Path) -> None:
        manifest = read_manifest(tree)
        changed = replace(
            manifest, id=drawn.note.id, name=drawn.note.name, created=now, derived_from=source.kit.id, vg=drawn.group.name,
            dirty=False, last_host="", detached=now,
        )  # fmt: skip
        write_manifest(tree, changed)

    return finish


class MetadataImages:
    """Files with the metadata of pools, made beside other work, and once for all copies that have the same, as disks of one size
    do; gone when it is left."""

    def __init__(self, run: Runner) -> None:
        self._run = run
        self._held = ExitStack()
        # One at a time: what is made at once takes the processor from what is being written.
        self._thread = ThreadPoolExecutor(1, "metadata")
        self._begun: dict[tuple[str, int, int], Future[Path]] = {}

    def __enter__(self) -> MetadataImages:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._held.close()

    def begin(self, pool: PoolMap, size: int) -> Future[Path]:
        """Have one of `size` bytes made and checked by the pool's own tools. The result raises Refused if it cannot be."""
        known = (pool.digest(), pool.chunks, size)
        if known not in self._begun:
            self._begun[known] = self._thread.submit(lambda: self._held.enter_context(_metadata_image(pool, size, self._run)))
        return self._begun[known]


@contextmanager
def _metadata_image(pool: PoolMap, size: int, run: Runner) -> Iterator[Path]:
    with scratch(run) as aside:
        told, image = Path(aside, "map"), Path(aside, "image")
        with told.open("w") as file:
            write_dump(pool, file.write)
        with image.open("wb") as file:
            file.truncate(size)
        # The tools read and write past the page cache, which not every file system lets them.
        device, _ = loops.put_before(image, run)
        try:
            run(["thin_restore", "-i", told, "-o", device])
            run(["thin_check", "-q", device])
            run(["blockdev", "--flushbufs", device])
        except CommandFailed as failed:
            raise Refused(f"the map of the copy's pool cannot be made: {complaint(failed)}") from failed
        finally:
            loops.take_away(device, image, run)
        yield image


@dataclass(frozen=True, slots=True)
class Written:
    """What was written of images: pieces, where they went, and their digests, to be read again."""

    pieces: tuple[Piece, ...]
    aims: tuple[int, ...]
    digests: tuple[bytes, ...]

    def __add__(self, other: Written) -> Written:
        return Written(self.pieces + other.pieces, self.aims + other.aims, self.digests + other.digests)


def put_image(image: Path, handle: int, aim: int, *, unit: int, holes: bool) -> Written:
    """Write an image to `aim` of a device that is open with O_DIRECT; with `holes` also where the image has none, as zeros: what
    was on the device before must not be read there."""
    pieces, digests = [], []
    with image.open("rb") as file, mmap.mmap(-1, LARGEST) as memory, memoryview(memory) as view:
        size = os.fstat(file.fileno()).st_size
        for begin, end in [(0, size)] if holes else _written(file.fileno(), size):
            for at in range(begin, end, LARGEST):
                length = min(LARGEST, end - at)
                with view[:length] as data:
                    if os.preadv(file.fileno(), [data], at) != length:
                        raise OSError(f"{image} is cut short")
                    _put(handle, data, aim + at)
                    pieces.append(Piece(at, length))
                    digests.append(digest(data, unit))
    return Written(tuple(pieces), tuple(aim + piece.begin for piece in pieces), tuple(digests))


def _written(handle: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a sparse file has data."""
    at = 0
    while at < size:
        try:
            begin = os.lseek(handle, at, os.SEEK_DATA)
        except OSError:
            return
        at = os.lseek(handle, begin, os.SEEK_HOLE)
        yield begin, at


def _put(handle: int, data: memoryview, aim: int) -> None:
    done = 0
    while done < len(data):
        with data[done:] as rest:
            count = os.pwrite(handle, rest, aim + done)
        if count == 0:
            raise OSError("it takes no more")
        done += count


# -- the label


def label(device: Path, drawn: Drawn, run: Runner) -> None:
    """Write what makes the device a kit. Nobody else may hold it. Raises Refused if LVM does not take it."""
    lvm, group = Lvm([device], run), drawn.group
    with scratch(run) as aside:
        text = Path(aside, "group")
        text.write_text(group.text)
        try:
            lvm.command("pvcreate", "--uuid", group.pv_uuid, "--restorefile", text, device)
            lvm.command("vgcfgrestore", "--force", "-f", text, group.name)
            lvm.command("vgck", group.name)
        except CommandFailed as failed:
            raise Refused(
                f"LVM cannot make a kit on {device}: {complaint(failed)}",
                hint="see what the kernel says: dmesg; then go on with --resume",
            ) from failed


def sector_of(device: Path) -> int:
    """The logical sectors of a device, in bytes."""
    return host.sector_size(host.kernel_name(device))
