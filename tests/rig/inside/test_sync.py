"""`kit sync` on real dm-thin: older copies become what the master is now, by what differs; cut off, they are as before."""

from __future__ import annotations

import os
import random
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pocketcloud.copies.shipped import drop, read_all
from pocketcloud.copies.source import source_of
from pocketcloud.copies.sync import Synced, sync
from pocketcloud.copies.verify import verify
from pocketcloud.events import Event, StepProgress
from pocketcloud.kit.attached import Places
from pocketcloud.kit.plugged import kit_on
from pocketcloud.model.kit import Kit
from pocketcloud.model.sizes import KIB, MIB
from pocketcloud.storage import Clone, open_storage
from pocketcloud.storage.lvm import Lvm
from pocketcloud.storage.metadata_snapshot import metadata_snapshot
from pocketcloud.storage.shipped import snapshots_of
from pocketcloud.storage.thin_metadata import read_delta
from pocketcloud.system import run
from tests.rig.inside.asked import Asked
from tests.rig.inside.cut import killed_after
from tests.rig.inside.filed import attached, detached
from tests.rig.inside.made import NOW
from tests.rig.inside.test_clone import contents, copied, disks, furnish, noise, one_base, targets, write
from tests.rig.inside.test_kit_device import in_file

__all__ = ["disks", "targets"]


def synced(
    kit: Kit,
    *devices: Path,
    keep_labs: bool = False,
    thorough: bool = False,
    tell: Callable[[Event], None] = lambda _: None,
) -> tuple[Synced, ...]:
    copies = [kit_on(device, run) for device in devices]
    return sync(kit, copies, run, keep_labs=keep_labs, thorough=thorough, now=NOW, stop=threading.Event(), tell=tell)


def proven(kit: Kit) -> bool:
    return verify(kit, run, stop=threading.Event(), tell=lambda _done, _total: None).whole


def differing(kit: Kit, generation: str) -> int:
    """How many chunks of the master's volumes are not as they were shipped, by the tool's own count."""
    rows = Lvm(kit.devices).volumes(kit.vg)
    ids = {row.uuid: row.thin_id for row in rows}
    found = 0
    with metadata_snapshot(kit.vg, run, kit.path / "volumes") as metadata:
        for uuid, snapshot in snapshots_of(rows, generation).items():
            if uuid not in ids:
                continue  # it was removed
            told = run(["thin_delta", "-m", "--snap1", str(snapshot.thin_id), "--snap2", str(ids[uuid]), metadata]).out
            found += sum(length for _, length in read_delta(told.encode()))
    return found


def read_from_disks() -> int:
    """What this process has read from block devices, in bytes, by the kernel's own count."""
    told = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(told["read_bytes"])


def test_copies_become_what_the_master_is_by_what_differs(places: Places, tmp_path: Path, targets: tuple[Path, ...]) -> None:
    kit = in_file(places, tmp_path / "usb.img")
    storage = furnish(kit)
    assert all(not each.fault for each in copied(kit, places, *targets))
    (shipped,) = read_all(kit.path)
    # A student works in one of them.
    first, second = targets
    student = attached(places, first).kit
    own = open_storage(student)
    write(own, "lab.1", 2 * MIB, MIB, 91)
    own.remove("lab.7")
    own.clone_all([Clone("layer.2", "lab.99")])
    write(own, "lab.99", 0, MIB, 92)
    detached(places, "usb-01")
    # The master goes on: about one in a hundred chunks of what it has is another.
    write(storage, "lab.3", 5 * MIB, 320 * KIB, 93)
    storage.remove("lab.4")
    storage.clone_all([Clone("layer.2", "lab.new")])
    write(storage, "lab.new", 9 * MIB, 128 * KIB, 94)
    (kit.path / "media/notes").write_bytes(noise(MIB, 95))
    before = contents(kit)
    with source_of(kit, run, now=NOW) as source:
        chunk, unique = source.pool.chunk, source.bytes
    changed = differing(kit, shipped.generation) * chunk + 128 * KIB + 2 * chunk
    found = synced(kit, *targets)
    assert [each.fault for each in found] == ["", ""]
    for each in found:
        assert 0 < each.sent <= 1.05 * changed
        assert each.sent + each.known == unique
    for number, disk in enumerate(targets, 1):
        copy = attached(places, disk).kit
        assert copy.name == f"usb-0{number}"
        assert contents(copy) == before
        assert (copy.path / "media/notes").read_bytes() == noise(MIB, 95)
        assert proven(copy)
        write(open_storage(copy), "lab.new", MIB, MIB, 96)
        detached(places, copy.name)
    # Once more, from that: what was done in them is undone without a byte.
    again = synced(kit, *targets, thorough=True)
    assert [each.fault for each in again] == ["", ""]
    assert {each.sent for each in again} == {0}
    assert all(each.verified >= unique for each in again)
    copy = attached(places, second).kit
    assert contents(copy) == before
    for name in ("usb", "usb-02"):
        detached(places, name)


@pytest.mark.slow
def test_no_side_is_read_whole(places: Places, tmp_path: Path, targets: tuple[Path, ...]) -> None:
    """What is read whatever the kit holds (metadata, the kit's own files, 256 chunks as a sample) is about 80 MiB."""
    kit = in_file(places, tmp_path / "usb.img")
    one_base(kit, 240 * MIB)
    target, *_ = targets
    (made,) = copied(kit, places, target)
    assert not made.fault
    storage = open_storage(kit)
    storage.clone_all([Clone("base.one", "lab.new")])
    write(storage, "lab.new", 9 * MIB, MIB, 94)
    reads = read_from_disks()
    (found,) = synced(kit, target)
    quick = read_from_disks() - reads
    assert (found.fault, found.whole) == ("", False)
    assert found.sent >= MIB
    reads = read_from_disks()
    told: list[Event] = []
    (found,) = synced(kit, target, thorough=True, tell=told.append)
    assert found.fault == ""
    assert read_from_disks() - reads >= 240 * MIB, "the count counts"
    shown = [event.text for event in told if isinstance(event, StepProgress)]
    assert any(re.fullmatch(r"read again .* of 2[4-9]\d(\.\d)? MiB, \d+ MB/s.*", text) for text in shown), shown
    assert quick < 120 * MIB
    copy = attached(places, target).kit
    assert contents(copy) == contents(kit)
    for name in ("usb", copy.name):
        detached(places, name)


def some(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(noise(MIB, 3))


@pytest.mark.sampled(2)
def test_labs_on_a_copy_stay_where_asked(places: Places, tmp_path: Path, targets: tuple[Path, ...]) -> None:
    disk, *_ = targets
    kit = in_file(places, tmp_path / "usb.img")
    one_base(kit, 8 * MIB)
    storage = open_storage(kit)
    for lab in ("demo", "other"):
        storage.clone_all(
            [
                Clone("base.one", f"lab.{lab}.web.root.g1"),
            ]
        )
        (kit.path / "labs" / lab).mkdir()
        (kit.path / "labs" / lab / "lab.json").write_text(f'"{lab} of the master"')
    copied(kit, places, disk)
    copy = attached(places, disk).kit
    own = open_storage(copy)
    write(own, "lab.demo.web.root.g1", 3 * MIB, MIB, 1)
    (copy.path / "labs/demo/lab.json").write_text('"demo of a student"')
    (copy.path / "nvram/demo.web.fd").write_bytes(b"variables")
    student = contents(copy)
    detached(places, "usb-01")
    # The master has another base, the lab changed, and one more.
    write(storage, "lab.demo.web.root.g1", 4 * MIB, MIB, 2)
    storage.create("base.two", 16 * MIB, some)
    storage.clone_all([Clone("base.two", "lab.third.web.root.g1")])
    (kit.path / "labs/third").mkdir()
    (kit.path / "labs/third/lab.json").write_text('"third"')
    master = contents(kit)
    (done,) = synced(kit, disk, keep_labs=True)
    assert (done.fault, done.kept) == ("", ("demo", "other"))
    copy = attached(places, disk).kit
    mine = [name for name in student if name.startswith(("lab.demo.", "lab.other."))]
    assert contents(copy) == master | {name: student[name] for name in mine}
    assert (copy.path / "labs/demo/lab.json").read_text() == '"demo of a student"'
    assert (copy.path / "labs/third/lab.json").read_text() == '"third"'
    assert (copy.path / "nvram/demo.web.fd").read_bytes() == b"variables"
    assert open_storage(copy).volumes()
    write(open_storage(copy), "lab.demo.web.root.g1", 0, MIB, 4)
    detached(places, "usb-01")
    (done,) = synced(kit, disk)
    assert done.fault == ""
    copy = attached(places, disk).kit
    assert contents(copy) == master
    assert (copy.path / "labs/demo/lab.json").read_text() == '"demo of the master"'
    for name in ("usb", "usb-01"):
        detached(places, name)


def cut_short(kit: Kit, disk: Path, seconds: float) -> bool:
    """Sync in a process of its own, which is killed after so long; whether it was before it was done."""
    return killed_after(seconds, lambda: not synced(kit, disk)[0].fault)


@pytest.mark.sampled(20)
@pytest.mark.parametrize("number", range(20))
def test_a_copy_whose_sync_was_killed_is_what_it_was_or_what_it_is_to_be(
    places: Places, tmp_path: Path, targets: tuple[Path, ...], number: int
) -> None:
    disk, *_ = targets
    kit = in_file(places, tmp_path / "usb.img")
    one_base(kit, 8 * MIB)
    storage = open_storage(kit)
    storage.clone_all([Clone("base.one", "lab.one")])
    copied(kit, places, disk)
    before = contents(kit)
    write(storage, "lab.one", MIB, 6 * MIB, 7)
    storage.clone_all([Clone("base.one", "lab.two")])
    after = contents(kit)
    chance = random.Random(f"{os.environ.get('POCKETCLOUD_SEED')}.{number}")  # noqa: S311 - keeps no secret
    for _ in range(2):
        if not cut_short(kit, disk, chance.uniform(0.5, 12.0)):
            break
        copy = attached(places, disk).kit
        assert contents(copy) in (before, after)
        assert proven(copy)
        detached(places, copy.name)
    else:
        (done,) = synced(kit, disk)
        assert done.fault == ""
    copy = attached(places, disk).kit
    assert contents(copy) == after
    assert proven(copy)
    for name in ("usb", "usb-01"):
        detached(places, name)


@pytest.mark.sampled(2)
def test_by_hand_and_what_is_no_copy_is_left_alone(places: Places, tmp_path: Path, targets: tuple[Path, ...]) -> None:
    first, second = targets
    kit = in_file(places, tmp_path / "usb.img")
    one_base(kit, 8 * MIB)
    storage = open_storage(kit)
    storage.clone_all([Clone("base.one", "lab.one")])
    Asked(places, "kit", "sync", "usb").ends(2, "no copy of kit usb is plugged in")
    Asked(places, "kit", "clone", "usb", first, "-y").ends(0, "verified")
    Asked(places, "kit", "init", second, "--name", "strange", "-y").ends(0)
    Asked(places, "kit", "detach", "strange").ends(0)
    Asked(places, "kit", "sync", "usb", second, "-y").ends(8, "is no copy of kit usb")
    Asked(places, "kit", "sync", "usb", "usb-01", "-y").ends(0, "in sync")
    # What was recorded meanwhile is no reason to forget what was shipped.
    for number in range(2):
        write(storage, "lab.one", number * MIB, MIB, number)
        Asked(places, "kit", "verify", "usb", "--record").ends(0, "are what was shipped")
    Asked(places, "kit", "sync", "usb", "-y").ends(0, "in sync")
    # The words of what was shipped are lost.
    drop(kit.path, but=[])
    asked = Asked(places, "kit", "sync", "usb", "-y")
    asked.ends(0, "no longer has what it shipped", "copied whole")
    copy = attached(places, first).kit
    assert contents(copy) == contents(kit)
    for name in ("usb", "usb-01"):
        detached(places, name)
