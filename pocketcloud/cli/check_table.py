"""What `pocketcloud check` prints for people: a group at a time, what was found, and what to do about it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from pocketcloud.cli.measuring import times_line

if TYPE_CHECKING:
    from pocketcloud.check import Check

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red", "unknown": "cyan"}
# What does not apply here is no news: a dash, and pale.
_SHOWN = {"not-applicable": "-"}
_WIDTH = 7
_INDENT = " " * (_WIDTH + 3)
_LABEL = " " * len("why: ")
_NARROWEST = 60


def print_checks(checks: Sequence[Check]) -> None:
    """All checks, by group. On a terminal sentences are folded to its width; commands never are, they are there to be copied."""
    width = max(shutil.get_terminal_size().columns, _NARROWEST) if sys.stdout.isatty() else 0
    group = ""
    for check in checks:
        if check.group != group:
            group = check.group
            click.echo(click.style(group, bold=True))
        _print(check, width)


def _print(check: Check, width: int) -> None:
    pale = True if check.state == "not-applicable" else None
    mark = click.style(f"{_SHOWN.get(check.state, check.state):<{_WIDTH}}", fg=_COLOURS.get(check.state), dim=pale)
    said = _folded(f"{check.id}: {check.evidence}", width)
    click.echo(f"  {mark} {click.style(said, dim=pale)}")
    if check.measured and (spread := times_line(check.measured)):
        click.echo(f"{_INDENT}{spread}")
    if check.state not in ("warn", "fail", "unknown"):
        return
    click.echo(f"{_INDENT}why: {_folded(check.why, width)}")
    label = "do:  "
    for line in check.remedy:
        click.echo(f"{_INDENT}{label}{_folded(line, width) if line[:1].isupper() else line}")
        label = " " * len(label)
    if check.fix:
        click.echo(f"{_INDENT}or:  pocketcloud check --fix")


def _folded(text: str, width: int) -> str:
    """A text that begins behind the indent, folded to the terminal's width; as it is where there is none."""
    return click.wrap_text(text, width - 1, _INDENT + _LABEL, _INDENT + _LABEL).lstrip() if width else text
