"""Locks between commands: flock on files in a folder that a reboot empties. The kernel drops them with their holder, so
none is ever stale; what is written in them only serves the message."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pocketcloud.errors import Busy

_ASK_AGAIN = 0.1  # seconds


def whole_kit(kit: str) -> str:
    """The name of the lock on all of a kit, by its id: who is at work in a lab or a base of it holds it with others, who needs
    all of them at rest alone."""
    return f"kit.{kit}"


@contextmanager
def held(
    folder: Path,
    name: str,
    what: str,
    *,
    wait: bool,
    on_wait: Callable[[str], None] | None = None,
    shared: bool = False,
    stop: threading.Event | None = None,
) -> Iterator[None]:
    """Hold the lock `name`; `what` describes our command for those who meet it. `shared`: with others that hold it so.

    Taken by another: calls `on_wait` with its description and waits, or raises Busy with it if not `wait`, or when `stop` is
    set meanwhile, which reaches threads that wait here, as a signal does not.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    handle = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 400, 0).decode(errors="replace").strip() or "another command"
            if not wait:
                raise Busy(f"busy: {holder} works on it", hint="wait until it is done, or leave out --no-wait") from None
            if on_wait:
                on_wait(holder)
            if stop is None:
                fcntl.flock(handle, kind)
            while stop is not None:
                try:
                    fcntl.flock(handle, kind | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if stop.wait(_ASK_AGAIN):
                        raise Busy(f"stopped while {holder} was waited for") from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"`{what}` (process {os.getpid()})\n".encode(), 0)
        yield
    finally:
        os.close(handle)
