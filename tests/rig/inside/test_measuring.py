"""Disks on their bad days, measured: they hang, wake up, go away, err, are slow, are busy. Real device-mapper and SCSI disks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pocketcloud.errors import Refused
from pocketcloud.host.disk_speed import measure
from pocketcloud.model.sizes import MIB

QUIET = {"DM_DISABLE_UDEV": "1", "LVM_SUPPRESS_FD_WARNINGS": "1"}
SECTORS = 256 * MIB // 512
SLEEPER = Path("/dev/mapper/sleeper")


def sh(command: str) -> str:
    done = subprocess.run(["sh", "-ec", command], capture_output=True, env=os.environ | QUIET, check=False, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def below(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The disk that all others are made of."""
    image = tmp_path_factory.mktemp("below") / "image"
    sh(f"modprobe -a loop dm-mod dm-delay sd_mod; truncate -s 256M {image}")
    device = sh(f"losetup -f --show {image}")
    yield device
    sh(f"losetup -d {device}")


@pytest.fixture
def mapped(below: str) -> Iterator[Callable[[str], Path]]:
    """Makes /dev/mapper/sleeper of a table without its first two numbers, in which {} is the disk; taken down afterwards."""

    def make(table: str) -> Path:
        sh(f"dmsetup create sleeper --table '0 {SECTORS} {table.format(below)}'")
        return SLEEPER

    yield make
    sh("dmsetup resume sleeper || true; for i in 1 2 3 4 5 6 7 8 9 10; do dmsetup remove sleeper && exit; sleep 1; done; exit 1")


def later(seconds: float, command: str) -> threading.Thread:
    """Runs a command in a while; this is what happens to the disk, so it is the test's own, and waited for by it."""
    thread = threading.Timer(seconds, sh, [command])
    thread.start()
    return thread


def probes() -> list[str]:
    """The states of the programs that read a disk."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"disk_probe.py" in (process / "cmdline").read_bytes():
                found.append((process / "stat").read_text().rpartition(")")[2].split()[0])
        except OSError:
            continue
    return found


def test_a_disk_that_hangs_is_left_and_hangs_nobody(mapped: Callable[[str], Path]) -> None:
    path = mapped("linear {} 0")
    sh("dmsetup suspend --noflush --nolockfs sleeper")
    begun = time.monotonic()
    with pytest.raises(Refused, match="did not answer within 3 s"):
        measure(path, 1.0, patience=2.0)
    assert time.monotonic() - begun < 30
    assert probes() == ["D"], "the kernel holds it: no signal ends it"
    # It goes with its disk's next answer.
    sh("dmsetup resume sleeper")
    until = time.monotonic() + 20
    while any(state != "Z" for state in probes()) and time.monotonic() < until:
        time.sleep(0.1)
    assert [state for state in probes() if state != "Z"] == []
    assert measure(path, 0.6) is not None


def test_a_disk_that_hangs_in_the_middle_too(mapped: Callable[[str], Path]) -> None:
    path = mapped("delay {} 0 20")
    thread = later(1.5, "dmsetup suspend --noflush --nolockfs sleeper")
    with pytest.raises(Refused, match="did not answer within 5 s"):
        measure(path, 4.0, patience=1.0)
    thread.join()


def check(*words: str) -> tuple[dict[str, dict[str, Any]], float]:
    """What the command says of a disk, and how long that took."""
    begun = time.monotonic()
    argv = [sys.executable, "-m", "pocketcloud", "check", "-o", "json", *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    return {found["id"]: found for found in json.loads(done.stdout)}, time.monotonic() - begun


@pytest.mark.slow
def test_the_command_ends_though_a_disk_does_not_answer(mapped: Callable[[str], Path]) -> None:
    """lsblk, too, may wait for it: without udev it looks into the devices itself."""
    path = mapped("linear {} 0")
    sh("dmsetup suspend --noflush --nolockfs sleeper")
    found, took = check("--device", str(path))
    assert took < 150
    assert "memory" in found
    (told,) = (judged for name, judged in found.items() if name.startswith("speed:") or name == "disks")
    assert told["state"] == "unknown"
    print(told["evidence"], f"{took:.0f} s")
    assert "did not answer within" in told["evidence"] or "not done after" in told["evidence"]


def test_a_disk_that_has_to_wake_up_is_measured_awake(mapped: Callable[[str], Path]) -> None:
    path = mapped("linear {} 0")
    sh("dmsetup suspend --noflush --nolockfs sleeper")
    thread = later(4.0, "dmsetup resume sleeper")
    measured = measure(path, 0.9)
    thread.join()
    assert measured is not None
    assert 1.0 < measured.asleep < 20
    assert measured.p99 < 1.0
    assert measured.failed == 0


def test_a_slow_disk_is_told_by_its_times(mapped: Callable[[str], Path]) -> None:
    """As slow as an arm; the kernel's ticks, of 10 ms here, come on top."""
    measured = measure(mapped("delay {} 0 15"), 3.0)
    assert measured is not None
    assert 0.015 <= measured.p50 < 0.2
    assert measured.asleep == 0
    assert sum(measured.counts[:5]) == 0, "none below 10 ms"
    assert measured.random_reads < 1 / 0.015


def reload(table: str) -> None:
    sh(f"printf '{table}' | dmsetup load sleeper; dmsetup suspend --noflush --nolockfs sleeper; dmsetup resume sleeper")


def test_reads_that_fail_are_counted(mapped: Callable[[str], Path], below: str) -> None:
    """A disk whose second half gives errors, then all of it."""
    half = SECTORS // 2
    path = mapped("linear {} 0")
    reload(f"0 {half} linear {below} 0\\n{half} {half} error\\n")
    measured = measure(path, 1.5)
    assert measured is not None
    assert measured.failed > 10
    assert measured.random_reads > 0
    reload(f"0 {SECTORS} error\\n")
    dead = measure(path, 1.5)
    assert dead is not None
    assert (dead.random_reads, dead.sequential) == (0, 0)
    assert dead.failed > 10


@pytest.fixture
def plugged(below: str) -> Iterator[Path]:
    """A disk that takes 10 ms for each read, and can be pulled."""
    assert below
    sh("modprobe scsi_debug dev_size_mb=64 delay=1")
    try:
        yield Path("/dev") / next(Path("/sys/bus/pseudo/drivers/scsi_debug").glob("adapter*/host*/target*/*/block/*")).name
    finally:
        sh("modprobe -r scsi_debug")


def test_a_disk_that_is_pulled_meanwhile_is_gone(plugged: Path) -> None:
    thread = later(1.5, f"echo 1 > /sys/block/{plugged.name}/device/delete")
    with pytest.raises(Refused, match="it went away meanwhile"):
        measure(plugged, 30.0)
    thread.join()


def test_a_disk_that_others_read_is_told_to_be_busy(plugged: Path) -> None:
    path = plugged
    other = subprocess.Popen(["sh", "-c", f"while :; do dd if={path} of=/dev/null bs=64k iflag=direct 2>/dev/null; done"])
    try:
        busy = measure(path, 1.8)
        assert busy is not None
        assert busy.others > MIB / 4
    finally:
        other.kill()
        other.wait()
    until = time.monotonic() + 30
    quiet = measure(path, 0.9)
    while quiet is not None and quiet.others and time.monotonic() < until:  # the last dd of the loop
        quiet = measure(path, 0.9)
    assert quiet is not None
    assert quiet.others == 0
