"""Runs a graph of steps in threads: what is ready starts, what failed holds up only what comes after it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from graphlib import TopologicalSorter

from pocketcloud.errors import PartlyDone, PocketcloudError
from pocketcloud.events import Event, PlanStarted, StepDone, StepFailed, StepStarted
from pocketcloud.plan.steps import Plan, Step, title

# Steps mostly wait, for guests and for tools; this bounds how many machines are waited for at once.
_THREADS = 64


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a plan: ids of the steps done and not started, and the errors of those that failed; `seconds` by step."""

    done: tuple[str, ...]
    failed: dict[str, BaseException]
    not_started: tuple[str, ...]
    seconds: dict[str, float]

    def raise_failure(self, plan: Plan, again: str) -> None:
        """Raise what the user has to know if not all is done; `again` is the command that continues.

        A bug (an error that is not ours) is raised as it is. One kind of failure keeps its exit code, several make PartlyDone.
        """
        if not self.failed:
            if self.not_started:
                raise PartlyDone(f"stopped: {len(self.done)} of {len(plan.steps)} steps done", hint=f"to go on: {again}")
            return
        for error in self.failed.values():
            if not isinstance(error, PocketcloudError):
                raise error
        errors = [error for error in self.failed.values() if isinstance(error, PocketcloudError)]
        titles = {step.id: title(step) for step in plan.steps}
        lines = [f"{titles[step_id]}: {error}" for step_id, error in self.failed.items()]
        counts = (
            f"{len(self.done)} of {len(plan.steps)} steps done, {len(self.failed)} failed, {len(self.not_started)} not started"
        )
        hints = [*dict.fromkeys(error.hint for error in errors if error.hint), f"what is done is kept; to go on: {again}"]
        codes = {error.exit_code for error in errors}
        kind = type(errors[0]) if len(codes) == 1 and type(errors[0]).__init__ is PocketcloudError.__init__ else PartlyDone
        raise kind("\n".join([*lines, counts]), hint="; ".join(hints)) from errors[0]


def run_graph(plan: Plan, effect: Callable[[Step], None], emit: Callable[[Event], None], stop: threading.Event) -> Outcome:
    """Run every step of the plan through `effect`, each after what it comes after.

    When `stop` is set nothing more is started, and what runs is expected to notice. A KeyboardInterrupt here sets it, waits
    for what runs, and goes on up.
    """
    steps = {step.id: step for step in plan.steps}
    sorter = TopologicalSorter({step.id: [a for a in step.after if a in steps] for step in plan.steps})
    sorter.prepare()
    emit(PlanStarted(plan.instance, len(plan.steps)))
    done: list[str] = []
    failed: dict[str, BaseException] = {}
    seconds: dict[str, float] = {}
    running: dict[Future[float], str] = {}
    with ThreadPoolExecutor(_THREADS, "step") as pool:
        try:
            while True:
                if not stop.is_set():
                    running |= {pool.submit(_run, steps[i], effect, emit): i for i in sorter.get_ready()}
                if not running:
                    break
                # A bounded wait, because only between waits does Python see a Ctrl-C.
                finished, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in finished:
                    step_id = running.pop(future)
                    error = future.exception()
                    if error is None:
                        done.append(step_id)
                        seconds[step_id] = future.result()
                        sorter.done(step_id)
                    else:
                        failed[step_id] = error
        except KeyboardInterrupt:
            stop.set()
            raise
    not_started = tuple(i for i in steps if i not in failed and i not in set(done))
    return Outcome(tuple(done), failed, not_started, seconds)


def _run(step: Step, effect: Callable[[Step], None], emit: Callable[[Event], None]) -> float:
    started = time.monotonic()
    emit(StepStarted(step.id, title(step), step.machine))
    try:
        effect(step)
    except BaseException as error:
        text = error.message if isinstance(error, PocketcloudError) else f"{type(error).__name__}: {error}"
        emit(StepFailed(step.id, title(step), step.machine, time.monotonic() - started, text))
        raise
    took = time.monotonic() - started
    emit(StepDone(step.id, title(step), step.machine, took))
    return took
