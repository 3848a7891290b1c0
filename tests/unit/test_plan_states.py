"""The plans of states: taken, gone back to, forgotten, undone; whole, and cut at every point."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from pocketcloud.cli.lab import loss_text
from pocketcloud.cli.many import left_text as left_text_of_all
from pocketcloud.cli.states import left_text
from pocketcloud.errors import NoSpace, NotFound, Refused
from pocketcloud.model.base import Firmware
from pocketcloud.model.inventory import DomainState, Inventory
from pocketcloud.model.lab import Needs, NetworkKind
from pocketcloud.model.names import Name
from pocketcloud.model.record import Record
from pocketcloud.model.sizes import GIB, MIB, Size
from pocketcloud.plan.drafting import Ground
from pocketcloud.plan.removal import plan_down
from pocketcloud.plan.reset import plan_reset, plan_restore, plan_undo
from pocketcloud.plan.states import plan_forget, plan_protect, plan_snapshot
from pocketcloud.plan.steps import KillMachine, Plan, RemoveVolumes, StartMachine, WaitReady
from pocketcloud.plan.taking import plan_taking_again, was_taken
from pocketcloud.plan.up import plan_up
from tests.plans import check_plan, check_up, ids, raise_lab, removed
from tests.simulation import INSTANCE, KIT, Host, base, ground, lab, machine

LAB = lab(("front",), a=machine("front", base="uefi", disks=["data"]), b=machine("front"))
Planner = Callable[[Inventory, Ground], Plan]


def up_host() -> Host:
    host = Host.with_bases(base(), base("uefi", firmware=Firmware.EFI))
    raise_lab(LAB, host)
    return host


def record(host: Host) -> Record:
    assert host.record is not None
    return host.record


def work(host: Host, what: str) -> None:
    """Somebody works in both machines."""
    for name in "ab":
        host.write(name, what)


def contents(host: Host) -> dict[str, tuple[str, ...]]:
    """What is on the disks and in the UEFI variables."""
    return {name: host.content(name) for name in "ab"} | {"a.nvram": host.nvrams["a"]}


def snapshot(state: str, *, ram: bool = False) -> Planner:
    return lambda have, here: plan_snapshot(INSTANCE, state, have, here, ram=ram)


def restore(state: str, *, undo: bool = True) -> Planner:
    return lambda have, here: plan_restore(INSTANCE, state, have, here, undo=undo)


def forget(state: str) -> Planner:
    return lambda have, here: plan_forget(INSTANCE, state, have, here)


def reset(have: Inventory, here: Ground) -> Plan:
    return plan_reset(INSTANCE, [], have, here, undo=True)


def undo(have: Inventory, here: Ground) -> Plan:
    return plan_undo(INSTANCE, have, here)


def up(have: Inventory, here: Ground) -> Plan:
    return plan_up(LAB, INSTANCE, have, here)


def do(host: Host, planner: Planner, here: Ground | None = None) -> Plan:
    host.sweep()
    have = host.inventory()
    made = planner(have, here or ground())
    check_plan(made, have)
    host.apply(made)
    host.sweep()
    return made


def test_a_tree_of_states_in_any_order() -> None:
    host = up_host()
    seen = {"clean": contents(host)}
    for name, parent in (("one", "clean"), ("two", "one"), ("three", "two"), ("four", "one"), ("five", "clean")):
        do(host, restore(parent))
        work(host, name)
        seen[name] = contents(host)
        do(host, snapshot(name))
        assert contents(host) == seen[name], "taking a state changes nothing"
        assert record(host).snapshots[Name(name)].parent == parent
    order = [*seen, *seen]
    random.Random(5).shuffle(order)  # noqa: S311 - any order will do
    for name in order:
        do(host, restore(name))
        assert contents(host) == seen[name]
        assert record(host).at == name
        work(host, "and more")
    do(host, restore("clean"))
    for name in ("two", "five", "one", "three", "four"):
        do(host, forget(name))
    assert set(record(host).snapshots) == {"clean", "undo"}
    check_up(host, LAB)


def test_what_is_forgotten_leaves_what_came_from_it() -> None:
    host = up_host()
    for name in ("one", "two", "three"):
        work(host, name)
        do(host, snapshot(name))
    do(host, forget("two"))
    assert record(host).snapshots[Name("three")].parent == "one"
    work(host, "later")
    do(host, restore("three"))
    assert host.content("a")[-1] == "three"
    do(host, forget("three"))
    assert record(host).at == "one"


def test_undo_takes_a_reset_back_and_a_second_undo_the_first() -> None:
    host = up_host()
    work(host, "homework")
    left = contents(host)
    do(host, reset)
    assert "homework" not in host.content("a")
    do(host, undo)
    assert contents(host) == left
    do(host, undo)
    assert "homework" not in host.content("b")
    do(host, undo)
    assert contents(host) == left
    check_up(host, LAB)


def test_without_undo_nothing_is_kept() -> None:
    host = up_host()
    work(host, "homework")
    do(host, lambda have, here: plan_reset(INSTANCE, [], have, here, undo=False))
    with pytest.raises(NotFound, match="nothing to undo"):
        do(host, undo)
    assert set(record(host).snapshots) == {"clean"}
    assert len(host.volumes) == 2 + 6, "two bases, clean's and the live disks"


def test_a_restore_of_undo_keeps_nothing_where_that_is_said() -> None:
    host = up_host()
    homework(host)
    do(host, reset)
    made = do(host, restore("undo", undo=False))
    assert "homework" in host.content("a")
    assert left_text(made, INSTANCE) == "What is on the disks now is lost."
    assert record(host).undo is None
    check_up(host, LAB)


def test_no_state_has_the_uefi_variables_of_undo() -> None:
    host = up_host()
    homework(host)
    left = contents(host)
    do(host, reset)
    undone = record(host).undo
    assert undone is not None
    state = undone.machines[Name("a")].nvram.partition("@")[2].removesuffix(".fd")
    with pytest.raises(ValueError, match="name"):
        Name.parse(state)
    do(host, undo)
    assert contents(host) == left


def test_the_undo_of_one_machine_leaves_the_others() -> None:
    host = up_host()
    work(host, "homework")
    do(host, lambda have, here: plan_reset(INSTANCE, ["a"], have, here, undo=True))
    made = do(host, undo)
    assert {step.machine for step in made.steps if isinstance(step, (KillMachine, StartMachine))} == {"a"}
    assert all("homework" in host.content(name) for name in "ab")


def test_an_undo_that_goes_with_the_reset_of_another_machine_is_told_of() -> None:
    host = up_host()
    work(host, "homework")
    do(host, lambda have, here: plan_reset(INSTANCE, ["a"], have, here, undo=True))
    made = do(host, lambda have, here: plan_reset(INSTANCE, ["b"], have, here, undo=True))
    assert made.notes == ("`lab undo demo` will not bring back any more what a left before this reset",)
    do(host, undo)
    assert ("homework" in host.content("a"), "homework" in host.content("b")) == (False, True)
    do(host, lambda have, here: plan_reset(INSTANCE, ["a"], have, here, undo=False))
    assert set(undone(host)) == {"b"}, "what is not kept takes the place of nothing"


def undone(host: Host) -> list[str]:
    kept = record(host).undo
    assert kept is not None
    return [str(name) for name in kept.machines]


def only_a_becomes_ready(host: Host, planner: Planner) -> None:
    made = planner(host.inventory(), ground())
    waits = next(number for number, step in enumerate(made.steps) if isinstance(step, WaitReady) and step.machine == "b")
    host.apply(made, cut=waits, part=0)
    host.sweep()


def test_after_the_rest_is_brought_back_by_itself_the_next_reset_keeps_what_all_leave() -> None:
    host = up_host()
    homework(host)
    only_a_becomes_ready(host, reset)
    assert record(host).is_ready_again("a")
    assert not record(host).is_ready_again("b")
    made = do(host, lambda have, here: plan_reset(INSTANCE, ["b"], have, here, undo=True))
    assert not any(machine.restoring for machine in record(host).machines.values())
    work(host, "later")
    left = contents(host)
    made = do(host, reset)
    assert made.notes == ()
    do(host, undo)
    assert contents(host) == left
    check_up(host, LAB)


def test_what_came_after_a_reset_that_never_ended_is_said_to_go() -> None:
    host = up_host()
    homework(host)
    left = contents(host)
    only_a_becomes_ready(host, reset)
    host.write("a", "since")
    made = do(host, reset)
    assert "brings back what a left at that one, and what came since goes" in made.notes[0]
    do(host, undo)
    assert contents(host) == left


def test_a_state_of_a_lab_that_is_off_is_taken_by_the_same_command_wherever_it_was_cut() -> None:
    def prepare(host: Host) -> None:
        homework(host)
        host.reboot()

    prepared = up_host()
    prepare(prepared)
    was = contents(prepared)
    for at in every_cut(prepared, snapshot("off")):
        host = cut_host(prepare, snapshot("off"), at)
        if "off" not in record(host).snapshots:
            do(host, snapshot("off"))
        assert all(vm.state is DomainState.OFF for vm in host.domains.values())
        assert contents(host) == was
        do(host, up)
        check_up(host, LAB)
        work(host, "later")
        do(host, restore("off"))
        assert contents(host) == was


def test_a_state_brings_back_the_fences_of_its_networks() -> None:
    host = up_host()
    do(host, snapshot("fenced"))
    opened = replace(LAB, networks={Name("front"): replace(LAB.networks[Name("front")], lan=True)})
    raise_lab(opened, host)
    do(host, snapshot("open"))
    assert host.fences == {"front": False}
    for back, fenced in ((restore("fenced"), True), (undo, False), (undo, True), (restore("open"), False)):
        do(host, back)
        assert host.fences == {"front": fenced}
        check_up(host, LAB if fenced else opened)


def test_a_state_brings_back_what_its_machines_and_networks_were() -> None:
    host = up_host()
    do(host, snapshot("before"))
    networks = {Name("front"): replace(LAB.networks[Name("front")], kind=NetworkKind.ISOLATED)}
    larger = replace(LAB.machines[Name("b")], memory=Size(128 * MIB))
    changed = replace(LAB, networks=networks, machines={**LAB.machines, Name("b"): larger})
    raise_lab(changed, host, reconfigure=True)
    do(host, snapshot("after"))
    do(host, restore("before"))
    assert record(host).machines[Name("b")].definition.memory == 64 * MIB
    assert host.networks["front"].kind is NetworkKind.NAT
    assert host.domains["b"].memory == 64 * MIB
    check_up(host, LAB)
    do(host, undo)
    check_up(host, changed)
    do(host, restore("after"))
    check_up(host, changed)
    do(host, reset)
    check_up(host, changed)


def test_what_a_lab_needs_as_a_whole_does_not_keep_it_from_its_states() -> None:
    host = up_host()
    do(host, snapshot("large"))
    machines = {name: replace(made, memory=Size(32 * MIB), nested="emulate") for name, made in LAB.machines.items()}
    small = replace(LAB, machines=machines, needs=Needs(memory=Size(64 * MIB), nesting=True))
    raise_lab(small, host, reconfigure=True)
    do(host, restore("large"))
    assert record(host).lab.machines == LAB.machines
    assert record(host).lab.needs == Needs(memory=Size(128 * MIB))
    do(host, undo)
    assert record(host).lab.machines == machines


def test_a_lab_that_is_off_is_taken_as_it_lies_and_stays_off() -> None:
    host = up_host()
    work(host, "homework")
    host.reboot()
    made = do(host, snapshot("off"))
    assert ids(made, StartMachine) == []
    assert all(vm.state is DomainState.OFF for vm in host.domains.values())
    do(host, reset)
    do(host, restore("off"))
    assert all("homework" in host.content(name) for name in "ab")
    check_up(host, LAB)


def test_names_that_mean_something_or_are_taken_are_refused() -> None:
    host = up_host()
    do(host, snapshot("mine"))
    for state, word in (("clean", "reset returns to"), ("undo", "by hand"), ("mine", "already")):
        with pytest.raises(Refused, match=word):
            do(host, snapshot(state))
    for planner in (restore("other"), forget("other")):
        with pytest.raises(NotFound, match="no state other"):
            do(host, planner)
    with pytest.raises(Refused, match="what reset returns to"):
        do(host, forget("clean"))
    with pytest.raises(Refused, match="never forgotten"):
        plan_protect(INSTANCE, "clean", host.inventory(), KIT, protected=False)


def test_a_protected_state_is_not_forgotten() -> None:
    host = up_host()
    do(host, lambda have, here: plan_snapshot(INSTANCE, "exam", have, here, protected=True))
    with pytest.raises(Refused, match="protected"):
        do(host, forget("exam"))
    do(host, lambda have, _: plan_protect(INSTANCE, "exam", have, KIT, protected=False))
    do(host, forget("exam"))
    do(host, snapshot("exam"))
    do(host, lambda have, _: plan_protect(INSTANCE, "exam", have, KIT, protected=True))
    assert ids(plan_protect(INSTANCE, "exam", host.inventory(), KIT, protected=True)) == []
    with pytest.raises(Refused, match="protected"):
        do(host, forget("exam"))


def test_no_state_is_taken_of_a_lab_that_is_half_way() -> None:
    host = up_host()
    host.domains["a"].state = DomainState.PAUSED
    with pytest.raises(Refused, match="paused"):
        do(host, snapshot("s"))
    host.domains["a"].state = DomainState.RUNNING
    made = reset(host.inventory(), ground())
    for cut in range(len(made.steps)):
        host = up_host()
        host.apply(reset(host.inventory(), ground()), cut=cut)
        if host.record is not None and record(host).machines[Name("a")].restoring:
            with pytest.raises(Refused, match="half way"):
                do(host, snapshot("s"))


def test_space_is_looked_at_before_anything_stops() -> None:
    host = up_host()
    with pytest.raises(NoSpace, match="saves the memory of a, b"):
        do(host, snapshot("s"), ground(space=128 * MIB))
    with pytest.raises(NoSpace, match="takes 128 MiB; the media of kit k, where it goes, have 100 MiB free"):
        do(host, snapshot("s"), replace(ground(), memory_space=100 * MIB))
    host.reboot()
    do(host, snapshot("s"), ground(space=128 * MIB))
    do(host, up)
    work(host, "homework")
    made = do(host, reset, ground(space=700 * MIB))
    assert any("no space to keep" in text for text in made.notes)
    assert "undo" not in record(host).snapshots


def test_what_is_kept_for_undo_goes_with_age_and_with_want_of_space() -> None:
    later = {"2024-01-06T00:00:00+00:00": True, "2024-01-09T00:00:00+00:00": False, "2022-01-01T00:00:00+00:00": True}
    later["2026-01-09T00:00:00+00:00"] = True  # no reset is undone two years later: that clock is wrong
    for now, kept in later.items():
        host = up_host()
        do(host, reset)
        made = do(host, up, replace(ground(), now=now))
        assert ("undo" in record(host).snapshots) is kept
        assert made.notes == (() if kept else ("what was kept for `lab undo demo` is dropped: it is older than 7 days",))
        check_up(host, LAB)
    host = up_host()
    do(host, reset)
    assert "no space for it any more" in do(host, up, ground(space=600 * MIB)).notes[0]
    assert "undo" not in record(host).snapshots
    check_up(host, LAB)


@pytest.mark.parametrize("again", [up, reset])
def test_what_is_kept_for_undo_does_not_go_for_want_of_space_before_all_are_back(again: Planner) -> None:
    host = up_host()
    homework(host)
    left = contents(host)
    never_ready(host, reset)
    do(host, again, ground(space=600 * MIB))
    do(host, undo)
    assert contents(host) == left


def every_cut(host: Host, planner: Planner) -> Iterator[int]:
    steps = planner(host.inventory(), ground()).steps
    for cut in range(len(steps) + 1):
        for part in range(14):
            yield cut * 100 + part


def cut_host(prepare: Callable[[Host], None], planner: Planner, at: int) -> Host:
    host = up_host()
    prepare(host)
    have = host.inventory()
    made = planner(have, ground())
    check_plan(made, have)
    host.apply(made, cut=at // 100, part=at % 100)
    host.sweep()
    return host


def is_over(host: Host) -> bool:
    """Whether a way back was gone to its end, and only sweeping was left: going back once more would be another one."""
    return "undo" in record(host).snapshots and not any(made.restoring for made in record(host).machines.values())


def homework(host: Host) -> None:
    work(host, "homework")


def test_a_reset_that_is_cut_anywhere_is_completed_and_can_still_be_undone() -> None:
    prepared = up_host()
    homework(prepared)
    left = contents(prepared)
    for at in every_cut(prepared, reset):
        for again in (reset, up):
            host = cut_host(homework, reset, at)
            do(host, up if is_over(host) else again)
            check_up(host, LAB)
            now = contents(host)
            assert now == left or all("homework" not in kept for kept in now.values()), f"neither old nor new: {now}"
            if again is reset:
                assert now != left
            if now != left:
                do(host, undo)
                assert contents(host) == left, f"cut at {at}: what was left is lost"
                check_up(host, LAB)


def test_an_undo_that_is_cut_anywhere_is_completed_and_not_taken_back() -> None:
    def prepare(host: Host) -> None:
        homework(host)
        do(host, reset)
        work(host, "since")

    prepared = up_host()
    prepare(prepared)
    since = contents(prepared)
    for at in every_cut(prepared, undo):
        host = cut_host(prepare, undo, at)
        waits = record(host).machines[Name("b")].restoring
        swapped = "homework" in host.content("b")
        if swapped and not waits:
            continue  # it was over
        do(host, undo)
        assert all("homework" in host.content(name) for name in "ab"), f"cut at {at}"
        assert "homework" in host.nvrams["a"]
        check_up(host, LAB)
        do(host, undo)
        assert contents(host) == since


def test_an_undo_right_after_an_interrupted_reset_brings_back_what_was_left() -> None:
    prepared = up_host()
    homework(prepared)
    left = contents(prepared)
    for at in every_cut(prepared, reset):
        host = cut_host(homework, reset, at)
        if "undo" not in record(host).snapshots:
            with pytest.raises(NotFound):
                do(host, undo)
            do(host, up)
        else:
            do(host, undo)
        assert contents(host) == left
        check_up(host, LAB)


def test_a_reset_after_an_undo_that_did_not_end_keeps_what_that_brought_back() -> None:
    def prepare(host: Host) -> None:
        work(host, "thesis")
        do(host, reset)

    prepared = up_host()
    work(prepared, "thesis")
    left = contents(prepared)
    do(prepared, reset)
    tried = 0
    for at in every_cut(prepared, undo):
        host = cut_host(prepare, undo, at)
        if "thesis" not in host.content("a"):
            continue
        made = do(host, reset)
        assert (set(made.keeps), made.loses) == ({"a", "b"}, ()), f"cut at {at}"
        assert "is kept for 7 days" in left_text(made, INSTANCE)
        do(host, undo)
        assert contents(host) == left, f"cut at {at}: the only copy is lost"
        check_up(host, LAB)
        tried += 1
    assert tried > 20


def never_ready(host: Host, planner: Planner) -> None:
    """Carry a plan out up to where it waits for machines of which one does not get ready."""
    made = planner(host.inventory(), ground())
    host.apply(made, cut=ids(made).index("back"))


def test_what_is_done_after_a_reset_that_did_not_end_is_not_promised_to_be_kept() -> None:
    host = up_host()
    homework(host)
    left = contents(host)
    never_ready(host, reset)
    work(host, "three days")
    worked = contents(host)
    again = reset(host.inventory(), ground())
    assert (set(again.loses), again.keeps) == ({"a", "b"}, ())
    assert "What was done since is lost" in left_text(again, INSTANCE)
    assert "stays kept: pocketcloud lab undo demo" in left_text(again, INSTANCE)
    # Taking it back instead keeps both.
    made = do(host, undo)
    assert made.loses == ()
    assert contents(host) == left
    do(host, undo)
    assert contents(host) == worked
    do(host, lambda have, here: plan_reset(INSTANCE, ["a"], have, here, undo=True))
    mixed = plan_reset(INSTANCE, [], host.inventory(), ground(), undo=False)
    assert left_text(mixed, INSTANCE) == "What is on the disks now is lost."


def test_a_reset_of_all_labs_promises_to_keep_no_more_than_each_keeps() -> None:
    host = up_host()
    kept = reset(host.inventory(), ground())
    lost = plan_reset(INSTANCE, ["b"], host.inventory(), ground(), undo=False)
    full = reset(host.inventory(), ground(space=300 * MIB))
    assert left_text_of_all([kept]) == "What is on their disks now is kept for 7 days (pocketcloud lab undo LAB)."
    assert left_text_of_all([full]) == "What is on their disks now is lost."
    assert "disks of demo/b now is lost, and that of the others kept" in left_text_of_all([kept, lost])


def test_a_reset_without_undo_that_did_not_end_leaves_what_was_done_since_to_the_next() -> None:
    host = up_host()
    never_ready(host, restore("clean", undo=False))
    work(host, "three days")
    worked = contents(host)
    assert set(do(host, reset).keeps) == {"a", "b"}
    do(host, undo)
    assert contents(host) == worked


def test_an_undo_of_some_leaves_the_others_theirs() -> None:
    host = up_host()
    homework(host)
    left = contents(host)
    do(host, reset)
    do(host, lambda have, here: plan_undo(INSTANCE, have, here, but=["a"]))
    assert "homework" not in host.content("a")
    assert record(host).undo is not None
    do(host, lambda have, here: plan_undo(INSTANCE, have, here, but=["b"]))
    assert contents(host) == left


def test_completing_an_undo_loses_nothing() -> None:
    host = up_host()
    homework(host)
    do(host, reset)
    never_ready(host, undo)
    assert left_text(undo(host.inventory(), ground()), INSTANCE) == "Nothing is lost."


def test_a_restore_that_is_cut_anywhere_is_wholly_the_old_or_the_new_state() -> None:
    def prepare(host: Host) -> None:
        work(host, "one")
        do(host, snapshot("one"))
        work(host, "two")

    prepared = up_host()
    prepare(prepared)
    left = contents(prepared)
    for at in every_cut(prepared, restore("one")):
        for again in (restore("one"), up):
            host = cut_host(prepare, restore("one"), at)
            do(host, up if is_over(host) else again)
            check_up(host, LAB)
            now = contents(host)
            assert now == left or all(kept[-1] == "one" for kept in now.values())
            if now != left:
                do(host, undo)
                assert contents(host) == left


def test_a_snapshot_that_is_cut_anywhere_is_there_whole_or_not_at_all() -> None:
    prepared = up_host()
    homework(prepared)
    left = contents(prepared)
    for at in every_cut(prepared, snapshot("s")):
        host = cut_host(homework, snapshot("s"), at)
        do(host, up)
        assert contents(host) == left
        check_up(host, LAB)
        if "s" not in record(host).snapshots:
            do(host, snapshot("s"))
        do(host, reset)
        do(host, restore("s"))
        assert contents(host) == left


def test_a_snapshot_that_is_cut_anywhere_is_completed_by_the_same_command() -> None:
    """What ran is brought up again, what was off stays so; the state is taken once."""

    def prepare(host: Host) -> None:
        homework(host)
        host.apply(plan_up(more, INSTANCE, host.inventory(), ground()))
        host.apply(plan_down(INSTANCE, ["c"], host.inventory(), KIT, within=1))

    more = replace(LAB, machines={**LAB.machines, Name("c"): machine("front")})
    prepared = up_host()
    prepare(prepared)
    left = contents(prepared)
    for ram in (False, True):
        take = snapshot("s", ram=ram)
        for at in every_cut(prepared, take):
            for boots in (False, True):
                host = cut_host(prepare, take, at)
                if boots:
                    host.reboot()
                before, again = record(host), plan_taking_again(INSTANCE, host.inventory(), ground())
                if again:
                    check_plan(again, host.inventory())
                    host.apply(again)
                    host.sweep()
                    assert record(host).taking is None
                if not was_taken(before, "s", protected=False, ram=ram):
                    if "s" in record(host).snapshots or (boots and not again):
                        continue  # it was over, or had not begun when the host went down
                    do(host, take)
                running = {name for name, vm in host.domains.items() if vm.state is DomainState.RUNNING}
                assert running == {"a", "b"}, f"cut at {at}"
                assert contents(host) == left
                memory = {name for name, part in record(host).snapshots[Name("s")].machines.items() if part.memory}
                assert memory == ({"a", "b"} if ram else set())


def test_what_is_switched_off_or_brought_back_meanwhile_is_not_brought_up() -> None:
    for planner in (reset, up, lambda have, _: plan_down(INSTANCE, [], have, KIT, within=1)):
        host = up_host()
        host.apply(snapshot("s")(host.inventory(), ground()), cut=0, part=2)
        assert record(host).taking is not None
        do(host, planner)
        assert record(host).taking is None
        assert plan_taking_again(INSTANCE, host.inventory(), ground()) is None


def test_what_left_the_file_half_made_keeps_no_state_from_being_taken() -> None:
    host = up_host()
    more = replace(LAB, machines={**LAB.machines, Name("c"): machine("front", provision="touch x")})
    plan = plan_up(more, INSTANCE, host.inventory(), ground())
    host.apply(plan, cut=ids(plan).index("provision.c"))
    with pytest.raises(Refused, match="c of lab demo was never ready"):
        do(host, snapshot("s"))
    host.apply(plan_up(LAB, INSTANCE, host.inventory(), ground()))
    made = do(host, snapshot("s"))
    assert any("c is no longer in the file, and was never ready" in note and "--prune" in note for note in made.notes)
    assert set(record(host).snapshots[Name("s")].machines) == {"a", "b"}


def test_a_forgetting_that_is_cut_anywhere_is_completed() -> None:
    def prepare(host: Host) -> None:
        for name in ("one", "two"):
            work(host, name)
            do(host, snapshot(name))
        do(host, restore("clean", undo=False))

    prepared = up_host()
    prepare(prepared)
    for at in every_cut(prepared, forget("one")):
        host = cut_host(prepare, forget("one"), at)
        if "one" in record(host).snapshots:
            do(host, forget("one"))
        do(host, restore("two"))
        assert host.content("a")[-2:] == ("one", "two")
        check_up(host, LAB)


def test_making_a_machine_anew_takes_it_out_of_every_state() -> None:
    host = up_host()
    do(host, snapshot("s"))
    do(host, reset)
    bigger = replace(LAB, machines={**LAB.machines, Name("a"): replace(LAB.machines[Name("a")], disk=Size(2 * GIB))})
    raise_lab(bigger, host, reconfigure=True)
    assert {name: set(state.machines) for name, state in record(host).snapshots.items()} == {
        "s": {"b"},
        "undo": {"b"},
        "clean": {"a", "b"},
    }
    made = do(host, restore("s"))
    assert any("a is not in demo@s" in text for text in made.notes)
    assert "a" not in {step.machine for step in made.steps}


def test_states_that_go_with_their_machines_are_named_and_protected_ones_refused() -> None:
    host = up_host()
    do(host, lambda have, here: plan_snapshot(INSTANCE, "exam", have, here, protected=True))
    do(host, snapshot("plain"))
    one = replace(LAB, machines={Name("a"): LAB.machines[Name("a")]})
    pruned = plan_up(one, INSTANCE, host.inventory(), ground(), prune=True)
    assert pruned.loses == ("b",)
    assert "b will be removed" in loss_text(pruned)
    assert "demo@exam, which is protected, loses b" in pruned.notes
    anew = replace(one, machines={Name("a"): replace(LAB.machines[Name("a")], disk=Size(2 * GIB))})
    with pytest.raises(Refused, match="demo@exam is protected, and would be forgotten: a, b") as refused:
        plan_up(anew, INSTANCE, host.inventory(), ground(), reconfigure=True, prune=True)
    assert "lab protect demo@exam --off" in refused.value.hint
    do(host, lambda have, _: plan_protect(INSTANCE, "exam", have, KIT, protected=False))
    made = plan_up(anew, INSTANCE, host.inventory(), ground(), reconfigure=True, prune=True)
    assert {f"demo@{state} is forgotten: it is of a, b alone" for state in ("exam", "plain")} <= set(made.notes)


def test_a_machine_that_left_the_file_is_not_taken_back_into_the_lab() -> None:
    host = up_host()
    homework(host)
    do(host, snapshot("s"))
    left = contents(host)
    do(host, reset)
    one = replace(LAB, machines={Name("a"): LAB.machines[Name("a")]})
    host.apply(plan_up(one, INSTANCE, host.inventory(), ground()))
    made = do(host, restore("s"))
    assert made.notes == (
        "b is in demo@s and not in the lab any more; it is left out",
        "`lab undo demo` will not bring back any more what b left before this restore",
    )
    assert record(host).lab.machines == one.machines
    host.domains["b"].state = DomainState.OFF
    assert "b is no longer in the file and is left as it is" in do(host, reset).notes[0]
    assert host.domains["b"].state is DomainState.OFF
    # What it leaves when it is named is brought back all the same, and the lab stays what it is.
    host.apply(plan_up(LAB, INSTANCE, host.inventory(), ground()))
    do(host, restore("s"))
    host.apply(plan_up(one, INSTANCE, host.inventory(), ground()))
    do(host, lambda have, here: plan_reset(INSTANCE, ["b"], have, here, undo=True))
    assert "homework" not in host.content("b")
    do(host, undo)
    assert contents(host) == left
    assert record(host).lab.machines == one.machines


def test_a_damaged_state_is_named_before_anything_is_done() -> None:
    host = up_host()
    do(host, snapshot("s"))
    lost = record(host).snapshots[Name("s")].machines[Name("a")].disks["root"]
    have = replace(host.inventory(), volumes={k: v for k, v in host.inventory().volumes.items() if k != lost})
    with pytest.raises(Refused, match=f"the s state of a is damaged: volume {lost}"):
        plan_restore(INSTANCE, "s", have, ground())


def test_old_disks_go_only_when_no_state_needs_them() -> None:
    host = up_host()
    do(host, snapshot("s"))
    made = do(host, restore("s", undo=False))
    assert len(removed(made)) == 3
    assert ids(made, RemoveVolumes) == ["remove"]
    assert ids(do(host, reset), RemoveVolumes) == []
