"""The interlocks on thousands of made-up hosts: nothing in use may be chosen, what is free may be; and their words."""

from __future__ import annotations

import fcntl
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, note, seed, settings

from pocketcloud.errors import Refused, UsageError
from pocketcloud.host.disks import assemble
from pocketcloud.kit.interlocks import check_target, claimed, confirmation, contents, described, objections
from pocketcloud.model.disk import BlockDevice, BlockDevices
from pocketcloud.model.sizes import GIB
from tests.disk_trees import Tree
from tests.disk_uses import trees

SEED = int(os.environ.get("POCKETCLOUD_SEED") or 0)
CASES, SAMPLED = 20_000, 5_000
USUAL = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))


def check_tree(tree: Tree) -> None:
    note(f"POCKETCLOUD_SEED={SEED}")
    devices = assemble(tree.sources())
    assert {device.name for device in devices} == {made.name for made in tree.made.values() if made.kind != "loop" or made.size}
    for device in devices:
        assert set(device.mounts) == tree.mounted.get(device.name, set())
        against = objections(devices, device, kit_sources=tree.kit_sources, file=tree.file)
        assert (not against) == (device.name in tree.free), (device, against)
        if device.name in tree.reasons:
            assert any(tree.reasons[device.name] in reason for reason in against), (device, tree.reasons[device.name], against)
    check_confirmations(tree, devices)


def check_confirmations(tree: Tree, devices: BlockDevices) -> None:
    """What is typed is one disk's and no other's, and with anything else nothing goes on."""
    disks = [device for device in devices if device.kind == "disk"]
    typed = [confirmation(devices, disk).casefold() for disk in disks]
    assert len(set(typed)) == len(typed)
    for name in tree.free:
        target = devices.get(name)
        assert target is not None
        wanted = confirmation(devices, target)
        check_target(devices, target, erase_serial=wanted, ask_serial=None, kit_sources=tree.kit_sources, file=tree.file)
        for other in ([each for each in typed if each != wanted.casefold()] or ["yes"])[:1]:
            with pytest.raises(Refused):
                check_target(devices, target, erase_serial=other, ask_serial=None, kit_sources=tree.kit_sources, file=tree.file)
    for name in tree.reasons:
        target = devices.get(name)
        if target is not None:
            with pytest.raises(Refused, match="cannot be chosen"):
                check_target(
                    devices, target, erase_serial=confirmation(devices, target), ask_serial=None, kit_sources=tree.kit_sources
                )


@pytest.mark.parametrize("cases", [SAMPLED, pytest.param(CASES, marks=pytest.mark.slow)])
def test_no_disk_in_use_can_be_chosen_and_the_free_one_can(cases: int, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n  {cases} made-up hosts, POCKETCLOUD_SEED={SEED}")
    seed(SEED)(settings(USUAL, max_examples=cases)(given(tree=trees())(check_tree)))()


# -- words


def disk(name: str = "sdb", **facts: object) -> BlockDevice:
    usual: dict[str, object] = {
        "size": 64 * GIB, "model": "Portable SSD T7", "serial": "S5T7", "number": f"8:{ord(name[-1])}", "transport": "usb",
    }  # fmt: skip
    return BlockDevice(name, Path(f"/dev/{name}"), "disk", **(usual | facts))  # type: ignore[arg-type]  # named as the fields


def test_a_refusal_names_the_disk_why_and_what_to_do() -> None:
    target = disk()
    part = BlockDevice("sdb1", Path("/dev/sdb1"), "part", 60 * GIB, mounts=("/media/me/Fotos",), parents=("sdb",), serial="S5T7")
    devices = BlockDevices((target, part))
    with pytest.raises(Refused) as caught:
        check_target(devices, target, erase_serial="S5T7", ask_serial=None)
    assert caught.value.message == (
        "Portable SSD T7 (64 GiB, serial S5T7, /dev/sdb) cannot be chosen: sdb1 is mounted on /media/me/Fotos"
    )
    assert caught.value.hint == "unmount it: umount /media/me/Fotos"


def test_anything_on_a_disk_wants_its_serial_typed() -> None:
    target = disk(partition_table="gpt")
    part = BlockDevice(
        "sdb1", Path("/dev/sdb1"), "part", 60 * GIB, signature="ntfs", signatures=("ntfs",), label="Work", parents=("sdb",)
    )
    devices = BlockDevices((target, part))
    assert contents(devices, target) == ("sdb, 64 GiB: partition table (gpt)", "sdb1, 60 GiB: ntfs, labelled 'Work'")
    with pytest.raises(UsageError) as caught:
        check_target(devices, target, erase_serial=None, ask_serial=None)
    assert "sdb1, 60 GiB: ntfs, labelled 'Work'" in caught.value.message
    assert caught.value.hint == "if all of that may be erased: --erase-serial 'S5T7'"
    asked = []

    def answer(text: str) -> str:
        asked.append(text)
        return " s5t7 "

    check_target(devices, target, erase_serial=None, ask_serial=answer)
    assert asked == [
        "Everything on Portable SSD T7 (64 GiB, serial S5T7, /dev/sdb) will be lost. To go on, type its serial, S5T7"
    ]
    for typed in ("", "y", "yes", "/dev/sdb", "S5T"):
        with pytest.raises(Refused, match="nothing on Portable SSD T7"):
            check_target(devices, target, erase_serial=None, ask_serial=lambda _, typed=typed: typed)  # type: ignore[misc]  # bound now


def test_an_empty_disk_needs_no_serial_but_never_takes_a_wrong_one() -> None:
    devices = BlockDevices((disk(),))
    check_target(devices, disk(), erase_serial=None, ask_serial=None)
    with pytest.raises(Refused, match="--erase-serial OTHER is not Portable SSD T7"):
        check_target(devices, disk(), erase_serial="OTHER", ask_serial=None)


@pytest.mark.parametrize(
    ("target", "other", "expected"),
    [
        (disk(), disk("sdc", serial="X"), "S5T7"),
        (disk(), disk("sdc"), "S5T7@/dev/sdb"),
        (disk(port="usb-0:1"), disk("sdc", port="usb-0:2"), "S5T7@usb-0:1"),
        (disk(port="usb-0:1"), disk("sdc", port="usb-0:1"), "S5T7@/dev/sdb"),
        (disk(serial="", wwn="naa.5"), disk("sdc"), "naa.5"),
        (disk(serial="", wwn="naa.5"), disk("sdc", wwn="naa.5"), f"/dev/sdb:{64 * GIB}"),
        (disk(serial="0000000"), disk("sdc"), f"/dev/sdb:{64 * GIB}"),
        (disk(serial="", port="usb-0:1"), disk("sdc"), f"usb-0:1:{64 * GIB}"),
    ],
    ids=["own", "shared", "shared, ports", "shared, same port", "wwn", "shared wwn", "zeros", "port"],
)
def test_what_is_typed_is_the_serial_or_what_tells_the_disk_apart(target: BlockDevice, other: BlockDevice, expected: str) -> None:
    devices = BlockDevices((target, other))
    assert confirmation(devices, target) == expected
    check_target(devices, target, erase_serial=expected, ask_serial=None)
    if expected != target.serial:
        with pytest.raises(Refused) as caught:
            check_target(devices, target, erase_serial=target.serial, ask_serial=None)
        assert expected in caught.value.hint


def test_a_volume_group_that_is_proven_ours_may_be_taken_again_but_not_while_it_is_in_use() -> None:
    target = disk(partition_table="gpt")
    part = BlockDevice("sdb1", Path("/dev/sdb1"), "part", 60 * GIB, signatures=("LVM2_member",), parents=("sdb",))
    devices = BlockDevices((target, part))
    assert "volume group" in objections(devices, target)[0]
    assert objections(devices, target, ours=["sdb1"]) == objections(devices, part, ours=["/dev/sdb1"]) == ()
    assert objections(devices, target, ours=["sdb1"], kit_sources=["sdb1"]) == ("sdb1 carries an attached kit",)
    active = BlockDevices((target, replace(part, holders=("dm-0",))))
    assert objections(active, target, ours=["sdb1"]) == ("sdb1 is in use by dm-0",)


def test_a_partition_is_named_with_its_disk() -> None:
    part = BlockDevice("sdb1", Path("/dev/sdb1"), "part", 60 * GIB, parents=("sdb",))
    assert described(BlockDevices((disk(), part)), part) == (
        "partition /dev/sdb1 (60 GiB) of Portable SSD T7 (64 GiB, serial S5T7, /dev/sdb)"
    )


@pytest.mark.parametrize(
    "name", ["nbd0", "zram0", "rbd0", "drbd1", "zd16", "md0", "dm-1", "fd0", "mtdblock0", "mmcblk0boot0", "sr0"]
)
def test_what_is_not_known_as_a_disk_is_none(name: str) -> None:
    odd = disk(name)
    assert "does not know as a disk" in objections(BlockDevices((odd,)), odd)[0]


@pytest.mark.parametrize("name", ["sda", "sdab", "nvme0n1", "mmcblk0", "vdb", "xvda", "ubdb", "ram3", "hda"])
def test_what_is_known_as_a_disk_is_one(name: str) -> None:
    assert objections(BlockDevices((disk(name),)), disk(name)) == ()


def test_loops_in_a_tree_that_makes_no_sense_end() -> None:
    one, two = disk("sdb", parents=("sdc",), holders=("sdc",)), disk("sdc", parents=("sdb",))
    assert objections(BlockDevices((one, two)), one)


# -- holding it, on what is no disk at all: the real ones are in tests/rig/inside


def test_a_device_that_is_gone_or_not_ours_to_write_is_refused(tmp_path: Path) -> None:
    gone = replace(disk(), path=tmp_path / "sdb")
    with pytest.raises(Refused, match="is not there any more"), claimed(gone, lambda: BlockDevices((gone,))):
        pytest.fail("it was claimed")


def test_a_device_that_became_another_is_refused_and_let_go(tmp_path: Path) -> None:
    path = tmp_path / "sdb"
    path.write_bytes(b"precious")
    target = replace(disk(), path=path, number="")
    before = len(tuple(Path("/proc/self/fd").iterdir()))
    for now in (
        BlockDevices(()),
        BlockDevices((replace(target, serial="OTHER"),)),
        BlockDevices((replace(target, size=1),)),
        BlockDevices((replace(target, diskseq=7),)),
        BlockDevices((replace(target, signatures=("ext4",)),)),
        BlockDevices((replace(target, mounts=("/mnt",)),)),
        BlockDevices((replace(target, holders=("dm-0",)),)),
        BlockDevices((replace(target, read_only=True),)),
    ):
        with pytest.raises(Refused, match=re.escape(str(path))), claimed(target, lambda now=now: now):  # type: ignore[misc]  # bound
            pytest.fail("it was claimed")
    assert path.read_bytes() == b"precious"
    assert len(tuple(Path("/proc/self/fd").iterdir())) == before


def test_who_holds_the_lock_keeps_others_out(tmp_path: Path) -> None:
    path = tmp_path / "sdb"
    path.write_bytes(b"")
    target = replace(disk(), path=path, number="")
    devices = BlockDevices((target,))
    with claimed(target, lambda: devices), path.open("rb") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(Refused, match="is locked by another program"), claimed(target, lambda: devices):
            pytest.fail("it was claimed")
