"""How quickly a disk is read, found by reading it: past the page cache, for some seconds, and never a byte written.

What a disk says of itself is not to be had through many USB bridges (they call an SSD rotating), and hdparm's figure is that
of its first sectors. The reading is a program of its own, disk_probe.py; what the figures mean is verdict.py.
"""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pocketcloud.errors import HostLacks, Refused
from pocketcloud.model.disk import TIMES, Measured
from pocketcloud.system import CommandFailed, Runner
from pocketcloud.system import run as run_command

SECONDS = 6.0
PATIENCE = 20.0
"""Seconds beyond those asked for in which a disk may spin up, or stumble; one that needs more did not answer."""

# Of what was read here: from this share on, what others read and wrote meanwhile is told.
_DISTURBING = 0.1


def measure(
    path: Path,
    seconds: float = SECONDS,
    *,
    run: Runner = run_command,
    tell: Callable[[float], None] = lambda _: None,
    patience: float = PATIENCE,
) -> Measured | None:
    """Read the device (or file) for about `seconds`, see disk_probe.py; twice where others kept it busy meanwhile, and the
    quieter of the two counts. `tell` is called with how far it is (0 to 1).

    None if it is too small or cannot be read past the cache (a file on tmpfs). Reads that fail are counted. Raises HostLacks
    without the right to read it, Refused if it is gone, goes meanwhile, or does not answer.
    """
    found = _once(path, seconds, run, tell, patience)
    if found is None or not found.others:
        return found
    again = _once(path, seconds, run, tell, patience)
    return found if again is None or again.others > found.others else again


def _once(path: Path, seconds: float, run: Runner, tell: Callable[[float], None], patience: float) -> Measured | None:
    probe = Path(__file__).with_name("disk_probe.py")
    said: dict[str, Any] = {}

    def heard(line: str) -> None:
        try:
            words = json.loads(line)
        except ValueError:
            return
        if isinstance(words, dict):
            said.update(words)
            if isinstance(at := words.get("at"), float):
                tell(at)

    try:
        # -I: nothing from the current folder or the user's environment is imported by what may run as root.
        done = run([sys.executable, "-I", probe, path, f"{seconds}"], timeout=seconds + patience, on_line=heard)
    except CommandFailed as failed:
        if failed.completed.code == -9:
            words = f"{path} did not answer within {seconds + patience:.0f} s"
            raise Refused(words, hint="look at what the kernel says of it: dmesg") from None
        raise
    if said.get("small"):
        return None
    if "random" in said:
        return judged(said)
    number = said.get("errno")
    if number == errno.EINVAL:
        return None
    if number in (errno.EACCES, errno.EPERM):
        raise _denied(path)
    why = {None: done.out.strip().rpartition("\n")[2], errno.ENODEV: "it went away meanwhile"}.get(number, said.get("failed"))
    raise Refused(f"{path} cannot be read: {why}", hint="plug it in again, or choose another disk (lsblk lists them)")


def _denied(path: Path) -> HostLacks:
    if os.geteuid() == 0:
        # The control group of devices, or a security module, which ask nobody's uid.
        said = f"{path} may not be read, although this is root: a container's rules, or a security module, keep it away"
        return HostLacks(said, hint="do it outside of the container, or have the device allowed in it")
    return HostLacks(f"{path} may not be read by this user", hint="do it as root")


def judged(said: Mapping[str, Any]) -> Measured | None:
    """The figures that follow from the times; None where no read came back and none failed."""
    large, first, small = said["large"], said["first"], said["random"]
    parts = (large, first, small)
    failed = sum(part["failed"] for part in parts)
    if not large["times"] or not small["times"]:
        return Measured(0, 0, 0, 0, failed) if failed else None
    counts = [0] * (len(TIMES) + 1)
    for seconds in small["times"]:
        counts[bisect_right(TIMES, seconds)] += 1
    disturbed = any(part["others"] > _DISTURBING * part["size"] * len(part["times"]) for part in parts)
    return Measured(
        sequential=_rate(large),
        random_reads=_rate(small) / small["size"],
        p50=percentile(small["times"], 50),
        p99=percentile(small["times"], 99),
        failed=failed,
        first=_rate(first),
        counts=tuple(counts),
        others=sum(part["others"] for part in parts) if disturbed else 0,
        asleep=said["asleep"],
    )


def _rate(part: Mapping[str, Any]) -> float:
    """In bytes per second, of the time that the reads took: what Python does between them is not the disk's."""
    return float(len(part["times"]) * part["size"] / max(sum(part["times"]), 1e-9))


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest of the values that so many percent of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
