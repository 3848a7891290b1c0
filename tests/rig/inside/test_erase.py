"""Kits are erased when their disk's serial is given, and nothing else is: other partitions, other disks, other volume groups."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketcloud.cli import kit_care
from pocketcloud.errors import NotFound, NotOurs, PartlyDone, Refused, UsageError
from pocketcloud.host import kits as host
from pocketcloud.kit.aside import aside
from pocketcloud.kit.attached import Places, attached_kits
from pocketcloud.kit.device import init_file, plan_file
from pocketcloud.kit.erase import Erasure, confirm, erase, plan_erasure, shown
from pocketcloud.kit.interlocks import confirmation
from pocketcloud.kit.target import opened
from pocketcloud.model.sizes import GIB, MIB
from pocketcloud.storage.devmapper import nodes_of
from pocketcloud.storage.thin_volumes import CONTENT, POOL, STATE
from pocketcloud.system import Runner, run
from tests.contract.stores import Watched
from tests.rig.inside.made import NOW, Kill, Made, backing, copied, digest, killed, loop, make_kit, unloop
from tests.rig.inside.ram_disks import ram_disks

pytestmark = pytest.mark.sampled(20)

BIG = 3 * GIB
DISK, DECOY = Path("/dev/ram0"), Path("/dev/ram1")


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.setenv("POCKETCLOUD_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("POCKETCLOUD_DEFAULT_KIT", str(tmp_path / "none"))
    return Places.from_environment()


@pytest.fixture
def kit(tmp_path: Path) -> Made:
    """A kit in a file, detached and without its loop device."""
    made = make_kit(loop(tmp_path / "kit.img", BIG), "first", "pc_aaaaaa")
    unloop(made.device)
    return made


@pytest.fixture
def disks() -> Iterator[tuple[Path, Path]]:
    """Two RAM disks of 4 GiB, which take partitions."""
    run(["modprobe", "-a", "loop", "dm_thin_pool"])
    ram_disks()
    with DECOY.open("r+b", buffering=0) as decoy:
        decoy.write(b"somebody's data" * 4096)
    yield DISK, DECOY
    run(["rmmod", "brd"])


def called(*words: str) -> None:
    """The command line, as it is typed."""
    command = kit_care.erase if words[0] == "erase" else kit_care.repair
    command.main(list(words[1:]), standalone_mode=False)


def planned(what: Path, places: Places) -> Erasure:
    with opened(str(what), places, run) as target:
        return plan_erasure(target, places, run)


def partitioned(disk: Path, *rows: str) -> None:
    run(["sfdisk", "--quiet", disk], stdin="\n".join(["label: gpt", *rows, ""]).encode())


@pytest.mark.usefixtures("places")
def test_a_kit_in_a_file_is_erased_and_its_file_kept(kit: Made, tmp_path: Path) -> None:
    file = tmp_path / "kit.img"
    before = digest(file)
    for wrong in ([], ["--erase-serial", "another"]):
        with pytest.raises((Refused, UsageError)):
            called("erase", str(file), *wrong)
        assert digest(file) == before
    called("erase", str(file), "--dry-run")
    assert digest(file) == before
    called("erase", str(file), "--erase-serial", str(file))
    assert file.stat().st_size == BIG
    assert file.stat().st_blocks * 512 < MIB, "its space is given back"
    assert not host.loops_of(file)
    device = loop(file)
    assert not host.has_label(device)
    unloop(device)
    with pytest.raises(NotFound):
        called("erase", str(file), "--erase-serial", str(file))
    assert not nodes_of(kit.vg)


@pytest.mark.usefixtures("places", "kit")
def test_its_file_goes_too_if_that_is_meant(tmp_path: Path) -> None:
    file = tmp_path / "kit.img"
    called("erase", str(file), "--erase-serial", str(file), "-y")
    assert not file.exists()


@pytest.mark.usefixtures("places")
def test_a_kit_that_was_never_finished_goes_too(tmp_path: Path) -> None:
    file = tmp_path / "half.img"
    device = loop(file, BIG)
    make_kit(device, "half", "pc_halfha", stop_after=5)
    unloop(device)
    called("erase", str(file), "--erase-serial", str(file), "-y")
    assert not file.exists()
    assert not nodes_of("pc_halfha")


@pytest.mark.parametrize("by", ["name", "file"])
def test_an_attached_kit_is_detached_first(places: Places, tmp_path: Path, by: str) -> None:
    file = tmp_path / "tried.img"
    made = init_file(plan_file(places, file, BIG, "tried", 64 * 1024, run), file, places, run, now=NOW)
    with (made.path / "media" / "open").open("w"), pytest.raises(Refused, match="in use"):
        called("erase", "tried", "--erase-serial", str(file))
    assert [kit.name for kit in attached_kits(places)] == ["tried"]
    called("erase", "tried" if by == "name" else str(file), "--erase-serial", str(file), "-y")
    assert not file.exists()
    assert not attached_kits(places)
    assert not nodes_of(made.vg)


def test_a_whole_disk_is_given_back_and_no_other_is_touched(disks: tuple[Path, Path], places: Places) -> None:
    disk, decoy = disks
    before = digest(decoy)
    partitioned(disk, 'start=1024MiB, type=E6D6D379-F507-44C2-A23C-238F2A3DF928, name="pocketcloud"')
    kit = make_kit(Path("/dev/ram0p1"), "first", "pc_bbbbbb")
    erasure = planned(disk, places)
    assert (erasure.whole.name, erasure.carrier.name) == ("ram0", "ram0p1")
    assert any(kit.id in line for line in shown(erasure))
    with pytest.raises(UsageError, match="not empty"):
        confirm(erasure, None, None)
    with pytest.raises(Refused):
        confirm(erasure, None, lambda _: "no")
    called("erase", str(disk), "--erase-serial", confirmation(erasure.devices, erasure.whole), "--discard")
    assert run(["wipefs", "--noheadings", disk]).out == ""
    assert not list(Path("/sys/block/ram0").glob("ram0p*"))
    assert digest(decoy) == before


def test_of_a_disk_with_other_partitions_only_the_kits_is_wiped(disks: tuple[Path, Path], places: Places) -> None:
    disk, _ = disks
    partitioned(disk, "start=1MiB, size=64MiB", 'start=1024MiB, name="pocketcloud"')
    run(["mkfs.ext4", "-q", "/dev/ram0p1"])
    make_kit(Path("/dev/ram0p2"), "first", "pc_cccccc")
    other = digest(Path("/dev/ram0p1"))
    erasure = planned(disk, places)
    assert erasure.whole.name == "ram0p2"
    confirm(erasure, confirmation(erasure.devices, erasure.whole), None)
    erase(erasure, run, discard=False)
    assert digest(Path("/dev/ram0p1")) == other
    assert run(["wipefs", "--noheadings", "/dev/ram0p2"]).out == ""
    assert "gpt" in run(["wipefs", "--noheadings", disk]).out


@pytest.mark.usefixtures("places")
def test_what_is_in_use_is_refused(kit: Made, tmp_path: Path) -> None:
    file = tmp_path / "kit.img"
    made = Made(loop(file), kit.vg, kit.id)
    made.activate(STATE, POOL, CONTENT)
    with aside(made.state, run), pytest.raises(Refused, match="state"):
        called("erase", str(file), "--erase-serial", str(file))
    assert host.has_label(made.device)
    # Left active by a killed command, but not in use, it can be erased.
    called("erase", str(file), "--erase-serial", str(file))
    assert not nodes_of(kit.vg)


def test_another_kit_than_the_one_shown_is_not_erased(kit: Made, places: Places, tmp_path: Path) -> None:
    made = Made(loop(tmp_path / "kit.img"), kit.vg, kit.id)
    with opened(str(tmp_path / "kit.img"), places, run) as target:
        erasure = plan_erasure(target, places, run)
        made.lvm.command("vgchange", "--deltag", f"pc:kit={kit.id}", "--addtag", "pc:kit=another", kit.vg)
        with pytest.raises(Refused, match="does not hold the kit any more"):
            erase(erasure, run, discard=False)
        assert host.has_label(made.device)


@pytest.mark.usefixtures("places")
def test_what_is_no_kit_is_left_alone(tmp_path: Path) -> None:
    device = loop(tmp_path / "other.img", BIG)
    run(["lvm", "pvcreate", "--devices", device, device])
    run(["lvm", "vgcreate", "--devices", device, "others", device])
    before = digest(backing(device))
    with pytest.raises(NotOurs):
        called("erase", str(device), "--erase-serial", str(tmp_path / "other.img"))
    assert digest(backing(device)) == before
    unloop(device)


def test_a_kill_at_any_command_that_writes_leaves_a_kit_or_none(kit: Made, places: Places, tmp_path: Path) -> None:
    pristine = loop(tmp_path / "kit.img")
    file = tmp_path / "copy.img"

    def erased(runner: Runner) -> None:
        with opened(str(file), places, runner) as target:
            erase(plan_erasure(target, places, runner), runner, discard=False)

    unloop(copied(pristine, file))
    watched = Watched()
    erased(watched)
    first = next(number for number, words in enumerate(watched.commands, 1) if words[0] == "wipefs" and "--all" in words)
    for number in range(first, len(watched.commands) + 1):
        file.unlink()
        unloop(copied(pristine, file))
        assert killed(erased, number, Kill.AFTER)
        with contextlib.suppress(NotFound):
            erased(run)
        for name in host.loops_of(file):
            unloop(host.node(name))
        assert not host.has_label(file)
        assert not nodes_of(kit.vg)
    unloop(pristine)


@pytest.mark.usefixtures("places")
def test_repair_says_what_it_sees_and_does_nothing_with_dry_run(
    kit: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "kit.img"
    called("repair", str(file), "--dry-run")
    assert "Nothing is wrong" in capsys.readouterr().out
    made = Made(loop(file), kit.vg, kit.id)
    made.activate(POOL)
    run(["dmsetup", "message", f"{kit.vg}-pool-tpool", "0", "reserve_metadata_snap"])
    made.deactivate()
    unloop(made.device)
    before = digest(file)
    with pytest.raises(PartlyDone, match="metadata snapshot"):
        called("repair", str(file), "--dry-run")
    told = capsys.readouterr().out
    assert "seen:" in told
    assert "cure:" in told
    assert digest(file) == before
    with pytest.raises(UsageError, match="nobody is there to ask"):
        called("repair", str(file))
    called("repair", str(file), "-y")
    assert "Nothing is wrong" in capsys.readouterr().out
    assert not host.loops_of(file)
