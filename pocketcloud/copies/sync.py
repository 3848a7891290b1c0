"""`kit sync`: older copies are brought to their master's state by what differs.

A copy is as it was until LVM takes the new text of its volume group, in one step: whatever is cut off, killed or pulled before
leaves it so, and the same command again begins anew.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from pocketcloud.copies.pieces import LARGEST, Piece, cut, unit_of
from pocketcloud.copies.pouring import DIGEST, Checked, Digests, Outlet, check, pour
from pocketcloud.copies.shipped import Sums, read_all, read_sums, sums_of
from pocketcloud.copies.source import Source, source_of, write_content
from pocketcloud.copies.target import MetadataImages, Written, layout_of_copy, put_image, sector_of, state_image
from pocketcloud.copies.up_to_date import Renewed, Table, looked_into, older_copy, renewed
from pocketcloud.errors import NoSpace, PocketcloudError, Refused
from pocketcloud.events import Event, StepProgress
from pocketcloud.host.disks import read_block_devices
from pocketcloud.kit.interlocks import claimed
from pocketcloud.kit.manifest import write_manifest
from pocketcloud.kit.plugged import Plugged, kit_on
from pocketcloud.model.kit import Kit
from pocketcloud.model.sizes import progress_text, size_text
from pocketcloud.scratch import scratch
from pocketcloud.storage.lvm import Lvm, complaint
from pocketcloud.system import CommandFailed, Runner

_BLKFLSBUF = 0x1261
# Of what a copy has already so many chunks are read, by chance, to see that it has them.
_SAMPLE = 256
_TOLD_EVERY = 0.5


class Whole(Refused):
    """A copy cannot be brought up to date by what differs: it has to be copied whole."""


@dataclass(frozen=True, slots=True)
class Synced:
    """What became of a copy: `fault` is empty where it is what the master is now; `whole` says why it would have to be copied
    whole. In bytes: `sent` is what it was sent of the pool's content, `known` what it had of that already, `beside` the pool's
    map and the kit's files, `verified` what was read again."""

    kit: str
    id: str
    device: Path
    generation: str = ""
    sent: int = 0
    known: int = 0
    beside: int = 0
    verified: int = 0
    seconds: float = 0.0
    kept: tuple[str, ...] = ()
    fault: str = ""
    whole: bool = False


@dataclass(slots=True)
class _Target:
    """A copy on its way. What was sent is `checked`, what it had already is `sampled`; `to_read` bytes are read for the two
    since `reading` (a monotonic time in seconds; 0: not yet)."""

    copy: Plugged
    since: float
    renewed: Renewed | None = None
    outlet: Outlet | None = None
    metadata: Future[Path] | None = None
    images: Written = field(default_factory=lambda: Written((), (), ()))
    checked: Checked = field(default_factory=Checked)
    sampled: Checked = field(default_factory=Checked)
    to_read: int = 0
    reading: float = 0.0
    files: Path | None = None
    fault: str = ""
    whole: bool = False

    @property
    def failed(self) -> str:
        return self.fault or (self.outlet.fault if self.outlet else "")


def sync(
    kit: Kit,
    copies: Sequence[Plugged],
    run: Runner,
    *,
    keep_labs: bool,
    thorough: bool,
    now: str,
    stop: threading.Event,
    tell: Callable[[Event], None],
) -> tuple[Synced, ...]:
    """Bring plugged copies that are not attached to the state of the attached kit, whose labs are down; what became of each.

    With `keep_labs` the labs on a copy stay as they are there. `thorough` reads all that a copy has already, in place of a
    sample. `tell` gets how far each copy is, with its rate. The caller holds what makes kits, and the kit's labs and bases.
    Raises Refused, NoSpace and the like where that concerns the master."""
    with source_of(kit, run, now=now) as source:
        return sync_of(source, copies, run, keep_labs=keep_labs, thorough=thorough, now=now, stop=stop, tell=tell)


def sync_of(
    source: Source,
    copies: Sequence[Plugged],
    run: Runner,
    *,
    keep_labs: bool,
    thorough: bool,
    now: str,
    stop: threading.Event,
    tell: Callable[[Event], None],
) -> tuple[Synced, ...]:
    """Bring copies to the state of a source, as `sync` does; copies may be made of it at the same time."""
    targets = [_Target(copy, time.monotonic()) for copy in copies]
    with ExitStack() as held:
        master = Master(source)
        for target in targets:
            _tried(target, lambda t: _prepare(t, master, held, run, keep_labs=keep_labs))
            _check_whole(target, source, run)
        images = held.enter_context(MetadataImages(run))
        for group in _together(targets):
            for target in group:
                if target.renewed:
                    target.metadata = images.begin(target.renewed.pool, target.renewed.change.metadata)
            _renew(master, group, run, now=now, thorough=thorough, stop=stop, tell=tell)
    for target in targets:
        _tried(target, lambda t: _take(t, run))
    unit = unit_of(source.pool.chunk)
    return tuple(_told(target, source.shipped.generation, unit) for target in targets)


class Master:
    """The source, and what it says of what it shipped before."""

    def __init__(self, source: Source) -> None:
        self.source = source
        with source.tree:
            self.shipped = {told.generation: told for told in read_all(source.kit.path) if told.kit == source.kit.id}
            self.sums = {generation: read_sums(source.kit.path, generation) for generation in self.shipped}
        self.noted = False


def _tried(target: _Target, work: Callable[[_Target], None]) -> None:
    if target.failed:
        return
    try:
        work(target)
    except InterruptedError:
        raise
    except Whole as error:
        target.fault, target.whole = error.message, True
    except PocketcloudError as error:
        target.fault = error.message
    except OSError as error:
        target.fault = error.strerror or str(error)


def _prepare(target: _Target, master: Master, held: ExitStack, run: Runner, *, keep_labs: bool) -> None:
    copy, source = target.copy, master.source
    manifest, older = older_copy(copy, source.kit.id, run)
    if manifest.derived_from != source.kit.id:
        raise Refused(f"kit {copy.name} on {copy.device} is no copy of kit {source.kit.name}")
    if older is None:
        raise Whole(f"kit {copy.name} does not tell what was shipped to it")
    before = older.shipped.generation
    if before not in master.shipped or master.sums[before] is None:
        raise Whole(f"kit {source.kit.name} no longer has what it shipped to {copy.name} on {older.shipped.made}")
    kept = older.labs if keep_labs else ()
    if kept and older.manifest.dirty:
        raise Refused(
            f"kit {copy.name} was pulled without `kit detach`, and its labs are to be kept",
            hint=f"pocketcloud kit attach {copy.device}, then pocketcloud kit detach {copy.name}",
        )
    try:
        target.renewed = renewed(source, master.shipped[before], older, kept)
    except NoSpace as error:
        raise Whole(error.message) from error
    list(_known_sums(master, target))
    change = target.renewed.change
    if source.files > change.state // 10 * 9 or source.used_metadata > change.metadata:
        raise Whole(f"the files or the map of kit {source.kit.name} have outgrown the room that kit {copy.name} has for them")
    if kept:
        target.files = held.enter_context(scratch(run))
        with looked_into(copy, run) as tree:
            for lab in kept:
                _copy_lab(lab, tree, target.files, run)
    carrier = read_block_devices(run=run).get(copy.device)
    if carrier is None:
        raise Refused(f"{copy.device} is not there any more", hint="plug it in again")
    held.enter_context(claimed(carrier, lambda: read_block_devices(run=run)))
    handle = os.open(copy.device, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    held.callback(_close, target, handle)
    target.outlet = Outlet(copy.name, handle, ())


def _check_whole(target: _Target, source: Source, run: Runner) -> None:
    """What would have to be copied whole and cannot be stays as it is."""
    if not target.whole:
        return
    try:
        carrier = read_block_devices(run=run).get(target.copy.device)
        if carrier is None:
            raise Refused("it is not there any more")
        if source.kit.manifest.sector_size not in (0, sector_of(target.copy.device)):
            raise Refused("its disk has other sectors")
        layout_of_copy(source, carrier.size, run)
    except PocketcloudError as error:
        target.fault, target.whole = f"{target.fault}; and it cannot be copied whole: {error.message}", False


def _copy_lab(lab: str, tree: Path, into: Path, run: Runner) -> None:
    """A lab's files: its folder, and the UEFI variables of its machines."""
    for folder, found in (("labs", [tree / "labs" / lab]), ("nvram", list((tree / "nvram").glob(f"{lab}.*")))):
        (into / folder).mkdir(exist_ok=True)
        for path in found:
            if path.exists():
                run(["cp", "--archive", path, into / folder])


def _close(target: _Target, handle: int) -> None:
    if target.outlet is None or not target.outlet.stuck:
        os.close(handle)


def _together(targets: Sequence[_Target]) -> list[list[_Target]]:
    """Those that get the same, so that it is read once for all of them."""
    groups: dict[tuple[tuple[int, int], ...], list[_Target]] = {}
    for target in targets:
        if target.renewed and not target.failed:
            groups.setdefault(tuple(target.renewed.new), []).append(target)
    return list(groups.values())


def _renew(
    master: Master,
    group: Sequence[_Target],
    run: Runner,
    *,
    now: str,
    thorough: bool,
    stop: threading.Event,
    tell: Callable[[Event], None],
) -> None:
    """Send a group of copies what they do not have, and all that is to be in its place before LVM may take it."""
    source = master.source
    chunk, unit = source.pool.chunk, unit_of(source.pool.chunk)
    tables = {id(target): target.renewed.new_table() for target in group if target.renewed}
    # In no copy may a piece lie in two places.
    cuts = sorted({first for table in tables.values() for first, _, _ in table})
    pieces = tuple(cut(_split(group[0].renewed.new if group[0].renewed else [], cuts), chunk))
    for target in group:
        if target.outlet and target.renewed:
            data = target.renewed.change.places.data
            target.outlet.aims = [placed(tables[id(target)], piece.begin, chunk, data) for piece in pieces]
    total = sum(piece.length for piece in pieces)

    begun = time.monotonic()

    def tick() -> None:
        for target in group:
            if target.outlet and not target.failed:
                _say(target, "sent", target.outlet.written, total, begun, tell)

    outlets = [target.outlet for target in group if target.outlet]
    digests = pour(source.handle, pieces, outlets, unit=unit, stop=stop, tick=tick)
    if not master.noted and all(digests):  # else all have failed before the end was read
        sums = _sums_of_master(master, group[0], pieces, digests)
        with source.tree:
            write_content(source, sums)
        master.noted = True
    _complete_all(
        group, lambda t: _complete(t, master, pieces, digests, run, now=now, thorough=thorough, stop=stop), stop=stop, tell=tell
    )


def _complete_all(
    group: Sequence[_Target], complete: Callable[[_Target], None], *, stop: threading.Event, tell: Callable[[Event], None]
) -> None:
    """Complete each copy in a thread of its own: no disk waits for another one to be read."""
    with ThreadPoolExecutor(len(group), "sync") as pool:
        works = [pool.submit(_tried, target, complete) for target in group]
        try:
            while wait(works, _TOLD_EVERY).not_done:
                for target in group:
                    if target.reading and not target.failed:
                        done = target.checked.read + target.sampled.read
                        _say(target, "read again", done, target.to_read, target.reading, tell)
        except BaseException:
            stop.set()
            raise
    for work in works:
        work.result()


def _say(target: _Target, what: str, done: int, total: int, since: float, tell: Callable[[Event], None]) -> None:
    name, text = target.copy.name, f"{what} {progress_text(done, total, time.monotonic() - since)}"
    tell(StepProgress(name, min(done / max(total, 1), 1.0), text, name))


def _split(runs: Sequence[tuple[int, int]], cuts: Sequence[int]) -> Iterator[tuple[int, int]]:
    for first, length in runs:
        inner = cuts[bisect_right(cuts, first) : bisect_left(cuts, first + length)]
        ends = [*inner, first + length]
        for begin, end in zip([first, *inner], ends, strict=True):
            yield begin, end - begin


def placed(table: Table, begin: int, chunk: int, data: int) -> int:
    """Where in a copy, whose pool's data begins at byte `data`, lies what begins at a byte of the master's pool."""
    first, length, there = table[bisect_right(table, (begin // chunk, 1 << 62, 0)) - 1]
    if not first <= begin // chunk < first + length:
        raise ValueError(f"byte {begin} has no place")
    return data + (there - first) * chunk + begin


def _sums_of_master(master: Master, target: _Target, pieces: Sequence[Piece], digests: Digests) -> Sums:
    parts = list(_known_sums(master, target)) + [
        (piece.begin // unit_of(master.source.pool.chunk), told) for piece, told in zip(pieces, digests, strict=True)
    ]
    return sums_of(parts)


def _known_sums(master: Master, target: _Target) -> Iterator[tuple[int, bytes]]:
    """The digests of what a copy has already, by units of the master's. Raises Whole where they are missing."""
    if target.renewed is None:
        return
    sums = master.sums[target.renewed.older.shipped.generation] or Sums(())
    units = master.source.pool.chunk // unit_of(master.source.pool.chunk)
    for first, length, _ in target.renewed.in_use():
        told = sums.part(first * units, length * units)
        if len(told) != length * units * DIGEST:
            raise Whole(f"kit {master.source.kit.name} no longer knows the digests of what it shipped to {target.copy.name}")
        yield first * units, told


def _complete(
    target: _Target,
    master: Master,
    pieces: Sequence[Piece],
    digests: Digests,
    run: Runner,
    *,
    now: str,
    thorough: bool,
    stop: threading.Event,
) -> None:
    """Put pool's metadata and `state` beside what is there, and read all again."""
    outlet, what, metadata, source = target.outlet, target.renewed, target.metadata, master.source
    if outlet is None or what is None or metadata is None:
        return
    unit, places = unit_of(source.pool.chunk), what.change.places
    target.images += put_image(metadata.result(), outlet.handle, places.metadata, unit=unit, holes=False)
    known = list(_known_sums(master, target))
    parts = [((aim - places.data) // unit, told) for aim, told in zip(outlet.aims, digests, strict=True)]
    units = source.pool.chunk // unit
    parts += [(there * units, told) for (_, told), (_, _, there) in zip(known, what.in_use(), strict=True)]
    with state_image(source, what.change.state, sums_of(parts), _own_tree(target, run, now), run) as image:
        target.images += put_image(image, outlet.handle, places.state, unit=unit, holes=True)
    outlet.written += sum(piece.length for piece in target.images.pieces)
    os.fdatasync(outlet.handle)
    # What the page cache has is not what the disk has.
    with suppress(OSError):
        fcntl.ioctl(outlet.handle, _BLKFLSBUF)
    images = target.images
    wanted = [*pieces, *images.pieces], [*outlet.aims, *images.aims], [*digests, *images.digests]
    some = list(_some(target, known, unit, units, thorough=thorough))
    aims = [places.data + there * unit for there, _ in some]
    held = [Piece(0, len(told) // DIGEST * unit) for _, told in some]
    target.to_read = sum(piece.length for piece in [*wanted[0], *held])
    target.reading = time.monotonic()
    check(outlet.handle, *wanted, target.checked, unit=unit, stop=stop)
    _judge(target.checked, "read again are not what was written: the disk is failing, or smaller than it says")
    check(outlet.handle, held, aims, [told for _, told in some], target.sampled, unit=unit, stop=stop)
    _judge(target.sampled, "are not what was shipped: copy it anew")
    if stop.is_set():
        raise InterruptedError


def _some(
    target: _Target, known: Sequence[tuple[int, bytes]], unit: int, units: int, *, thorough: bool
) -> Iterator[tuple[int, bytes]]:
    """Of what a copy has already, what is to be looked at: (first unit of the copy's, digests), all of it or some by chance."""
    table = target.renewed.in_use() if target.renewed else []
    most = LARGEST // unit * DIGEST
    parts = [(there * units, told) for (_, told), (_, _, there) in zip(known, table, strict=True)]
    if thorough:
        for there, told in parts:
            for at in range(0, len(told), most):
                yield there + at // DIGEST, told[at : at + most]
        return
    if not parts:
        return
    weights = [len(told) for _, told in parts]
    for there, told in random.choices(parts, weights, k=_SAMPLE):  # noqa: S311 - guards nothing
        at = random.randrange(len(told) // DIGEST)  # noqa: S311 - guards nothing
        yield there + at, told[at * DIGEST : (at + 1) * DIGEST]


def _judge(checked: Checked, what: str) -> None:
    if checked.fault:
        raise Refused(checked.fault)
    if checked.wrong:
        bad = sum(length for _, length in checked.wrong)
        raise Refused(f"{size_text(bad)}, first at byte {checked.wrong[0][0]}, {what}")


def _own_tree(target: _Target, run: Runner, now: str) -> Callable[[Path], None]:
    """What makes the copied tree of the master that of the copy: its manifest, what copies it made, and labs that are kept."""

    def finish(tree: Path) -> None:
        if target.renewed is None:
            return
        older = target.renewed.older
        write_manifest(tree, replace(older.manifest, dirty=False, last_host="", detached=now))
        for lab in target.renewed.kept:
            shutil.rmtree(tree / "labs" / lab, ignore_errors=True)
            for path in (tree / "nvram").glob(f"{lab}.*"):
                path.unlink()
        if target.files:
            run(["cp", "--archive", f"{target.files}/.", tree])

    return finish


def _take(target: _Target, run: Runner) -> None:
    """Have LVM take the new text, unless the kit is another one now."""
    copy = target.copy
    there = kit_on(copy.device, run)
    if target.renewed is None:
        return
    if (there.group.uuid, there.group.seqno) != (copy.group.uuid, copy.group.seqno):
        raise Refused(f"kit {copy.name} on {copy.device} was changed meanwhile", hint="run the same command again")
    lvm = Lvm([copy.device], run)
    with scratch(run) as aside:
        text = Path(aside, "group")
        text.write_text(target.renewed.change.text)
        try:
            lvm.command("vgcfgrestore", "--force", "-f", text, copy.group.name)
            lvm.command("vgck", copy.group.name)
        except CommandFailed as failed:
            raise Refused(f"LVM does not take what {copy.device} is to be: {complaint(failed)}", hint="see dmesg") from failed


def _told(target: _Target, generation: str, unit: int) -> Synced:
    what, outlet = target.renewed, target.outlet
    known = sum(length for _, length, _ in what.in_use()) if what else 0
    beside = sum(piece.length for piece in target.images.pieces)
    return Synced(
        kit=target.copy.name,
        id=target.copy.id,
        device=target.copy.device,
        generation="" if target.failed else generation,
        sent=outlet.written - beside if outlet else 0,
        beside=beside,
        known=known * (what.pool.chunk if what else unit),
        verified=target.checked.read + target.sampled.read,
        seconds=time.monotonic() - target.since,
        kept=what.kept if what else (),
        fault=target.failed,
        whole=target.whole,
    )
