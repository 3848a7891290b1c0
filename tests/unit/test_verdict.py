"""What is said of disks, and of how they were measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pocketcloud.model.disk import BlockDevice, Measured, Scsi
from pocketcloud.model.judgement import State, Topic
from pocketcloud.model.profile import DiskSpeed, Medium
from pocketcloud.model.sizes import GIB, KIB, MIB
from pocketcloud.model.usb import UsbHop, UsbPath
from pocketcloud.profiles import find
from pocketcloud.verdict import NONSENSE_IO, is_ssd, verdict

FAST = Measured(sequential=412e6, random_reads=9800, p50=0.0001, p99=0.0004)
ARM = Measured(sequential=120e6, random_reads=110, p50=0.009, p99=0.021)
BETWEEN = Measured(sequential=35e6, random_reads=300, p50=0.003, p99=0.006)

SCSI = Scsi("6:0:0:0", "unmap", "write back", declares_unmap=True)
USB = BlockDevice(
    "sdb", Path("/dev/sdb"), "disk", 931 * GIB,
    rotational=True, model="T7", serial="S5", transport="usb",
    usb=UsbPath("uas", (UsbHop("2-1", 10000, version="3.20", id="04e8:4001"), UsbHop("usb2", 10000)), offers_uas=True),
    discard_max=4 * GIB, write_cache="write back", scsi=SCSI,
)  # fmt: skip
NVME = replace(USB, name="nvme0n1", path=Path("/dev/nvme0n1"), rotational=False, transport="nvme", usb=None, scsi=None)


def said(target: BlockDevice, measured: Measured | None) -> str:
    return "\n".join(texts(target, measured))


def texts(target: BlockDevice, measured: Measured | None) -> tuple[str, ...]:
    return tuple(remark.text for remark in verdict(target, measured))


@pytest.mark.parametrize(
    ("target", "measured", "expected"),
    [
        (USB, FAST, True),
        (USB, ARM, False),
        (USB, BETWEEN, True),
        (replace(USB, transport=""), BETWEEN, None),
        (USB, None, None),
        (replace(USB, rotational=False), None, True),
        (replace(USB, rotational=False), ARM, True),
        (replace(USB, transport="sata"), None, False),
        (replace(USB, transport="sata"), ARM, False),
        # A virtual disk says it rotates, and is as quick as what lies below.
        (replace(USB, transport=""), FAST, True),
        (replace(USB, transport=""), None, None),
        (NVME, None, True),
    ],
)
def test_an_ssd_is_known_by_its_word_or_by_its_reads(
    target: BlockDevice, measured: Measured | None, expected: bool | None
) -> None:
    assert is_ssd(target, measured) is expected
    first = texts(target, measured)[0]
    assert first.startswith({True: "SSD: yes", False: "SSD: no", None: "SSD: not known"}[expected])


def test_a_disk_that_its_reads_do_not_tell_is_to_be_measured_again() -> None:
    for target, measured in ((replace(USB, transport="", usb=None), BETWEEN), (USB, replace(ARM, others=300 * MIB))):
        first = verdict(target, measured)[0]
        assert "each, do not tell" in first.text
        assert first.remedy == (f"When this computer has nothing else to do: sudo pocketcloud check --device {target.path}",)


def test_a_good_disk_gets_short_praise() -> None:
    assert texts(USB, FAST) == (
        "SSD: yes (by the time of its reads; it calls itself rotating, as many USB bridges do)",
        "speed: 412 MB/s in sequence, 9800 random reads of 4 KiB per second (half of them within 0.10 ms, 99 % within 0.40 ms)",
        "USB: 10000 Mbit/s, driver uas, 04e8:4001",
        "TRIM: yes: the disk takes it, Linux passes it on (unmap, up to 4 GiB at a time), so do a kit's pool and machines' disks",
        "write cache: flushed when it matters",
    )
    assert texts(NVME, None) == (
        "SSD: yes (it says so itself)",
        "speed: not measured",
        "TRIM: yes: the disk takes it, Linux passes it on (up to 4 GiB at a time), so do a kit's pool and machines' disks",
        "write cache: flushed when it matters",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"discard_max": 64 * KIB}, "up to 64 KiB at a time): maybe less than a chunk of the pool"),
        ({"discard_max": 0, "scsi": replace(SCSI, provisioning="full")}, "the chain ends in Linux: the disk declares UNMAP"),
        ({"discard_max": 0, "scsi": Scsi("6:0:0:0", "full", declares_unmap=False)}, "the enclosure, which declares no UNMAP"),
        ({"discard_max": 0, "scsi": Scsi("6:0:0:0", "full")}, "the enclosure, which was not asked for it by uas"),
        ({"discard_max": 0, "scsi": replace(SCSI, provisioning="disabled")}, "declared it and then refused it"),
        ({"discard_max": 0, "scsi": None, "usb": None, "transport": "nvme"}, "the chain ends in the disk, which does not take"),
        ({"discard_max": 0, "scsi": None, "usb": None, "transport": ""}, "the virtual disk does not take it"),
        ({"write_cache": "write through"}, "somebody has told Linux not to flush it"),
        ({"fua": False}, "no forced writes (FUA), a flush instead"),
        ({"write_cache": "write through", "scsi": replace(SCSI, cache="write through")}, "the kernel sends no flushes"),
        ({"optimal_io": NONSENSE_IO}, "its optimal I/O size (33553920) is nonsense"),
        ({"optimal_io": 4 * MIB + 512}, "is nonsense"),
        ({"logical_sector": 4096}, "its sectors have 4096 bytes"),
        ({"serial": ""}, "it has no serial number"),
    ],
)
def test_each_thing_that_is_wrong_is_said_and_only_then(change: dict[str, object], expected: str) -> None:
    assert expected in said(replace(USB, **change), FAST)  # type: ignore[arg-type]  # named as the fields
    assert expected not in said(USB, FAST)


def test_slow_and_failing_disks_are_told() -> None:
    assert "slow for" not in said(USB, ARM), "without a profile nothing is asked of a disk"
    assert "ATTENTION: 3 reads failed" in said(USB, replace(FAST, failed=3))
    assert "ATTENTION: 11 reads failed" in said(USB, Measured(0, 0, 0, 0, failed=11))
    assert "in trouble" in said(NVME, ARM)
    assert "in trouble" not in said(NVME, FAST)


def test_what_falsified_the_figures_is_told() -> None:
    """And is not taken for the disk's own fault: a read that waits for others says nothing of an arm."""
    assert "its beginning on 400 MiB/s, which `hdparm -t --direct` calls MB/sec" in said(USB, replace(FAST, first=400 * MIB))
    assert "it was asleep: the first read took 4 s, which is not counted" in said(USB, replace(FAST, asleep=4.2))
    busy = replace(ARM, others=300 * MIB)
    assert "busy: others read and wrote 300 MiB meanwhile" in said(USB, busy)
    assert is_ssd(USB, busy) is None
    assert "in trouble" not in said(NVME, busy)
    for word in ("hdparm", "asleep", "busy"):
        assert word not in said(USB, FAST)


LEAST = {Medium.USB: DiskSpeed(100, 2000), Medium.INTERNAL: DiskSpeed(150, 3000)}


@pytest.mark.parametrize(
    ("target", "sequential", "random_reads", "slow"),
    [
        (USB, 100e6, 2000, ""),
        (USB, 99e6, 9000, "which take 100 MB/s and 2000 reads a second"),
        (USB, 400e6, 1999, "which take 100 MB/s and 2000 reads a second"),
        (NVME, 120e6, 2500, "which take 150 MB/s and 3000 reads a second"),
        (NVME, 150e6, 3000, ""),
    ],
)
def test_a_disk_is_held_against_what_the_profile_asks_of_its_medium(
    target: BlockDevice, sequential: float, random_reads: float, slow: str
) -> None:
    remarks = verdict(target, replace(FAST, sequential=sequential, random_reads=random_reads), LEAST)
    told = [remark for remark in remarks if remark.topic is Topic.SPEED]
    assert [remark.state for remark in told] == ([State.OK, State.WARN] if slow else [State.OK])
    assert slow in told[-1].text


def test_what_the_shipped_profiles_ask_is_held_against_the_disk_too() -> None:
    """A USB 2 stick does for a PINE A64, and not for a laptop."""
    stick = replace(FAST, sequential=35e6, random_reads=1800, p50=0.0005)
    asked = {name: [r.state for r in verdict(USB, stick, find(name).disk_speed)] for name in ("pine64", "x86-laptop")}
    assert State.WARN not in asked["pine64"]
    assert State.WARN in asked["x86-laptop"]
