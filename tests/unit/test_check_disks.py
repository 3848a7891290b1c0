"""Checks of disks that could carry a kit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pocketcloud.check import State, failed
from pocketcloud.errors import HostLacks
from tests.computers import LIMPING, LSBLK, QUICK, Computer, disk
from tests.host_trees import plant, x86_laptop


@pytest.fixture
def laptop(tmp_path: Path) -> Computer:
    return Computer(tmp_path, x86_laptop("debian-13"))


def test_each_disk_is_judged_by_topic(laptop: Computer) -> None:
    checks = {name: check for name, check in laptop.checks().items() if check.group == "storage"}
    odd = {name: check.state for name, check in checks.items() if check.state is not State.OK}
    assert odd == {"usb:sdb": State.WARN}
    assert {"medium:sda", "speed:sda", "trim:sda", "write-cache:sda", "medium:sdb", "speed:sdb"} <= set(checks)
    assert checks["medium:sdb"].evidence.startswith("/dev/sdb (Pocket, 256 GiB, usb): SSD: yes (by the time of its reads")
    assert "480 Mbit/s, driver uas, 152d:0578" in checks["usb:sdb"].evidence
    assert checks["usb:sdb"].remedy[0].startswith("Plug it into a USB 3 port")
    laptop.devices = (Path("/dev/sdb"),)
    assert {name.partition(":")[2] for name, check in laptop.checks().items() if check.group == "storage"} == {"sdb"}


def test_a_disk_that_fails_stops_labs_only_where_it_was_asked_for(laptop: Computer) -> None:
    laptop.measured["sdb"] = LIMPING
    assert laptop.checks()["speed:sdb"].state is State.WARN
    assert not failed(laptop.checks().values())
    laptop.devices = (Path("/dev/sdb"),)
    assert laptop.checks()["speed:sdb"].state is State.FAIL
    assert failed(laptop.checks().values())


def test_what_is_not_measured_says_why(laptop: Computer) -> None:
    laptop.measured["sdb"] = HostLacks("/dev/sdb may not be read by this user", hint="do it as root")
    checks = laptop.checks()
    assert checks["speed:sdb"].state is State.UNKNOWN
    assert "may not be read by this user" in checks["speed:sdb"].evidence
    assert checks["speed:sdb"].remedy == ("Do it as root",)
    assert checks["medium:sdb"].state is State.UNKNOWN
    assert checks["medium:sda"].state is State.OK, "it says of itself that it is one"
    laptop.devices = (Path("/dev/sdz"),)
    assert laptop.checks()["disks"].evidence == "/dev/sdz: no such disk"


def test_no_more_than_four_disks_are_measured_unasked(laptop: Computer) -> None:
    rows = [{**LSBLK["blockdevices"][0], "name": f"sd{a}", "kname": f"sd{a}", "path": f"/dev/sd{a}"} for a in "abcdef"]
    laptop.run.says["lsblk"] = json.dumps({"blockdevices": rows})
    for letter in "cdef":
        place = f"sys/devices/pci0000:00/0000:00:17.0/ata1/host0/block/sd{letter}"
        plant(laptop.root, disk(place))
        (laptop.root / "sys/class/block" / f"sd{letter}").symlink_to(laptop.root / place)
    laptop.measured |= dict.fromkeys(("sdc", "sdd"), QUICK)
    checks = laptop.checks()
    assert checks["speed:sdd"].state is State.OK
    assert checks["speed:sde"].state is State.UNKNOWN
    assert "--device /dev/sde" in checks["speed:sde"].evidence


def test_disks_that_cannot_be_listed_are_no_traceback(laptop: Computer) -> None:
    laptop.run.says["lsblk"] = "Segmentation fault"
    check = laptop.checks()["disks"]
    assert check.state is State.UNKNOWN
    assert "lsblk gives no list of disks" in check.evidence
    laptop.run.says |= {"lsblk": json.dumps(LSBLK), "wipefs": "Killed"}
    assert "wipefs gives no list of what is on disks" in laptop.checks()["disks"].evidence
