"""Kits are attached and detached: on another computer, beside others, after a disk was pulled; and refused where they have
to be, with nothing changed on them."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from pocketcloud.errors import NotFound, NotOurs, Refused, UsageError
from pocketcloud.kit.aside import aside
from pocketcloud.kit.attach import Attached, attach
from pocketcloud.kit.attached import Places, attached_kits, find_kit
from pocketcloud.kit.detach import detach, leaving
from pocketcloud.kit.device import init_file, plan_file
from pocketcloud.kit.manifest import read_manifest, write_manifest
from pocketcloud.kit.mounts import mounts
from pocketcloud.kit.plugged import plugged_kits
from pocketcloud.model.kit import Manifest
from pocketcloud.model.sizes import GIB, KIB, MIB
from pocketcloud.storage import open_storage
from pocketcloud.storage.devmapper import nodes
from pocketcloud.storage.thin_volumes import CONTENT
from pocketcloud.system import Runner, run
from tests.contract.stores import filled
from tests.rig.inside.made import NOW, SIZE, Made, digest, killed, loop, make_kit, unloop

pytestmark = pytest.mark.sampled

MACHINE_ID = Path("/etc/machine-id")
SOME_KILLS = [(5, False), (9, True), (11, False)]


@pytest.fixture(scope="module", autouse=True)
def modules() -> None:
    run(["modprobe", "-a", "loop", "ext4", "dm_thin_pool", "sd_mod"])


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Places]:
    """Where this host keeps its kits; at the end nothing of any is left in the kernel."""
    places = Places(tmp_path / "default", tmp_path / "run")
    yield places
    for kit in attached_kits(places):
        detach(places, leaving(places, kit.name), now=NOW)
    assert not nodes()
    assert not [there.path for there in mounts() if tmp_path in there.path.parents]
    assert not [path for path in Path("/sys/block").glob("loop*/loop/backing_file") if str(tmp_path) in path.read_text()]
    assert not list(places.mounts.glob("*"))


@dataclass(frozen=True, slots=True)
class Filed:
    """A detached kit in a file."""

    path: Path
    made: Made

    @contextmanager
    def opened(self) -> Iterator[Made]:
        """The kit on a loop device, for changes behind pocketcloud's back."""
        device = loop(self.path)
        try:
            yield Made(device, self.made.vg, self.made.id)
        finally:
            unloop(device)

    def manifest(self) -> Manifest:
        with self.opened() as kit:
            return kit.manifest()

    def change(self, **changes: object) -> None:
        """Change the manifest behind pocketcloud's back."""
        with self.opened() as kit:
            kit.activate("state")
            with aside(kit.state, run) as folder:
                write_manifest(folder, replace(read_manifest(folder), **changes))  # type: ignore[arg-type] # field names
            kit.deactivate()


def filed(folder: Path, name: str, vg: str) -> Filed:
    path = folder / f"{name}.img"
    device = loop(path, SIZE)
    made = make_kit(device, name, vg)
    unloop(device)
    return Filed(path, made)


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Filed]:
    made = filed(tmp_path, "usb", "pc_usbusb")
    yield made
    made.path.unlink()


def attached(places: Places, what: object, rename: str | None = None, runner: Runner = run) -> Attached:
    return attach(places, None if what is None else str(what), rename=rename, now=NOW, run=runner)


def detached(places: Places, name: str | None = None, runner: Runner = run) -> tuple[str, ...]:
    return detach(places, leaving(places, name, runner), now=NOW, run=runner)


@pytest.fixture
def another_computer() -> Iterator[None]:
    """From here on this is another computer: of another machine id, and with an LVM devices file that lists nothing."""
    before = MACHINE_ID.read_text()
    settings = Path("/etc/lvm/lvmlocal.conf")
    local = settings.read_text() if settings.exists() else ""
    devices = Path("/etc/lvm/devices/system.devices")
    devices.parent.mkdir(exist_ok=True)
    devices.write_text("VERSION=1.1.1\n")
    settings.write_text('devices { use_devicesfile=1 }\nglobal { system_id_source="uname" }\n')
    MACHINE_ID.write_text("0123456789abcdef0123456789abcdef\n")
    assert "usb" not in run(["lvm", "vgs", "-o", "vg_tags"]).out
    yield
    assert devices.read_text() == "VERSION=1.1.1\n", "the host's devices file was changed"
    devices.unlink()
    settings.write_text(local)
    MACHINE_ID.write_text(before)


def save_memory(path: Path) -> None:
    for folder in (path / "media" / "ram", path / "labs" / "demo" / "ram"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "web.save").write_bytes(b"memory")


def saved(path: Path) -> int:
    return len([*path.glob("media/ram/*"), *path.glob("labs/*/ram/*")])


# -- there and back


def test_a_kit_goes_away_and_comes_back(places: Places, kit: Filed) -> None:
    done = attached(places, kit.path)
    assert (done.kit.name, done.kit.medium, done.kit.vg, done.already) == ("usb", "loop", kit.made.vg, False)
    assert done.notes == ()
    assert done.kit.manifest.dirty
    (done.kit.path / "media" / "note").write_text("kept")
    store = open_storage(done.kit)
    store.create("base.x", 8 * MIB, filled(7))
    for name in (kit.path, "usb", done.kit.devices[0], None):
        assert attached(places, name).already
    assert detached(places) == ()
    manifest = kit.manifest()
    assert (manifest.dirty, manifest.detached) == (False, NOW)
    again = attached(places, kit.path)
    assert again.notes == ()
    assert (again.kit.path / "media" / "note").read_text() == "kept"
    assert [volume.name for volume in open_storage(again.kit).volumes()] == ["base.x"]


def test_copies_of_the_metadata_are_kept(places: Places, kit: Filed) -> None:
    stamps = [f"2026-11-21T0{hour}:00:00+00:00" for hour in range(5)]
    for stamp in stamps:
        attached(places, kit.path)
        detach(places, leaving(places, "usb"), now=stamp)
    folder = attached(places, kit.path).kit.path / "backups"
    found = sorted(path.name for path in folder.iterdir())
    kept = [stamp.replace("-", "").replace(":", "").replace("+", "") for stamp in stamps[-3:]]
    assert found == sorted(f"{stamp}{kind}" for stamp in kept for kind in (".vg", ".pool.xml.gz"))
    assert f"{kit.made.vg} {{" in (folder / found[-1]).read_text()
    with gzip.open(folder / found[-2], "rt") as text:
        content = text.read()
    assert content.startswith("<superblock")
    assert content.rstrip().endswith("</superblock>")


def test_on_another_computer(places: Places, kit: Filed, request: pytest.FixtureRequest) -> None:
    here = attached(places, kit.path).kit
    save_memory(here.path)
    detached(places)
    assert saved(attached(places, kit.path).kit.path) == 2
    detached(places)
    request.getfixturevalue("another_computer")
    there = attached(places, kit.path)
    assert there.notes == ("saved memory of 2 machines was dropped: another computer cannot go on with it",)
    assert saved(there.kit.path) == 0
    open_storage(there.kit).create("base.x", 8 * MIB, filled(7))
    save_memory(there.kit.path)
    detached(places)
    assert saved(attached(places, kit.path).kit.path) == 2
    detached(places)


def test_two_kits_at_once(places: Places, kit: Filed, tmp_path: Path) -> None:
    other = filed(tmp_path, "disk", "pc_dddddd")
    attached(places, kit.path)
    attached(places, other.path)
    assert [(k.name, k.vg) for k in attached_kits(places)] == [("disk", "pc_dddddd"), ("usb", "pc_usbusb")]
    assert len(plugged_kits(run)) == 2
    with pytest.raises(UsageError, match="several kits are attached"):
        detached(places)
    open_storage(find_kit(places, "disk")).create("base.x", 4 * MIB, filled(1))
    assert open_storage(find_kit(places, "usb")).volumes() == ()
    detached(places, "disk")
    assert [k.name for k in attached_kits(places)] == ["usb"]
    with pytest.raises(NotFound, match="'disk'"):
        detached(places, "disk")
    other.path.unlink()


def test_kits_of_one_name_or_one_group(places: Places, kit: Filed, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    namesake = filed(tmp_path / "other", "usb", "pc_eeeeee")
    twin = filed(tmp_path, "twin", kit.made.vg)
    attached(places, kit.path)
    with pytest.raises(Refused, match="another kit named usb is attached"):
        attached(places, namesake.path)
    renamed = attached(places, twin.path)
    assert renamed.kit.vg != kit.made.vg
    assert "its volume group is called" in renamed.notes[0]
    assert open_storage(renamed.kit).volumes() == ()
    detached(places, "twin")
    detached(places, "usb")
    assert attached(places, namesake.path).kit.id == namesake.made.id
    detached(places)
    for made in (namesake, twin):
        made.path.unlink()


def test_a_byte_copy_is_refused_until_it_is_a_kit_of_its_own(places: Places, kit: Filed, tmp_path: Path) -> None:
    copy = tmp_path / "copy.img"
    run(["cp", "--sparse=always", kit.path, copy])
    before = digest(copy)
    original = attached(places, kit.path).kit
    with pytest.raises(Refused, match="is a copy of usb") as refused:
        attached(places, copy)
    assert "--as NEWNAME" in refused.value.hint
    assert digest(copy) == before
    with pytest.raises(Refused, match="is a copy of usb"):
        attached(places, copy, "usb")
    own = attached(places, copy, "usb2").kit
    assert own.id != original.id
    assert own.manifest.derived_from == original.id
    assert {k.name for k in attached_kits(places)} == {"usb", "usb2"}
    detached(places, "usb2")
    assert attached(places, copy, "usb2").kit.id == own.id, "the same command again made another kit of it"
    detached(places, "usb2")
    copy.unlink()


# -- refused, and left as it was


@contextmanager
def unchanged(kit: Filed) -> Iterator[None]:
    before = digest(kit.path)
    yield
    assert digest(kit.path) == before


def test_a_kit_of_a_newer_version(places: Places, kit: Filed) -> None:
    kit.change(schema=99, made_with="7.0")
    with unchanged(kit), pytest.raises(Refused, match=r"newer pocketcloud \('7\.0', schema 99\)") as refused:
        attached(places, kit.path)
    assert "install" in refused.value.hint


@contextmanager
def looped(file: Path, *options: object) -> Iterator[Path]:
    """A loop device on a file that is there."""
    device = Path(run(["losetup", "--find", "--show", *map(str, options), file]).out.strip())
    try:
        yield device
    finally:
        unloop(device)


def test_a_disk_with_other_sectors(places: Places, tmp_path: Path) -> None:
    path = tmp_path / "usb.img"
    kit = init_file(plan_file(places, path, 2 * GIB, None, 64 * KIB, run), path, places, run, now=NOW)
    detached(places)
    before = digest(path)
    with looped(path, "--sector-size", 4096) as device:
        with pytest.raises(Refused, match=r"sectors of 512 bytes; on .* it shows 4096\. Nothing is lost"):
            attached(places, device)
        assert not nodes()
    assert digest(path) == before
    assert attached(places, path).kit.id == kit.id
    detached(places)
    path.unlink()


def test_a_disk_whose_partitions_are_not_seen_for_its_sectors(places: Places, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    with image.open("xb") as made:
        made.truncate(2 * GIB)
    with looped(image) as disk:
        run(["sfdisk", "--quiet", "--no-reread", disk], stdin=b"label: gpt\nstart=1GiB\n")
    with looped(image, "--offset", GIB) as part:
        make_kit(part, "usb", "pc_ssssss")
    with (
        looped(image, "--sector-size", 4096) as other,
        pytest.raises(Refused, match="made while the disk showed sectors of 512 bytes; here it shows 4096"),
    ):
        attached(places, other)
    image.unlink()


def test_a_disk_that_cannot_be_written(places: Places, kit: Filed) -> None:
    with unchanged(kit), looped(kit.path, "--read-only") as device, pytest.raises(Refused, match="is read-only here"):
        attached(places, device)


def test_what_is_no_kit(places: Places, tmp_path: Path) -> None:
    device = loop(tmp_path / "empty.img", 64 * MIB)
    with pytest.raises(NotFound, match="there is no kit on"):
        attached(places, device)
    run(["lvm", "pvcreate", "--devices", device, "-y", device])
    run(["lvm", "vgcreate", "--devices", device, "vg_of_others", device])
    with pytest.raises(NotOurs, match="vg_of_others"):
        attached(places, device)
    unloop(device)
    for what, words in ((None, "no kit is plugged in"), ("nix", "no kit nix is plugged in"), ("./nix", "no kit there")):
        with pytest.raises(NotFound, match=words):
            attached(places, what)


def test_a_kit_that_was_never_finished(places: Places, tmp_path: Path) -> None:
    device = loop(tmp_path / "half.img", SIZE)
    half = make_kit(device, "half", "pc_halfha", stop_after=5)
    half.activate("state")
    run(["mkfs.ext4", "-q", half.state])
    half.deactivate()
    with pytest.raises(NotFound, match=r"kit half on .* is not finished"):
        attached(places, device)
    unloop(device)


def test_a_damaged_state_volume(places: Places, kit: Filed) -> None:
    with kit.opened() as made:
        made.activate("state")
        with made.state.open("r+b") as disk:
            disk.write(b"\xff" * MIB)
        made.deactivate()
    with unchanged(kit), pytest.raises(Refused, match="damaged, or cannot be checked") as refused:
        attached(places, kit.path)
    assert "kit repair" in refused.value.hint


# -- in use, pulled, interrupted


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


@pytest.fixture
def scsi_disk() -> Iterator[Callable[[], Path]]:
    """A function that plugs a disk in, again if it was pulled; its content outlives that."""
    run(["modprobe", "scsi_debug", f"dev_size_mb={SIZE // MIB}", "lbpu=1"])
    host = sorted(Path("/sys/class/scsi_host").iterdir())[-1]

    def plug() -> Path:
        if not list(Path("/sys/block").glob("sd*")):
            (host / "scan").write_text("- - -")
        until = time.monotonic() + 20
        while not (found := list(Path("/dev").glob("sd?"))):
            assert time.monotonic() < until
            time.sleep(0.05)
        return found[0]

    yield plug
    for _ in range(50):
        if run(["rmmod", "scsi_debug"], codes=(0, 1)).code == 0:
            return
        time.sleep(0.1)
    raise AssertionError("something still holds the disk")


def pull(disk: Path) -> None:
    (Path("/sys/block") / disk.name / "device/delete").write_text("1")


def plugged_kit(disk: Path) -> Made:
    run(["lvm", "pvcreate", "--devices", disk, "-ff", "-y", disk])
    run(["lvm", "pvremove", "--devices", disk, "-y", disk])
    return make_kit(disk, "usb", "pc_pulled")


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


def check_attach(places: Places, kit: Filed, at: int, *, after: bool) -> bool:
    was_killed = killed(partial(attached, places, kit.path, None), at, after=after)
    done = attached(places, kit.path)
    assert (done.kit.path / "media").is_mount()
    assert attached_kits(places) == (done.kit,)
    detached(places)
    check_at_rest(kit)
    return was_killed


def check_detach(places: Places, kit: Filed, at: int, *, after: bool) -> bool:
    attached(places, kit.path)
    was_killed = killed(partial(detached, places, "usb"), at, after=after)
    if was_killed:
        try:
            detached(places, "usb")
        except NotFound:
            assert not nodes(), "the killed run was not done"
    check_at_rest(kit)
    return was_killed


def check_at_rest(kit: Filed) -> None:
    assert not nodes()
    assert not [path for path in Path("/sys/block").glob("loop*/loop/backing_file") if str(kit.path) in path.read_text()]
    assert not kit.manifest().dirty


@pytest.mark.parametrize(("at", "after"), SOME_KILLS)
def test_an_interrupted_attach_goes_on(places: Places, kit: Filed, at: int, after: bool) -> None:
    assert check_attach(places, kit, at, after=after)


@pytest.mark.parametrize(("at", "after"), SOME_KILLS)
def test_an_interrupted_detach_goes_on(places: Places, kit: Filed, at: int, after: bool) -> None:
    assert check_detach(places, kit, at, after=after)


@pytest.mark.slow
@pytest.mark.parametrize("check", [check_attach, check_detach])
def test_attach_and_detach_under_every_kill(places: Places, kit: Filed, check: Callable[..., bool]) -> None:
    count = 0
    while check(places, kit, count // 2 + 1, after=bool(count % 2)):
        count += 1
    assert count >= 20


# -- the commands


def pocketcloud(places: Places, *words: object) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"POCKETCLOUD_RUN_DIR": str(places.run), "POCKETCLOUD_DEFAULT_KIT": str(places.default)}
    argv = [sys.executable, "-m", "pocketcloud", *map(str, words)]
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)


def test_the_commands(places: Places, kit: Filed) -> None:
    done = pocketcloud(places, "kit", "attach", kit.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Kit usb is attached from {attached_kits(places)[0].devices[0]}" in done.stdout
    rows = json.loads(pocketcloud(places, "kit", "list", "-o", "json").stdout)
    assert [(row["name"], row["medium"], row["storage"]) for row in rows] == [("usb", "loop", "lvm")]
    done = pocketcloud(places, "kit", "detach")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Kit usb is detached.\n", "")
    again = pocketcloud(places, "kit", "detach", "usb")
    assert again.returncode == 4
