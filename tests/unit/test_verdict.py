"""What is said of disks, and of how they were measured."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from pocketcloud.model.disk import BlockDevice, Measured
from pocketcloud.model.judgement import State
from pocketcloud.model.sizes import GIB, KIB, MIB
from pocketcloud.verdict import NONSENSE_IO, Topic, is_ssd, known_bridges, verdict

FAST = Measured(sequential=412e6, random_reads=9800, p50=0.0001, p99=0.0004)
ARM = Measured(sequential=120e6, random_reads=110, p50=0.009, p99=0.021)
BETWEEN = Measured(sequential=35e6, random_reads=300, p50=0.003, p99=0.006)

USB = BlockDevice(
    "sdb", Path("/dev/sdb"), "disk", 931 * GIB,
    rotational=True, model="T7", serial="S5", transport="usb", usb_driver="uas", usb_speed=10000, usb_version="3.20",
    usb_id="04e8:4001", discard_max=4 * GIB, write_cache="write back",
)  # fmt: skip
NVME = replace(
    USB, name="nvme0n1", path=Path("/dev/nvme0n1"), rotational=False, transport="nvme", usb_driver="", usb_speed=0, usb_id=""
)


def said(target: BlockDevice, measured: Measured | None) -> str:
    return "\n".join(texts(target, measured))


def texts(target: BlockDevice, measured: Measured | None) -> tuple[str, ...]:
    return tuple(remark.text for remark in verdict(target, measured))


@pytest.mark.parametrize(
    ("target", "measured", "expected"),
    [
        (USB, FAST, True),
        (USB, ARM, False),
        (USB, BETWEEN, None),
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


def test_a_good_disk_gets_short_praise() -> None:
    assert texts(USB, FAST) == (
        "SSD: yes (by the time of its reads; it calls itself rotating, as many USB bridges do)",
        "speed: 412 MB/s in sequence, 9800 random reads of 4 KiB per second (half of them within 0.10 ms, 99 % within 0.40 ms)",
        "USB: 10000 Mbit/s, driver uas, 04e8:4001",
        "TRIM: yes",
        "write cache: flushed when it matters",
    )
    assert texts(NVME, None) == (
        "SSD: yes (it says so itself)", "speed: not measured", "TRIM: yes", "write cache: flushed when it matters",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"usb_speed": 480}, "its port, hub or cable is USB 2: move it"),
        ({"usb_speed": 480, "usb_version": "2.10"}, "its port, hub or cable is USB 2: move it"),
        ({"usb_speed": 480, "usb_version": "2.00"}, "this is USB 2: some 40 MB/s at best"),
        ({"usb_driver": "usb-storage"}, "one command at a time"),
        ({"usb_driver": "", "usb_speed": 0}, "USB: unknown speed, driver unknown"),
        ({"usb_autosuspend": True}, "some enclosures then drop off"),
        ({"discard_max": 0}, "TRIM: no, the enclosure does not offer it"),
        ({"discard_max": 64 * KIB}, "TRIM: only 64 KiB at a time"),
        ({"write_cache": "write through"}, "the kernel sends no flushes"),
        ({"optimal_io": NONSENSE_IO}, "its optimal I/O size (33553920) is nonsense"),
        ({"optimal_io": 4 * MIB + 512}, "is nonsense"),
        ({"logical_sector": 4096}, "its sectors have 4096 bytes"),
        ({"serial": ""}, "it has no serial number"),
    ],
)
def test_each_thing_that_is_wrong_is_said_and_only_then(change: dict[str, object], expected: str) -> None:
    assert expected in said(replace(USB, **change), FAST)  # type: ignore[arg-type]  # named as the fields
    assert expected not in said(USB, FAST)


def test_bridges_that_are_known_for_trouble_are_named() -> None:
    watched = verdict(replace(USB, usb_id="152d:0578"), FAST)
    (remark,) = (remark for remark in watched if "known for trouble" in remark.text)
    assert (remark.topic, remark.state) == (Topic.USB, State.WARN)
    assert "JMicron JMS578" in remark.text
    assert "usb-storage.quirks=152d:0578:u" in remark.remedy[0]
    (handled,) = (remark for remark in verdict(replace(USB, usb_id="357d:7788"), FAST) if "known for trouble" in remark.text)
    assert (handled.state, handled.remedy) == (State.OK, ())
    assert "known for trouble" not in said(USB, FAST)


def test_the_table_of_bridges_is_whole() -> None:
    bridges = known_bridges()
    assert list(bridges) == sorted(bridges), "in the order of their ids"
    for identity, bridge in bridges.items():
        assert re.fullmatch("[0-9a-f]{4}:[0-9a-f]{4}", identity)
        assert all((bridge.name, bridge.trouble, bridge.source))


def test_slow_and_failing_disks_are_told() -> None:
    assert "slow for several machines at a time" in said(USB, ARM)
    assert "slow for" not in said(USB, FAST)
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
