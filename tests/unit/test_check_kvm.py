"""Checks of KVM: whether it is there, what is in its way, what libvirt makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketcloud.check import State, failed
from pocketcloud.model.base import Arch
from pocketcloud.model.facts import Kvm, KvmState
from tests.computers import Computer, Libvirt
from tests.host_trees import arm_board, x86_laptop


@pytest.fixture
def laptop(tmp_path: Path) -> Computer:
    return Computer(tmp_path, x86_laptop("debian-13"))


@pytest.mark.parametrize("state", [KvmState.SLOW, KvmState.ABSENT, KvmState.DENIED, KvmState.BROKEN])
def test_without_kvm_labs_run_on_emulation_which_is_a_warning_with_the_reason(laptop: Computer, state: KvmState) -> None:
    laptop.change(kvm=Kvm(state, "1700 ns an instruction"))
    checks = laptop.checks()
    assert checks["kvm"].state is State.WARN
    assert checks["kvm"].evidence == f"{state}, so labs run on emulation: 1700 ns an instruction"
    assert checks["kvm"].remedy
    assert checks["kvm-libvirt"].state is State.NOT_APPLICABLE
    assert "profile emulated" in checks["architecture"].evidence
    assert not failed(check for check in checks.values() if check.group != "space")


LOADED = "echo {} > /etc/modules-load.d/pocketcloud-kvm.conf"


@pytest.mark.parametrize(
    ("flags", "virtualised", "expected"),
    [
        ("vmx", "", ("modprobe kvm_intel", LOADED.format("kvm_intel"))),
        ("svm", "", ("modprobe kvm_amd", LOADED.format("kvm_amd"))),
        ("", "", "firmware setup"),
        ("hypervisor", "vmware", "guest of VMware: have nested virtualisation switched on"),
        ("hypervisor", "unknown", "guest of a hypervisor that does not tell its name"),
    ],
)
def test_absent_kvm_has_the_remedy_of_its_cause(
    tmp_path: Path, flags: str, virtualised: str, expected: str | tuple[str, ...]
) -> None:
    computer = Computer(tmp_path, x86_laptop("debian-13", flags=flags))
    computer.change(kvm=Kvm(KvmState.ABSENT, "there is no /dev/kvm"), virtualised=virtualised)
    remedy = computer.checks()["kvm"].remedy
    if isinstance(expected, tuple):
        assert remedy == expected
    else:
        assert expected in remedy[0]


def test_a_board_that_did_not_start_at_el2_is_told(tmp_path: Path) -> None:
    computer = Computer(tmp_path, arm_board("Pine64+", "pine64,pine64-plus", memory_mib=2048))
    computer.change(kvm=Kvm(KvmState.ABSENT, "there is no /dev/kvm"))
    assert "EL2" in computer.checks()["kvm"].remedy[0]


def test_kvm_that_only_root_may_open_is_of_no_use_to_libvirt(laptop: Computer) -> None:
    (laptop.root / "dev/kvm").chmod(0o600)
    check = laptop.checks()["kvm-access"]
    assert check.state is State.FAIL
    assert "libvirt-qemu may not open it" in check.evidence
    assert check.remedy[:2] == ("chgrp kvm /dev/kvm", "chmod 0660 /dev/kvm")
    laptop.change(kvm=Kvm(KvmState.SLOW, "slow"))
    assert laptop.checks()["kvm-access"].state is State.WARN
    (laptop.root / "etc/passwd").unlink()
    assert laptop.checks()["kvm-access"].state is State.UNKNOWN


def test_libvirt_that_does_not_offer_kvm_fails(laptop: Computer) -> None:
    laptop.libvirt = Libvirt(kvm=(Arch.AARCH64,))
    check = laptop.checks()["kvm-libvirt"]
    assert (check.state, check.remedy) == (State.FAIL, ("systemctl restart libvirtd",))
