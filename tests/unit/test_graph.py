"""The graph runner, with real threads: order, independence, interruption, and what is raised in the end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketcloud.apply.graph import Outcome, run_graph
from pocketcloud.errors import Bug, HostLacks, NoSpace, NotReady, PartlyDone, PocketcloudError
from pocketcloud.events import Event, PlanStarted, StepDone, StepFailed, StepStarted
from pocketcloud.plan.steps import Plan, StartMachine, Step
from pocketcloud.system import CommandFailed, Completed

PATIENCE = 20


def step(name: str, *after: str) -> Step:
    return StartMachine(id=name, reason="test", machine=name, after=after)


def plan(*steps: Step) -> Plan:
    return Plan("demo", steps)


def run(graph: Plan, effect: Callable[[Step], None], stop: threading.Event | None = None) -> tuple[Outcome, list[Event]]:
    events: list[Event] = []
    outcome = run_graph(graph, effect, events.append, stop or threading.Event())
    return outcome, events


def failing(**errors: BaseException) -> Callable[[Step], None]:
    """An effect that fails for the named steps."""

    def effect(step: Step) -> None:
        if step.id in errors:
            raise errors[step.id]

    return effect


DIAMOND = plan(step("a"), step("b", "a"), step("c", "a"), step("d", "b", "c"), step("x"), step("y", "x"))


def test_all_is_done_each_after_what_it_comes_after() -> None:
    order: list[str] = []
    outcome, events = run(DIAMOND, lambda step: order.append(step.id))
    assert sorted(order) == sorted(outcome.done) == list("abcdxy")
    for one in DIAMOND.steps:
        assert all(order.index(other) < order.index(one.id) for other in one.after)
    assert events[0] == PlanStarted("demo", 6)
    assert outcome.failed == {}
    assert outcome.not_started == ()
    assert set(outcome.seconds) == set("abcdxy")
    outcome.raise_failure(DIAMOND, "again")


def test_what_does_not_depend_on_each_other_runs_at_once() -> None:
    together = threading.Barrier(8, timeout=PATIENCE)

    def effect(_step: Step) -> None:
        together.wait()

    outcome, _ = run(plan(*(step(f"s{i}") for i in range(8))), effect)
    assert len(outcome.done) == 8


def test_a_step_starts_as_soon_as_its_own_have_ended() -> None:
    """`b` ends only when `d`, which comes after `a`, has begun: it must not wait for `b`."""
    begun = threading.Event()

    def effect(step: Step) -> None:
        if step.id == "b":
            assert begun.wait(PATIENCE)
        if step.id == "d":
            begun.set()

    outcome, _ = run(plan(step("a"), step("b"), step("d", "a")), effect)
    assert outcome.failed == {}


def test_a_failure_holds_up_only_what_comes_after_it() -> None:
    outcome, events = run(DIAMOND, failing(b=NotReady("b is late", hint="wait")))
    assert set(outcome.done) == {"a", "c", "x", "y"}
    assert set(outcome.failed) == {"b"}
    assert outcome.not_started == ("d",)
    (failed,) = [event for event in events if isinstance(event, StepFailed)]
    assert (failed.id, failed.machine, failed.message) == ("b", "b", "b is late")
    assert {event.id for event in events if isinstance(event, StepStarted)} == set("abcxy")
    assert {event.id for event in events if isinstance(event, StepDone)} == set("acxy")


def test_one_kind_of_failure_keeps_its_exit_code_and_says_how_far_it_came() -> None:
    outcome, _ = run(DIAMOND, failing(b=NotReady("late", hint="look"), x=NotReady("later", hint="look")))
    with pytest.raises(NotReady) as raised:
        outcome.raise_failure(DIAMOND, "pocketcloud lab up demo")
    error = raised.value
    assert error.exit_code == 7
    lines = error.message.splitlines()
    assert set(lines[:2]) == {"start b: late", "start x: later"}
    assert lines[2] == "2 of 6 steps done, 2 failed, 2 not started"
    assert error.hint == "look; what is done is kept; to go on: pocketcloud lab up demo"


def test_several_kinds_are_partly_done() -> None:
    outcome, _ = run(DIAMOND, failing(b=NotReady("late"), x=NoSpace("full")))
    with pytest.raises(PartlyDone) as raised:
        outcome.raise_failure(DIAMOND, "again")
    assert raised.value.exit_code == 8
    assert "late" in raised.value.message
    assert "full" in raised.value.message


def test_an_error_with_a_form_of_its_own_is_partly_done() -> None:
    outcome, _ = run(DIAMOND, failing(a=CommandFailed(Completed(("qemu-img",), 1, "", "no"))))
    with pytest.raises(PartlyDone, match="qemu-img: exit code 1"):
        outcome.raise_failure(DIAMOND, "again")


@pytest.mark.parametrize("bug", [ZeroDivisionError("by zero"), KeyError("x"), AssertionError()])
def test_a_bug_is_raised_as_it_is_whatever_else_failed(bug: BaseException) -> None:
    outcome, events = run(DIAMOND, failing(b=HostLacks("no tool"), x=bug))
    with pytest.raises(type(bug)) as raised:
        outcome.raise_failure(DIAMOND, "again")
    assert raised.value is bug
    assert raised.value.__traceback__ is not None
    assert any(isinstance(event, StepFailed) and type(bug).__name__ in event.message for event in events)


def test_a_bug_that_is_to_hold_up_nobody_names_itself_and_its_line() -> None:
    with pytest.raises(KeyError) as raised:
        dict[str, str]()["nothing there"]
    told = Bug.of(raised.value)
    assert told.message.startswith("a bug in pocketcloud: KeyError: 'nothing there' in ")
    assert "test_graph.py:" in told.message
    assert "report" in told.hint


def test_when_stopped_nothing_more_starts_and_that_is_no_success() -> None:
    stop = threading.Event()

    def effect(step: Step) -> None:
        if step.id == "a":
            stop.set()

    graph = plan(step("a"), step("b", "a"), step("c", "b"))
    outcome, _ = run(graph, effect, stop)
    assert outcome.done == ("a",)
    assert outcome.not_started == ("b", "c")
    with pytest.raises(PartlyDone, match="1 of 3 steps done") as raised:
        outcome.raise_failure(graph, "pocketcloud lab up demo")
    assert "pocketcloud lab up demo" in raised.value.hint


@pytest.mark.timeout(60)
def test_ctrl_c_lets_what_runs_notice_and_goes_up() -> None:
    stop, ended = threading.Event(), threading.Event()

    def effect(step: Step) -> None:
        if step.id == "b":
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.wait(PATIENCE)
            ended.set()

    seen: list[Event] = []
    with pytest.raises(KeyboardInterrupt):
        run_graph(plan(step("a"), step("b", "a"), step("c", "b")), effect, seen.append, stop)
    assert ended.is_set(), "the running step was not waited for"
    assert not any(isinstance(event, StepStarted) and event.id == "c" for event in seen)


def test_an_empty_plan_is_done() -> None:
    outcome, events = run(plan(), failing())
    assert outcome == Outcome((), {}, (), {})
    assert events == [PlanStarted("demo", 0)]


@st.composite
def graphs(draw: st.DrawFn) -> Plan:
    steps: list[Step] = []
    for number in range(draw(st.integers(0, 14))):
        after = draw(st.lists(st.sampled_from([s.id for s in steps]), unique=True, max_size=3)) if steps else []
        steps.append(step(f"s{number}", *after))
    return plan(*steps)


@settings(max_examples=100, deadline=None)
@given(graphs(), st.sets(st.integers(0, 13), max_size=4))
def test_any_graph_any_failures(graph: Plan, numbers: set[int]) -> None:
    errors: dict[str, BaseException] = {f"s{n}": PocketcloudError("no") for n in numbers if n < len(graph.steps)}
    outcome, _ = run(graph, failing(**errors))
    assert sorted([*outcome.done, *outcome.failed, *outcome.not_started]) == sorted(s.id for s in graph.steps)
    for one in graph.steps:
        blocked = any(other in outcome.failed or other in outcome.not_started for other in one.after)
        assert (one.id in outcome.not_started) == blocked
        assert (one.id in outcome.failed) == (one.id in errors and not blocked)
