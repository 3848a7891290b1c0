"""Switching TRIM on: only where the disk declares it, by a rule for its enclosure, and how a pool above is told of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pocketcloud.check.fixes import Action, Command, NewFile, carry_out
from pocketcloud.check.judgement import Surroundings
from pocketcloud.check.trim import above, switching_on
from pocketcloud.errors import HostLacks
from pocketcloud.host import read_facts
from pocketcloud.hypervisor import Hypervisor
from pocketcloud.model.disk import BlockDevice, BlockDevices, Scsi
from pocketcloud.model.judgement import State
from pocketcloud.model.sizes import GIB, MIB
from pocketcloud.model.usb import UsbHop, UsbPath
from pocketcloud.system import Completed
from tests.host_trees import plant, x86_laptop
from tests.recorded import Recorded

UNUSED = Scsi("6:0:0:0", "full", "write back", declares_unmap=True, unmap_max=512 * MIB)
DISK = BlockDevice(
    "sdb", Path("/dev/sdb"), "disk", 931 * GIB, model="860 EVO", transport="usb", scsi=UNUSED,
    usb=UsbPath("uas", (UsbHop("2-1", 5000, id="174c:1153", serial="ABC-1.2"), UsbHop("usb2", 5000))),
)  # fmt: skip
POOL = "0 8192 thin-pool 3 10/100 10/100 - rw {} error_if_no_space - 1024"


def unreachable() -> Hypervisor:
    raise HostLacks("not asked")


def surroundings(root: Path, run: Recorded, *, udev: bool = True) -> Surroundings:
    plant(root, x86_laptop("debian-13"))
    if udev:
        plant(root, {"run/udev/control": ""})
    facts = read_facts(root, run=Recorded(lambda _words: "[]"))
    return Surroundings(facts, Path("/"), run, unreachable, root, lambda tool: Path("/usr/bin") / tool)


def done(_words: tuple[str, ...]) -> str:
    return ""


def fix(root: Path, disk: BlockDevice, *, udev: bool = True) -> tuple[Action, ...]:
    return switching_on(surroundings(root, Recorded(done), udev=udev), disk)


def test_a_rule_for_the_enclosure_is_written_and_carried_out(tmp_path: Path) -> None:
    actions = fix(tmp_path, DISK)
    run = Recorded(done)
    carry_out(actions, run, tmp_path)
    rule = (tmp_path / "etc/udev/rules.d/70-pocketcloud-trim-174c-1153-ABC-1.2.rules").read_text().splitlines()
    assert rule[0].startswith("# Written by `pocketcloud check --fix`: the disk 860 EVO declares UNMAP")
    assert rule[1] == (
        "# To take it back: rm /etc/udev/rules.d/70-pocketcloud-trim-174c-1153-ABC-1.2.rules && udevadm control --reload"
    )
    assert rule[2] == (
        'ACTION=="add|change", SUBSYSTEM=="block", ENV{DEVTYPE}=="disk", ATTRS{idVendor}=="174c", ATTRS{idProduct}=="1153", '
        'ATTRS{serial}=="ABC-1.2", ATTR{device/scsi_disk/*/provisioning_mode}="unmap", ATTR{queue/discard_max_bytes}="536870912"'
    )
    assert run.asked == [
        ("udevadm", "control", "--reload"),
        ("udevadm", "trigger", "--action=change", "/sys/block/sdb"),
        ("udevadm", "settle", "--timeout=30"),
    ]


@pytest.mark.parametrize("serial", ["", "A/../B", 'A"; reboot', "A*", "A|B", "A B", "Ä"])
def test_a_serial_number_that_udev_would_take_for_more_is_left_out(tmp_path: Path, serial: str) -> None:
    path = UsbPath("uas", (UsbHop("2-1", 5000, id="174c:1153", serial=serial),))
    (file, *_) = fix(tmp_path, replace(DISK, usb=path))
    assert isinstance(file, NewFile)
    assert file.path.name == "70-pocketcloud-trim-174c-1153.rules"
    assert "serial" not in file.text


@pytest.mark.parametrize("most", [0, 0x7FFFFF * 512, 64 * GIB])
def test_no_limit_is_set_where_the_disk_has_none_of_its_own(tmp_path: Path, most: int) -> None:
    (file, *_) = fix(tmp_path, replace(DISK, scsi=replace(UNUSED, unmap_max=most)))
    assert isinstance(file, NewFile)
    assert "discard_max_bytes" not in file.text


def test_without_udev_or_usb_it_is_done_by_hand(tmp_path: Path) -> None:
    by_hand = (Command(("sh", "-c", "echo unmap > /sys/class/scsi_disk/6:0:0:0/provisioning_mode")),)
    assert fix(tmp_path / "a", DISK, udev=False) == by_hand
    assert fix(tmp_path / "b", replace(DISK, usb=None)) == by_hand


@pytest.mark.parametrize(
    "disk",
    [
        replace(DISK, scsi=None),
        replace(DISK, scsi=replace(UNUSED, declares_unmap=False)),
        replace(DISK, scsi=replace(UNUSED, declares_unmap=None)),
        replace(DISK, scsi=replace(UNUSED, provisioning="disabled")),
        replace(DISK, scsi=replace(UNUSED, provisioning="unmap"), discard_max=GIB),
    ],
    ids=["no SCSI", "declares none", "was not asked", "refused it", "is trimmed"],
)
def test_nothing_is_switched_on_for_any_other_disk(tmp_path: Path, disk: BlockDevice) -> None:
    assert fix(tmp_path, disk) == ()


@pytest.mark.parametrize(
    ("status", "remarks"), [(POOL.format("discard_passdown"), 0), (POOL.format("no_discard_passdown"), 1), ("", 0)]
)
def test_a_pool_that_passes_nothing_on_is_the_chains_end(tmp_path: Path, status: str, remarks: int) -> None:
    disk = replace(DISK, discard_max=GIB)
    data = BlockDevice("dm-1", Path("/dev/mapper/kit-pool_tdata"), "lvm", GIB, parents=("sdb",))
    pool = BlockDevice("dm-2", Path("/dev/mapper/kit-pool-tpool"), "lvm", GIB, parents=("dm-1",))
    here = surroundings(tmp_path, Recorded(lambda _words: status))
    vars(here)["disks"] = BlockDevices((disk, data, pool))
    found = list(above(here, disk))
    assert [remark.state for remark in found] == [State.WARN] * remarks
    assert all("kit-pool-tpool passes nothing on" in remark.text for remark in found)
    assert list(above(here, DISK)) == [], "where the disk takes nothing, the pool does not matter"


def test_a_host_without_dmsetup_says_nothing_of_pools(tmp_path: Path) -> None:
    def lacking(words: tuple[str, ...]) -> Completed:
        raise HostLacks(f"{words[0]} is not installed")

    disk = replace(DISK, discard_max=GIB)
    pool = BlockDevice("dm-2", Path("/dev/mapper/kit-pool-tpool"), "lvm", GIB, parents=("sdb",))
    here = surroundings(tmp_path, Recorded(lacking))
    vars(here)["disks"] = BlockDevices((disk, pool))
    assert list(above(here, disk)) == []
