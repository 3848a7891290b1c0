"""Protected machines: whom a plan would take the disks of, and how it leaves them out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pocketcloud.errors import Refused
from pocketcloud.model.lab import Lab
from pocketcloud.model.names import Name
from pocketcloud.plan.protection import guarded
from pocketcloud.plan.removal import plan_destroy
from pocketcloud.plan.reset import plan_reset, plan_restore
from pocketcloud.plan.states import plan_snapshot
from pocketcloud.plan.steps import KillMachine, StartMachine
from pocketcloud.plan.up import plan_up
from tests.plans import check_plan, check_up, ids, raise_lab
from tests.simulation import INSTANCE, Host, base, ground, lab, machine

A, B = Name("a"), Name("b")


def with_a(made: Lab, **changes: object) -> Lab:
    return replace(made, machines={**made.machines, A: replace(made.machines[A], **changes)})  # type: ignore[arg-type] # field names of Machine


PLAIN = lab(("front",), a=machine("front"), b=machine("front"))
LAB = with_a(PLAIN, protected=True)


def up_host(made: Lab = LAB) -> Host:
    host = Host.with_bases(base())
    raise_lab(made, host)
    return host


def test_a_reset_leaves_a_protected_machine_out_where_that_is_said() -> None:
    host = up_host()
    for name in "ab":
        host.write(name, "work")
    have = host.inventory()
    assert guarded(plan_reset(INSTANCE, [], have, ground()), have) == ("a",)
    assert guarded(plan_reset(INSTANCE, ["b"], have, ground()), have) == ()
    made = plan_reset(INSTANCE, [], have, ground(), but=["a"])
    check_plan(made, have)
    assert guarded(made, have) == ()
    assert ids(made, KillMachine) == ["stop.b"]
    assert any("a is protected" in note for note in made.notes)
    host.apply(made)
    check_up(host, LAB)
    assert "work" in host.content("a")
    assert "work" not in host.content("b")
    with pytest.raises(Refused, match="a is protected"):
        plan_reset(INSTANCE, ["a"], have, ground(), but=["a"])


def test_whatever_takes_its_disks_is_seen() -> None:
    have = up_host().inventory()
    assert guarded(plan_destroy(INSTANCE, have), have) == ("a",)
    anew = with_a(LAB, disk=4 << 30)
    assert guarded(plan_up(anew, INSTANCE, have, ground()), have) == ()
    assert guarded(plan_up(anew, INSTANCE, have, ground(), reconfigure=True), have) == ("a",)
    # Not by an edit that takes the protection away in the same breath, either.
    bare = with_a(anew, protected=False)
    assert guarded(plan_up(bare, INSTANCE, have, ground(), reconfigure=True), have) == ("a",)
    without = replace(LAB, machines={B: LAB.machines[B]})
    assert guarded(plan_up(without, INSTANCE, have, ground()), have) == ()
    assert guarded(plan_up(without, INSTANCE, have, ground(), prune=True), have) == ("a",)


@pytest.mark.parametrize(("before", "after"), [(PLAIN, LAB), (LAB, PLAIN)])
def test_protection_is_changed_without_a_restart(before: Lab, after: Lab) -> None:
    host = up_host(before)
    made = plan_up(after, INSTANCE, host.inventory(), ground())
    assert ids(made, StartMachine, KillMachine) == []
    assert not any("--reconfigure" in note for note in made.notes)
    host.apply(made)
    record = host.inventory().record
    assert record is not None
    assert record.machines[A].definition.protected is after.machines[A].protected


def test_protection_is_changed_beside_a_change_that_waits() -> None:
    host = up_host(PLAIN)
    host.apply(plan_up(with_a(LAB, disk=4 << 30), INSTANCE, host.inventory(), ground()))
    have = host.inventory()
    assert guarded(plan_reset(INSTANCE, [], have, ground()), have) == ("a",)


def test_a_state_from_before_the_protection_does_not_take_it_away() -> None:
    host = up_host(PLAIN)
    host.apply(plan_snapshot(INSTANCE, "before", host.inventory(), ground()))
    host.apply(plan_up(LAB, INSTANCE, host.inventory(), ground()))
    made = plan_restore(INSTANCE, "before", host.inventory(), ground())
    assert guarded(made, host.inventory()) == ("a",)
    host.apply(made)
    check_up(host, LAB)


@pytest.mark.parametrize("with_clean", [False, True])
def test_a_protected_machine_that_lost_a_disk_is_asked_about(with_clean: bool) -> None:
    host = up_host()
    host.reboot()
    assert host.record is not None
    del host.volumes[host.record.machines[A].disks["root"]]
    if with_clean:
        assert host.record.clean is not None
        del host.volumes[host.record.clean.machines[A].disks["root"]]
    have = host.inventory()
    assert guarded(plan_up(LAB, INSTANCE, have, ground()), have) == ("a",)
