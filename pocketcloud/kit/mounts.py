"""File systems of kits: what is mounted where, mounting and unmounting, and who keeps one busy."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.errors import Refused
from pocketcloud.system import CommandFailed, Runner

# Nobody should be able to run, as root, what a stick that was found in the street carries.
OPTIONS = "nosuid,nodev,noexec"
# In a thin pool, where what is removed (saved memory, media) would be kept for good otherwise.
THIN_OPTIONS = f"{OPTIONS},discard"
_PROC = Path("/proc")
_TRIES = 10


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted file system: where, and the number of its device, `254:3`."""

    path: Path
    number: str
    kind: str


def mounts(proc: Path = _PROC, process: str = "self") -> tuple[Mount, ...]:
    """The file systems that a process sees, in the order they were mounted (proc(5), mountinfo)."""
    found = []
    for line in (proc / process / "mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split()
        kind = fields[fields.index("-") + 1]
        found.append(Mount(Path(_unescaped(fields[4])), fields[2], kind))
    return tuple(found)


def mounted_at(path: Path, proc: Path = _PROC) -> Mount | None:
    """What is mounted at exactly this path, the uppermost; None if nothing is."""
    return next((mount for mount in reversed(mounts(proc)) if mount.path == path), None)


def _unescaped(text: str) -> str:
    """Blanks and the like stand as octal numbers there."""
    raw = text.encode(errors="surrogateescape").decode("unicode_escape")
    return raw.encode("latin-1").decode(errors="surrogateescape")


def number_of(device: Path) -> str:
    """The number of a block device, `254:3`; empty if it is not there."""
    try:
        number = device.stat().st_rdev
    except OSError:
        return ""
    return f"{os.major(number)}:{os.minor(number)}"


def mount(device: Path, path: Path, run: Runner, options: str = OPTIONS) -> bool:
    """Mount an ext4 file system; whether it was not mounted there already. Raises Refused where it cannot be, or if something
    else is mounted there."""
    there = mounted_at(path)
    if there is not None and there.number == number_of(device):
        return False
    if there is not None:
        raise Refused(f"{path} is taken: another file system is mounted there", hint=f"umount {path}")
    path.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        run(["mount", "-t", "ext4", "-o", options, device, path])
    except CommandFailed as failed:
        said = (failed.completed.err or failed.completed.out).strip().splitlines()
        raise Refused(
            f"{device} cannot be mounted: {said[0] if said else 'mount does not say why'}", hint="pocketcloud kit repair"
        ) from failed
    return True


def unmount(path: Path, run: Runner) -> bool:
    """Unmount whatever is mounted at a path; whether anything was. Raises Refused, naming who uses it.

    A desktop may look into a new file system for a moment, so a busy one is tried for a second before it counts as used.
    """
    there = mounted_at(path)
    if there is None:
        return False
    for attempt in range(_TRIES):
        try:
            run(["umount", path])
            break
        except CommandFailed as failed:
            users = tuple(users_of([there.number]))
            if attempt + 1 < _TRIES and mounted_at(path) is not None and (not users or attempt == 0):
                time.sleep(0.1)
                continue
            who = ", ".join(users) or (failed.completed.err or failed.completed.out).strip()
            raise Refused(f"{path} is in use: {who}", hint="end what uses it, then run the command again") from failed
    return True


def unmount_all(numbers: Iterable[str], run: Runner) -> None:
    """Unmount the file systems on devices that are gone, at once and whoever uses them: nothing can be read from them any
    more."""
    wanted = set(numbers)
    for there in reversed(mounts()):
        if there.number in wanted:
            run(["umount", "-l", there.path], codes=range(256))


def users_of(numbers: Iterable[str], proc: Path = _PROC) -> Iterator[str]:
    """The processes, for people (`tail (4711)`), that have open what lies on the devices with these numbers, or the devices
    themselves, or have them mounted in a namespace of their own."""
    wanted = {os.makedev(*(int(part) for part in number.split(":"))) for number in numbers}
    texts = {f"{os.major(number)}:{os.minor(number)}" for number in wanted}
    own = _namespace(proc / "self")
    told = set()
    for folder in sorted((entry for entry in proc.iterdir() if entry.name.isdecimal()), key=lambda entry: int(entry.name)):
        with contextlib.suppress(OSError):
            elsewhere = _namespace(folder)
            hidden = elsewhere not in told and elsewhere != own and any(m.number in texts for m in mounts(proc, folder.name))
            if hidden:
                told.add(elsewhere)
            if hidden or _has_open(folder, wanted):
                yield f"{(folder / 'comm').read_text().strip()} ({folder.name})"


def _namespace(folder: Path) -> str:
    return str((folder / "ns/mnt").readlink())


def _has_open(folder: Path, wanted: set[int]) -> bool:
    for link in (folder / "cwd", folder / "root", folder / "exe", *(folder / "fd").iterdir()):
        with contextlib.suppress(OSError):
            found = link.stat()
            if found.st_dev in wanted or found.st_rdev in wanted:
                return True
    return False
