"""Pours one source onto many disks at once: each piece is read once and written to all, past the page cache.

A ring of buffers lies between them. A disk that fails leaves, the others go on; one that is so slow that the others wait for
it is set aside, and gets the rest in a pass of its own. What was read is hashed on the way, and what was written is read again
afterwards: only that shows what a disk really holds (one that lies about its size takes everything).
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field

from pocketcloud.copies.pieces import LARGEST, Piece
from pocketcloud.errors import Refused

DIGEST = 16
_BUFFERS = 16
_PAUSE = 0.1
# A disk is set aside when the others have waited for it so many seconds, and such a part of the time.
_WAITED, _WAITED_PART = 10.0, 0.3
# Longer than the kernel tries again before it gives a disk up.
_ANSWERS = 120.0

Digests = Sequence[bytes]


@dataclass(slots=True)
class Outlet:
    """A disk that is written to, open with O_DIRECT; `aims` are the bytes at which it takes the pieces. `begin` pieces were
    written to it by an earlier run: what they hold is looked at, and written again where it is not what the source has.
    `fault` is why it left; `done` are pieces, `written` bytes, `at`
    those that went by: written, or found there. `noted` is told of `done` each time that `noted_every` more
    bytes went by. One that is `stuck` has a write on its way that never came back: its handle must stay open, as that number
    would be another file's."""

    name: str
    handle: int
    aims: Sequence[int]
    begin: int = 0
    done: int = 0
    written: int = 0
    at: int = 0
    fault: str = ""
    noted: Callable[[int], None] | None = None
    noted_every: int = 1 << 30
    stuck: bool = False


@dataclass(slots=True)
class _Buffer:
    """Memory for a piece, aligned as O_DIRECT wants it, and how many outlets have still to write it."""

    memory: mmap.mmap
    users: int = 0


@dataclass(slots=True)
class _Ring:
    """The buffers: taken by the reader, given back by the last writer."""

    count: int
    _free: queue.SimpleQueue[_Buffer] = field(default_factory=queue.SimpleQueue)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        for _ in range(self.count):
            self.add()

    def add(self) -> None:
        """One more, in place of one that a stuck disk keeps."""
        self._free.put(_Buffer(mmap.mmap(-1, LARGEST)))

    def take(self) -> _Buffer | None:
        """A free one; None if there is none for a moment."""
        try:
            return self._free.get(timeout=_PAUSE)
        except queue.Empty:
            return None

    def release(self, buffer: _Buffer) -> None:
        """One user less."""
        with self._lock:
            buffer.users -= 1
            last = buffer.users == 0
        if last:
            self._free.put(buffer)


class _Writer(threading.Thread):
    """Writes what comes for one outlet. It is a daemon: a disk that never answers must not keep the process."""

    def __init__(self, outlet: Outlet, pieces: Sequence[Piece], ring: _Ring) -> None:
        super().__init__(name=f"write {outlet.name}", daemon=True)
        self.outlet = outlet
        self.next = outlet.done  # the piece that is given to it next
        self.waited = 0.0
        self.since = time.monotonic()
        self.aside = False
        self._pieces = pieces
        self._ring = ring
        self._coming: queue.SimpleQueue[tuple[int, _Buffer] | None] = queue.SimpleQueue()
        self._own: mmap.mmap | None = None
        self._unnoted = 0

    @property
    def behind(self) -> bool:
        """Whether it has something to do."""
        return self.outlet.done < self.next and not self.outlet.fault

    def give(self, index: int, buffer: _Buffer) -> None:
        """Have a piece written."""
        self.next = index + 1
        self._coming.put((index, buffer))

    def end(self) -> None:
        """No more comes."""
        self._coming.put(None)

    def run(self) -> None:
        """Write until no more comes; after a fault, or aside, what comes is only given back."""
        while (given := self._coming.get()) is not None:
            index, buffer = given
            try:
                if not self.outlet.fault and not self.aside:
                    self._write(index, buffer)
                    self.outlet.done = index + 1
                    self.outlet.at += self._pieces[index].length
                    self._note(self._pieces[index].length)
            except OSError as error:
                self.outlet.fault = _told(error)
            finally:
                self._ring.release(buffer)
        if not self.outlet.fault:
            try:
                os.fdatasync(self.outlet.handle)
            except OSError as error:
                self.outlet.fault = _told(error)

    def _note(self, length: int) -> None:
        self._unnoted += length
        if self.outlet.noted and self._unnoted >= self.outlet.noted_every:
            self.outlet.noted(max(self.outlet.done, self.outlet.begin))
            self._unnoted = 0

    def _write(self, index: int, buffer: _Buffer) -> None:
        length, aim = self._pieces[index].length, self.outlet.aims[index]
        with memoryview(buffer.memory) as whole, whole[:length] as data:
            if index < self.outlet.begin and self._holds(aim, data):
                return
            at = 0
            while at < length:
                with data[at:] as rest:
                    count = os.pwrite(self.outlet.handle, rest, aim + at)
                if count == 0:
                    raise OSError(errno.ENOSPC, "it takes no more")
                at += count
                self.outlet.written += count

    def _holds(self, aim: int, data: memoryview) -> bool:
        if self._own is None:
            self._own = mmap.mmap(-1, LARGEST)
        with memoryview(self._own) as whole, whole[: len(data)] as found:
            return _read(self.outlet.handle, found, aim) == len(data) and found == data


def _told(error: OSError) -> str:
    return error.strerror or str(error)


def _read(handle: int, into: memoryview, at: int) -> int:
    """Fill `into`; how many bytes there were."""
    done = 0
    while done < len(into):
        with into[done:] as rest:
            count = os.preadv(handle, [rest], at + done)
        if count == 0:
            break
        done += count
    return done


def digest(data: memoryview | bytes, unit: int) -> bytes:
    """What a piece is known by afterwards: a digest of DIGEST bytes for each `unit` bytes of it."""
    parts = []
    with memoryview(data) as view:
        for at in range(0, len(view), unit):
            with view[at : at + unit] as part:
                parts.append(hashlib.blake2b(part, digest_size=DIGEST).digest())
    return b"".join(parts)


def pour(
    source: int,
    pieces: Sequence[Piece],
    outlets: Sequence[Outlet],
    *,
    unit: int,
    stop: threading.Event,
    tick: Callable[[], None] = lambda: None,
    passed: Callable[[Outlet, Digests], None] = lambda _outlet, _digests: None,
) -> Digests:
    """Write the pieces of `source` (open with O_DIRECT) to all outlets; the digests of each piece by its units. `tick` is
    called now and then, to show and to note how far they are; `passed` with each outlet that has got all as soon as it has,
    and the digests of all pieces.

    What an outlet fails of stands in its `fault`. Raises Refused if the source cannot be read or no outlet is left, and
    InterruptedError when `stop` was set.
    """
    digests: list[bytes] = [b""] * len(pieces)
    left = list(outlets)
    while left:
        first = min(outlet.done for outlet in left)
        late = _pass(source, pieces, left, first, digests, unit, stop, tick, passed)
        left = [outlet for outlet in late if not outlet.fault]
    return digests


def _pass(
    source: int,
    pieces: Sequence[Piece],
    outlets: Sequence[Outlet],
    first: int,
    digests: list[bytes],
    unit: int,
    stop: threading.Event,
    tick: Callable[[], None],
    passed: Callable[[Outlet, Digests], None],
) -> list[Outlet]:
    """Read once from the piece `first` on; the outlets that were set aside."""
    ring = _Ring(_BUFFERS)
    writers = [_Writer(outlet, pieces, ring) for outlet in outlets]
    late: list[Outlet] = []
    for writer in writers:
        writer.start()
    with ThreadPoolExecutor(1) as hasher:
        sums: deque[tuple[int, Future[bytes]]] = deque()
        try:
            for index in range(first, len(pieces)):
                buffer = _free_buffer(ring, writers, late, stop, tick)
                now = [w for w in writers if not w.outlet.fault and not w.aside and w.next <= index]
                if not now:
                    break
                _fill(source, buffer, pieces[index])
                # The hash uses the buffer as a writer does.
                buffer.users = len(now) + 1
                sums.append((index, hasher.submit(_summed, ring, buffer, pieces[index].length, unit)))
                while sums[0][1].done() and len(sums) > 1:  # a disk has millions of pieces
                    at, told = sums.popleft()
                    digests[at] = told.result()
                for writer in now:
                    writer.give(index, buffer)
        except BaseException:
            _abandon(writers)
            raise
        finally:
            for writer in writers:
                writer.end()
            for index, summed in sums:
                digests[index] = summed.result()
    try:
        _join(writers, tick, stop, lambda outlet: passed(outlet, digests))
    except BaseException:
        _abandon(writers)
        raise
    return late


def _abandon(writers: Sequence[_Writer]) -> None:
    """Have no more written, and wait until nobody writes any more: who opened the outlets is going to close them."""
    until = time.monotonic() + _ANSWERS
    for writer in writers:
        writer.aside = True
        writer.end()
    for writer in writers:
        writer.join(max(0.0, until - time.monotonic()))
        writer.outlet.stuck = writer.is_alive()


def _summed(ring: _Ring, buffer: _Buffer, length: int, unit: int) -> bytes:
    try:
        with memoryview(buffer.memory) as whole, whole[:length] as data:
            return digest(data, unit)
    finally:
        ring.release(buffer)


def _fill(source: int, buffer: _Buffer, piece: Piece) -> None:
    try:
        with memoryview(buffer.memory) as whole, whole[: piece.length] as data:
            count = _read(source, data, piece.begin)
    except OSError as error:
        raise Refused(
            f"the source cannot be read at byte {piece.begin}: {_told(error)}",
            hint="is its disk still plugged in? dmesg says more; what was written goes on with --resume",
        ) from error
    if count < piece.length:
        raise Refused(f"the source ends at byte {piece.begin + count}, before what is mapped of it")


def _free_buffer(
    ring: _Ring, writers: Sequence[_Writer], late: list[Outlet], stop: threading.Event, tick: Callable[[], None]
) -> _Buffer:
    """A buffer, once one is free. Whom the others wait for too long is set aside."""
    while True:
        begun = time.monotonic()
        buffer = ring.take()
        tick()
        if stop.is_set():
            raise InterruptedError
        if buffer is not None:
            _blame(writers, time.monotonic() - begun)
            return buffer
        _blame(writers, time.monotonic() - begun)
        for writer in _holding_up(writers):
            writer.aside = True
            late.append(writer.outlet)
            ring.add()  # the one that it is at


def _blame(writers: Sequence[_Writer], waited: float) -> None:
    """Those with work left are who was waited for, if others had none."""
    behind = [writer for writer in writers if writer.behind and not writer.aside]
    idle = [writer for writer in writers if not writer.behind and not writer.aside and not writer.outlet.fault]
    if behind and idle:
        for writer in behind:
            writer.waited += waited


def _holding_up(writers: Sequence[_Writer]) -> list[_Writer]:
    now = time.monotonic()
    return [
        writer
        for writer in writers
        if not writer.aside and writer.waited > _WAITED and writer.waited > _WAITED_PART * (now - writer.since)
    ]


def _join(writers: Sequence[_Writer], tick: Callable[[], None], stop: threading.Event, passed: Callable[[Outlet], None]) -> None:
    """Wait until all have written what they were given. One that was set aside may be stuck: it gets some time to answer."""
    left, until = list(writers), 0.0
    while left:
        left[0].join(_PAUSE)
        for writer in [writer for writer in left if not writer.is_alive()]:
            left.remove(writer)
            if not writer.aside and not writer.outlet.fault:
                passed(writer.outlet)
        tick()
        if stop.is_set():
            raise InterruptedError
        if left and all(writer.aside for writer in left):
            until = until or time.monotonic() + _ANSWERS
            if time.monotonic() > until:
                for writer in left:
                    writer.outlet.fault = f"it has not answered for {_ANSWERS:.0f} s"
                    writer.outlet.stuck = True
                return


# -- looking at what is there


@dataclass(slots=True)
class Checked:
    """What reading an outlet again found: pieces and bytes read so far, and where it holds something else, as (byte, length)."""

    done: int = 0
    read: int = 0
    wrong: list[tuple[int, int]] = field(default_factory=list)
    fault: str = ""


def check(
    handle: int,
    pieces: Sequence[Piece],
    aims: Sequence[int],
    digests: Digests,
    checked: Checked,
    *,
    unit: int,
    stop: threading.Event,
) -> None:
    """Read the pieces where they went, past the page cache, and compare their digests. What is found stands in `checked`."""
    places = [(aim, piece.length) for piece, aim in zip(pieces, aims, strict=True)]
    with closing(_read_ahead(handle, places)) as read:
        for index, ((aim, length), wanted) in enumerate(zip(places, digests, strict=True)):
            if stop.is_set():
                return
            data = next(read)
            if isinstance(data, OSError):
                checked.fault = f"byte {aim} cannot be read: {_told(data)}"
                return
            found = digest(data, unit) if len(data) == length else b""
            if found != wanted:
                checked.wrong += _different(found, wanted, aim, length, unit)
            checked.read += length
            checked.done = index + 1


def _different(found: bytes, wanted: bytes, aim: int, length: int, unit: int) -> list[tuple[int, int]]:
    """Which units of a piece; all of it where it cannot be told."""
    if len(found) != len(wanted):
        return [(aim, length)]
    at = range(0, len(wanted), DIGEST)
    wrong = [number for number, begin in enumerate(at) if found[begin : begin + DIGEST] != wanted[begin : begin + DIGEST]]
    return [(aim + number * unit, min(unit, length - number * unit)) for number in wrong]


def summed(handle: int, pieces: Sequence[Piece], *, unit: int, stop: threading.Event, tell: Callable[[int], None]) -> Digests:
    """Read pieces of a device that is open with O_DIRECT; the digests of each by its units, empty where it cannot be read.
    `tell` gets the bytes read so far. Raises InterruptedError when `stop` was set."""
    found, done = [], 0
    with closing(_read_ahead(handle, [(piece.begin, piece.length) for piece in pieces])) as read:
        for piece in pieces:
            if stop.is_set():
                raise InterruptedError
            data = next(read)
            found.append(b"" if isinstance(data, OSError) or len(data) != piece.length else digest(data, unit))
            done += piece.length
            tell(done)
    return found


def _read_ahead(handle: int, places: Sequence[tuple[int, int]]) -> Generator[memoryview | OSError]:
    """What lies at places (byte, length) of a device that is open with O_DIRECT, as much of it as there is: each is read while
    the one before is looked at, and lasts until the next is asked for. An error stands for what cannot be read."""
    with ExitStack() as held:
        memory = [held.enter_context(_memory()) for _ in range(2)]
        reader = held.enter_context(ThreadPoolExecutor(1, "read ahead"))

        def read(number: int) -> int | OSError:
            begin, length = places[number]
            with memory[number % 2][:length] as data:
                try:
                    return _read(handle, data, begin)
                except OSError as error:
                    return error

        coming = deque(reader.submit(read, number) for number in range(min(1, len(places))))
        for number in range(len(places)):
            count = coming.popleft().result()
            if number + 1 < len(places):
                coming.append(reader.submit(read, number + 1))
            if isinstance(count, OSError):
                yield count
                continue
            with memory[number % 2][:count] as data:
                yield data


@contextmanager
def _memory() -> Iterator[memoryview]:
    with mmap.mmap(-1, LARGEST) as memory, memoryview(memory) as view:
        yield view
