"""What an installer's words mean: signs that it failed, and the stages that a progress bar follows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from pocketcloud.bases.progress import OnProgress


@dataclass(frozen=True, slots=True)
class Stage:
    """A text that tells how far an installer is: from `start` to `end` of the whole. Groups of the pattern: `n` and `of`, or
    `percent`, say how far the stage itself is; all of them may stand in `text`, which is for people."""

    pattern: re.Pattern[str]
    text: str
    start: float
    end: float


def stage(pattern: str, text: str, start: float, end: float = 0.0) -> Stage:
    """A stage; without an `end` it is a point."""
    return Stage(re.compile(pattern), text, start, max(start, end))


@dataclass(frozen=True, slots=True)
class Signs:
    """One installer's. A line that `ignored` is in is no failure. The port `log` (empty: none) gets what it writes down."""

    failures: re.Pattern[str]
    stages: tuple[Stage, ...]
    ignored: re.Pattern[str] | None = None
    log: str = ""

    def failure(self, line: str) -> bool:
        """Whether a line says that all is lost."""
        return self.failures.search(line) is not None and not (self.ignored and self.ignored.search(line))


def any_of(texts: Sequence[str]) -> re.Pattern[str]:
    """A pattern for lines in which one of the patterns is."""
    return re.compile("|".join(f"(?:{text})" for text in texts))


# Of any Linux, whoever's installer it runs: kernel/panic.c, mm/oom_kill.c, and kernel/reboot.c, whose "Restarting system" a clean
# end has not.
KERNEL = (
    r"Kernel panic - not syncing",
    r"Out of memory: Killed process",
    r"reboot: Restarting system",
    r"reboot: System halted",
    r"Fatal glibc error: CPU does not support",
)
REBOOT = re.compile(r"reboot: Restarting system")
NO_SPACE = re.compile(r"No space left on device|Not enough (disk )?space|insufficient disk space|disk is too small", re.I)
NO_MEMORY = re.compile(r"Out of memory|Low memory|Cannot allocate memory|not enough memory", re.I)


@dataclass(slots=True)
class Stages:
    """Reads lines and reports to `tell`, as fractions from `start` to `end`, which never fall."""

    stages: tuple[Stage, ...]
    tell: OnProgress
    start: float = 0.0
    end: float = 1.0
    _reached: float = 0.0
    _said: str = field(default="")

    def line(self, text: str) -> None:
        """Take one line, or the beginning of one."""
        for each in self.stages:
            matches = list(each.pattern.finditer(text))
            if matches:
                self._report(each, {name: value or "" for name, value in matches[-1].groupdict().items()})
                return

    def _report(self, found: Stage, said: dict[str, str]) -> None:
        at = found.start + (found.end - found.start) * _share(said)
        if at < self._reached:
            return  # a late line of a stage that is over
        text = found.text.format(**{name: value[:60] for name, value in said.items()})
        if (at, text) != (self._reached, self._said):
            self._reached, self._said = at, text
            self.tell(text, self.start + (self.end - self.start) * at)


def _share(said: dict[str, str]) -> float:
    if said.get("percent"):
        return min(int(said["percent"][:3]), 100) / 100
    if said.get("n") and said.get("of") and int(said["of"][:9]):
        return min(int(said["n"][:9]) / int(said["of"][:9]), 1.0)
    return 0.0
