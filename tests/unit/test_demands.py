"""What machines demand of a host: who is refused it, who makes do, and how it is known what the host has."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pocketcloud.check import nesting
from pocketcloud.errors import HostLacks, Refused
from pocketcloud.host import firmware, read_facts
from pocketcloud.model.base import Arch, Firmware
from pocketcloud.model.data_disk import Disk
from pocketcloud.model.facts import Facts, Kvm, KvmState
from pocketcloud.model.inventory import DomainState
from pocketcloud.model.lab import Lab
from pocketcloud.model.names import Name
from pocketcloud.model.profile import Acceleration
from pocketcloud.model.sizes import MIB, Size
from pocketcloud.plan.demands import Lack
from pocketcloud.plan.reset import plan_reset
from pocketcloud.plan.steps import SetNvram, StartMachine, StopMachine, UndefineMachine, WriteSeed
from pocketcloud.plan.up import plan_up
from pocketcloud.profiles import Shape
from tests.host_trees import arm_board, plant, x86_laptop
from tests.plans import LAB, edited, fresh_host, ids, planned, raise_lab, texts, up_host
from tests.recorded import Recorded
from tests.simulation import INSTANCE, Host, base, ground

NOWHERE = replace(ground(), no_nesting=Lack("nested is off", "modprobe it"))
ON_KVM = Shape(Acceleration.KVM, "q35", "host-passthrough")
EMULATED = Shape(Acceleration.EMULATION, "q35", "maximum")
NESTS, MAY_NEST = edited(nested=True), edited(nested="emulate")


def test_a_lab_that_nests_is_refused_where_nothing_nests() -> None:
    host = fresh_host()
    with pytest.raises(
        HostLacks, match=r"a is to run machines \(nested: true\), which have no KVM here: nested is off"
    ) as caught:
        plan_up(NESTS, INSTANCE, host.inventory(), NOWHERE)
    assert caught.value.hint == (
        "modprobe it; or say `nested: emulate` in the lab file: then machines inside it are emulated, ten to thirty times slower"
        " than with KVM"
    )


@pytest.mark.parametrize("wanted", [NESTS, MAY_NEST])
def test_where_it_nests_there_is_nothing_to_say(wanted: Lab) -> None:
    assert planned(fresh_host(), wanted).notes == ()


def test_who_makes_do_is_told_that_it_is_slow() -> None:
    plan = plan_up(MAY_NEST, INSTANCE, fresh_host().inventory(), NOWHERE)
    assert "a: machines inside it are emulated" in texts(plan.notes)
    assert ids(plan, StartMachine) == ["start.a", "start.b"]


def test_what_runs_is_left_alone_and_what_is_started_is_not() -> None:
    """As after the kit was carried to a computer that cannot nest."""
    host = up_host(NESTS)
    assert ids(plan_up(NESTS, INSTANCE, host.inventory(), NOWHERE), StartMachine, StopMachine, UndefineMachine) == []
    host.domains["a"].state = DomainState.OFF
    with pytest.raises(HostLacks, match="nested is off"):
        plan_up(NESTS, INSTANCE, host.inventory(), NOWHERE)
    with pytest.raises(HostLacks, match="nested is off"):
        plan_reset(INSTANCE, ["a"], host.inventory(), NOWHERE)
    assert ids(plan_reset(INSTANCE, ["b"], host.inventory(), NOWHERE), StartMachine) == ["start.b"]


def test_a_machine_that_is_to_nest_from_now_on_is_started_again() -> None:
    host = up_host()
    plan = planned(host, NESTS, reconfigure=True)
    assert ids(plan, StopMachine, StartMachine) == ["stop.a", "start.a"]
    assert plan.loses == ()
    with pytest.raises(HostLacks):
        plan_up(NESTS, INSTANCE, host.inventory(), NOWHERE, reconfigure=True)


# -- Secure Boot

SECURE = edited(secure_boot=True)


def test_secure_boot_is_for_bases_that_start_by_uefi() -> None:
    with pytest.raises(Refused, match=r"a \(tiny\): secure_boot is for bases that start by UEFI"):
        plan_up(SECURE, INSTANCE, fresh_host().inventory(), ground())
    host = Host.with_bases(replace(base("tiny"), firmware=Firmware.EFI))
    assert planned(host, SECURE).notes == ()


def test_without_the_firmware_it_is_refused() -> None:
    host = Host.with_bases(replace(base("tiny"), firmware=Firmware.EFI))
    bare = replace(ground(), no_secure_boot=Lack("no firmware with keys", "apt-get install ovmf"))
    with pytest.raises(HostLacks, match="a with secure_boot: no firmware with keys") as caught:
        plan_up(SECURE, INSTANCE, host.inventory(), bare)
    assert caught.value.hint == "apt-get install ovmf"
    raise_lab(SECURE, host)
    assert ids(plan_up(SECURE, INSTANCE, host.inventory(), bare), StartMachine) == []


def test_other_firmware_is_another_machine() -> None:
    host = Host.with_bases(replace(base("tiny"), firmware=Firmware.EFI))
    raise_lab(LAB, host)
    assert "secure_boot changed in the file; waits for --reconfigure (makes it anew)" in texts(planned(host, SECURE).notes)
    plan = planned(host, SECURE, reconfigure=True)
    assert plan.loses == ("a",)
    fresh = [step for step in plan.steps if isinstance(step, SetNvram)]
    assert [(step.machine, step.source) for step in fresh] == [("a", "")], "with variables of its own"


DESCRIPTOR = {
    "interface-types": ["uefi"],
    "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
    "mapping": {"device": "flash", "executable": {"filename": "/usr/share/fw/CODE.fd"}},
    "features": ["enrolled-keys", "requires-smm", "secure-boot"],
}


def test_firmware_is_what_is_described_and_there(tmp_path: Path) -> None:
    plain = {**DESCRIPTOR, "features": ["acpi-s3"]}
    usual = {"usr/share/qemu/firmware/60-plain.json": json.dumps(plain), "usr/share/fw/CODE.fd": ""}
    plant(tmp_path, {**usual, "usr/share/qemu/firmware/40-secure.json": json.dumps(DESCRIPTOR)})
    assert firmware.described(tmp_path, Arch.X86_64) == ("40-secure", "60-plain")
    assert firmware.described(tmp_path, Arch.X86_64, firmware.SECURE) == ("40-secure",)
    assert firmware.described(tmp_path, Arch.AARCH64, firmware.SECURE) == ()
    # A file of root's in /etc masks its namesake: an empty one says that there is none.
    plant(tmp_path, {"etc/qemu/firmware/40-secure.json": ""})
    assert firmware.described(tmp_path, Arch.X86_64, firmware.SECURE) == ()
    (tmp_path / "usr/share/fw/CODE.fd").unlink()
    assert firmware.described(tmp_path, Arch.X86_64) == ()


# -- what a base gives its machines

KIT = Disk(Name("kit"), Size(20 * MIB))


def test_a_base_s_disks_are_its_machines_unless_the_lab_names_them() -> None:
    host = Host.with_bases(replace(base("tiny"), disks=(KIT,)))
    own = replace(LAB.machines[Name("a")], disks=(Disk(Name("kit"), Size(99 * MIB)), Disk(Name("more"), Size(5 * MIB))))
    wanted = replace(LAB, machines={**LAB.machines, Name("a"): own})
    raise_lab(wanted, host)
    assert host.record is not None
    assert list(host.record.machines[Name("a")].disks) == ["root", "kit", "more"]
    assert list(host.record.machines[Name("b")].disks) == ["root", "kit"]
    assert host.inventory().volumes[host.record.machines[Name("a")].disks["kit"]].size == 99 * MIB
    assert host.inventory().volumes[host.record.machines[Name("b")].disks["kit"]].size == 20 * MIB
    # The base's next build gives none; who is made anew on the old one keeps what it was given.
    host.add_base(base("tiny", "d2"))
    assert planned(host, wanted).loses == ()
    del host.volumes[host.record.machines[Name("b")].disks["root"]]
    del host.volumes[host.record.clean.machines[Name("b")].disks["root"]]  # type: ignore[union-attr] # it is up
    host.domains["b"].state = DomainState.OFF
    raise_lab(wanted, host)
    assert list(host.record.machines[Name("b")].disks) == ["root", "kit"]


def test_who_runs_machines_is_told_what_is_taken_around_it() -> None:
    plan = plan_up(NESTS, INSTANCE, fresh_host().inventory(), ground("192.168.122.0/24", "10.77.5.0/24"))
    told = {step.machine: step.outer for step in plan.steps if isinstance(step, WriteSeed)}
    assert plan.record is not None
    assert set(told["a"]) == {"192.168.122.0/24", "10.77.5.0/24", str(plan.record.networks[Name("front")].subnet)}
    assert all(outer == () for machine, outer in told.items() if machine != "a")


# -- what the host has


def seen(root: Path, files: dict[str, str], kvm: Kvm) -> nesting.Host:
    plant(root, files)
    facts: Facts = replace(read_facts(root, run=Recorded(lambda _words: "[]")), kvm=kvm)
    return nesting.Host(facts, root)


USABLE = Kvm(KvmState.USABLE, "quick")
WITHOUT_MODULE = {path: text for path, text in x86_laptop("debian-13").items() if "sys/module/kvm_" not in path}


@pytest.mark.parametrize("module", ["kvm_intel", "kvm_amd"])
def test_the_module_s_parameter_decides(tmp_path: Path, module: str) -> None:
    files = {f"sys/module/{module}/parameters/nested": "0\n", f"sys/module/{module}/initstate": "live\n"}
    host = seen(tmp_path, {**WITHOUT_MODULE, **files}, USABLE)
    lack = nesting.lacking(host, ON_KVM)
    assert lack is not None
    assert lack.reason == f"/sys/module/{module}/parameters/nested is off"
    assert lack.remedy == "pocketcloud check --fix"
    plant(tmp_path, {f"sys/module/{module}/parameters/nested": "1\n"})
    assert nesting.lacking(host, ON_KVM) is None


def test_a_module_of_another_name_is_believed_by_what_kvm_says(tmp_path: Path) -> None:
    host = seen(tmp_path, WITHOUT_MODULE, USABLE)
    assert nesting.lacking(host, ON_KVM) is not None
    says_so = replace(host.facts, kvm=replace(USABLE, nested_state=8192))
    assert nesting.lacking(nesting.Host(says_so, tmp_path), ON_KVM) is None


def test_emulated_machines_have_none_to_pass_on(tmp_path: Path) -> None:
    host = seen(tmp_path, x86_laptop("debian-13"), Kvm(KvmState.SLOW, "740 ns"))
    assert nesting.lacking(host, EMULATED) == Lack(
        "its machines are emulated, as KVM is slow", "pocketcloud check says what KVM lacks"
    )
    usable = nesting.Host(replace(host.facts, kvm=USABLE), tmp_path)
    assert nesting.lacking(usable, EMULATED) == Lack("its machines are emulated, although KVM is usable", "")


def test_on_arm_libvirt_cannot_say_it(tmp_path: Path) -> None:
    host = seen(tmp_path, arm_board("Board", "maker,board", memory_mib=4096), replace(USABLE, arm_el2=True))
    lack = nesting.lacking(host, replace(ON_KVM, machine="virt"))
    assert lack is not None
    assert "ARM" in lack.reason
