"""Kits that are in use, were not detached, were pulled, or whose attach or detach was interrupted."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from pocketcloud.errors import NotFound, Refused
from pocketcloud.kit.attached import Places, attached_kits
from pocketcloud.kit.manifest import read_manifest
from pocketcloud.model.kit import Kit
from pocketcloud.model.sizes import MIB
from pocketcloud.storage import open_storage
from pocketcloud.storage.devmapper import nodes
from pocketcloud.storage.thin_volumes import CONTENT
from pocketcloud.system import run
from tests.contract.stores import filled
from tests.rig.inside.filed import Filed, attached, detached, plugged_kit, pull
from tests.rig.inside.made import Kill, Made, killed, loop, loops, under_every_kill, unloop

pytestmark = pytest.mark.sampled(20)

SOME_KILLS = [(5, Kill.BEFORE), (9, Kill.AFTER), (7, Kill.CHILD), (11, Kill.BOTH)]
BASE = "base.x"


def test_who_uses_a_kit_is_named(places: Places, kit: Filed) -> None:
    path = attached(places, kit.path).kit.path
    user = subprocess.Popen(["sleep", "600"], cwd=path / "media")
    with pytest.raises(Refused, match=rf"kit usb is in use by sleep \({user.pid}\)"):
        detached(places)
    user.kill()
    user.wait()
    assert read_manifest(path).dirty
    with (Path("/dev", kit.made.vg, CONTENT)).open("rb"), pytest.raises(Refused, match=rf"python.* \({os.getpid()}\)"):
        detached(places)
    assert attached(places, "usb").already
    assert (path / "media").is_mount()


def test_a_kit_that_was_not_detached_is_checked(places: Places, kit: Filed) -> None:
    first = attached(places, kit.path).kit
    (first.path / "media" / "note").write_text("kept")
    # The computer goes down: what it had in /run is gone, and nobody detached anything.
    for path in (first.path / "media", first.path):
        run(["umount", path])
    run(["lvm", "vgchange", "--devices", first.devices[0], "-an", first.vg], env={"DM_DISABLE_UDEV": "1"})
    unloop(first.devices[0])
    run(["rm", "-r", places.run])
    again = attached(places, kit.path)
    assert "was not detached the last time" in again.notes[0]
    assert (again.kit.path / "media" / "note").read_text() == "kept"


def test_a_disk_that_is_pulled_and_plugged_in_again(places: Places, scsi_disk: Callable[[], Path]) -> None:
    disk = scsi_disk()
    plugged_kit(disk)
    kit = attached(places, None).kit
    assert kit.devices == (disk,)
    store = open_storage(kit)
    store.create("base.x", 8 * MIB, filled(7))
    store.create("lab.a.m.root.g1", 4 * MIB)
    store.activate("lab.a.m.root.g1")
    pull(disk)
    assert attached_kits(places) == ()
    with pytest.raises(NotFound, match="no kit is plugged in"):
        attached(places, None)
    other = scsi_disk()
    assert other != disk
    again = attached(places, None)
    assert again.kit.devices == (other,)
    assert any("had been pulled without" in note for note in again.notes)
    assert any("was not detached the last time" in note for note in again.notes)
    assert "base.x" in [volume.name for volume in open_storage(again.kit).volumes()]
    detached(places)


def test_detach_cleans_up_after_a_disk_that_was_pulled(places: Places, scsi_disk: Callable[[], Path]) -> None:
    disk = scsi_disk()
    plugged_kit(disk)
    path = attached(places, None).kit.path
    pull(disk)
    user = subprocess.Popen(["sleep", "600"], cwd=path)
    with pytest.raises(Refused, match=rf"sleep \({user.pid}\) still has"):
        detached(places, "usb")
    user.kill()
    user.wait()
    notes = detached(places, "usb")
    assert "had been pulled before" in notes[0]
    assert not nodes()
    attached(places, scsi_disk())
    detached(places)


@pytest.mark.parametrize("volume", ["pool_tmeta", "state"])
def test_what_an_lvm_command_leaves_that_was_killed(places: Places, kit: Filed, volume: str) -> None:
    """A part of the pool that is active by itself, as it is while LVM checks it; an active volume that has no path yet."""
    device = loop(kit.path)
    made = Made(device, kit.made.vg, kit.made.id)
    made.lvm.command("lvchange", "-ay", f"{made.vg}/{volume}")
    Path("/dev", made.vg, volume).unlink(missing_ok=True)
    check_base(attached(places, kit.path).kit)
    detached(places)
    check_at_rest(kit)


def check_attach(places: Places, kit: Filed, at: int, kill: Kill) -> bool:
    hit = killed(partial(attached, places, kit.path, None), at, kill)
    done = attached(places, kit.path)
    assert (done.kit.path / "media").is_mount()
    assert attached_kits(places) == (done.kit,)
    check_base(done.kit)
    detached(places)
    check_at_rest(kit)
    return hit


def check_detach(places: Places, kit: Filed, at: int, kill: Kill) -> bool:
    check_base(attached(places, kit.path).kit)
    hit = killed(partial(detached, places, "usb"), at, kill)
    try:
        detached(places, "usb")
    except NotFound:
        assert not nodes(), "the killed run was not done"
    check_at_rest(kit)
    return hit


def check_base(kit: Kit) -> None:
    """The base is what it was made as; each time it makes sure that there is one."""
    store = open_storage(kit)
    if not store.volumes():
        store.create(BASE, 8 * MIB, filled(7, length=MIB))
    store.activate(BASE)
    with store.place(BASE)[0].open("rb") as volume:
        assert volume.read() == (b"\7" * MIB).ljust(8 * MIB, b"\0")


def check_at_rest(kit: Filed) -> None:
    assert not nodes()
    assert not loops(kit.path)
    assert not kit.manifest().dirty
    with kit.opened() as made:
        made.check_metadata()


@pytest.mark.parametrize(("at", "kill"), SOME_KILLS)
def test_an_interrupted_attach_goes_on(places: Places, kit: Filed, at: int, kill: Kill) -> None:
    assert check_attach(places, kit, at, kill)


@pytest.mark.parametrize(("at", "kill"), SOME_KILLS)
def test_an_interrupted_detach_goes_on(places: Places, kit: Filed, at: int, kill: Kill) -> None:
    assert check_detach(places, kit, at, kill)


@pytest.mark.slow
@pytest.mark.parametrize("check", [check_attach, check_detach])
def test_attach_and_detach_under_every_kill(places: Places, kit: Filed, check: Callable[..., bool]) -> None:
    assert under_every_kill(partial(check, places, kit)) >= 40
