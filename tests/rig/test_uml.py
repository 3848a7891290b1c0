"""Runs what needs device-mapper in User-Mode Linux: each file of tests/rig/inside, and the contract of the thin driver.

The tests inside are pytest's own; what each said is shown here, and one that was skipped inside says why there.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.rig.uml import TOP, missing, run_job

INSIDE = Path(__file__).with_name("inside")
CONTRACT = TOP / "tests" / "contract"
# A file inside that needs udev's daemon says so in its first lines.
_NEEDS_UDEV = "needs: udev"
WITHIN = 1200.0

FILES = sorted([*INSIDE.glob("test_*.py"), CONTRACT / "test_storage.py", CONTRACT / "test_storage_sequences.py"])


def _marked(request: pytest.FixtureRequest) -> str:
    return "slow" if request.node.get_closest_marker("slow") else "not slow"


@pytest.mark.skipif(bool(missing()), reason=missing())
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_inside(file: Path, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    _run(file, tmp_path, _marked(request), capsys)


@pytest.mark.slow
@pytest.mark.skipif(bool(missing()), reason=missing())
@pytest.mark.parametrize("file", [f for f in FILES if "pytest.mark.slow" in f.read_text()], ids=lambda file: file.stem)
@pytest.mark.timeout(4 * 3600)
def test_inside_slowly(file: Path, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    _run(file, tmp_path, _marked(request), capsys, within=4 * 3600)


def _run(file: Path, folder: Path, marked: str, capsys: pytest.CaptureFixture[str], within: float = WITHIN) -> None:
    name = file.relative_to(TOP)
    command = f".venv/bin/python -m pytest -p no:cacheprovider -q -rs --durations=5 -m '{marked}' '{name}'"
    job = run_job(
        command,
        folder,
        timeout=within,
        udev=_NEEDS_UDEV in file.read_text()[:2000],
        env={"POCKETCLOUD_SEED": os.environ.get("POCKETCLOUD_SEED", "0")},
    )
    with capsys.disabled():
        last = [line for line in job.log.splitlines() if line.strip()][-1:]
        skipped = [line for line in job.log.splitlines() if line.startswith("SKIPPED")]
        print("", f"  in User-Mode Linux: {name}: {' '.join(last)}", *skipped, sep="\n", end="")
    assert job.code == 0, job.log[-20000:]
