"""Views: the same events as progress bars, plain lines or JSON lines on stderr; answers as tables or JSON on stdout."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import IO, Any, Protocol

import click

from pocketcloud.events import Event, Note, PlanStarted, StepDone, StepFailed, StepProgress, StepStarted
from pocketcloud.model.sizes import duration_text

# Steps shorter than this are not worth a line to anybody who did not ask with -v.
_WORTH_A_LINE = 1.0
# A step that waits says what for once in so many seconds, one that advances at every tenth of its way.
_PATIENCE = 20.0
_A_TENTH = 0.099


class View(Protocol):
    """Shows events as they come, from any thread; `close` ends it."""

    def emit(self, event: Event) -> None: ...

    def close(self) -> None: ...


class JsonView:
    """One JSON object a line: `{"event": "StepDone", "time": seconds, ...}`."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._started = time.monotonic()
        self._lock = threading.Lock()

    def emit(self, event: Event) -> None:
        from dataclasses import asdict

        line = {"event": type(event).__name__, "time": round(time.monotonic() - self._started, 3)} | asdict(event)
        with self._lock:
            _tell(self._stream, json.dumps(line))

    def close(self) -> None:
        """Nothing is open."""


def fit(text: str) -> str:
    """What a lab file, a guest or a tool said, for a terminal: lines stay lines, and what a terminal would obey, or show as
    something else, stands there as its number."""
    return "".join(c if c.isprintable() or c in "\n\t" else _number(c) for c in text)


def _number(char: str) -> str:
    return f"\\U{ord(char):08x}" if ord(char) > 0xFFFF else f"\\u{ord(char):04x}"


class PlainView:
    """A line for what takes a while, when it begins and when it ends; for pipes and logs."""

    def __init__(self, stream: IO[str], *, verbose: bool) -> None:
        self._stream = stream
        self._verbose = verbose
        self._started = time.monotonic()
        self._said: dict[str, tuple[str, float, float]] = {}
        self._lock = threading.Lock()

    def emit(self, event: Event) -> None:
        line = self._line(event)
        if line:
            with self._lock:
                _tell(self._stream, f"[{time.monotonic() - self._started:6.1f}s] {fit(line)}")

    def close(self) -> None:
        """Nothing is open."""

    def _line(self, event: Event) -> str:
        match event:
            case PlanStarted():
                return f"{event.subject}: {event.total} steps" if self._verbose else ""
            case StepStarted():
                return f"{event.title} ..." if self._verbose or _is_long(event) else ""
            case StepDone():
                worth = self._verbose or _is_long(event) or event.seconds > _WORTH_A_LINE
                return f"{event.title}: done in {duration_text(event.seconds)}" if worth else ""
            case StepFailed():
                return f"{event.title}: FAILED after {duration_text(event.seconds)}"
            case StepProgress():
                return self._progress_line(event)
            case Note():
                return f"{'note: ' if event.warn else ''}{event.text}"

    def _progress_line(self, event: StepProgress) -> str:
        """What is waited for, now and then; what advances, at every tenth of the way."""
        now = time.monotonic()
        text, fraction, said = self._said.get(event.id, ("", -1.0, -_PATIENCE))
        if text == event.text:
            return ""
        advanced = event.fraction >= 0 and (fraction < 0 or event.fraction - fraction >= _A_TENTH)
        if not (self._verbose or advanced or now - said >= _PATIENCE):
            return ""
        self._said[event.id] = (event.text, event.fraction, now)
        return f"  {event.machine + ': ' if event.machine else ''}{_one_line(event.text)}"


def _tell(stream: IO[str], line: str) -> None:
    """Write a line. Who read us may be gone (`2>&1 | head`); that is no reason to leave a lab half made."""
    with contextlib.suppress(BrokenPipeError):
        print(line, file=stream, flush=True)


def _is_long(event: StepStarted | StepDone) -> bool:
    """Whether it is one of the steps that people wait for."""
    return event.id.split(".")[0] in ("provision", "ready", "clean", "state")


def _one_line(text: str) -> str:
    """What a guest or a lab file said, for one line of a terminal that is soon another."""
    return "".join(c if c.isprintable() else " " for c in text)


class BarView:
    """A bar for each machine and one for the whole, with times; for terminals. Without a plan, a bar for each step."""

    def __init__(self, stream: IO[str], *, verbose: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._verbose = verbose
        self._console = Console(file=stream, highlight=False)
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("{task.fields[doing]}", style="dim", markup=False),
            console=self._console,
        )
        self._progress.start()
        self._rows: dict[str, Any] = {}
        self._failed: set[str] = set()
        self._whole: Any = None
        self._lock = threading.Lock()

    def emit(self, event: Event) -> None:
        with self._lock:
            self._show(event)

    def close(self) -> None:
        """Leave the bars as they are, those that wait for nothing more full."""
        with self._lock:
            if self._whole is None or self._progress.tasks[self._whole].finished:
                for key in set(self._rows) - self._failed:
                    self._progress.update(self._rows[key], total=1, completed=1)
            self._progress.stop()

    def _row(self, event: StepStarted | StepProgress | StepDone | StepFailed) -> Any:
        """The machine's row; of a step without one the plan's, and without a plan one of its own."""
        if not event.machine and self._whole is not None:
            return self._whole
        key = event.machine or event.id
        if key not in self._rows:
            self._rows[key] = self._progress.add_task(f"  {key}" if event.machine else key, total=None, doing="")
        return self._rows[key]

    def _show(self, event: Event) -> None:
        match event:
            case PlanStarted():
                if event.total:
                    self._whole = self._progress.add_task(event.subject, total=event.total, doing="")
            case StepStarted():
                self._progress.update(self._row(event), doing=_one_line(event.title))
            case StepProgress():
                row = self._row(event)
                self._progress.update(row, doing=_one_line(event.text))
                if event.fraction >= 0 and row != self._whole:
                    self._progress.update(row, total=1.0, completed=event.fraction)
            case StepDone():
                self._done(event)
            case StepFailed():
                self._failed.add(event.machine or event.id)
                self._progress.update(self._row(event), doing=f"FAILED: {_one_line(event.title)}")
            case Note():
                self._console.print(("note: " if event.warn else "") + fit(event.text), markup=False)

    def _done(self, event: StepDone) -> None:
        row = self._row(event)
        if event.id.startswith("ready."):
            self._progress.update(row, total=1, completed=1, doing="ready")
        elif event.machine:
            self._progress.update(row, doing=f"{_one_line(event.title)}: done")
        else:
            self._progress.update(row, doing="")
        if self._whole is not None:
            self._progress.advance(self._whole)
        if self._verbose:
            self._console.print(f"{fit(event.title)}: done in {duration_text(event.seconds)}", markup=False)


class SilentView:
    """Shows nothing."""

    def emit(self, _event: Event) -> None:
        """Nothing is shown."""

    def close(self) -> None:
        """Nothing is open."""


def open_view(progress: str, verbose: int) -> View:
    """The view for `--progress`; `auto` is bars on a terminal and plain lines elsewhere."""
    if progress == "json":
        return JsonView(sys.stderr)
    if progress == "none":
        return SilentView()
    if progress == "auto" and sys.stderr.isatty():
        return BarView(sys.stderr, verbose=bool(verbose))
    return PlainView(sys.stderr, verbose=bool(verbose))


def print_json(value: object) -> None:
    """An answer as JSON on stdout."""
    from pocketcloud.documents import plain

    text = json.dumps(plain(value), indent=2, ensure_ascii=False)
    # JSON itself asks for less to be escaped than terminals obey.
    click.echo("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "") -> None:
    """An answer as a table on stdout; `empty` goes to stderr if there are no rows."""
    cells = [[fit(str(cell)).replace("\n", " ") for cell in row] for row in rows]
    if not cells:
        click.echo(empty, err=True)
        return
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    for line in [list(columns), *cells]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def allowed(done: str, *, given: bool) -> Callable[[Sequence[str]], bool]:
    """Who says whether protected machines may be `done` (reset, removed), too: `given` is yes; else people are asked, about them
    alone; where nobody can be asked it is no."""

    def allow(names: Sequence[str]) -> bool:
        if given or not sys.stdin.isatty():
            return given
        return click.confirm(f"Protected: {', '.join(names)}. To be {done} as well?", err=True)

    return allow


def ask(question: str, *, yes: bool) -> None:
    """Ask before something is lost; raises Refused on a no, and UsageError where nobody can be asked."""
    from pocketcloud.errors import Refused, UsageError

    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Nobody is there to ask.", hint="add -y if that is meant")
    if not click.confirm(question, err=True):
        raise Refused("nothing was done")
