"""The store of a directory kit: one qcow2 file per volume in one folder. What is promised stands in the package's docstring.

`NAME.qcow2` is a volume; without write permission it is sealed: for good (0444), or for as long as others stand on it
(01444: the sticky bit says nothing to the kernel on a file, and archives keep it). A clone is an overlay that names its
backing file without a path, so the folder can be copied or moved. What is being made is `.NAME.RANDOM.partial`, locked
(flock) by its maker for as long as that lives: what has no maker any more is swept by the next one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shlex
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from pocketcloud.errors import NoSpace, NotFound, Refused
from pocketcloud.files import sync_folder
from pocketcloud.model.inventory import Volume
from pocketcloud.storage import Clone, Filler, Image, Marks, Usage
from pocketcloud.storage.image_locks import is_open, is_written
from pocketcloud.storage.qcow2_header import NotQcow2, read_header
from pocketcloud.system import CommandFailed, Runner, run

SUFFIX = ".qcow2"
_PARTIAL = ".partial"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*(\.[a-z0-9][a-z0-9_-]*)*")
_LONGEST = 200  # of the 255 bytes of a file name; the rest is for a partial's additions
_SECTOR = 512
_LIVE, _SEALED, _LENT = 0o644, 0o444, 0o1444
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXT = re.compile("no space left on device|disk quota exceeded|file too large", re.IGNORECASE)


class Qcow2Directory:
    """The volumes of one folder. Processes and threads may share it."""

    def __init__(self, folder: Path, run: Runner = run) -> None:
        self._folder = folder
        self._run = run

    # -- queries

    def volumes(self) -> tuple[Volume, ...]:
        """See Storage.volumes. Files that are not whole qcow2 images are no volumes."""
        found = []
        with self._store_errors():
            for entry in os.scandir(self._folder):
                if entry.name.endswith(SUFFIX) and not entry.name.startswith("."):
                    with contextlib.suppress(NotQcow2, FileNotFoundError):  # it may go while we look
                        found.append(self._volume(entry.name.removesuffix(SUFFIX)))
        return tuple(sorted(found, key=lambda volume: volume.name))

    def place(self, name: str) -> tuple[Path, str]:
        """See Storage.place."""
        return self._path(name), "qcow2"

    def explain(self, verb: str, name: str, *, source: str = "", size: int = 0) -> tuple[str, ...]:
        """See Storage.explain."""
        path = self._path(name)
        match verb:
            case "create":
                commands: tuple[list[str | Path], ...] = (_create(path, size),)
            case "clone":
                commands = (_overlay(path, source, size or None), ["chmod", "a-w", self._path(source)])
            case "replace":
                aside = path.with_name(f".{path.name}{_PARTIAL}")
                commands = (_overlay(aside, source, size or None), ["chmod", "a-w", self._path(source)], ["mv", aside, path])
            case "grow":
                commands = (_resize(path, size),)
            case "remove":
                commands = (["rm", "--", path],)
            case "activate":
                commands = ()
            case _:
                raise ValueError(f"the store has no verb {verb!r}")
        return tuple(shlex.join(str(word) for word in command) for command in commands)

    def usage(self) -> Usage:
        """See Storage.usage: that of the file system the folder lies on."""
        with self._store_errors():
            told = os.statvfs(self._folder)
        block = told.f_frsize
        return Usage(told.f_blocks * block, (told.f_blocks - told.f_bfree) * block, told.f_bavail * block)

    # -- verbs

    def create(self, name: str, size: int, fill: Filler | Image | None = None, marks: Marks | None = None) -> Volume:  # noqa: ARG002 - no place for them
        """See Storage.create. A function fills a sparse file, which then becomes qcow2: that takes its space twice meanwhile.
        Marks are not kept: a folder of images has no place for them."""
        path = self._absent(name)
        with self._store_errors(name), self._partial(name) as partial:
            if fill is None or isinstance(fill, Image):
                self._run(_create(partial, size))
            if isinstance(fill, Image):
                fill.convert(partial, "qcow2", self._run)
            elif fill is not None:
                self._fill(name, size, fill, partial)
            if fill is not None:
                partial.chmod(_SEALED)
            self._publish(partial, path)
        return self._volume(name)

    def clone(self, source: str, name: str, size: int | None = None) -> Volume:
        """See Storage.clone."""
        path = self._absent(name)
        self._overlay(source, path, size, over=False)
        return self._volume(name)

    def clone_all(self, clones: Sequence[Clone], *, reserve: bool = False) -> None:  # noqa: ARG002 - nothing is kept back
        """See Storage.clone_all. Most of the time that one takes is qemu-img's start, so they are made side by side."""
        with ThreadPoolExecutor(max(1, min(len(clones), os.cpu_count() or 1)), "clone") as pool:
            made = [pool.submit(self.clone, clone.source, clone.name, clone.size or None) for clone in clones]
        for each in made:
            each.result()

    def prepare(self, clones: Sequence[Clone]) -> None:
        """See Storage.prepare: nothing is made, as an overlay takes but hundredths of a second when it is wanted."""
        for clone in clones:
            self._existing(clone.source)
            self._absent(clone.name)

    def activate(self, *names: str) -> None:
        """See Storage.activate: files are always ready."""
        for name in names:
            self._existing(name)

    def replace(self, name: str, source: str, size: int | None = None) -> Volume:
        """See Storage.replace. A sealed volume is not replaced: it is kept on purpose."""
        path = self._path(name)
        if name == source:
            raise Refused(f"volume {name} cannot be replaced by a clone of itself")
        if path.exists():
            self._writable(name, "replaced")
            self._unused(name, "replaced")
        self._overlay(source, path, size, over=True)
        self._settle()
        return self._volume(name)

    def seal(self, name: str) -> Volume:
        """See Storage.seal."""
        path = self._existing(name)
        with self._store_errors(name), _held(path):
            if is_written(path):
                raise Refused(
                    f"volume {name} is open for writing and cannot be sealed", hint="stop the machine that uses it first"
                )
            _sync(path)
            path.chmod(_SEALED)
            _sync(path)
        return self._volume(name)

    def grow(self, name: str, size: int) -> Volume:
        """See Storage.grow."""
        path = self._existing(name)
        self._writable(name, "grown")
        now, wanted = self._volume(name).size, _whole_sectors(size)
        if wanted < now:
            raise Refused(f"volume {name} has {now} bytes already; it cannot shrink to {size}")
        if wanted > now:
            if is_open(path):
                raise Refused(f"volume {name} is open and cannot be grown", hint="stop the machine that uses it first")
            with self._store_errors(name):
                self._run(_resize(path, wanted))
                _sync(path)
        return self._volume(name)

    def remove(self, *names: str) -> None:
        """See Storage.remove."""
        paths = {name: self._path(name) for name in names}
        there = {name: path for name, path in paths.items() if path.exists()}
        for name in there:
            self._unused(name, "removed", going=there)
        with self._store_errors():
            for path in there.values():
                path.unlink(missing_ok=True)
            if there:
                sync_folder(self._folder)
            self._settle()

    # -- what the verbs stand on

    def _path(self, name: str) -> Path:
        if len(name) > _LONGEST or not _NAME.fullmatch(name):
            raise Refused(f"{name[:60]!r} is not a name of a volume: a-z, 0-9, '-' and '_', joined by dots")
        return self._folder / f"{name}{SUFFIX}"

    def _absent(self, name: str) -> Path:
        path = self._path(name)
        if path.exists():
            raise Refused(f"volume {name} exists already")
        return path

    def _existing(self, name: str) -> Path:
        path = self._path(name)
        if not path.exists():
            raise NotFound(f"there is no volume {name} in {self._folder}")
        return path

    def _volume(self, name: str) -> Volume:
        path = self._folder / f"{name}{SUFFIX}"
        header, told = read_header(path), path.stat()
        parent = None if header.backing is None else header.backing.removesuffix(SUFFIX)
        sealed = not told.st_mode & 0o222
        kept = sealed and told.st_mode & 0o7777 != _LENT
        return Volume(name, path, "qcow2", header.size, told.st_blocks * 512, sealed, parent, kept=kept)

    def _larger(self, source: str, size: int | None) -> int | None:
        """The size for a clone, None for that of its source; never a smaller one, which would cut its content off."""
        if size is None:
            return None
        wanted, least = _whole_sectors(size), self._volume(source).size
        if wanted < least:
            raise Refused(f"a clone of volume {source} has {least} bytes at least, not {size}")
        return wanted

    def _overlay(self, source: str, path: Path, size: int | None, *, over: bool) -> None:
        """Make the overlay aside, seal what it stands on, publish it. A source that is sealed for this is held meanwhile, so
        that nobody finds it without a clone and opens it again; it stays sealed only if the clone is there."""
        base, name = self._existing(source), path.name.removesuffix(SUFFIX)
        self._quiet(base, source, name)
        with self._store_errors(name), self._partial(name) as partial:
            self._run(_overlay(partial, source, self._larger(source, size)))
            with ExitStack() as undo:
                if base.stat().st_mode & 0o222:
                    undo.enter_context(_held(base))
                    undo.callback(self._settle_one, source)
                    self._quiet(base, source, name)
                    base.chmod(_LENT)
                self._publish(partial, path, over=over)

    def _quiet(self, base: Path, source: str, name: str) -> None:
        if is_written(base):
            raise Refused(
                f"volume {source} is open for writing; {name} cannot be a clone of it", hint="stop the machine that uses it first"
            )

    def _writable(self, name: str, done: str) -> None:
        if not self._existing(name).stat().st_mode & 0o222:
            raise Refused(f"volume {name} is sealed and cannot be {done}")

    def _unused(self, name: str, done: str, going: Container[str] = ()) -> None:
        children = [volume.name for volume in self.volumes() if volume.parent == name and volume.name not in going]
        if children:
            raise Refused(f"volume {name} cannot be {done}: {', '.join(children)} stand{'s' * (len(children) == 1)} on it")
        if is_open(self._existing(name)):
            raise Refused(f"volume {name} is open and cannot be {done}", hint="stop the machine that uses it first")

    def _fill(self, name: str, size: int, fill: Filler, partial: Path) -> None:
        with self._partial(name) as raw:
            os.truncate(raw, _whole_sectors(size))
            fill(raw)
            self._run(["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", "--", raw, partial])

    @contextlib.contextmanager
    def _partial(self, name: str) -> Iterator[Path]:
        """An empty file beside the volumes, which is gone afterwards, at the latest when the next one is made."""
        self._settle()
        while True:
            partial = self._folder / f".{name}.{secrets.token_hex(4)}{_PARTIAL}"
            handle = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _LIVE)
            fcntl.flock(handle, fcntl.LOCK_EX)
            if os.fstat(handle).st_nlink:  # else somebody's sweep came between the two calls
                break
            os.close(handle)
        try:
            os.fchmod(handle, _LIVE)
            yield partial
        finally:
            partial.unlink(missing_ok=True)
            os.close(handle)

    def _settle(self) -> None:
        """Tidy up after the interrupted: sweep partials without a maker, open again what was sealed for clones that are gone."""
        for leftover in self._folder.glob(f".*{_PARTIAL}"):
            with contextlib.suppress(FileNotFoundError, BlockingIOError), _held(leftover, wait=False):
                leftover.unlink()
        volumes = self.volumes()
        parents = {volume.parent for volume in volumes}
        for volume in volumes:
            if volume.sealed and volume.name not in parents:
                with contextlib.suppress(FileNotFoundError, BlockingIOError), _held(volume.path, wait=False):
                    self._settle_one(volume.name)

    def _settle_one(self, name: str) -> None:
        """Open a volume again that was sealed for its clones and has none; its maker of clones is held off by the caller."""
        path = self._path(name)
        lent = path.stat().st_mode & 0o7777 == _LENT
        if lent and all(volume.parent != name for volume in self.volumes()):
            path.chmod(_LIVE)

    def _publish(self, partial: Path, path: Path, *, over: bool = False) -> None:
        """Give a whole file its name, durably: its content first."""
        _sync(partial)
        if over:
            partial.replace(path)
        else:
            try:
                path.hardlink_to(partial)  # unlike a rename it fails if another process was quicker
            except FileExistsError:
                raise Refused(f"volume {path.name.removesuffix(SUFFIX)} exists already") from None
        sync_folder(self._folder)

    @contextlib.contextmanager
    def _store_errors(self, name: str = "") -> Iterator[None]:
        """Name the situation: a full store, a store that is gone."""
        try:
            yield
        except (OSError, CommandFailed) as error:
            full = error.errno in _FULL if isinstance(error, OSError) else _FULL_TEXT.search(error.message)
            if full:
                what = f"volume {name} does not fit" if name else "no space is left"
                raise NoSpace(f"{what}: {self._folder} is full", hint="remove labs or bases that are not needed") from error
            if not self._folder.is_dir():
                raise NotFound(f"there is no store at {self._folder}", hint="pocketcloud kit list") from error
            raise


@contextlib.contextmanager
def _held(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a file against others of us (flock, which QEMU's own locks do not meet). Raises BlockingIOError without `wait`."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(handle)


def _whole_sectors(size: int) -> int:
    return -(-size // _SECTOR) * _SECTOR


def _create(path: Path, size: int) -> list[str | Path]:
    return ["qemu-img", "create", "-q", "-f", "qcow2", "--", path, str(_whole_sectors(size))]


def _overlay(path: Path, source: str, size: int | None) -> list[str | Path]:
    argv: list[str | Path] = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", f"{source}{SUFFIX}", "--", path]
    return argv if size is None else [*argv, str(_whole_sectors(size))]


def _resize(path: Path, size: int) -> list[str | Path]:
    return ["qemu-img", "resize", "-q", "-f", "qcow2", "--", path, str(_whole_sectors(size))]


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
