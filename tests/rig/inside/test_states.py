"""States of a lab on a kit on LVM, by the real command line on real libvirt, QEMU, lvm2 and dm-thin: guests are boot sectors,
the disks' content is written and read on the host. Taken, gone back to in any order, undone, forgotten; and killed on the way.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketcloud.bases import records
from pocketcloud.hypervisor.libvirt import LibvirtHypervisor
from pocketcloud.kit.attached import Places, find_kit
from pocketcloud.model.base import Arch, Base, Firmware
from pocketcloud.model.names import Name
from pocketcloud.storage.devmapper import nodes
from pocketcloud.system import run
from tests.bootsector import write_disk
from tests.fault.states_campaign import INSTANCE, VERBS, WITHOUT_NETWORK, StatesBed, block_of_cases
from tests.labkit import GREETING, TOP, LabKit
from tests.rig.inside.test_lab import SOCKET, cli, fill

PATIENCE = 3000.0
# Of each verb, in whole runs.
CASES = 8


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StatesBed]:
    run(["modprobe", "-a", "loop", "dm_thin_pool", "ext4"])
    with contextlib.ExitStack() as undo:
        for name in ("virtlogd", "libvirtd"):
            daemon = subprocess.Popen([name], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            undo.callback(daemon.wait)
            undo.callback(daemon.terminate)
        until = time.monotonic() + 60
        while not SOCKET.exists() and time.monotonic() < until:
            time.sleep(0.1)
        folder = tmp_path_factory.mktemp("states")
        cli(folder, "kit", "init", "--file", folder / "usb.img", "--size", "2GiB", "--name", "usb", "-y")
        env = os.environ | {
            "POCKETCLOUD_DEFAULT_KIT": str(folder / "default"),
            "POCKETCLOUD_RUN_DIR": "/run/pocketcloud",
            "PYTHONPATH": str(TOP),
        }
        kit = LabKit(folder, find_kit(Places(folder / "default", Path("/run/pocketcloud")), "usb"), env)
        image = write_disk(folder / "tiny.img", GREETING)
        volume = f"base.tiny.{Arch.X86_64}.{secrets.token_hex(4)}"
        kit.storage.create(volume, image.stat().st_size, lambda target: fill(target, image.read_bytes()))
        records.write(kit.kit, Base(Name("tiny"), Arch.X86_64, "d1", volume, Firmware.BIOS, "2026-11-21T00:00:00+00:00"))
        hypervisor = undo.enter_context(contextlib.closing(LibvirtHypervisor.connect()))
        made = StatesBed(kit, hypervisor, PATIENCE, WITHOUT_NETWORK)
        made.begin()
        yield made
        made.lab("destroy", str(INSTANCE), "-y").expect(0)
        assert [found.name for found in kit.storage.volumes()] == [volume]
        cli(folder, "kit", "detach", "usb", "-y")
        assert nodes() == ()


def test_states_are_gone_back_to_in_any_order(bed: StatesBed) -> None:
    bed.lab("snapshot", f"{INSTANCE}@two").expect(0)
    for verb, state, carried in (
        ("restore", "@one", "A"),
        ("undo", "", "B"),
        ("reset", "", "\0"),
        ("restore", "@two", "B"),
        ("restore", "@clean", "\0"),
        ("restore", "@one", "A"),
        ("restore", "@two", "B"),
    ):
        bed.lab(verb, f"{INSTANCE}{state}", "-y").expect(0)
        assert bed.stamp() == carried, f"{verb} {state}"
    told = bed.lab("tree", str(INSTANCE), "-o", "json").json()
    assert {node["name"]: node["parent"] for node in told["states"]} == {  # type: ignore[attr-defined] # JSON
        "clean": "",
        "one": "clean",
        "two": "one",
        "undo": "one",
    }
    bed.lab("forget", f"{INSTANCE}@two", "-y").expect(0)
    bed.check_settled()
    assert bed.stamp() == "B"


def test_memory_is_kept_on_the_kits_media_and_woken_with_the_disks_of_its_moment(bed: StatesBed) -> None:
    bed.lab("snapshot", f"{INSTANCE}@asleep", "--ram").expect(0)
    kept = sorted((bed.kit.path / "media" / "ram").iterdir())
    assert [path.name for path in kept] == sorted(bed.record.memories())
    assert len(kept) == len(bed.record.machines)
    consoles = [bed.kit.files(INSTANCE).console(name) for name in bed.record.machines]
    for options, greets in (((), False), (("--cold",), True)):
        bed.lab("reset", str(INSTANCE), "-y").expect(0)
        assert bed.stamp() == "\0"
        for console in consoles:
            console.write_text("")
        bed.lab("restore", f"{INSTANCE}@asleep", "-y", *options).expect(0)
        assert bed.stamp() == "B"
        assert [GREETING in console.read_text(errors="replace") for console in consoles] == [greets] * len(consoles)
    bed.lab("forget", f"{INSTANCE}@asleep", "-y").expect(0)
    assert not list((bed.kit.path / "media" / "ram").iterdir())
    bed.check_settled()


@pytest.mark.parametrize("verb", VERBS)
def test_killed_somewhere_it_is_completed(bed: StatesBed, verb: str) -> None:
    before = bed.cases
    block_of_cases(bed, verb, CASES)
    assert bed.cases > before
