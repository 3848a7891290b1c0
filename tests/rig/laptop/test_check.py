"""`pocketcloud check` on a computer with nested AMD virtualisation and USB disks: switched off and on, in each port, by UAS and
by usb-storage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.rig.laptop.hands import plug, pull

DISK = "ssd"
NESTED = Path("/sys/module/kvm_amd/parameters/nested")


def checks(*words: object) -> dict[str, dict[str, Any]]:
    argv = [sys.executable, "-m", "pocketcloud", "check", "-o", "json", *map(str, words)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert "Traceback" not in done.stderr
    found = {check["id"]: check for check in json.loads(done.stdout)}
    for name in ("kvm", "nesting", "nesting-speed"):
        print(name, found[name]["state"], found[name]["evidence"])
    for name, check in found.items():
        if check["group"] == "storage":
            print(name, check["state"], check["evidence"], check["remedy"])
    return found


def sh(line: str) -> None:
    subprocess.run(["sh", "-ec", line], check=True)


def test_nested_virtualisation_is_found_off_and_switched_on() -> None:
    sh("modprobe -r kvm_amd; modprobe kvm_amd nested=0")
    found = checks("--no-measure")
    assert found["kvm"]["state"] == "ok", found["kvm"]
    assert found["nesting"]["state"] == "warn"
    fixed = subprocess.run(
        [sys.executable, "-m", "pocketcloud", "check", "--no-measure", "--fix", "-y"], stdin=subprocess.DEVNULL
    )
    assert fixed.returncode in (0, 8), "other things may be left"
    assert NESTED.read_text().strip() == "1"
    found = checks("--no-measure")
    assert found["nesting"]["state"] == "ok"
    assert found["nesting-speed"]["state"] == "ok"


@pytest.mark.parametrize(
    ("controller", "kind", "usb", "words"),
    [
        ("xhci", "uas", "ok", ["5000 Mbit/s", "driver uas"]),
        ("xhci", "bot", "warn", ["5000 Mbit/s", "usb-storage does one command at a time"]),
        ("ehci", "bot", "warn", ["480 Mbit/s"]),
    ],
)
def test_the_path_of_a_disk_is_judged(controller: str, kind: str, usb: str, words: list[str]) -> None:
    device = plug(DISK, controller, 1, kind)
    try:
        found = checks("--device", device)
        assert {name.partition(":")[2] for name, check in found.items() if check["group"] == "storage"} == {device.name}
        path = found[f"usb:{device.name}"]
        assert path["state"] == usb
        assert [word for word in words if word not in path["evidence"]] == []
        rotates = Path("/sys/block", device.name, "queue/rotational").read_text().strip()
        assert rotates == ("0" if kind == "uas" else "1"), "usb-storage hides that it is an SSD"
        assert "MB/s in sequence" in found[f"speed:{device.name}"]["evidence"]
        assert found[f"medium:{device.name}"]["state"] == "ok", found[f"medium:{device.name}"]["evidence"]
    finally:
        pull(DISK)


def test_trim_is_switched_on_where_the_disk_declares_it_and_only_there() -> None:
    """A disk that Linux has not taken for one that can be trimmed, as some bridges have it: SCSI's B2h page tells better."""
    device = plug(DISK, "xhci", 1, "uas")
    rules = Path("/etc/udev/rules.d")
    before = set(rules.glob("*"))
    try:
        (mode,) = Path("/sys/block", device.name, "device/scsi_disk").glob("*/provisioning_mode")
        mode.write_text("full\n")
        trim = checks("--no-measure", "--device", device)[f"trim:{device.name}"]
        assert (trim["state"], trim["fixable"]) == ("warn", True)
        assert "the disk declares UNMAP, which is not used" in trim["evidence"]
        fix = ["--device", str(device), "--no-measure", "--fix", "-y"]
        done = subprocess.run([sys.executable, "-m", "pocketcloud", "check", *fix], stdin=subprocess.DEVNULL)
        assert done.returncode in (0, 8), "other things may be left"
        assert mode.read_text().strip() == "unmap"
        assert checks("--no-measure", "--device", device)[f"trim:{device.name}"]["state"] == "ok"
        (rule,) = set(rules.glob("*")) - before
        assert rule.read_text().startswith("# Written by `pocketcloud check --fix`")
        assert "46f4" in rule.name
    finally:
        pull(DISK)
        for rule in set(rules.glob("*")) - before:
            rule.unlink()
    device = plug(DISK, "xhci", 1, "bot")
    try:
        trim = checks("--no-measure", "--device", device)[f"trim:{device.name}"]
        assert (trim["state"], trim["fixable"]) == ("warn", False), "usb-storage did not ask it, so nobody knows"
    finally:
        pull(DISK)
