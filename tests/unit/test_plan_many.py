"""Plans of many instances: what they take together, and what is made for all of them first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pocketcloud.errors import NoSpace
from pocketcloud.model.lab import ResetKind
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import GIB, MIB
from pocketcloud.plan.drafting import ROOM_PER_MACHINE, Ground
from pocketcloud.plan.many import Needs, check_together, chosen_subnets, copy_names, made_together, making, needs
from pocketcloud.plan.reset import plan_reset
from pocketcloud.plan.steps import CloneVolumes, Plan, WakeMachine
from pocketcloud.plan.up import plan_up
from tests.plans import LAB, before, check_plan
from tests.simulation import Host, base, ground

NAMES = tuple(copy_names("demo", 3))


def plans(on: Ground | None = None) -> list[Plan]:
    """A plan for each copy, none of which is there."""
    made, taken = list[Plan](), (on or ground()).taken
    for name in NAMES:
        have = Host.with_bases(base()).inventory()
        made.append(plan_up(LAB, name, have, replace(on or ground(), taken=taken)))
        check_plan(made[-1], have)
        taken = (*taken, *chosen_subnets(made[-1]))
    return made


def test_copies_are_numbered_from_one() -> None:
    assert copy_names("demo", 2) == ("demo-1", "demo-2")
    assert len(copy_names("a" * 28, 64)) == 64
    with pytest.raises(ValueError, match="31 characters"):
        copy_names("a" * 30, 1)


def test_no_copy_gets_the_subnet_of_another() -> None:
    found = [subnet.network for plan in plans() for subnet in chosen_subnets(plan)]
    assert len(set(found)) == len(NAMES)
    first = chosen_subnets(plans()[0])[0]
    # Even where there is but room for one more each.
    assert chosen_subnets(plans(replace(ground(), taken=(first,)))[0])[0].network != first.network


def test_all_that_copies_consist_of_is_made_before_one_of_them_is_started() -> None:
    separate = plans()
    together, owners = made_together(separate, "3 copies")
    order = before(together)
    clones = [step for step in together.steps if isinstance(step, CloneVolumes)]
    assert len(clones) == 1
    assert [
        clone for plan in separate for step in making(plan) if isinstance(step, CloneVolumes) for clone in step.clones
    ] == list(clones[0].clones)
    for plan in separate:
        kinds = {step.id.split(".")[0] for step in making(plan)}
        assert kinds == {"volumes", "volume", "seed", "commit", "nvram", "define"}
        commit = f"commit@{plan.instance}"
        assert {"volumes", f"seed.a@{plan.instance}", f"volume.a.data@{plan.instance}"} <= order[commit]
        assert commit in order[f"define.a@{plan.instance}"]
        assert not {step for step in order[commit] if "@" in step and not step.endswith(f"@{plan.instance}")}
        rest = replace(plan, steps=tuple(step for step in plan.steps if step not in making(plan)))
        assert {step.id.split(".")[0] for step in rest.steps} >= {"network", "start", "ready", "clean"}
    assert set(owners) | {"volumes"} == {step.id for step in together.steps}
    assert len(together.steps) == 1 + sum(len(making(plan)) - 1 for plan in separate)


def test_what_is_changed_by_a_restart_is_stopped_before_its_record_says_so() -> None:
    host = Host.with_bases(base())
    host.apply(plan_up(LAB, Name("demo"), host.inventory(), ground()))
    edited = replace(LAB, machines={**LAB.machines, Name("b"): replace(LAB.machines[Name("b")], vcpus=2)})
    plan = plan_up(edited, Name("demo"), host.inventory(), ground(), reconfigure=True)
    assert [step.id for step in making(plan)] == ["stop.b", "commit", "define.b"]
    anew = replace(
        LAB, machines={**LAB.machines, Name("b"): replace(LAB.machines[Name("b")], disks=LAB.machines[Name("a")].disks)}
    )
    plan = plan_up(anew, Name("demo"), host.inventory(), ground(), reconfigure=True)
    assert "define.b" in {step.id for step in plan.steps}
    assert not {"stop.b", "define.b"} & {step.id for step in making(plan)}, "it is stopped after the commit, as its disks are new"


def test_what_copies_need_is_counted() -> None:
    host, profile = Host.with_bases(base()), ground().profile
    plan = plan_up(LAB, Name("demo"), host.inventory(), ground())
    memory = sum(machine.memory for machine in LAB.machines.values())
    assert needs(plan, host.inventory(), profile) == Needs(
        memory + 2 * profile.machine_overhead, memory + 2 * ROOM_PER_MACHINE, sum(m.vcpus for m in LAB.machines.values())
    )
    host.apply(plan)
    again = plan_up(LAB, Name("demo"), host.inventory(), ground())
    assert needs(again, host.inventory(), profile) == Needs(0, 0, 0)


def test_a_machine_that_is_woken_takes_what_one_that_is_started_takes() -> None:
    host, profile = Host.with_bases(base()), ground().profile
    host.apply(plan_up(replace(LAB, reset=ResetKind.WARM), Name("demo"), host.inventory(), ground()))
    assert needs(plan_reset(Name("demo"), [], host.inventory(), ground()), host.inventory(), profile) == Needs(0, 0, 2)
    host.reboot()
    warm = plan_reset(Name("demo"), [], host.inventory(), ground())
    cold = plan_reset(Name("demo"), [], host.inventory(), replace(ground(), cold=True))
    assert {step.id for step in warm.steps if isinstance(step, WakeMachine)} == {"start.a", "start.b"}
    assert needs(warm, host.inventory(), profile) == needs(cold, host.inventory(), profile)
    assert needs(warm, host.inventory(), profile).memory == sum(
        m.memory + profile.machine_overhead for m in LAB.machines.values()
    )


def test_what_does_not_fit_together_is_refused_with_how_many_would() -> None:
    each = Needs(2 * GIB, 512 * MIB, 1)
    some: dict[str, Needs] = dict.fromkeys(copy_names("demo", 8), each)
    check_together(some, ground(memory=16 * GIB, space=4 * GIB))
    with pytest.raises(NoSpace, match=r"8 copies need 16 GiB, 2 GiB each.*labs 15 GiB.*7 of 8 would fit") as refused:
        check_together(some, ground(memory=15 * GIB, space=4 * GIB))
    assert "--count 7" in refused.value.hint
    with pytest.raises(NoSpace, match=r"memory: .*\nspace: .*4 of 8 would fit") as refused:
        check_together(some, ground(memory=15 * GIB, space=2 * GIB))
    assert "--count 4" in refused.value.hint


def test_copies_that_are_up_need_nothing() -> None:
    none, each = Needs(0, 0, 0), Needs(3 * GIB, 0, 1)
    names: tuple[str, ...] = copy_names("demo", 4)
    check_together({names[0]: none, names[1]: none, names[2]: each}, ground(memory=3 * GIB))
    with pytest.raises(NoSpace, match=r"the 2 copies yet to be started need 6 GiB, 3 GiB each.*3 of 4 would fit"):
        check_together(dict(zip(names, (none, none, each, each), strict=True)), ground(memory=3 * GIB))
    with pytest.raises(NoSpace, match=r"the copy yet to be started needs 3 GiB.*3 of 4 would fit"):
        check_together(dict(zip(names, (none, none, none, each), strict=True)), ground(memory=2 * GIB))
