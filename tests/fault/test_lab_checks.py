"""`lab status --checks` through the command line: what is asked of machines that are off, away, or let nobody in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.labkit import LabKit, lab_kit

LAB = """\
lab: course
title: {title}
machines:
  a: {{base: tiny, memory: 32MiB, ready: {{console: hello, within: 90s}}, networks: [n]}}
  b: {{base: tiny, memory: 32MiB, ready: {{console: hello, within: 90s}}, networks: [n]}}
networks:
  n: {{kind: isolated}}
{checks}"""
CHECKS = """\
checks:
- {name: first, machine: a, run: "true", points: 3, hint: Start it}
- {name: second, machine: b, run: "true"}
- {name: third, machine: b, run: "true", points: 0}
"""

pytestmark = pytest.mark.sampled(3)


@pytest.fixture(scope="module")
def kit() -> Iterator[LabKit]:
    with lab_kit() as made:
        yield made


def generation(kit: LabKit) -> tuple[dict[str, object], list[str]]:
    """What the machines stand on, and when they were started."""
    found = kit.cli("lab", "status", "course", "-o", "json").expect(0).json()
    return found, sorted(volume.name for volume in kit.storage.volumes())


def test_checks_are_changed_without_touching_the_machines(kit: LabKit) -> None:
    path = kit.lab(LAB.format(title="one", checks=""))
    kit.cli("lab", "up", path).expect(0)
    before = generation(kit)
    kit.cli("lab", "status", "course", "--checks").expect(0, "has no checks")
    kit.lab(LAB.format(title="two", checks=CHECKS))
    again = kit.cli("lab", "up", path).expect(0)
    assert "reconfigure" not in again.err
    assert generation(kit) == before
    # The record has them now: the name alone will do. Nothing in a boot sector answers ssh.
    done = kit.cli("lab", "status", "course", "--checks", "-o", "json").expect(0).json()
    checks = done["checks"]
    assert isinstance(checks, list)
    assert [(c["check"], c["machine"], c["verdict"], c["points"]) for c in checks] == [
        ("first", "a", "not run", 3),
        ("second", "b", "not run", 1),
        ("third", "b", "not run", 0),
    ]
    assert (done["points"], done["of"]) == (0, 4)
    assert done["instance"] == "course", "the rest of the status is there as ever"
    assert all(c["reason"] for c in checks)


def test_machines_that_are_off_and_checks_that_are_only_in_the_file(kit: LabKit) -> None:
    path = kit.lab(LAB.format(title="three", checks=CHECKS))
    kit.cli("lab", "up", path).expect(0)
    kit.cli("lab", "down", "course", "--within", "0").expect(0)
    extra = CHECKS + "- {name: fourth, machine: c, run: 'true'}\n"
    path = kit.lab(
        LAB.format(title="three", checks=extra).replace("networks:\n  n", "  c: {base: tiny, networks: [n]}\nnetworks:\n  n")
    )
    done = kit.cli("lab", "status", path, "--checks").expect(0, "0 of 5 points")
    assert done.out.count("a is off") == 1
    assert done.out.count("b is off") == 2
    assert "c is not in the lab as it was raised" in done.out
    assert "Start it" not in done.out, "a hint is for who has tried"


def test_a_bad_file_and_a_lab_that_is_not_there(kit: LabKit) -> None:
    wrong = kit.lab(LAB.format(title="x", checks=CHECKS.replace("machine: a", "machine: z")), "wrong.yaml")
    kit.cli("lab", "status", wrong, "--checks").expect(2, "checks[0].machine", "no such machine", "a, b")
    kit.cli("lab", "status", "nobody", "--checks").expect(4, "no lab nobody")
