"""Checks of memory, of what beside it counts, and of processors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from pocketcloud.check import State
from pocketcloud.host.memory import read_swaps
from pocketcloud.model.sizes import GIB, MIB
from tests.computers import Computer
from tests.host_trees import plant, x86_laptop


@pytest.fixture
def laptop(tmp_path: Path) -> Computer:
    return Computer(tmp_path, x86_laptop("debian-13"))


def test_memory_is_judged_against_the_demo_and_the_smallest_machine(laptop: Computer) -> None:
    states = {}
    for mib in (16384, 2600, 1700, 100):
        laptop.change(memory=16 * GIB, memory_available=mib * MIB)
        states[mib] = laptop.checks()["memory"].state
    assert states == {16384: State.OK, 2600: State.WARN, 1700: State.FAIL, 100: State.FAIL}
    laptop.change(memory=0, memory_available=0)
    assert laptop.checks()["memory"].state is State.UNKNOWN


SWAPS = """Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority
/dev/nvme0n1p3                          partition\t33554428\t0\t\t-2
/dev/zram0                              partition\t8388604\t1048576\t100
"""


def test_swap_and_zram_are_no_memory_for_labs(laptop: Computer) -> None:
    before = laptop.checks()
    assert before["swap"].evidence == "none"
    plant(laptop.root, {"proc/swaps": SWAPS, "sys/block/zram0/mm_stat": "1073741824 209715200 220200960 0 0 0 0 0 0\n"})
    after = laptop.checks()
    assert after["memory"].evidence == before["memory"].evidence
    told = "32.0 GiB on /dev/nvme0n1p3, 8.0 GiB on /dev/zram0 (compressed memory, 210 MiB taken): not counted for labs"
    assert after["swap"].evidence.startswith(told)
    assert after["swap"].state is State.OK, "what is in zram waits for no disk"
    plant(laptop.root, {"proc/swaps": SWAPS.replace("33554428\t0", "33554428\t6291456")})
    check = laptop.checks()["swap"]
    assert (check.state, "6 GiB of memory is swapped out" in check.evidence) == (State.WARN, True)


@pytest.mark.parametrize(
    "swaps", ["", "x\n", "Filename\n/dev/sda2 partition -3 x 1\n", "Filename\n" + "9 " * 99, "F\n/zram0 a 1 1 1\n"]
)
def test_nonsense_in_swaps_is_passed_over(tmp_path: Path, swaps: str) -> None:
    plant(tmp_path, {"proc/swaps": swaps})
    assert all(swap.size >= 0 and swap.taken == 0 for swap in read_swaps(tmp_path))


def test_huge_pages_and_strict_accounts_are_told(laptop: Computer) -> None:
    meminfo = "HugePages_Total:    1024\nHugepagesize:       2048 kB\nCommitLimit:     9000000 kB\nCommitted_AS:  8000000 kB\n"
    plant(laptop.root, {"proc/meminfo": meminfo})
    check = laptop.checks()["memory"]
    assert "2 GiB set aside as huge pages" in check.evidence
    assert check.state is State.OK
    plant(laptop.root, {"proc/sys/vm/overcommit_memory": "2\n"})
    check = laptop.checks()["memory"]
    assert check.state is State.WARN
    assert check.evidence.startswith("977 MiB for labs:")
    assert check.remedy[-1] == "sysctl -w vm.overcommit_memory=0"


KSM = "sys/kernel/mm/ksm"


@pytest.mark.parametrize(
    ("files", "available", "state", "words"),
    [
        ({}, 12 * GIB, State.NOT_APPLICABLE, "no KSM"),
        ({f"{KSM}/run": "1\n", f"{KSM}/pages_sharing": "262144\n"}, GIB, State.OK, "on; it saves 1 GiB now"),
        ({f"{KSM}/run": "0\n"}, 12 * GIB, State.OK, "echo 1 > /sys/kernel/mm/ksm/run"),
        ({f"{KSM}/run": "0\n"}, 2600 * MIB, State.WARN, "off, and memory is short"),
        ({f"{KSM}/run": "2\n"}, 2600 * MIB, State.WARN, "off, and memory is short"),
        (
            {f"{KSM}/run": "0\n", "etc/systemd/system/multi-user.target.wants/ksmtuned.service": ""},
            2600 * MIB,
            State.OK,
            "ksmtuned switches it on",
        ),
    ],
)
def test_ksm_is_worth_its_time_where_memory_is_short(
    laptop: Computer, files: Mapping[str, str], available: int, state: State, words: str
) -> None:
    (laptop.root / KSM / "run").unlink()
    plant(laptop.root, files)
    laptop.change(memory=16 * GIB, memory_available=available)
    check = laptop.checks()["ksm"]
    assert check.state is state
    assert words in check.evidence
    assert bool(check.fix) == bool(check.remedy) == (state is State.WARN)


def test_ksm_comes_back_after_a_start_where_systemd_can_see_to_it(laptop: Computer) -> None:
    plant(laptop.root, {f"{KSM}/run": "0\n"})
    laptop.change(memory_available=2600 * MIB)
    remedy = laptop.checks()["ksm"].remedy
    assert remedy[-1] == "systemd-tmpfiles --create /etc/tmpfiles.d/pocketcloud-ksm.conf"
    laptop.change(systemd=False)
    assert laptop.checks()["ksm"].remedy == ("sh -c 'echo 1 > /sys/kernel/mm/ksm/run'",)


def test_one_processor_is_few(laptop: Computer) -> None:
    assert laptop.checks()["cpus"].evidence == "8 processors are online"
    laptop.change(cpus=1)
    assert laptop.checks()["cpus"].state is State.WARN
