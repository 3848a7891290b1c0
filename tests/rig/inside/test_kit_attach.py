"""Kits are attached and detached: on another computer, and beside others."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketcloud.errors import NotFound, Refused, UsageError
from pocketcloud.kit.attached import Places, attached_kits, find_kit
from pocketcloud.kit.detach import detach, leaving
from pocketcloud.kit.plugged import plugged_kits
from pocketcloud.model.sizes import MIB
from pocketcloud.storage import open_storage
from pocketcloud.system import run
from tests.contract.stores import filled
from tests.rig.inside.filed import Filed, attached, detached, filed
from tests.rig.inside.made import NOW, digest

pytestmark = pytest.mark.sampled(20)

MACHINE_ID = Path("/etc/machine-id")


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
