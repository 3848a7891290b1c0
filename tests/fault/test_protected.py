"""`protected: true`: the machine whose disks nobody loses by habit."""

from __future__ import annotations

import os
import pty
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pocketcloud.model.names import Name
from pocketcloud.records import read_record, write_record
from tests.fault.test_copies import running
from tests.labkit import PATIENCE, TOP, LabKit, Ran, lab_kit

LAB = """\
lab: class
machines:
  teacher: {base: tiny, memory: 32MiB, protected: true, ready: {console: hello, within: 90s}}
  student: {base: tiny, memory: 32MiB, ready: {console: hello, within: 90s}}
"""
ALONE = "teacher is protected and left as it is"


@pytest.fixture
def kit() -> Iterator[LabKit]:
    with lab_kit() as made:
        yield made


def disks(kit: LabKit) -> dict[str, str]:
    """The machines' live disks: whoever is brought back has another one."""
    record = read_record(kit.files("class"))
    assert record is not None
    return {str(name): machine.disks["root"] for name, machine in record.machines.items()}


def answered(kit: LabKit, answers: str, *arguments: str) -> Ran:
    """Run a command on a terminal where somebody types `answers`."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answers.encode())
        done = subprocess.run(
            kit.argv(*arguments),
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=kit.env,
            cwd=TOP,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.mark.sampled(3)
def test_yes_to_everything_is_no_yes_for_a_protected_machine(kit: LabKit) -> None:
    file = kit.lab(LAB)
    kit.cli("lab", "up", file).expect(0)
    before, up = disks(kit), running(kit)
    ran = kit.cli("lab", "reset", "class", "-y").expect(0, ALONE, "--protected")
    assert "READY AFTER" in ran.out
    after = disks(kit)
    assert after["teacher"] == before["teacher"]
    assert after["student"] != before["student"]
    assert running(kit)["class.teacher"] == up["class.teacher"], "it was started anew"

    refusals = (
        ("reset", "class", "teacher", "-y"),
        ("destroy", "class", "-y"),
        ("up", kit.lab(LAB.replace("32MiB, protected: true", "32MiB, disk: 2MiB, protected: false")), "--reconfigure", "-y"),
        ("up", kit.lab("\n".join(line for line in LAB.splitlines() if "teacher" not in line), "less.yaml"), "--prune", "-y"),
    )
    for arguments in refusals:
        kit.cli("lab", *arguments).expect(5, "lab class: teacher is protected", "nothing was done", "--protected")
    assert disks(kit) == after
    kit.cli("lab", "undo", "class", "-y").expect(0)
    assert disks(kit)["teacher"] == before["teacher"]

    # The protection is taken away without a restart, and only then -y is enough.
    kit.cli("lab", "up", kit.lab(LAB.replace("true", "false"))).expect(0)
    assert running(kit)["class.teacher"] == up["class.teacher"]
    dry = kit.cli("lab", "reset", "class", "--dry-run").expect(0, "power off teacher")
    assert "protected" not in dry.err + dry.out


@pytest.mark.sampled(3)
def test_protected_machines_are_asked_about_by_themselves(kit: LabKit) -> None:
    kit.cli("lab", "up", kit.lab(LAB)).expect(0)
    before = disks(kit)
    dry = kit.cli("lab", "reset", "class", "--dry-run").expect(0, ALONE)
    assert "power off teacher" not in dry.out
    answered(kit, "n\n", "lab", "reset", "class", "-y").expect(0, "Protected: teacher. To be reset as well?", ALONE)
    assert disks(kit)["teacher"] == before["teacher"]
    ran = answered(kit, "y\ny\n", "lab", "reset", "class").expect(0, "Protected: teacher", "Bring all machines")
    assert ran.err.index("Protected: teacher") < ran.err.index("Bring all machines")
    assert disks(kit)["teacher"] != before["teacher"]
    kit.cli("lab", "snapshot", "class@here").expect(0)
    now = disks(kit)
    kit.cli("lab", "restore", "class@here", "-y").expect(0, ALONE)
    assert disks(kit)["teacher"] == now["teacher"]
    kit.cli("lab", "restore", "class@here", "-y", "--protected").expect(0)
    assert disks(kit)["teacher"] != now["teacher"]
    dry = kit.cli("lab", "reset", "--all", "--dry-run").expect(0, ALONE, "power off student")
    assert "power off teacher" not in dry.out
    kit.cli("lab", "reset", "--all", "-y").expect(0, "class: teacher is protected and left")
    kit.cli("lab", "destroy", "class", "-y", "--protected").expect(0)


@pytest.mark.sampled(3)
def test_a_lab_of_protected_machines_is_left_alone(kit: LabKit) -> None:
    alone = "\n".join(line for line in LAB.splitlines() if "student" not in line)
    kit.cli("lab", "up", kit.lab(alone)).expect(0)
    before = disks(kit)
    kit.cli("lab", "reset", "class", "-y").expect(5, "teacher is protected")
    kit.cli("lab", "reset", "--all", "-y").expect(4, "class: teacher is protected and left", "no lab that could be reset")
    assert disks(kit) == before
    kit.cli("lab", "reset", "--all", "-y", "--protected").expect(0, "1 of 1 labs")
    assert disks(kit) != before


@pytest.mark.sampled(3)
def test_a_protected_machine_that_cannot_be_brought_back_holds_up_no_other(kit: LabKit) -> None:
    kit.cli("lab", "up", kit.lab(LAB)).expect(0)
    before, record = disks(kit), read_record(kit.files("class"))
    assert record is not None
    assert record.clean is not None
    part = replace(record.clean.machines[Name("teacher")], disks={"root": "lab.class.teacher.root.g99"})
    clean = replace(record.clean, machines={**record.clean.machines, Name("teacher"): part})
    write_record(kit.files("class"), replace(record, snapshots={Name("clean"): clean}))
    kit.cli("lab", "reset", "class", "teacher", "-y").expect(5, "the clean state of teacher is damaged")
    kit.cli("lab", "reset", "class", "-y", "--protected").expect(5, "the clean state of teacher is damaged")
    dry = kit.cli("lab", "reset", "class", "--dry-run").expect(0, ALONE, "power off student")
    assert "power off teacher" not in dry.out
    kit.cli("lab", "reset", "class", "-y").expect(0, ALONE)
    after = disks(kit)
    assert after["teacher"] == before["teacher"]
    assert after["student"] != before["student"]
    kit.cli("lab", "reset", "--all", "-y").expect(0, "1 of 1 labs are back to clean")
    assert disks(kit)["teacher"] == before["teacher"]
    assert disks(kit)["student"] != after["student"]
