"""`pocketcloud check` on a computer with nested AMD virtualisation and USB disks: switched off and on, in each port, by UAS and
by usb-storage."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pocketcloud.check import Check, State, disks
from pocketcloud.check.fixes import carry_out
from pocketcloud.check.judgement import Surroundings
from pocketcloud.errors import HostLacks
from pocketcloud.host import read_facts
from pocketcloud.hypervisor import Hypervisor
from pocketcloud.system import run, which
from tests.rig.emulated_laptop import kernel
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
        if check["group"] in ("storage", "deep"):
            print(name, check["state"], check["evidence"], check["remedy"])
    return found


def sh(line: str) -> None:
    subprocess.run(["sh", "-ec", line], check=True)


def test_the_remedy_for_nesting_helps() -> None:
    """The one of these that `make test` runs: what `--fix` does, by hand."""
    sh("modprobe -r kvm_amd; modprobe kvm_amd nested=0")
    found = checks("--no-measure")
    assert found["kvm"]["state"] == "ok", found["kvm"]
    assert found["nesting"]["state"] == "warn"
    for line in found["nesting"]["remedy"]:
        sh(line)
    found = checks("--no-measure")
    assert found["nesting"]["state"] == "ok"
    assert found["nesting-speed"]["state"] == "ok"


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


@pytest.fixture
def as_installed() -> Iterator[None]:
    """KVM that nests, the laptop's kernel in its /boot, as on a system that it was installed on, and libvirt's daemon."""
    sh("modprobe -r kvm_amd; modprobe kvm_amd nested=1; udevadm settle")
    sh(f"mount --bind {kernel().parent} /boot; mkdir -p /var/log/libvirt; virtlogd -d; libvirtd -d")
    # It tries every QEMU there is, which takes the one processor that KVM is to be timed on.
    sh("virsh capabilities >/run/capabilities")
    yield
    # By its process's number: the host's daemon has another, which is not seen here.
    sh("kill $(cat /run/libvirtd.pid); umount /boot")


def deep_checks() -> dict[str, dict[str, Any]]:
    """With guests; once more where the host was too busy for the loop to look like one that a processor runs."""
    for _ in range(3):
        if (found := checks("--no-measure", "--deep"))["kvm"]["state"] == "ok":
            return found
    return checks("--no-measure", "--deep")


@pytest.mark.usefixtures("as_installed")
def test_guests_prove_what_the_setting_says() -> None:
    found = deep_checks()
    assert found["deep-boot"]["state"] == "ok"
    assert "under KVM, started through libvirt" in found["deep-boot"]["evidence"]
    assert found["deep-nesting"]["state"] == "ok"
    assert "in a guest of its own" in found["deep-nesting"]["evidence"]
    sh("modprobe -r kvm_amd; modprobe kvm_amd nested=0; udevadm settle")
    found = deep_checks()
    assert found["deep-boot"]["state"] == "ok"
    assert found["deep-nesting"]["state"] == "warn"
    assert "does not load its kvm-amd" in found["deep-nesting"]["evidence"]
    assert "modprobe -r kvm_amd" in found["deep-nesting"]["remedy"]


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
        # On a busy host the emulated port is as slow as a quick hard disk; then it is done again, as the remedy says.
        for _ in range(2):
            if "each, do not tell" in found[f"medium:{device.name}"]["evidence"]:
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


def trim_of(device: Path) -> Check:
    """What is said of a disk's TRIM, without the time that all other checks take here."""

    def unreachable() -> Hypervisor:
        raise HostLacks("not asked in this test")

    here = Surroundings(read_facts(), Path("/"), run, unreachable, Path("/"), which, devices=(device,))
    (found,) = (check for check in disks.judge(here) if check.id == f"trim:{device.name}")
    print(found.id, found.state, found.evidence, found.remedy)
    return found


def test_trim_is_switched_on_where_the_disk_declares_it_and_only_there() -> None:
    """A disk that Linux has not taken for one that can be trimmed, as some bridges have it: SCSI's page B2h tells better."""
    device = plug(DISK, "xhci", 1, "uas")
    rules = Path("/etc/udev/rules.d")
    before = set(rules.glob("*"))
    try:
        (mode,) = Path("/sys/block", device.name, "device/scsi_disk").glob("*/provisioning_mode")
        mode.write_text("full\n")
        trim = trim_of(device)
        assert trim.state is State.WARN
        assert "the disk declares UNMAP, which is not used" in trim.evidence
        carry_out(trim.fix, run, Path("/"))
        assert mode.read_text().strip() == "unmap", "udev did it"
        assert trim_of(device).state is State.OK
        (rule,) = set(rules.glob("*")) - before
        assert rule.read_text().startswith("# Written by `pocketcloud check --fix`")
        assert "46f4" in rule.name
    finally:
        pull(DISK)
        for rule in set(rules.glob("*")) - before:
            rule.unlink()
    device = plug(DISK, "xhci", 1, "bot")
    try:
        trim = trim_of(device)
        assert (trim.state, trim.fix) == (State.WARN, ()), "usb-storage did not ask it, so nobody knows"
    finally:
        pull(DISK)
