"""A station makes copies of what is plugged in, and leaves alone what is somebody's. Disks are RAM disks, which cannot be pulled:
that is for the emulated laptop."""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pocketcloud.copies.ledger import CopyEntry, add_copies, read_ledger
from pocketcloud.copies.source import source_of
from pocketcloud.copies.station import Orders, Station, Tally
from pocketcloud.errors import NotFound
from pocketcloud.events import Event
from pocketcloud.kit.attached import Places
from pocketcloud.kit.plugged import plugged_kits
from pocketcloud.model.kit import Kit
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import GIB, MIB
from pocketcloud.storage import open_storage
from pocketcloud.storage.lvm import Lvm
from pocketcloud.storage.thin_volumes import POOL, STATE
from pocketcloud.system import run
from tests.rig.inside.asked import Asked
from tests.rig.inside.cut import killed_after
from tests.rig.inside.filed import attached, detached
from tests.rig.inside.made import NOW
from tests.rig.inside.ram_disks import ram_disks
from tests.rig.inside.test_clone import contents, cut_short, one_base, read_note_of
from tests.rig.inside.test_kit_device import erase, in_file, pattern

FIRST, SECOND = Path("/dev/ram0"), Path("/dev/ram1")


@pytest.fixture(scope="module", autouse=True)
def disks() -> None:
    ram_disks()


def made_blank(disk: Path) -> None:
    """RAM disks do not all take TRIM, and wiping signatures leaves the rest of a partition table."""
    erase(disk)
    with disk.open("r+b") as file:
        for place in (0, GIB, 4 * GIB - 2 * MIB):
            file.seek(place)
            file.write(bytes(2 * MIB))


@pytest.fixture(autouse=True)
def blank() -> Iterator[None]:
    for disk in (FIRST, SECOND):
        made_blank(disk)
    yield
    for disk in (FIRST, SECOND):
        made_blank(disk)


@dataclass
class Worked:
    """What a station did, and what it recorded."""

    tally: Tally
    records: list[Mapping[str, Any]] = field(default_factory=list)

    def seen(self) -> dict[str, tuple[str, str]]:
        """What each disk was to it, and why."""
        return {r["device"]: (r["kind"], r["why"]) for r in self.records if r["event"] == "seen"}


def worked(kit: Kit, places: Places, enough: Callable[[list[Mapping[str, Any]]], bool], *, count: int = 0) -> Worked:
    """Let a station work until there is enough in its records."""
    stop, found, told = threading.Event(), Worked(Tally()), list[Event]()

    def record(what: Mapping[str, Any]) -> None:
        json.dumps(what)
        found.records.append(what)
        if enough(found.records):
            stop.set()

    orders = Orders(lambda disk: disk.name.startswith("ram"), lambda: NOW, told.append, record, count=count, noted_every=MIB)
    with source_of(kit, run, now=NOW) as source:
        found.tally = Station(source, places, run, orders, stop).work()
    return found


def one_more(kit: Kit, name: str) -> None:
    def fill(path: Path) -> None:
        with path.open("r+b") as file:
            file.write(name.encode() * 1000)

    open_storage(kit).create(name, 8 * MIB, fill)


def both_seen(records: list[Mapping[str, Any]]) -> bool:
    return len([record for record in records if record["event"] == "seen"]) == 2


def never(_records: list[Mapping[str, Any]]) -> bool:
    return False


@pytest.mark.sampled(10)
def test_blank_disks_become_copies_and_others_stay_as_they_are(places: Places, tmp_path: Path) -> None:
    kit = in_file(places, tmp_path / "usb.img")
    one_base(kit, 8 * MIB)
    run(["mkfs.ext4", "-q", "-F", "-E", "nodiscard", SECOND])
    before = pattern(SECOND, 0)
    first = worked(kit, places, never, count=1)
    assert [(each.kit, each.fault) for each in first.tally.done] == [("usb-01", "")]
    assert first.seen()[str(FIRST)] == ("blank", "")
    kind, why = first.seen()[str(SECOND)]
    assert kind == "foreign"
    assert "ext4" in why
    assert [record["event"] for record in first.records if record["device"] == str(FIRST)] == ["seen", "begun", "done"]
    assert pattern(SECOND, 0) == before
    (entry,) = read_ledger(kit).copies
    assert (entry.name, entry.size, bool(entry.generation)) == ("usb-01", 4 * GIB, True)

    again = worked(kit, places, both_seen)
    assert again.seen()[str(FIRST)] == ("done", "")
    assert not again.tally.done
    assert not again.tally.failed

    # The kit holds more now: what nobody has used is made anew, also where a look into it was killed before.
    one_more(kit, "base.two")
    (plugged,) = [each for each in plugged_kits(run) if each.name == "usb-01"]
    for volume in (f"{POOL}_tmeta", STATE):
        Lvm([plugged.device]).command("lvchange", "-ay", f"{plugged.group.name}/{volume}")
    newer = worked(kit, places, never, count=1)
    assert newer.seen()[str(FIRST)] == ("old", "")
    assert [(each.kit, each.fault) for each in newer.tally.done] == [("usb-01", "")]
    copy = attached(places, FIRST).kit
    assert contents(copy) == contents(kit)
    detached(places, "usb-01")

    # It was used now.
    one_more(kit, "base.three")
    kind, why = worked(kit, places, both_seen).seen()[str(FIRST)]
    assert kind == "foreign"
    assert "was used" in why
    assert "usb-01" in {each.name for each in plugged_kits(run)}
    detached(places, "usb")


@pytest.mark.sampled(10)
def test_what_lies_beside_a_copy_keeps_its_disk_from_being_touched(places: Places, tmp_path: Path) -> None:
    kit = in_file(places, tmp_path / "usb.img")
    one_base(kit, 8 * MIB)
    assert [each.fault for each in worked(kit, places, never, count=1).tally.done] == [""]
    copied_to, empty = (FIRST, SECOND) if list(Path("/dev").glob(f"{FIRST.name}p*")) else (SECOND, FIRST)
    run(["sfdisk", "--quiet", "--append", "--force", copied_to], stdin=b"start=1MiB, size=64MiB, type=linux\n")
    run(["partx", "--update", copied_to], codes=(0, 1))
    (beside,) = [part for part in Path("/dev").glob(f"{copied_to.name}p*") if part.name != f"{copied_to.name}p1"]
    run(["mkfs.ext4", "-q", "-F", "-E", "nodiscard", beside])
    before = pattern(beside, MIB)
    for more in ("", "base.two"):  # as a copy of what the kit is, and of what it was
        if more:
            one_more(kit, more)
        told = worked(kit, places, lambda records: str(copied_to) in {r["device"] for r in records})
        assert told.seen()[str(copied_to)] == ("foreign", f"{beside} is on it beside kit usb-01")
        assert pattern(beside, MIB) == before
    assert "usb-01" in {each.name for each in plugged_kits(run)}
    made_blank(empty)
    detached(places, "usb")


@pytest.mark.sampled(10)
def test_a_copy_that_was_interrupted_is_gone_on_with(places: Places, tmp_path: Path) -> None:
    kit = in_file(places, tmp_path / "usb.img")
    one_base(kit, 64 * MIB)
    SECOND.write_bytes(b"something that nobody knows")
    seconds = 1.0
    while (early := cut_short(kit, places, FIRST, seconds)) is False or read_note_of(FIRST) is None:
        erase(FIRST)
        seconds *= 1.3 if early else 0.8
    with pytest.raises(NotFound, match="no kit"):
        attached(places, FIRST)
    stopped = worked(kit, places, lambda records: any(record["event"] == "begun" for record in records))
    assert stopped.tally.unfinished == ["copy"]
    assert not stopped.tally.failed
    # Meanwhile another disk has got that name.
    add_copies(kit, [CopyEntry(Name("copy"), "another", "its serial", NOW, "")])
    found = worked(kit, places, never, count=1)
    assert found.seen()[str(FIRST)] == ("unfinished", "")
    assert found.seen()[str(SECOND)][0] == "foreign"
    assert [(each.kit, each.fault) for each in found.tally.done] == [("usb-01", "")]
    copy = attached(places, FIRST).kit
    assert (copy.name, contents(copy)) == ("usb-01", contents(kit))
    for name in ("usb-01", "usb"):
        detached(places, name)


def killed(kit: Kit, places: Places, seconds: float) -> bool:
    """Let a station work in a process of its own, which is killed after so long; whether it was before it was done."""
    return killed_after(seconds, lambda: bool(worked(kit, places, never, count=1).tally.done))


def over(records: list[Mapping[str, Any]]) -> bool:
    """Whether the first disk is done, or never will be."""
    mine = [record for record in records if record["device"] == str(FIRST)]
    return any(record["event"] in ("done", "failed") or record.get("kind") in ("done", "foreign") for record in mine)


@pytest.mark.sampled(10)
@pytest.mark.parametrize("number", range(10))
def test_a_station_that_is_killed_goes_on_wherever_it_was(places: Places, tmp_path: Path, number: int) -> None:
    kit = in_file(places, tmp_path / "usb.img")
    one_base(kit, 32 * MIB)
    SECOND.write_bytes(b"something that nobody knows")
    before = pattern(SECOND, 0)
    chance = random.Random(f"{os.environ.get('POCKETCLOUD_SEED')}.station.{number}")  # noqa: S311 - keeps no secret
    for _ in range(3):
        if not killed(kit, places, chance.uniform(3.0, 30.0)):
            break
    found = worked(kit, places, over)
    kind, why = found.seen()[str(FIRST)]
    assert kind != "foreign", why
    assert found.tally.failed == {}
    assert [str(entry.name) for entry in read_ledger(kit).copies] == ["usb-01"]
    assert pattern(SECOND, 0) == before
    (name,) = {each.name for each in plugged_kits(run)} - {"usb"}
    copy = attached(places, FIRST).kit
    assert contents(copy) == contents(kit)
    for each in (name, "usb"):
        detached(places, each)


@pytest.mark.sampled(10)
def test_by_hand_it_asks_once_and_ends_by_ctrl_c(places: Places, tmp_path: Path) -> None:
    kit = in_file(places, tmp_path / "usb.img")
    one_base(kit, 8 * MIB)
    log = tmp_path / "log"
    asked = Asked(places, "kit", "station", "--master", "usb", "--port", "nowhere-*", "--log", log, "--progress", "plain")
    asked.until("Begin")
    asked.answer("n")
    asked.ends(5, "nothing was done")
    asked = Asked(places, "kit", "station", "--master", "usb", "--port", "nowhere-*", "--log", log, "-y", "--progress", "plain")
    asked.until("left alone")
    asked.until("the station watches")
    asked.interrupt()
    asked.ends(0, "no copies were made")
    assert log.read_text() == ""
    detached(places)
