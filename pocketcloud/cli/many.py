"""The answers of commands that work on many instances: `lab up --count`, `lab reset --all`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pocketcloud.cli.options import LabOptions, copies_of, instance_of
from pocketcloud.cli.view import print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pocketcloud.lab.commands import Confirm
    from pocketcloud.lab.many import Ended
    from pocketcloud.lab.workbench import Workbench
    from pocketcloud.model.names import Name


def up(
    here: Workbench,
    lab: str | None,
    alias: Name | None,
    count: int,
    options: LabOptions,
    confirm: Confirm,
    *,
    reconfigure: bool,
    prune: bool,
) -> None:
    """Bring `count` copies up and show them; raises PartlyDone after that if one of them is not up."""
    from pocketcloud.lab.many import raise_failures, up_copies

    labs = copies_of(lab, here.kit, alias, count)
    subject = f"{count} cop{'y' if count == 1 else 'ies'} of {instance_of(lab)}"
    ended = up_copies(here, labs, subject, reconfigure=reconfigure, prune=prune, confirm=confirm)
    _show(here, ended, options.output, f"copies of {instance_of(lab)} are up")
    raise_failures(ended, "copies are not up", here.command)


def _show(here: Workbench, ended: Sequence[Ended], output: str, done: str) -> None:
    """A line for each machine of each instance."""
    from pocketcloud.errors import PocketcloudError
    from pocketcloud.lab.status import lab_status
    from pocketcloud.model.sizes import duration_text

    sight, rows, answers = here.look(), [], []
    for each in ended:
        try:
            status = lab_status(here, each.instance, sight=sight)
        except PocketcloudError:  # nothing of it is there, or it cannot be read: `error` says why
            status = None
        told = each.error.message.splitlines()[0] if each.error else ""
        answers.append({"instance": each.instance, "status": status, "seconds": each.seconds, "ready": each.ready, "error": told})
        for m in status.machines if status else ():
            ready = duration_text(each.ready[m.machine]) if m.machine in each.ready else "-"
            rows.append((each.instance, m.machine, m.state, m.address or "-", m.base, ready))
        if status is None:
            rows.append((each.instance, "-", "not there", "-", "-", "-"))
    if output == "json":
        print_json({"copies": answers})
        return
    print_table(("LAB", "MACHINE", "STATE", "ADDRESS", "BASE", "READY AFTER"), rows)
    good = [each for each in ended if each.error is None]
    longest = max((each.seconds for each in ended), default=0.0)
    click.echo(f"{len(good)} of {len(ended)} {done} after {duration_text(longest)}.")
