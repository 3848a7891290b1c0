"""kill -9 and Ctrl-C in the middle of `up`, `reset` and `destroy`: running the same command again converges.

Here is a sample, chosen by POCKETCLOUD_SEED; test_kill_up.py and its siblings try every point.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault.campaign import SEED, Campaign, campaign, delay, drawn
from tests.labkit import TOP

VERBS = ("up", "reset", "destroy")
SEEDED = pytest.mark.parametrize("number", [0], ids=lambda number: f"seed-{SEED}-{number}")


@pytest.fixture(scope="module")
def bed() -> Iterator[Campaign]:
    with campaign() as made:
        for verb in VERBS:
            assert len(made.recorded(verb)) > 30, "the harness does not see what the command does"
        yield made


@pytest.fixture(autouse=True)
def not_there(bed: Campaign) -> None:
    """Each test starts without the lab, whatever the one before has left."""
    bed.prepare("up")


def chosen(bed: Campaign, chance: random.Random, verb: str) -> int:
    return 1 + chance.randrange(len(bed.recorded(verb)))


@SEEDED
def test_killed_anywhere_the_same_command_converges(bed: Campaign, number: int) -> None:
    chance = drawn("once", number)
    for verb in VERBS:
        bed.case(verb, chosen(bed, chance, verb), delay=delay(chance))


@pytest.mark.sampled(4)
@SEEDED
def test_killed_twice_in_a_row_it_converges(bed: Campaign, number: int) -> None:
    chance = drawn("twice", number)
    for verb in VERBS:
        again = (chosen(bed, chance, verb) // 2 + 1, delay(chance))
        bed.case(verb, chosen(bed, chance, verb), delay=delay(chance), again=again)


@pytest.mark.sampled(4)
@SEEDED
def test_interrupted_it_says_so_and_converges(bed: Campaign, number: int) -> None:
    chance = drawn("interrupt", number)
    for verb in VERBS:
        bed.case(verb, chosen(bed, chance, verb), "INT", delay=delay(chance))


def test_destroy_removes_what_a_killed_up_left(bed: Campaign) -> None:
    chance = drawn("half")
    for _ in range(1):
        bed.ended("up", chosen(bed, chance, "up"), delay=delay(chance))
        if bed.remains():
            bed.run("destroy").expect(0)
        bed.check("destroy")


# -- the campaign itself: would it notice?


def mutant(folder: Path, *edits: tuple[str, str, str]) -> Path:
    """A copy of the product with bugs in it: (module, old text, new text). Every old text has to stand there once."""
    shutil.copytree(TOP / "pocketcloud", folder / "pocketcloud", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("bases", "kickstarts", "labs", "profiles"):
        (folder / name).symlink_to(TOP / name)
    for module, old, new in edits:
        path = folder / "pocketcloud" / module
        text = path.read_text()
        assert text.count(old) == 1, f"{module} has changed: plant the bug anew"
        path.write_text(text.replace(old, new))
    return folder


@pytest.mark.sampled(4)
def test_a_record_committed_before_its_volumes_are_made_is_noticed(bed: Campaign, tmp_path: Path) -> None:
    code = mutant(
        tmp_path,
        ("plan/reset.py", 'here on", after=tuple(made), record', 'here on", record'),
        ("plan/reset.py", 'id="volumes", reason=way.reason, after=opened,', 'id="volumes", reason="", after=("commit",),'),
    )
    bed.code = code
    try:
        bed.run("up").expect(0)
        with pytest.raises(AssertionError, match="names volumes that are not there"):
            bed.case("reset", "saying StepDone commit")
    finally:
        bed.code = TOP


@pytest.mark.sampled(4)
def test_leftovers_that_are_never_swept_are_noticed(bed: Campaign, tmp_path: Path) -> None:
    code = mutant(tmp_path, ("plan/reset.py", "    draw_sweep(draft, record, have, ground, back)", ""))
    bed.code = code
    try:
        bed.run("up").expect(0)
        with pytest.raises(AssertionError, match="volumes that nothing needs"):
            bed.case("reset", "saying StepDone commit")
    finally:
        bed.code = TOP
