"""The plan of `reset`: new disks, the commit, the restart, the old disks last."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pocketcloud.errors import NoSpace, NotFound, Refused
from pocketcloud.model.base import Firmware
from pocketcloud.model.inventory import DomainState
from pocketcloud.model.lab import LabNetwork, NetworkKind
from pocketcloud.model.names import Name
from pocketcloud.plan.reset import plan_reset, plan_restore
from pocketcloud.plan.states import plan_snapshot
from pocketcloud.plan.steps import (
    EnsureNetwork,
    KillMachine,
    Plan,
    PrepareVolumes,
    SetNvram,
    SettleFence,
    StartMachine,
    WaitReady,
)
from pocketcloud.plan.up import plan_up
from tests.plans import before, check_plan, check_up, cloned, ids, raise_lab, removed
from tests.simulation import INSTANCE, Host, base, ground, lab, machine

LAB = lab(("front",), a=machine("front", provision="touch x", disks=["data"]), b=machine("front"))


def up_host() -> Host:
    host = Host.with_bases(base())
    raise_lab(LAB, host)
    return host


def plan(host: Host, *machines: str, taken: str = "") -> Plan:
    have = host.inventory()
    made = plan_reset(INSTANCE, machines, have, ground(*([taken] if taken else [])))
    check_plan(made, have)
    return made


def test_all_machines_go_back_each_by_itself() -> None:
    host = up_host()
    for name in "ab":
        host.write(name, "work")
    made = plan(host)
    earlier = before(made)
    for mine, other in (("a", "b"), ("b", "a")):
        chain = [f"{verb}.{mine}" for verb in ("stop", "define", "start", "ready")]
        assert set(chain[:-1]) <= earlier[chain[-1]]
        assert f"start.{other}" not in earlier[f"ready.{mine}"]
    assert ids(made, KillMachine) == ["stop.a", "stop.b"]
    assert len(removed(made)) == 3
    host.apply(made)
    check_up(host, LAB)
    assert all("work" not in host.content(name) for name in "ab")


def test_one_machine_goes_back_and_the_others_run_on() -> None:
    host = up_host()
    for name in "ab":
        host.write(name, "work")
    made = plan(host, "b", "b")
    assert {step.machine for step in made.steps} == {"", "b"}
    assert ids(made, WaitReady) == ["ready.b"]
    host.apply(made)
    check_up(host, LAB)
    assert "work" in host.content("a")
    assert "work" not in host.content("b")


def test_reset_starts_what_is_off_and_the_networks_too() -> None:
    host = up_host()
    host.reboot()
    host.domains.clear()
    host.networks.clear()
    made = plan(host)
    assert ids(made, EnsureNetwork, StartMachine) == ["network.front", "start.a", "start.b"]
    host.apply(made)
    check_up(host, LAB)


def test_the_uefi_variables_go_back_too_before_the_start() -> None:
    host = up_host()
    assert host.record is not None
    assert host.record.clean is not None
    assert ids(plan(host), SetNvram) == []
    part = replace(host.record.clean.machines[Name("a")], nvram="demo.a@clean.fd")
    clean = replace(host.record.clean, machines={**host.record.clean.machines, Name("a"): part})
    host.record = replace(
        host.record.with_machine(Name("a"), replace(host.record.machines[Name("a")], firmware=Firmware.EFI)),
        snapshots={Name("clean"): clean},
    )
    made = plan(host)
    assert [(step.machine, step.source) for step in made.steps if isinstance(step, SetNvram)] == [("a", "demo.a@clean.fd")]
    assert "stop.a" in before(made)["nvram.a"]
    assert "nvram.a" in before(made)["start.a"]


def test_the_clean_state_survives_and_serves_again() -> None:
    host = up_host()
    assert host.record is not None
    clean = host.record.clean
    for _ in range(3):
        made = plan(host)
        assert clean is not None
        assert {clone.source for clone in cloned(made)} == {
            volume for part in clean.machines.values() for volume in part.disks.values()
        }
        host.apply(made)
        assert host.record.clean == clean
    check_up(host, LAB)


def test_with_spares_a_reset_makes_nothing_and_the_next_finds_them_again() -> None:
    host = up_host()
    first = plan_reset(INSTANCE, [], host.inventory(), ground(spares=True))
    assert len(spares(first)) == 3
    host.apply(first)
    check_up(host, LAB)
    for _ in range(3):
        ready = {name for name, disc in host.volumes.items() if disc.spare}
        again = plan_reset(INSTANCE, [], host.inventory(), ground(spares=True))
        check_plan(again, host.inventory())
        assert {clone.name for clone in cloned(again)} == ready, "it takes what was prepared"
        assert [step.id for step in again.steps][-2:] == ["remove", "spares"], "what it leaves undone comes last"
        host.apply(again)
        check_up(host, LAB)
    one = plan_reset(INSTANCE, ["b"], host.inventory(), ground(spares=True))
    assert len(spares(one)) == 1, "the other machines' spares are still there"


def test_spares_of_a_state_that_is_no_longer_clean_go() -> None:
    host = up_host()
    host.apply(plan_reset(INSTANCE, [], host.inventory(), ground(spares=True)))
    old = {name for name, disc in host.volumes.items() if disc.spare and ".a." in name}
    assert old
    host.add_base(base("other"))
    changed = replace(LAB, machines={**LAB.machines, Name("a"): replace(LAB.machines[Name("a")], base=Name("other"))})
    up = plan_up(changed, INSTANCE, host.inventory(), ground(spares=True), reconfigure=True)
    check_plan(up, host.inventory())
    host.apply(up)
    check_up(host, changed)
    assert not old & set(host.volumes)
    assert len({name for name, disc in host.volumes.items() if disc.spare}) == 3


def spares(plan: Plan) -> list[str]:
    return [clone.name for step in plan.steps if isinstance(step, PrepareVolumes) for clone in step.clones]


def test_a_machine_left_on_old_disks_by_another_reset_keeps_them_until_it_is_started_again() -> None:
    host = up_host()
    cut = plan(host, "b")
    host.apply(cut, cut=ids(cut).index("commit") + 1)
    old = host.domains["b"].disks[0]
    made = plan(host, "a")
    assert old not in removed(made)
    host.apply(made)
    assert old in host.volumes
    up = plan_up(LAB, INSTANCE, host.inventory(), ground())
    assert old in removed(up)
    host.apply(up)
    check_up(host, LAB)


def test_domains_that_no_record_names_are_swept() -> None:
    host = up_host()
    one = lab(("front",), b=LAB.machines[Name("b")])
    cut = plan_up(one, INSTANCE, host.inventory(), ground(), prune=True)
    host.apply(cut, cut=ids(cut).index("commit") + 1)
    made = plan(host)
    assert "undefine.a" in ids(made)
    host.apply(made)
    check_up(host, one)


def test_the_fence_of_a_network_that_is_up_is_put_up_again() -> None:
    host = up_host()
    host.fences.clear()
    made = plan(host, "a")
    assert ids(made, EnsureNetwork, SettleFence) == ["fence.front"]
    assert {"commit", "stop.a"} <= before(made)["fence.front"]
    host.apply(made)
    check_up(host, LAB)
    assert host.fences == {"front": True}


def test_a_subnet_taken_meanwhile_moves_the_lab() -> None:
    host = up_host()
    host.reboot()
    assert host.record is not None
    old = host.record.networks[Name("front")].subnet
    made = plan(host, taken=str(old))
    assert "moves from" in made.notes[0]
    host.apply(made)
    check_up(host, LAB)
    assert host.record.networks[Name("front")].subnet != old


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (LabNetwork(), LabNetwork(NetworkKind.BRIDGE, bridge="br0")),
        (LabNetwork(NetworkKind.BRIDGE, bridge="br0"), LabNetwork()),
        (LabNetwork(NetworkKind.ISOLATED), LabNetwork(lan=True)),
        (LabNetwork(lan=True), LabNetwork(NetworkKind.ISOLATED)),
    ],
)
def test_a_change_of_a_network_that_waits_is_left_waiting(one: LabNetwork, other: LabNetwork) -> None:
    host = Host.with_bases(base())
    raise_lab(replace(LAB, networks={Name("front"): one}), host)
    host.apply(plan_up(replace(LAB, networks={Name("front"): other}), INSTANCE, host.inventory(), ground()))
    kind = host.networks["front"].kind
    made = plan_reset(INSTANCE, [], host.inventory(), ground(), undo=True)
    assert made.notes == ()
    host.apply(made)
    assert host.networks["front"].kind is kind
    host.apply(plan_snapshot(INSTANCE, "here", host.inventory(), ground()))
    for state in ("undo", "here"):
        host.apply(plan_restore(INSTANCE, state, host.inventory(), ground()))
        assert host.networks["front"].kind is kind
    raise_lab(replace(LAB, networks={Name("front"): other}), host, reconfigure=True)
    check_up(host, replace(LAB, networks={Name("front"): other}))


# -- refusals ------------------------------------------------------------------------------------------------------------


def test_what_is_not_there_is_not_found() -> None:
    with pytest.raises(NotFound, match="no lab demo"):
        plan(Host.with_bases(base()))
    with pytest.raises(NotFound, match="no machine x") as missing:
        plan(up_host(), "x")
    assert missing.value.hint == "it has: a, b"


def test_remains_without_a_record_are_said_to_be_remains() -> None:
    host = up_host()
    host.record = None
    with pytest.raises(NotFound, match="remains of it: pocketcloud lab destroy"):
        plan(host)


def test_without_a_clean_state_there_is_no_going_back() -> None:
    host = Host.with_bases(base())
    up = plan_up(LAB, INSTANCE, host.inventory(), ground())
    host.apply(up, cut=ids(up).index("clean"))
    with pytest.raises(Refused, match="no clean state of a, b yet") as refused:
        plan(host)
    assert refused.value.hint == "pocketcloud lab up demo"


def test_a_machine_added_and_not_yet_clean_is_left_alone_unless_it_is_named() -> None:
    host = up_host()
    more = lab(("front",), **{str(n): m for n, m in LAB.machines.items()}, c=machine("front"))
    up = plan_up(more, INSTANCE, host.inventory(), ground())
    host.apply(up, cut=ids(up).index("clean"))
    made = plan(host)
    assert "c has no clean state yet" in made.notes[0]
    assert "c" not in {step.machine for step in made.steps}
    with pytest.raises(Refused, match="no clean state of c yet"):
        plan(host, "c")


def test_a_damaged_clean_state_is_refused_before_anything() -> None:
    host = up_host()
    assert host.record is not None
    assert host.record.clean is not None
    lost = host.record.clean.machines[Name("b")].disks["root"]
    del host.volumes[lost]
    with pytest.raises(Refused, match=f"clean state of b is damaged: volume {lost} is gone"):
        plan(host)
    assert ids(plan(host, "a"), WaitReady) == ["ready.a"]


def test_memory_is_asked_only_for_what_is_off() -> None:
    host = up_host()
    have = host.inventory()
    assert plan_reset(INSTANCE, [], have, ground(memory=0, space=0)).steps
    host.domains["b"].state = DomainState.OFF
    with pytest.raises(NoSpace, match="1 machine needs 164 MiB"):
        plan_reset(INSTANCE, [], host.inventory(), ground(memory=0))


def test_a_lab_that_is_down_is_reset_on_a_store_that_is_full() -> None:
    host = up_host()
    host.reboot()
    made = plan_reset(INSTANCE, [], host.inventory(), ground(space=0), undo=True)
    check_plan(made, host.inventory())
    assert any("no space to keep" in note for note in made.notes)
    host.apply(made)
    check_up(host, LAB)
