"""The lab `nested`, really up: in its machine pocketcloud judges what it finds there, and raises a lab of its own, on none of
the subnets around it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import IPv4Network

import pytest

from pocketcloud.records import read_record
from tests.labkit import LabKit, lab_kit

# The first test counts the build of the base and the first start, which share a busy host.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

LAB, MACHINE = "nested", "outer"
# A machine in a machine, both emulated.
LONG = 3600.0


@pytest.fixture(scope="module")
def kit() -> Iterator[LabKit]:
    with lab_kit() as made:
        made.cli("base", "build", "pocketcloud", timeout=LONG).expect(0)
        made.cli("lab", "up", LAB, timeout=LONG).expect(0)
        yield made


def inside(kit: LabKit, command: str, code: int = 0) -> str:
    return kit.cli("lab", "exec", LAB, MACHINE, "--", command, timeout=LONG).expect(code).out


def test_it_has_a_kit_of_its_own(kit: LabKit) -> None:
    record = read_record(kit.files(LAB))
    assert record is not None
    assert "kit" in record.machines[MACHINE].disks, "the base gives it one"  # type: ignore[index] # a Name is text
    (found,) = json.loads(inside(kit, "pocketcloud kit list -o json"))
    assert found["name"] == "inner"
    assert found["storage"] == "lvm"


def test_check_answers_inside(kit: LabKit) -> None:
    ran = kit.cli("lab", "exec", LAB, MACHINE, "--", "pocketcloud check -o json", timeout=LONG)
    found = json.loads(ran.out)
    states = {check["id"]: check["state"] for check in found}
    assert states["architecture"] == states["libvirt"] == "ok"
    # What is slow in an emulated machine may be a failure there, as its disk; that the answer is whole counts.
    assert [name for name in states if name.endswith("-unfinished")] == []
    assert ran.code in (0, 3)


def test_a_lab_comes_up_inside_on_a_subnet_of_its_own(kit: LabKit) -> None:
    record = read_record(kit.files(LAB))
    assert record is not None
    around = {IPv4Network(line) for line in inside(kit, "cat /etc/pocketcloud/outer-subnets").split()}
    assert {network.subnet for network in record.networks.values()} <= around
    print(inside(kit, "cd /root && pocketcloud lab up"))
    told = json.loads(inside(kit, "pocketcloud lab status tiny -o json"))
    assert {each["machine"]: each["state"] for each in told["machines"]} == {"first": "running", "second": "running"}
    assert not any(IPv4Network(told["networks"]["inside"]).overlaps(subnet) for subnet in around)
    print(inside(kit, "pocketcloud lab reset tiny -y && pocketcloud lab destroy tiny -y"))
