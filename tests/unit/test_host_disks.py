"""Block devices read from files and reports of made-up hosts, of odd ones, and of this one."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings

from pocketcloud.errors import HostLacks
from pocketcloud.host.disk_sources import BlockNode, DiskSources, gather, writers
from pocketcloud.host.disks import assemble, read_block_devices
from pocketcloud.model.disk import BlockDevice, BlockDevices
from pocketcloud.model.sizes import GIB, MIB
from pocketcloud.system import CommandFailed, Completed, run
from tests.disk_trees import Tree
from tests.disk_uses import held, trees
from tests.host_trees import plant

SEED = int(os.environ.get("POCKETCLOUD_SEED") or 0)


@seed(SEED)
@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(tree=trees())
def test_files_and_commands_say_what_the_host_is(tree: Tree) -> None:
    with tempfile.TemporaryDirectory() as folder:
        runner = tree.plant(Path(folder))
        found = gather(Path(folder), runner)
        expected = tree.sources()
        assert replace(found, btrfs_sets=()) == replace(expected, btrfs_sets=())
        assert sorted(found.btrfs_sets) == sorted(expected.btrfs_sets)
        assert read_block_devices(Path(folder), runner) == assemble(expected)


# -- one disk, said in many ways

NODE = BlockNode("sdb", {"dev": "8:16", "size": str(64 * GIB // 512)})


def one(row: Mapping[str, object] | None = None, signatures: Sequence[Mapping[str, object]] = (), **more: object) -> BlockDevice:
    """The device that comes of one lsblk row and wipefs's report on /dev/sdb."""
    lsblk = json.dumps({"blockdevices": [{"kname": "sdb", **row}] if row is not None else []})
    report = json.dumps({"signatures": [{"device": "sdb", **each} for each in signatures]})
    sources = DiskSources(lsblk=lsblk, signatures=(report,), nodes=(NODE,))
    (found,) = assemble(replace(sources, **more))  # type: ignore[arg-type]  # named as the fields
    return found


def test_a_device_that_lsblk_leaves_out_is_there_from_sysfs() -> None:
    found = one()
    assert (found.path, found.kind, found.size, found.number) == (Path("/dev/sdb"), "disk", 64 * GIB, "8:16")
    assert (found.logical_sector, found.physical_sector, found.signature) == (512, 512, "")


@pytest.mark.parametrize("points", [["/mnt"], [None, "/mnt"], "/mnt"])
def test_mount_points_come_as_a_list_or_alone(points: object) -> None:
    assert one({"mountpoints": points}).mounts == ("/mnt",)


@pytest.mark.parametrize("points", [[None], [], None, [""]])
def test_no_mount_point_is_none(points: object) -> None:
    assert one({"mountpoints": points}).mounts == ()


def test_what_a_disk_says_of_itself_cannot_command_a_terminal() -> None:
    found = one({"model": " Evil \x1b[2J\x07 Disk ", "serial": "A\nB"}, [{"type": "ext4", "label": "x\x1b]0;pwned\x07"}])
    assert (found.model, found.serial, found.label) == ("Evil ?[2J? Disk", "A?B", "x?]0;pwned?")


def test_members_come_before_other_signatures_and_each_once() -> None:
    found = one({"fstype": "ext4"}, [{"type": "ext4"}, {"type": "LVM2_member"}, {"type": "ext4"}])
    assert found.signatures == ("LVM2_member", "ext4")
    assert found.signature == "LVM2_member"


@pytest.mark.parametrize(
    ("kinds", "expected"), [(["gpt", "gpt", "PMBR"], "gpt"), (["PMBR"], "gpt"), (["dos"], "dos"), (["PMBR", "gpt"], "gpt")]
)
def test_tables_of_partitions_are_no_content(kinds: list[str], expected: str) -> None:
    found = one({}, [{"type": kind, "usage": "partition-table"} for kind in kinds])
    assert (found.partition_table, found.signatures) == (expected, ())


def test_a_partition_is_not_the_table_it_stands_in() -> None:
    rows = [{"kname": "sdb", "pttype": "gpt", "serial": "S", "model": "M"}, {"kname": "sdb1", "pttype": "gpt", "pkname": "sdb"}]
    nodes = (NODE, BlockNode("sdb1", {"dev": "8:17", "size": "2048", "partition": "1"}, disk="sdb"))
    disk, part = assemble(DiskSources(json.dumps({"blockdevices": rows}), (), nodes))
    assert (disk.partition_table, part.partition_table) == ("gpt", "")
    assert (part.kind, part.serial, part.model, part.parents) == ("part", "S", "M", ("sdb",))


def test_udev_knows_serials_that_lsblk_does_not() -> None:
    udev = {"sdb": {"ID_SERIAL_SHORT": "U1", "ID_WWN": "0x5", "ID_PATH": "pci-0:1", "ID_FS_TYPE": "mpath_member"}}
    found = one({"serial": None}, udev=udev)
    assert (found.serial, found.wwn, found.port, found.signatures) == ("U1", "0x5", "pci-0:1", ("mpath_member",))
    assert one({"serial": "L1"}, udev=udev).serial == "L1"


@pytest.mark.parametrize(
    "text", ["", "{}", '{"blockdevices": []}', '{"blockdevices": null}', '{"blockdevices": [{"kname": null}]}']
)
def test_an_empty_report_is_no_error(text: str) -> None:
    assert len(assemble(DiskSources(text, ("", "{}"), (NODE,), ("garbage\n\n1 2\n",), "header\n\n")).devices) == 1


def test_names_are_in_the_order_of_people() -> None:
    names = ("sda10", "sdaa", "sdb", "sda2", "sda")
    devices = assemble(DiskSources("{}", (), tuple(BlockNode(name) for name in names)))
    assert [device.name for device in devices] == ["sda", "sda2", "sda10", "sdb", "sdaa"]


# -- the tree


def test_devices_are_found_by_name_path_and_link(tmp_path: Path) -> None:
    tree = Tree(1)
    held(tree)
    devices = read_block_devices(tmp_path, tree.plant(tmp_path))
    for what in ("sda", "/dev/sda", Path("/dev/sda"), "/dev/disk/by-id/x-sda"):
        found = devices.get(what)
        assert found is not None
        assert found.name == "sda"
    for what in ("sdz", "/dev/sdz", "/dev/disk/by-id/x-sdz", "", "/", "/dev"):
        assert devices.get(what) is None


def device(name: str, kind: str = "lvm", parents: tuple[str, ...] = (), holders: tuple[str, ...] = ()) -> BlockDevice:
    return BlockDevice(name, Path("/dev") / name, kind, GIB, parents=parents, holders=holders)


def test_above_and_below_go_through_everything_the_nearest_first() -> None:
    sda, sda1, sdb = device("sda", "disk"), device("sda1", "part", ("sda",)), device("sdb", "disk", holders=("md0",))
    md0, top = device("md0", "raid1", ("sda1",)), device("dm-0", parents=("md0",))
    devices = BlockDevices((top, sda, sda1, md0, sdb))
    assert devices.above(sda) == (sda1, md0, top)
    assert devices.above(sdb) == (md0, top)
    assert devices.above(top) == devices.below(sda) == ()
    assert [one.name for one in devices.below(top)] == ["md0", "sda1", "sdb", "sda"]
    assert devices.disk_of(sda1) is sda
    assert devices.disk_of(md0) is md0


def test_what_lsblk_alone_knows_to_stand_on_a_device_counts() -> None:
    rows = [{"kname": "sdb"}, {"kname": "dm-0", "type": "crypt", "pkname": "sdb"}]
    crypt, below = assemble(DiskSources(json.dumps({"blockdevices": rows}), (), (NODE, BlockNode("dm-0"))))
    assert (crypt.name, crypt.parents, below.holders) == ("dm-0", ("sdb",), ("dm-0",))


def test_the_other_members_of_a_mounted_btrfs_are_known_by_it() -> None:
    other = BlockNode("sdc", {"dev": "8:32", "size": "2048"})
    table = "30 1 0:44 / /data rw - btrfs /dev/sdb rw\n"
    first, second = assemble(DiskSources("{}", (), (NODE, other), (table,), btrfs_sets=(("sdb", "sdc"),)))
    assert (first.mounts, first.together) == (("/data",), ("sdc",))
    assert (second.mounts, second.together) == (("/data",), ("sdb",))
    (unseen,) = assemble(DiskSources("{}", (), (NODE,), btrfs_sets=(("sdb",),)))
    assert (unseen.mounts, unseen.together) == (("somewhere (btrfs)",), ())


# -- commands


def failing(code: int, err: str) -> Callable[..., Completed]:
    def runner(argv: Sequence[str | Path], **_: object) -> Completed:
        raise CommandFailed(Completed(tuple(map(str, argv)), code, "", err))

    return runner


def test_lsblk_that_fails_is_an_error_and_no_endless_loop(tmp_path: Path) -> None:
    for err in ("lsblk: failed to access sysfs directory", "lsblk: unknown column: FOO"):
        with pytest.raises(CommandFailed, match="lsblk"):
            read_block_devices(tmp_path, failing(1, err))


def test_a_host_without_the_tools_is_told(tmp_path: Path) -> None:
    def nothing(argv: Sequence[str | Path], **_: object) -> Completed:
        raise HostLacks(f"{argv[0]} is not installed")

    with pytest.raises(HostLacks):
        read_block_devices(tmp_path, nothing)


def test_wipefs_that_never_answers_leaves_devices_unreadable(tmp_path: Path) -> None:
    tree = Tree(5)
    tree.disk()
    answers = tree.plant(tmp_path)

    def runner(argv: Sequence[str | Path], **more: object) -> Completed:
        if argv[0] == "wipefs":
            raise CommandFailed(Completed(tuple(map(str, argv)), -9, "", "not done after 30 s"))
        return answers(argv, **more)  # type: ignore[arg-type]  # handed on

    (found,) = read_block_devices(tmp_path, runner)
    assert found.signature == "unreadable"


@pytest.mark.parametrize(
    ("begins", "expected"),
    [
        (lambda: os.urandom(2 * MIB), ("nameless data",)),
        (lambda: bytes(2 * MIB), ()),
        (lambda: os.urandom(MIB) + bytes(MIB), ()),
        (lambda: bytes(MIB) + os.urandom(MIB), ()),
        (lambda: bytes(range(32, 127)) * 30000, ()),
        (lambda: os.urandom(512), ()),
        (bytes, ()),
    ],
    ids=["random", "zeros", "only its first MiB", "all but its first MiB", "text", "short", "nothing"],
)
def test_a_disk_that_is_full_of_chance_is_not_taken_for_empty(
    tmp_path: Path, begins: Callable[[], bytes], expected: tuple[str, ...]
) -> None:
    tree = Tree(5)
    tree.disk()
    runner = tree.plant(tmp_path)
    (tmp_path / "dev" / "sda").write_bytes(begins())
    (found,) = read_block_devices(tmp_path, runner)
    assert found.signatures == expected


# -- this host


def test_this_host_is_read_by_anybody_and_has_what_it_is_mounted_from() -> None:
    devices = read_block_devices()
    known = {line.split(" ")[2] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    for found in devices:
        assert found.number == Path(f"/sys/class/block/{found.name}/dev").read_text().strip()
        assert bool(found.mounts) or found.number not in known


def test_mount_tables_of_other_namespaces_count(tmp_path: Path) -> None:
    sources = (NODE, "20 1 8:16 / /only/there rw - ext4 /dev/sdb rw\n")
    plant(
        tmp_path, {"proc/4711/mountinfo": sources[1], "sys/class/block/": "", "proc/self/mountinfo": "1 0 0:1 / / rw - x x rw\n"}
    )
    tables = gather(tmp_path, Tree(0).plant(tmp_path / "elsewhere")).mountinfos
    assert sources[1] in tables
    assert "/only/there" in one({}, mountinfos=tables).mounts


def test_who_has_a_device_open_for_writing_is_found(tmp_path: Path) -> None:
    """A made-up /proc, whose handle is a real device's; a reader does not count."""
    null = Path("/dev/null").stat().st_rdev
    process = plant(
        tmp_path,
        {"proc/4711/comm": "qemu-system-x86\n", "proc/4711/fdinfo/7": "pos:\t0\nflags:\t02100002\n", "proc/4711/fd/": ""},
    )
    (process / "proc/4711/fd/7").symlink_to("/dev/null")
    # Character devices are none.
    assert writers(null, tmp_path) == ()
    blocks = [path for path in Path("/dev").iterdir() if path.is_block_device()]
    if not blocks:
        pytest.skip("this host has no block device that could be looked at")
    (process / "proc/4711/fd/7").unlink()
    (process / "proc/4711/fd/7").symlink_to(blocks[0])
    number = blocks[0].stat().st_rdev
    assert writers(number, tmp_path) == ("qemu-system-x86 (4711)",)
    assert writers(number + 1, tmp_path) == ()
    plant(tmp_path, {"proc/4711/fdinfo/7": "pos:\t0\nflags:\t02100000\n"})
    assert writers(number, tmp_path) == ()


def test_reading_changes_nothing_and_needs_lsblk_and_wipefs_only(tmp_path: Path) -> None:
    used = set()

    def watched(argv: Sequence[str | Path], **more: object) -> Completed:
        used.add(str(argv[0]))
        return run(argv, **more)  # type: ignore[arg-type]  # handed on

    read_block_devices(Path("/"), watched)
    read_block_devices(tmp_path, watched)
    assert used <= {"lsblk", "wipefs"}
