"""Views: the same events as progress bars, plain lines or JSON lines on stderr; answers as tables or JSON on stdout."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from typing import IO, Any, Protocol

import click

from pocketcloud.events import Event, Note, PlanStarted, StepDone, StepFailed, StepProgress, StepStarted
from pocketcloud.model.sizes import duration_text

# Steps shorter than this are not worth a line to anybody who did not ask with -v.
_WORTH_A_LINE = 1.0


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
            print(json.dumps(line), file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is open."""


class PlainView:
    """A line for what takes a while, when it begins and when it ends; for pipes and logs."""

    def __init__(self, stream: IO[str], *, verbose: bool) -> None:
        self._stream = stream
        self._verbose = verbose
        self._started = time.monotonic()
        self._said: dict[str, str] = {}
        self._lock = threading.Lock()

    def emit(self, event: Event) -> None:
        line = self._line(event)
        if line:
            with self._lock:
                print(f"[{time.monotonic() - self._started:6.1f}s] {line}", file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is open."""

    def _line(self, event: Event) -> str:
        match event:
            case PlanStarted():
                return f"{event.subject}: {event.total} steps" if self._verbose else ""
            case StepStarted():
                return f"{event.title} ..." if self._verbose or event.id.split(".")[0] in ("provision", "ready", "clean") else ""
            case StepDone():
                return (
                    f"{event.title}: done in {duration_text(event.seconds)}"
                    if self._verbose or event.seconds > _WORTH_A_LINE
                    else ""
                )
            case StepFailed():
                return f"{event.title}: FAILED after {duration_text(event.seconds)}"
            case StepProgress():
                if self._said.get(event.id) == event.text:
                    return ""
                self._said[event.id] = event.text
                return f"  {event.machine + ': ' if event.machine else ''}{event.text}"
            case Note():
                return f"{'note: ' if event.warn else ''}{event.text}"


class BarView:
    """A bar for each machine and one for the whole, with times; for terminals."""

    def __init__(self, *, verbose: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._verbose = verbose
        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("{task.fields[doing]}", style="dim", markup=False),
            console=self._console,
        )
        self._progress.start()
        self._tasks: dict[str, Any] = {}
        self._whole: Any = None
        self._lock = threading.Lock()

    def emit(self, event: Event) -> None:
        with self._lock:
            self._show(event)

    def close(self) -> None:
        """Leave the bars as they are."""
        self._progress.stop()

    def _row(self, machine: str) -> Any:
        if not machine:
            return self._whole
        if machine not in self._tasks:
            self._tasks[machine] = self._progress.add_task(f"  {machine}", total=None, doing="")
        return self._tasks[machine]

    def _show(self, event: Event) -> None:
        match event:
            case PlanStarted():
                if event.total:
                    self._whole = self._progress.add_task(event.subject, total=event.total, doing="")
            case StepStarted():
                self._progress.update(self._row(event.machine), doing=event.title)
            case StepProgress():
                self._update(event)
            case StepDone():
                self._progress.advance(self._whole)
                if event.id.startswith("ready."):
                    self._progress.update(self._row(event.machine), total=1, completed=1, doing="ready")
                elif self._verbose:
                    self._console.print(f"{event.title}: done in {duration_text(event.seconds)}", markup=False)
            case StepFailed():
                self._progress.update(self._row(event.machine), doing=f"FAILED: {event.title}")
            case Note():
                self._console.print(("note: " if event.warn else "") + event.text, markup=False)

    def _update(self, event: StepProgress) -> None:
        row = self._row(event.machine)
        if row is None:
            row = self._whole = self._progress.add_task(event.id, total=1.0, doing="")
        if event.fraction >= 0 and (event.machine or not self._progress.tasks[0].total or self._progress.tasks[0].total == 1.0):
            self._progress.update(row, total=1.0, completed=event.fraction, doing=event.text)
        else:
            self._progress.update(row, doing=event.text)


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
        return BarView(verbose=bool(verbose))
    return PlainView(sys.stderr, verbose=bool(verbose))


def print_json(value: object) -> None:
    """An answer as JSON on stdout."""
    from pocketcloud.documents import plain

    click.echo(json.dumps(plain(value), indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "") -> None:
    """An answer as a table on stdout; `empty` goes to stderr if there are no rows."""
    cells = [[str(cell) for cell in row] for row in rows]
    if not cells:
        click.echo(empty, err=True)
        return
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    for line in [list(columns), *cells]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def ask(question: str, *, yes: bool) -> None:
    """Ask before something is lost; raises Refused on a no, and UsageError where nobody can be asked."""
    from pocketcloud.errors import Refused, UsageError

    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Nobody is there to ask.", hint="add -y if that is meant")
    if not click.confirm(question, err=True):
        raise Refused("nothing was done")
