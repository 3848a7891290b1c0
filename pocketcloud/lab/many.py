"""Many instances at once, as many in parallel as the host has processors for. One that fails holds up no other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from pocketcloud.apply.effects import effect_of
from pocketcloud.apply.graph import Outcome, run_graph
from pocketcloud.apply.world import World
from pocketcloud.errors import PartlyDone, PocketcloudError
from pocketcloud.events import Event, Note, PlanStarted, StepDone, StepFailed, StepProgress, StepStarted
from pocketcloud.lab.commands import Confirm, Planned, plan_for_up, say_how
from pocketcloud.lab.workbench import Workbench
from pocketcloud.model.lab import Lab
from pocketcloud.model.names import Name
from pocketcloud.plan.many import (
    VOLUMES,
    Needs,
    check_together,
    chosen_subnets,
    labelled,
    made_together,
    making,
    needs,
)
from pocketcloud.plan.steps import CloneVolumes, Plan, Step, WaitReady

T = TypeVar("T")

# Booting machines want a processor each; with more of them at once everybody's deadline comes nearer and nobody is ready earlier.
_VCPUS_PER_CPU = 2


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of one instance: the seconds it took and when each machine was ready, in seconds from its start; `error` says
    why it is not done (None: it is)."""

    instance: Name
    seconds: float
    ready: dict[str, float]
    error: PocketcloudError | None = None


def plan_for_copies(bench: Workbench, labs: Mapping[Name, Lab | None], *, reconfigure: bool, prune: bool) -> tuple[Planned, ...]:
    """The plans that `up_copies` would apply now: one for each instance, which leaves the others their subnets. Raises as `up`
    does, and NoSpace where the host cannot carry all of them together."""
    sight = bench.look()
    found: list[Planned] = []
    needed: dict[str, Needs] = {}
    for instance, lab in labs.items():
        chosen = tuple(subnet for planned in found for subnet in chosen_subnets(planned.plan))
        planned = plan_for_up(bench, lab, instance, reconfigure=reconfigure, prune=prune, sight=sight, chosen=chosen)
        found.append(planned)
        needed[instance] = needs(planned.plan, planned.have, bench.profile)
    first = found[0]
    check_together(needed, bench.ground(first.have, first.plan.instance, sight=sight))
    return tuple(found)


def up_copies(
    bench: Workbench, labs: Mapping[Name, Lab | None], subject: str, *, reconfigure: bool, prune: bool, confirm: Confirm
) -> tuple[Ended, ...]:
    """Bring instances up, each from its lab (None: from its own record). What their machines consist of is made for all of them
    first; then they are started, each by itself."""
    with ExitStack() as locks, ExitStack() as allocation:
        for instance in sorted(labs):  # in one order, so that two commands for the same ones never wait for each other
            locks.enter_context(bench.lock(instance))
        allocation.enter_context(bench.allocation())
        plans = plan_for_copies(bench, labs, reconfigure=reconfigure, prune=prune)
        loses = tuple(f"{each.plan.instance}/{name}" for each in plans for name in each.plan.loses)
        confirm(Plan(subject, (), loses=loses))
        say_how(bench, *plans)
        for instance in labs:
            if not bench.served:
                bench.servers.end(instance)
        bench.emit(PlanStarted(subject, sum(len(each.plan.steps) for each in plans)))
        worlds = {each.plan.instance: _world(bench, each) for each in plans}
        for each in plans:
            for note in each.plan.notes:
                worlds[each.plan.instance].emit(Note(note, warn=True))
        started = time.monotonic()
        made = _make(bench, [each.plan for each in plans], worlds, subject)
        allocation.close()  # from here on others see which subnets are taken
        turns = _Turns(_VCPUS_PER_CPU * bench.facts.cpus, bench.stop)

        def go_on(planned: Planned) -> Ended:
            plan = planned.plan
            with turns.of(needs(plan, planned.have, bench.profile).vcpus):
                return _raise_up(bench, plan, worlds[plan.instance], made, started)

        return _all(bench, go_on, plans)


def _make(bench: Workbench, plans: Sequence[Plan], worlds: Mapping[str, World], subject: str) -> Outcome:
    """Make what the machines of all plans consist of. The outcome's ids are those of `made_together`."""
    together, owners = made_together(plans, subject)
    any_world = next(iter(worlds.values()))

    def effect(step: Step) -> None:
        instance, own = owners.get(step.id, ("", step))
        effect_of(worlds[instance] if instance else any_world)(own)

    def emit(event: Event) -> None:
        if isinstance(event, PlanStarted):
            return
        if isinstance(event, Note) or event.id not in owners:
            bench.emit(event)
        else:
            instance, own = owners[event.id]
            worlds[instance].emit(replace(event, id=own.id))

    return run_graph(together, effect, emit, bench.stop)


def _raise_up(bench: Workbench, plan: Plan, world: World, made: Outcome, started: float) -> Ended:
    """Do what is left of a plan once its machines are made."""
    ready: dict[str, float] = {}
    waits = {step.id for step in plan.steps if isinstance(step, WaitReady)}
    mine = {step.id: VOLUMES if isinstance(step, CloneVolumes) else labelled(step.id, plan.instance) for step in making(plan)}
    failed = {step: made.failed[shared] for step, shared in mine.items() if shared in made.failed}
    done = [step for step, shared in mine.items() if shared in made.done]

    def emit(event: Event) -> None:
        if isinstance(event, StepDone) and event.id in waits:
            ready[event.machine] = time.monotonic() - started
        world.emit(event)

    if len(done) == len(mine):
        rest = replace(plan, steps=tuple(step for step in plan.steps if step.id not in mine))
        outcome = run_graph(rest, effect_of(world), emit, bench.stop)
        failed |= outcome.failed
        done += outcome.done
    left = tuple(step.id for step in plan.steps if step.id not in failed and step.id not in done)
    whole = Outcome(tuple(done), failed, left, {})
    try:
        whole.raise_failure(plan, f"pocketcloud lab up {plan.instance}")
    except PocketcloudError as error:
        return Ended(Name(plan.instance), time.monotonic() - started, ready, error)
    return Ended(Name(plan.instance), time.monotonic() - started, ready)


def _world(bench: Workbench, planned: Planned) -> World:
    return bench.world(planned.plan.instance, planned.have.record, _told_as(planned.plan.instance, bench.emit))


def _told_as(instance: str, emit: Callable[[Event], None]) -> Callable[[Event], None]:
    """What happens to an instance, told among what happens to others."""

    def tell(event: Event) -> None:
        match event:
            case PlanStarted():
                return
            case Note():
                emit(replace(event, text=f"{instance}: {event.text}"))
            case StepProgress():
                emit(replace(event, id=labelled(event.id, instance), machine=f"{instance}/{event.machine}".rstrip("/")))
            case StepStarted() | StepDone() | StepFailed():
                machine = f"{instance}/{event.machine}" if event.machine else ""
                emit(replace(event, id=labelled(event.id, instance), title=f"{instance}: {event.title}", machine=machine))

    return tell


class _Turns:
    """So much of the host's processors as is taken at once: everybody has to wait for a turn, which is taken by weight."""

    def __init__(self, room: int, stop: threading.Event) -> None:
        self._room = max(1, room)
        self._taken = 0
        self._stop = stop
        self._changed = threading.Condition()

    @contextmanager
    def of(self, weight: int) -> Iterator[None]:
        """A turn; whoever is heavier than all the room has it alone. When the command is interrupted nobody waits any more."""
        weight = min(weight, self._room)
        with self._changed:
            while self._taken + weight > self._room and not self._stop.is_set():
                self._changed.wait(timeout=0.5)
            self._taken += weight
        try:
            yield
        finally:
            with self._changed:
                self._taken -= weight
                self._changed.notify_all()


def _all(bench: Workbench, work: Callable[[T], Ended], many: Sequence[T]) -> tuple[Ended, ...]:
    """Work on all of them in threads; a Ctrl-C stops all, and goes on up when they have noticed. What is a bug is raised."""
    with ThreadPoolExecutor(max(1, len(many)), "instance") as pool:
        futures: list[Future[Ended]] = [pool.submit(work, one) for one in many]
        try:
            while not all(future.done() for future in futures):
                # A bounded wait, because only between waits does Python see a Ctrl-C.
                wait(futures, timeout=0.5)
        except KeyboardInterrupt:
            bench.stop.set()
            raise
    return tuple(future.result() for future in futures)


def raise_failures(ended: Sequence[Ended], what: str, again: str) -> None:
    """Raise PartlyDone if any instance is not done, with why; `again` is the command that goes on."""
    failed = [(each.instance, each.error) for each in ended if each.error is not None]
    if failed:
        names = ", ".join(name for name, _ in failed)
        lines = [f"{name}: {error.message}" for name, error in failed]
        raise PartlyDone(
            "\n".join([f"{len(failed)} of {len(ended)} {what}: {names}", *lines]), hint=f"what is done is kept; to go on: {again}"
        )
