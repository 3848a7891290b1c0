"""Kits in folders: made, attached, found; damaged and strange ones refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import pytest

from pocketcloud.errors import HostLacks, NotFound, Refused, UsageError
from pocketcloud.host import kits as host
from pocketcloud.hosts_file import HostLine, blocks_of, change
from pocketcloud.kit.attached import Places, attached_kits, find_kit, forget, register, unreadable_kits
from pocketcloud.kit.detach import detach, leaving
from pocketcloud.kit.directory import init_directory, name_for
from pocketcloud.kit.manifest import host_mark, kit_at, read_manifest, write_manifest
from pocketcloud.kit.mounts import mounted_at, mounts, users_of
from pocketcloud.kit.plugged import Plugged, the_one
from pocketcloud.lab.moving import plan_arrival
from pocketcloud.model.inventory import Inventory
from pocketcloud.model.kit import TREE, Kit
from pocketcloud.model.names import Name
from pocketcloud.storage.devmapper import node_name
from pocketcloud.storage.lvm import VolumeGroup
from tests.plans import ids, raise_lab
from tests.simulation import INSTANCE, Host, base, ground, lab, machine

OLD_KEYS = ("schema", "id", "name", "created", "made_with", "storage", "sector_size", "derived_from")
NOW = "2024-01-01T00:00:00+00:00"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that QEMU could reach, which pytest's is not."""
    made = Path(mkdtemp(prefix="pocketcloud-test-", dir="/var/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def places(folder: Path) -> Places:
    return Places(folder / "default", folder / "run")


def make(places: Places, path: Path, name: str | None = None) -> Kit:
    return init_directory(places, path, name, now=NOW)


def test_a_kit_is_a_tree_with_a_manifest(places: Places, folder: Path) -> None:
    kit = make(places, folder / "My Kit (1)")
    assert kit.name == "my-kit-1"
    assert sorted(path.name for path in kit.path.iterdir()) == sorted([*TREE, "kit.json"])
    assert (kit.path / "keys").stat().st_mode & 0o777 == 0o700
    assert kit_at(kit.path) == kit
    assert attached_kits(places) == (kit,)
    assert find_kit(places, None) == find_kit(places, "my-kit-1") == kit


@pytest.mark.parametrize(
    "name", ["a b", "with 'quotes' \"both\"", "two\nlines", "end ", " begin", "漢字", "a,b=c", "%s{}", "x" * 200]
)
def test_folders_of_any_name(places: Places, folder: Path, name: str) -> None:
    kit = make(places, folder / name, "k")
    assert attached_kits(places) == (kit,)
    assert kit.path == folder / name


@pytest.mark.parametrize(
    ("name", "kit"), [("Überraschung", "berraschung"), ("--", "kit"), ("2go", "kit"), ("x" * 99, "x" * 31), ("漢", "kit")]
)
def test_a_name_is_made_from_the_folder_s(name: str, kit: str) -> None:
    assert name_for(Path("/srv") / name, Path("/var/lib/pocketcloud")) == kit
    assert name_for(Path("/var/lib/pocketcloud"), Path("/var/lib/pocketcloud")) == "default"


@pytest.mark.parametrize("name", ["", "A", "a b", "../x", "a" * 32, "a\n", "ж"])
def test_strange_kit_names_are_refused_and_nothing_is_made(places: Places, folder: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is not a name"):
        make(places, folder / "kit", name)
    assert not (folder / "kit").exists()


def test_a_folder_with_something_in_it_is_left_alone(places: Places, folder: Path) -> None:
    (folder / "photos" / "keys").mkdir(parents=True)
    (folder / "photos" / "a.jpg").touch()
    with pytest.raises(Refused, match=r"is not empty: it has 'a\.jpg'"):
        make(places, folder / "photos")
    (folder / "file").touch()
    with pytest.raises(Refused, match="is not a folder"):
        make(places, folder / "file")
    assert sorted(path.name for path in (folder / "photos").iterdir()) == ["a.jpg", "keys"]


def test_an_interrupted_init_is_completed(places: Places, folder: Path) -> None:
    (folder / "kit" / "labs").mkdir(parents=True)
    with pytest.raises(NotFound, match="no kit there"):
        kit_at(folder / "kit")
    assert make(places, folder / "kit").path == folder / "kit"
    with pytest.raises(Refused, match="there is a kit at"):
        make(places, folder / "kit", "other")


def test_a_folder_that_qemu_cannot_reach_is_refused(places: Places, folder: Path) -> None:
    (folder / "home").mkdir(mode=0o700)
    with pytest.raises(HostLacks, match="others may not enter") as refused:
        make(places, folder / "home" / "kit")
    assert f"chmod o+x {folder / 'home'}" in refused.value.hint


def test_names_and_ids_are_unique_among_attached_kits(places: Places, folder: Path) -> None:
    one = make(places, folder / "one", "usb")
    with pytest.raises(Refused, match="a kit named usb is attached already"):
        make(places, folder / "two", "usb")
    shutil.copytree(one.path, folder / "copy")
    with pytest.raises(Refused, match="is a copy of usb"):
        register(places, folder / "copy")
    assert register(places, folder / "one" / ".." / "one") == one
    assert forget(places, one.name, one.path)
    assert register(places, folder / "copy").id == one.id


def test_several_kits_have_to_be_told_apart(places: Places, folder: Path) -> None:
    kits = [make(places, folder / name) for name in ("b", "a")]
    assert [kit.name for kit in attached_kits(places)] == ["a", "b"]
    with pytest.raises(UsageError, match="several kits are attached: a, b"):
        find_kit(places, None)
    with pytest.raises(NotFound, match="no kit 'c' is attached; attached: a, b"):
        find_kit(places, "c")
    assert find_kit(places, "b") == kits[0]


def test_a_kit_that_cannot_be_read_keeps_nobody_from_the_others(places: Places, folder: Path) -> None:
    whole, damaged = (make(places, folder / name) for name in ("whole", "damaged"))
    (damaged.path / "kit.json").write_text("{")
    assert attached_kits(places) == (whole,)
    assert list(unreadable_kits(places)) == ["damaged"]
    assert find_kit(places, "whole") == whole
    with pytest.raises(Refused, match="damaged"):
        find_kit(places, "damaged")
    # Which one is meant is still to be said, and no new kit is made in its place.
    with pytest.raises(UsageError, match=r"several kits are attached: whole, damaged \(cannot be read\)"):
        find_kit(places, None)
    assert detach(places, leaving(places, "whole"), now=NOW) == ()
    with pytest.raises(Refused, match="damaged"):
        find_kit(places, None)
    assert detach(places, leaving(places, "damaged"), now=NOW) == ()
    assert (attached_kits(places), unreadable_kits(places)) == ((), {})


def test_a_default_kit_that_cannot_be_read_is_said_to_be(places: Places) -> None:
    kit = make(places, places.default)
    (kit.path / "kit.json").write_text("{")
    for name in (None, "default"):
        with pytest.raises(Refused, match="damaged"):
            find_kit(places, name)


def test_a_kit_that_is_unplugged_is_not_there(places: Places, folder: Path) -> None:
    kit = make(places, folder / "usb")
    kit.path.rename(folder / "elsewhere")
    assert attached_kits(places) == ()
    with pytest.raises(NotFound, match="there is no kit here"):
        find_kit(places, None)


def test_the_default_kit_is_attached_by_being_there(places: Places) -> None:
    kit = make(places, places.default)
    assert kit.name == "default"
    assert not forget(places, kit.name, kit.path)
    assert attached_kits(places) == (kit,)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b"[]", "damaged"),
        (b'{"name": "x"}', "damaged"),
        (b"[" * 5000, "damaged"),
        (None, "made by a newer pocketcloud"),
    ],
)
def test_a_manifest_that_is_damaged_or_too_new(places: Places, folder: Path, content: bytes | None, words: str) -> None:
    kit = make(places, folder / "kit")
    manifest = kit.path / "kit.json"
    if content is None:
        content = json.dumps(json.loads(manifest.read_text()) | {"schema": 2, "colour": {"of": "later"}}).encode()
    manifest.write_bytes(content)
    with pytest.raises(Refused, match=words) as refused:
        read_manifest(kit.path)
    assert refused.value.hint
    assert manifest.read_bytes() == content


def test_places_come_from_the_environment() -> None:
    usual = Places()
    assert usual.locks == Path("/run/pocketcloud/locks")
    assert usual.entries == Path("/run/pocketcloud/kits")


# -- on disks: what can be told without one


def block_tree(root: Path, rows: dict[str, str]) -> None:
    """A /sys/class/block under `root`, as the kernel lays it out: name -> the device's place under /sys/devices."""
    for name, place in rows.items():
        real = root / "sys/devices" / place
        real.mkdir(parents=True, exist_ok=True)
        for folder in ("sys/class/block", "sys/block"):
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / name).symlink_to(real)


def test_what_a_kit_lies_on(tmp_path: Path) -> None:
    block_tree(
        tmp_path,
        {
            "sda": "pci0000:00/usb2/2-1/block/sda",
            "sda1": "pci0000:00/usb2/2-1/block/sda/sda1",
            "nvme0n1": "pci0000:00/nvme/nvme0/nvme0n1",
            "loop3": "virtual/block/loop3",
            "dm-0": "virtual/block/dm-0",
            "dm-1": "virtual/block/dm-1",
        },
    )
    sysfs = tmp_path / "sys/class/block"
    (sysfs / "sda1/partition").write_text("1\n")
    (sysfs / "sda/queue").mkdir()
    (sysfs / "sda/queue/logical_block_size").write_text("4096\n")
    (sysfs / "sda1/ro").write_text("1\n")
    for name, under in (("dm-0", "sda1"), ("dm-1", "gone1")):
        (sysfs / name / "slaves").mkdir()
        (sysfs / name / "slaves" / under).symlink_to("nowhere")
        (sysfs / name / "dm").mkdir()
        (sysfs / name / "dm/name").write_text(f"pc_abcdef-{name.replace('-', '--')}\n")
    (sysfs / "loop3/loop").mkdir()
    (sysfs / "loop3/loop/backing_file").write_text("/srv/my kit.img (deleted)\n")
    assert [host.medium(name, tmp_path) for name in ("sda1", "dm-0", "nvme0n1", "loop3")] == ["usb", "usb", "internal", "loop"]
    assert (host.disk_of("sda1", tmp_path), host.disk_of("nvme0n1", tmp_path)) == ("sda", "nvme0n1")
    assert (host.sector_size("sda1", tmp_path), host.sector_size("nvme0n1", tmp_path)) == (4096, 0)
    assert (host.is_read_only("sda1", tmp_path), host.is_read_only("sda", tmp_path)) == (True, False)
    assert host.below("dm-1", tmp_path) == ("gone1",)
    assert (host.is_there("gone1", tmp_path), host.is_there("sda1", tmp_path)) == (False, True)
    assert host.node("dm-1", tmp_path) == tmp_path / "dev/mapper/pc_abcdef-dm--1"
    assert host.loop_file("loop3", tmp_path) == Path("/srv/my kit.img")
    assert host.loops_of(Path("/srv/my kit.img"), tmp_path) == ("loop3",)
    assert host.loop_file("sda", tmp_path) is None
    assert host.partitions("sda", tmp_path) == ("sda1",)


@pytest.mark.parametrize(("group", "volume"), [("pc_abcdef", "state"), ("a-b", "c"), ("a", "b-c"), ("a--", "b")])
def test_a_group_is_read_out_of_a_node_s_name(group: str, volume: str) -> None:
    assert host.group_of(node_name(group, volume)) == group


def test_labels_and_tables_are_read_where_they_are(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    assert not host.has_label(disk)
    assert not host.has_label(tmp_path / "nothing")
    assert host.table_sector_size(disk) == host.table_sector_size(tmp_path / "nothing") == 0
    label = b"LABELONE" + bytes(16) + b"LVM2 001"
    for at in (0, 512, 1536):
        disk.write_bytes(bytes(at) + label + bytes(4096))
        assert host.has_label(disk)
    disk.write_bytes(bytes(2048) + label + bytes(4096))
    assert not host.has_label(disk)
    assert host.has_label(disk, 2048)
    disk.write_bytes(bytes(512) + b"LABELONE" + bytes(16) + b"LVM1 001" + bytes(4096))
    assert not host.has_label(disk)
    for size in (512, 4096):
        disk.write_bytes(bytes(size) + b"EFI PART" + bytes(8192))
        assert host.table_sector_size(disk) == size


def test_mounts_are_read_whatever_they_are_called(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    rows = [
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw",
        r"33 22 254:3 / /run/my\040kit/\134x\303\244 rw shared:2 master:1 - ext4 /dev/dm-3 rw",
        "34 22 0:5 / /run/my\\040kit/\\134x\\303\\244 rw - tmpfs tmpfs rw",
        "35 22 0:6 / /bad\udcff rw - tmpfs tmpfs rw",
    ]
    (tmp_path / "self/mountinfo").write_bytes("\n".join(rows).encode(errors="surrogateescape"))
    found = mounts(tmp_path)
    assert [str(mount.path) for mount in found] == ["/", "/run/my kit/\\xä", "/run/my kit/\\xä", "/bad\udcff"]
    assert [mount.number for mount in found] == ["254:0", "254:3", "0:5", "0:6"]
    upper = mounted_at(Path("/run/my kit/\\xä"), tmp_path)
    assert upper is not None
    assert upper.kind == "tmpfs"
    assert mounted_at(Path("/run"), tmp_path) is None


def test_who_has_something_open_is_named(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        number = os.fstat(file.fileno()).st_dev
        found = list(users_of([f"{os.major(number)}:{os.minor(number)}"]))
    assert any(f"({os.getpid()})" in user for user in found)
    assert list(users_of(["4095:77"])) == []


def test_a_host_s_mark_tells_nothing_of_its_machine_id(tmp_path: Path) -> None:
    assert host_mark(tmp_path) == ""
    (tmp_path / "etc").mkdir()
    marks = set()
    for text in ("0123456789abcdef0123456789abcdef\n", "1123456789abcdef0123456789abcdef\n"):
        (tmp_path / "etc/machine-id").write_text(text)
        assert len(host_mark(tmp_path)) == 16
        assert host_mark(tmp_path) == host_mark(tmp_path)
        marks.add(host_mark(tmp_path))
        assert host_mark(tmp_path) not in text
    assert len(marks) == 2


def test_a_manifest_of_the_first_schema_is_read(places: Places, folder: Path) -> None:
    kit = make(places, folder / "kit")
    manifest = kit.path / "kit.json"
    old = {key: value for key, value in json.loads(manifest.read_text()).items() if key in OLD_KEYS}
    manifest.write_text(json.dumps(old))
    assert read_manifest(kit.path) == kit.manifest


def test_files_of_a_kit_on_a_disk_are_not_the_kit(places: Places, folder: Path) -> None:
    kit = make(places, folder / "kit")
    write_manifest(kit.path, replace(kit.manifest, storage="lvm"))
    with pytest.raises(NotFound, match="is a copy of the files of kit kit"):
        kit_at(kit.path)
    assert attached_kits(places) == ()


def test_only_the_one_plugged_kit_is_taken_without_a_name() -> None:
    group = VolumeGroup("pc_a", "u", 1, 1, 1, frozenset({"pc:kit=1", "pc:kitname=a"}), "", exported=False, partial=False,
                        volumes=1, seqno=1)  # fmt: skip
    a = Plugged(Path("/dev/sda1"), group)
    b = Plugged(Path("/dev/sdb1"), replace(group, name="pc_b", tags=frozenset({"pc:kit=2", "pc:kitname=b"})))
    copy = replace(a, device=Path("/dev/sdc1"))
    assert the_one([a], [], None) == a
    assert the_one([a, b], [], "b") == b
    for kits, name in (([a, b], None), ([a, b, copy], "a")):
        with pytest.raises(UsageError, match="several kits are plugged in"):
            the_one(kits, [], name)
    for kits, name, words in (
        ([], None, "no kit is plugged in"),
        ([a], "b", "no kit b is plugged in; there are: a on /dev/sda1"),
    ):
        with pytest.raises(NotFound, match=words):
            the_one(kits, [], name)


# -- labs that come along


def test_subnets_are_kept_where_they_are_free_and_moved_where_they_are_not() -> None:
    elsewhere = Host.with_bases(base())
    raise_lab(lab(("front", "back"), web=machine("front", address=20), db=machine("front", "back")), elsewhere)
    record = elsewhere.record
    assert record is not None
    front, back = (record.networks[Name(name)].range for name in ("front", "back"))
    away = Inventory(record, {}, {}, {}, {})
    stays = plan_arrival(INSTANCE, record, away, ground())
    assert stays.record == record
    assert stays.notes == ()
    assert ids(stays) == ["network.back", "network.front", "define.web", "define.db"]
    moves = plan_arrival(INSTANCE, record, away, ground(str(front)))
    assert moves.record is not None
    new = moves.record.networks[Name("front")].range
    assert not new.overlaps(front)
    assert moves.record.networks[Name("back")].subnet == back
    assert moves.notes == (f"network front moves from {front} to {new}: the old one is taken here by a route of the host",)
    assert ids(moves)[0] == "commit"
    assert all("commit" in step.after for step in moves.steps[1:])
    web = moves.record.machines[Name("web")]
    assert web.addresses[Name("front")] == new.network_address + 20
    assert plan_arrival(INSTANCE, moves.record, away, ground(str(front))).notes == ()


def test_the_names_of_a_kit_s_labs_go_with_it_and_no_others(places: Places, folder: Path) -> None:
    places = replace(places, hosts=folder / "hosts")
    make(places, folder / "mine")
    for block in ("mine.demo", "minesweeper.demo", "mine.other"):
        assert change(places.hosts, block, [HostLine("10.77.3.10", ("web.demo",))])
    assert detach(places, leaving(places, "mine"), now=NOW) == ()
    assert blocks_of(places.hosts, "mine") == ()
    assert blocks_of(places.hosts, "minesweeper") == ("minesweeper.demo",)
    make(places, folder / "again")
    places.hosts.write_text("# BEGIN pocketcloud again.demo\n10.77.3.10 web.demo\n")
    (note,) = detach(places, leaving(places, "again"), now=NOW)
    assert "have no end, so they are left alone; the names of its labs are left in there" in note
