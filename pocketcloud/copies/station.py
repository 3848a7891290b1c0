"""The production line of `kit station`: disks are plugged in, become copies of the master, are switched off, and are pulled.

Disks that come within a few seconds of each other are one batch, which is poured together, so that the master is read once for
all of them; who comes later is in the next, which goes on beside it. More than a few batches at once would only have the
master's disk read in more places at a time. The master is taken once, for the whole run: all copies are of one moment.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from pocketcloud.copies.candidates import Candidate, Kind, judged, made_way
from pocketcloud.copies.clone import Copied, Wanted, clone_of, entry_of
from pocketcloud.copies.ledger import CopyEntry, add_copies, next_names, read_ledger
from pocketcloud.copies.source import Source
from pocketcloud.copies.sync import Synced, sync_of
from pocketcloud.errors import PocketcloudError
from pocketcloud.events import Event, Note, StepDone, StepFailed, StepProgress, StepStarted
from pocketcloud.host.disks import read_block_devices
from pocketcloud.host.plugs import Plug, Watch, plugged_disks, settled
from pocketcloud.host.unplugging import switch_off
from pocketcloud.kit.attached import Places, attached_kits
from pocketcloud.kit.plugged import kit_on, plugged_kits
from pocketcloud.model.disk import BlockDevice
from pocketcloud.model.names import Name
from pocketcloud.system import CommandFailed, Runner

T = TypeVar("T")
_BATCHES = 3
_GATHERED_WITHIN = 3.0
_LOOKED_EVERY = 1.0


@dataclass(frozen=True, slots=True)
class Orders:
    """How a station works: who may be written to, the time as ISO 8601 in UTC, where its events and its records (for a log) go,
    whether disks are switched off, and after how many copies it ends by itself (0: never)."""

    allowed: Callable[[BlockDevice], bool]
    now: Callable[[], str]
    tell: Callable[[Event], None]
    record: Callable[[Mapping[str, object]], None]
    power_off: bool = True
    count: int = 0
    noted_every: int = 1 << 30


@dataclass(slots=True)
class _Disk:
    """A disk on the line."""

    plug: Plug
    device: BlockDevice
    candidate: Candidate
    name: Name | None = None
    failed: bool = False

    @property
    def port(self) -> str:
        """Where it is plugged in, as short as it can be told."""
        return place_of(self.device)


def place_of(device: BlockDevice) -> str:
    """Where a disk is plugged in, for people: the USB port as the kernel names it (2-1.3), else what udev or the kernel say."""
    return device.usb.disk.name if device.usb else device.port or device.name


@dataclass(slots=True)
class Tally:
    """What a station has done: whole copies, the disks that failed and were not done since (by their copies' names), and the
    copies that were on their way when it ended."""

    done: list[Copied] = field(default_factory=list)
    failed: dict[str, Copied] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)


class Station:
    """Watches the ports. The caller holds what makes kits, and the master's labs and bases; `stop` ends it cleanly. `tally` is
    what it has done, also where `work` raises."""

    def __init__(self, source: Source, places: Places, run: Runner, orders: Orders, stop: threading.Event) -> None:
        self._source, self._places, self._run, self._orders, self._stop = source, places, run, orders, stop
        self.tally = Tally()
        self._known: frozenset[Plug] = frozenset()
        self._waiting: list[_Disk] = []
        self._since = 0.0
        self._running: dict[Future[None], Sequence[_Disk]] = {}
        self._given: set[str] = set()
        self._lock = threading.Lock()

    def work(self) -> Tally:
        """Work until `stop` is set or as many copies are done as were ordered. Raises Refused if the master cannot be read any
        more; then, too, what was on its way is an unfinished copy."""
        watch = Watch()
        self._say("the station watches: plug disks in; Ctrl-C ends it")
        with ThreadPoolExecutor(_BATCHES, thread_name_prefix="batch") as pool:
            try:
                while not self._stop.is_set():
                    self._look()
                    self._reap()
                    self._begin(pool)
                    if self._orders.count and not self._running and len(self.tally.done) >= self._orders.count:
                        break
                    watch.wait(_LOOKED_EVERY)
            finally:
                self._stop.set()  # those on their way end, too
        self._reap()
        return self.tally

    # -- looking

    def _look(self) -> None:
        now = plugged_disks()
        gone, new = self._known - now, now - self._known
        self._waiting = [disk for disk in self._waiting if disk.plug not in gone]
        if new:
            settled(self._run)
            try:
                devices = read_block_devices(run=self._run)
            except CommandFailed:
                return  # a disk went while it was looked at: again in a moment
            for plug in sorted(new, key=lambda plug: plug.name):
                device = devices.get(plug.name)
                if device is None or device.diskseq != plug.sequence:
                    now -= {plug}  # it came or went meanwhile: again in a moment
                elif device.kind == "disk" and self._orders.allowed(device):
                    self._meet(_Disk(plug, device, judged(self._source, device.path, self._places, self._run)))
        self._known = now

    def _meet(self, disk: _Disk) -> None:
        """Say what a new disk is to us."""
        candidate = disk.candidate
        told = f"port {disk.port}: {self._described(disk)}"
        self._record("seen", disk, kind=str(candidate.kind), why=candidate.why, copy=candidate.name)
        match candidate.kind:
            case Kind.FOREIGN:
                self._say(f"{told} is left alone: {candidate.why}", warn=True)
            case Kind.DONE:
                self._enter(disk)
                self._say(f"{told} is {candidate.name}, which is done: pull it")
                self._switch_off(disk)
            case _:
                for line in self._seen_before(disk):
                    self._say(f"{told} {line}", warn=True)
                self._waiting.append(disk)
                self._since = time.monotonic()

    def _enter(self, disk: _Disk) -> None:
        """Have a whole copy on the master's list, as one may be that was killed before it was entered."""
        device, candidate, kit = disk.device, disk.candidate, self._source.kit
        with self._source.tree:
            if any(entry.id == candidate.id for entry in read_ledger(kit).copies):
                return
        generation = self._source.shipped.generation
        name, when = Name.parse(candidate.name), self._orders.now()
        self._list(CopyEntry(name, candidate.id, device.serial, when, "", generation, port=device.port, size=device.size))

    def _list(self, entry: CopyEntry) -> None:
        kit = self._source.kit
        try:
            with self._source.tree:
                add_copies(kit, [entry])
        except (PocketcloudError, OSError) as error:
            # The copy is no worse for that.
            self._say(f"{entry.name} is whole, and not on the list of kit {kit.name}: {error}", warn=True)

    def _described(self, disk: _Disk) -> str:
        return f"{disk.device.path} ({disk.device.model or 'disk'}, {disk.device.serial or 'no serial'})"

    def _seen_before(self, disk: _Disk) -> list[str]:
        """What to say of a disk whose serial is not only its own."""
        serial = disk.device.serial
        if not serial or disk.candidate.kind is not Kind.BLANK:
            return []
        busy = [other for other in (*self._waiting, *itertools.chain(*self._running.values())) if other.device.serial == serial]
        if busy:
            return [f"has the serial of the disk in port {busy[0].port}: they are told apart by their ports"]
        made = [one for one in read_ledger(self._source.kit).copies if one.serial == serial]
        return [f"has the serial of {made[-1].name}, which was done, and is blank: wiped since, or another disk"] if made else []

    # -- batches

    def _begin(self, pool: ThreadPoolExecutor) -> None:
        """Start a batch, when nobody has come for a moment."""
        ready = self._waiting and time.monotonic() - self._since >= _GATHERED_WITHIN and len(self._running) < _BATCHES
        if not ready:
            return
        old = [disk for disk in self._waiting if disk.candidate.kind is Kind.OLD]
        # What only lacks a part does not wait for what is written whole.
        batch = old or self._waiting
        if self._orders.count:
            busy = sum(not disk.failed for disk in itertools.chain(*self._running.values()))
            batch = batch[: max(0, self._orders.count - len(self.tally.done) - busy)]
        if not batch:
            return
        self._waiting = [disk for disk in self._waiting if disk not in batch]
        self._name(batch)
        for disk in batch:
            self._record("begun", disk, kind=str(disk.candidate.kind), copy=str(disk.name))
        self._running[pool.submit(self._sync if old else self._copy, batch)] = batch

    def _name(self, batch: Sequence[_Disk]) -> None:
        known = {str(entry.name): entry for entry in read_ledger(self._source.kit).copies}
        plugged = {kit.name for kit in plugged_kits(self._run)} | {str(kit.name) for kit in attached_kits(self._places)}
        for disk in batch:
            # One that was pulled and put back may have its name in a batch that goes on without it.
            name, entry = disk.candidate.name, known.get(disk.candidate.name)
            others_name = entry and entry.id != disk.candidate.id and entry.serial != disk.device.serial
            twice = any(str(other.name) == name for other in batch)
            disk.name = Name.parse(name) if name and not others_name and not twice else None
        others = [disk for disk in batch if disk.name is None]
        # A name that was given stays given: its disk may have been pulled, and come back.
        taken = {*self._given, *plugged, *self.tally.failed, *(disk.candidate.name for disk in batch)}
        with self._source.tree:
            names = next_names(self._source.kit, len(others), taken)
        for disk, name in zip(others, names, strict=True):
            disk.name = name
        self._given |= {str(disk.name) for disk in batch}

    def _copy(self, batch: Sequence[_Disk]) -> None:
        """In a thread: copy to the disks of a batch, and switch off what is whole."""
        ready = [(disk, wanted) for disk in batch if (wanted := self._prepared(disk))]
        disks = {wanted.name: disk for disk, wanted in ready}
        done = clone_of(
            self._source,
            [wanted for _, wanted in ready],
            self._places,
            self._run,
            now=self._orders.now(),
            stop=self._stop,
            tell=lambda event: self._pass_on(event, batch),
            made=lambda copied: self._ended(disks[copied.kit], copied),
            noted_every=self._orders.noted_every,
        )
        for copied in done:
            if copied.fault:
                self._ended(disks[copied.kit], copied)

    def _sync(self, batch: Sequence[_Disk]) -> None:
        """In a thread: bring old copies to the master's state; where that cannot be done by what differs, they are made anew."""
        found = [(disk, self._tried(disk, partial(kit_on, disk.device.path, self._run))) for disk in batch]
        copies = [(disk, copy) for disk, copy in found if copy is not None]

        done = sync_of(
            self._source,
            [copy for _, copy in copies],
            self._run,
            keep_labs=False,
            thorough=False,
            now=self._orders.now(),
            stop=self._stop,
            tell=lambda event: self._pass_on(event, batch),
        )
        if self._stop.is_set() and any(each.fault for each in done):
            raise InterruptedError
        whole = []
        for (disk, _), each in zip(copies, done, strict=True):
            if each.whole:
                whole.append(disk)
                continue
            if each.fault:
                self._say_failed(disk, each.fault)
            self._ended(disk, self._copied(disk, each))
        if whole:
            self._copy(whole)

    def _copied(self, disk: _Disk, synced: Synced) -> Copied:
        device = disk.device
        return Copied(
            Name.parse(synced.kit), device.path, self._described(disk), device.serial, device.port, synced.id,
            written=synced.sent + synced.beside, verified=synced.verified, seconds=synced.seconds, fault=synced.fault,
            generation=synced.generation, size=device.size,
        )  # fmt: skip

    def _prepared(self, disk: _Disk) -> Wanted | None:
        """What is to be copied there; None for a disk that does not let go of what is on it, which is told."""
        chosen = disk.candidate.chosen or self._tried(disk, lambda: made_way(disk.candidate, self._places, self._run))
        return Wanted(chosen, self._name_of(disk)) if chosen else None

    def _tried(self, disk: _Disk, work: Callable[[], T]) -> T | None:
        """What some work on a disk gives; None where it fails, which is told."""
        try:
            return work()
        except (PocketcloudError, OSError) as error:
            fault = error.message if isinstance(error, PocketcloudError) else str(error)
            self._say_failed(disk, fault)
            device = disk.device
            told = self._described(disk)
            self._ended(disk, Copied(self._name_of(disk), device.path, told, device.serial, device.port, fault=fault))
            return None

    def _name_of(self, disk: _Disk) -> Name:
        if disk.name is None:
            raise ValueError("a disk on its way has a name")
        return disk.name

    def _pass_on(self, event: Event, batch: Sequence[_Disk]) -> None:
        """Tell what happens to a disk, whose row is called by its port, too; a fault at once, as others may go on for long."""
        disk = next((disk for disk in batch if str(disk.name) == getattr(event, "id", None)), None)
        match event:
            case StepStarted() | StepProgress() | StepDone() | StepFailed() if disk is not None:
                title = f"port {disk.port}: {event.id}"
                self._orders.tell(replace(event, id=title, machine=title if event.machine else ""))
                if isinstance(event, StepFailed):
                    self._say_failed(disk, event.message)
            case _:
                self._orders.tell(event)

    def _say_failed(self, disk: _Disk, fault: str) -> None:
        disk.failed = True
        self._say(f"{disk.name} FAILED on port {disk.port}, {self._described(disk)}: {fault}", warn=True)

    def _ended(self, disk: _Disk, copied: Copied) -> None:
        told = {
            "copy": str(copied.kit),
            "written": copied.written,
            "verified": copied.verified,
            "seconds": round(copied.seconds, 1),
        }
        if copied.fault:
            with self._lock:
                if all(one.kit != copied.kit for one in self.tally.done):
                    self.tally.failed[str(copied.kit)] = copied
            self._record("failed", disk, **told, fault=copied.fault)
            return
        self._list(entry_of(copied, self._orders.now()))
        with self._lock:
            self.tally.done.append(copied)
            failed = self.tally.failed
            # Serials are shared by some disks, ports by those that come after each other.
            place = (copied.serial, copied.port)
            again = [name for name, one in failed.items() if name == copied.kit or (one.serial, one.port) == place]
            for name in again:
                del failed[name]
        self._record("done", disk, **told, id=copied.id)
        off = self._switch_off(disk)
        self._say(
            f"{copied.kit} done: pull port {disk.port}, label it {copied.kit}" + ("" if off else " (it is not switched off)")
        )

    def _switch_off(self, disk: _Disk) -> bool:
        # The name may be another disk's by now.
        return self._orders.power_off and disk.plug in plugged_disks() and switch_off(disk.plug.name, self._run)

    def _reap(self) -> None:
        for future in [future for future in self._running if future.done()]:
            batch = self._running.pop(future)
            try:
                future.result()
            except InterruptedError:
                self.tally.unfinished += [str(disk.name) for disk in batch if self._is_open(disk)]
                for disk in batch:
                    self._record("interrupted", disk, copy=str(disk.name))

    def _is_open(self, disk: _Disk) -> bool:
        return str(disk.name) not in self.tally.failed and all(one.kit != disk.name for one in self.tally.done)

    # -- telling

    def _say(self, text: str, *, warn: bool = False) -> None:
        self._orders.tell(Note(text, warn))

    def _record(self, event: str, disk: _Disk, **more: object) -> None:
        facts = {"device": str(disk.device.path), "serial": disk.device.serial, "wwn": disk.device.wwn, "port": disk.device.port}
        self._orders.record({"time": self._orders.now(), "event": event, **facts, "size": disk.device.size, **more})
