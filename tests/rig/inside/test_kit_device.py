"""Kits are made in files, on partitions and on disks; what is there is spared, and an interrupted run is begun anew."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from functools import partial
from pathlib import Path

import pytest

from pocketcloud.errors import HostLacks, NoSpace, NotFound, Refused, UsageError
from pocketcloud.host import kits as host
from pocketcloud.kit.attached import Places, attached_kits
from pocketcloud.kit.detach import detach, leaving
from pocketcloud.kit.device import check_host, init_file, plan_file, shown
from pocketcloud.kit.disk import Chosen, choose, confirm, init_disk, plan_disk
from pocketcloud.model.kit import TREE, Kit
from pocketcloud.model.sizes import GIB, KIB, MIB
from pocketcloud.storage import open_storage
from pocketcloud.storage.lvm import Lvm
from pocketcloud.storage.thin_volumes import BALLAST, CONTENT, POOL, STATE
from pocketcloud.system import Runner, run
from tests.contract.stores import filled
from tests.rig.inside.made import NOW, Kill, Made, killed, loop, under_every_kill, unloop
from tests.rig.inside.ram_disks import ram_disks

pytestmark = pytest.mark.sampled(20)

SIZE = 2 * GIB
CHUNK = 64 * KIB
# Kills that are tried in every run; `make test-slow` tries them all.
SOME_KILLS = [(20, Kill.AFTER), (14, Kill.CHILD)]
SOME_KILLS_ON_DISK = [(9, Kill.AFTER), (22, Kill.BOTH)]


@pytest.fixture(scope="module", autouse=True)
def disks() -> None:
    ram_disks()


@pytest.fixture
def disk() -> Path:
    """An empty disk; what the test before left on it is erased now, when nothing of that is attached any more."""
    path = Path("/dev/ram0")
    erase(path)
    return path


def erase(path: Path) -> None:
    for part in host.partitions(path.name):
        run(["wipefs", "--all", "--force", host.node(part)])
    run(["wipefs", "--all", "--force", path])
    run(["blockdev", "--rereadpt", path])
    run(["blkdiscard", path], codes=(0, 1))


def in_file(places: Places, path: Path, name: str = "usb", runner: Runner = run) -> Kit:
    plan = plan_file(places, path, SIZE, name, CHUNK, runner)
    return init_file(plan, path, places, runner, now=NOW)


def on_disk(places: Places, path: Path, name: str = "usb", runner: Runner = run) -> Kit:
    chosen = choose(places, path, runner)
    plan = plan_disk(chosen, name, 2 * CHUNK, places, runner, ())
    return init_disk(chosen, plan, places, runner, now=NOW)


def pattern(path: Path, at: int) -> str:
    """A digest of a MiB of the device."""
    with path.open("rb") as disk:
        disk.seek(at)
        return hashlib.sha256(disk.read(MIB)).hexdigest()


def scribble(path: Path, at: int) -> str:
    """Write a MiB that looks like nothing, and give its digest."""
    with path.open("r+b") as disk:
        disk.seek(at)
        disk.write(bytes(range(256)) * (MIB // 256))
    return pattern(path, at)


def check_volumes(kit: Kit, places: Places) -> None:
    """A kit with all its volumes, the ballast full."""
    assert attached_kits(places) == (kit,)
    rows = {row.name: row for row in Lvm(kit.devices).volumes(kit.vg)}
    assert {STATE, POOL, CONTENT, BALLAST, "lvol0_pmspare"} <= set(rows)
    assert open_storage(kit).usage().used >= rows[BALLAST].size
    assert {path.name for path in kit.path.iterdir()} == {*TREE, "kit.json", "lost+found"}


def check_whole(kit: Kit, places: Places, chunk: int = CHUNK) -> None:
    """A kit as it should be: its volumes, its tree, and a store that works."""
    check_volumes(kit, places)
    lvm = Lvm(kit.devices)
    (group,) = lvm.groups()
    assert group.tags == {f"pc:kit={kit.id}", f"pc:kitname={kit.name}", "pc:schema=1"}
    assert group.system_id == ""
    assert 0.02 < group.free / group.size < 0.06
    (volume,) = lvm.physical_volumes()
    assert volume.pe_start % MIB == 0
    told = run(["lvm", "lvs", "--devices", kit.devices[0], "--noheadings", "--units", "b", "--nosuffix", "-o",
                "chunk_size,when_full", f"{kit.vg}/{POOL}"])  # fmt: skip
    assert told.out.split() == [str(chunk), "error"]
    assert "enabled" not in run(["lvm", "vgs", "--devices", kit.devices[0], "--noheadings", "-o", "autoactivation"]).out
    assert stat.S_IMODE((kit.path / "keys").stat().st_mode) == 0o700
    options = {line.split()[4]: line.split()[5] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    for path in (kit.path, kit.path / "media"):
        assert {"nosuid", "nodev", "noexec"} <= set(options[str(path)].split(","))
    manifest = json.loads((kit.path / "kit.json").read_text())
    assert manifest["dirty"]
    assert manifest["vg"] == kit.vg
    assert manifest["sector_size"] == 512
    assert {"lvm2", "thin-provisioning-tools", "linux"} <= set(manifest["made_on"])
    store = open_storage(kit)
    store.create("base.x", 8 * MIB, filled(7))
    store.clone("base.x", "lab.a.m.root.g1")
    assert [volume.name for volume in store.volumes()] == ["base.x", "lab.a.m.root.g1"]
    store.remove("lab.a.m.root.g1", "base.x")


# -- in a file


def test_a_kit_in_a_file(places: Places, tmp_path: Path) -> None:
    path = tmp_path / "My Kit.img"
    kit = in_file(places, path)
    assert kit.medium == "loop"
    check_whole(kit, places)
    assert path.stat().st_size == SIZE
    assert path.stat().st_blocks * 512 < 256 * MIB
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.endswith(".unfinished")] == []


def test_a_plan_changes_nothing(places: Places, tmp_path: Path, disk: Path) -> None:
    before = pattern(disk, 0), pattern(disk, GIB)
    planned = plan_file(places, tmp_path / "kit.img", 4 * GIB, None, 128 * KIB, run)
    assert planned.name == "kit"
    assert any("losetup --find --show" in line for line in planned.commands)
    text = "\n".join(shown(planned))
    assert "chunks of 128 KiB" in text
    assert "machines pause once that is used" in text
    on_it = plan_disk(choose(places, disk, run), None, CHUNK, places, run, ("SSD: yes",))
    assert any(line.startswith("pvcreate --devices /dev/ram0p1") for line in on_it.commands)
    assert any("sfdisk" in line for line in on_it.commands)
    assert "SSD: yes" in "\n".join(shown(on_it))
    assert (pattern(disk, 0), pattern(disk, GIB)) == before
    assert not (tmp_path / "kit.img").exists()
    assert not places.run.exists()


def test_files_that_are_there_are_left_alone(places: Places, tmp_path: Path) -> None:
    (tmp_path / "photo.img").write_bytes(b"precious")
    with pytest.raises(Refused, match="exists already"):
        in_file(places, tmp_path / "photo.img")
    (tmp_path / "link.img").symlink_to("nowhere")
    with pytest.raises(Refused, match="exists already"):
        in_file(places, tmp_path / "link.img")
    with pytest.raises(Refused, match="is no folder"):
        in_file(places, tmp_path / "none" / "kit.img")
    with pytest.raises(NoSpace, match="too small"):
        plan_file(places, tmp_path / "kit.img", GIB, None, CHUNK, run)
    assert (tmp_path / "photo.img").read_bytes() == b"precious"


def test_tools_that_are_missing_are_named_before_anything_is_written(places: Places, tmp_path: Path) -> None:
    tool = Path("/usr/sbin/thin_check")
    aside = tool.rename("/usr/sbin/thin_check.aside")
    try:
        with pytest.raises(HostLacks, match=r"thin_check \(of thin-provisioning-tools\)") as lacks:
            check_host(run)
    finally:
        aside.rename(tool)
    assert "pocketcloud check" in lacks.value.hint
    check_host(run)
    assert not list(places.mounts.glob("*"))
    assert not list(tmp_path.glob("*.img"))


# -- on disks and partitions


def test_a_kit_on_a_whole_disk(places: Places, disk: Path) -> None:
    spared = scribble(disk, GIB // 2)
    kit = on_disk(places, disk)
    assert kit.devices == (Path("/dev/ram0p1"),)
    assert kit.medium == "internal"
    check_whole(kit, places, 2 * CHUNK)
    table = json.loads(run(["sfdisk", "--json", disk]).out)["partitiontable"]
    (part,) = table["partitions"]
    assert (table["label"], part["start"] * 512, part["name"]) == ("gpt", GIB, "pocketcloud")
    assert (part["start"] + part["size"]) * 512 <= 4 * GIB
    assert part["size"] * 512 % MIB == 0
    assert pattern(disk, GIB // 2) == spared
    with pytest.raises(Refused, match="carries an attached kit"):
        choose(places, disk, run)
    detach(places, leaving(places, None), now=NOW)
    with pytest.raises(Refused, match="there is a kit named usb") as refused:
        choose(places, disk, run)
    assert "kit attach" in refused.value.hint
    assert "kit erase" in refused.value.hint


def test_a_kit_on_a_partition_spares_the_others(places: Places, disk: Path) -> None:
    run(["sfdisk", "--quiet", disk], stdin=b"label: gpt\nsize=64MiB\nsize=2500MiB\n")
    other, mine = Path("/dev/ram0p1"), Path("/dev/ram0p2")
    run(["mkfs.ext4", "-q", other])
    before, table = pattern(other, 0), run(["sfdisk", "--dump", disk]).out
    kit = on_disk(places, mine)
    assert kit.devices == (mine,)
    check_whole(kit, places, 2 * CHUNK)
    assert pattern(other, 0) == before
    assert run(["sfdisk", "--dump", disk]).out == table


def never() -> None:
    raise AssertionError("asked for a yes where the serial was to be typed")


def test_what_is_on_a_disk_takes_its_identity_typed_back(places: Places, disk: Path) -> None:
    run(["mkfs.ext4", "-q", "-L", "photos", disk])
    before = pattern(disk, 0)
    chosen = choose(places, disk, run)
    plan = plan_disk(chosen, None, CHUNK, places, run, ())
    assert "ext4" in "\n".join(plan.contents)
    assert "photos" in "\n".join(shown(plan))
    with pytest.raises(UsageError, match="is not empty"):
        confirm(chosen, None, None, never)
    with pytest.raises(Refused, match="was not typed"):
        confirm(chosen, None, lambda _: "yes", never)
    with pytest.raises(Refused, match="nothing was changed"):
        confirm(chosen, "WD-1234", None, never)
    assert pattern(disk, 0) == before
    confirm(chosen, f"/dev/ram0:{4 * GIB}", None, never)
    check_whole(init_disk(chosen, plan, places, run, now=NOW), places)


def test_a_disk_that_changes_after_it_was_chosen_is_left_alone(places: Places, disk: Path) -> None:
    chosen = choose(places, disk, run)
    plan = plan_disk(chosen, None, CHUNK, places, run, ())
    run(["mkfs.ext4", "-q", disk])
    before = pattern(disk, 0)
    with pytest.raises(Refused, match="somebody has written"):
        init_disk(chosen, plan, places, run, now=NOW)
    assert pattern(disk, 0) == before
    with pytest.raises(NotFound, match="is no disk"):
        choose(places, Path("/dev/nothing"), run)


# -- interrupted


def check_again_in_file(places: Places, tmp_path: Path, at: int, kill: Kill) -> bool:
    path = tmp_path / "kit.img"
    hit = killed(partial(in_file, places, path, "usb"), at, kill)
    if not attached_kits(places):
        assert not path.exists(), "an unfinished kit has its name already"
        in_file(places, path)
    check_volumes(attached_kits(places)[0], places)
    detach(places, leaving(places, None), now=NOW)
    check_metadata(path)
    assert {entry.name for entry in tmp_path.iterdir()} == {"kit.img", "run"}
    path.unlink()
    return hit


def check_again_on_disk(places: Places, disk: Path, at: int, kill: Kill) -> bool:
    hit = killed(partial(on_disk, places, disk, "usb"), at, kill)
    if not attached_kits(places):
        chosen = choose(places, disk, run)
        asked: list[str] = []
        confirm(chosen, None, None, partial(asked.append, "yes?"))
        assert asked, "an unfinished kit asked for more than an empty disk"
        finish(chosen, places)
    kit = attached_kits(places)[0]
    check_volumes(kit, places)
    detach(places, leaving(places, None), now=NOW)
    Made(kit.devices[0], kit.vg, kit.id).check_metadata()
    erase(disk)
    return hit


def check_metadata(file: Path) -> None:
    """Of a detached kit in a file."""
    device = loop(file)
    (group,) = Lvm([device]).groups()
    Made(device, group.name, "").check_metadata()
    unloop(device)


def finish(chosen: Chosen, places: Places) -> None:
    init_disk(chosen, plan_disk(chosen, "usb", 2 * CHUNK, places, run, ()), places, run, now=NOW)


@pytest.mark.parametrize(("at", "kill"), SOME_KILLS)
def test_an_interrupted_init_in_a_file_is_begun_anew(places: Places, tmp_path: Path, at: int, kill: Kill) -> None:
    assert check_again_in_file(places, tmp_path, at, kill)


@pytest.mark.parametrize(("at", "kill"), SOME_KILLS_ON_DISK)
def test_an_interrupted_init_on_a_disk_is_begun_anew(places: Places, disk: Path, at: int, kill: Kill) -> None:
    assert check_again_on_disk(places, disk, at, kill)


@pytest.mark.slow
def test_init_in_a_file_under_every_kill(places: Places, tmp_path: Path) -> None:
    assert under_every_kill(partial(check_again_in_file, places, tmp_path)) >= 60


@pytest.mark.slow
def test_init_on_a_disk_under_every_kill(places: Places, disk: Path) -> None:
    assert under_every_kill(partial(check_again_on_disk, places, disk)) >= 60


def test_what_is_removed_from_content_comes_back_to_the_pool(places: Places, tmp_path: Path) -> None:
    kit = in_file(places, tmp_path / "usb.img")
    used = open_storage(kit).usage().used
    file = kit.path / "media/saved"
    file.write_bytes(os.urandom(16 * MIB))
    run(["sync", "--file-system", file])
    assert open_storage(kit).usage().used >= used + 16 * MIB
    file.unlink()
    run(["sync", "--file-system", file.parent])
    assert open_storage(kit).usage().used <= used + 2 * MIB
    detach(places, leaving(places, "usb"), now=NOW)
