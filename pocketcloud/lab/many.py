"""Many instances at once, as many in parallel as the host has processors for. One that fails holds up no other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from pocketcloud.apply.effects import effect_of
from pocketcloud.apply.graph import Outcome, run_graph
from pocketcloud.apply.world import World
from pocketcloud.errors import Bug, NoSpace, PartlyDone, PocketcloudError
from pocketcloud.events import Event, Note, PlanStarted, StepDone, StepFailed, StepProgress, StepStarted
from pocketcloud.lab.commands import (
    Confirm,
    Planned,
    plan_for_reset,
    plan_for_up,
    planned_without_protected,
    reset,
    say_how,
)
from pocketcloud.lab.host_names import settle_names
from pocketcloud.lab.workbench import Workbench
from pocketcloud.model.lab import Lab
from pocketcloud.model.names import Name
from pocketcloud.model.profile import Profile
from pocketcloud.model.sizes import size_text
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
from pocketcloud.plan.protection import Allow, guarded, left_alone, never, refused
from pocketcloud.plan.steps import CloneVolumes, Plan, Step, WaitReady
from pocketcloud.profiles import memory_for_labs, memory_needed
from pocketcloud.records import instances, read_record

T = TypeVar("T")

# Booting machines want a processor each; with more of them at once everybody's deadline comes nearer and nobody is ready earlier.
_VCPUS_PER_CPU = 2
_HINTS = 3  # more than that nobody reads


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
    bench: Workbench,
    labs: Mapping[Name, Lab | None],
    subject: str,
    *,
    reconfigure: bool,
    prune: bool,
    confirm: Confirm,
    allow: Allow = never,
) -> tuple[Ended, ...]:
    """Bring instances up, each from its lab (None: from its own record). What their machines consist of is made for all of them
    first; then they are started, each by itself."""
    with ExitStack() as locks, ExitStack() as allocation:
        for instance in sorted(labs):  # in one order, so that two commands for the same ones never wait for each other
            locks.enter_context(bench.lock(instance))
        allocation.enter_context(bench.allocation())
        plans = plan_for_copies(bench, labs, reconfigure=reconfigure, prune=prune)
        names = tuple(f"{each.plan.instance}/{name}" for each in plans for name in guarded(each.plan, each.have))
        if names and not allow(names):
            raise refused(subject, names, "made anew or removed")
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
    settle_names(bench, Name(plan.instance))
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


@dataclass(frozen=True, slots=True)
class Chosen:
    """The labs of a kit that a reset of all brings back, with what it would do to each; those of `starting` are not up. `left`
    are the others that it should bring back and cannot, `notes` say who is left alone, and why."""

    plans: tuple[Planned, ...]
    starting: tuple[Name, ...]
    left: tuple[Ended, ...]
    notes: tuple[str, ...]


def choose_all(bench: Workbench, *, undo: bool) -> Chosen:
    """The labs that `reset_all` would bring back now: all that have a clean state, up or down. Those that are up come first;
    of those that are down as many as the host has memory for."""
    sight = bench.look()
    plans, left, notes = list[Planned](), list[Ended](), list[str]()

    def plan(instance: Name, but: Collection[str] = ()) -> Planned:
        return plan_for_reset(bench, instance, (), undo=undo, sight=sight, but=but)

    for instance in instances(bench.kit):
        try:
            record = read_record(bench.files(instance))
            if record is None or record.clean is None:
                half = "is half there" if record is None else "has no clean state yet"
                notes.append(f"{instance} {half} and is left alone: pocketcloud lab up {instance}")
            else:
                plans.append(plan(instance))
        except PocketcloudError as error:
            if others := planned_without_protected(bench, instance, partial(plan, instance)):
                plans.append(others[0])
            else:
                left.append(Ended(instance, 0.0, {}, error))
        except Exception as error:  # noqa: BLE001 - a bug that one lab meets holds up no other, and is told as one
            left.append(Ended(instance, 0.0, {}, Bug.of(error)))
    room = memory_for_labs(
        bench.facts, bench.profile, memory_needed(bench.profile, (d.memory for d in sight.domains if d.active))
    )
    fitting = list[Planned]()
    for planned in sorted(plans, key=_memory_of(bench.profile)):
        needed = needs(planned.plan, planned.have, bench.profile).memory
        if needed > room:
            text = f"its machines that are off need {size_text(needed)}; this host can give labs {size_text(room)}"
            hint = "take labs down that are not needed (pocketcloud lab list)"
            left.append(Ended(Name(planned.plan.instance), 0.0, {}, NoSpace(text, hint=hint)))
        else:
            room -= needed
            fitting.append(planned)
    starting = tuple(Name(each.plan.instance) for each in fitting if not any(d.active for d in each.have.domains.values()))
    return Chosen(tuple(fitting), starting, tuple(left), tuple(notes))


def _memory_of(profile: Profile) -> Callable[[Planned], int]:
    return lambda planned: needs(planned.plan, planned.have, profile).memory


def without_protected(bench: Workbench, chosen: Chosen, *, undo: bool) -> Chosen:
    """What `reset_all` brings back where protected machines are left as they are: without labs of which nothing else is left."""
    plans, left, notes = list[Planned](), list(chosen.left), list(chosen.notes)
    for each in chosen.plans:
        instance, names = Name(each.plan.instance), guarded(each.plan, each.have)
        if not names:
            plans.append(each)
        elif set(names) >= {*each.plan.keeps, *each.plan.loses}:
            notes += [f"{instance}: {note}" for note in left_alone(names)]
        else:
            try:
                plans.append(plan_for_reset(bench, instance, (), undo=undo, but=names))
            except PocketcloudError as error:
                left.append(Ended(instance, 0.0, {}, error))
            except Exception as error:  # noqa: BLE001 - a bug that one lab meets holds up no other, and is told as one
                left.append(Ended(instance, 0.0, {}, Bug.of(error)))
    there = {each.plan.instance for each in plans}
    return Chosen(tuple(plans), tuple(name for name in chosen.starting if name in there), tuple(left), tuple(notes))


def reset_all(bench: Workbench, *, confirm: Callable[[Chosen], None], undo: bool, allow: Allow = never) -> tuple[Ended, ...]:
    """Bring all labs of the kit that have one back to their clean state, and up: whoever asks for all wants every lab as on its
    first day. The answer has those that could not be brought back, too. Protected machines only if `allow` says so of all."""
    chosen = choose_all(bench, undo=undo)
    names = tuple(f"{each.plan.instance}/{name}" for each in chosen.plans for name in guarded(each.plan, each.have))
    free = bool(names) and allow(names)
    if not free:
        chosen = without_protected(bench, chosen, undo=undo)
    for note in chosen.notes:
        bench.emit(Note(note, warn=True))
    if not chosen.plans:
        return chosen.left
    confirm(chosen)
    bench.emit(PlanStarted(f"{len(chosen.plans)} labs", sum(len(each.plan.steps) for each in chosen.plans)))
    turns = _Turns(_VCPUS_PER_CPU * bench.facts.cpus, bench.stop)

    def bring_back(planned: Planned) -> Ended:
        instance = Name(planned.plan.instance)
        with turns.of(needs(planned.plan, planned.have, bench.profile).vcpus):
            started = time.monotonic()
            mine = replace(bench, emit=_told_as(instance, bench.emit))
            try:
                if bench.stop.is_set():
                    raise PartlyDone("stopped before it was begun")
                done = reset(mine, instance, (), confirm=lambda _plan: None, undo=undo, allow=lambda _names: free)
            except PocketcloudError as error:
                return Ended(instance, time.monotonic() - started, {}, error)
            except Exception as error:  # noqa: BLE001 - a bug that one lab meets holds up no other, and is told as one
                return Ended(instance, time.monotonic() - started, {}, Bug.of(error))
            return Ended(instance, done.seconds, done.ready)

    return (*_all(bench, bring_back, chosen.plans), *chosen.left)


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
        kept = "what is done is kept"
        # Each has its own way to go on, which is here the one for all.
        hints = dict.fromkeys(hint for _, error in failed if (hint := error.hint.partition(kept)[0].rstrip("; ")))
        raise PartlyDone(
            "\n".join([f"{len(failed)} of {len(ended)} {what}: {names}", *lines]),
            hint="; ".join([*list(hints)[:_HINTS], f"{kept}; to go on: {again}"]),
        )
