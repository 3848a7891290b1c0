"""`pocketcloud check`, and the guest that looks for its KVM, on an emulated ARM64 board: entered at EL2, as boards with good
firmware are, and at EL1, where there is no KVM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pocketcloud.check.nested_guest import Verdict, ask, verdict
from pocketcloud.model.base import Arch
from pocketcloud.system import run
from tests.rig.arm_board import kernel, missing, run_job

WITHIN = 900.0
pytestmark = [
    pytest.mark.timeout(2 * WITHIN),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]


def checks(*, el2: bool) -> dict[str, dict[str, Any]]:
    code, said = run_job("python3 -m pocketcloud check -o json --no-measure", el2=el2, timeout=WITHIN)
    assert "Traceback" not in said, said
    assert code == 3, "it has no QEMU, so that labs cannot run"
    return {check["id"]: check for check in json.loads(said[said.index("[") : said.rindex("]") + 1])}


@pytest.mark.slow
def test_a_board_that_starts_at_el2_has_kvm_that_does_not_nest() -> None:
    found = checks(el2=True)
    assert found["architecture"]["state"] == "ok"
    assert "profile arm64-board" in found["architecture"]["evidence"]
    assert found["kvm"]["state"] == "ok", found["kvm"]
    assert "in EL1 mode" in found["kvm"]["evidence"]
    assert found["nesting"]["state"] == "not-applicable"
    for words in ("Cortex-A53 (Armv8.0)", "FEAT_NV2", "machines of one level run on KVM"):
        assert words in found["nesting"]["evidence"]


@pytest.mark.slow
def test_a_board_that_starts_at_el1_has_no_kvm() -> None:
    found = checks(el2=False)
    assert "profile emulated" in found["architecture"]["evidence"]
    assert found["kvm"]["state"] == "warn", found["kvm"]
    assert "/dev/kvm" in found["kvm"]["evidence"]
    # Whoever emulates the board can let it start at EL2; a board of its own is told of firmware (tests/hosts).
    assert "have nested virtualisation switched on" in " ".join(found["kvm"]["remedy"])
    assert found["nesting"]["state"] == "not-applicable"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machine", "found", "words"),
    [
        (("-machine", "virtualization=on"), Verdict.RUNS, "took"),
        ((), Verdict.RUNS_NOT, "no /dev/kvm of its own"),
    ],
)
def test_a_guest_on_arm_finds_its_kvm_or_says_why_not(
    tmp_path: Path, machine: tuple[str, ...], found: Verdict, words: str
) -> None:
    """The guest of `check --deep` for ARM: entered at EL2, which nesting gives it, it runs a guest of its own."""
    how = ("-accel", "tcg", "-cpu", "cortex-a53", *machine)
    emulator = Path("qemu-system-aarch64")
    answer = ask(emulator, Arch.AARCH64, kernel(), (), how, folder=tmp_path, within=WITHIN, run=run)
    judged, said = verdict(answer, (), Arch.AARCH64)
    assert judged is found, (said, answer.console)
    assert words in said
