"""Runs what needs device-mapper in User-Mode Linux: each file of tests/rig/inside, and the contract of the thin driver.

The tests inside are pytest's own; what each said is shown here, and one that was skipped inside says why there. Two boots go
side by side, each on a processor of its own, as User-Mode Linux knows but one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.rig.uml import TOP, Job, missing, run_job

INSIDE = Path(__file__).with_name("inside")
CONTRACT = TOP / "tests" / "contract"
# A file inside that needs udev's daemon says so in its docstring.
_NEEDS_UDEV = "needs: udev"
WITHIN = 1400.0
SLOWLY = 6 * 3600.0
# The longest first, so that none is left alone at the end.
LONGEST = ("test_storage", "test_lab", "test_scenario", "test_interlocks", "test_space", "test_repair")

FILES = sorted(
    [*INSIDE.glob("test_*.py"), CONTRACT / "test_storage.py", CONTRACT / "test_storage_sequences.py"],
    key=lambda file: (LONGEST.index(file.stem) if file.stem in LONGEST else len(LONGEST), file.stem),
)

needs_uml = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="module")
def jobs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Job]]]:
    """The jobs of all tests of this run, two at a time, by the id of their test."""
    with ThreadPoolExecutor(2) as pool:
        started = {}
        for item in request.session.items:
            if item.fspath == request.node.fspath and isinstance(item, pytest.Function):
                slowly = item.get_closest_marker("slow") is not None
                folder = tmp_path_factory.mktemp("uml")
                file = Path(str(item.callspec.params["file"]))
                started[item.nodeid] = pool.submit(_boot, file, folder, slowly=slowly)
        yield started
        for job in started.values():
            job.cancel()


@needs_uml
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_inside(
    file: Path, jobs: dict[str, Future[Job]], request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    _judge(file, jobs[request.node.nodeid].result(), capsys)


@needs_uml
@pytest.mark.slow
@pytest.mark.timeout(SLOWLY)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_inside_whole(
    file: Path, jobs: dict[str, Future[Job]], request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    _judge(file, jobs[request.node.nodeid].result(), capsys)


def _boot(file: Path, folder: Path, *, slowly: bool) -> Job:
    """Run a file's tests: all of them, or those of `make test`."""
    which = "" if slowly else "-m 'not slow'"
    return run_job(
        f".venv/bin/python -m pytest -p no:cacheprovider -q -rs --durations=5 {which} '{file.relative_to(TOP)}'",
        folder,
        timeout=SLOWLY if slowly else WITHIN,
        udev=_NEEDS_UDEV in file.read_text()[:2000],
        env={"POCKETCLOUD_SEED": os.environ.get("POCKETCLOUD_SEED", "0"), "POCKETCLOUD_SAMPLE": "" if slowly else "1"},
    )


def _judge(file: Path, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    said = [line for line in job.log.splitlines() if line.strip()]
    skipped = [line for line in said if line.startswith("SKIPPED")]
    with capsys.disabled():
        print("", f"  in User-Mode Linux: {file.relative_to(TOP)}: {' '.join(said[-1:])}", *skipped, sep="\n", end="")
    assert job.code == 0, job.log[-20000:]
