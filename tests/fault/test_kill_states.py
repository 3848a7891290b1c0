"""kill -9 in `snapshot`, `restore`, `reset`, `undo` and `forget`: the lab is wholly in its old or its new state, the same command
completes, and what was left can be brought back. The disks' content is read on the host. On thin volumes: tests/rig/inside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from pocketcloud.hypervisor.libvirt import LibvirtHypervisor
from tests.fault.states_campaign import VERBS, StatesBed, block_of_cases
from tests.labkit import lab_kit

# Of each verb, so that all come to more than 200: with those of warm labs here, and those on thin volumes.
CASES = 32
BLOCKS = 4


@pytest.fixture(scope="module")
def bed() -> Iterator[StatesBed]:
    with lab_kit() as kit, contextlib.closing(LibvirtHypervisor.connect()) as hypervisor:
        made = StatesBed(kit, hypervisor)
        made.begin()
        yield made


@pytest.mark.sampled(5)
@pytest.mark.parametrize("verb", VERBS)
def test_killed_somewhere_it_is_completed(bed: StatesBed, verb: str) -> None:
    block_of_cases(bed, verb, 1)
    assert bed.cases


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("block", range(BLOCKS))
@pytest.mark.parametrize("verb", VERBS)
def test_killed_everywhere_it_is_completed(bed: StatesBed, verb: str, block: int) -> None:
    before, killed = bed.cases, bed.killed
    block_of_cases(bed, verb, CASES, block, BLOCKS)
    assert 2 * (bed.killed - killed) >= bed.cases - before, "most were through before they were to be killed"
    assert bed.cases - before >= min(CASES, len(bed.recorded(verb))) // BLOCKS - 1


@pytest.fixture(scope="module")
def warm() -> Iterator[StatesBed]:
    with lab_kit() as kit, contextlib.closing(LibvirtHypervisor.connect()) as hypervisor:
        made = StatesBed(kit, hypervisor, warm=True)
        made.begin()
        yield made


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "undo"])
def test_killed_while_memory_is_kept_or_woken_from_it_is_completed(warm: StatesBed, verb: str) -> None:
    before, killed = warm.cases, warm.killed
    block_of_cases(warm, verb, CASES // 4)
    assert 2 * (warm.killed - killed) >= warm.cases - before, "most were through before they were to be killed"
    assert warm.cases - before >= CASES // 4 - 1
