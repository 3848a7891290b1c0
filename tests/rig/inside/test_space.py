"""Space on a real pool: what is counted, what is kept back, what happens when it is full."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from pocketcloud.errors import NoSpace, Refused
from pocketcloud.events import Event
from pocketcloud.kit.attached import Places
from pocketcloud.kit.device import init_file, plan_file, put_down
from pocketcloud.kit.links import LinkState
from pocketcloud.kit.space import kit_space, space_warning
from pocketcloud.kit.trim import trim_kit
from pocketcloud.model.kit import Kit, Manifest
from pocketcloud.model.names import Name
from pocketcloud.model.profile import Medium
from pocketcloud.model.sizes import GIB, MIB
from pocketcloud.storage import Clone, open_storage
from pocketcloud.storage.ballast import extend_metadata, fill_ballast, is_filled, restore_ballast
from pocketcloud.storage.devmapper import PoolMode, PoolStatus, pool_status
from pocketcloud.storage.discards import discard_free
from pocketcloud.storage.lvm import Lvm
from pocketcloud.storage.lvm_layout import Layout, format_commands
from pocketcloud.storage.lvm_thin import ThinPool
from pocketcloud.storage.metadata_snapshot import NOTE
from pocketcloud.storage.thin_shares import Share, thin_shares
from pocketcloud.storage.thin_volumes import BALLAST, POOL
from pocketcloud.storage.watermarks import ballast_size, percent
from pocketcloud.system import run
from tests.contract.stores import ThinBench, Watched, filled, make_pool, names

pytestmark = pytest.mark.sampled(20)

VG = ThinBench.VG
LVM = Lvm([ThinBench.DEVICE])
CHUNK = 64 * 1024
NOW = "2024-01-01T00:00:00+00:00"


SEED = int(os.environ.get("POCKETCLOUD_SEED", "0"))
THOROUGH = pytest.mark.parametrize("thorough", [False, pytest.param(True, marks=pytest.mark.slow)])


def cuts(commands: int, *, thorough: bool) -> range:
    """At which commands to kill: all of them, or each third, another third with another seed."""
    return range(1, commands + 1) if thorough else range(1 + SEED % 3, commands + 1, 3)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[ThinBench]:
    bench = ThinBench(tmp_path)
    restore_ballast(VG, LVM, run, bench.folder)
    yield bench
    bench.close()


def status(vg: str = VG) -> PoolStatus:
    found = pool_status(f"{vg}-{POOL}-tpool", run)
    assert found is not None
    return found


def data() -> int:
    return status().data_used * CHUNK


def base_volume(bench: ThinBench, size: int = 16 * MIB) -> str:
    """A sealed volume full of what does not look like zeros; its digest."""
    content = os.urandom(size)

    def fill(path: Path) -> None:
        with path.open("r+b") as device:
            device.write(content)

    bench.store().create("base.alpha", size, fill)
    return hashlib.blake2b(content).hexdigest()


def digest(bench: ThinBench, name: str) -> str:
    store = bench.store()
    store.activate(name)
    return hashlib.blake2b(store.place(name)[0].read_bytes()).hexdigest()


def written(bench: ThinBench, name: str, at: int, length: int) -> None:
    store = bench.store()
    store.activate(name)
    with store.place(name)[0].open("r+b") as device:
        device.seek(at)
        device.write(os.urandom(length))
        device.flush()
        os.fsync(device.fileno())


def share_of(bench: ThinBench, name: str) -> Share:
    logical = bench.store().place(name)[0].name
    (thin_id,) = (row.thin_id for row in LVM.volumes(VG) if row.name == logical)
    return thin_shares(VG, folder=bench.folder)[thin_id]


def reserve() -> None:
    run(["dmsetup", "message", f"{VG}-{POOL}-tpool", "0", "reserve_metadata_snap"])


def release() -> None:
    run(["dmsetup", "message", f"{VG}-{POOL}-tpool", "0", "release_metadata_snap"])


# -- shares


def test_a_share_is_what_a_volume_holds_alone_and_with_others(bench: ThinBench) -> None:
    base_volume(bench)
    assert share_of(bench, "base.alpha") == Share(16 * MIB, 16 * MIB, 0)
    bench.store().clone("base.alpha", "lab.web")
    assert share_of(bench, "base.alpha") == share_of(bench, "lab.web") == Share(16 * MIB, 0, 16 * MIB)
    written(bench, "lab.web", 4 * MIB, MIB)
    assert share_of(bench, "lab.web") == Share(16 * MIB, MIB, 15 * MIB)
    assert share_of(bench, "base.alpha") == Share(16 * MIB, MIB, 15 * MIB)
    assert status().held is None
    assert bench.leftovers() == []


@THOROUGH
def test_a_count_that_is_killed_holds_nothing_for_the_next(bench: ThinBench, *, thorough: bool) -> None:
    base_volume(bench)
    quiet = Watched()
    thin_shares(VG, quiet, bench.folder)
    assert len(quiet.commands) >= 4
    for number in cuts(len(quiet.commands), thorough=thorough):
        child = os.fork()
        if child == 0:
            thin_shares(VG, Watched(number, after=number == len(quiet.commands)), bench.folder)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9, number
        assert share_of(bench, "base.alpha") == Share(16 * MIB, 16 * MIB, 0), number
        assert status().held is None, number
        assert bench.leftovers() == [], number


def test_a_snapshot_of_another_program_is_left_to_it(bench: ThinBench) -> None:
    reserve()
    held = status().held
    with pytest.raises(Refused, match="another program holds"):
        thin_shares(VG, folder=bench.folder)
    assert status().held == held is not None
    release()
    thin_shares(VG, folder=bench.folder)


def test_a_snapshot_that_is_being_read_is_not_released(bench: ThinBench) -> None:
    (bench.folder / NOTE).write_text("a metadata snapshot of the pool is held, or about to be\n")
    reserve()
    with open(f"/dev/mapper/{VG}-{POOL}_tmeta", "rb"), pytest.raises(Refused, match="another program holds"):  # noqa: PTH123
        thin_shares(VG, folder=bench.folder)
    assert status().held is not None
    thin_shares(VG, folder=bench.folder)
    assert status().held is None
    assert bench.leftovers() == []


def test_a_count_that_fails_releases(bench: ThinBench) -> None:
    def broken(argv, **options):  # type: ignore[no-untyped-def]  # as Runner, with one tool that fails
        return run(["false"] if argv[0] == "thin_ls" else argv, **options)

    with pytest.raises(Refused, match="cannot be counted"):
        thin_shares(VG, broken, bench.folder)
    assert status().held is None
    assert bench.leftovers() == []


# -- ballast


def test_the_ballast_takes_its_space_and_gives_it_back(bench: ThinBench) -> None:
    (ballast,) = (row for row in LVM.volumes(VG) if row.name == BALLAST)
    assert data() == ballast.size
    assert not ballast.active
    assert is_filled(VG, run, LVM.volumes(VG))
    LVM.command("lvremove", "-f", f"{VG}/{BALLAST}")
    assert data() == 0
    assert not is_filled(VG, run, LVM.volumes(VG))
    assert restore_ballast(VG, LVM, run, bench.folder)
    assert data() == ballast_size(640 * MIB)


@THOROUGH
def test_a_ballast_that_was_interrupted_is_completed(bench: ThinBench, *, thorough: bool) -> None:
    LVM.command("lvremove", "-f", f"{VG}/{BALLAST}")
    quiet = Watched()
    assert restore_ballast(VG, LVM_WATCHED(quiet), quiet, bench.folder)
    size = data()
    assert size
    for number in cuts(len(quiet.commands), thorough=thorough):
        LVM.command("lvremove", "-f", f"{VG}/{BALLAST}")
        child = os.fork()
        if child == 0:
            fatal = Watched(number, after=number == len(quiet.commands))
            restore_ballast(VG, LVM_WATCHED(fatal), fatal, bench.folder)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9, number
        assert restore_ballast(VG, LVM, run, bench.folder), number
        assert data() == size, number
        assert bench.leftovers() == [], number


def LVM_WATCHED(runner: Watched) -> Lvm:  # noqa: N802 - it stands for LVM, watched
    return Lvm([ThinBench.DEVICE], runner)


# -- a pool that is full


def fill_up(bench: ThinBench, name: str) -> None:
    """Write to a volume as a guest would that has no end, until the pool says no."""
    store = bench.store()
    store.activate(name)
    handle = os.open(store.place(name)[0], os.O_WRONLY)
    block = os.urandom(4 * MIB)
    try:
        with contextlib.suppress(OSError):
            for at in range(0, 1024 * MIB, len(block)):
                os.pwrite(handle, block, at)
                if at % (64 * MIB) == 0:
                    os.fsync(handle)
    finally:
        with contextlib.suppress(OSError):
            os.close(handle)


def test_on_a_full_pool_reset_and_removal_work_and_no_base_changes(bench: ThinBench) -> None:
    store = bench.store()
    good = base_volume(bench)
    store.clone("base.alpha", "lab.web", 700 * MIB)
    store.create("lab.other", 16 * MIB)
    fill_up(bench, "lab.web")
    assert status().mode is PoolMode.OUT_OF_DATA
    with pytest.raises(NoSpace, match=r"data 100 % used \(limit 90 %\)"):
        store.clone("base.alpha", "lab.new")
    with pytest.raises(NoSpace):
        store.prepare([Clone("base.alpha", "lab.new")])
    assert names(store) == ["base.alpha", "lab.other", "lab.web"]

    store.clone_all([Clone("base.alpha", "lab.web2", 700 * MIB)], reserve=True)
    assert not any(row.name == BALLAST for row in LVM.volumes(VG)), "the ballast was to be given up"
    assert status().mode is PoolMode.WRITING
    written(bench, "lab.web2", 0, MIB)
    assert not restore_ballast(VG, LVM, run, bench.folder), "there is no room for the ballast yet"

    store.remove("lab.web")
    assert percent(status().data_used, status().data_total) < 80
    assert restore_ballast(VG, LVM, run, bench.folder)
    store.clone("base.alpha", "lab.new")
    assert digest(bench, "base.alpha") == good
    assert digest(bench, "lab.new") == good
    assert bench.leftovers() == []


def test_removal_alone_ends_it(bench: ThinBench) -> None:
    store = bench.store()
    good = base_volume(bench)
    store.clone("base.alpha", "lab.web", 700 * MIB)
    fill_up(bench, "lab.web")
    store.remove("lab.web")
    store.clone("base.alpha", "lab.web")
    written(bench, "lab.web", 0, MIB)
    assert digest(bench, "base.alpha") == good


def test_a_ballast_that_does_not_fit_is_not_left_half(bench: ThinBench) -> None:
    store = bench.store()
    base_volume(bench)
    LVM.command("lvremove", "-f", f"{VG}/{BALLAST}")
    LVM.command("lvcreate", "-an", "-kn", "-V", "16m", "--thinpool", POOL, "-n", BALLAST, VG)
    store.clone("base.alpha", "lab.web", 700 * MIB)
    fill_up(bench, "lab.web")
    with pytest.raises(NoSpace, match="no room for its ballast"):
        fill_ballast(VG, LVM, run)
    assert not any(row.name == BALLAST for row in LVM.volumes(VG))


def test_a_full_kit_is_shown_and_warned_of(bench: ThinBench) -> None:
    store, kit = bench.store(), kit_of(bench)
    base_volume(bench)
    assert space_warning(kit) == ""
    store.clone("base.alpha", "lab.demo.web.root.g1", 700 * MIB)
    fill_up(bench, "lab.demo.web.root.g1")
    space = kit_space(kit, store, [])
    assert {gauge.name: gauge.percent for gauge in space.gauges}["data"] == 100
    assert space.warnings == (space_warning(kit),)
    assert "data 100 % used" in space.warnings[0]
    assert space.ballast is True
    held = {holding.name: holding for holding in space.holdings}
    assert held["base.alpha"].exclusive == 16 * MIB, "all of it was overwritten in the clone"
    assert held[BALLAST].exclusive == held[BALLAST].size > 0
    store.clone_all([Clone("base.alpha", "lab.new")], reserve=True)
    assert kit_space(kit, store, []).ballast is False


def test_what_cannot_be_counted_is_said_and_the_rest_shown(bench: ThinBench) -> None:
    base_volume(bench)
    LVM.command("lvcreate", "-an", "-V", "4m", "--thinpool", POOL, "-n", "users_own", VG)
    reserve()
    space = kit_space(kit_of(bench), bench.store(), [])
    release()
    LVM.command("lvremove", "-f", f"{VG}/users_own")
    assert "another program holds" in space.uncounted
    assert [held.exclusive for held in space.holdings] == [None] * len(space.holdings)
    assert space.strangers == ("users_own",)
    assert len(space.gauges) == 2


def kit_of(bench: ThinBench) -> Kit:
    """The bench's pool as a kit, whose tree is the folder of the test."""
    manifest = Manifest(1, str(uuid.uuid4()), Name("full"), NOW, "0", "lvm", vg=VG)
    return Kit(manifest, bench.folder.parent, Medium.LOOP, VG, (ThinBench.DEVICE,))


# -- the chain of discards


def silent(_event: Event) -> None:
    """Nobody watches."""


def test_on_a_disk_without_discards_the_chain_ends_at_the_pool(bench: ThinBench) -> None:
    done = trim_kit(kit_of(bench), bench.store(), None, emit=silent, locks=Path("/run/pocketcloud/locks"))
    assert done.ends_at == "passdown"
    states = {link.name: link.state for link in done.links}
    assert states[f"device {ThinBench.DEVICE}"] is LinkState.ENDS
    assert states["ballast"] is LinkState.PASSED


def test_trim_makes_the_ballast_anew(bench: ThinBench) -> None:
    LVM.command("lvremove", "-f", f"{VG}/{BALLAST}")
    trim_kit(kit_of(bench), bench.store(), None, emit=silent, locks=Path("/run/pocketcloud/locks"))
    assert is_filled(VG, run, LVM.volumes(VG))


def test_a_kit_in_a_file_gives_back_down_to_the_file(tmp_path: Path) -> None:
    run(["modprobe", "-a", "dm_thin_pool", "loop", "ext4"], codes=range(256))
    places, file = Places(tmp_path / "default", tmp_path / "run"), tmp_path / "kit.img"
    kit = init_file(plan_file(places, file, 2 * GIB, "small", CHUNK, run), file, places, run, now=NOW)
    try:
        store = open_storage(kit)
        assert kit_space(kit, store, []).ballast is True, "a new kit has its ballast"
        big = kit.path / "media" / "big"
        big.write_bytes(os.urandom(40 * MIB))
        os.sync()
        before, holes = store.usage().used, file.stat().st_blocks * 512
        big.unlink()
        os.sync()
        done = trim_kit(kit, store, None, emit=silent, locks=Path("/run/pocketcloud/locks"))
        assert done.ends_at == ""
        assert done.freed >= 32 * MIB
        assert store.usage().used <= before - 32 * MIB
        assert file.stat().st_blocks * 512 <= holes - 32 * MIB
        assert {link.name.split()[0]: str(link.state) for link in done.links} == {
            "guests": "left out",
            "content": "ok",
            "state": "ok",
            "pool": "ok",
            "passdown": "in part",
            "device": "ok",
            "file": "ok",
            "ballast": "ok",
        }
        Lvm(kit.devices).command("lvchange", "--discards", "nopassdown", f"{kit.vg}/{POOL}")
        kept = trim_kit(kit, store, None, emit=silent, locks=Path("/run/pocketcloud/locks"))
        assert kept.ends_at == "passdown"
        assert any(f"lvchange --discards passdown {kit.vg}/{POOL}" in link.hint for link in kept.links)
    finally:
        put_down(Lvm(kit.devices), kit.vg, kit.path, run)
        run(["losetup", "--detach", kit.devices[0]])


def test_what_removed_volumes_held_is_given_back_while_the_pool_rests(tmp_path: Path) -> None:
    """And nothing else: all that is used is as before, also where runs of it are between what is free."""
    run(["modprobe", "-a", "dm_thin_pool", "loop"], codes=range(256))
    file, vg = tmp_path / "disk.img", "pc_free"
    with file.open("xb") as made:
        made.truncate(512 * MIB)
    device = Path(run(["losetup", "--find", "--show", file]).out.strip())
    lvm, store = Lvm([device]), ThinPool(vg, [device], tmp_path / "locks")
    (tmp_path / "locks").mkdir()
    try:
        for verb, *words in format_commands(device, vg, Layout(16 * MIB, 320 * MIB, 8 * MIB, CHUNK, 32 * MIB, 16 * MIB), ()):
            lvm.command(verb, *words)
        for name in ("a", "gone-b", "c", "gone-d", "e"):
            store.create(name, 8 * MIB)
        store.activate("a", "gone-b", "c", "gone-d", "e")
        for at in range(0, 8 * MIB, MIB):  # in turns, so that they lie between each other
            for name in ("a", "gone-b", "c", "gone-d", "e"):
                put(store.place(name)[0], at, MIB)
        good = {name: contents(store, name) for name in ("a", "c", "e")}
        store.remove("gone-b", "gone-d")
        used = status(vg).data_used
        # Before the second part is active, between making the device and letting it go, before it is read, before the end.
        for number in (2, 6, 7, 8, 0):
            lvm.command("vgchange", "-an", vg)
            occupied = file.stat().st_blocks * 512
            if number:
                run_killed(lambda watched: discard_free(vg, Lvm([device], watched), watched, used), number)
            else:
                assert discard_free(vg, lvm, run, used - 1) == 0, "it was done though the figures differ"
                assert discard_free(vg, lvm, run, used) >= 256 * MIB
                assert file.stat().st_blocks * 512 < 64 * MIB < occupied or occupied < 64 * MIB
            lvm.command("vgchange", "-an", vg)
            lvm.command("vgchange", "-ay", vg)
            assert {name: contents(store, name) for name in good} == good, number
        assert run(["dmsetup", "info", "-c", "--noheadings", "-o", "name", f"{vg}-free"], codes=range(256)).code
    finally:
        lvm.command("vgchange", "-an", vg)
        run(["losetup", "--detach", device])


def put(path: Path, at: int, length: int) -> None:
    with path.open("r+b") as device:
        device.seek(at)
        device.write(os.urandom(length))
        device.flush()
        os.fsync(device.fileno())


def contents(store: ThinPool, name: str) -> str:
    store.activate(name)
    return hashlib.blake2b(store.place(name)[0].read_bytes()).hexdigest()


def run_killed(work: Callable[[Watched], object], at: int) -> None:
    """Do work in a process that is killed before its command number `at`."""
    child = os.fork()
    if child == 0:
        work(Watched(at))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (0, -9)


# -- metadata that is nearly full


def test_metadata_nearly_full_refuses_clones_and_grows_from_what_is_kept_free(tmp_path: Path) -> None:
    vg, device = "pc_metadata", Path("/dev/ram1")
    make_pool(device, vg, Layout(16 * MIB, 128 * MIB, 4 * MIB, CHUNK, 32 * MIB, 4 * MIB), 256 * MIB)
    lvm, store = Lvm([device]), ThinPool(vg, [device], tmp_path)
    store.create("base.alpha", 4 * MIB, filled(0x61, length=4 * MIB))
    store.clone("base.alpha", "lab.old")
    before = status(vg).metadata_total
    scatter(vg, until=75)
    with pytest.raises(NoSpace, match=r"metadata 7[0-9] % used \(limit 75 %\)"):
        store.clone("base.alpha", "lab.new")
    store.remove("lab.old")
    assert extend_metadata(vg, lvm, run)
    assert status(vg).metadata_total >= 2 * before
    store.clone("base.alpha", "lab.new")
    store.activate("lab.new")
    assert store.place("lab.new")[0].read_bytes() == bytes([0x61]) * 4 * MIB
    while extend_metadata(vg, lvm, run):
        pass
    (group,) = lvm.groups()
    assert group.free >= 0
    run(lvm.argv("vgchange", "-an", vg))
    # What was created behind LVM's back does not disturb it.
    run(lvm.argv("vgchange", "-ay", vg))
    assert not status(vg).needs_check


def scatter(vg: str, until: int) -> None:
    """Use metadata up: each thin volume takes a block of it, also those that LVM does not hear of."""
    with Path("/dev/mapper/control").open("rb") as control:
        for number in range(10_000, 20_000):
            message(control, f"{vg}-{POOL}-tpool", f"create_thin {number}")
            now = status(vg) if number % 32 == 0 else None
            if now and percent(now.metadata_used, now.metadata_total) >= until:
                return
    raise AssertionError("the metadata did not fill up")


def message(control: BinaryIO, node: str, text: str) -> None:
    """What `dmsetup message` does, without a process for each (struct dm_ioctl and dm_target_msg of linux/dm-ioctl.h)."""
    words = struct.pack("Q", 0) + text.encode() + b"\0"
    head = struct.pack("3I7IQ128s129s7x", 4, 0, 0, 312 + len(words), 312, 0, 0, 0, 0, 0, 0, node.encode(), b"")
    fcntl.ioctl(control, 0xC138FD0E, head + words)  # DM_TARGET_MSG
