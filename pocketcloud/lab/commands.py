"""up, reset, down, destroy: observe, plan, ask, apply."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from pocketcloud.apply.effects import effect_of
from pocketcloud.apply.graph import Outcome, run_graph
from pocketcloud.errors import PocketcloudError, Refused
from pocketcloud.events import Event, Note, StepDone
from pocketcloud.lab.caching import check_offline
from pocketcloud.lab.host_names import settle_names
from pocketcloud.lab.status import routed_notes
from pocketcloud.lab.workbench import Workbench
from pocketcloud.model.facts import Subnet
from pocketcloud.model.inventory import Inventory
from pocketcloud.model.lab import Lab, ResetKind
from pocketcloud.model.names import Name, joined
from pocketcloud.observe import Sight
from pocketcloud.plan.drafting import known_record
from pocketcloud.plan.needs import check_outside
from pocketcloud.plan.protection import Allow, guarded, left_alone, never, refused
from pocketcloud.plan.removal import plan_destroy, plan_down
from pocketcloud.plan.reset import plan_reset
from pocketcloud.plan.steps import CommitRecord, Plan, WaitReady
from pocketcloud.plan.up import plan_onto_new_base, plan_up
from pocketcloud.records import read_record

Confirm = Callable[[Plan], None]
"""Shows a plan that loses something and asks; raises Refused on a no."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and the inventory it starts from."""

    plan: Plan
    have: Inventory


@dataclass(frozen=True, slots=True)
class Done:
    """An applied plan: its outcome, the seconds it took, and when each machine was ready, in seconds from the start."""

    plan: Plan
    outcome: Outcome
    seconds: float
    ready: dict[str, float]


def plan_for_up(
    bench: Workbench,
    lab: Lab | None,
    instance: Name,
    *,
    reconfigure: bool,
    prune: bool,
    sight: Sight | None = None,
    chosen: Sequence[Subnet] = (),
) -> Planned:
    """The plan that `up` would apply now, or with what `sight` has seen. Without `lab` the instance's own definition is raised
    again. `chosen` are subnets that are given away, although nobody could see it yet."""
    sight = sight or bench.look()
    have = bench.observe(instance, lab, sight=sight)
    wanted = lab or known_record(instance, have, bench.kit.name).lab
    if bench.warm:
        wanted = replace(wanted, reset=ResetKind.WARM)
    for name, machine in wanted.machines.items():
        # A domain or a network of this name that is not ours is found out here, before anything is made.
        bench.hypervisor.domain(joined(bench.kit.name, instance, name))
        base = have.bases.get(machine.base)
        if base:
            bench.shape(base.arch)
    for network in wanted.networks:
        bench.hypervisor.check_network(joined(bench.kit.name, instance, network))
    if bench.offline:
        # First of all: whoever cannot raise it here need not hear of what else is missing.
        check_outside(wanted, have, online=False)
        check_offline(bench.kit, wanted, instance, have.bases, have.record.machines if have.record else ())
    ground = bench.ground(have, instance, wanted, sight=sight)
    ground = replace(ground, taken=(*ground.taken, *chosen))
    plan = plan_up(wanted, instance, have, ground, reconfigure=reconfigure, prune=prune)
    before = have.record.lab.reset if have.record else wanted.reset
    if before is ResetKind.WARM and wanted.reset is not ResetKind.WARM:
        plan = replace(
            plan,
            notes=(*plan.notes, "resets are cold from now on: neither the lab file says `reset: warm` nor the command --warm"),
        )
    return Planned(plan, have)


def up(
    bench: Workbench,
    lab: Lab | None,
    instance: Name,
    *,
    reconfigure: bool,
    prune: bool,
    confirm: Confirm,
    allow: Allow = never,
) -> Done:
    """Bring a lab up; see plan/up.py for what that means to one that is there, half or whole."""
    with bench.lock(instance), ExitStack() as allocation:
        allocation.enter_context(bench.allocation())
        planned = plan_for_up(bench, lab, instance, reconfigure=reconfigure, prune=prune)
        if planned.plan.loses or guarded(planned.plan, planned.have):
            # A question may stay open for long: no other lab waits for its answer.
            allocation.close()
            check_spared(planned, allow, "made anew or removed")
            confirm(planned.plan)
            allocation.enter_context(bench.allocation())
            planned = plan_for_up(bench, lab, instance, reconfigure=reconfigure, prune=prune)
        say_how(bench, planned)
        if not bench.served:
            bench.servers.end(instance)
        return apply_planned(bench, planned, f"pocketcloud lab up {instance}", allocation)


def plan_for_reset(
    bench: Workbench,
    instance: Name,
    machines: Sequence[str],
    *,
    onto_new_base: bool = False,
    undo: bool = True,
    sight: Sight | None = None,
    but: Collection[str] = (),
) -> Planned:
    """The plan that `reset` would apply now, or with what `sight` has seen; those of `but` are left out."""
    sight = sight or bench.look()
    have = bench.observe(instance, sight=sight)
    ground = bench.ground(have, instance, sight=sight)
    if onto_new_base:
        named = [name for name in machines or known_record(instance, have, bench.kit.name).machines if name not in but]
        if but and not named:
            raise refused(instance, list(but), "made anew")
        plan = plan_onto_new_base(instance, named if but else machines, have, ground)
        return Planned(replace(plan, notes=(*plan.notes, *left_alone(but))), have)
    return Planned(plan_reset(instance, machines, have, ground, undo=undo, but=but), have)


def reset(
    bench: Workbench,
    instance: Name,
    machines: Sequence[str],
    *,
    confirm: Confirm,
    onto_new_base: bool = False,
    undo: bool = True,
    allow: Allow = never,
) -> Done:
    """Bring a lab, or machines of it, back to `clean`, or make them anew from newer bases (see plan/up.py). With `undo` what
    they leave is kept. Protected machines are left out unless `allow` says otherwise; Refused if one of them was named."""
    with bench.lock(instance), ExitStack() as allocation:
        # Asked before the host's subnets are held: a question may stay open for long.
        def plan(but: Collection[str]) -> Planned:
            return plan_for_reset(bench, instance, machines, onto_new_base=onto_new_base, undo=undo, but=but)

        planned, but = spared(bench, instance, plan, machines, allow)
        confirm(planned.plan)
        allocation.enter_context(bench.allocation())
        planned = plan(but)
        # Once they stand on the new base, what is left to do is an `up`.
        again = ["pocketcloud lab up", instance] if onto_new_base else ["pocketcloud lab reset", instance, *machines]
        done = apply_planned(bench, planned, " ".join(again), allocation)
        if onto_new_base:
            bench.sweep_bases()
        return done


def spared(
    bench: Workbench, instance: Name, plan: Callable[[Collection[str]], Planned], named: Sequence[str], allow: Allow
) -> tuple[Planned, tuple[str, ...]]:
    """The plan without the protected machines that `allow` does not give free, and who those are. Raises Refused where one of
    them was named."""
    try:
        planned = plan(())
    except PocketcloudError as error:
        # It may be one of them that keeps the others from it.
        if named or (others := planned_without_protected(bench, instance, plan)) is None or allow(others[1]):
            raise error from None
        return others
    names = guarded(planned.plan, planned.have)
    if not names or allow(names):
        return planned, ()
    if asked := [name for name in names if name in named]:
        raise refused(instance, asked, "reset")
    planned = plan(names)
    # What was begun is completed with all that it was begun with.
    check_spared(planned, never, "brought back")
    return planned, names


def planned_without_protected(
    bench: Workbench, instance: Name, plan: Callable[[Collection[str]], Planned]
) -> tuple[Planned, tuple[str, ...]] | None:
    """The plan without all protected machines of a lab, and who those are; None where there is none."""
    try:
        record = read_record(bench.files(instance))
        names = tuple(name for name, machine in record.machines.items() if machine.definition.protected) if record else ()
        return (plan(names), names) if names else None
    except PocketcloudError:
        return None


def check_spared(planned: Planned, allow: Allow, done: str) -> None:
    """Refuse a plan that takes a protected machine's disks, where it cannot be left out, unless `allow` gives it free."""
    names = guarded(planned.plan, planned.have)
    if names and not allow(names):
        raise refused(planned.plan.instance, names, done)


def plan_for_down(bench: Workbench, instance: Name, machines: Sequence[str], within: float) -> Planned:
    """The plan that `down` would apply now."""
    have = bench.observe(instance)
    return Planned(plan_down(instance, machines, have, bench.kit.name, within=within), have)


def down(bench: Workbench, instance: Name, machines: Sequence[str], *, within: float) -> Done:
    """Stop a lab, or machines of it."""
    with bench.lock(instance):
        planned = plan_for_down(bench, instance, machines, within)
        done = apply_planned(bench, planned, f"pocketcloud lab down {instance}")
        if not machines:
            bench.servers.end(instance)
        return done


def plan_for_destroy(bench: Workbench, instance: Name) -> Planned:
    """The plan that `destroy` would apply now; a damaged record does not stop it."""
    try:
        have = bench.observe(instance)
    except Refused:
        have = bench.observe(instance, trust_record=False)
    if have.empty and not bench.files(instance).folder.exists():
        known_record(instance, have, bench.kit.name)
    return Planned(plan_destroy(instance, have), have)


def destroy(bench: Workbench, instance: Name, *, confirm: Confirm, allow: Allow = never) -> Done:
    """Remove all of a lab, and nothing else."""
    with bench.lock(instance):
        planned = plan_for_destroy(bench, instance)
        check_spared(planned, allow, "removed")
        confirm(planned.plan)
        done = apply_planned(bench, planned, f"pocketcloud lab destroy {instance}")
        bench.storage.remove()  # the first volume that a killed `up` was making is none yet, so no step removes it
        bench.servers.end(instance)
        bench.sweep_bases()
        return done


def say_how(bench: Workbench, *plans: Planned) -> None:
    """Tell what these plans' networks need of others, and why their machines are emulated, if they are."""
    records = [record for planned in plans if (record := planned.plan.record or planned.have.record)]
    for note in (note for record in records for note in routed_notes(record.networks)):
        bench.emit(Note(note))
    for arch in sorted({machine.arch for record in records for machine in record.machines.values()}):
        if reason := bench.shape(arch).reason:
            bench.emit(Note(reason))


def apply_planned(bench: Workbench, planned: Planned, again: str, allocation: ExitStack | None = None) -> Done:
    """Apply a plan; `again` is the command that goes on where it failed. `allocation` holds the host's subnets, and is closed as
    soon as the record says which the lab has. Raises what the plan's failures come to."""
    started = time.monotonic()
    ready: dict[str, float] = {}
    waits = {step.id for step in planned.plan.steps if isinstance(step, WaitReady)}
    if allocation and not any(isinstance(step, CommitRecord) for step in planned.plan.steps):
        allocation.close()
    for note in planned.plan.notes:
        bench.emit(Note(note, warn=True))

    def emit(event: Event) -> None:
        if isinstance(event, StepDone):
            if event.id in waits:
                ready[event.machine] = time.monotonic() - started
            if event.id == "commit" and allocation:
                # From here on others see which subnets are taken.
                allocation.close()
        bench.emit(event)

    world = bench.world(planned.plan.instance, planned.have.record, emit)
    outcome = run_graph(planned.plan, effect_of(world), emit, bench.stop)
    settle_names(bench, Name(planned.plan.instance))
    outcome.raise_failure(planned.plan, again)
    return Done(planned.plan, outcome, time.monotonic() - started, ready)
