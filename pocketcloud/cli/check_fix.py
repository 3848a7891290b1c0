"""`pocketcloud check --fix`: what it shows and asks while things are mended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pocketcloud.cli.options import require_root
from pocketcloud.cli.view import ask, print_json

if TYPE_CHECKING:
    from pocketcloud.check import Check
    from pocketcloud.check.mending import Mended


def fix(checks: Sequence[Check], again: Callable[[], Sequence[Check]], *, dry_run: bool, yes: bool, output: str) -> int:
    """Mend what can be, each after a question; the exit code. With JSON what is asked goes to stderr, and the list comes last."""
    from pocketcloud.check.fixes import carry_out
    from pocketcloud.check.mending import Mended, Outcome, all_helped, fixable, mend
    from pocketcloud.system import run

    table = output == "table"

    def shown(check: Check) -> None:
        click.echo(f"{check.id}: {check.evidence}", err=not table)
        for action in check.fix:
            click.echo(f"    {action.line}", err=not table)

    def do(check: Check) -> None:
        shown(check)
        ask("Do that?", yes=yes)
        carry_out(check.fix, run, Path("/"))

    wanted = fixable(checks)
    if dry_run:
        results = [Mended(check, Outcome.PLANNED) for check in wanted]
        if table:
            for check in wanted:
                shown(check)
    else:
        if wanted:
            require_root("change this computer's settings")
        results = []
        for mended in mend(checks, do, again):
            results.append(mended)
            if table:
                _say(mended)
    if not table:
        print_json([mended.told for mended in results])
    elif not results:
        click.echo("There is nothing that --fix could do.")
    return 0 if dry_run or all_helped(results) else 8


def _say(mended: Mended) -> None:
    from pocketcloud.check.mending import Outcome

    if mended.outcome is Outcome.REFUSED:
        click.echo(f"    not done: {mended.error}", err=True)
    elif mended.outcome is Outcome.FAILED:
        click.echo(f"    failed: {mended.error}", err=True)
    elif mended.after is None:
        click.echo("    done; its check is not there any more")
    else:
        click.echo(f"    now {mended.after.state}: {mended.after.evidence}")
