"""Disks of other computers, read by our code, lsblk, wipefs and udev's library as if they were here: umockdev gives a process and
its children another /sys, /dev and udev database, made of what `umockdev-record` wrote on the other computer.

What is not as it was there: lsblk finds no transport of SCSI disks, as umockdev 0.17 leaves readlinkat(2) in a folder alone (our
code knows USB from sysfs), and the devices are empty files, so that wipefs finds nothing.

`python -m tests.mocked_disks RESULT` is the process; it has to be started by umockdev-run.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from pocketcloud.host.disks import read_block_devices
from pocketcloud.model.disk import BlockDevices
from pocketcloud.system import run
from tests.host_trees import plant

TOP = Path(__file__).resolve().parents[1]
_TOOL = "umockdev-run"
# How umockdev tells children of its /sys; our own commands get a small environment otherwise.
_PASSED_ON = ("LD_PRELOAD", "UMOCKDEV_DIR")


def missing() -> str:
    """Why disks cannot be mocked here, empty if they can."""
    return "" if shutil.which(_TOOL) else f"{_TOOL} is not installed (packages.tsv: test:mocked-disks)"


def read_mocked(recordings: Sequence[Path], files: Mapping[str, str], scratch: Path) -> BlockDevices:
    """The block devices of recordings; `files` are more of that computer's, of which those in /sys count."""
    result = scratch / "devices"
    argv = [_TOOL, *(f"--device={recording}" for recording in recordings), "--", sys.executable, "-m", __name__, str(result)]
    told = json.dumps({name: content for name, content in files.items() if name.startswith("sys/")})
    done = subprocess.run(argv, cwd=TOP, input=told, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    devices = pickle.loads(result.read_bytes())  # noqa: S301 - our own child wrote it
    assert isinstance(devices, BlockDevices)
    return devices


def main(result: Path) -> None:
    place = Path(os.environ["UMOCKDEV_DIR"])
    plant(place, json.load(sys.stdin))
    _number(place / "sys")
    mocked = partial(run, env={name: os.environ[name] for name in _PASSED_ON})
    result.write_bytes(pickle.dumps(read_block_devices(run=mocked)))


def _number(sysfs: Path) -> None:
    """/sys/dev/block, by which lsblk finds devices: umockdev leaves NVMe disks out of it (its issue 155)."""
    (sysfs / "dev/block").mkdir(parents=True, exist_ok=True)
    for device in (sysfs / "class/block").iterdir():
        link = sysfs / "dev/block" / (device / "dev").read_text().strip()
        if not link.is_symlink():
            link.symlink_to(f"../../class/block/{device.name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
