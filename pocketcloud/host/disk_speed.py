"""How quickly a disk is read, found by reading it: past the page cache, for some seconds, and never a byte written.

What a disk says of itself is not to be had through many USB bridges (they call an SSD rotating), and hdparm's figure is that
of its first sectors. What the figures mean is verdict.py.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pocketcloud.errors import HostLacks, Refused
from pocketcloud.model.disk import Measured
from pocketcloud.model.sizes import KIB, MIB

SECONDS = 6.0
_LARGE, _SMALL = MIB, 4 * KIB
# Where the large reads are, in parts of the disk: hard disks are slower inside, and what was never written reads too quickly.
_PLACES = 8
_ENOUGH_LARGE, _ENOUGH_SMALL = 512, 4000


def measure(
    path: Path, seconds: float = SECONDS, *, clock: Callable[[], float] = time.monotonic, seed: int = 0
) -> Measured | None:
    """Read the device (or file) for about `seconds`, half of it 1 MiB in sequence at several places, half 4 KiB at random.

    None if it is too small or cannot be read past the cache (a file on tmpfs). A single read that hangs is not cut short.
    Reads that fail are counted, and end it after some. Raises HostLacks without the right to read it, Refused if it is gone.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise _not_read(path, error) from None
    try:
        size = os.lseek(handle, 0, os.SEEK_END)
        if size < _PLACES * _LARGE:
            return None
        # A mapping starts on a page, as O_DIRECT wants it of its buffers.
        with mmap.mmap(-1, _LARGE) as buffer:
            large = _Reads(handle, buffer, clock)
            large.take(_large_offsets(size), _LARGE, seconds / 2, _ENOUGH_LARGE)
            small = _Reads(handle, buffer, clock)
            chance = random.Random(seed)  # noqa: S311 - places to read, no secret
            small.take(
                [chance.randrange(size // _SMALL) * _SMALL for _ in range(_ENOUGH_SMALL)], _SMALL, seconds / 2, _ENOUGH_SMALL
            )
    finally:
        os.close(handle)
    if not large.times or not small.times:
        return Measured(0, 0, 0, 0, large.failed + small.failed) if large.failed + small.failed else None
    return Measured(
        sequential=len(large.times) * _LARGE / max(sum(large.times), 1e-9),
        random_reads=len(small.times) / max(sum(small.times), 1e-9),
        p50=percentile(small.times, 50),
        p99=percentile(small.times, 99),
        failed=large.failed + small.failed,
    )


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest of the values that so many percent of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


class _Reads:
    """Reads of one kind, and the time that each took."""

    def __init__(self, handle: int, buffer: mmap.mmap, clock: Callable[[], float]) -> None:
        self._handle, self._buffer, self._clock = handle, buffer, clock
        self.times: list[float] = []
        self.failed = 0

    def take(self, offsets: Sequence[int], size: int, seconds: float, most: int) -> None:
        """Read at the offsets in their order until the time is up, `most` are read, or the disk gives errors only."""
        until = self._clock() + seconds
        with memoryview(self._buffer) as whole, whole[:size] as part:
            for offset in offsets[:most]:
                begun = self._clock()
                if begun >= until or self.failed > 10:
                    break
                try:
                    done = os.preadv(self._handle, [part], offset)
                except OSError:
                    self.failed += 1
                else:
                    if done == size:
                        self.times.append(self._clock() - begun)


def _large_offsets(size: int) -> list[int]:
    """Runs in sequence, one after the other at each place, so that a time limit leaves no place out for long."""
    run = min(16, size // _LARGE // _PLACES)
    step = size // _PLACES // _LARGE * _LARGE
    rounds = range(max(1, min(step // (run * _LARGE), _ENOUGH_LARGE // (_PLACES * run) or 1)))
    return [
        place * step + (again * run + number) * _LARGE for again in rounds for place in range(_PLACES) for number in range(run)
    ]


def _not_read(path: Path, error: OSError) -> HostLacks | Refused:
    if error.errno in (errno.EACCES, errno.EPERM):
        if os.geteuid() == 0:
            # The control group of devices, or a security module, which ask nobody's uid.
            said = f"{path} may not be read, although this is root: a container's rules, or a security module, keep it away"
            return HostLacks(said, hint="do it outside of the container, or have the device allowed in it")
        return HostLacks(f"{path} may not be read by this user", hint="do it as root")
    return Refused(f"{path} cannot be read: {error.strerror}", hint="plug it in again, or choose another disk (lsblk lists them)")
