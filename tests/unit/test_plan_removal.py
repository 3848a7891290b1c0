"""The plans of `down` and `destroy`: what stops, what goes, and what is left."""

from __future__ import annotations

import pytest

from pocketcloud.errors import NotFound
from pocketcloud.model.inventory import DomainState
from pocketcloud.plan.removal import plan_destroy, plan_down
from pocketcloud.plan.steps import KillMachine, RemoveFiles, RemoveNetwork, StopMachine, UndefineMachine
from pocketcloud.plan.up import plan_up
from tests.plans import before, check_plan, check_up, ids, raise_lab, removed
from tests.simulation import INSTANCE, KIT, Disc, Host, base, ground, lab, machine

LAB = lab(("front", "back"), a=machine("front", disks=["data"]), b=machine("back"))


def up_host() -> Host:
    host = Host.with_bases(base())
    raise_lab(LAB, host)
    return host


def test_down_asks_machines_and_then_stops_the_networks() -> None:
    host = up_host()
    plan = plan_down(INSTANCE, [], host.inventory(), KIT, within=7)
    assert [(s.machine, s.within) for s in plan.steps if isinstance(s, StopMachine)] == [("a", 7), ("b", 7)]
    assert ids(plan, RemoveNetwork) == ["network.back", "network.front"]
    assert all({"stop.a", "stop.b"} <= before(plan)[network] for network in ids(plan, RemoveNetwork))
    host.apply(plan)
    assert {vm.state for vm in host.domains.values()} == {DomainState.OFF}
    raise_lab(LAB, host)
    check_up(host, LAB)


def test_down_of_one_machine_leaves_the_networks() -> None:
    plan = plan_down(INSTANCE, ["a", "a"], up_host().inventory(), KIT, within=1)
    assert ids(plan) == ["stop.a"]


def test_down_powers_off_what_cannot_hear_and_skips_what_is_off() -> None:
    host = up_host()
    host.domains["a"].state = DomainState.PAUSED
    host.domains["b"].state = DomainState.OFF
    plan = plan_down(INSTANCE, [], host.inventory(), KIT, within=1)
    assert ids(plan, KillMachine, StopMachine) == ids(plan, KillMachine) == ["stop.a"]


def test_down_of_a_lab_that_is_down_does_nothing() -> None:
    host = up_host()
    host.apply(plan_down(INSTANCE, [], host.inventory(), KIT, within=1))
    assert plan_down(INSTANCE, [], host.inventory(), KIT, within=1).steps == ()


def test_down_of_what_is_not_there_is_not_found() -> None:
    with pytest.raises(NotFound, match="no lab demo"):
        plan_down(INSTANCE, [], Host.with_bases(base()).inventory(), KIT, within=1)
    with pytest.raises(NotFound, match="no machine x"):
        plan_down(INSTANCE, ["a", "x"], up_host().inventory(), KIT, within=1)


def test_destroy_removes_all_of_the_instance_and_nothing_else() -> None:
    host = up_host()
    plan = plan_destroy(INSTANCE, host.inventory())
    check_plan(plan, host.inventory())
    assert ids(plan, UndefineMachine, RemoveNetwork) == ["undefine.a", "undefine.b", "network.back", "network.front"]
    assert [step.id for step in plan.steps][-1] == "files"
    assert set(ids(plan)) - {"files"} == before(plan)["files"], "the record goes last"
    host.apply(plan)
    assert host.inventory().empty
    assert set(host.volumes) == {"base.tiny.d1"}


def test_destroy_removes_what_stands_on_others_first() -> None:
    host = up_host()
    host.volumes["lab.demo.a.root.g90"] = Disc(1, (), "lab.demo.a.root.g2")
    host.volumes["lab.demo.a.root.g91"] = Disc(1, (), "lab.demo.a.root.g90")
    host.apply(plan_destroy(INSTANCE, host.inventory()))
    assert host.inventory().empty


def test_destroy_needs_no_record_and_no_file() -> None:
    host = up_host()
    host.record = None
    plan = plan_destroy(INSTANCE, host.inventory())
    assert len(removed(plan)) == 6
    host.apply(plan)
    assert host.inventory().empty


@pytest.mark.parametrize("cut", range(12))
def test_up_completes_what_an_interrupted_destroy_left(cut: int) -> None:
    host = up_host()
    plan = plan_destroy(INSTANCE, host.inventory())
    assert len(plan.steps) <= 12
    host.apply(plan, cut=cut)
    up = plan_up(LAB, INSTANCE, host.inventory(), ground())
    check_plan(up, host.inventory())
    host.apply(up)
    check_up(host, LAB)


def test_destroy_of_nothing_is_only_the_files() -> None:
    assert ids(plan_destroy(INSTANCE, Host.with_bases(base()).inventory())) == ids(
        plan_destroy(INSTANCE, Host.with_bases(base()).inventory()), RemoveFiles
    )
