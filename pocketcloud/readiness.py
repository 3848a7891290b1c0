"""Signs of life that need no login: a TCP port that answers, a line on the serial console; and the way all waiting is done.

ssh is in guest.py, the guest agent in the hypervisor's room.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pocketcloud.errors import NotReady, UsageError

# A guest's kernel answers a SYN at once even under emulation; what is longer is an address that nobody has yet.
PROBE_SECONDS = 1.0
POLL_SECONDS = 0.3

# Terminal control as firmware, GRUB and systemd write it (ECMA-48): CSI sequences, OSC strings, character sets, other escapes.
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[ -/]+[0-~]|\x1b[0-~]|[\x00\x07\x08]")
_LINE_END = re.compile(r"[\r\n]+")


class WaitInterrupted(NotReady):
    """The waiting was ended from outside before there was an answer."""

    exit_code = 130


def wait_until(true: Callable[[], bool], what: str, deadline: float, stop: threading.Event) -> None:
    """Ask `true` every 0.3 s until it says so. `deadline` is a value of time.monotonic(); `what` names what is waited for.

    Asks at least once. Raises NotReady when the time is up, WaitInterrupted as soon as `stop` is set.
    """
    started = time.monotonic()
    while True:
        if stop.is_set():
            raise WaitInterrupted(f"{what}: interrupted")
        if true():
            return
        left = deadline - time.monotonic()
        if left <= 0:
            raise NotReady(f"{what}: not there after {time.monotonic() - started:.0f} s")
        stop.wait(min(POLL_SECONDS, left))


def tcp_open(address: str, port: int, timeout: float) -> bool:
    """Whether something accepts connections there within `timeout` seconds."""
    try:
        socket.create_connection((address, port), timeout=timeout).close()
    except OSError:
        return False
    return True


def wait_tcp(address: str, port: int, deadline: float, stop: threading.Event) -> None:
    """Wait until a TCP port accepts connections; deadline, stop and errors as in `wait_until`."""
    wait_until(lambda: tcp_open(address, port, PROBE_SECONDS), f"{address} port {port}", deadline, stop)


def console_has(log: Path, pattern: str) -> bool:
    """Whether the regular expression `pattern` is found in a line of a serial log; a log that does not exist has no lines.

    Lines are seen without terminal control sequences, and the last one also while it is unfinished (a login prompt is).
    Raises UsageError if `pattern` is not a regular expression.
    """
    return _Console(log, pattern).found()


def wait_console(log: Path, pattern: str, deadline: float, stop: threading.Event) -> None:
    """Wait until `console_has`; deadline, stop and errors as in `wait_until`. A log that gets shorter is read anew."""
    wait_until(_Console(log, pattern).found, f"{pattern!r} on the console ({log})", deadline, stop)


class _Console:
    """A serial log that is read on from where it was left: the last unfinished line is read again."""

    def __init__(self, log: Path, pattern: str) -> None:
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            raise UsageError(f"{pattern!r} is not a regular expression: {error}") from None
        self._log = log
        self._read = 0

    def found(self) -> bool:
        try:
            with self._log.open("rb") as file:
                size = file.seek(0, 2)
                if size < self._read:
                    self._read = 0
                file.seek(self._read)
                content = file.read()
        except FileNotFoundError:
            return False
        # A line may also end in a lone \r, but only after \n is it sure that none of its escape sequences is cut in two.
        self._read += content.rfind(b"\n") + 1
        text = _CONTROL.sub("", content.decode(errors="replace"))
        return any(self._pattern.search(line) for line in _LINE_END.split(text))
