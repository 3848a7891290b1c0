"""Runs what needs device-mapper in User-Mode Linux: the files of tests/rig/inside, and the contract of the thin driver.

The tests inside are pytest's own; what each boot said is shown here, and one that was skipped inside says why there. Two boots
go side by side, each on a processor of its own, as User-Mode Linux knows but one; the first begins early (conftest.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from pocketcloud.model.base import Arch
from pocketcloud.model.sizes import GIB
from tests.built_base import built_base
from tests.rig.boots import SLOWLY, Boot, Boots, pytest_command
from tests.rig.conftest import BOOTS
from tests.rig.uml import TOP, Job, missing, run_job

INSIDE = Path(__file__).with_name("inside")
CONTRACT = TOP / "tests" / "contract"


def _names(files: Iterable[Path]) -> tuple[str, ...]:
    return tuple(str(file.relative_to(TOP)) for file in files)


CASES, SEQUENCES, INSTALL = _names(CONTRACT / f"test_{name}.py" for name in ("storage", "storage_sequences", "install_volume"))
LAB, STATES, SCENARIO, INTERLOCKS, SPACE, DEMO, TRIM = _names(
    INSIDE / f"test_{name}.py" for name in ("lab", "states", "scenario", "interlocks", "space", "demo", "trim_resting")
)
GUESTS = (DEMO, TRIM)
FILES = (CASES, SEQUENCES, INSTALL, *(name for name in _names(sorted(INSIDE.glob("test_*.py"))) if name not in GUESTS))
COPIES, UPDATES = (
    _names(INSIDE / f"test_{name}.py" for name in names)
    for names in (("clone", "clone_folder", "copy_faults", "copy_targets", "station"), ("stream", "stream_ssh", "sync", "verify"))
)
SHORT = tuple(
    file for file in FILES if file not in (CASES, SEQUENCES, INSTALL, SPACE, LAB, STATES, SCENARIO, INTERLOCKS, *COPIES, *UPDATES)
)

# What takes long has a boot of its own in `make test`, the longest first, so that none is left alone at the end. The others
# share boots: to get to the first test takes eleven seconds. Those of the driver share a volume group, which nothing takes down
# before the boot ends.
SAMPLE = [
    Boot(files, sampled=True)
    for files in ((LAB,), COPIES, UPDATES, (CASES, SEQUENCES, INSTALL, SPACE), SHORT, (SCENARIO,), (INTERLOCKS,))
]
# Its disks are whole ones in memory.
LARGE = {*_names([INSIDE / "test_copy_faults.py"])}
WHOLE = [
    *(Boot((file,), slow=True, memory="7G" if file in LARGE else "1536M") for file in FILES),
    *(Boot((file,), udev=True) for file in (CASES, SCENARIO)),
]

needs_uml = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="module")
def boots(pytestconfig: pytest.Config) -> Boots:
    """The boots of this run, with a second worker from now on."""
    begun = pytestconfig.stash[BOOTS]
    begun.start_worker()
    return begun


@needs_uml
@pytest.mark.timeout(SLOWLY)
@pytest.mark.parametrize("boot", SAMPLE, ids=str)
def test_inside(boot: Boot, boots: Boots, capsys: pytest.CaptureFixture[str]) -> None:
    _judge(boot, boots.outcome(boot), capsys)


@needs_uml
@pytest.mark.slow
@pytest.mark.timeout(SLOWLY)
@pytest.mark.parametrize("boot", WHOLE, ids=str)
def test_inside_whole(boot: Boot, boots: Boots, capsys: pytest.CaptureFixture[str]) -> None:
    _judge(boot, boots.outcome(boot), capsys)


# User-Mode Linux maps the memory of its processes page by page; when there may be no more of that, it kills them.
MAPS = 1 << 20
MAY_MAP = int(Path("/proc/sys/vm/max_map_count").read_text())


@needs_uml
@pytest.mark.skipif(MAY_MAP < MAPS, reason=f"a Debian takes more mappings than {MAY_MAP}: sysctl vm.max_map_count={MAPS}")
@pytest.mark.slow
@pytest.mark.timeout(SLOWLY)
@pytest.mark.parametrize("file", GUESTS, ids=lambda file: Path(file).stem.removeprefix("test_"))
def test_guests_inside(tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str) -> None:
    """They take memory for Debian guests, a disk for theirs, and the demo its base, which is built out here."""
    disk = tmp_path / "disk"
    with disk.open("wb") as made:
        made.truncate(20 * GIB)
    (tmp_path / "job").mkdir()
    with built_base("debian-12", Arch.X86_64):
        job = run_job(pytest_command("", [file]), tmp_path / "job", timeout=SLOWLY, disks=[disk], memory="3G")
    disk.unlink()
    _judge(Boot((file,), slow=True), job, capsys)


def _judge(boot: Boot, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    said = [line for line in job.log.splitlines() if line.strip()]
    shown = [line for line in said if line.startswith("SKIPPED") or re.fullmatch(r"\d+ (kills|flips|stopped|s:).*", line)]
    with capsys.disabled():
        print("", f"  in User-Mode Linux: {boot}: {' '.join(said[-1:])}", *shown, sep="\n", end="")
    assert job.code == 0, job.log[-20000:]
