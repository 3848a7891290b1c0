"""`lab up --count`: copies side by side, one of which fails, is interrupted, or meets those of another command."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from pocketcloud.model.names import bridge_name
from pocketcloud.records import read_record
from tests.labkit import LabKit, lab_kit, raw_libvirt, until

LAB = """\
lab: tiny
machines:
  a: {base: tiny, memory: 32MiB, ready: {console: hello, within: 90s}, networks: [n]}
networks:
  n: {kind: nat}
"""


@pytest.fixture
def kit() -> Iterator[LabKit]:
    with lab_kit() as made:
        yield made


def subnets(kit: LabKit, *instances: str) -> set[str]:
    found = set()
    for instance in instances:
        record = read_record(kit.files(instance))
        assert record is not None
        found |= {str(network.subnet) for network in record.networks.values()}
    return found


def running(kit: LabKit) -> dict[str, int]:
    """libvirt's numbers of the kit's running machines."""
    found = [domain for domain in raw_libvirt().listAllDomains() if domain.name().startswith(f"{kit.kit.name}.")]
    return {domain.name().split(".", 1)[1]: domain.ID() for domain in found if domain.isActive()}


@contextlib.contextmanager
def in_the_way(kit: LabKit, instance: str, network: str) -> Iterator[None]:
    """Somebody's interface of the name that a lab's bridge is to have: the network cannot be started."""
    interface = bridge_name(kit.kit.id, instance, network)
    subprocess.run(["ip", "link", "add", interface, "type", "bridge"], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "link", "delete", interface], check=True)


@pytest.mark.sampled(5)
def test_one_copy_fails_and_the_others_come_up(kit: LabKit) -> None:
    file = kit.lab(LAB)
    with in_the_way(kit, "tiny-2", "n"):
        ran = kit.cli("lab", "up", file, "--count", "3").expect(8, "1 of 3 copies are not up: tiny-2", "what is done is kept")
        assert f"lab up {file} --count 3" in ran.err
        assert "2 of 3 copies of tiny are up" in ran.out
        rows = {line.split()[0]: line.split()[2:4] for line in ran.out.splitlines() if line.startswith("tiny-")}
        assert {name: row[0] for name, row in rows.items()} == {"tiny-1": "running", "tiny-2": "off", "tiny-3": "running"}
        before = running(kit)
        assert set(before) == {"tiny-1.a", "tiny-3.a"}
    answer = kit.cli("lab", "up", file, "--count", "3", "-o", "json").expect(0).json()
    copies = answer["copies"]
    assert isinstance(copies, list)
    assert [(each["instance"], each["status"]["state"], each["error"]) for each in copies] == [
        (f"tiny-{number}", "up", "") for number in (1, 2, 3)
    ]
    assert all("a" in each["ready"] for each in copies)
    after = running(kit)
    assert set(after) == {"tiny-1.a", "tiny-2.a", "tiny-3.a"}
    assert {name: after[name] for name in before} == before, "what was up was not left alone"
    assert len(subnets(kit, "tiny-1", "tiny-2", "tiny-3")) == 3
    # The file is gone, and whoever names the lab still gets one more.
    file.unlink()
    kit.cli("lab", "plan", "tiny", "--count", "4").expect(0, "== tiny-4", "define a")
    kit.cli("lab", "up", "nosuch", "--count", "2").expect(4, "no lab nosuch")


@pytest.mark.sampled(5)
def test_interrupted_copies_are_completed(kit: LabKit) -> None:
    file = kit.lab(LAB)
    process = kit.start("lab", "up", file, "--count", "3", "--as", "c")
    until(lambda: len(running(kit)) >= 1, "a copy is started")
    process.send_signal(signal.SIGINT)
    ran = kit.finish(process, timeout=60).expect(130, "interrupted", "to go on")
    assert "--count 3" in ran.err
    kit.cli("lab", "up", file, "--count", "3", "--as", "c").expect(0, "3 of 3 copies")
    assert len(subnets(kit, "c-1", "c-2", "c-3")) == 3
    assert set(running(kit)) == {"c-1.a", "c-2.a", "c-3.a"}


@pytest.mark.sampled(5)
def test_killed_copies_are_completed(kit: LabKit) -> None:
    file = kit.lab(LAB)
    process = kit.start("lab", "up", file, "--count", "3")
    until(lambda: any(kit.files(f"tiny-{number}").record.exists() for number in (1, 2, 3)), "a record is committed")
    process.kill()
    kit.finish(process)
    kit.cli("lab", "up", file, "--count", "3").expect(0, "3 of 3 copies")
    assert len(subnets(kit, "tiny-1", "tiny-2", "tiny-3")) == 3
    for number in (1, 2, 3):
        kit.cli("lab", "destroy", f"tiny-{number}", "-y").expect(0)
    assert [volume.name for volume in kit.storage.volumes() if volume.name.startswith("lab.")] == []


@pytest.mark.sampled(5)
def test_copies_of_two_commands_never_share_a_subnet(kit: LabKit) -> None:
    file = kit.lab(LAB)
    other = [kit.start("lab", "up", file, "--count", "2", "--as", prefix) for prefix in ("left", "right", "left")]
    for process in other:
        kit.finish(process).expect(0, "2 of 2 copies")
    assert len(subnets(kit, "left-1", "left-2", "right-1", "right-2")) == 4


@pytest.mark.sampled(5)
def test_copies_that_cannot_be_are_refused_before_anything_is_made(kit: LabKit) -> None:
    labs = kit.path / "labs"
    # A fortieth of the host's memory: one copy fits, 64 never do.
    each = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 40
    big = kit.lab(LAB.replace("32MiB", f"{each >> 20}MiB"))
    ran = kit.cli("lab", "up", big, "--count", "64").expect(6, "64 copies need", "of 64 would fit", "next:")
    assert "--count " in ran.err
    pinned = kit.lab(LAB.replace("kind: nat", "kind: nat, subnet: 10.211.7.0/24"))
    kit.cli("lab", "up", pinned, "--count", "2").expect(5, "lab tiny-2", "pinned to 10.211.7.0/24", "network n of lab tiny-1")
    kit.cli("lab", "up", pinned, "--count", "65").expect(2, "65")
    kit.cli("lab", "up", pinned, "--count", "2", "--as", "a" * 31).expect(2, "with a number", "--as")
    assert not labs.exists() or list(labs.iterdir()) == []
    assert json.loads(kit.cli("lab", "list", "-o", "json").expect(0).out)["labs"] == []
