"""Runs what needs device-mapper in User-Mode Linux: the files of tests/rig/inside, and the contract of the thin driver.

The tests inside are pytest's own; what each boot said is shown here, and one that was skipped inside says why there. Two boots
go side by side, each on a processor of its own, as User-Mode Linux knows but one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from pocketcloud.model.base import Arch
from pocketcloud.model.sizes import GIB
from tests.built_base import built_base
from tests.rig.uml import TOP, Job, missing, run_job

INSIDE = Path(__file__).with_name("inside")
CONTRACT = TOP / "tests" / "contract"
WITHIN = 1400.0
SLOWLY = 6 * 3600.0
CASES, SEQUENCES = CONTRACT / "test_storage.py", CONTRACT / "test_storage_sequences.py"
LAB, SCENARIO, INTERLOCKS, SPACE = (INSIDE / f"test_{name}.py" for name in ("lab", "scenario", "interlocks", "space"))
DEMO = INSIDE / "test_demo.py"
FILES = (CASES, SEQUENCES, *sorted(file for file in INSIDE.glob("test_*.py") if file != DEMO))
SHORT = tuple(file for file in FILES if file not in (CASES, SEQUENCES, SPACE, LAB, SCENARIO, INTERLOCKS))


@dataclass(frozen=True, slots=True)
class Boot:
    """What one boot runs: some files' tests, all of them or those of `make test`, perhaps with udev's daemon beside them."""

    files: tuple[Path, ...]
    slow: bool = False
    sampled: bool = False
    udev: bool = False

    def __str__(self) -> str:
        return " ".join([*(file.stem.removeprefix("test_") for file in self.files), *(["with udev"] if self.udev else [])])


# What takes long has a boot of its own in `make test`, the longest first, so that none is left alone at the end. The others
# share boots: to get to the first test takes eleven seconds. Those of the driver share a volume group, which nothing takes down
# before the boot ends.
SAMPLE = [
    Boot(files, sampled=True)
    for files in ((CASES, SEQUENCES, SPACE), (LAB,), (SCENARIO,), SHORT[::2], SHORT[1::2], (INTERLOCKS,))
]
WHOLE = [*(Boot((file,), slow=True) for file in FILES), *(Boot((file,), udev=True) for file in (CASES, SCENARIO))]

needs_uml = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="module")
def jobs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Job]]]:
    """The jobs of all tests of this run, two at a time, by the id of their test."""
    with ThreadPoolExecutor(2) as pool:
        started = {}
        for item in request.session.items:
            if item.fspath == request.node.fspath and isinstance(item, pytest.Function) and hasattr(item, "callspec"):
                boot: Boot = item.callspec.params["boot"]  # type: ignore[assignment]  # pytest: an object
                started[item.nodeid] = pool.submit(_run, boot, tmp_path_factory.mktemp("uml"))
        yield started
        for job in started.values():
            job.cancel()


@needs_uml
@pytest.mark.parametrize("boot", SAMPLE, ids=str)
def test_inside(
    boot: Boot, jobs: dict[str, Future[Job]], request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    _judge(boot, jobs[request.node.nodeid].result(), capsys)


@needs_uml
@pytest.mark.slow
@pytest.mark.timeout(SLOWLY)
@pytest.mark.parametrize("boot", WHOLE, ids=str)
def test_inside_whole(
    boot: Boot, jobs: dict[str, Future[Job]], request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    _judge(boot, jobs[request.node.nodeid].result(), capsys)


# User-Mode Linux maps the memory of its processes page by page; when there may be no more of that, it kills them.
MAPS = 1 << 20
MAY_MAP = int(Path("/proc/sys/vm/max_map_count").read_text())


@needs_uml
@pytest.mark.skipif(MAY_MAP < MAPS, reason=f"a Debian takes more mappings than {MAY_MAP}: sysctl vm.max_map_count={MAPS}")
@pytest.mark.slow
@pytest.mark.timeout(SLOWLY)
def test_the_demo_inside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It takes memory for two Debian guests, a disk for theirs, and their base, which is built out here."""
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(20 * GIB)
    (tmp_path / "job").mkdir()
    with built_base("debian-12", Arch.X86_64):
        job = run_job(_pytest("", [DEMO]), tmp_path / "job", timeout=SLOWLY, disks=[disk], memory="3G")
    disk.unlink()
    _judge(Boot((DEMO,), slow=True), job, capsys)


def _pytest(which: str, files: Sequence[Path]) -> str:
    # What passed is shown too: it tells how many kills there were.
    names = " ".join(f"'{file.relative_to(TOP)}'" for file in files)
    return f".venv/bin/python -m pytest -p no:cacheprovider -q -rsP --timeout={SLOWLY:.0f} --durations=5 {which} {names}"


def _run(boot: Boot, folder: Path) -> Job:
    return run_job(
        _pytest("" if boot.slow else "-m 'not slow'", boot.files),
        folder,
        timeout=WITHIN if boot.sampled else SLOWLY,
        udev=boot.udev,
        env={"POCKETCLOUD_SEED": os.environ.get("POCKETCLOUD_SEED", "0"), "POCKETCLOUD_SAMPLE": "1" if boot.sampled else ""},
    )


def _judge(boot: Boot, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    said = [line for line in job.log.splitlines() if line.strip()]
    shown = [line for line in said if line.startswith("SKIPPED") or re.fullmatch(r"\d+ (kills|s: .*)", line)]
    with capsys.disabled():
        print("", f"  in User-Mode Linux: {boot}: {' '.join(said[-1:])}", *shown, sep="\n", end="")
    assert job.code == 0, job.log[-20000:]
