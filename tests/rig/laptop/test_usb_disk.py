"""A real USB path under a kit: xHCI and EHCI, UAS and usb-storage, udev's daemon, other ports, and plugs that are pulled.

In order: each test takes up the kit where the one before left it, as a disk has one life.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pocketcloud.kit.attached import Places, find_kit
from pocketcloud.kit.mounts import mounts
from pocketcloud.model.kit import Kit
from pocketcloud.model.sizes import MIB
from pocketcloud.storage import open_storage
from pocketcloud.storage.devmapper import nodes
from tests.contract.stores import filled
from tests.rig.laptop.hands import plug, pull

DISK = "ssd"
BASE, ROOT = "base.tiny.x86_64.0123abcd", "lab.demo.web.root.g1"
UNDER_LOAD = 5.0


def cli(*words: object, code: int = 0) -> str:
    """`pocketcloud WORDS`: all it says."""
    argv = [sys.executable, "-m", "pocketcloud", *map(str, words)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    said = done.stdout + done.stderr
    print(f"$ pocketcloud {' '.join(argv[3:])}\n{said}", end="")
    assert done.returncode == code, f"{argv}: {done.returncode}, not {code}"
    assert "Traceback" not in said
    return said


def the_kit() -> Kit:
    return find_kit(Places.from_environment(), "usb")


def digest(kit: Kit, name: str) -> str:
    """Of a volume's content."""
    store = open_storage(kit)
    store.activate(name)
    with store.place(name)[0].open("rb") as volume:
        return hashlib.file_digest(volume, "blake2b").hexdigest()


def nothing_is_left() -> None:
    assert not nodes()
    assert not [there for there in mounts() if str(there.path).startswith("/run/pocketcloud/mounts/")]


def told_by_udev(device: Path) -> dict[str, str]:
    said = subprocess.run(["udevadm", "info", "--query=property", device], check=True, capture_output=True, text=True).stdout
    return dict(line.split("=", 1) for line in said.splitlines())


def test_the_port_and_the_bridge_are_judged() -> None:
    device = plug(DISK, "ehci", 1, "bot")
    said = cli("kit", "init", device, "--dry-run")
    assert re.search(r"480", said), "that is no USB 3 port"
    assert "usb-storage" in said
    assert "nothing was written" not in said
    pull(DISK)
    device = plug(DISK, "xhci", 1)
    said = cli("kit", "init", device, "--dry-run")
    assert re.search(r"5000|5 Gbit", said)
    assert "uas" in said.lower()
    assert not nodes()


def test_it_is_pulled_while_it_becomes_a_kit() -> None:
    (device,) = Path("/dev").glob("sd?")
    argv = [sys.executable, "-m", "pocketcloud", "kit", "init", str(device), "--name", "usb", "-y"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as init:
        until = time.monotonic() + 120
        while not nodes():
            assert init.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        pull(DISK)
        said, _ = init.communicate(timeout=300)
    print(said)
    assert init.returncode not in (0, 1)
    assert "error:" in said
    assert "Traceback" not in said
    assert json.loads(cli("kit", "list", "-o", "json")) == []
    plug(DISK, "xhci", 1)


def test_a_kit_moves_to_the_other_port() -> None:
    (device,) = Path("/dev").glob("sd?")
    serial = told_by_udev(device)["ID_SERIAL_SHORT"]
    cli("kit", "init", device, "--name", "usb", "-y")
    kit = the_kit()
    assert kit.medium == "usb"
    store = open_storage(kit)
    store.create(BASE, 16 * MIB, filled(7, length=8 * MIB))
    store.clone(BASE, ROOT)
    before = digest(kit, BASE)
    (kit.path / "media" / "note").write_text("kept")
    cli("kit", "detach")
    nothing_is_left()
    pull(DISK)
    assert "no kit is plugged in" in cli("kit", "attach", code=4)

    device = plug(DISK, "xhci", 2)
    assert told_by_udev(device)["ID_SERIAL_SHORT"] != serial, "this bridge's serial is that of its port, as some bridges' are"
    subprocess.run(["vgchange", "-aay"], check=True)
    assert not nodes(), "a plugged disk activated itself"
    cli("kit", "attach")
    moved = the_kit()
    assert (moved.id, moved.devices) == (kit.id, (Path(f"{device}1"),))
    assert [volume.name for volume in open_storage(moved).volumes()] == [BASE, ROOT]
    assert digest(moved, BASE) == before
    assert (moved.path / "media" / "note").read_text() == "kept"


def load(argv: Sequence[object]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(list(map(str, argv)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_the_disk_is_pulled_under_load() -> None:
    kit = the_kit()
    before = digest(kit, BASE)
    store = open_storage(kit)
    store.activate(ROOT)
    root = store.place(ROOT)[0]
    writers = [
        load(["sh", "-c", f"while dd if=/dev/zero of={root} bs=64K count=200 oflag=direct; do :; done"]),
        load(["sh", "-c", f"while dd if=/dev/zero of={kit.path}/media/filler bs=64K count=500 conv=fsync; do :; done"]),
    ]
    time.sleep(UNDER_LOAD)
    assert all(writer.poll() is None for writer in writers), "there was no load"
    pull(DISK)
    for writer in writers:
        writer.wait(60)  # it goes on until a write fails

    assert json.loads(cli("kit", "list", "-o", "json")) == []
    assert "no kit is plugged in" in cli("kit", "attach", code=4)
    plug(DISK, "xhci", 1)
    said = cli("kit", "attach")
    assert "had been pulled without" in said
    again = the_kit()
    assert again.id == kit.id
    assert digest(again, BASE) == before
    assert (again.path / "media" / "note").read_text() == "kept"
    cli("kit", "status")
    cli("kit", "detach")
    nothing_is_left()
    assert "Nothing is wrong." in cli("kit", "repair", "--dry-run")
    pull(DISK)
    nothing_is_left()
    assert os.listdir("/run/pocketcloud/mounts") == []  # noqa: PTH208 - a folder that may be absent should fail here
