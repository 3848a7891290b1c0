"""Copies that go wrong: stopped by hand at any moment, disks that are pulled, that fail, that tell lies. A copy that is not whole
is no kit, the others become kits, and the same command again makes it whole."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

import pytest

from pocketcloud.copies.clone import Copied, Wanted, clone
from pocketcloud.errors import NotFound
from pocketcloud.events import StepProgress
from pocketcloud.kit.attached import Places
from pocketcloud.kit.disk import choose
from pocketcloud.kit.plugged import plugged_kits
from pocketcloud.model.kit import Kit
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import MIB
from pocketcloud.system import run
from tests.rig.inside.filed import attached, detached
from tests.rig.inside.made import NOW
from tests.rig.inside.scsi_disks import DRIVER, whole_disk, wiped
from tests.rig.inside.test_clone import contents, disks, held, noise, one_base, targets
from tests.rig.inside.test_kit_device import in_file

__all__ = ["disks", "targets"]
SIZE = 24 * MIB
CHUNK = 64 << 10
CANCELS, PULLS, OFF, BAD = range(20), range(12), range(12), range(6)


def chance(*words: object) -> random.Random:
    return random.Random(f"{os.environ.get('POCKETCLOUD_SEED')}.{words}")  # noqa: S311 - keeps no secret


def poured(
    kit: Kit, places: Places, stop: threading.Event, *named: tuple[str, Path], meanwhile: threading.Timer | None = None
) -> tuple[Copied, ...]:
    """Copy to disks; with something else that happens after they were chosen."""
    wanted = [Wanted(choose(places, disk, run), Name(name)) for name, disk in named]
    if meanwhile:
        meanwhile.start()
    return clone(kit, wanted, places, run, now=NOW, stop=stop, tell=lambda _: None, noted_every=MIB)


def somewhere(word: str, number: int, numbers: range) -> float:
    """The part of a copy after which the case of this number happens."""
    return (number + chance(word, number).random()) / len(numbers) * 0.95


def is_kit(name: str) -> bool:
    return name in {each.name for each in plugged_kits(run)}


@pytest.mark.slow
def test_stopped_by_hand_at_any_moment(places: Places, tmp_path: Path, targets: tuple[Path, ...]) -> None:
    disk, other = targets
    kit = in_file(places, tmp_path / "usb.img")
    one_base(kit, SIZE)
    begun = time.monotonic()
    (done,) = poured(kit, places, threading.Event(), ("first", other))
    seconds = time.monotonic() - begun
    assert not done.fault
    stopped = 0
    for number in CANCELS:
        stop = threading.Event()
        timer = threading.Timer(somewhere("cancel", number, CANCELS) * seconds, stop.set)
        try:
            poured(kit, places, stop, ("copy", disk), meanwhile=timer)
        except InterruptedError:
            stopped += 1
            assert not is_kit("copy")
            with pytest.raises(NotFound, match="no kit"):
                attached(places, disk)
        finally:
            timer.cancel()
            if timer.ident:
                timer.join()
        assert held(kit) is None
        if is_kit("copy"):
            run(["wipefs", "--all", "--force", *sorted(Path("/dev").glob(f"{disk.name}p*")), disk])
    print(f"{stopped} stopped")
    assert stopped > len(CANCELS) // 3
    (done,) = poured(kit, places, threading.Event(), ("copy", disk))
    assert not done.fault
    copy = attached(places, disk).kit
    assert contents(copy) == contents(kit)
    for name in ("usb", "copy"):
        detached(places, name)


def pours_whole(kit: Kit, places: Places, disk: Path) -> float:
    """Copy to a disk with which nothing is wrong yet, and take the copy away; how long that took, in seconds. What happens to the
    same disk afterwards is by what is done to it."""
    begun = time.monotonic()
    (done,) = poured(kit, places, threading.Event(), ("whole", disk))
    seconds = time.monotonic() - begun
    assert done.fault == ""
    assert is_kit("whole")
    wiped(disk)
    return seconds


def goes_on_without(kit: Kit, places: Places, good: Path, bad: Path, meanwhile: threading.Timer | None = None) -> Copied:
    """Copy to a good and a bad disk; the good one is a kit."""
    whole, lost = poured(kit, places, threading.Event(), ("good", good), ("lost", bad), meanwhile=meanwhile)
    assert whole.fault == "", "the others finish"
    assert lost.fault
    assert not is_kit("lost")
    assert is_kit("good")
    assert held(kit) is None
    return lost


@pytest.mark.slow
def test_no_copy_waits_for_a_slower_one(places: Places, tmp_path: Path, targets: tuple[Path, ...]) -> None:
    good, *_ = targets
    kit = in_file(places, tmp_path / "usb.img")
    one_base(kit, SIZE)
    told: list[object] = []
    with whole_disk() as disk:
        (DRIVER / "ndelay").write_text("300000000")

        def made(copied: Copied) -> None:
            told.append(copied.kit)
            (DRIVER / "ndelay").write_text("50000000")

        wanted = [Wanted(choose(places, path, run), Name(name)) for name, path in (("slow", disk), ("good", good))]
        stop = threading.Event()
        clone(kit, wanted, places, run, now=NOW, stop=stop, tell=told.append, made=made)
    after = told[told.index("good") :]
    assert [event for event in after if isinstance(event, StepProgress) and event.id == "slow" and "written" in event.text]
    copy = attached(places, good).kit
    assert contents(copy) == contents(kit)
    for name in ("usb", "good"):
        detached(places, name)


@pytest.mark.slow
@pytest.mark.parametrize("number", PULLS)
def test_pulled_in_the_middle(places: Places, tmp_path: Path, targets: tuple[Path, ...], number: int) -> None:
    good, *_ = targets
    kit = in_file(places, tmp_path / "usb.img")
    one_base(kit, SIZE)
    with whole_disk() as disk:
        seconds = pours_whole(kit, places, disk)
        node = Path("/sys/block", disk.name, "device/delete")
        timer = threading.Timer(somewhere("pull", number, PULLS) * seconds, node.write_text, ("1\n",))
        try:
            lost = goes_on_without(kit, places, good, disk, timer)
        finally:
            timer.cancel()
            if timer.ident:
                timer.join()
        assert lost.device == disk
        assert not disk.exists()
    copy = attached(places, good).kit
    assert contents(copy) == contents(kit)
    for name in ("usb", "good"):
        detached(places, name)


@pytest.mark.slow
@pytest.mark.parametrize("number", OFF)
def test_every_request_fails_from_one_on_until_the_disk_answers_again(
    places: Places, tmp_path: Path, targets: tuple[Path, ...], number: int
) -> None:
    """As with a bridge that hangs: the disk is there, and nothing is written to it or read from it any more."""
    good, *_ = targets
    kit = in_file(places, tmp_path / "usb.img")
    one_base(kit, SIZE)
    with whole_disk() as disk:
        seconds = pours_whole(kit, places, disk)
        state = Path("/sys/block", disk.name, "device/state")
        timer = threading.Timer(somewhere("off", number, OFF) * seconds, state.write_text, ("offline\n",))
        try:
            goes_on_without(kit, places, good, disk, timer)
        finally:
            timer.cancel()
            if timer.ident:
                timer.join()
        state.write_text("running\n")
        assert not is_kit("lost")
        (done,) = poured(kit, places, threading.Event(), ("lost", disk))
        assert done.fault == "", "the same command completes it"
        copy = attached(places, disk).kit
        assert contents(copy) == contents(kit)
        detached(places, "lost")
    detached(places)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "made_good"),
    [({"opts": 16, "every_nth": 40}, True), ({"opts": 128, "every_nth": 5}, False)],
    ids=["transport errors", "short transfers"],
)
def test_what_the_kernel_makes_good_is_no_fault_and_what_it_does_not_no_kit(
    places: Places, tmp_path: Path, trouble: dict[str, int], *, made_good: bool
) -> None:
    """Commands that are aborted, which it repeats, and such that do less than they were asked to, every so many of them."""
    kit = in_file(places, tmp_path / "usb.img")
    one_base(kit, SIZE)
    with whole_disk() as disk:

        def begin() -> None:
            for key, value in trouble.items():
                (DRIVER / key).write_text(str(value))

        # A disk is not chosen while looking at it fails.
        (done,) = poured(kit, places, threading.Event(), ("copy", disk), meanwhile=threading.Timer(0.2, begin))
        (DRIVER / "every_nth").write_text("0")
        assert is_kit("copy") is not bool(done.fault)
        assert not (made_good and done.fault)
        if done.fault:
            (done,) = poured(kit, places, threading.Event(), ("copy", disk))
            assert done.fault == "", "the same command completes it"
        copy = attached(places, disk).kit
        assert contents(copy) == contents(kit)
        detached(places, "copy")
    detached(places)


def lies_at(disk: Path, content: bytes) -> int:
    """The byte of the disk at which this is found first; a pool's data begins behind what else a kit has."""
    run(["blockdev", "--flushbufs", disk])
    with disk.open("rb") as file:
        for begin in range(0, 2 << 30, 64 * MIB):
            file.seek(begin)
            if (found := file.read(64 * MIB).find(content)) >= 0:
                return begin + found
    raise AssertionError("it is not there")


@pytest.mark.slow
@pytest.mark.parametrize("number", BAD)
def test_sectors_that_cannot_be_read(places: Places, tmp_path: Path, targets: tuple[Path, ...], number: int) -> None:
    """Medium errors where the copy's data lies, by the disk itself (scsi_debug's option 2)."""
    good, *_ = targets
    kit = in_file(places, tmp_path / "usb.img")
    one_base(kit, SIZE)
    with whole_disk() as disk:
        pours_whole(kit, places, disk)
        first = lies_at(disk, noise(SIZE, 1)[chance("bad", number).randrange(SIZE // CHUNK) * CHUNK :][:4096])
        for key, value in {"start": first // 512, "count": 64}.items():
            Path("/sys/module/scsi_debug/parameters", f"medium_error_{key}").write_text(str(value))
        (DRIVER / "opts").write_text("2")
        lost = goes_on_without(kit, places, good, disk)
        assert lost.device == disk
        print(lost.fault)
    detached(places)
