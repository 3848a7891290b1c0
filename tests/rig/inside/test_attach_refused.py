"""Kits that are refused are left as they were."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pocketcloud.errors import NotFound, NotOurs, Refused
from pocketcloud.kit.attached import Places
from pocketcloud.kit.device import init_file, plan_file
from pocketcloud.model.sizes import GIB, KIB, MIB
from pocketcloud.storage.devmapper import nodes
from pocketcloud.system import Completed, run
from tests.rig.inside.filed import Filed, attached, detached
from tests.rig.inside.made import NOW, SIZE, digest, loop, make_kit, unloop

pytestmark = pytest.mark.sampled(20)


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
    with pytest.raises(NotFound, match=r"kit half on .* is not finished") as refused:
        attached(places, device)
    erase = f"pocketcloud kit erase -y {tmp_path}/half.img"
    assert f"{erase}; pocketcloud kit init --file {tmp_path}/half.img --size {SIZE // MIB}MiB" in refused.value.hint
    # As `kit init --file` leaves it when it is killed.
    unloop(device)
    (tmp_path / "half.img").rename(tmp_path / ".kit.img.unfinished")
    device = loop(tmp_path / ".kit.img.unfinished")
    with pytest.raises(NotFound, match="is not finished") as refused:
        attached(places, device)
    assert f": pocketcloud kit init --file {tmp_path}/kit.img --size {SIZE // MIB}MiB;" in refused.value.hint
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


def test_a_state_volume_that_somebody_holds(places: Places, kit: Filed) -> None:
    holders = list[subprocess.Popen[bytes]]()

    def held(argv: Sequence[str | Path], **options: Any) -> Completed:
        done = run(argv, **options)
        if argv[0] == "mount" and not holders:
            holders.append(subprocess.Popen(["sleep", "600"], cwd=argv[-1]))
        return done

    with pytest.raises(Refused, match=r"sleep \(\d+\)") as refused:
        attached(places, kit.path, runner=held)
    assert "e2fsck" not in str(refused.value)
    holders[0].kill()
    holders[0].wait()
    done = attached(places, kit.path)
    assert done.kit.id == kit.made.id
    (device,) = done.kit.devices
    assert (Path("/sys/block") / device.name / "loop/autoclear").read_text() == "0\n", "the kernel would take it away"
    detached(places)
