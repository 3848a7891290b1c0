"""A kit with bases, layers, machines and states is copied to disks: with its sharing, its content, and an identity of its own."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pocketcloud.copies.clone import Copied, Wanted, clone
from pocketcloud.copies.ledger import CopyEntry, add_copies, next_names, read_ledger
from pocketcloud.copies.shipped import read_all
from pocketcloud.copies.source import source_of
from pocketcloud.copies.unfinished import Unfinished, read_note
from pocketcloud.errors import NotFound
from pocketcloud.events import Event
from pocketcloud.host import kits as host
from pocketcloud.kit.attached import Places
from pocketcloud.kit.disk import choose
from pocketcloud.kit.plugged import Plugged, plugged_kits
from pocketcloud.model.kit import Kit
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import KIB, MIB
from pocketcloud.storage import Clone, Storage, open_storage
from pocketcloud.storage.devmapper import node_name, pool_status
from pocketcloud.storage.lvm import Lvm
from pocketcloud.storage.metadata_snapshot import metadata_snapshot
from pocketcloud.storage.thin_metadata import PoolMap, read_dump
from pocketcloud.storage.thin_volumes import CONTENT, OF, POOL
from pocketcloud.system import run
from tests.rig.inside.asked import Asked
from tests.rig.inside.cut import killed_after
from tests.rig.inside.filed import attached, detached
from tests.rig.inside.made import NOW
from tests.rig.inside.ram_disks import ram_disks
from tests.rig.inside.test_kit_device import erase, in_file, pattern

DISKS = (Path("/dev/ram0"), Path("/dev/ram1"))
MACHINES = 20
STATE_SIZE = 32 * MIB


@pytest.fixture(scope="module", autouse=True)
def disks() -> None:
    ram_disks(len(DISKS))


@pytest.fixture
def targets() -> Iterator[tuple[Path, ...]]:
    for disk in DISKS:
        erase(disk)
    yield DISKS
    for disk in DISKS:
        erase(disk)


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)  # noqa: S311 - keeps no secret


def write(storage: Storage, name: str, at: int, size: int, seed: int) -> None:
    storage.activate(name)
    with storage.place(name)[0].open("r+b") as file:
        file.seek(at)
        file.write(noise(size, seed))
        file.flush()
        os.fsync(file.fileno())


def furnish(kit: Kit, machines: int = MACHINES) -> Storage:
    """A base, three layers on it, machines of which some wrote something, states of those, and a file among the media."""
    storage = open_storage(kit)

    def fill(path: Path) -> None:
        with path.open("r+b") as file:
            file.write(noise(24 * MIB, 1))

    storage.create("base.one", 64 * MIB, fill)
    below = "base.one"
    for number in range(3):
        name = f"layer.{number}"
        storage.clone(below, name)
        write(storage, name, (5 + 10 * number) * MIB + 12345, MIB, 10 + number)
        storage.seal(name)
        below = name
    storage.clone_all([Clone(below, f"lab.{number}") for number in range(machines)])
    changed = range(0, machines, 5)
    for number in changed:
        write(storage, f"lab.{number}", number * MIB, 200 * KIB, 100 + number)
    storage.clone_all([Clone(f"lab.{number}", f"state.{number}") for number in changed])
    (kit.path / "media/notes").write_bytes(noise(3 * MIB, 5))
    add_copies(kit, [CopyEntry(Name("usb-00"), "id", "serial", NOW, "digest")])
    (kit.path / "labs/demo").mkdir()
    (kit.path / "labs/demo/lab.json").write_text("{}")
    return storage


def contents(kit: Kit) -> dict[str, str]:
    """A digest of each volume of the kit."""
    storage = open_storage(kit)
    found = {}
    names = [volume.name for volume in storage.volumes()]
    storage.activate(*names)
    for volume in storage.volumes():
        with storage.place(volume.name)[0].open("rb") as file:
            found[volume.name] = hashlib.file_digest(file, "blake2b").hexdigest()
    Lvm(kit.devices).command("lvchange", "-an", *(storage.place(name)[0] for name in names))
    return found


def unique_bytes(kit: Kit) -> int:
    """How many bytes of the pool are somebody's, each counted once."""
    with source_of(kit, run, now=NOW) as source:
        return source.bytes


def dumped(kit: Kit) -> PoolMap:
    """The map of an attached kit's pool, as the tool tells it."""
    with metadata_snapshot(kit.vg, run, kit.path / "volumes") as metadata:
        return read_dump([run(["thin_dump", "-m", metadata]).out.encode()])


def dumped_of(copy: Plugged) -> PoolMap:
    """The same of a copy that was never attached."""
    lvm, metadata = Lvm([copy.device]), f"{copy.group.name}/{POOL}_tmeta"
    lvm.command("lvchange", "-ay", metadata)
    try:
        return read_dump([run(["thin_dump", f"/dev/{metadata}"]).out.encode()])
    finally:
        lvm.command("lvchange", "-an", metadata)


def held(kit: Kit) -> int | None:
    status = pool_status(f"{node_name(kit.vg, POOL)}-tpool", run)
    assert status is not None
    return status.held


def copied(kit: Kit, places: Places, *disks: Path) -> tuple[Copied, ...]:
    told: list[Event] = []
    wanted = [Wanted(choose(places, disk, run), Name(f"{kit.name}-{number:02}")) for number, disk in enumerate(disks, 1)]
    return clone(kit, wanted, places, run, now=NOW, stop=threading.Event(), tell=told.append)


def as_shipped(pool: PoolMap, kit: Kit) -> PoolMap:
    """The map with that of `content` as it was kept: it is mounted, and every snapshot makes its file system write a little."""
    rows = Lvm(kit.devices).volumes(kit.vg)
    content = next(row for row in rows if row.name == CONTENT)
    kept = next(row for row in rows if row.tagged(OF) == content.uuid)
    packed = pool.devices[kept.thin_id].packed
    return replace(pool, devices={**pool.devices, content.thin_id: replace(pool.devices[content.thin_id], packed=packed)})


def same_maps(one: PoolMap, two: PoolMap) -> bool:
    """Equal but for how often LVM has changed each."""
    assert one.chunk == two.chunk
    return {n: (d.created, d.snapped, d.packed) for n, d in one.devices.items()} == {
        n: (d.created, d.snapped, d.packed) for n, d in two.devices.items()
    }


def test_copies_are_kits_with_the_same_sharing_and_content(places: Places, tmp_path: Path, targets: tuple[Path, ...]) -> None:
    kit = in_file(places, tmp_path / "usb.img")
    furnish(kit)
    before = contents(kit)
    found = copied(kit, places, *targets)
    assert [(each.kit, each.fault) for each in found] == [("usb-01", ""), ("usb-02", "")]
    assert next_names(kit, 2, ["usb-07", "usb-x", "other-99"]) == ("usb-08", "usb-09")
    assert held(kit) is None
    source = as_shipped(dumped(kit), kit)
    unique = unique_bytes(kit)
    (shipped,) = read_all(kit.path)  # nothing has changed since
    beside = 8 * MIB + STATE_SIZE  # metadata, and the state volume
    assert all(unique < each.written <= 1.02 * unique + beside for each in found)
    assert all(each.verified == each.written for each in found)
    plugged = {each.name: each for each in plugged_kits(run)}
    assert {each.id for each in found} == {plugged["usb-01"].id, plugged["usb-02"].id}
    assert kit.id not in {each.id for each in found}
    assert all(same_maps(dumped_of(copy), source) for copy in plugged.values() if copy.name != "usb")

    copies = [attached(places, disk).kit for disk in targets]
    assert [copy.manifest.derived_from for copy in copies] == [kit.id] * 2
    assert len({copy.vg for copy in (kit, *copies)}) == 3
    for copy in copies:
        assert contents(copy) == before
        assert (copy.path / "media/notes").read_bytes() == noise(3 * MIB, 5)
        assert (copy.path / "labs/demo/lab.json").read_text() == "{}"
        assert not read_ledger(copy).copies
        assert read_all(copy.path) == (shipped,)
        assert not list((copy.path / "volumes").glob(".making-*"))
    # All are used at once, each for itself.
    for number, one in enumerate((kit, *copies)):
        own = open_storage(one)
        write(own, "lab.1", MIB, MIB, 500 + number)
    assert len({contents(one)["lab.1"] for one in (kit, *copies)}) == 3
    assert all(contents(one)["lab.2"] == before["lab.2"] for one in (kit, *copies))
    for name in ("usb", "usb-01", "usb-02"):
        detached(places, name)
    assert not host.loops_of(tmp_path / "usb.img")


def one_base(kit: Kit, size: int) -> None:
    """A base of so many bytes of noise, which do not compress and are not zeros."""

    def fill(path: Path) -> None:
        with path.open("r+b") as file:
            file.write(noise(size, 1))

    open_storage(kit).create("base.one", size, fill)


def cut_short(kit: Kit, places: Places, disk: Path, seconds: float) -> bool:
    """Copy in a process of its own, which is killed after so long; whether it was before it was done."""
    wanted = [Wanted(choose(places, disk, run), Name("copy"))]

    def work() -> bool:
        (done,) = clone(kit, wanted, places, run, now=NOW, stop=threading.Event(), tell=lambda _: None, noted_every=MIB)
        return not done.fault

    return killed_after(seconds, work)


@pytest.mark.sampled(20)
@pytest.mark.parametrize("number", range(20))
def test_a_copy_that_was_killed_is_no_kit_and_is_gone_on_with(
    places: Places, tmp_path: Path, targets: tuple[Path, ...], number: int
) -> None:
    disk, *_ = targets
    kit = in_file(places, tmp_path / "usb.img")
    one_base(kit, 64 * MIB)
    chance = random.Random(f"{os.environ.get('POCKETCLOUD_SEED')}.{number}")  # noqa: S311 - keeps no secret
    for _ in range(3):
        if not cut_short(kit, places, disk, chance.uniform(0.2, 6.0)):
            break
        names = [each.name for each in plugged_kits(run)]
        if "copy" not in names:
            with pytest.raises(NotFound, match="no kit"):
                attached(places, disk)
    else:
        (done,) = copied(kit, places, disk)
        assert done.fault == ""
    copy = attached(places, disk).kit
    assert contents(copy) == contents(kit)
    assert held(kit) is None
    for name in (copy.name, kit.name):
        detached(places, name)


def read_note_of(disk: Path) -> Unfinished | None:
    parts = host.partitions(disk.name)
    if not parts:
        return None
    handle = os.open(host.node(parts[0]), os.O_RDONLY)
    try:
        return read_note(handle)
    finally:
        os.close(handle)


@pytest.fixture
def liar() -> Iterator[Path]:
    """A disk that says it has four GiB, and keeps 64 MiB: what is written past that lands on what was there."""
    run(["modprobe", "scsi_debug", "dev_size_mb=64", "virtual_gb=4"])
    until = time.monotonic() + 20
    while not (found := list(Path("/dev").glob("sd?"))):
        assert time.monotonic() < until
        time.sleep(0.05)
    yield found[0]
    for _ in range(50):
        if run(["rmmod", "scsi_debug"], codes=(0, 1)).code == 0:
            return
        time.sleep(0.1)
    raise AssertionError("something still holds the disk")


@pytest.mark.sampled(20)
def test_a_disk_that_is_smaller_than_it_says_is_found_out(
    places: Places, tmp_path: Path, targets: tuple[Path, ...], liar: Path
) -> None:
    good, *_ = targets
    kit = in_file(places, tmp_path / "usb.img")
    one_base(kit, 96 * MIB)
    whole, fake = copied(kit, places, good, liar)
    assert whole.fault == ""
    assert fake.fault
    assert {each.name for each in plugged_kits(run)} == {"usb", "usb-01"}
    attached(places, good)
    for name in ("usb", "usb-01"):
        detached(places, name)


@pytest.mark.sampled(20)
def test_by_hand_one_question_a_table_and_labels(places: Places, tmp_path: Path, targets: tuple[Path, ...]) -> None:
    full, empty = targets
    kit = in_file(places, tmp_path / "usb.img")
    one_base(kit, 8 * MIB)
    run(["mkfs.ext4", "-q", "-F", "-E", "nodiscard", full])
    for answer in ("y", str(full)):
        asked = Asked(places, "kit", "clone", "usb", full, empty)
        asked.until("To go on, type")
        asked.answer(answer)
        asked.ends(5, "nothing was changed")
    Asked(places, "kit", "clone", "usb", empty, empty).ends(2, "are on one disk")
    Asked(places, "kit", "clone", "usb").ends(2, "no TARGET is named")
    Asked(places, "kit", "clone", "usb", "--resume").ends(4, "no unfinished copy of kit usb")
    before = [pattern(disk, 0) for disk in (full, empty)]
    said = Asked(places, "kit", "clone", "usb", full, empty, "--dry-run").ends(0, "usb-01 on", "usb-02 on", "Nothing was done")
    assert "now on it: ram0, 4 GiB: ext4" in said
    assert "now on it: nothing" in said
    assert "layout: state" in said
    assert [pattern(disk, 0) for disk in (full, empty)] == before
    assert not read_ledger(kit).copies
    assert held(kit) is None
    nowhere = tmp_path / "no/labels.csv"
    Asked(places, "kit", "clone", "usb", full, empty, "--labels", nowhere).ends(2, "labels.csv cannot be written: No such file")
    labels = tmp_path / "labels.csv"
    asked = Asked(places, "kit", "clone", "usb", full, empty, "--labels", labels)
    shown, wanted = asked.until(r"type what tells them apart: (\S+):")
    assert f"usb-01 on {full}" in shown.replace("disk (4 GiB, no serial, ", "").replace(")", "")
    assert "ext4" in shown
    asked.answer(wanted)
    asked.ends(0, "usb-01", "usb-02", "verified")
    rows = labels.read_text().splitlines()
    assert rows[0] == "kit,id,serial,port,device,state"
    assert [(row.split(",")[0], row.split(",")[-1]) for row in rows[1:]] == [("usb-01", "verified"), ("usb-02", "verified")]
    Asked(places, "kit", "clone", "usb", full, "-y").ends(5, "there is a kit named usb-01")
    erase(empty)
    seconds = 1.0
    while (early := cut_short(kit, places, empty, seconds)) is False or read_note_of(empty) is None:
        erase(empty)
        seconds *= 1.3 if early else 0.8
    Asked(places, "kit", "attach", empty).ends(4, "no kit on /dev/ram1 yet", "kit clone KIT --resume")
    asked = Asked(places, "kit", "clone", "usb", "--resume", "-y")
    asked.until("an unfinished copy of this kit, which is gone on with")
    asked.ends(0, "copy", "verified")
    detached(places)
