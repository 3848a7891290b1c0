"""How disks are measured: by reading real files, and by a clock that says what a slow disk would."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketcloud.cli.measuring import times_line
from pocketcloud.errors import HostLacks, Refused
from pocketcloud.host import disk_probe
from pocketcloud.host.disk_speed import judged, measure, percentile
from pocketcloud.model.disk import TIMES, Measured
from pocketcloud.model.sizes import KIB, MIB
from pocketcloud.system import Completed, run

PROBE = Path(disk_probe.__file__)


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Path]:
    """A file that can be read past the cache: not on tmpfs, which older kernels cannot."""
    path = tmp_path / "image"
    path.write_bytes(os.urandom(24 * MIB))
    yield path
    path.unlink()


def stepping(step: float) -> Callable[[], float]:
    """A clock on which every look takes `step` seconds."""
    now = [0.0]

    def clock() -> float:
        now[0] += step
        return now[0]

    return clock


def test_a_file_is_measured_and_stays_as_it_was(image: Path) -> None:
    before, times = hashlib.sha256(image.read_bytes()).digest(), image.stat()
    far: list[float] = []
    measured = measure(image, seconds=1.5, tell=far.append)
    assert measured is not None
    assert min(measured.sequential, measured.first, measured.random_reads) > 0
    assert 0 < measured.p50 <= measured.p99
    assert (measured.failed, measured.others) == (0, 0)
    assert sum(measured.counts) >= 10
    assert far == sorted(far)
    assert all(0 <= each <= 1 for each in far)
    assert hashlib.sha256(image.read_bytes()).digest() == before
    assert image.stat().st_mtime_ns == times.st_mtime_ns


def test_the_figures_follow_from_the_times_of_the_reads(image: Path) -> None:
    measured = judged(disk_probe.read(str(image), 6, clock=stepping(0.01)))
    assert measured is not None
    assert measured.sequential == pytest.approx(MIB / 0.01)
    assert measured.first == pytest.approx(2 * MIB / 0.01)
    assert measured.random_reads == pytest.approx(100)
    assert measured.p50 == pytest.approx(0.01)


def test_each_kind_has_a_third_of_the_time_and_a_slow_disk_no_more(image: Path) -> None:
    looks: list[float] = []

    def clock() -> float:
        looks.append(0.5 * len(looks))
        return looks[-1]

    said: dict[str, Any] = disk_probe.read(str(image), 12, clock=clock)
    assert [len(said[part]["times"]) for part in ("large", "first", "random")] == [3, 3, 3]
    # Of each kind one read may end after its time was up, and the wake-up comes before.
    assert 12 <= looks[-1] <= 18


@given(size=st.integers(64 * MIB, 16 * 1024**4))
def test_places_are_all_over_the_disk_and_none_is_read_twice(size: int) -> None:
    places = disk_probe.spread(size)
    assert len(places) == len(set(places)) <= 512
    assert {place * 8 // size for place in places} >= set(range(7))
    assert all(place % MIB == 0 and place + MIB <= size for place in places)


@given(size=st.integers(8 * MIB, 16 * 1024**4))
def test_the_first_part_is_read_in_sequence_from_the_first_byte_on(size: int) -> None:
    places = disk_probe.beginning(size)
    assert list(places) == [2 * MIB * number for number in range(min(512, size // (2 * MIB)))]


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.write_bytes(bytes(MIB))
    assert measure(small) is None
    with pytest.raises(Refused, match="No such file"):
        measure(tmp_path / "gone")
    assert measure(Path("/proc/version")) is None, "not to be read past the cache"


def test_a_disk_that_goes_while_it_is_read_is_gone(image: Path) -> None:
    """Short reads are no times."""
    clock = stepping(0.001)

    def shrinking() -> float:
        os.truncate(image, 0)
        return clock()

    with pytest.raises(disk_probe.Gone):
        disk_probe.read(str(image), 6, clock=shrinking)


def answering(*runs: list[dict[str, Any]]) -> Callable[..., Completed]:
    """A Runner whose probe says these lines, a list for each time that it is run."""
    left = list(runs)

    def runner(argv: Sequence[str | Path], *, on_line: Callable[[str], None], **_: object) -> Completed:
        for line in left.pop(0):
            on_line(json.dumps(line))
        return Completed(tuple(map(str, argv)), 0, "", "")

    return runner


def read(others: int = 0, *, failed: int = 0, count: int = 100, asleep: float = 0.0) -> dict[str, Any]:
    """What a probe says that read so many of each kind."""
    parts = {
        name: {"size": size, "times": [0.001] * count, "failed": failed, "others": 0}
        for name, size in (("large", MIB), ("first", 2 * MIB), ("random", 4 * KIB))
    }
    parts["random"]["others"] = others
    return {"asleep": asleep, **parts}


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([[read(0)]], 0),
        # A tenth of what was read here is let pass.
        ([[read(40 * KIB)]], 0),
        ([[read(MIB)], [read(0)]], 0),
        ([[read(MIB)], [read(2 * MIB)]], MIB),
        ([[read(2 * MIB)], [read(MIB)]], MIB),
    ],
)
def test_a_busy_disk_is_measured_twice_and_the_quieter_counts(runs: list[Any], expected: int) -> None:
    measured = measure(Path("/dev/sdb"), run=answering(*runs))
    assert measured is not None
    assert measured.others == expected


def test_failed_reads_and_sleep_are_handed_on() -> None:
    measured = measure(Path("/dev/sdb"), run=answering([{"at": 0.5}, read(failed=2, asleep=4.0)]))
    assert measured is not None
    assert (measured.failed, measured.asleep) == (6, 4.0)
    assert measure(Path("/dev/sdb"), run=answering([read(failed=11, count=0)])) == Measured(0, 0, 0, 0, failed=33)


# Root is told of what keeps even it away.
DENIED = "although this is root" if os.geteuid() == 0 else "may not be read by this user"


@pytest.mark.parametrize(
    ("line", "error", "words"),
    [
        ({"failed": "gone", "errno": 19}, Refused, "cannot be read: it went away meanwhile"),
        ({"failed": "Input/output error", "errno": 5}, Refused, "cannot be read: Input/output error"),
        ({"failed": "Permission denied", "errno": 13}, HostLacks, DENIED),
        ({"failed": "Operation not permitted", "errno": 1}, HostLacks, DENIED),
    ],
)
def test_why_a_disk_was_not_read_is_said(line: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        measure(Path("/dev/sdb"), run=answering([line]))


def test_a_probe_that_does_not_answer_is_left_within_its_time(tmp_path: Path) -> None:
    """A FIFO that nobody writes to does not even open."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    begun = time.monotonic()
    with pytest.raises(Refused, match="fifo did not answer within 2 s"):
        measure(fifo, 1.0, patience=1.0)
    assert time.monotonic() - begun < 20


def test_the_probe_says_in_json_why_it_read_nothing(tmp_path: Path) -> None:
    said = io.StringIO()
    with redirect_stdout(said):
        assert disk_probe.main([str(tmp_path / "gone"), "1"]) == 0
    assert json.loads(said.getvalue()) == {"failed": "No such file or directory", "errno": 2}


def test_the_probe_needs_nothing_of_ours(tmp_path: Path) -> None:
    """It is run by its path, away from the package."""
    copy = tmp_path / "probe.py"
    copy.write_text(PROBE.read_text())
    done = run([sys.executable, "-I", "-S", copy, tmp_path / "gone", "1"], timeout=20, cwd=tmp_path)
    assert json.loads(done.out)["errno"] == 2


def test_nobody_is_left_reading_when_it_is_interrupted(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    script = f"from pathlib import Path; from pocketcloud.host.disk_speed import measure; measure(Path({str(fifo)!r}), 600)"
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)

    def probes() -> list[Path]:
        return [entry for entry in Path("/proc").glob("[0-9]*") if f"disk_probe.py\0{fifo}".encode() in _words(entry)]

    until = time.monotonic() + 60
    while not probes() and time.monotonic() < until:
        time.sleep(0.05)
    assert len(probes()) == 1
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert probes() == []


def _words(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


@given(times=st.lists(st.floats(0, 0.2), max_size=50))
def test_each_read_is_counted_in_one_column(times: list[float]) -> None:
    said = read()
    said["random"]["times"] = [0.001, *times]
    measured = judged(said)
    assert measured is not None
    assert sum(measured.counts) == len(times) + 1
    assert len(measured.counts) == len(TIMES) + 1
    for number, limit in enumerate(TIMES):
        assert sum(measured.counts[: number + 1]) == sum(each < limit for each in said["random"]["times"])


def test_the_spread_of_the_times_is_a_line() -> None:
    measured = Measured(1, 1, 1, 1, counts=(800, 400, 1, 0, 0, 0, 2))
    assert times_line(measured) == "random reads by their time: █▄▁···▁ (columns: up to 0.1 0.3 1 3 10 30 ms, and more)"
    assert times_line(Measured(0, 0, 0, 0, failed=3)) == ""


def test_the_figures_in_json_say_their_limits() -> None:
    told = json.loads(json.dumps(Measured(4e8, 9000, 1e-4, 4e-4, first=3e8, counts=(1, 2, 0, 0, 0, 0, 5)).told))
    assert told["times"][0] == {"below": 0.0001, "reads": 1}
    assert told["times"][-1] == {"below": None, "reads": 5}
    assert (told["sequential"], told["first"], told["others"], told["asleep"]) == (4e8, 3e8, 0, 0.0)


@given(values=st.lists(st.floats(0, 10), min_size=1), percent=st.integers(1, 100))
def test_a_percentile_is_one_of_the_values_and_enough_are_below(values: list[float], percent: int) -> None:
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) * 100 >= percent * len(values)
    assert sum(value < found for value in values) * 100 < percent * len(values)
