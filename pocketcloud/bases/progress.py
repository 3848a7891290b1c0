"""How far a bootstrap is, and why it failed, from the lines that mmdebstrap, apt and dpkg print."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

OnProgress = Callable[[str, float], None]
"""Gets a text for people and the fraction done, 0 to 1, which never falls."""

_NEW = re.compile(r"(\d+) newly installed")
_GET = re.compile(r"Get:\d+ \S+ \S+ \S+ (\S+)")
_STEP = re.compile(r"(Unpacking|Setting up) ([^ :]+)")

# From where to where downloads and dpkg's steps go, of the whole of a bootstrap (measured). apt installs twice: what is
# essential, then the rest. dpkg has two steps for each package, and takes them in turns.
_SPANS = {(1, "Get"): (0.03, 0.06), (1, "dpkg"): (0.13, 0.44), (2, "Get"): (0.45, 0.48), (2, "dpkg"): (0.48, 0.98)}
_STEPS = {"Get": 1, "dpkg": 2}
_TEXTS = {"Get": "downloading", "Unpacking": "unpacking", "Setting up": "setting up"}


@dataclass(slots=True)
class Progress:
    """Reads the lines of `mmdebstrap --verbose` one by one and reports stages to `tell`, as fractions from `start` to `end`."""

    tell: OnProgress
    start: float = 0.0
    end: float = 1.0
    _round: int = 0
    _expected: int = 0
    _done: dict[tuple[int, str], int] = field(default_factory=dict)
    _reached: float = 0.0

    def line(self, text: str) -> None:
        """Take one line."""
        if text.startswith("I: running apt-get update"):
            self._report("reading package lists", 0.01)
        elif text.startswith("I: extracting archives"):
            self._report("extracting essential packages", 0.06)
        elif match := _NEW.search(text):
            self._round, self._expected = self._round + 1, int(match[1])
        elif match := _GET.match(text):
            self._count("Get", match[1])
        elif match := _STEP.match(text):
            self._count(match[1], match[2])
        elif "update-initramfs: Generating" in text:
            self._report("making the initramfs", self._reached)

    def _count(self, what: str, package: str) -> None:
        key = (self._round, "Get" if what == "Get" else "dpkg")
        span = _SPANS.get(key)
        if span is None or not self._expected:
            return
        done = self._done[key] = self._done.get(key, 0) + 1
        low, high = span
        share = done / (self._expected * _STEPS[key[1]])
        self._report(f"{_TEXTS[what]} {package}", low + (high - low) * min(share, 1.0))

    def _report(self, text: str, fraction: float) -> None:
        self._reached = max(self._reached, fraction)
        self.tell(text, self.start + (self.end - self.start) * self._reached)


_CAUSE = re.compile(
    r"^(E: |W: .*(Failed|GPG|signature)|Err:|dpkg: error|dpkg-deb: error|mke2fs: |sfdisk: |mkfs\.|/bin/sh: |sh: )|error:", re.I
)
_NETWORK = re.compile(
    r"Failed to fetch|Could not (resolve|connect)|Temporary failure|Connection (refused|timed out|failed)|404 |Err:"
)
_TRUST = re.compile(r"NO_PUBKEY|not signed|invalid signature|EXPKEYSIG|REVKEYSIG|no longer signed|signed-by", re.I)
_FULL = re.compile(r"No space left on device|Disk quota exceeded|not have enough free space", re.I)


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a bootstrap failed: the lines that say it, and of which kind it is."""

    lines: tuple[str, ...]
    network: bool
    trust: bool
    full: bool


def cause(output: str, most: int = 8) -> Cause:
    """The lines of a failed command's output that explain it: those that complain, `most` at most; else its last ones."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    said = list(dict.fromkeys(line for line in lines if _CAUSE.search(line)))
    # mmdebstrap ends with complaints about its own children; the first ones are the nearest to what happened.
    shown = tuple(said[:most] or lines[-most:])
    return Cause(shown, network=_any(_NETWORK, said), trust=_any(_TRUST, said), full=_any(_FULL, lines))


def _any(pattern: re.Pattern[str], lines: Sequence[str]) -> bool:
    return any(pattern.search(line) for line in lines)
