"""What is asked at a terminal before something is lost: a disk's identity typed back, and answers that mean no."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pocketcloud.kit.attached import Places, attached_kits
from pocketcloud.model.sizes import GIB, MIB
from pocketcloud.system import run
from tests.rig.inside.asked import Asked
from tests.rig.inside.made import digest, loop, make_kit, unloop
from tests.rig.inside.ram_disks import ram_disks
from tests.rig.inside.test_kit_device import erase

pytestmark = pytest.mark.sampled(20)

DISK = Path("/dev/ram0")
TYPE = r"To go on, type its ([\w' ]+), (\S+):"


def head(disk: Path) -> str:
    """The digest of what every step of making a kit would write to first."""
    with disk.open("rb") as source:
        return hashlib.sha256(source.read(16 * MIB)).hexdigest()


@pytest.fixture
def disk() -> Path:
    """A disk in memory with a file system on it, and without what tests before have left there."""
    ram_disks()
    erase(DISK)
    run(["mkfs.ext4", "-q", "-F", "-E", "nodiscard", DISK])
    return DISK


def test_a_disk_becomes_a_kit_when_its_identity_is_typed(places: Places, disk: Path) -> None:
    before = head(disk)
    for answer in ("y", ""):
        asked = Asked(places, "kit", "init", disk, "--name", "usb")
        asked.until(TYPE)
        asked.answer(answer)
        asked.ends(5, "was not typed: nothing on", "lsblk")
        assert head(disk) == before
    asked = Asked(places, "kit", "init", disk, "--name", "usb")
    asked.until(TYPE)
    asked.interrupt()
    asked.ends(130)
    assert head(disk) == before

    asked = Asked(places, "kit", "init", disk, "--name", "usb")
    shown, *_ = asked.until("Everything on")
    for words in ("ext4", "MB/s in sequence", "4 GiB", str(disk)):
        assert words in shown, "what is lost, and how good the disk is, stand before the question"
    asked.answer(asked.until(TYPE)[-1])
    asked.ends(0, "usb")
    assert [kit.name for kit in attached_kits(places)] == ["usb"]


def test_a_kits_file_is_erased_when_its_name_is_typed_and_deleted_when_that_is_meant(places: Places, tmp_path: Path) -> None:
    file = tmp_path / "first.img"
    unloop(make_kit(loop(file, 3 * GIB), "first", "pc_aaaaaa").device)
    before = digest(file)
    asked = Asked(places, "kit", "erase", file)
    asked.until(TYPE)
    asked.answer("first")
    asked.ends(5, "was not typed")
    assert digest(file) == before
    asked = Asked(places, "kit", "erase", file)
    asked.answer(asked.until(TYPE)[-1])
    asked.until(r"Delete the file .* \[y/N\]")
    asked.answer("")
    asked.ends(0, "is kept")
    assert file.exists()
    assert file.stat().st_blocks * 512 < MIB, "it is erased"
    asked = Asked(places, "kit", "init", "--file", file, "--size", "2GiB")
    asked.ends(5, "exists")
