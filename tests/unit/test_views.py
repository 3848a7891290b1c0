"""The three views over the same events: plain lines, JSON lines, bars on a real terminal; in any order, from any thread."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import threading
from collections.abc import Callable, Sequence
from typing import IO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketcloud.cli import lab_checks
from pocketcloud.cli.view import BarView, JsonView, PlainView, SilentView, View, open_view, print_json, print_table
from pocketcloud.events import Event, Note, PlanStarted, StepDone, StepFailed, StepProgress, StepStarted
from pocketcloud.lab.checking import CheckResult, Report, Verdict

UP: list[Event] = [
    Note("emulated: no KVM here"),
    Note("web: a newer debian-12", warn=True),
    PlanStarted("demo", 5),
    StepStarted("volume.web.root", "clone base to disk", "web"),
    StepDone("volume.web.root", "clone base to disk", "web", 0.04),
    StepStarted("start.web", "start web", "web"),
    StepDone("start.web", "start web", "web", 2.5),
    StepStarted("provision.web", "provision web", "web"),
    StepProgress("provision.web", 0.0, "write /etc/x", "web"),
    StepProgress("provision.web", 0.5, "run systemctl", "web"),
    StepProgress("provision.web", 0.5, "run systemctl", "web"),
    StepDone("provision.web", "provision web", "web", 71.2),
    StepStarted("ready.web", "wait until web is ready", "web"),
    StepDone("ready.web", "wait until web is ready", "web", 0.2),
    StepStarted("clean", "take the state clean", ""),
    StepProgress("clean", 0.1, "saving memory"),
    StepDone("clean", "take the state clean", "", 3.0),
]
BUILD: list[Event] = [
    StepProgress("base debian-12", 0.0, "unpacking"),
    StepProgress("base debian-12", 0.5, "installing"),
    StepProgress("base debian-12", 1.0, "sealing"),
]
BROKEN: list[Event] = [
    PlanStarted("demo", 2),
    StepStarted("start.web", "start web", "web"),
    StepFailed("start.web", "start web", "web", 1.0, "no such\ndevice [red]"),
    StepStarted("network.n", "start network n", ""),
    StepFailed("network.n", "start network n", "", 1.0, "no"),
]


def plain(events: Sequence[Event], *, verbose: bool = False) -> list[str]:
    stream = io.StringIO()
    view = PlainView(stream, verbose=verbose)
    for event in events:
        view.emit(event)
    view.close()
    return [re.sub(r"^\[ *\d+\.\ds\] ", "", line) for line in stream.getvalue().splitlines()]


def on_terminal(use: Callable[[IO[str]], None]) -> str:
    """What `use` shows on a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    os.environ["COLUMNS"] = "100"
    shown: list[bytes] = []

    def read() -> None:
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # how a terminal that is closed at the other end is read
                return
            if not piece:
                return
            shown.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with os.fdopen(theirs, "w") as stream:
            use(stream)
    finally:
        reader.join()
        os.close(ours)
        del os.environ["COLUMNS"]
    return b"".join(shown).decode()


def bars(events: Sequence[Event], *, verbose: bool = False) -> str:
    """The last picture that the bars leave, without colours."""

    def use(stream: IO[str]) -> None:
        view = BarView(stream, verbose=verbose)
        try:
            for event in events:
                view.emit(event)
        finally:
            view.close()

    # Going up and wiping a line is how a picture replaces the one before.
    text = re.sub(r"\r|\x1b\[(2K|1A)", "\n", on_terminal(use))
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def last_rows(text: str, *starts: str) -> list[str]:
    """The last line shown for each row."""
    return [[line for line in text.splitlines() if re.match(rf"^\W*{re.escape(start)} ", line)][-1] for start in starts]


# -- plain lines ---------------------------------------------------------------------------------------------------------


def test_plain_lines_say_what_takes_time_and_nothing_more() -> None:
    assert plain(UP) == [
        "emulated: no KVM here",
        "note: web: a newer debian-12",
        "start web: done in 2.5 s",
        "provision web ...",
        "  web: write /etc/x",
        "  web: run systemctl",
        "provision web: done in 1 min 11 s",
        "wait until web is ready ...",
        "wait until web is ready: done in 0.2 s",
        "take the state clean ...",
        "  saving memory",
        "take the state clean: done in 3.0 s",
    ]


def test_plain_lines_with_v_say_every_step() -> None:
    lines = plain(UP, verbose=True)
    assert lines[2] == "demo: 5 steps"
    assert "clone base to disk: done in 0.0 s" in lines
    assert "start web ..." in lines


def test_plain_lines_of_a_build_and_of_failures() -> None:
    assert plain(BUILD) == ["  unpacking", "  installing", "  sealing"]
    assert plain(BROKEN) == ["start web: FAILED after 1.0 s", "start network n: FAILED after 1.0 s"]


def test_what_a_lab_file_says_does_not_steer_the_terminal() -> None:
    nasty = StepProgress("provision.a", 0, "run \x1b]0;title\x07\r\nrm", "a")
    assert plain([nasty]) == ["  a: run  ]0;title   rm"]
    assert "\x07" not in bars([PlanStarted("demo", 1), nasty])
    title = "write /etc/\x1b]52;c;YQ==\x07"
    told: list[Event] = [
        Note(f"warned of {title}\nmore", warn=True),
        StepStarted("provision.a", title, "a"),
        StepDone("provision.a", title, "a", 5.0),
        StepFailed("provision.a", title, "a", 5.0, title),
    ]
    for line in plain(told, verbose=True):
        assert line == "more" or "/etc/\\u001b]52;c;YQ==\\u0007" in line
    assert "\x1b]52" not in bars([PlanStarted("demo", 4), *told], verbose=True)


# -- JSON lines ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("events", [UP, BUILD, BROKEN])
def test_json_lines_are_one_object_each_with_all_that_the_event_has(events: list[Event]) -> None:
    stream = io.StringIO()
    view = JsonView(stream)
    for event in events:
        view.emit(event)
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in found] == [type(event).__name__ for event in events]
    times = [line["time"] for line in found]
    assert times == sorted(times)
    for line, event in zip(found, events, strict=True):
        assert {key: value for key, value in line.items() if key not in ("event", "time")} == {
            name: getattr(event, name) for name in type(event).__dataclass_fields__
        }


# -- bars ----------------------------------------------------------------------------------------------------------------


def test_bars_end_full_and_name_machine_and_lab() -> None:
    text = bars(UP)
    whole, web = last_rows(text, "demo", "web")
    assert "✓" in whole
    assert "✓" in web
    assert web.rstrip().endswith("ready")
    assert "note: web: a newer debian-12" in text
    assert "done in" not in text
    assert "start web: done in 2.5 s" in bars(UP, verbose=True)


def test_bars_before_any_plan_as_a_build_has_them() -> None:
    (row,) = last_rows(bars(BUILD), "base debian-12")
    assert "✓" in row
    assert "sealing" in row


def test_bars_of_failures_are_not_full() -> None:
    whole, web = last_rows(bars(BROKEN), "demo", "web")
    assert "✓" not in whole + web
    assert "FAILED: start web" in web
    assert "FAILED: start network n" in whole


def test_bars_of_machines_that_only_go_end_full() -> None:
    events: list[Event] = [
        PlanStarted("demo", 1),
        StepStarted("undefine.a", "undefine a", "a"),
        StepDone("undefine.a", "undefine a", "a", 0),
    ]
    assert all("✓" in row for row in last_rows(bars(events), "demo", "a"))


# -- all of them ---------------------------------------------------------------------------------------------------------

names = st.sampled_from(["a", "ready.a", "base x", "clean", "[red]"])
text = st.sampled_from(["", "x", "[bold]x", "two\nlines", "\x1b[31m", "ж" * 200])
machine_names = st.sampled_from(["", "a", "b"])
fractions = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0])
any_event: st.SearchStrategy[Event] = st.one_of(
    st.builds(PlanStarted, text, st.integers(0, 3)),
    st.builds(StepStarted, names, text, machine_names),
    st.builds(StepProgress, names, fractions, text, machine_names),
    st.builds(StepDone, names, text, machine_names, st.floats(0, 1e5)),
    st.builds(StepFailed, names, text, machine_names, st.floats(0, 1e5), text),
    st.builds(Note, text, st.booleans()),
)


def show(view: View, events: Sequence[Event]) -> None:
    try:
        for event in events:
            view.emit(event)
    finally:
        view.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(any_event, max_size=12), st.booleans())
def test_events_in_any_order_are_shown_without_an_error(events: list[Event], verbose: bool) -> None:
    show(PlainView(io.StringIO(), verbose=verbose), events)
    show(JsonView(io.StringIO()), events)
    show(SilentView(), events)
    on_terminal(lambda stream: show(BarView(stream, verbose=verbose), events))


def test_lines_from_many_threads_are_whole() -> None:
    stream = io.StringIO()
    view = JsonView(stream)
    threads = [threading.Thread(target=show, args=(view, UP * 20)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([json.loads(line) for line in stream.getvalue().splitlines()]) == 8 * 20 * len(UP)


def test_a_reader_that_is_gone_stops_nothing() -> None:
    for make in (JsonView, lambda stream: PlainView(stream, verbose=True)):
        reading, writing = os.pipe()
        os.close(reading)
        stream = os.fdopen(writing, "w", buffering=1)
        show(make(stream), UP)
        with pytest.raises(BrokenPipeError):
            stream.close()


def test_which_view_is_opened(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(open_view("json", 0), JsonView)
    assert isinstance(open_view("none", 0), SilentView)
    assert isinstance(open_view("auto", 0), PlainView), "not a terminal here"
    assert isinstance(open_view("plain", 1), PlainView)
    open_view("plain", 0).emit(Note("hello"))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.endswith("hello\n")


def test_tables_are_aligned_and_empty_ones_say_so_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("LAB", "STATE"), [("demo", "up"), ("a", "")])
    assert capsys.readouterr().out == "LAB   STATE\ndemo  up\na\n"
    print_table(("LAB",), [], empty="No labs yet.")
    assert capsys.readouterr() == ("", "No labs yet.\n")


def test_answers_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    title = "a\x1b[2Jb\x9bc\nd \u202e\U000e0041"
    print_table(("LAB", "TITLE"), [("x", title)])
    assert capsys.readouterr().out == "LAB  TITLE\nx    a\\u001b[2Jb\\u009bc d \\u202e\\U000e0041\n"
    print_json({"title": title, "other": "ж é"})
    shown = capsys.readouterr().out
    assert json.loads(shown) == {"title": title, "other": "ж é"}
    assert "ж é" in shown
    assert all(c.isprintable() or c == "\n" for c in shown)


def test_hints_of_checks_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hint = "\x1b]0;x\x07try again"
    failed = CheckResult("a", "web", Verdict.FAILED, 1, "exit code 1", hint, "one\ntwo")
    lab_checks.show(Report((failed,), 0, 1))
    assert "a: \\u001b]0;x\\u0007try again\n  one\n  two\n" in capsys.readouterr().out


def test_plain_lines_say_what_is_waited_for_once_and_what_advances_by_tenths() -> None:
    stream = io.StringIO()
    view = PlainView(stream, verbose=False)
    for number in range(200):
        view.emit(StepProgress("ready.web", -1, f"port 22: {'refused' if number % 2 else 'no answer'}", "web"))
        view.emit(StepProgress("base", number / 200, f"setting up package {number}"))
    lines = stream.getvalue().splitlines()
    assert sum("port 22" in line for line in lines) == 1
    assert 8 <= sum("setting up" in line for line in lines) <= 12
    loud = io.StringIO()
    view = PlainView(loud, verbose=True)
    for number in range(20):
        view.emit(StepProgress("base", number / 200, f"setting up package {number}"))
    assert len(loud.getvalue().splitlines()) == 20
