"""snapshot, restore, undo, forget, protect: the states of a lab. Each observes, plans, asks, and applies."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack

from pocketcloud.lab.commands import Confirm, Done, Planned, apply_planned, spared
from pocketcloud.lab.workbench import Workbench
from pocketcloud.model.inventory import Inventory
from pocketcloud.model.names import Name
from pocketcloud.plan.drafting import Ground
from pocketcloud.plan.protection import Allow, never
from pocketcloud.plan.reset import plan_restore, plan_undo
from pocketcloud.plan.states import plan_forget, plan_protect, plan_snapshot
from pocketcloud.plan.steps import Plan
from pocketcloud.plan.taking import plan_taking_again, was_taken


def _planned(bench: Workbench, instance: Name, plan: Callable[[Inventory, Ground], Plan]) -> Planned:
    have = bench.observe(instance)
    return Planned(plan(have, bench.ground(have, instance)), have)


def plan_for_snapshot(bench: Workbench, instance: Name, state: Name, *, protected: bool, ram: bool) -> Planned:
    """The plan that `snapshot` would apply now; after an interrupted one that which comes first."""
    return _taking_again(bench, instance) or _taking(bench, instance, state, protected=protected, ram=ram)


def _taking_again(bench: Workbench, instance: Name) -> Planned | None:
    have = bench.observe(instance)
    plan = plan_taking_again(instance, have, bench.ground(have, instance)) if have.record and have.record.taking else None
    return Planned(plan, have) if plan else None


def _taking(bench: Workbench, instance: Name, state: Name, *, protected: bool, ram: bool) -> Planned:
    return _planned(
        bench, instance, lambda have, ground: plan_snapshot(instance, state, have, ground, protected=protected, ram=ram)
    )


def snapshot(bench: Workbench, instance: Name, state: Name, *, protected: bool, ram: bool) -> Done:
    """Take the state of a whole lab, with `ram` the memory too; see plan/states.py. One that was interrupted is gone on with."""
    again = f"pocketcloud lab snapshot {instance}@{state}{' --protect' * protected}{' --ram' * ram}"
    with bench.lock(instance):
        if _taking_again(bench, instance):
            with ExitStack() as allocation:
                allocation.enter_context(bench.allocation())
                if planned := _taking_again(bench, instance):
                    done = apply_planned(bench, planned, again, allocation)
                    if was_taken(planned.have.record, state, protected=protected, ram=ram):
                        return done
        return apply_planned(bench, _taking(bench, instance, state, protected=protected, ram=ram), again)


def plan_for_restore(bench: Workbench, instance: Name, state: Name, *, undo: bool, but: Collection[str] = ()) -> Planned:
    """The plan that `restore` would apply now."""
    return _planned(bench, instance, lambda have, ground: plan_restore(instance, state, have, ground, undo=undo, but=but))


def restore(bench: Workbench, instance: Name, state: Name, *, confirm: Confirm, undo: bool, allow: Allow = never) -> Done:
    """Bring a whole lab back to one of its states; see plan/reset.py. Protected machines only if `allow` says so."""
    again = f"pocketcloud lab restore {instance}@{state}"
    return _back(bench, instance, lambda but: plan_for_restore(bench, instance, state, undo=undo, but=but), confirm, allow, again)


def plan_for_undo(bench: Workbench, instance: Name, *, but: Collection[str] = ()) -> Planned:
    """The plan that `undo` would apply now."""
    return _planned(bench, instance, lambda have, ground: plan_undo(instance, have, ground, but=but))


def undo(bench: Workbench, instance: Name, *, confirm: Confirm, allow: Allow = never) -> Done:
    """Take the last reset or restore back, of protected machines only if `allow` says so."""
    again = f"pocketcloud lab undo {instance}"
    return _back(bench, instance, lambda but: plan_for_undo(bench, instance, but=but), confirm, allow, again)


def _back(
    bench: Workbench, instance: Name, plan: Callable[[Collection[str]], Planned], confirm: Confirm, allow: Allow, again: str
) -> Done:
    with bench.lock(instance), ExitStack() as allocation:
        # Asked before the host's subnets are held: a question may stay open for long.
        planned, but = spared(bench, instance, plan, (), allow)
        confirm(planned.plan)
        allocation.enter_context(bench.allocation())
        return apply_planned(bench, plan(but), again, allocation)


def plan_for_forget(bench: Workbench, instance: Name, state: Name) -> Planned:
    """The plan that `forget` would apply now."""
    return _planned(bench, instance, lambda have, ground: plan_forget(instance, state, have, ground))


def forget(bench: Workbench, instance: Name, state: Name, *, confirm: Confirm) -> Done:
    """Forget a state; what only that held is given back."""
    with bench.lock(instance):
        planned = plan_for_forget(bench, instance, state)
        confirm(planned.plan)
        return apply_planned(bench, planned, f"pocketcloud lab up {instance}")


def protect(bench: Workbench, instance: Name, state: Name, *, protected: bool) -> Done:
    """Protect a state from being forgotten, or not any more."""
    with bench.lock(instance):
        have = bench.observe(instance)
        planned = Planned(plan_protect(instance, state, have, bench.kit.name, protected=protected), have)
        return apply_planned(bench, planned, f"pocketcloud lab protect {instance}@{state}")
