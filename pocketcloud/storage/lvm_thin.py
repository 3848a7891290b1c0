"""The store of a kit on LVM: thin volumes of one pool. What is promised stands in the package's docstring.

thin_volumes.py says how a volume is written in LVM. It is sealed while it is kept or has clones, which LVM knows as its
origin; sealed ones are read-only and inactive, so that a clone of one need not wait for anybody. Live ones get their nodes
when somebody is going to open them (`activate`).

LVM takes its own lock for each command; ours comes first and spans a verb. What a kill leaves half is put right by the next
verb (`_settled`), before it looks at what is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pocketcloud.errors import HostLacks, NoSpace, NotFound, Refused
from pocketcloud.model.inventory import Volume
from pocketcloud.storage import Clone, Filler, Image, Marks, Usage
from pocketcloud.storage.ballast import extend_metadata, restore_ballast
from pocketcloud.storage.devmapper import METADATA_BLOCK, PoolMode, PoolStatus, node_name, pool_status, resume_left_suspended
from pocketcloud.storage.lvm import LogicalVolume, Lvm, complaint
from pocketcloud.storage.thin_volumes import (
    BALLAST,
    KEPT,
    MAKING,
    NAME,
    NEXT,
    POOL,
    SHIPPED,
    SPARE,
    create_words,
    mark_tags,
    named,
    path_of,
    snapshot_words,
    volume_of,
    volumes_in,
    whole_extents,
)
from pocketcloud.storage.watermarks import REFUSE_DATA, REFUSE_METADATA, allowed, percent
from pocketcloud.system import CommandFailed, Runner, run

# Made while the store is held: whoever holds it and finds one knows that its maker is dead.
_UNDER_LOCK = "lock"
_LET_GO = 10
_FULL_TEXT = re.compile(
    "insufficient free space|no space left|not enough.*space|reached threshold|free space in pool", re.IGNORECASE
)


class ThinPool:
    """The volumes of one kit's pool. `folder` is any folder that all users of the kit share; it takes the locks."""

    def __init__(self, vg: str, devices: Sequence[Path], folder: Path, run: Runner = run) -> None:
        self._vg = vg
        self._folder = folder
        self._run = run
        self._lvm = Lvm(devices, run)

    # -- queries

    def volumes(self) -> tuple[Volume, ...]:
        """See Storage.volumes. How much each occupies has to be counted (`thin_shares`), so `used` is not known here."""
        return volumes_in(self._vg, self._rows())

    def place(self, name: str) -> tuple[Path, str]:
        """See Storage.place."""
        return path_of(self._vg, volume_of(self._vg, name)), "raw"

    def explain(self, verb: str, name: str, *, source: str = "", size: int = 0) -> tuple[str, ...]:
        """See Storage.explain."""
        logical, tag = volume_of(self._vg, name), f"{NAME}={name}"
        match verb:
            case "create":
                return (self._lvm.line(*create_words(self._vg, logical, size, tag)),)
            case "clone":
                made = [self._lvm.line(*snapshot_words(self._vg, volume_of(self._vg, source), logical, tag))]
                made += [self._lvm.line("lvextend", "-L", f"{whole_extents(size)}b", f"{self._vg}/{logical}")] if size else []
                return (*made, self._lvm.line("lvchange", "-pr", f"{self._vg}/{volume_of(self._vg, source)}"))
            case "grow":
                return (self._lvm.line("lvextend", "-L", f"{whole_extents(size)}b", f"{self._vg}/{logical}"),)
            case "remove":
                return (self._lvm.line("lvremove", "-f", f"{self._vg}/{logical}"),)
            case "activate":
                return (self._lvm.line("lvchange", "-K", "-ay", f"{self._vg}/{logical}"),)
            case _:
                raise ValueError(f"the store has no verb {verb!r}")

    def usage(self) -> Usage:
        """See Storage.usage: that of the pool."""
        status, size = self._pool(self._rows())
        if status.mode is PoolMode.FAILED:
            raise Refused(f"the pool of volume group {self._vg} has failed", hint="pocketcloud kit repair")
        chunk = size // status.data_total if status.data_total else 0
        used = status.data_used * chunk
        return Usage(size, used, size - used, status.metadata_total * METADATA_BLOCK, status.metadata_used * METADATA_BLOCK)

    # -- verbs

    def create(self, name: str, size: int, fill: Filler | Image | None = None, marks: Marks | None = None) -> Volume:
        """See Storage.create. A filled one is written in place, and has no name until it is whole."""
        logical = volume_of(self._vg, name)
        with self._errors(name), self._making() as maker:
            with self.held() as rows:
                self._absent(rows, name)
                self.check_room(rows, reserve=False)
                tags = [f"{NAME}={name}", *mark_tags(marks)]
                if fill:
                    tags += [f"{MAKING}={maker}", KEPT]
                self._lvm.command(*create_words(self._vg, logical, size, *tags))
                if fill:
                    self._lvm.activate(self._vg, logical)
            if fill:
                self._fill(logical, fill, maker)
        size = whole_extents(size)
        kept = fill is not None
        return Volume(name, path_of(self._vg, logical), "raw", size, None, kept, None, marks=dict(marks or {}), kept=kept)

    def clone(self, source: str, name: str, size: int | None = None) -> Volume:
        """See Storage.clone."""
        self.clone_all([Clone(source, name, size or 0)])
        return self._volume(name)

    def clone_all(self, clones: Sequence[Clone], *, reserve: bool = False) -> None:
        """See Storage.clone_all: spares are published by one command, the rest is made by one process."""
        with self._errors(", ".join(clone.name for clone in clones)), self.held() as rows:
            ready = [clone for clone in clones if self._is_spare_of(rows, clone)]
            missing = [clone for clone in clones if clone not in ready]
            for clone in missing:
                self._absent(rows, clone.name)
            if missing:
                rows = self.check_room(rows, reserve=reserve)
                self._make(rows, missing)
            if ready:
                self._lvm.command("lvchange", "--deltag", SPARE, *(self._full(clone.name) for clone in ready))

    def prepare(self, clones: Sequence[Clone]) -> None:
        """See Storage.prepare."""
        with self._errors(", ".join(clone.name for clone in clones)), self.held() as rows:
            missing = [clone for clone in clones if not self._is_spare_of(rows, clone)]
            for clone in missing:
                self._absent(rows, clone.name)
            if missing:
                self._make(self.check_room(rows, reserve=False), missing, SPARE)

    def activate(self, *names: str) -> None:
        """See Storage.activate."""
        if all(self.place(name)[0].exists() for name in names):
            return  # only active ones have a node
        with self._errors(", ".join(names)), self.held() as rows:
            wanted = [self._existing(rows, name) for name in names]
            sleeping = [row.name for row in wanted if not (row.active and path_of(self._vg, row.name).exists())]
            if sleeping:
                self._lvm.activate(self._vg, *sleeping)

    def replace(self, name: str, source: str, size: int | None = None) -> Volume:
        """See Storage.replace. The new one is made beside the old, which then makes way; the next verb ends what was cut."""
        if name == source:
            raise Refused(f"volume {name} cannot be replaced by a clone of itself")
        logical = volume_of(self._vg, name)
        with self._errors(name), self.held() as rows:
            old = named(rows, name)
            if old:
                if old.tags & {KEPT}:
                    raise Refused(f"volume {name} is sealed and cannot be replaced")
                self._unused(rows, [old], "replaced")
                rows = self.check_room(rows, reserve=True)
                aside = volume_of(self._vg, f"{name}.next")
                self._make(rows, [Clone(source, name, size or 0)], NEXT, logical=aside)
                self._lvm.command("lvremove", "-f", f"{self._vg}/{logical}")
                self._settled(self._rows())
            else:
                self._make(self.check_room(rows, reserve=False), [Clone(source, name, size or 0)])
        return self._volume(name)

    def seal(self, name: str) -> Volume:
        """See Storage.seal: the tag is what counts; clones would make it read-only as well."""
        with self._errors(name), self.held() as rows:
            row = self._existing(rows, name)
            if row.open and row.writable and not self._let_go(row):
                raise Refused(
                    f"volume {name} is open for writing and cannot be sealed", hint="stop the machine that uses it first"
                )
            if KEPT not in row.tags:
                self._lvm.command("lvchange", "--addtag", KEPT, f"{self._vg}/{row.name}")
            if row.writable:
                if row.active:
                    self._lvm.command("lvchange", "-an", f"{self._vg}/{row.name}")
                self._lvm.command("lvchange", "-pr", f"{self._vg}/{row.name}")
        return self._volume(name)

    def grow(self, name: str, size: int) -> Volume:
        """See Storage.grow."""
        with self._errors(name), self.held() as rows:
            row, wanted = self._existing(rows, name), whole_extents(size)
            if self._sealed(rows, row):
                raise Refused(f"volume {name} is sealed and cannot be grown")
            if wanted < row.size:
                raise Refused(f"volume {name} has {row.size} bytes already; it cannot shrink to {size}")
            if wanted > row.size:
                if row.open:
                    raise Refused(f"volume {name} is open and cannot be grown", hint="stop the machine that uses it first")
                self._lvm.command("lvextend", "-L", f"{wanted}b", f"{self._vg}/{row.name}")
        return self._volume(name)

    def remove(self, *names: str) -> None:
        """See Storage.remove: all in one command, with the spares that stand on them."""
        for name in names:
            volume_of(self._vg, name)
        with self._errors(", ".join(names)), self.held() as rows:
            going = [row for row in (named(rows, name) for name in names) if row]
            if not going:
                return
            self._unused(rows, going, "removed")
            spares = [row for row in rows if SPARE in row.tags and row.origin in {gone.name for gone in going}]
            self._lvm.command("lvremove", "-f", *dict.fromkeys(f"{self._vg}/{row.name}" for row in (*spares, *going)))
            gone = {row.name for row in (*spares, *going)}
            rows = self._settled(tuple(row for row in rows if row.name not in gone))
        if all(row.name != BALLAST for row in rows):
            with contextlib.suppress(NoSpace):
                restore_ballast(self._vg, self._lvm, self._run, self._folder)

    # -- what the verbs stand on

    def _rows(self) -> tuple[LogicalVolume, ...]:
        try:
            return self._lvm.volumes(self._vg)
        except CommandFailed as failed:
            if os.geteuid():
                raise HostLacks("only root can look into a kit on LVM", hint="run the command with sudo") from failed
            raise NotFound(
                f"volume group {self._vg} is not there: {complaint(failed)}",
                hint="plug the kit in and attach it: pocketcloud kit attach",
            ) from failed

    def _full(self, name: str) -> str:
        return f"{self._vg}/{volume_of(self._vg, name)}"

    def _volume(self, name: str) -> Volume:
        return next(volume for volume in self.volumes() if volume.name == name)

    def _existing(self, rows: Iterable[LogicalVolume], name: str) -> LogicalVolume:
        volume_of(self._vg, name)
        row = named(rows, name)
        if row is None or SPARE in row.tags:
            raise NotFound(f"there is no volume {name} in volume group {self._vg}")
        return row

    def _absent(self, rows: Iterable[LogicalVolume], name: str) -> None:
        volume_of(self._vg, name)
        if named(rows, name):
            raise Refused(f"volume {name} exists already")

    def _is_spare_of(self, rows: Sequence[LogicalVolume], clone: Clone) -> bool:
        row = named(rows, clone.name)
        source = named(rows, clone.source)
        if row is None or source is None or SPARE not in row.tags:
            return False
        return row.origin == source.name and row.size >= max(whole_extents(clone.size), source.size)

    def _sealed(self, rows: Iterable[LogicalVolume], row: LogicalVolume) -> bool:
        return KEPT in row.tags or any(other.origin == row.name and not _depends_not(other) for other in rows)

    def _make(self, rows: Sequence[LogicalVolume], clones: Sequence[Clone], *tags: str, logical: str = "") -> None:
        """Make clones, all by one process, and seal what they stand on. One that has to be larger than its source is not
        whole until it is."""
        commands: list[tuple[str, ...]] = []
        for clone in clones:
            source = self._existing(rows, clone.source)
            if source.open and source.writable:
                if not self._let_go(source):
                    raise Refused(
                        f"volume {clone.source} is open for writing; {clone.name} cannot be a clone of it",
                        hint="stop the machine that uses it first",
                    )
                rows = self._rows()
            if clone.size and whole_extents(clone.size) < source.size:
                raise Refused(f"a clone of volume {clone.source} has {source.size} bytes at least, not {clone.size}")
        sources = {row.name: row for row in (self._existing(rows, clone.source) for clone in clones)}
        # Inactive first: LVM need not suspend then, and nothing can write between the clone and its seal.
        active = [f"{self._vg}/{row.name}" for row in sources.values() if row.active and not row.open]
        if active:
            commands.append(("lvchange", "-an", *active))
        for clone in clones:
            source = self._existing(rows, clone.source)
            name = logical or volume_of(self._vg, clone.name)
            larger = whole_extents(clone.size) > source.size
            unfinished = [f"{MAKING}={_UNDER_LOCK}"] if larger else []
            commands.append(
                snapshot_words(self._vg, source.name, name, f"{NAME}={clone.name}", *mark_tags(clone.marks), *tags, *unfinished)
            )
            if larger:
                commands.append(("lvextend", "-L", f"{whole_extents(clone.size)}b", f"{self._vg}/{name}"))
                commands.append(("lvchange", "--deltag", unfinished[0], f"{self._vg}/{name}"))
        writable = [f"{self._vg}/{row.name}" for row in sources.values() if row.writable]
        if writable and SPARE not in tags:
            commands.append(("lvchange", "-pr", *writable))
        self.make(commands, {logical or volume_of(self._vg, clone.name) for clone in clones})

    def make(self, commands: Sequence[tuple[str, ...]], wanted: set[str]) -> None:
        """Run commands that make volumes: a single one by itself, more in one process, which is judged by what is there."""
        if len(commands) == 1:
            self._lvm.command(*commands[0])
            return
        done = self._lvm.script(commands)
        made = {row.name for row in self._rows() if not any(tag.startswith(MAKING) for tag in row.tags)}
        if wanted - made:
            raise CommandFailed(done)

    def _unused(self, rows: Sequence[LogicalVolume], going: Sequence[LogicalVolume], done: str) -> None:
        names = {row.name for row in going}
        for row in going:
            name = row.tagged(NAME) or row.name
            standing = [
                o.tagged(NAME) or o.name for o in rows if o.origin == row.name and o.name not in names and not _depends_not(o)
            ]
            if standing:
                raise Refused(f"volume {name} cannot be {done}: {', '.join(standing)} stand{'s' * (len(standing) == 1)} on it")
            if row.open and not self._let_go(row):
                raise Refused(f"volume {name} is open and cannot be {done}", hint="stop the machine that uses it first")

    def _let_go(self, row: LogicalVolume) -> bool:
        """Whether an open volume is closed soon: udev and udisks look for a moment into every new one, and into one that was
        just closed after writing."""
        for _ in range(_LET_GO):
            time.sleep(0.1)
            now = next((r for r in self._rows() if r.name == row.name), None)
            if now is None or not now.open:
                return True
        return False

    def _fill(self, logical: str, fill: Filler | Image, maker: str) -> None:
        path = path_of(self._vg, logical)
        try:
            if isinstance(fill, Image):
                fill.convert(path, "raw", self._run)
            else:
                fill(path)
            _sync(path)
        except BaseException:
            with self.held():
                self._lvm.command("lvremove", "-f", f"{self._vg}/{logical}")
            raise
        with self.held():
            # Closed, read-only, and only then by its name.
            self._lvm.command("lvchange", "-an", f"{self._vg}/{logical}")
            self._lvm.command("lvchange", "-pr", f"{self._vg}/{logical}")
            self._lvm.command("lvchange", "--deltag", f"{MAKING}={maker}", f"{self._vg}/{logical}")

    # -- space

    def _pool(self, rows: Iterable[LogicalVolume]) -> tuple[PoolStatus, int]:
        pool = next((row for row in rows if row.name == POOL), None)
        status = pool_status(f"{node_name(self._vg, POOL)}-tpool", self._run)
        if pool is None or status is None:
            raise NotFound(f"volume group {self._vg} has no active pool", hint="pocketcloud kit attach")
        return status, pool.size

    def check_room(self, rows: tuple[LogicalVolume, ...], *, reserve: bool) -> tuple[LogicalVolume, ...]:
        """Refuse new volumes on a pool that is nearly full; for `reserve` give up what is kept back: extents for
        metadata, the ballast for data. The rows afterwards."""
        status, _ = self._pool(rows)
        why = allowed(status)
        if not why:
            return rows
        if status.mode is PoolMode.FAILED or status.mode is PoolMode.READ_ONLY or status.needs_check:
            raise Refused(f"the pool of volume group {self._vg} {why}", hint="pocketcloud kit repair")
        if not reserve:
            hint = "remove labs or bases that are not needed, then: pocketcloud kit trim"
            raise NoSpace(f"the pool of volume group {self._vg} is too full for new volumes: {why}", hint=hint)
        if percent(status.metadata_used, status.metadata_total) >= REFUSE_METADATA:
            extend_metadata(self._vg, self._lvm, self._run)
        if percent(status.data_used, status.data_total) >= REFUSE_DATA and any(row.name == BALLAST for row in rows):
            self._lvm.command("lvremove", "-f", f"{self._vg}/{BALLAST}")
        return self._rows()

    # -- one at a time, and after the interrupted

    @contextlib.contextmanager
    def held(self) -> Iterator[tuple[LogicalVolume, ...]]:
        """Hold the store against others of us; gives its rows, with what a kill left half put right."""
        handle = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            resume_left_suspended(self._vg, self._run)
            for left in self._folder.glob(".making-*"):
                self._alive(left.name.removeprefix(".making-"))
            yield self._settled(self._rows())
        finally:
            os.close(handle)

    @contextlib.contextmanager
    def _making(self) -> Iterator[str]:
        """A maker's token, whose file is locked for as long as the maker lives."""
        token = secrets.token_hex(4)
        path = self._folder / f".making-{token}"
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield token
        finally:
            path.unlink(missing_ok=True)
            os.close(handle)

    def _alive(self, token: str) -> bool:
        """Whether that maker lives; a dead one's file is removed."""
        path = self._folder / f".making-{token}"
        try:
            handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        path.unlink(missing_ok=True)
        return False

    def _settled(self, rows: tuple[LogicalVolume, ...]) -> tuple[LogicalVolume, ...]:
        """Put right what an interruption left: remove what nobody makes any more, end a replacement, seal and open again."""
        ours = [row for row in rows if row.thin and row.tagged(NAME)]
        # One that is still open (an installer's machine outlives its killed maker by a moment) has to wait for a later verb.
        dead = [row for row in ours if (token := row.tagged(MAKING)) and not self._alive(token) and not row.open]
        standing = {row.tagged(NAME) for row in ours if NEXT not in row.tags}
        dead += [row for row in ours if NEXT in row.tags and row.tagged(NAME) in standing and row not in dead]
        changed = False
        if dead:
            self._lvm.command("lvremove", "-f", *(f"{self._vg}/{row.name}" for row in dead))
            changed = True
        for row in ours:
            if NEXT in row.tags and row not in dead:
                name = volume_of(self._vg, row.tagged(NAME) or "")
                if row.name != name:
                    self._lvm.command("lvrename", self._vg, row.name, name)
                self._lvm.command("lvchange", "--deltag", NEXT, f"{self._vg}/{name}")
                changed = True
        rows = self._rows() if changed else rows
        ours = [row for row in rows if row.thin and row.tagged(NAME) and MAKING not in {t.partition("=")[0] for t in row.tags}]
        open_again = [row for row in ours if not row.writable and not self._sealed(rows, row)]
        seal = [row for row in ours if row.writable and not row.open and self._sealed(rows, row)]
        for mode, found in (("-prw", open_again), ("-pr", seal)):
            if found:
                self._lvm.command("lvchange", mode, *(f"{self._vg}/{row.name}" for row in found))
        return self._rows() if open_again or seal else rows

    @contextlib.contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """Name the situation: a full pool, a kit that is gone."""
        try:
            yield
        except CommandFailed as failed:
            if _FULL_TEXT.search(failed.message):
                raise NoSpace(
                    f"{name} does not fit: volume group {self._vg} is full: {complaint(failed)}",
                    hint="remove labs or bases that are not needed",
                ) from failed
            raise


def _depends_not(row: LogicalVolume) -> bool:
    """Whether it is no matter to it what becomes of its origin."""
    return SPARE in row.tags or row.tagged(SHIPPED) is not None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
