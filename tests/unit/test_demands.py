"""What machines demand of a host: who is refused it, who makes do, and how it is known what the host has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pocketcloud.check import nesting
from pocketcloud.errors import HostLacks
from pocketcloud.host import read_facts
from pocketcloud.model.facts import Facts, Kvm, KvmState
from pocketcloud.model.inventory import DomainState
from pocketcloud.model.lab import Lab
from pocketcloud.model.profile import Acceleration
from pocketcloud.plan.demands import Lack
from pocketcloud.plan.reset import plan_reset
from pocketcloud.plan.steps import StartMachine, StopMachine, UndefineMachine
from pocketcloud.plan.up import plan_up
from pocketcloud.profiles import Shape
from tests.host_trees import arm_board, plant, x86_laptop
from tests.plans import edited, fresh_host, ids, planned, texts, up_host
from tests.recorded import Recorded
from tests.simulation import INSTANCE, ground

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
