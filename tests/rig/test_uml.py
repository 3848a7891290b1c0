"""Runs what needs device-mapper in User-Mode Linux: the files of tests/rig/inside, and the contract of the thin driver.

The tests inside are pytest's own; what each boot said is shown here, and one that was skipped inside says why there. Two boots
go side by side, each on a processor of its own, as User-Mode Linux knows but one.
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
WITHIN = 1400.0
SLOWLY = 6 * 3600.0
# These share a volume group, which nothing takes down before the boot ends.
DRIVER = [CONTRACT / "test_storage.py", CONTRACT / "test_storage_sequences.py", INSIDE / "test_space.py"]
FILES = [*DRIVER[:2], *sorted(INSIDE.glob("test_*.py"))]
# What takes long has a boot of its own in `make test`, the longest first, so that none is left alone at the end. The others
# share boots: to get to the first test takes eleven seconds.
LONG = [INSIDE / f"test_{name}.py" for name in ("lab", "scenario", "interlocks")]
SHORT = [file for file in FILES if file not in (*DRIVER, *LONG)]
BOOTS = [DRIVER, *([file] for file in LONG[:2]), SHORT[::2], SHORT[1::2], LONG[2:]]

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
                files: list[Path] = item.callspec.params["files"]  # type: ignore[assignment]  # pytest: an object
                started[item.nodeid] = pool.submit(_boot, files, folder, slowly=slowly)
        yield started
        for job in started.values():
            job.cancel()


def _named(files: list[Path]) -> str:
    return " ".join(file.stem.removeprefix("test_") for file in files)


@needs_uml
@pytest.mark.parametrize("files", BOOTS, ids=_named)
def test_inside(
    files: list[Path], jobs: dict[str, Future[Job]], request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    _judge(files, jobs[request.node.nodeid].result(), capsys)


@needs_uml
@pytest.mark.slow
@pytest.mark.timeout(SLOWLY)
@pytest.mark.parametrize("files", [[file] for file in FILES], ids=_named)
def test_inside_whole(
    files: list[Path], jobs: dict[str, Future[Job]], request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    _judge(files, jobs[request.node.nodeid].result(), capsys)


def _boot(files: list[Path], folder: Path, *, slowly: bool) -> Job:
    """Run the tests of some files: all of them, or those of `make test`."""
    which = "" if slowly else "-m 'not slow'"
    names = " ".join(f"'{file.relative_to(TOP)}'" for file in files)
    return run_job(
        f".venv/bin/python -m pytest -p no:cacheprovider -q -rs --durations=5 {which} {names}",
        folder,
        timeout=SLOWLY if slowly else WITHIN,
        env={"POCKETCLOUD_SEED": os.environ.get("POCKETCLOUD_SEED", "0"), "POCKETCLOUD_SAMPLE": "" if slowly else "1"},
    )


def _judge(files: list[Path], job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    said = [line for line in job.log.splitlines() if line.strip()]
    shown = [line for line in said if line.startswith("SKIPPED")]
    with capsys.disabled():
        print("", f"  in User-Mode Linux: {_named(files)}: {' '.join(said[-1:])}", *shown, sep="\n", end="")
    assert job.code == 0, job.log[-20000:]
