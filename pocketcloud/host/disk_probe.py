"""Reads a disk past the page cache and notes each read's time: `python -I disk_probe.py PATH SECONDS`, a program of its own.

It writes lines of JSON: `{"at": 0.4}` while it works, and last the times, or `{"failed": "words", "errno": N}`. Only the standard
library, because it is started by its path: disk_speed.py starts it, judges the times, and leaves it behind when a read never
comes back, for no signal reaches a process that waits for a device. Alone in its process, because a thread that draws a progress
bar would take the interpreter away at the end of a read, and count as the disk's time.

Nothing is ever written to the disk, and nobody's cache is dropped.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import random
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_KIB, _MIB = 1 << 10, 1 << 20
LARGE, SMALL = _MIB, 4 * _KIB
# What `hdparm -t --direct` reads (time_device in hdparm.c): 2 MiB at a time from the first byte on, for three seconds.
FIRST = 2 * _MIB
# Where the large reads are, in parts of the disk: hard disks are slower inside, and what was never written reads too quickly.
PLACES = 8
_ENOUGH_LARGE, _ENOUGH_FIRST, _ENOUGH_SMALL = 512, 512, 4000
_PARTS = 3
# A disk that sleeps takes seconds to spin up; no disk that is awake takes that long, unless others keep it busy.
ASLEEP = 1.0
_WAKING = 3
_FAILURES = 10
_GONE = (errno.ENODEV, errno.ENXIO, errno.ENOMEDIUM)
_SECTOR = 512  # of the kernel's statistics, whatever the disk's are
_TOLD_EVERY = 0.1


class Gone(Exception):
    """The disk went away while it was read."""


@dataclass
class Part:
    """Reads of one kind: the seconds that each took, how many gave an error, and what others moved meanwhile, in bytes."""

    size: int
    times: list[float] = field(default_factory=list)
    failed: int = 0
    others: int = 0


class Disk:
    """An open disk (or file). `tell` is called with how far the measurement is, now and then; `clock` gives seconds."""

    def __init__(self, handle: int, clock: Callable[[], float], tell: Callable[[float], None]) -> None:
        self._handle, self._clock, self._tell = handle, clock, tell
        self._buffer = mmap.mmap(-1, FIRST)  # starts on a page, as O_DIRECT wants it
        self._statistics = _statistics_of(handle)
        self.size = os.lseek(handle, 0, os.SEEK_END)

    def wake(self) -> float:
        """Read here and there until a read is quick; the seconds that the slowest took if that was a disk asleep, else 0."""
        slowest = 0.0
        for turn in range(_WAKING):
            part = Part(SMALL)
            self.take(part, [self.size // (turn + 2) // SMALL * SMALL], 60.0, 0.0)
            took = part.times[0] if part.times else 0.0
            slowest = max(slowest, took)
            if took < ASLEEP:
                break
        return slowest if slowest >= ASLEEP else 0.0

    def take(self, part: Part, offsets: Iterator[int] | Sequence[int], seconds: float, done: float) -> Part:
        """Read at the offsets in their order until the time is up, or the disk gives errors only; `done` is how much of all was
        done before. Raises Gone."""
        before, own = self._moved(), 0
        begun = told = self._clock()
        until = begun + seconds
        with memoryview(self._buffer) as whole, whole[: part.size] as room:
            for offset in offsets:
                now = self._clock()
                if now >= until or part.failed > _FAILURES:
                    break
                if now - told > _TOLD_EVERY:
                    told = now
                    self._tell(min(1.0, done + (now - begun) / seconds / _PARTS))
                    # What it takes to tell is not the disk's.
                    now = self._clock()
                try:
                    length = os.preadv(self._handle, [room], offset)
                except OSError as error:
                    part.failed += 1
                    self._look(error.errno)
                    continue
                if length == part.size:
                    part.times.append(self._clock() - now)
                else:
                    self._look(0)
                own += length
        part.others = max(0, self._moved() - before - own)
        return part

    def _look(self, number: int | None) -> None:
        """After a read that failed or was short: whether there is still a disk. One that was pulled has no size any more."""
        if number in _GONE or os.lseek(self._handle, 0, os.SEEK_END) < self.size:
            raise Gone

    def _moved(self) -> int:
        """The bytes that were read from and written to the disk so far, by anybody; 0 where that is not known."""
        if self._statistics is None:
            return 0
        try:
            # Documentation/block/stat.rst: sectors read are the third number, sectors written the seventh.
            numbers = self._statistics.read_text(encoding="ascii").split()
            return (int(numbers[2]) + int(numbers[6])) * _SECTOR
        except (OSError, ValueError, IndexError):
            return 0


def _statistics_of(handle: int) -> Path | None:
    """The kernel's counts of a disk, for a partition its disk's; None for a file."""
    found = os.fstat(handle)
    if not stat.S_ISBLK(found.st_mode):
        return None
    place = Path(f"/sys/dev/block/{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}").resolve()
    return (place.parent if (place / "partition").exists() else place) / "stat"


def read(
    path: str,
    seconds: float,
    *,
    clock: Callable[[], float] = time.perf_counter,
    seed: int = 0,
    tell: Callable[[float], None] = lambda _: None,
) -> dict[str, object]:
    """Read for about `seconds`, a third each: 1 MiB in sequence at several places, the disk's first part as hdparm does, 4 KiB at
    random. The times by kind. Raises OSError where it cannot be opened so (EINVAL: not past the cache), Gone."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        disk = Disk(handle, clock, tell)
        if disk.size < PLACES * LARGE:
            return {"small": True}
        asleep = disk.wake()
        large = disk.take(Part(LARGE), spread(disk.size), seconds / _PARTS, 0.0)
        first = disk.take(Part(FIRST), beginning(disk.size), seconds / _PARTS, 1 / _PARTS)
        chance = random.Random(seed)  # noqa: S311 - places to read, no secret
        places = [chance.randrange(disk.size // SMALL) * SMALL for _ in range(_ENOUGH_SMALL)]
        small = disk.take(Part(SMALL), places, seconds / _PARTS, 2 / _PARTS)
    finally:
        os.close(handle)
    return {"asleep": asleep, "large": vars(large), "first": vars(first), "random": vars(small)}


def spread(size: int) -> list[int]:
    """Runs in sequence, one after the other at each place, so that a time limit leaves no place out for long."""
    run = min(16, size // LARGE // PLACES)
    step = size // PLACES // LARGE * LARGE
    rounds = range(max(1, min(step // (run * LARGE), _ENOUGH_LARGE // (PLACES * run) or 1)))
    return [place * step + (again * run + number) * LARGE for again in rounds for place in range(PLACES) for number in range(run)]


def beginning(size: int) -> range:
    """From the first byte on."""
    return range(0, size - FIRST + 1, FIRST)[:_ENOUGH_FIRST]


def _say(**words: object) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> int:
    """Print the times, or why there are none; the exit code is 0 either way."""
    try:
        _say(**read(arguments[0], float(arguments[1]), tell=lambda at: _say(at=round(at, 3))))
    except Gone:
        _say(failed="gone", errno=errno.ENODEV)
    except OSError as error:
        _say(failed=error.strerror, errno=error.errno)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
