"""Targets that are not what the source's disk is: smaller ones, other sectors, other disks under the same name, and the source's
own disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketcloud.copies.clone import Copied, Wanted, clone
from pocketcloud.copies.sync import sync
from pocketcloud.events import Event, StepProgress
from pocketcloud.kit.attached import Places
from pocketcloud.kit.device import init_file, plan_file
from pocketcloud.kit.disk import choose
from pocketcloud.kit.plugged import plugged_kits
from pocketcloud.model.kit import Kit
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import GIB, KIB, MIB
from pocketcloud.storage import open_storage
from pocketcloud.storage.lvm import Lvm
from pocketcloud.storage.thin_volumes import POOL
from pocketcloud.system import run
from tests.rig.inside.asked import Asked
from tests.rig.inside.filed import attached, detached
from tests.rig.inside.made import NOW
from tests.rig.inside.ram_disks import ram_disks
from tests.rig.inside.scsi_disks import scsi_disk
from tests.rig.inside.test_clone import contents, held, noise, one_base
from tests.rig.inside.test_kit_device import erase, in_file, pattern

pytestmark = pytest.mark.sampled(6)
SMALL = 3 * GIB + 64 * MIB  # of which a kit has two
DISK, OTHER = Path("/dev/ram0"), Path("/dev/ram1")


@pytest.fixture(scope="module", autouse=True)
def disks() -> None:
    ram_disks(size=SMALL)


@pytest.fixture
def targets() -> Iterator[None]:
    for disk in (DISK, OTHER):
        erase(disk)
    yield
    for disk in (DISK, OTHER):
        erase(disk)


def poured(kit: Kit, places: Places, *disks: Path) -> tuple[Copied, ...]:
    return poured_to(kit, places, *chosen(places, *disks))


def chosen(places: Places, *disks: Path) -> list[Wanted]:
    return [Wanted(choose(places, disk, run), Name(f"copy-{number}")) for number, disk in enumerate(disks)]


def poured_to(kit: Kit, places: Places, *wanted: Wanted) -> tuple[Copied, ...]:
    return clone(kit, wanted, places, run, now=NOW, stop=threading.Event(), tell=lambda _: None)


def large(places: Places, path: Path, chunk: int = 64 * KIB) -> Kit:
    """A kit in a file of six GiB, of which only what is used is taken."""
    return init_file(plan_file(places, path, 6 * GIB, "large", chunk, run), path, places, run, now=NOW)


@pytest.mark.usefixtures("targets")
def test_a_smaller_disk_takes_what_is_used(places: Places, tmp_path: Path) -> None:
    kit = large(places, tmp_path / "large.img")
    one_base(kit, 64 * MIB)
    (done,) = poured(kit, places, DISK)
    assert done.fault == ""
    copy = attached(places, DISK).kit
    assert contents(copy) == contents(kit)
    for name in ("large", "copy-0"):
        detached(places, name)


@pytest.mark.usefixtures("targets")
def test_on_a_partition_it_is_gone_on_with(places: Places, tmp_path: Path) -> None:
    """One that somebody made for it, beside another that stays."""
    run(["sfdisk", "-q", DISK], stdin=b"label: gpt\nsize=2500MiB\nsize=100MiB\n")
    mine, other = (Path(f"{DISK}p{number}") for number in (1, 2))
    run(["mkfs.ext4", "-q", "-F", other])
    kit = in_file(places, tmp_path / "usb.img")
    one_base(kit, 24 * MIB)
    stop = threading.Event()

    def tell(event: Event) -> None:
        if isinstance(event, StepProgress):
            stop.set()

    with pytest.raises(InterruptedError):
        clone(kit, chosen(places, mine), places, run, now=NOW, stop=stop, tell=tell, noted_every=MIB)
    asked = Asked(places, "kit", "clone", "usb", "--resume", "-y")
    asked.until("an unfinished copy of this kit, which is gone on with")
    asked.ends(0, "copy-0", "verified")
    copy = attached(places, mine).kit
    assert contents(copy) == contents(kit)
    run(["e2fsck", "-n", other])
    for name in ("usb", "copy-0"):
        detached(places, name)


@pytest.mark.usefixtures("targets")
def test_one_that_is_too_small_is_told_before_anything_is_written(places: Places, tmp_path: Path) -> None:
    kit = large(places, tmp_path / "large.img", MIB)
    # A pool that does not zero its chunks, so that each is taken by a few bytes.
    Lvm(kit.devices).command("lvchange", "--zero", "n", f"{kit.vg}/{POOL}")

    def fill(path: Path) -> None:
        with path.open("r+b") as file:
            for chunk in range(2048):
                file.seek(chunk * MIB)
                file.write(b"taken")

    open_storage(kit).create("base.large", 2 * GIB, fill)
    before = [pattern(DISK, place) for place in (0, GIB)]
    (done,) = poured(kit, places, DISK)
    assert "does not fit" in done.fault
    assert [pattern(DISK, place) for place in (0, GIB)] == before
    assert held(kit) is None
    detached(places, "large")


@pytest.mark.usefixtures("targets")
def test_files_that_outgrow_a_copy_leave_it_as_it_was(places: Places, tmp_path: Path) -> None:
    kit = large(places, tmp_path / "large.img")
    one_base(kit, 4 * MIB)
    (done,) = poured(kit, places, DISK)
    assert done.fault == ""
    (kit.path / "labs/long.log").write_bytes(noise(32 * MIB, 4))
    (plugged,) = [each for each in plugged_kits(run) if each.name == "copy-0"]
    before = plugged.group.seqno
    stop = threading.Event()
    (told,) = sync(kit, [plugged], run, keep_labs=False, thorough=False, now=NOW, stop=stop, tell=lambda *_: None)
    assert "have outgrown the room" in told.fault
    assert "it cannot be copied whole: the records and media of kit large" in told.fault
    assert not told.whole
    assert told.sent == 0
    (plugged,) = [each for each in plugged_kits(run) if each.name == "copy-0"]
    assert plugged.group.seqno == before
    detached(places, "large")


@pytest.mark.usefixtures("targets")
def test_other_sectors_are_refused_with_the_reason(places: Places, tmp_path: Path) -> None:
    kit = in_file(places, tmp_path / "usb.img")
    one_base(kit, 4 * MIB)
    with scsi_disk(sector_size=4096) as disk:
        good, odd = poured(kit, places, DISK, disk)
        assert good.fault == ""
        assert "sectors of 4096 bytes, kit usb is of 512" in odd.fault
        with disk.open("rb") as file:
            assert not file.read(MIB).strip(b"\0"), "nothing was written"
    detached(places)


@pytest.mark.usefixtures("targets")
def test_another_disk_under_the_same_name_stays_as_it_is(places: Places, tmp_path: Path) -> None:
    kit = in_file(places, tmp_path / "usb.img")
    one_base(kit, 24 * MIB)
    with scsi_disk() as disk:
        wanted = chosen(places, DISK, disk)
    with scsi_disk() as disk:
        with disk.open("r+b") as file:
            file.write(noise(MIB, 9))
        good, gone = poured_to(kit, places, *wanted)
        assert good.fault == ""
        assert "is not the disk any more that was chosen" in gone.fault
        with disk.open("rb") as file:
            assert file.read(MIB) == noise(MIB, 9)
    detached(places)


@pytest.mark.usefixtures("targets")
def test_pulled_and_put_back_at_once_it_is_no_kit(places: Places, tmp_path: Path) -> None:
    kit = in_file(places, tmp_path / "usb.img")
    one_base(kit, 24 * MIB)
    with scsi_disk() as disk:
        host = next(Path("/sys/class/scsi_host").iterdir())
        swapped = threading.Event()

        def swap(event: Event) -> None:
            if isinstance(event, StepProgress) and not swapped.is_set():
                swapped.set()
                Path("/sys/block", disk.name, "device/delete").write_text("1")
                (host / "scan").write_text("- - -")
                until = time.monotonic() + 20
                while not list(Path("/dev").glob("sd?")):  # by another name, as the first is still held
                    assert time.monotonic() < until
                    time.sleep(0.05)

        good, gone = clone(kit, chosen(places, DISK, disk), places, run, now=NOW, stop=threading.Event(), tell=swap)
        assert swapped.is_set()
        assert good.fault == ""
        assert gone.fault
        assert {each.name for each in plugged_kits(run)} == {"usb", "copy-0"}
    detached(places)


@pytest.mark.usefixtures("targets")
def test_by_hand_the_disk_of_the_source_itself_is_refused(places: Places, tmp_path: Path) -> None:
    kit = in_file(places, tmp_path / "usb.img")
    one_base(kit, 4 * MIB)
    (done,) = poured(kit, places, DISK)
    assert done.fault == ""
    master = attached(places, DISK).kit
    said = Asked(places, "kit", "clone", "copy-0", DISK, OTHER, "-y").ends(5)
    assert "copy-0" in said
    assert "attached" in said or "in use" in said
    assert {each.name for each in plugged_kits(run)} == {"usb", "copy-0"}
    assert contents(master) == contents(kit)
    for name in ("usb", "copy-0"):
        detached(places, name)
