"""What `check` says of many computers: each has its files, and what KVM and libvirt said there, in tests/hosts/NAME/host.yaml
with where that comes from, and beside it what is expected (POCKETCLOUD_GOLDEN=write renews it; read the difference)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pocketcloud.check import Check, State, disks, failed, run_checks
from pocketcloud.check.judgement import Surroundings
from pocketcloud.host import read_facts
from pocketcloud.hypervisor import Hypervisor, HypervisorFacts
from pocketcloud.model.base import Arch
from pocketcloud.model.disk import BlockDevice, Measured, Scsi
from pocketcloud.model.facts import Subnet
from pocketcloud.model.inventory import LibvirtNetwork
from pocketcloud.model.sizes import GIB
from pocketcloud.model.usb import Twin
from tests.host_trees import plant
from tests.mocked_disks import missing, read_mocked
from tests.recorded import Recorded

HOSTS = Path(__file__).parents[1] / "hosts"
# Of these only what the host's own files, KVM and its disks decide is held against what is expected; the disks are read from what
# umockdev recorded (*.umockdev), with the figures of host.yaml for a measurement.
JUDGED = ("kvm", "memory", "nesting")


def as_there(told: Mapping[str, Any]) -> Recorded:
    """A Runner that answers as the computer did; `says` is what its commands say, by how they begin."""

    def tell(words: tuple[str, ...]) -> str:
        line = " ".join(words)
        if any(word.endswith("kvm_probe.py") for word in words):
            return json.dumps({"instructions": 200_000, "value": 0x600D, **told["kvm"]})
        said = next((text for begin, text in told.get("says", {}).items() if line.startswith(begin)), None)
        if said is not None:
            return str(said)
        if words[0] in ("lsblk", "wipefs"):
            return "{}"
        return "[]" if words[0] == "ip" else f"{Path(words[0]).name} 9.9.9\n"

    return Recorded(tell)


class Libvirt:
    """libvirt as it answered there."""

    def __init__(self, features: Sequence[str]) -> None:
        self._features = frozenset(features)

    def facts(self) -> HypervisorFacts:
        return HypervisorFacts("qemu:///system", "11.0.0", "10.0.0", tuple(Arch), tuple(Arch))

    def cpu_features(self, _arch: Arch) -> frozenset[str]:
        return self._features

    def subnets(self) -> tuple[Subnet, ...]:
        return ()

    def networks(self) -> tuple[LibvirtNetwork, ...]:
        return ()


def judged(name: str, scratch: Path) -> tuple[Check, ...]:
    told = YAML(typ="safe", pure=True).load(HOSTS / name / "host.yaml")
    assert told["source"].strip(), "where it comes from"
    root = scratch / "root"
    plant(root, told["files"])
    plant(root, {"etc/passwd": "qemu:x:107:107::/:/sbin/nologin\n", "etc/group": "kvm:x:36:qemu\n"})
    if "kvm" in told:
        plant(root, {"dev/kvm": ""})
        (root / "dev/kvm").chmod(0o666)
    run = as_there(told)
    facts = read_facts(root, run=run)

    def connect() -> Hypervisor:
        return Libvirt(told.get("features", ()))  # type: ignore[return-value] # as much of one as checks ask

    def find(tool: str) -> Path:
        return Path("/usr/bin") / tool

    found = run_checks(facts, kit_path=Path("/"), run=run, hypervisor=connect, root=root, find=find)
    wanted = {*JUDGED, *(("lvm",) if "says" in told else ())}
    checks = [check for check in found if check.group in wanted]
    if recordings := sorted((HOSTS / name).glob("*.umockdev")):

        def measure(disk: BlockDevice) -> Measured | None:
            figures = told.get("measured", {}).get(disk.name)
            return Measured(**figures) if figures else None

        here = Surroundings(facts, Path("/"), run, connect, root, find, measure=measure)
        vars(here)["disks"] = read_mocked(recordings, told["files"], scratch)
        checks += [check for check in disks.judge(here) if not check.id.startswith("speed:")]
    return tuple(checks)


@pytest.mark.parametrize("name", sorted(folder.name for folder in HOSTS.iterdir()))
def test_a_computer_is_judged_as_expected(name: str, tmp_path: Path) -> None:
    if list((HOSTS / name).glob("*.umockdev")) and (reason := missing()):
        pytest.skip(reason)
    checks = judged(name, tmp_path)
    text = json.dumps([_told(check, tmp_path / "root") for check in checks], indent=1, ensure_ascii=False) + "\n"
    expected = HOSTS / name / "expected.json"
    if os.environ.get("POCKETCLOUD_GOLDEN") == "write":
        expected.write_text(text, encoding="utf-8")
    assert text == expected.read_text(encoding="utf-8")
    for check in checks:
        assert check.why.endswith(".")
        assert check.evidence
        assert bool(check.remedy) <= (check.state in (State.WARN, State.FAIL, State.UNKNOWN))
    assert failed(checks) == any(check.state is State.FAIL for check in checks)


def _told(check: Check, root: Path) -> dict[str, object]:
    evidence = check.evidence.replace(f"{root}", "")
    told: dict[str, object] = {"id": check.id, "state": check.state, "evidence": evidence, "remedy": check.remedy}
    return {**told, "fixable": True} if check.fix else told


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_a_recorded_disk_is_read_whole_and_no_other(tmp_path: Path) -> None:
    """By lsblk, udev's library and our own reading of sysfs, none of which may see this machine's own disks."""
    (disk,) = read_mocked(sorted((HOSTS / "emulated-laptop-uas").glob("*.umockdev")), {}, tmp_path)
    assert (disk.name, disk.size, disk.number, disk.diskseq) == ("sda", GIB, "8:0", 3)
    assert (disk.model, disk.serial) == ("PocketSSD", "27842-0000:00:09.0-1")
    assert disk.port == "pci-0000:00:09.0-usb-0:1:1.0-scsi-0:0:0:0", "udev alone knows that"
    assert disk.scsi == Scsi("6:0:0:0", "unmap", "write back", declares_unmap=True, unmap_max=GIB)
    assert disk.usb is not None
    assert [hop.name for hop in disk.usb.hops] == ["3-1", "usb3"]
    assert (disk.usb.driver, disk.usb.offers_uas, disk.usb.autosuspend) == ("uas", True, False)
    assert (disk.usb.disk.twin, disk.usb.disk.self_powered, disk.usb.disk.power) == (Twin.FREE, True, 0)
