"""A kit on a disk is copied to a folder and back, volume by volume: contents, what stands on what, and what is shared."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pocketcloud.copies.clone import Copied, Wanted
from pocketcloud.copies.filling import Contents, contents_of
from pocketcloud.copies.folder import WantedFolder, checked_folder
from pocketcloud.copies.logical import clone_by_volume
from pocketcloud.copies.reading import reading_of
from pocketcloud.errors import NotFound, Refused
from pocketcloud.files import remove_tree
from pocketcloud.kit.attached import Places
from pocketcloud.kit.directory import init_directory
from pocketcloud.kit.disk import choose
from pocketcloud.kit.manifest import kit_at
from pocketcloud.kit.mounts import mounts
from pocketcloud.kit.plugged import plugged_kits
from pocketcloud.model.kit import Kit
from pocketcloud.model.names import Name
from pocketcloud.model.profile import Medium
from pocketcloud.model.sizes import KIB, MIB
from pocketcloud.storage import open_storage
from pocketcloud.storage.devmapper import nodes
from pocketcloud.storage.lvm import Lvm
from pocketcloud.storage.thin_volumes import whole_extents
from pocketcloud.storage.volume_data import opened
from pocketcloud.system import run
from tests.rig.inside.asked import Asked
from tests.rig.inside.cut import killed_after
from tests.rig.inside.filed import attached, detached
from tests.rig.inside.made import NOW
from tests.rig.inside.ram_disks import ram_disks
from tests.rig.inside.test_clone import furnish, held, liar, noise
from tests.rig.inside.test_kit_device import erase, in_file

__all__ = ["liar"]

DISK = Path("/dev/ram0")
CHUNK = 64 * KIB
SPACES = 20


@pytest.fixture(scope="module", autouse=True)
def disks() -> None:
    ram_disks()


@pytest.fixture
def disk() -> Iterator[Path]:
    erase(DISK)
    yield DISK
    erase(DISK)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where QEMU can get to, unlike pytest's own folders."""
    path = Path(tempfile.mkdtemp(prefix="pocketcloud-test-"))
    path.chmod(0o755)
    yield path
    remove_tree(path)


def chunk(_medium: Medium) -> int:
    return CHUNK


def copied(kit: Kit, places: Places, target: Path, name: str) -> Copied:
    wanted: Wanted | WantedFolder
    if target.is_block_device():
        wanted = Wanted(choose(places, target, run), Name(name))
    else:
        wanted = WantedFolder(checked_folder(places, target), Name(name))
    stop = threading.Event()
    (done,) = clone_by_volume(kit, [wanted], chunk, places, run, now=NOW, stop=stop, tell=lambda _: None)
    return done


def seen(kit: Kit, of: Kit | None = None) -> dict[str, str]:
    """A digest of each volume, as a guest would read it: as much of it as the same one of the kit `of` has."""
    store, found = open_storage(kit), {}
    sizes = {volume.name: volume.size for volume in open_storage(of or kit).volumes()}
    for volume in store.volumes():
        store.activate(volume.name)
        with opened(volume.path, volume.format, run) as data:
            found[volume.name] = hashlib.blake2b(data.read(0, sizes[volume.name])).hexdigest()
    if kit.vg:
        Lvm(kit.devices).command("lvchange", "-an", *(store.place(name)[0] for name in found))
    return found


def structure(kit: Kit) -> dict[str, tuple[object, ...]]:
    return {v.name: (v.parent, v.sealed, v.kept, whole_extents(v.size)) for v in open_storage(kit).volumes() if not v.spare}


def own(kit: Kit) -> Contents:
    with reading_of(kit, run) as reading:
        return contents_of(reading)


def test_from_a_disk_to_a_folder_and_back(places: Places, tmp_path: Path, disk: Path, folder: Path) -> None:
    kit = in_file(places, tmp_path / "usb.img")
    store = furnish(kit, 6)
    # A clone that gave back what its parent has: it reads as zeros there.
    store.activate("lab.4")
    with opened(*store.place("lab.4"), run, writable=True, chunk=CHUNK) as data:
        data.zero(3 * MIB + 512, MIB)
        assert data.read(3 * MIB, MIB + 1024) == noise(3 * MIB + 512, 1)[-512:] + bytes(MIB) + noise(4 * MIB + 1024, 1)[-512:]
    before, shape, taken = seen(kit), structure(kit), own(kit)
    assert any(extent.zero for extent in taken.extents["lab.4"])

    done = copied(kit, places, folder / "copy", "copy")
    assert (done.fault, done.written) == ("", taken.bytes)
    assert done.verified == done.written
    assert held(kit) is None
    detached(places, "usb")
    copy = attached(places, folder / "copy").kit
    assert (copy.id, copy.manifest.storage, copy.manifest.derived_from) == (done.id, "qcow2", kit.id)
    assert seen(copy) == before
    assert structure(copy) == shape
    assert own(copy).bytes <= 1.1 * taken.bytes
    assert (copy.path / "media/notes").read_bytes() == noise(3 * MIB, 5)
    assert {path.name for path in copy.path.iterdir()} == {"kit.json", "labs", "bases", "keys", "nvram", "media", "volumes"}

    done = copied(copy, places, disk, "again")
    assert (done.fault, done.verified) == ("", done.written)
    assert [kit.name for kit in plugged_kits(run)] == ["again"]
    assert not nodes()
    again = attached(places, disk).kit
    assert (again.id, again.manifest.storage, again.manifest.derived_from) == (done.id, "lvm", copy.id)
    assert seen(again) == before
    assert structure(again) == shape
    assert own(again).bytes <= 1.1 * taken.bytes
    assert (again.path / "media/notes").read_bytes() == noise(3 * MIB, 5)
    assert (again.path / "labs/demo/lab.json").read_text() == "{}"
    # They are used beside each other, each for itself.
    open_storage(again).remove("lab.1")
    assert "lab.1" in structure(copy)
    for name in ("copy", "again"):
        detached(places, name)


def small(places: Places, path: Path) -> Kit:
    """A kit in a folder with a base, a machine that wrote something, and a file."""

    def fill(path: Path) -> None:
        path.write_bytes(noise(16 * MIB, 1) + bytes(16 * MIB))

    def odd(path: Path) -> None:
        path.write_bytes(noise(3 * MIB + 512, 7))

    kit = init_directory(places, path, "one", now=NOW)
    store = open_storage(kit)
    store.create("base.one", 32 * MIB, fill)
    store.create("base.odd", 3 * MIB + 512, odd)
    store.clone("base.odd", "lab.demo.odd.root.g1", 5 * MIB + 512)
    with opened(*store.place("lab.demo.odd.root.g1"), run, writable=True) as data:
        data.write(5 * MIB, memoryview(noise(512, 8)))
    store.clone("base.one", "lab.demo.m.root.g1")
    with opened(*store.place("lab.demo.m.root.g1"), run, writable=True) as data:
        data.write(20 * MIB, memoryview(noise(MIB, 2)))
        data.zero(MIB, MIB)
    (kit.path / "media/notes").write_bytes(noise(MIB, 3))
    return kit


def cut_short(kit: Kit, places: Places, disk: Path, seconds: float) -> bool:
    """Copy in a process of its own, which is killed after so long; whether it was before it was done."""
    return killed_after(seconds, lambda: not copied(kit, places, disk, "copy").fault)


def left_by_detach(places: Places) -> None:
    """Detach what a kill has left active and mounted, once the commands that were at work have ended."""
    until = time.monotonic() + 30
    while nodes():
        try:
            detached(places, "copy")
        except (Refused, NotFound):
            assert time.monotonic() < until
            time.sleep(0.2)
    assert not [there for there in mounts() if there.path.is_relative_to(places.mounts)]


@pytest.mark.sampled(20)
@pytest.mark.parametrize("number", range(20))
def test_a_copy_that_was_killed_is_no_kit_and_is_begun_anew(places: Places, disk: Path, folder: Path, number: int) -> None:
    kit = small(places, folder / "one")
    chance = random.Random(f"{os.environ.get('POCKETCLOUD_SEED')}.{number}")  # noqa: S311 - keeps no secret
    for _ in range(2):
        if not cut_short(kit, places, disk, chance.uniform(0.5, 12.0)):
            break
        with pytest.raises((NotFound, Refused), match=r"no kit|unfinished copy|nothing of|no volume group"):
            attached(places, disk)
        if number % 2:
            left_by_detach(places)
    else:
        done = copied(kit, places, disk, "copy")
        assert done.fault == ""
    assert not nodes()
    assert not [there for there in mounts() if there.path.is_relative_to(places.mounts)]
    copy = attached(places, disk).kit
    assert seen(copy, kit) == seen(kit)
    assert structure(copy) == structure(kit)
    for name in ("copy", "one"):
        detached(places, name)


@pytest.fixture
def narrow(folder: Path) -> Iterator[Path]:
    """A file system of its own that two copies do not fit into."""
    path = folder / "narrow"
    path.mkdir(mode=0o755)
    run(["mount", "-t", "tmpfs", "-o", f"size={48 * MIB}", "none", path])
    yield path
    run(["umount", path])


def filled(path: Path, *, stop: threading.Event) -> None:
    """Take all the space there is, and what is given back meanwhile."""
    with path.open("wb", buffering=0) as file:
        while not stop.is_set():
            with suppress(OSError):
                file.write(bytes(64 * KIB))
                continue
            stop.wait(0.01)


@pytest.mark.sampled(20)
def test_where_the_space_ends_meanwhile_there_is_no_kit_and_the_same_again_makes_it(
    places: Places, folder: Path, narrow: Path
) -> None:
    kit = small(places, folder / "one")
    begun = time.monotonic()
    assert copied(kit, places, narrow / "whole", "whole").fault == ""
    seconds = time.monotonic() - begun
    remove_tree(narrow / "whole")
    chance = random.Random(f"{os.environ.get('POCKETCLOUD_SEED')}.space")  # noqa: S311 - keeps no secret
    lacked = 0
    for number in range(SPACES):
        stop = threading.Event()
        after = (number + chance.random()) / SPACES * seconds
        timer = threading.Timer(after, filled, (narrow / "others",), {"stop": stop})
        timer.start()
        try:
            done = copied(kit, places, narrow / "copy", "copy")
        finally:
            stop.set()
            timer.cancel()
            timer.join()
        if done.fault:
            print(done.fault)
            assert re.search("no space|to give|is full", done.fault.lower())
            lacked += "to give" not in done.fault
            assert {path.name for path in narrow.iterdir()} <= {"others"}
        else:
            assert seen(kit_at(narrow / "copy")) == seen(kit)
            remove_tree(narrow / "copy")
        (narrow / "others").unlink(missing_ok=True)
    print(f"{lacked} kills: copies without space")
    assert lacked > SPACES // 2
    assert copied(kit, places, narrow / "copy", "copy").fault == ""
    assert seen(kit_at(narrow / "copy")) == seen(kit)
    detached(places, "one")


@pytest.mark.sampled(20)
def test_a_disk_that_is_smaller_than_it_says_is_found_out(places: Places, folder: Path, liar: Path) -> None:
    done = copied(small(places, folder / "one"), places, liar, "copy")
    assert done.fault
    assert not nodes()
    assert not [there for there in mounts() if there.path.is_relative_to(places.mounts)]
    with pytest.raises((NotFound, Refused)):
        attached(places, liar)
    detached(places, "one")


@pytest.mark.sampled(20)
def test_by_hand_a_disk_and_a_folder_of_one_kit(places: Places, disk: Path, folder: Path) -> None:
    small(places, folder / "one")
    run(["mkfs.ext4", "-q", "-F", "-E", "nodiscard", disk])
    Asked(places, "kit", "clone", "one", "--resume").ends(2, "from disk to disk")
    Asked(places, "kit", "clone", "one", folder / "one/media/x").ends(5, "lies in another kit")
    Asked(places, "kit", "clone", "one", disk, folder / "two", "--dry-run").ends(0, "layout: state", "Nothing was done")
    asked = Asked(places, "kit", "clone", "one", disk, folder / "two", "-o", "json")
    shown, wanted = asked.until(r"type what tells them apart: (\S+):")
    assert "copied to 2 targets" in shown
    assert f"one-02 in the folder {folder / 'two'}" in shown
    assert "ext4" in shown
    asked.answer(wanted)
    asked.ends(0, "one-01", "one-02", "verified")
    two, disked = kit_at(folder / "two"), attached(places, disk).kit
    assert (two.name, disked.name) == ("one-02", "one-01")
    assert seen(disked, two) == seen(two)
    assert structure(disked) == structure(two)
    told = json.loads((folder / "one/copies.json").read_text())
    assert [each["name"] for each in told["copies"]] == ["one-01", "one-02"]
    detached(places, "one-01")
    Asked(places, "kit", "clone", "one", folder / "three", "-y").ends(0, "one-03", "verified")
    detached(places, "one")
