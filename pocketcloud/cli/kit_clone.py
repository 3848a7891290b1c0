"""`pocketcloud kit clone`."""

from __future__ import annotations

import csv
import shlex
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pocketcloud.cli.holding import hold_labs, one_at_a_time, unhurried
from pocketcloud.cli.options import now, open_kit, output_option, progress_options, require_root, yes_option
from pocketcloud.cli.view import ask, open_view, print_json, print_table
from pocketcloud.errors import NotFound, PartlyDone, Refused, UsageError

if TYPE_CHECKING:
    from pocketcloud.copies.clone import Copied, Wanted
    from pocketcloud.copies.unfinished import Unfinished
    from pocketcloud.kit.attached import Places
    from pocketcloud.kit.disk import Chosen
    from pocketcloud.model.kit import Kit
    from pocketcloud.model.names import Name


@click.command()
@click.argument("source", metavar="KIT")
@click.argument("targets", metavar="[DISK...]", nargs=-1, type=click.Path(path_type=Path))
@click.option("--name", "names", metavar="NAME", multiple=True, help="A copy's name, once for each DISK; left out: KIT-01 ...")
@click.option("--erase-serial", "serials", metavar="SERIAL", multiple=True, help="Erase what is on the disk of this serial.")
@click.option("--resume", is_flag=True, help="Go on with unfinished copies: those on each DISK, or all that are plugged in.")
@click.option(
    "--labels", type=click.Path(path_type=Path, dir_okay=False), help="Write which disk is what as CSV, to print labels."
)
@click.option("--dry-run", is_flag=True, help="Say what would be done to each DISK, and do nothing.")
@output_option
@progress_options
@yes_option
def clone(
    source: str,
    targets: Sequence[Path],
    names: tuple[str, ...],
    serials: tuple[str, ...],
    resume: bool,
    labels: Path | None,
    dry_run: bool,
    output: str,
    progress: str,
    verbose: int,
    yes: bool,
) -> None:
    """Copy the attached kit KIT to each [DISK...] at once: the copies are kits of their own, and may be plugged in side by side.

    Only what is in use is read, once, and each disk is read again before it becomes a kit. The labs of KIT are down meanwhile. A
    copy that was interrupted is no kit; the same command again goes on with it, or --resume.
    """
    from pocketcloud.copies.clone import clone as clone_kit
    from pocketcloud.copies.clone import entry_of
    from pocketcloud.copies.ledger import add_copies
    from pocketcloud.kit.attached import Places
    from pocketcloud.system import run

    require_root("write to disks")
    places = Places.from_environment()
    kit = open_kit(source)
    if not kit.vg:
        raise Refused(
            f"kit {kit.name} is a folder, which cannot be copied to disks yet", hint="make a kit on a disk: kit init DISK"
        )
    with ExitStack() as held:
        held.enter_context(one_at_a_time(places))
        hold_labs(places, kit, held)
        if resume:
            targets = _unfinished(kit, targets)
        elif not targets:
            raise UsageError("no DISK is named", hint=f"lsblk shows them; as: pocketcloud kit clone {source} /dev/sdb /dev/sdc")
        wanted = _look(places, kit, targets, names)
        if dry_run:
            _show_plan(kit, wanted, output)
            return
        _confirm(kit, wanted, serials, yes=yes)
        unhurried(held, f"copying kit {kit.name}", verbose)
        view = open_view(progress, verbose)
        try:
            done = clone_kit(kit, wanted, places, run, now=now(), stop=threading.Event(), tell=view.emit)
        finally:
            view.close()
        whole = [each for each in done if not each.fault]
        add_copies(kit, (entry_of(each, now()) for each in whole))
    if labels is not None:
        _write_labels(labels, done)
    _show(done, output)
    if len(whole) < len(done):
        again = shlex.join(["pocketcloud", "kit", "clone", source, *(str(each.device) for each in done if each.fault)])
        raise PartlyDone(f"{len(done) - len(whole)} of {len(done)} copies are not whole", hint=f"the others can be used; {again}")


def _look(places: Places, kit: Kit, targets: Sequence[Path], names: Sequence[str]) -> list[Wanted]:
    """Look at all disks, and give each copy a name."""
    from pocketcloud.copies.clone import Wanted
    from pocketcloud.kit.disk import choose
    from pocketcloud.system import run

    chosen = [choose(places, target, run) for target in targets]
    _check_apart(chosen)
    notes = [_own_note(kit, one) for one in chosen]
    fresh = iter(_names(places, kit, names, notes.count(None), {note.name for note in notes if note}))
    return [Wanted(one, note.name if note else next(fresh)) for one, note in zip(chosen, notes, strict=True)]


def _own_note(kit: Kit, chosen: Chosen) -> Unfinished | None:
    from pocketcloud.copies.clone import note_on

    note = note_on(chosen)
    return note if note and note.source == kit.id else None


def _confirm(kit: Kit, wanted: Sequence[Wanted], serials: Sequence[str], *, yes: bool) -> None:
    """Show what is on the disks, and ask once."""
    from pocketcloud.kit.disk import confirm_all
    from pocketcloud.kit.interlocks import contents, described
    from pocketcloud.model.sizes import size_text

    click.echo(f"kit {kit.name} is copied to {len(wanted)} disk{'s' * (len(wanted) > 1)}:", err=True)
    for each in wanted:
        devices, target = each.chosen.devices, each.chosen.target
        click.echo(f"  {each.name} on {described(devices, target)}, {size_text(each.chosen.room)} for the kit", err=True)
        if _own_note(kit, each.chosen):
            click.echo("    now on it: an unfinished copy of this kit, which is gone on with", err=True)
            continue
        for line in contents(devices, target) or ("nothing",):
            click.echo(f"    now on it: {line}", err=True)
    question = f"Copy kit {kit.name} to {'these disks' if len(wanted) > 1 else 'this disk'}?"
    chosen = [each.chosen for each in wanted]
    confirm_all(chosen, serials, _typed if sys.stdin.isatty() else None, lambda: ask(question, yes=yes))


def _show_plan(kit: Kit, wanted: Sequence[Wanted], output: str) -> None:
    from pocketcloud.copies.planned import planned
    from pocketcloud.model.sizes import size_text
    from pocketcloud.system import run

    plan = planned(kit, wanted, run)
    if output == "json":
        print_json({"planned": list(plan)})
        return
    for each in plan:
        click.echo(f"{each.kit} on {each.disk}")
        for line in each.lost or ("an unfinished copy of this kit, which is gone on with" if each.resumed else "nothing",):
            click.echo(f"  now on it: {line}")
        click.echo(f"  up to {size_text(each.bytes)} of kit {kit.name} are written, and read again")
        if each.layout:
            sizes = {"state": each.layout.state, "pool": each.layout.pool, "metadata, twice": each.layout.metadata}
            click.echo(f"  layout: {', '.join(f'{what} {size_text(size)}' for what, size in sizes.items())}")
        if each.fault:
            click.echo(f"  against it: {each.fault}")
    click.echo("Nothing was done.", err=True)


def _check_apart(chosen: Sequence[Chosen]) -> None:
    """Two names may lead to one disk, or to a disk and a partition of it."""
    seen: dict[str, Chosen] = {}
    for one in chosen:
        disk = one.devices.disk_of(one.target).name
        if disk in seen:
            raise UsageError(f"{one.target.path} and {seen[disk].target.path} are on one disk", hint="name each disk once")
        seen[disk] = one


def _unfinished(kit: Kit, targets: Sequence[Path]) -> Sequence[Path]:
    """The disks to go on with."""
    from pocketcloud.copies.clone import unfinished_copies

    there = unfinished_copies(kit)
    if not there:
        raise NotFound(f"no unfinished copy of kit {kit.name} is plugged in", hint="lsblk shows what is plugged in")
    if other := [path for path in targets if path.resolve() not in there]:
        raise NotFound(
            f"there is no unfinished copy of kit {kit.name} on {other[0]}; there is on {', '.join(map(str, there))}",
            hint=f"to make one there: pocketcloud kit clone {kit.name} {other[0]}",
        )
    return targets or there


def _names(places: Places, kit: Kit, given: Sequence[str], count: int, begun: set[Name]) -> Sequence[Name]:
    from pocketcloud.copies.ledger import next_names
    from pocketcloud.kit.attached import attached_kits, checked_name
    from pocketcloud.kit.plugged import plugged_kits
    from pocketcloud.system import run

    taken = (
        {str(one.name) for one in attached_kits(places)} | {one.name for one in plugged_kits(run)} | {str(name) for name in begun}
    )
    if not given:
        return next_names(kit, count, taken)
    if len(given) != count:
        raise UsageError(f"{len(given)} names for {count} disks", hint="--name NAME once for each disk, in their order")
    names = [checked_name(text) for text in given]
    if twice := [name for name in names if name in taken or names.count(name) > 1]:
        raise Refused(
            f"the name {twice[0]} is taken", hint="choose another: kits that are plugged in together need names of their own"
        )
    return names


def _typed(question: str) -> str:
    return str(click.prompt(question, default="", show_default=False, err=True))


def _write_labels(path: Path, done: Sequence[Copied]) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("kit", "id", "serial", "port", "device", "state"))
        for each in done:
            rows.writerow((each.kit, each.id, each.serial, each.port, each.device, each.fault or "verified"))


def _show(done: Sequence[Copied], output: str) -> None:
    if output == "json":
        print_json({"copies": list(done)})
        return
    rows = [
        (each.kit, each.device, each.serial or "-", each.port or "-", f"{each.seconds:.0f} s", each.fault or "verified")
        for each in done
    ]
    print_table(("KIT", "DISK", "SERIAL", "PORT", "TOOK", "STATE"), rows)
