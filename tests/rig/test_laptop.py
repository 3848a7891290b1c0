"""Runs what needs a real USB path in the emulated laptop: tests/rig/laptop, whose tests are pytest's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketcloud.model.sizes import GIB
from tests.rig import memory_root
from tests.rig.emulated_laptop import missing, run_job

WITHIN = 1800.0


pytestmark = [pytest.mark.timeout(WITHIN + 60), pytest.mark.skipif(bool(missing()), reason=missing())]


def test_nesting_in_the_laptop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its disks are there for the whole, below."""
    _run("tests/rig/laptop/test_check.py -k remedy_for_nesting", tmp_path, capsys)


@pytest.mark.slow
def test_laptop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run("tests/rig/laptop", tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.skipif(bool(memory_root.missing()), reason=memory_root.missing())
def test_suspended_laptop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run("tests/rig/laptop/test_suspend.py", tmp_path, capsys, in_memory=True)


def _run(which: str, folder: Path, capsys: pytest.CaptureFixture[str], *, in_memory: bool = False) -> None:
    disks = {name: folder / f"{name}.img" for name in ("ssd", "one", "two")}
    for disk in disks.values():
        with disk.open("xb") as made:
            made.truncate(8 * GIB)
    job = run_job(
        f".venv/bin/python -B -m pytest -p no:cacheprovider -q -rA --color=no {which}", disks, timeout=WITHIN, in_memory=in_memory
    )
    with capsys.disabled():
        print("", *(f"  in the laptop: {line}" for line in job.log.splitlines()[-5:] if " passed" in line), sep="\n")
    assert job.code == 0, job.log[-20000:]
    assert " passed" in job.log
