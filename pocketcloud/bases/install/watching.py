"""Listening to an installer: whether it comes to its end, how far it is, and why it failed, from its console and its ports.

That a machine is off says nothing: installers switch it off after errors, too. It has succeeded if the last of its steps wrote
`OK BUILD` to the marker port *and* the machine then switched itself off. `FAIL STEP` there, a text that is known for failures, a
reboot, silence, and too long a time end it.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from enum import StrEnum

from pocketcloud.bases.install.lines import Lines
from pocketcloud.bases.install.machine import CONSOLE, End, Outcome
from pocketcloud.bases.install.signs import REBOOT, Signs, Stages
from pocketcloud.model.profile import Deadlines
from pocketcloud.model.sizes import MIB, duration_text

PORT = "org.pocketcloud.install.0"
"""The marker port; every answer file knows it."""

_MARK = re.compile(r"(OK|FAIL)(?: (.*))?")
_USED = re.compile(r"USED (\d{1,15})", re.ASCII)
_BEFORE, _AFTER = 8, 12
_AFTERMATH = 2.0
"""Seconds in which the lines after a failure's first are waited for: they often explain it."""
_REMEMBERED = 400
_MOST = 64 * MIB
# What changes in a line though nothing happens: the kernel's clock, the time of day in a status line, process numbers.
_CLOCKS = re.compile(r"\[ *\d+\.\d+\]|\b\d{1,2}:\d\d(:\d\d)?([.,]\d+)?\b|\[\d+\]")
# The beginning of one, at the end of what has come of a line.
_CLOCK_BEGUN = re.compile(r"\[? *[\d:.,]*\Z")


class Fault(StrEnum):
    """Why an installation failed, as far as what to do about it differs."""

    TOLD = "told"
    """It said so: on the marker port, or in a text that is known for it."""
    SILENT = "silent"
    LATE = "late"
    FLOOD = "flood"
    REBOOTED = "rebooted"
    UNMARKED = "unmarked"
    """It switched the machine off and had not reported success."""
    KILLED = "killed"
    CRASHED = "crashed"
    FULL = "full"
    STUCK = "stuck"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why it failed: in words, and the lines of its that explain it, those before the first that complained among them."""

    fault: Fault
    why: str
    lines: tuple[str, ...]


class Watch:
    """Hears one installation (see machine.Watcher). `build` is what its marker says; `used` what it told of the bytes that its
    files took before they were sealed (0: nothing)."""

    def __init__(self, build: str, signs: Signs, stages: Stages, deadlines: Deadlines) -> None:
        self.used = 0
        self._build = build
        self._signs = signs
        self._stages = stages
        self._deadlines = deadlines
        self._lines: dict[str, Lines] = {}
        self._last: dict[str, deque[str]] = {}
        self._known: dict[str, None] = {}
        self._rests: dict[str, str] = {}
        self._bytes = 0
        self._begun: float | None = None
        self._alive = 0.0
        self._marked = False
        self._failure: tuple[Fault, str, str] | None = None
        self._explained: list[str] = []
        self._until = 0.0

    def hear(self, source: str, said: bytes, now: float) -> None:
        """See machine.Watcher."""
        self._bytes += len(said)
        lines = self._lines.setdefault(source, Lines())
        whole = lines.feed(said)
        for line in whole:
            self._line(source, line, now)
        # A question, or a percentage, waits at the end of its line. Beside whole lines it is only where the reading stopped.
        rest = lines.rest.strip()
        if rest and rest != self._rests.get(source):
            self._rests[source] = rest
            self._text(source, rest, now, new="" if whole else _CLOCK_BEGUN.sub("", rest))

    def enough(self, now: float) -> bool:
        """See machine.Watcher."""
        if self._begun is None:
            self._begun = self._alive = now
        if self._failure is None:
            self._judge_time(now)
        return self._failure is not None and now >= self._until

    def failure(self, outcome: Outcome) -> Failure | None:
        """Why it failed, None if it has succeeded; to be asked when it has ended."""
        if self._failure is None:
            fault = _FAULTS.get(outcome.end)
            if fault is None and not self._marked:
                fault = (Fault.UNMARKED, "the machine was switched off before the installer had reported success")
            if fault is not None:
                self._fail(fault[0], fault[1], CONSOLE, 0.0)
        if self._failure is None:
            return None
        return Failure(self._failure[0], self._failure[1], self._explanation())

    def _line(self, source: str, line: str, now: float) -> None:
        if source == PORT:
            self._mark(line, now)
            return
        self._text(source, line, now)
        self._last.setdefault(source, deque(maxlen=_BEFORE + 1)).append(line)
        if self._failure is not None and source == self._failure[2] and len(self._explained) < _BEFORE + _AFTER:
            self._explained.append(line)

    def _text(self, source: str, text: str, now: float, *, new: str | None = None) -> None:
        """`new`: what of it may be a sign of life, left out: all."""
        still = " ".join(_CLOCKS.sub(" ", text if new is None else new).split())
        if still and still not in self._known:
            # Something new. What repeats itself for ever is a loop, and no sign of life.
            self._known[still] = None
            if len(self._known) > _REMEMBERED:
                del self._known[next(iter(self._known))]
            self._alive = now
        if source == CONSOLE:
            self._stages.line(text)
        if self._failure is not None:
            return
        if self._marked:
            if REBOOT.search(text):
                self._fail(Fault.REBOOTED, "it rebooted after it had reported success, instead of switching off", source, now)
        elif self._signs.failure(text):
            fault = Fault.REBOOTED if REBOOT.search(text) else Fault.TOLD
            self._fail(
                fault, "the installer rebooted" if fault is Fault.REBOOTED else f"it said: {text.strip()[:200]}", source, now
            )

    def _mark(self, line: str, now: float) -> None:
        if told := _USED.fullmatch(line.strip()):
            self.used = int(told[1])
        match = _MARK.fullmatch(line.strip())
        if match is None or self._failure is not None:
            return
        word, rest = match[1], (match[2] or "").strip()
        self._alive = now
        if word == "FAIL":
            self._fail(Fault.TOLD, f"its step {rest[:200] or 'unnamed'!r} failed", CONSOLE, now)
        elif rest == self._build:
            self._marked = True
        else:
            self._fail(Fault.TOLD, "it reported the success of another build", CONSOLE, now)

    def _judge_time(self, now: float) -> None:
        idle, total = self._deadlines.idle, self._deadlines.total
        after = " after it had reported success" if self._marked else ""
        if now - self._alive >= idle:
            self._fail(Fault.SILENT, f"nothing new came from it for {duration_text(idle)}{after}", CONSOLE, now, patient=False)
        elif self._begun is not None and now - self._begun >= total:
            self._fail(Fault.LATE, f"it was not done after {duration_text(total)}", CONSOLE, now, patient=False)
        elif self._bytes > _MOST:
            self._fail(Fault.FLOOD, f"it printed more than {_MOST // MIB} MiB", CONSOLE, now, patient=False)

    def _fail(self, fault: Fault, why: str, source: str, now: float, *, patient: bool = True) -> None:
        self._failure = (fault, why, source)
        self._until = now + _AFTERMATH if patient else now
        self._explained = list(self._last.get(source, ()))[-_BEFORE:]

    def _explanation(self) -> tuple[str, ...]:
        rest = self._lines[CONSOLE].rest.strip() if CONSOLE in self._lines else ""
        lines = [*self._explained, *([rest] if rest and rest not in self._explained else [])]
        return tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))


_FAULTS = {
    End.KILLED: (Fault.KILLED, "somebody else ended its machine"),
    End.CRASHED: (Fault.CRASHED, "QEMU ended by itself; its log is in /var/log/libvirt/qemu"),
    End.FULL: (Fault.FULL, "the kit has no space left for its disk"),
    End.STUCK: (Fault.STUCK, "its disk gave an error, and it was stopped"),
}
