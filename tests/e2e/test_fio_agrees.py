"""What we measure of a disk, held against fio's figures for the same reads of the same file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from pocketcloud.host.disk_speed import measure
from pocketcloud.model.disk import Measured
from pocketcloud.model.sizes import MIB

SIZE = 256 * MIB
WITHIN = 0.15
# So long each of the readings is, in seconds, and so many rounds there are at least.
EACH, ROUNDS = 0.3, 7
# Neighbours on the disk make single readings differ by half; with the rounds that evens out, which a fault of ours would not. On
# a quiet machine the first rounds suffice.
LONGEST = 150.0

pytestmark = pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed (make setup does that)")


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """A file of random content on a disk, not on tmpfs."""
    with tempfile.NamedTemporaryFile(dir="/var/tmp", prefix="pocketcloud-fio-") as file:
        for _ in range(SIZE // MIB):
            file.write(os.urandom(MIB))
        file.flush()
        os.fsync(file.fileno())
        yield Path(file.name)


def fio(image: Path, kind: str, block: str) -> dict[str, float]:
    """fio's own words for one reader that waits for each read."""
    argv = [
        "fio", "--name=same", f"--filename={image}", "--readonly", f"--rw={kind}", f"--bs={block}", "--direct=1",
        "--ioengine=psync", "--iodepth=1", f"--runtime={EACH * 1000:.0f}ms", "--time_based", "--thread", "--output-format=json",
    ]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    found: dict[str, float] = json.loads(done.stdout)["jobs"][0]["read"]
    return found


def test_our_figures_are_fios(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours: list[Measured] = []
    random_reads, sequential = [], []
    begun = time.monotonic()
    while True:
        measured = measure(image, 3 * EACH)
        if measured is None:
            pytest.skip("this file system cannot be read past the page cache")
        ours.append(measured)
        random_reads.append(fio(image, "randread", "4k")["iops"])
        sequential.append(fio(image, "read", "1M")["bw_bytes"])
        ratios = (
            median(each.random_reads for each in ours) / median(random_reads),
            median(each.sequential for each in ours) / median(sequential),
        )
        agree = all(abs(ratio - 1) <= WITHIN for ratio in ratios)
        if len(ours) >= ROUNDS and (agree or time.monotonic() - begun > LONGEST):
            break
    with capsys.disabled():
        print(f"\n  ours / fio's in {len(ours)} rounds: random reads {ratios[0]:.2f}, in sequence {ratios[1]:.2f}", end="")
    assert agree, f"ours / fio's: {ratios}"
