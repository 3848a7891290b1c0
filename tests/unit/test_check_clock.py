"""Checks of the clock."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pocketcloud.check import State
from pocketcloud.check.clock import judged
from pocketcloud.host.clock import Clock, kernel_synchronised, read_clock
from pocketcloud.system import run, which
from tests.computers import Computer
from tests.host_trees import plant, x86_laptop

NOW = 1_750_000_000.0
# It runs by itself, and is right.
ALONE = Clock(synchronised=False, keepers=(), installed=(), local=False, newest=NOW - 60, newest_name="/var/lib/dpkg/status")
KEPT = replace(ALONE, keepers=("chronyd",), installed=("chronyd",))


@pytest.mark.parametrize(
    ("clock", "virtualised", "state", "words"),
    [
        (replace(KEPT, synchronised=True), False, State.OK, "synchronised by chronyd"),
        (replace(KEPT, local=True), False, State.OK, "chronyd will see to that with a network; its hardware clock"),
        (ALONE, True, State.OK, "its hypervisor gave it the time"),
        (ALONE, False, State.WARN, "nothing is set up to set it"),
        (replace(ALONE, installed=("chrony",)), False, State.WARN, "nothing is set up to set it"),
        (replace(KEPT, newest=NOW + 9e6), False, State.WARN, "/var/lib/dpkg/status was written on 2025-09-27"),
        (replace(ALONE, synchronised=True, newest=NOW + 60), False, State.OK, "synchronised"),
    ],
)
def test_a_clock_is_right_kept_or_cannot_be(clock: Clock, virtualised: bool, state: State, words: str) -> None:
    check = judged(clock, NOW, virtualised=virtualised, can_set=True)
    assert check.state is state
    assert words in check.evidence
    assert bool(check.remedy) == (state is State.WARN)
    assert bool(check.fix) == (state is State.WARN and clock.installed == ("chrony",))


def test_what_sets_a_clock_is_found(tmp_path: Path) -> None:
    plant(tmp_path, {"etc/adjtime": "0.0 0 0.0\n0\nLOCAL\n", "var/lib/dpkg/status": "", "proc/77/comm": "chronyd\n"})
    os.utime(tmp_path / "var/lib/dpkg/status", (NOW, NOW))
    plant(tmp_path, {"etc/systemd/system/sysinit.target.wants/systemd-timesyncd.service": ""})
    assert read_clock(tmp_path) == replace(KEPT, synchronised=None, installed=(), local=True, newest=NOW)
    plant(tmp_path, {"run/systemd/system/": "", "run/systemd/timesync/synchronized": "", "lib/systemd/system/ntp.service": ""})
    assert read_clock(tmp_path).keepers == ("chronyd", "systemd-timesyncd")
    assert read_clock(tmp_path).synchronised
    assert read_clock(tmp_path).installed == ("ntp",)


def test_a_clock_in_the_past_is_told(tmp_path: Path) -> None:
    computer = Computer(tmp_path, x86_laptop("debian-13"))
    plant(tmp_path, {"var/lib/dpkg/status": ""})
    os.utime(tmp_path / "var/lib/dpkg/status", (time.time() + 1e6,) * 2)
    check = computer.checks()["clock"]
    assert check.state is State.WARN
    assert check.remedy[0].startswith("date -s")


def test_this_kernel_says_whether_it_is_set() -> None:
    said = kernel_synchronised()
    assert said in (True, False)
    if which("adjtimex") is not None:  # the Debian package; it prints the same structure
        status = next(line for line in run(["adjtimex", "--print"]).out.splitlines() if "status" in line)
        assert said is not bool(int(status.split()[-1]) & 0x40)
