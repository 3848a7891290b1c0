"""The answers of commands that work on many instances: `lab up --count`, `lab reset --all`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pocketcloud.cli.options import LabOptions, bench, copies_of, instance_of
from pocketcloud.cli.view import allowed, ask, fit, print_json, print_table
from pocketcloud.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pocketcloud.lab.commands import Confirm
    from pocketcloud.lab.many import Ended
    from pocketcloud.lab.workbench import Workbench
    from pocketcloud.model.names import Name
    from pocketcloud.plan.steps import Plan


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
    allow = allowed("made anew or removed", given=options.take_protected)
    subject = f"{count} cop{'y' if count == 1 else 'ies'} of {instance_of(lab)}"
    ended = up_copies(here, labs, subject, reconfigure=reconfigure, prune=prune, confirm=confirm, allow=allow)
    _show(here, ended, options.output, "copies", f"copies of {instance_of(lab)} are up")
    raise_failures(ended, "copies are not up", here.command)


def reset_all(options: LabOptions, *, undo: bool) -> None:
    """Bring every lab of the kit that has a clean state back to it; raises PartlyDone where one could not be."""
    from pocketcloud.cli.lab import print_plans
    from pocketcloud.lab.many import Chosen, choose_all, raise_failures, without_protected
    from pocketcloud.lab.many import reset_all as bring_back

    def confirm(chosen: Chosen) -> None:
        names = ", ".join(each.plan.instance for each in chosen.plans)
        down = f" Of these {', '.join(chosen.starting)} {'is' if len(chosen.starting) == 1 else 'are'} down, and started."
        many = "1 lab" if len(chosen.plans) == 1 else f"{len(chosen.plans)} labs"
        question = f"Bring {many} back to clean: {names}?{down if chosen.starting else ''}"
        ask(f"{question} {left_text([each.plan for each in chosen.plans])}", yes=options.yes)

    with bench(options) as here:
        if options.dry_run:
            chosen = choose_all(here, undo=undo)
            if not options.take_protected:
                chosen = without_protected(here, chosen, undo=undo)
            print_plans(chosen.plans, here, options.output)
            for text in (*chosen.notes, *(f"{each.instance}: {each.error}" for each in chosen.left)):
                click.echo(f"note: {fit(text)}", err=True)
            return
        ended = bring_back(here, confirm=confirm, undo=undo, allow=allowed("reset", given=options.take_protected))
    if not ended:
        raise NotFound(f"kit {here.kit.name} has no lab that could be reset", hint="pocketcloud lab up raises one")
    _show(here, ended, options.output, "labs", "labs are back to clean")
    raise_failures(ended, "labs are not back to clean", "pocketcloud lab reset --all")


def left_text(plans: Sequence[Plan]) -> str:
    """What becomes of what is on the disks of all these labs now, for a question."""
    from pocketcloud.plan.states import UNDO_DAYS

    lost = [f"{plan.instance}/{name}" for plan in plans for name in plan.loses]
    kept = f"kept for {UNDO_DAYS} days (pocketcloud lab undo LAB)"
    if not lost:
        return f"What is on their disks now is {kept}."
    if not any(plan.keeps for plan in plans):
        return "What is on their disks now is lost."
    return f"What is on the disks of {', '.join(lost)} now is lost, and that of the others {kept}."


def _show(here: Workbench, ended: Sequence[Ended], output: str, key: str, done: str) -> None:
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
            rows.append((each.instance, "-", "unknown", "-", "-", "-"))
    if output == "json":
        print_json({key: answers})
        return
    print_table(("LAB", "MACHINE", "STATE", "ADDRESS", "BASE", "READY AFTER"), rows)
    good = [each for each in ended if each.error is None]
    longest = max((each.seconds for each in ended), default=0.0)
    click.echo(f"{len(good)} of {len(ended)} {done} after {duration_text(longest)}.")
