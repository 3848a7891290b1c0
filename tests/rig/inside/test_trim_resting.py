"""The disk of a machine that does not run, a thin volume, is trimmed in a real throw-away guest (libguestfs) inside User-Mode
Linux: what the guest frees comes back to the pool. tests/e2e/test_trim_stopped.py does the same with qcow2 on the host."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from pocketcloud.kit.attached import Places, find_kit
from pocketcloud.kit.links import LinkState
from pocketcloud.kit.resting import trim_resting
from pocketcloud.model.sizes import MIB
from pocketcloud.storage import open_storage
from pocketcloud.storage.devmapper import nodes
from pocketcloud.system import Runner, run
from tests.e2e.test_trim_stopped import HERE, domain, file_system, runner  # noqa: F401 - runner is a fixture
from tests.rig.inside.test_lab import cli

pytestmark = pytest.mark.slow
DISK = Path("/dev/ubda")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A place for large files: a disk of the rig's, as what is written elsewhere takes memory."""
    run(["modprobe", "-a", "loop", "dm_thin_pool", "ext4"])
    run(["mkfs.ext4", "-q", DISK])
    place = tmp_path / "disk"
    place.mkdir()
    run(["mount", DISK, place])
    yield place
    cli(place, "kit", "detach", "usb", "-y", "--force")
    assert nodes() == ()
    run(["umount", place])


def test_what_its_guest_frees_comes_back_to_the_pool(
    folder: Path,
    tmp_path: Path,
    runner: Runner,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (folder / "guestfs").mkdir()
    monkeypatch.setenv("LIBGUESTFS_CACHEDIR", str(folder / "guestfs"))
    monkeypatch.setenv("LIBGUESTFS_TMPDIR", str(folder / "guestfs"))
    cli(folder, "kit", "init", "--file", folder / "usb.img", "--size", "6GiB", "--name", "usb", "-y")
    kit = find_kit(Places(folder / "default", Path("/run/pocketcloud")), "usb")
    store = open_storage(kit)
    path = store.create(HERE, 256 * MIB).path
    store.activate(HERE)
    assert path.is_block_device()
    image = file_system(tmp_path)
    run(["dd", f"if={image}", f"of={path}", "bs=1M", "conv=notrunc,sparse,fsync"])
    image.unlink()
    before = store.usage().used

    trim = partial(trim_resting, kit, emulated=True, progress=lambda _part, _name: None)
    link = trim(domain(kit, path), store, tmp_path / "locks", runner)
    assert (link.state, link.text) == (LinkState.PASSED, "1 trimmed in a guest of its own")
    freed = before - store.usage().used
    print(f"{freed // MIB} MiB came back to the pool")
    assert freed > 60 * MIB
    subprocess.run(["e2fsck", "-fn", path], check=True, capture_output=True)
    kept = subprocess.run(["debugfs", "-R", "cat /kept", path], check=True, capture_output=True, text=True).stdout
    assert kept == "kept\n"
