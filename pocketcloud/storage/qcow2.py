"""The store of a directory kit: one qcow2 file a volume, clones by relative backing names, sealed ones without write bits.

Because the names are relative and all files lie in one folder, the folder can be copied or moved.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pocketcloud.errors import HostLacks, NoSpace, NotFound, Refused
from pocketcloud.files import sync_folder
from pocketcloud.storage import Filler, Usage, Volume
from pocketcloud.storage.qcow2_header import read_header
from pocketcloud.system import CommandFailed, Runner, run

# Names as plan and bases make them: parts of the name rule, joined by dots.
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,199}")
_LIVE, _SEALED = 0o644, 0o444
_FULL = ("No space left on device", "Disk quota exceeded", "File too large")
_LOCKED = ("Failed to get", "lock")


class Qcow2Directory:
    """The driver. `folder` holds the volumes; it exists, and nobody else writes to it."""

    def __init__(self, folder: Path, run: Runner = run) -> None:
        self._folder = folder
        self._run = run

    def create(self, name: str, size: int, fill: Filler | None = None) -> Volume:
        """See Storage.create. The filler writes a sparse raw file, which is then converted; only what holds data is kept."""
        target = self._absent(name)
        with self._aside(name) as aside:
            if fill is None:
                self._qemu_img("create", "-q", "-f", "qcow2", "--", str(aside), str(size))
            else:
                raw = aside.with_suffix(".raw")
                try:
                    with raw.open("wb") as file:
                        file.truncate(size)
                    fill(raw)
                    self._qemu_img("convert", "-q", "-f", "raw", "-O", "qcow2", "--", str(raw), str(aside))
                except OSError as error:
                    raise self._translated(error, name) from error
                finally:
                    raw.unlink(missing_ok=True)
            self._publish(aside, target, _LIVE if fill is None else _SEALED)
        return self._volume(target)

    def clone(self, source: str, name: str, size: int | None = None) -> Volume:
        """See Storage.clone."""
        origin = self._known(source)
        target = self._absent(name)
        with self._aside(name) as aside:
            self._clone_into(origin, aside, size)
            self._publish(aside, target, _LIVE)
        return self._volume(target)

    def replace(self, name: str, source: str, size: int | None = None) -> Volume:
        """See Storage.replace."""
        origin = self._known(source)
        target = self._path(name)
        if target.exists():
            self._check_free(name, target, "replaced")
        with self._aside(name) as aside:
            self._clone_into(origin, aside, size)
            self._publish(aside, target, _LIVE)
        return self._volume(target)

    def _clone_into(self, origin: Volume, aside: Path, size: int | None) -> None:
        if size and size < origin.size:
            raise Refused(
                f"volume {origin.name} has {origin.size} bytes; a clone cannot be smaller ({size})",
                hint="give it that size at least",
            )
        if not origin.sealed:
            self._check_closed(origin.name, origin.path)
            origin.path.chmod(_SEALED)
        self._qemu_img(*self._clone_words(origin.path.name, aside, size or 0))

    @staticmethod
    def _clone_words(backing: str, target: Path, size: int) -> list[str]:
        return ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing, "--", str(target), *([str(size)] if size else [])]

    def grow(self, name: str, size: int) -> Volume:
        """See Storage.grow."""
        volume = self._known(name)
        if volume.sealed:
            raise Refused(f"volume {name} is sealed; it keeps its size", hint="grow a clone of it")
        if size < volume.size:
            raise Refused(f"volume {name} has {volume.size} bytes; it cannot shrink to {size}")
        if size > volume.size:
            self._qemu_img("resize", "-q", "-f", "qcow2", "--", str(volume.path), str(size))
        return self._volume(volume.path)

    def remove(self, name: str) -> None:
        """See Storage.remove."""
        path = self._path(name)
        if path.exists():
            self._check_free(name, path, "removed")
            path.unlink(missing_ok=True)
            sync_folder(self._folder)

    def volumes(self) -> tuple[Volume, ...]:
        """See Storage.volumes. Reads headers only; starts no process."""
        found = []
        for path in sorted(self._folder.glob("*.qcow2")):
            try:
                if not path.name.startswith("."):
                    found.append(self._volume(path))
            except (FileNotFoundError, NotFound):
                continue  # removed, or not ours, between the listing and the look
        return tuple(found)

    def usage(self) -> Usage:
        """See Storage.usage: the file system's."""
        stats = os.statvfs(self._folder)
        size, free = stats.f_blocks * stats.f_frsize, stats.f_bavail * stats.f_frsize
        return Usage(size, size - stats.f_bfree * stats.f_frsize, free)

    def place(self, name: str) -> tuple[Path, str]:
        """See Storage.place."""
        return self._path(name), "qcow2"

    def explain(self, verb: str, name: str, *, source: str = "", size: int = 0) -> tuple[str, ...]:
        """See Storage.explain."""
        path = self._path(name)
        match verb:
            case "create":
                return (shlex.join(["qemu-img", "create", "-q", "-f", "qcow2", "--", str(path), str(size)]),)
            case "clone":
                return (
                    shlex.join(["chmod", "a-w", str(self._path(source))]),
                    shlex.join(["qemu-img", *self._clone_words(f"{source}.qcow2", path, size)]),
                )
            case "grow":
                return (shlex.join(["qemu-img", "resize", "-q", "-f", "qcow2", "--", str(path), str(size)]),)
            case "remove":
                return (shlex.join(["rm", "-f", "--", str(path)]),)
            case _:
                raise ValueError(f"no such verb: {verb}")

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a volume's name")
        return self._folder / f"{name}.qcow2"

    def _known(self, name: str) -> Volume:
        try:
            return self._volume(self._path(name))
        except FileNotFoundError:
            raise NotFound(
                f"there is no volume {name} in {self._folder}", hint="pocketcloud kit status shows what there is"
            ) from None

    def _absent(self, name: str) -> Path:
        path = self._path(name)
        if path.exists():
            raise Refused(f"volume {name} exists already in {self._folder}", hint="remove it first, or choose another name")
        return path

    def _volume(self, path: Path) -> Volume:
        header = read_header(path)
        stat = path.stat()
        if header is None:
            raise NotFound(f"{path} is not a qcow2 file", hint="it is damaged or not ours; move it away")
        parent = header.backing.removesuffix(".qcow2") or None
        return Volume(path.stem, path, "qcow2", header.size, stat.st_blocks * 512, not stat.st_mode & 0o222, parent)

    def _check_free(self, name: str, path: Path, done: str) -> None:
        children = [volume.name for volume in self.volumes() if volume.parent == name]
        if children:
            raise Refused(f"volume {name} cannot be {done}: {', '.join(children)} stand on it", hint="remove those first")
        self._check_closed(name, path)

    def _check_closed(self, name: str, path: Path) -> None:
        """Raise Refused if a QEMU has the image open for writing: qemu-img then fails to get its lock ("Image locking" in its docs)."""
        try:
            self._run(["qemu-img", "info", "-f", "qcow2", "--", path])
        except CommandFailed as error:
            if all(word in error.completed.err for word in _LOCKED):
                raise Refused(f"volume {name} is in use: a running machine has it open", hint="stop the machine first") from error
            raise

    @contextmanager
    def _aside(self, name: str) -> Iterator[Path]:
        """A path to build a volume at. Sweeps what an interrupted command of the same name left; removes it on failure."""
        for left in self._folder.glob(f".{name}.partial*"):
            left.unlink(missing_ok=True)
        aside = self._folder / f".{name}.partial"
        try:
            yield aside
        except CommandFailed as error:
            if any(text in error.completed.err for text in _FULL):
                raise self._full(name) from error
            raise
        finally:
            aside.unlink(missing_ok=True)

    def _publish(self, aside: Path, target: Path, mode: int) -> None:
        aside.chmod(mode)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(target)
        sync_folder(self._folder)

    def _translated(self, error: OSError, name: str) -> Exception:
        return self._full(name) if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else error

    def _full(self, name: str) -> NoSpace:
        return NoSpace(
            f"no space left in {self._folder} for volume {name}", hint="remove labs or bases, or move the kit to a larger disk"
        )

    def _qemu_img(self, *words: str) -> None:
        try:
            # -b is relative to the new image's folder; qemu-img resolves it from there, whatever the current folder is.
            self._run(["qemu-img", *words])
        except HostLacks as error:
            raise HostLacks("qemu-img is not installed; it makes every disk", hint=error.hint) from error
