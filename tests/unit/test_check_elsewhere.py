"""`check --profile` of computers that are not at hand, and `--lab`: what is judged by what the profile says, and what is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pocketcloud.check import Check, State, failed, run_checks, summary
from pocketcloud.documents import load_lab, parse_lab
from pocketcloud.errors import HostLacks
from pocketcloud.host import read_facts
from pocketcloud.hypervisor import Hypervisor
from pocketcloud.model.base import Arch
from pocketcloud.model.facts import Facts, Kvm, KvmState
from pocketcloud.model.lab import Lab
from pocketcloud.model.sizes import GIB, MIB
from pocketcloud.profiles import available, choose, find
from pocketcloud.resources import shipped
from pocketcloud.system import Runner
from tests.host_trees import arm_board, pine64, plant, x86_laptop
from tests.unit.test_hosts import as_there

RUN: Runner = as_there({"kvm": {}})
BIG = """\
lab: big
machines:
  a: {base: debian-12, memory: 1GiB, ready: {console: x}}
  b: {base: debian-12, memory: 1GiB, ready: {console: x}}
"""


def nobody() -> Hypervisor:
    raise HostLacks("libvirt was asked, which says nothing of another computer")


def facts_of(files: dict[str, str], root: Path, kvm: KvmState = KvmState.USABLE) -> Facts:
    return replace(read_facts(plant(root, files), run=RUN), kvm=Kvm(kvm, "as the test says"))


@pytest.fixture
def laptop(tmp_path: Path) -> Facts:
    return facts_of(x86_laptop("debian-13"), tmp_path)


def judged(facts: Facts, root: Path, profile: str | None, lab: Lab | None = None) -> dict[str, Check]:
    found = run_checks(
        facts,
        kit_path=root,
        run=RUN,
        hypervisor=nobody,
        root=root,
        find=lambda _tool: None,
        profile=find(profile) if profile else None,
        lab=lab,
    )
    by_id = {check.id: check for check in found}
    assert len(by_id) == len(found), "ids are unique"
    for check in found:
        assert check.evidence
        assert check.why.endswith(".")
    return by_id


def test_a_board_is_judged_by_what_it_has_and_not_by_this_computer(laptop: Facts, tmp_path: Path) -> None:
    checks = judged(laptop, tmp_path, "pine64")
    assert checks["architecture"].evidence.startswith(
        "judged as a pine64: 2 GiB, 4 cores (Cortex-A53); not as this computer (x86_64"
    )
    assert (checks["kvm"].state, checks["kvm"].remedy) == (State.UNKNOWN, ("Run pocketcloud check there",))
    assert (checks["nesting"].state, checks["gic"].state) == (State.NOT_APPLICABLE, State.OK)
    assert checks["nesting"].evidence.startswith("never: Cortex-A53 (Armv8.0)")
    assert "2 machines of 512 MiB, or 0 of 2 GiB" in checks["memory"].evidence
    assert checks["usb-ports"].state is State.WARN
    assert "libvirt" in checks["not-judged"].evidence
    # No tool is installed here, and libvirt does not answer: that is no fault of a PINE A64.
    assert not failed(checks.values())
    assert "unfinished" not in " ".join(checks)
    said = summary(checks.values(), laptop, find("pine64"))
    assert said.startswith("A pine64 (2 GiB, 4 cores (Cortex-A53)) would run labs on KVM, if its own pocketcloud check")


def test_a_board_with_two_kinds_of_cores_says_where_machines_stay(laptop: Facts, tmp_path: Path) -> None:
    cores = judged(laptop, tmp_path, "rockpro64")["cores"].evidence
    assert "Cortex-A53: CPU 0-3; Cortex-A72: CPU 4-5" in cores
    assert cores.endswith("kept on the Cortex-A72, CPU 4-5")


@pytest.mark.parametrize("name", [profile.profile for profile in available()])
def test_every_profile_can_be_judged_from_here(laptop: Facts, tmp_path: Path, name: str) -> None:
    checks = judged(laptop, tmp_path, name, load_lab(shipped("labs", "demo.yaml")))
    there = name not in ("x86-laptop", "emulated")
    assert ("not-judged" in checks) is there
    if there and find(name).board:
        assert checks["lab:demo"].state is State.OK
    elif there:
        assert (checks["memory"].state, checks["lab:demo"].state) == (State.UNKNOWN, State.UNKNOWN)
        assert "differ too much" in summary(checks.values(), laptop, find(name))


def test_a_profile_of_this_kind_of_computer_judges_this_one(tmp_path: Path) -> None:
    board = facts_of(pine64(), tmp_path, KvmState.ABSENT)
    assert choose(board).profile == "emulated"
    checks = judged(board, tmp_path, "pine64")
    assert "not-judged" not in checks
    assert checks["architecture"].evidence == "aarch64 (Pine64+): profile pine64, PINE A64 board with KVM"


def test_a_lab_fits_some_sizes_of_a_board(laptop: Facts, tmp_path: Path) -> None:
    big = parse_lab(BIG, "big.yaml")
    fits = judged(laptop, tmp_path, "raspberry-pi-4", big)["lab:big"]
    assert (fits.state, "a raspberry-pi-4 with 4 GiB or more can give that" in fits.evidence) == (State.OK, True)
    checks = judged(laptop, tmp_path, "pine64", big)
    assert checks["lab:big"].state is State.FAIL
    assert "a pine64 can give labs 1.4 GiB at most" in checks["lab:big"].evidence
    assert checks["lab:big"].remedy == ("Give its machines less memory, or take some out",)
    assert failed(checks.values())
    assert summary(checks.values(), laptop, find("pine64")) == "No: lab:big would not do on a pine64."


def test_a_lab_with_more_processors_than_the_profile_allows_does_not_do(laptop: Facts, tmp_path: Path) -> None:
    lab = parse_lab(BIG.replace("a: {", "a: {vcpus: 6, "), "big.yaml")
    check = judged(laptop, tmp_path, "raspberry-pi-4", lab)["lab:big"]
    assert (check.state, check.remedy) == (State.FAIL, ("Give its machines fewer vcpus",))
    assert "a: 6 vcpus; profile raspberry-pi-4 allows 4" in check.evidence
    server = judged(laptop, tmp_path, "arm64-server", lab)["lab:big"]
    assert server.state is State.UNKNOWN


def test_a_lab_is_held_against_this_computer_too(laptop: Facts, tmp_path: Path) -> None:
    big = parse_lab(BIG, "big.yaml")
    assert judged(laptop, tmp_path, None, big)["lab:big"].state is State.OK
    small = replace(laptop, memory=3 * GIB, memory_available=3 * GIB)
    assert judged(small, tmp_path, None, big)["lab:big"].state is State.FAIL
    assert judged(replace(small, memory_available=0), tmp_path, None, big)["lab:big"].state is State.UNKNOWN
    assert not any(name.startswith("lab:") for name in judged(laptop, tmp_path, None))


def test_on_x86_nothing_is_said_of_arm(laptop: Facts, tmp_path: Path) -> None:
    assert not {"cores", "gic", "page-size", "programs"} & set(judged(laptop, tmp_path, None))


def test_what_a_board_does_not_tell_is_unknown(tmp_path: Path) -> None:
    files = {
        **arm_board("Board", "maker,board", memory_mib=4096),
        "proc/self/smaps": "",
        "proc/interrupts": "",
        "proc/cpuinfo": "",
    }
    facts = facts_of(files, tmp_path, KvmState.ABSENT)
    assert facts.arch is Arch.AARCH64
    checks = judged(facts, tmp_path, None)
    assert checks["cores"].state is State.UNKNOWN
    assert checks["page-size"].state is State.UNKNOWN
    # The device tree was looked at, and has none.
    assert checks["gic"].state is State.WARN
    usable = judged(replace(facts, kvm=Kvm(KvmState.USABLE, "as the test says")), tmp_path, None)
    assert usable["gic"].state is State.OK
    assert facts.memory == 4096 * MIB
