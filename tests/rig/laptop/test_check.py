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
    argv = [sys.executable, "-m", "pocketcloud", "check", "--no-measure", "--fix", "-y", "-o", "json"]
    fixed = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
    assert fixed.returncode in (0, 8), "other things may be left"
    done = {entry["id"]: entry for entry in json.loads(fixed.stdout)}
    print(json.dumps(done, indent=1))
    assert (done["nesting"]["outcome"], done["nesting"]["state"]) == ("done", "ok"), done["nesting"]
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
