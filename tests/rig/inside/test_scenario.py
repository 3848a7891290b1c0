"""The life of a kit, by the real command line: made in a file, a base, volumes three levels deep, twenty resets, its space,
detached, attached on another computer, copied byte for byte, repaired. Guests do not run here; their disks do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pocketcloud.bases import records
from pocketcloud.kit.attached import Places, find_kit
from pocketcloud.model.base import Arch, Base, Firmware
from pocketcloud.model.kit import Kit
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import MIB
from pocketcloud.storage import Clone, Storage, open_storage
from pocketcloud.storage.devmapper import nodes, pool_status
from pocketcloud.storage.lvm import Lvm
from pocketcloud.system import run
from tests.contract.stores import TOP, content, filled, write

MACHINE_ID = Path("/etc/machine-id")
DEVICES_FILE = Path("/etc/lvm/devices/system.devices")
BASE = "base.tiny.x86_64.0123abcd"
MACHINES = ("web", "db", "client")


@dataclass(frozen=True, slots=True)
class Here:
    """A computer: where it looks for kits, and how commands run on it."""

    folder: Path

    @property
    def places(self) -> Places:
        return Places(self.folder / "default", self.folder / "run")

    def cli(self, *arguments: object, code: int = 0) -> str:
        """`pocketcloud ARGUMENTS`: its answer."""
        env = os.environ | {
            "POCKETCLOUD_DEFAULT_KIT": str(self.places.default),
            "POCKETCLOUD_RUN_DIR": str(self.places.run),
            "PYTHONPATH": str(TOP),
        }
        argv = [sys.executable, "-m", "pocketcloud", *map(str, arguments)]
        done = subprocess.run(argv, capture_output=True, text=True, env=env, check=False, stdin=subprocess.DEVNULL)
        assert done.returncode == code, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def kit(self, name: str) -> Kit:
        return find_kit(self.places, name)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    run(["modprobe", "-a", "loop", "dm_thin_pool", "ext4"])
    made = Here(tmp_path)
    machine_id = MACHINE_ID.read_text() if MACHINE_ID.exists() else ""
    yield made
    MACHINE_ID.write_text(machine_id)
    assert nodes() == ()
    assert run(["losetup", "--list", "--noheadings"]).out == ""


def add_base(kit: Kit, storage: Storage) -> None:
    storage.create(BASE, 64 * MIB, filled(1, length=MIB), {"base": "tiny", "digest": "0123abcd"})
    records.write(kit, Base(Name("tiny"), Arch.X86_64, "0123abcd", BASE, Firmware.BIOS, "2026-11-21T00:00:00+00:00"))


def disk(machine: str, generation: int) -> str:
    return f"lab.demo.{machine}.root.g{generation}"


def reset(storage: Storage, generation: int) -> None:
    """The storage steps of `lab reset`, in its order: new before old, the work for the next one last."""
    names = [disk(machine, generation) for machine in MACHINES]
    storage.clone_all([Clone(disk(m, 1), name) for m, name in zip(MACHINES, names, strict=True)], reserve=True)
    storage.activate(*names)
    storage.remove(*(disk(machine, generation - 1) for machine in MACHINES))
    storage.prepare([Clone(disk(machine, 1), disk(machine, generation + 1)) for machine in MACHINES])


def test_the_life_of_a_kit(here: Here, tmp_path: Path) -> None:
    file = tmp_path / "usb.img"
    here.cli("kit", "init", "--file", file, "--size", "3GiB", "--name", "usb", "-y")
    kit = here.kit("usb")
    storage = open_storage(kit)
    add_base(kit, storage)
    sealed = content(storage, BASE)

    # Three levels: the base, what `up` made of it (clean), what the machines live on.
    storage.clone_all([Clone(BASE, disk(machine, 1), marks={"lab": "demo", "machine": machine}) for machine in MACHINES])
    for number, machine in enumerate(MACHINES):
        write(storage, disk(machine, 1), 10 + number)
    storage.clone_all([Clone(disk(machine, 1), disk(machine, 2)) for machine in MACHINES])
    clean = {machine: content(storage, disk(machine, 1)) for machine in MACHINES}
    for generation in range(3, 23):
        write(storage, disk("web", generation - 1), 99, at=8192)
        reset(storage, generation)
    names = {volume.name: volume for volume in storage.volumes()}
    assert {name for name, volume in names.items() if not volume.spare} == {
        BASE, *(disk(machine, 1) for machine in MACHINES), *(disk(machine, 22) for machine in MACHINES),
    }  # fmt: skip
    assert len([name for name, volume in names.items() if volume.spare]) == len(MACHINES)
    for number, machine in enumerate(MACHINES):
        assert content(storage, disk(machine, 22)) == clean[machine]
        assert clean[machine][0] == 10 + number
    assert content(storage, BASE) == sealed

    told = json.loads(here.cli("kit", "status", "-o", "json"))
    assert 0 < told["usage"]["used"] < told["usage"]["size"]
    assert "usb" in here.cli("kit", "status")

    assert "the disk was told of" in here.cli("kit", "detach", "usb", "-y", "--trim")
    assert nodes() == ()
    _check_metadata(file)

    # Another computer: another machine id, and an LVM devices file that lists nothing.
    MACHINE_ID.write_text("fedcba9876543210fedcba9876543210\n")
    DEVICES_FILE.parent.mkdir(exist_ok=True)
    DEVICES_FILE.write_text("VERSION=1.1.1\n")
    Path("/etc/lvm/lvmlocal.conf").write_text("devices { use_devicesfile=1 }\n")
    there = Here(tmp_path / "there")
    there.folder.mkdir()
    copy = tmp_path / "copy.img"
    run(["cp", "--sparse=always", file, copy])
    there.cli("kit", "attach", file)
    assert "usb" in there.cli("kit", "attach", copy, code=5), "a copy beside its original"
    there.cli("kit", "attach", copy, "--as", "second")
    first, second = there.kit("usb"), there.kit("second")
    assert first.id != second.id
    assert first.vg != second.vg
    assert second.manifest.derived_from == first.id
    for kit in (first, second):
        store = open_storage(kit)
        assert content(store, BASE) == sealed
        store.activate(disk("db", 22))
        assert content(store, disk("db", 22)) == clean["db"]
        write(store, disk("db", 22), 7)
    # No guest ran, so there is no record either: that is all that is found, by the volumes' tags.
    found = there.cli("kit", "repair", "usb", "--dry-run", code=8)
    assert "lab demo has volumes and no record" in found
    assert found.count("cure:") == 1
    for name in ("second", "usb"):
        there.cli("kit", "detach", name, "-y")
    there.cli("kit", "attach", copy)
    assert there.kit("second").id == second.id
    there.cli("kit", "detach", "-y")
    assert DEVICES_FILE.read_text() == "VERSION=1.1.1\n", "the host's devices file was changed"


def _check_metadata(file: Path) -> None:
    """The pool's metadata is clean by the pool tools' own judgement."""

    device = Path(run(["losetup", "--find", "--show", file]).out.strip())
    lvm = Lvm([device])
    (group,) = lvm.groups()
    lvm.command("lvchange", "-ay", f"{group.name}/pool_tmeta")
    run(["thin_check", f"/dev/{group.name}/pool_tmeta"])
    lvm.command("lvchange", "-an", f"{group.name}/pool_tmeta")
    assert pool_status(f"{group.name}-pool-tpool", run) is None
    run(["losetup", "--detach", device])
