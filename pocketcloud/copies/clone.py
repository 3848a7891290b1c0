"""`kit clone`: one kit poured onto many disks, each of which becomes a kit of its own.

What is asked and chosen comes first; then the source is read once, all targets are written, each is read again, and gets its
label last. A target that fails leaves by itself; the report says which one is what.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from pocketcloud.copies.ledger import CopyEntry
from pocketcloud.copies.pieces import Piece, cut, unit_of
from pocketcloud.copies.pouring import Checked, Digests, Outlet, check, pour
from pocketcloud.copies.shipped import sums_of
from pocketcloud.copies.source import Source, on_disk, source_of, write_content
from pocketcloud.copies.target import (
    Drawn,
    MetadataImages,
    Written,
    draw,
    label,
    layout_of_copy,
    own_manifest,
    put_image,
    sector_of,
    state_image,
)
from pocketcloud.copies.unfinished import Unfinished, read_note, strike_note, write_note
from pocketcloud.errors import PocketcloudError, Refused
from pocketcloud.events import Event, StepDone, StepFailed, StepProgress, StepStarted
from pocketcloud.host import kits as host
from pocketcloud.host.disks import read_block_devices
from pocketcloud.kit.attached import Places
from pocketcloud.kit.disk import Chosen, cleared
from pocketcloud.kit.interlocks import claimed, described
from pocketcloud.kit.plugged import PARTITION_NAME
from pocketcloud.model.disk import BlockDevice
from pocketcloud.model.kit import Kit
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import progress_text, size_text
from pocketcloud.system import Runner

_BLKFLSBUF = 0x1261
# A copy that is killed has to look again at no more than that.
_NOTED_EVERY = 1 << 30
_TOLD_EVERY = 0.5


@dataclass(frozen=True, slots=True)
class Wanted:
    """A disk that is to become the kit `name`."""

    chosen: Chosen
    name: Name


@dataclass(frozen=True, slots=True)
class Copied:
    """What became of a disk: `fault` is empty where it is a whole, verified kit now, named `kit`; `digest` is that of the map of
    which it is a copy, `generation` what it was shipped. `written`, `verified` and the disk's `size` are bytes."""

    kit: Name
    device: Path
    disk: str
    serial: str
    port: str
    id: str = ""
    digest: str = ""
    written: int = 0
    verified: int = 0
    seconds: float = 0.0
    fault: str = ""
    generation: str = ""
    size: int = 0


def entry_of(copied: Copied, now: str) -> CopyEntry:
    """What the kit's list of copies has of a whole one."""
    return CopyEntry(
        copied.kit, copied.id, copied.serial, now, copied.digest, copied.generation, port=copied.port, size=copied.size
    )


@dataclass(slots=True)
class _Target:
    """A disk on its way."""

    wanted: Wanted
    since: float
    held: ExitStack = field(default_factory=ExitStack)  # what keeps others from its disk, until it gets its label
    carrier: Path = Path()
    drawn: Drawn | None = None
    outlet: Outlet | None = None
    metadata: Future[Path] | None = None
    images: Written = field(default_factory=lambda: Written((), (), ()))
    checked: Checked = field(default_factory=Checked)
    reading: float = 0.0  # since when it is read again
    seconds: float = 0.0  # that it took in all
    whole: bool = False
    fault: str = ""
    told: bool = False  # how it ended

    @property
    def failed(self) -> str:
        """Why it is out; empty while it is in."""
        return self.fault or (self.outlet.fault if self.outlet else "")


def clone(
    kit: Kit,
    wanted: Sequence[Wanted],
    places: Places,
    run: Runner,
    *,
    now: str,
    stop: threading.Event,
    tell: Callable[[Event], None],
    made: Callable[[Copied], None] = lambda _copied: None,
    noted_every: int = _NOTED_EVERY,
) -> tuple[Copied, ...]:
    """Make copies of an attached kit whose labs are down, on disks whose erasure was confirmed; what became of each. The caller
    holds what makes kits, and the kit's labs and bases. Raises as `source_of` and `clone_of` do."""
    with source_of(kit, run, now=now) as source:

        def entered(copied: Copied) -> None:
            with source.tree:
                made(copied)

        return clone_of(source, wanted, places, run, now=now, stop=stop, tell=tell, made=entered, noted_every=noted_every)


def clone_of(
    source: Source,
    wanted: Sequence[Wanted],
    places: Places,
    run: Runner,
    *,
    now: str,
    stop: threading.Event,
    tell: Callable[[Event], None],
    made: Callable[[Copied], None] = lambda _copied: None,
    noted_every: int = _NOTED_EVERY,
) -> tuple[Copied, ...]:
    """Make copies of a source, as `clone` does; several may go on at once, each in a thread of its own.

    Of a stream it is one, and begun anew. Otherwise a disk with an unfinished copy of it is gone on with; each notes how far it
    is every `noted_every` bytes. `made` is told of each as soon as it is a kit, in a thread of its own: none waits for slower
    ones.

    Raises Refused, NoSpace and the like where that concerns the source, or all of them, InterruptedError when `stop` was set.
    """
    targets = [_Target(each, time.monotonic()) for each in wanted]
    for target in targets:
        tell(StepStarted(target.wanted.name, f"copy to {target.wanted.chosen.target.path}", ""))
    with ExitStack() as held:
        for target in targets:
            held.enter_context(target.held)
            _tried(target, lambda t: _prepare(t, source, places, run, noted_every))
        left = [target for target in targets if target.outlet and not target.failed]
        if left:
            # Not before it is known to fit a disk: a stream may say that it has more than there is memory to count it in.
            pieces = tuple(cut(source.runs, source.pool.chunk))
            with _Show(targets, source.bytes, tell), MetadataImages(run) as images, ThreadPoolExecutor(len(left)) as pool:
                for target in left:
                    if target.drawn:
                        target.metadata = images.begin(target.drawn.pool, target.drawn.note.layout.metadata)
                ends = _Ends(source, pieces, left, pool, run, now, stop, made)
                try:
                    ends.pour()
                    ends.wait()
                except BaseException:
                    stop.set()  # the threads end, too
                    raise
    if stop.is_set() and not all(target.whole or target.failed for target in targets):
        raise InterruptedError
    for target in targets:
        _tell_end(target, tell)
    return tuple(_copied(target, source.shipped.generation) for target in targets)


def _tried(target: _Target, work: Callable[[_Target], None]) -> None:
    """Do something for a target; what goes wrong is its own."""
    try:
        work(target)
    except InterruptedError:
        return  # it is unfinished, and no fault of its own
    except PocketcloudError as error:
        target.fault = error.message
    except OSError as error:
        target.fault = error.strerror or str(error)


@dataclass
class _Ends:
    """How targets end: each by itself, in a thread, once it has got all of the data."""

    source: Source
    pieces: tuple[Piece, ...]
    targets: Sequence[_Target]
    pool: ThreadPoolExecutor
    run: Runner
    now: str
    stop: threading.Event
    made: Callable[[Copied], None]
    entered: bool = False
    ending: list[Future[None]] = field(default_factory=list)

    def pour(self) -> None:
        """Write the data to all. Raises Refused, InterruptedError."""
        source, outlets = self.source, [target.outlet for target in self.targets if target.outlet]
        unit = unit_of(source.pool.chunk)
        if source.stream:
            (outlet,) = outlets
            self._passed(outlet, source.stream(self.pieces, outlet, unit=unit, stop=self.stop, tick=lambda: None))
        else:
            pour(source.handle, self.pieces, outlets, unit=unit, stop=self.stop, passed=self._passed)

    def wait(self) -> None:
        """Wait until all have ended."""
        for ending in self.ending:
            ending.result()

    def _passed(self, outlet: Outlet, digests: Digests) -> None:
        source, unit = self.source, unit_of(self.source.pool.chunk)
        if not self.entered and all(digests):  # else all have failed before the end was read
            with on_disk(source.kit), source.tree:
                write_content(
                    source, sums_of((piece.begin // unit, told) for piece, told in zip(self.pieces, digests, strict=True))
                )
            self.entered = True
        for target in self.targets:
            if target.outlet is outlet and not target.failed:
                self.ending.append(self.pool.submit(_tried, target, partial(self._end, digests)))

    def _end(self, digests: Digests, target: _Target) -> None:
        """What comes after the data: the pool's map and the kit's files, reading all again, and the label that makes it a kit."""
        unit = unit_of(self.source.pool.chunk)
        _put_images(target, self.source, digests, self.run, now=self.now)
        target.reading = time.monotonic()
        _check(target, self.pieces, digests, unit, self.stop)
        if self.stop.is_set() or target.failed:
            return
        target.held.close()
        _finish(target, self.run)
        target.whole, target.seconds = True, time.monotonic() - target.since
        self.made(_copied(target, self.source.shipped.generation))


def _prepare(target: _Target, source: Source, places: Places, run: Runner, noted_every: int) -> None:
    chosen = target.wanted.chosen
    kit = source.kit
    if kit.manifest.sector_size and sector_of(chosen.target.path) != kit.manifest.sector_size:
        raise Refused(
            f"it has sectors of {sector_of(chosen.target.path)} bytes, kit {kit.name} is of {kit.manifest.sector_size}: its file"
            " systems could not be read there",
            hint="choose another disk, or plug it in through another adapter",
        )
    # What of a stream went by does not come again.
    note = None if source.stream else known_note(chosen, source)
    if note is None:
        layout = layout_of_copy(source, chosen.room, run)
        note = Unfinished(kit.id, source.pool.digest(), str(uuid.uuid4()), target.wanted.name, layout)
        target.carrier = cleared(chosen, places, run)
    else:
        note = replace(note, name=target.wanted.name)
        target.carrier = chosen.unfinished or chosen.target.path
    carrier = _still_there(target, run)
    if note.pieces and carrier.signatures:
        raise Refused(
            f"somebody has written to {target.carrier} since the copy was begun: {', '.join(carrier.signatures)} is on it",
            hint="see what that is; to begin anew: wipefs --all " + str(target.carrier),
        )
    target.held.enter_context(claimed(carrier, lambda: read_block_devices(run=run)))
    handle = os.open(target.carrier, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    target.held.callback(_close, target, handle)
    target.drawn = drawn = draw(source, note, carrier.size)
    write_note(handle, note)

    def noted(done: int) -> None:
        write_note(handle, replace(note, pieces=done))

    target.outlet = Outlet(note.name, handle, drawn.aims, begin=note.pieces, noted=noted, noted_every=noted_every)


def _still_there(target: _Target, run: Runner) -> BlockDevice:
    """What the copy lies on. Raises Refused if its disk was pulled, or another one has its name now."""
    devices, chosen = read_block_devices(run=run), target.wanted.chosen
    carrier, before = devices.get(target.carrier), chosen.devices.disk_of(chosen.target)
    disk = devices.disk_of(carrier) if carrier else None
    if carrier is None or any(getattr(disk, what) != getattr(before, what) for what in ("number", "size", "diskseq", "serial")):
        raise Refused(
            f"{chosen.target.path} is not the disk any more that was chosen",
            hint="plug that one in again; pocketcloud kit clone --resume goes on with it",
        )
    return carrier


def _close(target: _Target, handle: int) -> None:
    if target.outlet is None or not target.outlet.stuck:
        os.close(handle)


def known_note(chosen: Chosen, source: Source) -> Unfinished | None:
    """The note of an unfinished copy of this very source on a disk; None if there is none."""
    note = note_on(chosen)
    return note if note and (note.source, note.digest) == (source.kit.id, source.pool.digest()) else None


def note_on(chosen: Chosen) -> Unfinished | None:
    """The note of an unfinished copy on a disk; None if there is none."""
    if chosen.unfinished is None and (chosen.whole or chosen.target.signatures):
        return None  # a note that something else was written over is none
    return _note_at(chosen.unfinished or chosen.target.path)


def unfinished_copies(kit: Kit) -> tuple[Path, ...]:
    """What is plugged in with unfinished copies of a kit: disks, and partitions that somebody else made for one."""
    found = [
        host.node(host.disk_of(part) if called == PARTITION_NAME else part)
        for part, called in host.partition_names().items()
        if (note := _note_at(host.node(part))) and note.source == kit.id
    ]
    return tuple(dict.fromkeys(found))


def _note_at(path: Path) -> Unfinished | None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return None if host.has_label(path) else read_note(handle)
    finally:
        os.close(handle)


def _put_images(target: _Target, source: Source, digests: Digests, run: Runner, *, now: str) -> None:
    drawn, outlet, metadata = target.drawn, target.outlet, target.metadata
    if drawn is None or outlet is None or metadata is None:
        return
    places, unit = drawn.group.places, unit_of(drawn.pool.chunk)
    sums = sums_of(((aim - places.data) // unit, told) for aim, told in zip(drawn.aims, digests, strict=True))
    target.images += put_image(metadata.result(), outlet.handle, places.metadata, unit=unit, holes=False)
    with state_image(source, drawn.note.layout.state, sums, own_manifest(source, drawn, now), run) as image:
        target.images += put_image(image, outlet.handle, places.state, unit=unit, holes=True)
    outlet.written += sum(piece.length for piece in target.images.pieces)
    write_note(outlet.handle, replace(drawn.note, pieces=len(drawn.aims)))


def _check(target: _Target, pieces: Sequence[Piece], digests: Digests, unit: int, stop: threading.Event) -> None:
    outlet, images = target.outlet, target.images
    if outlet is None:
        return
    # What the page cache has is not what the disk has.
    with suppress(OSError):
        fcntl.ioctl(outlet.handle, _BLKFLSBUF)
    what, where, known = [*pieces, *images.pieces], [*outlet.aims, *images.aims], [*digests, *images.digests]
    check(outlet.handle, what, where, known, target.checked, unit=unit, stop=stop)
    wrong = target.checked.wrong
    if wrong:
        bad = sum(length for _, length in wrong)
        target.fault = (
            f"{size_text(bad)} read again are not what was written, first at byte {wrong[0][0]}: the disk is failing, or smaller"
            " than it says"
        )
    target.fault = target.fault or target.checked.fault


def _finish(target: _Target, run: Runner) -> None:
    if target.drawn is None:
        return
    _still_there(target, run)
    label(target.carrier, target.drawn, run)
    handle = os.open(target.carrier, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    try:
        strike_note(handle)
    finally:
        os.close(handle)


def _copied(target: _Target, generation: str) -> Copied:
    chosen, drawn = target.wanted.chosen, target.drawn
    disk = chosen.devices.disk_of(chosen.target)
    return Copied(
        kit=target.wanted.name,
        device=chosen.target.path,
        disk=described(chosen.devices, chosen.target),
        serial=disk.serial,
        port=disk.port,
        id=drawn.note.id if drawn and target.whole else "",
        digest=drawn.note.digest if drawn and target.whole else "",
        written=target.outlet.written if target.outlet else 0,
        verified=target.checked.read,
        seconds=target.seconds or time.monotonic() - target.since,
        fault=target.failed,
        generation=generation if target.whole else "",
        size=disk.size,
    )


def _tell_end(target: _Target, tell: Callable[[Event], None]) -> None:
    """Tell how it ended, if it has and that was not told."""
    if target.told or not (target.whole or target.failed):
        return
    target.told = True
    name, title = target.wanted.name, f"copy to {target.wanted.chosen.target.path}"
    seconds = target.seconds or time.monotonic() - target.since
    tell(StepFailed(name, title, "", seconds, target.failed) if target.failed else StepDone(name, title, "", seconds))


class _Show:
    """While it is entered it tells now and then how far the targets are, and at once how one has ended: its disk may be seen to
    while the others go on."""

    def __init__(self, targets: Sequence[_Target], total: int, tell: Callable[[Event], None]) -> None:
        self._targets, self._total, self._tell = targets, max(total, 1), tell
        self._begun = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="progress", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._end.wait(_TOLD_EVERY):
            for target in self._targets:
                if target.whole or target.failed:
                    _tell_end(target, self._tell)
                elif target.reading:
                    self._say(target, "read again", target.checked.read, target.reading)
                elif target.outlet:
                    self._say(target, "written", target.outlet.at, self._begun)

    def _say(self, target: _Target, what: str, done: int, since: float) -> None:
        text = f"{what} {progress_text(done, self._total, time.monotonic() - since)}"
        name = target.wanted.name
        self._tell(StepProgress(name, min(done / self._total, 1.0), text, name))
