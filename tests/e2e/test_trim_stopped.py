"""The disk of a machine that does not run is trimmed in a real throw-away guest (libguestfs).

That guest takes the host's own kernel. Where the host has none (a container), it is given the emulated laptop's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from pocketcloud.hypervisor import Domain, DomainState, Hypervisor
from pocketcloud.kit.attached import Places
from pocketcloud.kit.directory import init_directory
from pocketcloud.kit.links import LinkState
from pocketcloud.kit.resting import trim_resting
from pocketcloud.locks import held
from pocketcloud.model.kit import Kit
from pocketcloud.model.machine import Mark
from pocketcloud.model.sizes import MIB
from pocketcloud.storage import open_storage
from pocketcloud.system import Completed, Runner, run
from tests.rig import emulated_laptop

HERE = "lab.demo.web.root.g1"
# Run in a mount namespace of its own: /lib/modules is there, and what is written to /usr/lib is not.
_WITH_MODULES = """
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work
mount -t overlay -o lowerdir=/usr/lib,upperdir=/mnt/upper,workdir=/mnt/work overlay /usr/lib
mkdir -p /usr/lib/modules
exec "$@"
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("virt-sparsify") is None, reason="virt-sparsify (guestfs-tools) is not installed"),
    pytest.mark.skipif(bool(emulated_laptop.missing()), reason=emulated_laptop.missing()),
]


@pytest.fixture(scope="module")
def runner() -> Runner:
    """Runs commands, virt-sparsify with a kernel it can use."""
    if list(Path("/boot").glob("vmlinuz-*")):
        return run
    kernel = emulated_laptop.kernel()
    release = kernel.name.removeprefix("vmlinuz-")
    modules = kernel.parent.parent / "lib/modules" / release
    given = {"SUPERMIN_KERNEL": str(kernel), "SUPERMIN_KERNEL_VERSION": release, "SUPERMIN_MODULES": str(modules)}

    def with_kernel(argv: Sequence[str | Path], **options: Any) -> Completed:
        if argv[0] == "virt-sparsify":
            argv = ["unshare", "--mount", "sh", "-ec", _WITH_MODULES, "sh", *argv]
            options["env"] = {**options["env"], **given}
        return run(argv, **options)

    return with_kernel


@pytest.fixture
def kit() -> Iterator[Kit]:
    with tempfile.TemporaryDirectory(prefix="pocketcloud-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield init_directory(Places(folder / "kit", folder / "run"), folder / "kit", None, now="2026-11-21T00:00:00+00:00")


def file_system(folder: Path) -> Path:
    """An image with a file system in which 64 MiB are free that were written, and one small file."""
    tree = folder / "tree"
    tree.mkdir()
    (tree / "kept").write_text("kept\n")
    (tree / "large").write_bytes(os.urandom(64 * MIB))
    image = folder / "image"
    with image.open("xb") as made:
        made.truncate(256 * MIB)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, image], check=True)
    subprocess.run(["debugfs", "-w", "-R", "rm /large", image], check=True, capture_output=True)
    return image


class Machine:
    """One machine as libvirt has it, first as it is listed and then as it is looked at once more."""

    def __init__(self, kit: Kit, path: Path, *states: DomainState, saved: bool = False) -> None:
        self._states = states or (DomainState.OFF,)
        self._domain = Domain("x", Mark("k", kit.id, "demo", "web"), self._states[0], {"vda": path}, agent=False, saved=saved)

    def domains(self, _kit_id: str) -> tuple[Domain, ...]:
        return (self._domain,)

    def domain(self, _name: str) -> Domain:
        return replace(self._domain, state=self._states[-1])


def domain(kit: Kit, path: Path, *states: DomainState, saved: bool = False) -> Hypervisor:
    return cast("Hypervisor", Machine(kit, path, *states, saved=saved))


def test_it_is_trimmed_and_whole(kit: Kit, tmp_path: Path, runner: Runner) -> None:
    store = open_storage(kit)
    path = store.create(HERE, 256 * MIB).path
    run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", file_system(tmp_path), path])
    before = path.stat().st_blocks * 512
    said: list[tuple[float, str]] = []

    trim = partial(trim_resting, kit, emulated=True, progress=lambda part, name: said.append((part, name)))
    locks = tmp_path / "run" / "locks"
    # Those that must not be touched are not.
    assert trim(domain(kit, path, DomainState.RUNNING), store, locks, runner).state is LinkState.LEFT_OUT
    assert "not off any more" in trim(domain(kit, path, DomainState.OFF, DomainState.RUNNING), store, locks, runner).text
    assert "memory is saved" in trim(domain(kit, path, saved=True), store, locks, runner).text
    with held(locks, f"{kit.id}.demo", "pocketcloud lab up demo", wait=False):
        assert "lab up demo" in trim(domain(kit, path), store, locks, runner).text
    assert "none of its disks" in trim(domain(kit, tmp_path / "image"), store, locks, runner).text
    assert path.stat().st_blocks * 512 == before

    link = trim(domain(kit, path), store, locks, runner)
    assert (link.name, link.state, link.text) == ("stopped machines", LinkState.PASSED, "1 trimmed in a guest of its own")
    assert said[-1] == (0.0, "demo.web")
    assert before - path.stat().st_blocks * 512 > 60 * MIB
    raw = tmp_path / "raw"
    run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw])
    subprocess.run(["e2fsck", "-fn", raw], check=True, capture_output=True)
    kept = subprocess.run(["debugfs", "-R", "cat /kept", raw], check=True, capture_output=True, text=True).stdout
    assert kept == "kept\n"


def test_a_disk_that_is_none_for_it_is_told_of(kit: Kit, tmp_path: Path, runner: Runner) -> None:
    store = open_storage(kit)
    path = store.create(HERE, 64 * MIB).path
    path.write_bytes(b"no image at all")
    link = trim_resting(
        kit, domain(kit, path), store, tmp_path / "locks", runner, emulated=True, progress=lambda _part, _name: None
    )
    assert link.state is LinkState.LEFT_OUT
    assert "demo.web (" in link.text
