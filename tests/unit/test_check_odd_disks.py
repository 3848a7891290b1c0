"""What `check` says of hosts whose disks are many, strangely named, unseen, or told of by nobody but the kernel."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pocketcloud.check import Check, State, run_checks
from pocketcloud.cli.measuring import measuring
from pocketcloud.errors import HostLacks
from pocketcloud.host import read_facts
from pocketcloud.hypervisor import Hypervisor
from pocketcloud.model.disk import BlockDevice, Measured
from pocketcloud.model.sizes import GIB, MIB
from pocketcloud.system import Completed
from tests.host_trees import plant, x86_laptop

QUICK = Measured(sequential=412e6, random_reads=9800, p50=0.0001, p99=0.0004, first=400e6, counts=(9, 5, 0, 0, 0, 0, 1))


def plug(root: Path, names: Sequence[str]) -> None:
    """Disks in sysfs; of their models the kernel hands on what the disk said, whatever that is."""
    for number, name in enumerate(names):
        place = root / "sys/devices/pci0000:00/block" / name
        queue = {"rotational": "0", "logical_block_size": "512", "discard_max_bytes": str(4 * GIB), "write_cache": "write back"}
        plant(place, {"size": str(256 * GIB // 512), "dev": f"8:{number * 16}", "removable": "0", "device/": ""})
        plant(place, {f"queue/{key}": value for key, value in queue.items()})
        (place / "device/model").write_bytes(b"Evil \xff\xfe\x1b[2J Disk\n")
        (place / "device/serial").write_bytes(b"S\xe9\n")
        (root / "sys/class/block").mkdir(parents=True, exist_ok=True)
        (root / "sys/class/block" / name).symlink_to(place)


def saying(lsblk: object) -> Callable[..., Completed]:
    """A Runner under which lsblk gives that list; without udev it knows names and sizes only."""

    def runner(argv: Sequence[str | Path], **_: object) -> Completed:
        words = tuple(map(str, argv))
        if words[0] == "lsblk":
            return Completed(words, 0, json.dumps({"blockdevices": lsblk}), "")
        if words[0] == "wipefs":
            return Completed(words, 0, "{}", "")
        raise HostLacks(f"{words[0]} is not installed")

    return runner


def unreachable() -> Hypervisor:
    raise HostLacks("not asked in this test")


def storage(root: Path, lsblk: object, measured: list[str] | None = None) -> dict[str, Check]:
    """The checks of disks; `measured` takes the names of those that were read."""

    def measure(disk: BlockDevice) -> Measured:
        if measured is not None:
            measured.append(disk.name)
        return QUICK

    plant(root, x86_laptop("debian-13"))
    facts = read_facts(root, run=saying(lsblk))
    found = run_checks(
        facts, kit_path=root, run=saying(lsblk), hypervisor=unreachable, root=root, find=lambda _: None, measure=measure
    )
    assert not [check.id for check in found if check.id.endswith("-unfinished")]
    assert json.dumps([check.told for check in found])
    return {check.id: check for check in found if check.group == "storage"}


def test_of_forty_disks_each_is_judged_and_four_are_read(tmp_path: Path) -> None:
    names = [f"sd{a}{b}" for a in ("", "a") for b in "abcdefghijklmnopqrst"]
    plug(tmp_path, names)
    read: list[str] = []
    checks = storage(tmp_path, [{"kname": name, "path": f"/dev/{name}", "type": "disk", "serial": name} for name in names], read)
    assert {name.partition(":")[2] for name in checks} == set(names)
    assert read == names[:4]
    assert [checks[f"speed:{name}"].state for name in names] == [State.OK] * 4 + [State.UNKNOWN] * 36
    assert "only 4 disks are measured unasked; --device /dev/sdat" in checks["speed:sdat"].evidence


@pytest.mark.parametrize("lsblk", [[], [{"kname": "sda", "model": "Evil \udcff\udcfe\x1b[2J Disk", "serial": "S\ufffd"}]])
def test_what_a_disk_calls_itself_is_shown_whatever_its_bytes(tmp_path: Path, lsblk: object) -> None:
    plug(tmp_path, ["sda"])
    checks = storage(tmp_path, lsblk)
    evidence = checks["medium:sda"].evidence
    assert "Evil" in evidence
    assert "\x1b" not in evidence
    assert evidence.encode("utf-8"), "it can be printed"


def test_without_udev_sysfs_tells_what_lsblk_does_not(tmp_path: Path) -> None:
    """lsblk takes models, serials and file systems from udev's database; of a host without, it lists names."""
    plug(tmp_path, ["sda", "sdb"])
    bare = [
        {"kname": name, "path": f"/dev/{name}", "type": "disk", "model": None, "serial": None, "tran": None}
        for name in ("sda", "sdb")
    ]
    checks = storage(tmp_path, bare)
    assert {"medium:sda", "speed:sda", "trim:sda", "write-cache:sda", "medium:sdb"} <= set(checks)
    assert checks["medium:sda"].state is State.OK
    assert checks["trim:sda"].state is State.OK
    assert checks["speed:sda"].told["figures"] == QUICK.told
    assert "figures" not in checks["trim:sda"].told


@pytest.mark.parametrize("files", [{}, {"sys/class/block/": ""}, {"dev/": ""}])
def test_a_container_without_disks_or_dev_is_told_so(tmp_path: Path, files: dict[str, str]) -> None:
    plant(tmp_path, files)
    checks = storage(tmp_path, [])
    assert {name: check.state for name, check in checks.items()} == {"disks": State.UNKNOWN}
    assert checks["disks"].evidence == "no disk is to be seen here"


def test_a_disk_that_is_in_sys_and_not_in_dev_is_not_read_and_says_so(tmp_path: Path) -> None:
    """As in containers, which see the host's /sys, and its own disks nowhere."""
    plug(tmp_path, ["sdzz"])
    with measuring("none", 0, 0.5) as measure:
        plant(tmp_path, x86_laptop("debian-13"))
        found = run_checks(
            read_facts(tmp_path, run=saying([])),
            kit_path=tmp_path, run=saying([]), hypervisor=unreachable, root=tmp_path, find=lambda _: None, measure=measure,
        )  # fmt: skip
    check = next(check for check in found if check.id == "speed:sdzz")
    assert check.state is State.UNKNOWN
    assert "/dev/sdzz cannot be read: No such file or directory" in check.evidence
    assert check.remedy == ("Plug it in again, or choose another disk (lsblk lists them)",)


# -- how it is shown while it lasts


SCRIPT = """
import sys
from pathlib import Path
from pocketcloud.cli.measuring import measuring
from pocketcloud.model.disk import BlockDevice
path = Path(sys.argv[2])
with measuring(sys.argv[1], 0, 0.6) as measure:
    assert measure(BlockDevice("sdx", path, "disk", 1)) is not None
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(16 * MIB))
    return path


def test_a_measurement_is_one_line_in_a_pipe_and_lines_of_json_where_asked(image: Path) -> None:
    def said(progress: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, progress, image], capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stdout == ""
        return done.stderr.splitlines()

    began, *ended = said("auto")
    assert re.fullmatch(rf"\[ *[\d.]+s\]   measuring how quickly {image} can be read, for 1 s \(nothing is written\)", began)
    assert all("measure" in line and "done in" in line for line in ended)
    events = [json.loads(line) for line in said("json")]
    fractions = [event["fraction"] for event in events if event["event"] == "StepProgress"]
    assert fractions[0] == 0
    assert fractions[-1] == 1
    assert fractions == sorted(fractions)
    assert events[-1]["event"] == "StepDone"
    assert said("none") == []


def test_a_measurement_is_a_bar_on_a_terminal(image: Path) -> None:
    ours, theirs = pty.openpty()
    env = os.environ | {"COLUMNS": "120", "TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", SCRIPT, "auto", image], stderr=theirs, env=env) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # how a terminal that is closed at the other end is read
                break
            if not piece:
                break
            shown += piece
    os.close(ours)
    assert process.returncode == 0
    assert "measure sdx" in shown.decode()
    assert "━" in shown.decode()
