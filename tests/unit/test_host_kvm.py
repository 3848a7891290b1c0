"""The timed loop through KVM's ioctls: the real one where this host has /dev/kvm, its refusals and its kept verdict."""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from pocketcloud.host import kvm_probe
from pocketcloud.host.kvm import SLOW_SECONDS, read_kvm
from pocketcloud.model.facts import KvmState
from pocketcloud.system import CommandFailed, Completed, run
from tests.host_trees import plant, x86_laptop

PROBE = Path(kvm_probe.__file__)


class Loop:
    """A Runner whose loop takes as long as it is told; counts how often it was run."""

    def __init__(self, answer: str | CommandFailed) -> None:
        self.answer = answer
        self.runs = 0

    def __call__(
        self,
        argv: Sequence[str | Path],
        *,
        stdin: bytes | None = None,  # noqa: ARG002 - the shape of a Runner
        codes: Sequence[int] = (0,),  # noqa: ARG002
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,  # noqa: ARG002
        cwd: Path | None = None,  # noqa: ARG002
        on_line: Callable[[str], None] | None = None,  # noqa: ARG002
    ) -> Completed:
        assert timeout is not None, "a hung ioctl must not hang the tool"
        self.runs += 1
        if isinstance(self.answer, CommandFailed):
            raise self.answer
        return Completed(tuple(map(str, argv)), 0, self.answer, "")


def took(seconds: float, **modes: float) -> Loop:
    """Each mode takes `seconds`, but those that are named."""
    taken = {"real": seconds, "protected": seconds, "long": seconds, **modes}
    return Loop(json.dumps({"seconds": taken, "instructions": 200_000, "value": 1, "nested_state": 4224, "arm_el2": 0}))


@pytest.fixture
def laptop(tmp_path: Path) -> Path:
    """A computer with a /dev/kvm that can be opened (an ordinary file) and KVM's modules."""
    return plant(tmp_path, {**x86_laptop("debian-13"), "dev/kvm": "", "sys/module/kvm_intel/parameters/nested": "Y\n"})


def test_the_real_loop_computes_right_or_says_why_not() -> None:
    answer = json.loads(run([sys.executable, "-I", PROBE], timeout=60).out)
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        assert answer["failed"].startswith("/dev/kvm: ")
        assert read_kvm(Path("/"), run).state in (KvmState.ABSENT, KvmState.DENIED)
        return
    if "failed" in answer:
        # No virtualisation behind the device: then the very first ioctls say so, and the verdict names them.
        assert answer["failed"].startswith("KVM")
        assert read_kvm(Path("/"), run, fresh=True).state is KvmState.BROKEN
        return
    assert answer["value"] == 0x600D
    assert set(answer["seconds"]) == ({"EL1"} if os.uname().machine == "aarch64" else {"real", "protected", "long"})
    assert all(seconds > 0 for seconds in answer["seconds"].values())
    assert answer["instructions"] == 200_000
    judged = read_kvm(Path("/"), run)
    assert judged.state in (KvmState.USABLE, KvmState.SLOW)
    assert judged.nanoseconds > 0


def test_a_file_that_is_not_kvm_is_broken(laptop: Path) -> None:
    kvm = read_kvm(laptop, run)
    assert (kvm.state, kvm.evidence) == (KvmState.BROKEN, "KVM_GET_API_VERSION: Inappropriate ioctl for device")
    assert not (laptop / "run/pocketcloud/kvm.json").exists()


def test_the_loop_knows_no_other_machine_than_ours() -> None:
    with pytest.raises(kvm_probe.Failed, match="no loop was written for riscv64"):
        kvm_probe.measure("/dev/null", "riscv64")


def test_absence_says_what_was_looked_at(tmp_path: Path) -> None:
    plant(tmp_path, {**x86_laptop("debian-13", flags="svm"), "sys/module/kvm/": "", "sys/module/kvm_amd/": ""})
    kvm = read_kvm(tmp_path, run)
    assert kvm.state is KvmState.ABSENT
    assert "there is no" in kvm.evidence
    assert "modules: kvm, kvm_amd" in kvm.evidence
    assert "the flag svm" in kvm.evidence
    nothing = read_kvm(tmp_path / "empty", run)
    assert "no kvm module is loaded; the processor shows neither vmx nor svm" in nothing.evidence


def test_no_permission_is_denied(laptop: Path) -> None:
    (laptop / "dev/kvm").chmod(0)
    script = (
        "import sys; from pathlib import Path; from pocketcloud.host.kvm import read_kvm; from pocketcloud.system import run\n"
        "kvm = read_kvm(Path(sys.argv[1]), run); print(kvm.state, kvm.evidence)"
    )
    # Root may open everything, so it has to give that up first.
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    said = run([*drop, sys.executable, "-c", script, str(laptop)], cwd=Path(__file__).parents[2]).out
    assert said.startswith("denied ")
    assert f"uid {os.geteuid()}" in said


def test_quick_is_usable_and_slow_is_said_with_figures(laptop: Path) -> None:
    usable = read_kvm(laptop, took(0.0004))
    assert (usable.state, usable.evidence) == (
        KvmState.USABLE,
        "a loop of 200000 instructions took 0.4 / 0.4 / 0.4 ms in real, protected and long mode: 2 ns an instruction",
    )
    assert (usable.nested_state, usable.arm_el2) == (4224, False)
    assert usable.nanoseconds == pytest.approx(2.0)
    slow = read_kvm(laptop, took(0.340), fresh=True)
    assert slow.state is KvmState.SLOW
    assert "took 340 / 340 / 340 ms in real, protected and long mode: 1.7e+03 ns an instruction" in slow.evidence
    assert "kvm_intel" in slow.evidence
    assert read_kvm(laptop, took(SLOW_SECONDS), fresh=True).state is KvmState.SLOW


@pytest.mark.parametrize("mode", ["protected", "long"])
def test_one_mode_that_is_emulated_is_enough_to_be_slow(laptop: Path, mode: str) -> None:
    assert read_kvm(laptop, took(0.0004, **{mode: 0.3})).state is KvmState.SLOW


def test_real_mode_alone_may_be_emulated(laptop: Path) -> None:
    """By KVM, on processors before Intel's "unrestricted guest"."""
    kvm = read_kvm(laptop, took(0.0004, real=0.1))
    assert kvm.state is KvmState.USABLE
    assert "real mode is emulated" in kvm.evidence


@pytest.mark.parametrize(
    ("answer", "evidence"),
    [
        ('{"failed": "KVM_CREATE_VM: Device or resource busy"}', "KVM_CREATE_VM: Device or resource busy"),
        ("", "the timed loop printed no figures"),
        ("[1]", "the timed loop printed no figures"),
        ('{"seconds": "many", "instructions": 1}', "the timed loop printed no figures"),
        ('{"seconds": {"real": 0.1}, "instructions": 1}', "the timed loop printed no figures"),
        ('{"seconds": {"long": "?"}, "instructions": 1}', "the timed loop printed no figures"),
        (CommandFailed(Completed(("python",), -9, "", "not done after 20 s")), "the timed loop ended with not done after 20 s"),
    ],
)
def test_a_loop_that_does_not_end_well_is_broken(laptop: Path, answer: str | CommandFailed, evidence: str) -> None:
    kvm = read_kvm(laptop, Loop(answer))
    assert (kvm.state, kvm.evidence) == (KvmState.BROKEN, evidence)


def test_the_verdict_is_kept_until_boot_kernel_or_modules_change(laptop: Path) -> None:
    loop = took(0.2)
    first = read_kvm(laptop, loop)
    assert read_kvm(laptop, loop) == first
    assert loop.runs == 1
    assert (laptop / "run/pocketcloud/kvm.json").stat().st_mode & 0o777 == 0o644
    changes = {
        "proc/sys/kernel/random/boot_id": "other",
        "proc/sys/kernel/osrelease": "6.13",
        "sys/module/kvm_intel/parameters/nested": "N",
        "sys/module/kvm_amd/parameters/nested": "1",
    }
    for number, (name, content) in enumerate(changes.items(), start=2):
        plant(laptop, {name: content})
        read_kvm(laptop, loop)
        assert loop.runs == number, name
    read_kvm(laptop, loop, fresh=True)
    assert loop.runs == len(changes) + 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 1}', "null"])
def test_a_damaged_verdict_is_measured_anew(laptop: Path, content: str) -> None:
    plant(laptop, {"run/pocketcloud/kvm.json": content})
    assert read_kvm(laptop, took(0.001)).state is KvmState.USABLE
    kept = took(0.9)
    assert read_kvm(laptop, kept).state is KvmState.USABLE
    assert kept.runs == 0


def test_where_no_verdict_can_be_kept_it_is_measured_each_time(laptop: Path) -> None:
    plant(laptop, {"run/pocketcloud": "a file in the way"})
    loop = took(0.001)
    assert read_kvm(laptop, loop).state is KvmState.USABLE
    assert read_kvm(laptop, loop).state is KvmState.USABLE
    assert loop.runs == 2


def test_a_kept_verdict_does_not_outlive_the_device(laptop: Path) -> None:
    read_kvm(laptop, took(0.001))
    (laptop / "dev/kvm").unlink()
    assert read_kvm(laptop, took(0.001)).state is KvmState.ABSENT


def test_the_arm_code_is_what_its_comments_say() -> None:
    words = struct.unpack("<8I", kvm_probe.ARM_CODE)
    # As GNU as 2.40 for aarch64 assembles them:
    # movz x0,#0x86a0; movk x0,#1,lsl 16; subs x0,x0,#1; b.ne .-4; movz x1,#0x1000,lsl 16;
    # movz x2,#0x600d; add x2,x2,x0; str w2,[x1]
    assert [f"{word:08x}" for word in words] == [
        "d290d400",
        "f2a00020",
        "f1000400",
        "54ffffe1",
        "d2a20001",
        "d28c01a2",
        "8b000042",
        "b9000022",
    ]
