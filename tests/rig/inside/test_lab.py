"""Labs on a kit on LVM, by the real command line on real libvirt and QEMU: guests are boot sectors that print a line, disks are
thin volumes. Up, its clean state taken, reset with spares, pulled back after a detach, destroyed."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketcloud.bases import records
from pocketcloud.check.judgement import Surroundings
from pocketcloud.check.space import free_space
from pocketcloud.host import read_facts
from pocketcloud.hypervisor import open_hypervisor
from pocketcloud.kit.attached import Places, find_kit
from pocketcloud.model.base import Arch, Base, Firmware
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import GIB
from pocketcloud.storage import open_storage
from pocketcloud.storage.devmapper import nodes
from pocketcloud.system import run, which
from tests.bootsector import write_disk
from tests.contract.stores import TOP

LAB = """\
lab: tiny
machines:
  web: {base: tiny, memory: 16MiB, ready: {console: hello, within: 10m}}
  db: {base: tiny, memory: 16MiB, ready: {console: hello, within: 10m}}
"""
SOCKET = Path("/run/libvirt/libvirt-sock")


@pytest.fixture(scope="module", autouse=True)
def libvirt() -> Iterator[None]:
    """libvirt's daemons, of this boot only."""
    run(["modprobe", "-a", "loop", "dm_thin_pool", "ext4"])
    daemons = [subprocess.Popen([name], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for name in ("virtlogd", "libvirtd")]
    for _ in range(600):
        if SOCKET.exists():
            break
        time.sleep(0.1)
    yield
    for daemon in daemons:
        daemon.terminate()
        daemon.wait()


def cli(folder: Path, *arguments: object, code: int = 0) -> str:
    env = os.environ | {
        "POCKETCLOUD_DEFAULT_KIT": str(folder / "default"),
        "POCKETCLOUD_RUN_DIR": "/run/pocketcloud",
        "PYTHONPATH": str(TOP),
    }
    argv = [sys.executable, "-m", "pocketcloud", *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, env=env, check=False, stdin=subprocess.DEVNULL, timeout=5000)
    assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_a_lab_lives_on_thin_volumes(tmp_path: Path) -> None:
    places = Places(tmp_path / "default", Path("/run/pocketcloud"))
    file, lab = tmp_path / "usb.img", tmp_path / "tiny.yaml"
    lab.write_text(LAB)
    cli(tmp_path, "kit", "init", "--file", file, "--size", "2GiB", "--name", "usb", "-y")
    kit = find_kit(places, "usb")
    storage = open_storage(kit)
    image = write_disk(tmp_path / "tiny.img", "hello from a thin volume")
    volume = f"base.tiny.{Arch.X86_64}.{secrets.token_hex(4)}"
    storage.create(volume, image.stat().st_size, lambda target: fill(target, image.read_bytes()))
    records.write(kit, Base(Name("tiny"), Arch.X86_64, "d1", volume, Firmware.BIOS, "2026-11-21T00:00:00+00:00"))

    here = Surroundings(read_facts(), kit.path, run, open_hypervisor, Path("/"), which, kit=kit)
    free, where = free_space(here)
    assert where == "the pool of kit usb"
    assert GIB < free < 2 * GIB, "what the disks may take, and not what the small volume with the records has free"

    cli(tmp_path, "lab", "up", lab)
    told = json.loads(cli(tmp_path, "lab", "status", "tiny", "-o", "json"))
    assert [machine["state"] for machine in told["machines"]] == ["running", "running"]
    xml = run(["virsh", "dumpxml", "usb.tiny.web"]).out
    assert f"<source dev='/dev/{kit.vg}/" in xml
    assert "cache='none'" in xml
    assert "error_policy='stop' rerror_policy='stop'" in xml
    assert "discard='unmap'" in xml
    spares = {found.name for found in storage.volumes() if found.spare}
    assert len(spares) == 2
    cli(tmp_path, "kit", "erase", "usb", "--erase-serial", file, code=5)  # while its machines run

    cli(tmp_path, "lab", "reset", "tiny", "-y")
    live = {found.name for found in storage.volumes() if not found.spare}
    assert spares <= live, "the reset took what was prepared"
    assert len({found.name for found in storage.volumes() if found.spare} - spares) == 2, "and prepared the next"

    cli(tmp_path, "kit", "detach", "usb", "-y", "--force")
    assert nodes() == ()
    assert "usb." not in run(["virsh", "list", "--all", "--name"]).out
    cli(tmp_path, "kit", "attach", file)
    assert "usb.tiny.web" in run(["virsh", "list", "--all", "--name"]).out
    cli(tmp_path, "lab", "up", "tiny")
    cli(tmp_path, "lab", "destroy", "tiny", "-y")
    assert [found.name for found in storage.volumes()] == [volume]
    cli(tmp_path, "kit", "detach", "usb", "-y")
    assert nodes() == ()


def fill(target: Path, content: bytes) -> None:
    with target.open("r+b") as file:
        file.write(content)
