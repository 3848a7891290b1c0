"""`lab reset --all`: every lab of the kit that has a clean state, up or down; what cannot be brought back holds up no other."""

from __future__ import annotations

import fcntl
import signal
from collections.abc import Iterator

import pytest

from pocketcloud.records import read_record
from tests.fault.test_copies import LAB, in_the_way, running
from tests.labkit import LabKit, lab_kit, until


@pytest.fixture
def kit() -> Iterator[LabKit]:
    with lab_kit() as made:
        yield made


def identity(kit: LabKit, instance: str) -> tuple[object, ...]:
    """What outlives a reset: addresses and subnets, and the files that ssh looks into."""
    record = read_record(kit.files(instance))
    assert record is not None
    files = kit.files(instance)
    addresses = {name: machine.addresses for name, machine in record.machines.items()}
    return addresses, record.networks, files.known_hosts.read_text(), files.ssh_config.read_text()


@pytest.mark.sampled(3)
def test_all_labs_are_brought_back_and_those_that_cannot_be_are_told(kit: LabKit) -> None:
    kit.cli("lab", "reset", "--all", "-y").expect(4, "no lab that could be reset")
    file = kit.lab(LAB)
    kit.cli("lab", "up", file, "--count", "3").expect(0)
    kit.cli("lab", "down", "tiny-3", "--within", "0").expect(0)
    kit.files("half").folder.mkdir()
    kit.cli("lab", "reset", "--all").expect(2, "tiny-1, tiny-2, tiny-3", "tiny-3 is down, and started", "kept for", "add -y")
    kit.cli("lab", "reset", "--all", "tiny-1", "-y").expect(2, "takes neither LAB")
    dry = kit.cli("lab", "reset", "--all", "--dry-run").expect(0, "== tiny-3", "half is half there and is left alone")
    assert "nothing was done" in dry.out
    before, who = running(kit), [identity(kit, f"tiny-{number}") for number in (1, 2, 3)]

    with in_the_way(kit, "tiny-3", "n"):
        ran = kit.cli("lab", "reset", "--all", "-y").expect(8, "1 of 3 labs are not back to clean: tiny-3", "reset --all")
    assert "2 of 3 labs are back to clean" in ran.out
    rows = [line.split() for line in ran.out.splitlines() if line.startswith("tiny-")]
    assert [(row[0], row[2], row[-1] != "-") for row in rows] == [
        ("tiny-1", "running", True),
        ("tiny-2", "running", True),
        ("tiny-3", "off", False),
    ]
    after = running(kit)
    assert set(after) == {"tiny-1.a", "tiny-2.a"}
    assert all(after[name] != before[name] for name in after), "a machine was not started anew"

    answer = kit.cli("lab", "reset", "--all", "-y", "-o", "json").expect(0).json()
    labs = answer["labs"]
    assert isinstance(labs, list)
    assert [(each["instance"], set(each["ready"]), each["status"]["state"], each["error"]) for each in labs] == [
        (f"tiny-{number}", {"a"}, "up", "") for number in (1, 2, 3)
    ]
    assert [identity(kit, f"tiny-{number}") for number in (1, 2, 3)] == who


@pytest.mark.sampled(3)
def test_a_damaged_lab_holds_up_no_other(kit: LabKit) -> None:
    kit.cli("lab", "up", kit.lab(LAB), "--count", "2").expect(0)
    kit.files("tiny-1").record.write_text("{")
    ran = kit.cli("lab", "reset", "--all", "-y").expect(8, "1 of 2 labs", "tiny-1", "record", "lab destroy tiny-1")
    assert "1 of 2 labs are back to clean" in ran.out


@pytest.mark.sampled(3)
def test_a_reset_of_all_that_waits_for_another_command_can_be_ended(kit: LabKit) -> None:
    kit.cli("lab", "up", kit.lab(LAB), "--count", "2").expect(0)
    before = running(kit)["tiny-2.a"]
    lock = kit.run / "locks" / f"{kit.kit.id}.tiny-1.lock"
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        process = kit.start("lab", "reset", "--all", "-y")
        until(lambda: running(kit).get("tiny-2.a", before) != before, "the other one is brought back")
        process.send_signal(signal.SIGINT)
        kit.finish(process, timeout=30).expect(130, "interrupted")
    kit.cli("lab", "reset", "--all", "-y").expect(0, "2 of 2 labs")
