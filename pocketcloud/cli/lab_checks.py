"""The checks of `pocketcloud lab status --checks`: asked, and shown as a table or in the JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pocketcloud.cli.options import here_lab, is_path
from pocketcloud.cli.view import fit, print_table

if TYPE_CHECKING:
    from pocketcloud.lab.checking import Report
    from pocketcloud.lab.status import LabStatus
    from pocketcloud.lab.workbench import Workbench
    from pocketcloud.model.names import Name

_LAST_LINES = 3


def ask(here: Workbench, instance: Name, lab: str | None) -> Report:
    """Ask the checks of the lab's file where LAB is one, so that they can be written beside a
    running lab, else those of its record."""
    from pocketcloud.documents import load_lab
    from pocketcloud.lab.checking import run_checks

    if lab is None or is_path(lab):
        return run_checks(here, instance, load_lab(here_lab() if lab is None else Path(lab)).checks)
    return run_checks(here, instance)


def with_status(found: LabStatus, report: Report) -> dict[str, Any]:
    """The answer as JSON: the lab's status, and beside its keys `checks`, `points` and `of`."""
    from pocketcloud.documents import plain

    return {**plain(found), **plain(report)}


def show(report: Report) -> None:
    """A line for each check, what helps with those that did not pass, and the sum."""
    from pocketcloud.lab.checking import Verdict

    if not report.checks:
        click.echo("The lab has no checks (`checks:` in its file).")
        return
    rows = []
    for result in report.checks:
        counted = result.points if result.verdict is Verdict.PASSED else 0
        rows.append((result.check, result.machine, result.verdict, f"{counted} of {result.points}", result.reason or "-"))
    click.echo("")
    print_table(("CHECK", "MACHINE", "RESULT", "POINTS", "WHY"), rows)
    for result in report.checks:
        if result.verdict is Verdict.FAILED and (result.hint or result.output):
            said = [f"  {line}" for line in result.output.splitlines()[-_LAST_LINES:]]
            click.echo(fit("\n".join([f"{result.check}: {result.hint or 'it said'}", *said])))
    click.echo(f"{report.points} of {report.of} points.")
