"""The judgements as a whole: on computers that are not this one, and on this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketcloud.check import State, failed, run_checks, summary
from pocketcloud.errors import HostLacks
from pocketcloud.host import read_facts
from pocketcloud.hypervisor import Hypervisor
from pocketcloud.model.facts import Kvm, KvmState
from pocketcloud.profiles import find as find_profile
from pocketcloud.system import run
from tests.computers import Computer
from tests.host_trees import pine64, x86_laptop


@pytest.fixture
def laptop(tmp_path: Path) -> Computer:
    return Computer(tmp_path, x86_laptop("debian-13"))


def test_a_computer_in_order_has_nothing_to_remedy(laptop: Computer) -> None:
    # The space is this machine's own.
    laptop.devices = (Path("/dev/sda"),)
    checks = {name: check for name, check in laptop.checks().items() if check.group not in ("space", "power")}
    assert {name: check.state for name, check in checks.items() if check.state is not State.OK} == {}
    assert not failed(checks.values())
    for check in checks.values():
        assert check.evidence
        assert check.why.endswith(".")
        assert check.remedy == ()
    assert checks["qemu"].evidence == "/usr/bin/qemu-system-x86_64: QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)"
    assert checks["architecture"].evidence.startswith("x86_64 (LENOVO ThinkPad X1 Carbon Gen 9): profile x86-laptop")


def test_a_fault_in_one_group_leaves_the_others(laptop: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    before = laptop.checks()
    monkeypatch.setattr("pocketcloud.check.memory.memory_for_labs", lambda *_: 1 // 0)
    after = laptop.checks()
    assert after["memory-unfinished"].state is State.UNKNOWN
    assert "ZeroDivisionError" in after["memory-unfinished"].evidence
    assert set(before) - {"memory", "swap", "ksm", "cpus"} == set(after) - {"memory-unfinished"}


def test_the_whole_is_said_in_a_sentence(laptop: Computer) -> None:
    checks = tuple(laptop.checks().values())
    profile = find_profile("x86-laptop")
    assert summary(checks, laptop.facts, profile) == (
        "LENOVO ThinkPad X1 Carbon Gen 9 can run labs on KVM, with KVM inside their machines: up to 16 machines of 512 MiB, or 4"
        " of 2 GiB (profile x86-laptop); 1 warning."
    )
    assert not failed(checks)
    assert failed(checks, strict=True), "the disk in the USB 2 port"
    laptop.change(kvm=Kvm(KvmState.SLOW, "1700 ns an instruction"))
    said = summary(laptop.checks().values(), laptop.facts, find_profile("emulated"))
    assert "on emulation, ten to thirty times slower than with KVM, without KVM inside" in said
    laptop.tools -= {"qemu-img"}
    assert summary(laptop.checks().values(), laptop.facts, profile).endswith("(qemu-img): labs cannot run here yet.")


def test_an_architecture_without_a_profile_fails(laptop: Computer) -> None:
    laptop.change(arch=None, machine="riscv64")
    checks = laptop.checks()
    assert checks["architecture"].state is State.FAIL
    assert {checks[name].state for name in ("memory", "qemu", "firmware")} == {State.NOT_APPLICABLE}


def test_a_profile_named_by_hand_is_the_one_judged(laptop: Computer) -> None:
    found = run_checks(
        laptop.facts,
        kit_path=Path("/"),
        run=laptop.run,
        hypervisor=laptop.connect,
        profile=find_profile("emulated"),
        root=laptop.root,
    )
    assert "profile emulated" in next(check for check in found if check.id == "architecture").evidence


def test_a_folder_that_others_may_not_pass_is_named_with_its_remedy(laptop: Computer, tmp_path: Path) -> None:
    home = tmp_path / "home of a user"
    home.mkdir(mode=0o700)
    found = run_checks(laptop.facts, kit_path=home / "kit", run=laptop.run, hypervisor=laptop.connect, root=laptop.root)
    check = next(check for check in found if check.id == "kit-path")
    assert check.state is State.WARN
    assert f"setfacl -m u:libvirt-qemu:x '{home}'" in check.remedy
    space = next(check for check in found if check.id == "space")
    assert f"free in {home}, where {home / 'kit'} would be made" in space.evidence


def test_a_pine64_is_in_order_too(tmp_path: Path) -> None:
    checks = Computer(tmp_path, pine64()).checks()
    odd = {c.id: c.state for c in checks.values() if c.group not in ("space", "storage", "power") and c.state is not State.OK}
    assert odd == dict.fromkeys(("nesting", "nesting-speed", "nesting-libvirt", "libvirt-boot"), State.NOT_APPLICABLE)
    assert "profile pine64" in checks["architecture"].evidence


def test_this_host() -> None:
    """Real tools and real files; libvirt has tests of its own."""

    def unreachable() -> Hypervisor:
        raise HostLacks("not asked in this test")

    found = run_checks(read_facts(), kit_path=Path("/var/lib/pocketcloud"), run=run, hypervisor=unreachable)
    by_id = {check.id: check for check in found}
    assert by_id["architecture"].state is State.OK
    assert by_id["memory"].state in (State.OK, State.WARN, State.FAIL)
    assert by_id["qemu-img"].state is State.FAIL or "qemu-img version" in by_id["qemu-img"].evidence
