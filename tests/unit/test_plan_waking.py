"""Plans that keep memory with states and wake machines from it: who, when not, and what is said."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from pocketcloud.errors import NoSpace, Refused
from pocketcloud.model.inventory import DomainState
from pocketcloud.model.lab import Lab, ResetKind
from pocketcloud.model.names import Name
from pocketcloud.model.record import Record
from pocketcloud.model.sizes import MIB
from pocketcloud.plan.drafting import Ground
from pocketcloud.plan.many import needs
from pocketcloud.plan.removal import plan_down
from pocketcloud.plan.reset import plan_reset, plan_restore
from pocketcloud.plan.states import plan_forget, plan_snapshot
from pocketcloud.plan.steps import Plan, StartMachine, TakeSnapshot, WakeMachine
from pocketcloud.plan.up import plan_up
from tests.plans import before, check_plan, check_up, ids, raise_lab, texts
from tests.simulation import INSTANCE, KIT, Host, base, ground, lab, machine

COLD = lab(("front",), a=machine("front", disks=["data"]), b=machine("front"))
WARM = replace(COLD, reset=ResetKind.WARM)
AMD = replace(ground(), svm=True)


def up_host(wanted: Lab = WARM, here: Ground | None = None) -> Host:
    host = Host.with_bases(base())
    if here:
        host.svm = here.svm
        plan = plan_up(wanted, INSTANCE, host.inventory(), here)
        check_plan(plan, host.inventory())
        host.apply(plan)
    else:
        raise_lab(wanted, host)
    return host


def record(host: Host) -> Record:
    assert host.record is not None
    return host.record


def remembered(host: Host, state: str = "clean") -> list[str]:
    """The machines whose memory a state holds."""
    return [name for name, part in record(host).snapshots[Name(state)].machines.items() if part.memory]


def reset(host: Host, here: Ground | None = None, *machines: str) -> Plan:
    plan = plan_reset(INSTANCE, machines, host.inventory(), here or ground(), undo=True)
    check_plan(plan, host.inventory())
    host.apply(plan)
    host.sweep()
    return plan


def nested(wanted: Lab, name: str) -> Lab:
    return replace(wanted, machines={**wanted.machines, Name(name): replace(wanted.machines[Name(name)], nested=True)})


def test_a_warm_lab_is_woken_and_a_cold_one_started() -> None:
    host = up_host(COLD)
    assert remembered(host) == []
    plan = reset(host)
    assert ids(plan, StartMachine) == ["start.a", "start.b"]
    assert not plan.notes

    host = up_host()
    assert remembered(host) == ["a", "b"]
    for _again in range(3):
        host.write("a", "what students do")
        plan = reset(host)
        assert ids(plan, WakeMachine) == ["start.a", "start.b"]
        assert not ids(plan, StartMachine)
        assert not plan.notes
        check_up(host, WARM)
    assert ids(reset(host, None, "b"), WakeMachine) == ["start.b"]
    assert ids(reset(host, replace(ground(), cold=True)), StartMachine) == ["start.a", "start.b"]
    assert remembered(host) == ["a", "b"], "cold on purpose loses nothing"


def test_memory_that_a_lab_lacks_is_said() -> None:
    host = up_host(COLD)
    plan = plan_up(WARM, INSTANCE, host.inventory(), ground())
    assert "a, b: clean holds no memory, a reset starts cold" in texts(plan.notes)
    assert "lab snapshot demo@NAME --ram" in texts(plan.notes)
    host.apply(plan)
    plan = reset(host)
    assert plan.notes == ("a starts cold: clean holds no memory of it", "b starts cold: clean holds no memory of it")
    assert not reset(host, replace(ground(), cold=True)).notes, "cold was asked for"


def test_a_machine_that_comes_to_a_warm_lab_has_its_memory_kept() -> None:
    host = up_host()
    more = replace(WARM, machines={**WARM.machines, Name("c"): machine("front")})
    raise_lab(more, host)
    assert remembered(host) == ["a", "b", "c"]
    plan = reset(host)
    assert ids(plan, WakeMachine) == ["start.a", "start.b", "start.c"]


def test_a_machine_made_anew_has_its_memory_taken_anew() -> None:
    host = up_host()
    before = record(host).memories()
    other = replace(WARM, machines={**WARM.machines, Name("b"): machine("front", provision="touch x")})
    raise_lab(other, host, reconfigure=True)
    host.sweep()
    assert len(record(host).memories() - before) == 1
    assert set(host.memories) == record(host).memories(), "the old file is swept"
    assert ids(reset(host), WakeMachine) == ["start.a", "start.b"]


def test_machines_that_run_machines_on_amd_start_cold() -> None:
    mixed = nested(WARM, "b")
    host = up_host(mixed, AMD)
    assert remembered(host) == ["a"]
    plan = plan_up(mixed, INSTANCE, Host.with_bases(base()).inventory(), AMD)
    assert "b: its memory is not kept: it runs machines of its own" in texts(plan.notes)
    plan = reset(host, AMD)
    assert ids(plan, WakeMachine) == ["start.a"]
    assert ids(plan, StartMachine) == ["start.b"]
    assert "b starts cold: it runs machines of its own" in texts(plan.notes)
    # Elsewhere (Intel, or emulation that shows no svm) it is kept as any other.
    assert remembered(up_host(mixed)) == ["a", "b"]


def test_no_state_is_taken_of_what_runs_machines_on_amd_while_it_runs() -> None:
    mixed = nested(COLD, "b")
    host = up_host(mixed, AMD)
    check_up(host, mixed)
    for ram in (False, True):
        with pytest.raises(Refused, match="no state is taken of b of lab demo while running: it runs machines") as refused:
            plan_snapshot(INSTANCE, "one", host.inventory(), AMD, ram=ram)
        assert "pocketcloud lab down demo b" in refused.value.hint
    host.apply(plan_down(INSTANCE, ["b"], host.inventory(), KIT, within=1))
    host.apply(plan_snapshot(INSTANCE, "one", host.inventory(), AMD, ram=True))
    assert remembered(host, "one") == ["a"]


def test_clean_of_what_runs_machines_on_amd_is_taken_while_it_is_off() -> None:
    mixed = nested(WARM, "b")
    plan = plan_up(mixed, INSTANCE, Host.with_bases(base()).inventory(), AMD)
    assert {"ready.b", "rest.b"} <= before(plan)["clean"]
    assert "clean" in before(plan)["again.b"]
    assert needs(plan, Host.with_bases(base()).inventory(), AMD.profile) == needs(
        plan_up(WARM, INSTANCE, Host.with_bases(base()).inventory(), ground()), Host.with_bases(base()).inventory(), AMD.profile
    )
    for cut in range(len(plan.steps)):
        for part in range(6):
            host = Host.with_bases(base())
            host.svm = True
            host.apply(plan, cut=cut, part=part)
            host.sweep()
            host.apply(plan_up(mixed, INSTANCE, host.inventory(), AMD))
            check_up(host, mixed)
            assert remembered(host) == ["a"]


def test_an_edit_that_waits_does_not_count_for_what_runs_machines() -> None:
    host = up_host(WARM, AMD)
    host.apply(plan_up(nested(WARM, "b"), INSTANCE, host.inventory(), AMD))
    plan = reset(host, AMD)
    assert ids(plan, WakeMachine) == ["start.a", "start.b"]
    assert not plan.notes


def test_memory_taken_where_machines_ran_none_is_not_used_once_they_do() -> None:
    host = up_host()
    edited = nested(WARM, "a")
    host.apply(plan_up(edited, INSTANCE, host.inventory(), AMD, reconfigure=True))
    plan = reset(host, AMD)
    assert ids(plan, StartMachine) == ["start.a"]
    assert ids(plan, WakeMachine) == ["start.b"]


def test_a_state_with_memory_beside_ones_without() -> None:
    host = up_host(COLD)
    host.write("a", "one")
    take = plan_snapshot(INSTANCE, "one", host.inventory(), ground(), ram=True)
    assert [step.memory for step in take.steps if isinstance(step, TakeSnapshot)] == [("a", "b")]
    host.apply(take)
    host.apply(plan_down(INSTANCE, ["b"], host.inventory(), KIT, within=1))
    host.apply(plan_snapshot(INSTANCE, "two", host.inventory(), ground(), ram=True))
    assert remembered(host, "one") == ["a", "b"]
    assert remembered(host, "two") == ["a"], "b is off"
    for state, woken in (("one", ["start.a", "start.b"]), ("two", ["start.a"]), ("clean", []), ("one", ["start.a", "start.b"])):
        plan = plan_restore(INSTANCE, state, host.inventory(), ground())
        assert ids(plan, WakeMachine) == woken
        assert not [note for note in plan.notes if "cold" in note], "nobody said that this lab is warm"
        host.apply(plan)
        host.sweep()
    cold = plan_restore(INSTANCE, "one", host.inventory(), replace(ground(), cold=True))
    assert not ids(cold, WakeMachine)
    host.apply(plan_forget(INSTANCE, "one", host.inventory(), ground()))
    host.sweep()
    assert set(host.memories) == record(host).memories()
    assert len(host.memories) == 1


def test_a_lab_that_is_not_warm_any_more_starts_cold() -> None:
    host = up_host()
    raise_lab(COLD, host)
    plan = reset(host)
    assert ids(plan, StartMachine) == ["start.a", "start.b"]
    assert not plan.notes, "as its file says"
    raise_lab(WARM, host)
    assert ids(reset(host), WakeMachine) == ["start.a", "start.b"]


def test_what_was_woken_is_remembered_until_it_is_ready() -> None:
    host = up_host()
    plan = plan_reset(INSTANCE, [], host.inventory(), ground())
    host.apply(plan, cut=ids(plan).index("ready.a"))
    assert all(made.restoring and made.restoring.woken for made in record(host).machines.values())
    assert host.domains["a"].stale
    again = plan_up(WARM, INSTANCE, host.inventory(), ground())
    assert ids(again, StartMachine, WakeMachine) == ["start.b"], "a runs, and is renewed before it counts as ready"
    host.apply(again)
    assert not host.domains["a"].stale


def test_there_is_no_memory_of_what_does_not_run() -> None:
    host = up_host(COLD)
    host.apply(plan_down(INSTANCE, [], host.inventory(), KIT, within=1))
    with pytest.raises(Refused, match="no machine of lab demo runs"):
        plan_snapshot(INSTANCE, "one", host.inventory(), ground(), ram=True)


def test_space_for_memory_is_looked_at_before_anything_stops() -> None:
    host = up_host()
    with pytest.raises(NoSpace, match="saves the memory of a, b, 128 MiB"):
        plan_snapshot(INSTANCE, "one", host.inventory(), ground(space=200 * MIB), ram=True)
    with pytest.raises(NoSpace, match="space: the lab needs at least 640 MiB"):
        plan_up(WARM, INSTANCE, Host.with_bases(base()).inventory(), ground(space=500 * MIB))
    with pytest.raises(NoSpace, match="space: saving memory takes 128 MiB"):
        plan_up(WARM, INSTANCE, Host.with_bases(base()).inventory(), replace(ground(), memory_space=100 * MIB))


def test_a_warm_reset_that_is_cut_anywhere_is_completed() -> None:
    count = len(plan_reset(INSTANCE, [], up_host().inventory(), ground(), undo=True).steps)
    for cut in range(count):
        for part in range(4):
            for again in ("reset", "up"):
                host = up_host()
                host.write("a", "work")
                plan = plan_reset(INSTANCE, [], host.inventory(), ground(), undo=True)
                host.apply(plan, cut=cut, part=part, order=random.Random(cut))  # noqa: S311 - any order will do
                host.sweep()
                if again == "reset":
                    reset(host)
                    assert "work" not in host.content("a")
                else:
                    host.apply(plan_up(WARM, INSTANCE, host.inventory(), ground()))
                check_up(host, WARM)
                assert remembered(host) == ["a", "b"]
                assert all(vm.state is DomainState.RUNNING for vm in host.domains.values())


def test_memory_of_a_snapshot_that_is_cut_anywhere_is_of_that_moment_or_not_there() -> None:
    for part in range(12):
        host = up_host(COLD)
        plan = plan_snapshot(INSTANCE, "one", host.inventory(), ground(), ram=True)
        host.apply(plan, cut=0, part=part)
        host.sweep()
        raise_lab(COLD, host)
        assert set(host.memories) == record(host).memories()
        if Name("one") in record(host).snapshots:
            host.write("a", "later")
            plan = plan_restore(INSTANCE, "one", host.inventory(), ground())
            assert ids(plan, WakeMachine) == ["start.a", "start.b"]
            host.apply(plan)
            check_up(host, COLD)
