"""Damage that is real, found and cured: the pool's metadata, its flags and its transaction, the state volume, a kit that was
never finished, a disk that was pulled. Of each it is said first, without any change, and what was evidence is there after."""

from __future__ import annotations

import fcntl
import gzip
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pocketcloud.errors import Refused
from pocketcloud.kit.aside import aside
from pocketcloud.kit.attach import attach
from pocketcloud.kit.attached import Places
from pocketcloud.kit.detach import detach, leaving
from pocketcloud.kit.diagnosis import Finding, Trouble
from pocketcloud.kit.evidence import META, Checked, Target, component, read_metadata
from pocketcloud.kit.manifest import FILE, read_manifest
from pocketcloud.kit.mounts import mounts, number_of
from pocketcloud.kit.repair import SAVED, diagnose, repair
from pocketcloud.model.sizes import MIB
from pocketcloud.storage.devmapper import nodes, nodes_of, pool_status
from pocketcloud.storage.lvm import environment
from pocketcloud.storage.thin_volumes import BALLAST, CONTENT, POOL, STATE
from pocketcloud.system import CommandFailed, Completed, run
from tests.contract.stores import filled
from tests.rig.inside.asked import Asked
from tests.rig.inside.made import (
    NOW,
    SIZE,
    Kill,
    Made,
    backing,
    copied,
    digest,
    killed,
    loop,
    make_kit,
    under_every_kill,
    unloop,
)

pytestmark = pytest.mark.sampled(20)

MARKS = {"lab": "a", "machine": "m", "disk": "root"}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """A kit with a base, a lab's volume that stands on it, and that lab's record; detached."""
    folder = tmp_path_factory.mktemp("healthy")
    kit = make_kit(loop(folder / "kit.img", SIZE), "first", "pc_aaaaaa")
    kit.activate(STATE, POOL)
    with aside(kit.state, run) as tree:
        (tree / "labs" / "a").mkdir()
        (tree / "labs" / "a" / "lab.json").write_text("{}")
    store = kit.store(folder)
    store.create("base.x", 8 * MIB, filled(7))
    store.create("lab.a.m.root", 8 * MIB, filled(9), MARKS)
    kit.deactivate()
    yield kit
    unloop(kit.device)


@pytest.fixture
def kit(healthy: Made, tmp_path: Path) -> Iterator[Made]:
    """A byte copy of it, to be damaged; nothing of it is left over."""
    device = copied(healthy.device, tmp_path / "kit.img")
    yield replace(healthy, device=device)
    assert [node.name for node in nodes()] == []
    unloop(device)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(default=tmp_path / "none", run=tmp_path / "run")


def target(kit: Made) -> Target:
    (group,) = kit.lvm.groups()
    return Target("first", kit.vg, group.uuid, kit.device)


def troubles(kit: Made, places: Places) -> list[Trouble]:
    """What is found wrong; looking changes no byte."""
    run(["sync"])
    before = digest(backing(kit.device))
    found = [finding.trouble for finding in diagnose(target(kit), places, run)]
    run(["sync"])
    assert digest(backing(kit.device)) == before
    return found


def cured(kit: Made, places: Places, **options: Path) -> tuple[list[Trouble], list[str]]:
    """Repair with yes to everything; what is left, and what was said."""
    said: list[str] = []
    left = repair(target(kit), places, run, ask=lambda _: True, say=said.append, now=NOW, **options)
    return [finding.trouble for finding in left], said


def contents(kit: Made, folder: Path) -> dict[str, str]:
    """The digest of each volume that can be read."""
    kit.activate(POOL)
    store = kit.store(folder)
    names = [volume.name for volume in store.volumes()]
    store.activate(*names)
    found = {name: digest(store.place(name)[0]) for name in names}
    kit.deactivate()
    return found


def write_below(kit: Made, volume: str, content: bytes, block: int) -> None:
    """Write to a linear volume, from a block of 4 KiB on, by way of the device it lies on, as a failing disk would."""
    with component(kit.lvm, kit.vg) if volume == META else active(kit, volume):
        words = run(["dmsetup", "table", f"{kit.vg}-{volume}"]).out.split()
    assert words[2] == "linear"
    _put(kit.device, content, int(words[4]) * 512 + 4096 * block)
    run(["blockdev", "--flushbufs", kit.device])


@contextmanager
def active(kit: Made, *volumes: str) -> Iterator[Path]:
    """The kit with some volumes active; the path of the first."""
    kit.activate(*volumes)
    yield Path("/dev", kit.vg, volumes[0])
    kit.deactivate()


def saved(places: Places) -> list[Path]:
    return sorted((places.run / SAVED).glob("first-*"))


def test_a_kit_that_is_well_has_no_findings(kit: Made, places: Places) -> None:
    assert troubles(kit, places) == []
    assert cured(kit, places) == ([], [])
    assert not saved(places)


def test_an_attached_kit_that_is_well_has_no_findings(kit: Made, places: Places) -> None:
    kit.activate(STATE, POOL, CONTENT)
    mounted = places.mounts / "first"
    mounted.mkdir(parents=True)
    run(["mount", kit.state, mounted])
    found = [f.trouble for f in diagnose(target(kit), places, run)]
    run(["umount", mounted])
    assert found == []
    kit.deactivate()


def _used(state: Path, users: list[subprocess.Popen[bytes]]) -> None:
    with aside(state, run) as tree:
        users.append(subprocess.Popen(["sleep", "600"], cwd=tree))


def test_what_stays_mounted_aside_keeps_its_content(kit: Made) -> None:
    kit.activate(STATE)
    users = list[subprocess.Popen[bytes]]()
    with pytest.raises(Refused, match=r"sleep \(\d+\)"):
        _used(kit.state, users)
    (tree,) = (mount.path for mount in mounts() if mount.number == number_of(kit.state))
    assert (tree / "labs" / "a" / "lab.json").read_text() == "{}"
    users[0].kill()
    users[0].wait()
    with aside(kit.state, run) as again:
        assert (again / "labs" / "a" / "lab.json").read_text() == "{}"
        assert not tree.parent.exists()
    assert not again.parent.exists()
    kit.deactivate()


def test_damaged_metadata_is_repaired_and_the_old_is_kept(kit: Made, places: Places, tmp_path: Path) -> None:
    before = contents(kit, tmp_path)
    assert "thin_check" in _damaged(kit, places, tmp_path, losing=False).evidence
    damaged = _metadata_of(kit)
    with pytest.raises(CommandFailed, match="Manual repair required"):
        kit.activate(POOL)
    left, said = cured(kit, places)
    assert left == []
    assert contents(kit, tmp_path) == before
    (folder,) = saved(places)
    assert gzip.decompress((folder / f"{META}.gz").read_bytes()) == damaged
    assert "thin-pool" in (folder / "vg.txt").read_text()
    kit.activate(STATE)
    with aside(kit.state, run) as tree:
        (inside,) = (tree / SAVED).iterdir()
        assert gzip.decompress((inside / f"{META}.gz").read_bytes()) == damaged
    kit.activate("pool_meta0")
    assert Path("/dev", kit.vg, "pool_meta0").read_bytes() == damaged
    kit.deactivate()
    assert any("pool_meta0" in line for line in said)


def _damaged(kit: Made, places: Places, folder: Path, *, losing: bool) -> Finding:
    """Destroy the first block of the metadata that a repair can do without, or cannot, and what is found then."""
    pristine, rubbish = _metadata_of(kit), os.urandom(4096)
    (folder / META).write_bytes(pristine)
    trial = loop(folder / META)  # the tools do not read files on a tmpfs
    kept = {row.thin_id for row in kit.lvm.volumes(kit.vg) if row.thin and row.name != BALLAST}
    for block in range(1, 60):
        _put(trial, rubbish, 4096 * block)
        code = run(["thin_check", "-q", trial], codes=range(256)).code
        left = read_metadata(Checked(code, ""), run(["thin_dump", "-r", trial], codes=range(256)).out, b"").devices
        if code and (kept <= left) is not losing:
            break
        _put(trial, pristine[4096 * block :][:4096], 4096 * block)
    unloop(trial)
    write_below(kit, META, rubbish, block)
    (finding,) = diagnose(target(kit), places, run)
    assert finding.trouble is Trouble.METADATA
    assert bool(finding.loses) is losing
    return finding


def _put(device: Path, content: bytes, at: int) -> None:
    with device.open("r+b", buffering=0) as disk:
        disk.seek(at)
        disk.write(content)
        os.fsync(disk.fileno())


def _metadata_of(kit: Made) -> bytes:
    with component(kit.lvm, kit.vg) as device:
        return device.read_bytes()


def test_what_a_repair_would_lose_is_said_before(kit: Made, places: Places, tmp_path: Path) -> None:
    finding = _damaged(kit, places, tmp_path, losing=True)
    assert set(finding.loses) <= {"base.x", "lab.a.m.root", CONTENT}
    left = repair(target(kit), places, run, ask=lambda asked: not asked.loses, say=print, now=NOW)
    assert Trouble.METADATA in [f.trouble for f in left]
    assert not saved(places), "nothing is written when nothing is to be done"


def test_what_would_lose_volumes_is_asked_for_apart(kit: Made, places: Places, tmp_path: Path) -> None:
    _damaged(kit, places, tmp_path, losing=True)
    damaged = _metadata_of(kit)
    asked = Asked(places, "kit", "repair", kit.device)
    shown, *_ = asked.until(r"Do that\? \[y/N\]")
    assert "lost:" in shown
    asked.answer("")
    asked.ends(8, "this is left")
    Asked(places, "kit", "repair", kit.device, "-y").ends(8, "--lose-volumes if that is meant")
    assert _metadata_of(kit) == damaged
    # What the pool does not know any more is removed as ever, and the kit goes on.
    Asked(places, "kit", "repair", kit.device, "-y", "--lose-volumes").ends(8, "lost content volume: done", "lab destroy")
    assert troubles(kit, places) == [Trouble.LOST_LABS]
    Asked(places, "kit", "attach", kit.device).ends(0)
    store = kit.store(tmp_path)
    store.remove("lab.a.m.root")
    store.remove("base.x")
    store.create("base.y", 8 * MIB, filled(3))
    Asked(places, "kit", "detach").ends(0)
    assert loop(tmp_path / "kit.img") == kit.device
    assert troubles(kit, places) == []


def _forgotten(kit: Made, places: Places) -> None:
    """Have the pool not know `content` any more, as after a repair of its metadata."""
    (thin_id,) = (row.thin_id for row in kit.lvm.volumes(kit.vg) if row.name == CONTENT)
    kit.activate(POOL)
    run(["dmsetup", "message", f"{kit.vg}-pool-tpool", "0", f"delete {thin_id}"], env=environment())
    kit.deactivate()
    assert troubles(kit, places) == [Trouble.CONTENT]


def _whole_again(kit: Made, places: Places, folder: Path, before: dict[str, str]) -> None:
    left, _ = cured(kit, places)
    assert left == []
    attach(places, str(kit.device), rename=None, now=NOW)
    detach(places, leaving(places, None), now=NOW)
    assert loop(folder / "kit.img") == kit.device
    assert nodes_of(kit.vg) == ()
    assert contents(kit, folder) == before


@pytest.mark.parametrize("verb", ["lvremove", "lvcreate", "mkfs.ext4", "lvrename"])
def test_content_that_is_gone_is_made_anew(kit: Made, places: Places, tmp_path: Path, verb: str) -> None:
    """Also by a second run, if the first is killed when it has just done that."""
    before = contents(kit, tmp_path)
    _forgotten(kit, places)
    child = os.fork()
    if child == 0:

        def fatal(argv: Sequence[str | Path], **options: Any) -> Completed:
            done = run(argv, **options)
            if verb in map(str, argv):
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        try:
            repair(target(kit), places, fatal, ask=lambda _: True, say=print, now=NOW)
        finally:
            os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "it came to its end"
    _whole_again(kit, places, tmp_path, before)


def check_content_again(kit: Made, places: Places, folder: Path, at: int, kill: Kill) -> bool:
    before = contents(kit, folder)
    _forgotten(kit, places)
    hit = killed(lambda run: repair(target(kit), places, run, ask=lambda _: True, say=print, now=NOW), at, kill)
    _whole_again(kit, places, folder, before)
    return hit


def test_metadata_that_is_not_told_whole_is_not_taken_for_less(kit: Made, places: Places) -> None:
    def mute(argv: Sequence[str | Path], **options: Any) -> Completed:
        return run(["false"] if argv[0] == "thin_dump" else argv, **options)

    with pytest.raises(CommandFailed):
        diagnose(target(kit), places, mute)
    assert [row.name for row in kit.lvm.volumes(kit.vg) if row.active] == []


@pytest.mark.slow
def test_content_is_made_anew_under_every_kill(kit: Made, places: Places, tmp_path: Path) -> None:
    assert under_every_kill(partial(check_content_again, kit, places, tmp_path)) >= 40


def test_needs_check_is_cleared(kit: Made, places: Places, tmp_path: Path) -> None:
    before = contents(kit, tmp_path)
    _abort_a_transaction(kit)
    status = pool_status(f"{kit.vg}-pool-tpool", run)
    assert status is not None
    assert status.needs_check
    assert [f.trouble for f in diagnose(target(kit), places, run)] == [Trouble.IN_USE]
    kit.deactivate()
    assert troubles(kit, places) == [Trouble.NEEDS_CHECK]
    left, _ = cured(kit, places)
    assert left == []
    assert contents(kit, tmp_path) == before
    kit.activate(POOL)
    kit.store(tmp_path).clone("base.x", "lab.new")
    kit.deactivate()


def _abort_a_transaction(kit: Made) -> None:
    """Make writes of the metadata fail, but for the superblock, so that the kernel notes that it needs a check."""
    run(["modprobe", "dm_flakey"])
    kit.activate(POOL, CONTENT)
    node = f"{kit.vg}-{META}"
    _, length, _, device, start = run(["dmsetup", "table", node]).out.split()
    rest = f"8 {int(length) - 8} flakey {device} {int(start) + 8} 0 3600 1 error_writes"
    run(["dmsetup", "load", node], stdin=f"0 8 linear {device} {start}\n{rest}\n".encode(), env=environment())
    run(["dmsetup", "suspend", "--noflush", node], env=environment())
    run(["dmsetup", "resume", node], env=environment())
    options = ["bs=64K", "count=64", "seek=400", "oflag=direct", "conv=fsync"]
    assert run(["dd", "if=/dev/zero", f"of=/dev/{kit.vg}/{CONTENT}", *options], codes=range(256)).code


def test_a_transaction_that_does_not_match_is_aligned(kit: Made, places: Places, tmp_path: Path) -> None:
    before = contents(kit, tmp_path)
    kit.activate(POOL)
    status = pool_status(f"{kit.vg}-pool-tpool", run)
    assert status is not None
    old = status.transaction
    run(["dmsetup", "message", f"{kit.vg}-pool-tpool", "0", f"set_transaction_id {old} {old + 7}"], env=environment())
    assert [f.trouble for f in diagnose(target(kit), places, run)] == [Trouble.IN_USE]
    kit.deactivate()
    found = diagnose(target(kit), places, run)
    assert [f.trouble for f in found] == [Trouble.TRANSACTION]
    assert f"{old + 7}" in found[0].evidence
    assert f"{old}" in found[0].evidence
    left, _ = cured(kit, places)
    assert left == []
    assert contents(kit, tmp_path) == before
    kit.activate(POOL)
    kit.store(tmp_path).clone("base.x", "lab.new")
    kit.deactivate()
    assert f"transaction_id = {old}\n" in (saved(places)[0] / "vg.txt").read_text()


def test_a_held_metadata_snapshot_is_released(kit: Made, places: Places) -> None:
    for detached in (False, True):
        kit.activate(POOL)
        run(["dmsetup", "message", f"{kit.vg}-pool-tpool", "0", "reserve_metadata_snap"], env=environment())
        if detached:
            kit.deactivate()
        assert [f.trouble for f in diagnose(target(kit), places, run)] == [Trouble.HELD]
        left, _ = cured(kit, places)
        assert left == []
    assert not nodes_of(kit.vg)


def test_a_damaged_state_volume_needs_two_places_outside(kit: Made, places: Places, tmp_path: Path) -> None:
    # The group descriptors and the bitmaps that follow the superblock.
    for block in (1, 5, 6, 7):
        write_below(kit, STATE, os.urandom(4096), block)
    assert Trouble.STATE in troubles(kit, places)
    with pytest.raises(Refused, match="cannot take a copy") as refusal:
        cured(kit, places)
    assert "--save" in refusal.value.hint
    left, said = cured(kit, places, save=tmp_path / "safe")
    assert left == []
    for folder in (tmp_path / "safe", places.run / SAVED):
        (copy,) = folder.iterdir()
        assert {"vg.txt", f"{META}.gz", "state.e2undo"} <= {path.name for path in copy.iterdir()}
    assert any("e2undo" in line for line in said)
    assert kit.manifest().id == kit.id


def test_a_journal_is_replayed_without_ado(kit: Made, places: Places) -> None:
    kit.activate(STATE)
    with aside(kit.state, run) as tree:
        (tree / "labs" / "last-word").write_text("written before the plug was pulled")
        run(["sync"])
        image = copied(kit.device, backing(kit.device).with_name("pulled.img"))
    kit.deactivate()
    pulled = replace(kit, device=image)
    assert troubles(pulled, places) == [Trouble.JOURNAL]
    assert cured(pulled, places)[0] == []
    pulled.activate(STATE)
    with aside(pulled.state, run, read_only=True) as tree:
        assert (tree / "labs" / "last-word").exists()
    pulled.deactivate()
    unloop(image)


@pytest.mark.parametrize("damage", ["gone", "torn"])
def test_a_lost_manifest_is_written_anew(kit: Made, places: Places, damage: str) -> None:
    kit.activate(STATE)
    with aside(kit.state, run) as tree:
        (tree / FILE).unlink() if damage == "gone" else (tree / FILE).write_text("{")
    kit.deactivate()
    assert troubles(kit, places) == [Trouble.MANIFEST]
    assert cured(kit, places)[0] == []
    kit.activate(STATE)
    with aside(kit.state, run) as tree:
        manifest = read_manifest(tree)
        assert (manifest.id, manifest.name, manifest.vg) == (kit.id, "first", kit.vg)
        assert len(list(tree.glob(f"{FILE}.*"))) == (damage == "torn")
    kit.deactivate()


def test_lab_records_that_are_lost_are_told_from_the_tags(kit: Made, places: Places) -> None:
    kit.activate(STATE)
    with aside(kit.state, run) as tree:
        (tree / "labs" / "a" / "lab.json").unlink()
    kit.deactivate()
    (finding,) = diagnose(target(kit), places, run)
    assert finding.trouble is Trouble.LOST_LABS
    assert "lab a" in finding.what
    assert "lab.a.m.root" in finding.evidence


def test_files_of_dead_makers_go_and_those_of_living_stay(kit: Made, places: Places, tmp_path: Path) -> None:
    kit.activate(STATE)
    # Not aside: what is mounted there counts as left over, and is unmounted before anybody looks.
    tree = tmp_path / "state"
    tree.mkdir()
    run(["mount", kit.state, tree])
    try:
        for name in (".making-dead", ".making-alive"):
            (tree / "volumes" / name).touch()
        with (tree / "volumes" / ".making-alive").open("r+b") as alive:
            fcntl.flock(alive, fcntl.LOCK_EX)
            (finding,) = diagnose(target(kit), places, run)
            assert (finding.trouble, ".making-alive" in finding.evidence) == (Trouble.MAKERS, False)
            assert cured(kit, places)[0] == []
            assert [path.name for path in (tree / "volumes").iterdir()] == [".making-alive"]
    finally:
        run(["umount", tree])
    kit.deactivate()


def test_a_copy_is_not_looked_at_while_its_original_is_active(healthy: Made, kit: Made, places: Places) -> None:
    healthy.activate(STATE)
    with pytest.raises(Refused, match="byte copies of each other"):
        diagnose(target(kit), places, run)
    healthy.deactivate()


def test_suspended_nodes_are_resumed(kit: Made, places: Places) -> None:
    kit.activate(POOL, CONTENT)
    for volume in (CONTENT, "pool-tpool"):
        run(["dmsetup", "suspend", "--noflush", "--nolockfs", f"{kit.vg}-{volume}"], env=environment())
    assert [f.trouble for f in diagnose(target(kit), places, run)] == [Trouble.SUSPENDED]
    assert cured(kit, places)[0] == []
    assert not [node for node in nodes_of(kit.vg) if node.suspended]
    kit.deactivate()


def test_a_needless_loop_device_is_detached(kit: Made, places: Places) -> None:
    second = Path(run(["losetup", "--find", "--show", backing(kit.device)]).out.strip())
    assert [f.trouble for f in diagnose(target(kit), places, run)] == [Trouble.LOOPS]
    assert cured(kit, places)[0] == []
    assert not (Path("/sys/block") / second.name / "loop/backing_file").exists()
