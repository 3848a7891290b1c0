"""`pocketcloud kit clone`."""

from __future__ import annotations

import csv
import shlex
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pocketcloud.cli.holding import hold_labs, one_at_a_time, unhurried
from pocketcloud.cli.options import now, open_kit, output_option, progress_options, require_root, yes_option
from pocketcloud.cli.view import ask, open_view, print_json, print_table
from pocketcloud.errors import NotFound, PartlyDone, PocketcloudError, Refused, UsageError

if TYPE_CHECKING:
    from pocketcloud.cli.view import View
    from pocketcloud.copies.clone import Copied, Wanted
    from pocketcloud.copies.folder import WantedFolder
    from pocketcloud.kit.attached import Places
    from pocketcloud.kit.disk import Chosen
    from pocketcloud.model.kit import Kit
    from pocketcloud.model.names import Name
    from pocketcloud.model.profile import Medium


@click.command()
@click.argument("source", metavar="KIT")
@click.argument("targets", metavar="[TARGET...]", nargs=-1, type=click.Path(path_type=Path))
@click.option("--name", "names", metavar="NAME", multiple=True, help="A copy's name, once for each TARGET; left out: KIT-01 ...")
@click.option("--erase-serial", "serials", metavar="SERIAL", multiple=True, help="Erase what is on the disk of this serial.")
@click.option("--resume", is_flag=True, help="Go on with unfinished copies: those on each TARGET, or all that are plugged in.")
@click.option(
    "--labels", type=click.Path(path_type=Path, dir_okay=False), help="Write which disk is what as CSV, to print labels."
)
@click.option("--dry-run", is_flag=True, help="Say what would be done to each TARGET, and do nothing.")
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
    """Copy the attached kit KIT to each [TARGET...], a disk or a folder: the copies are kits of their own, and may be used side
    by side.

    Only what is in use is read, and each copy is read again before it becomes a kit. The labs of KIT are down meanwhile. From
    disk to disks that is done to all at once; a copy that was interrupted is no kit, and the same command again goes on with it,
    or --resume. From or to a folder it is done volume by volume, and begun anew.
    """
    from pocketcloud.kit.attached import Places

    require_root("write to disks")
    places = Places.from_environment()
    kit = open_kit(source)
    if resume and not kit.vg:
        raise UsageError("--resume goes on with copies from disk to disk", hint="the same command again begins others anew")
    with ExitStack() as held:
        held.enter_context(one_at_a_time(places))
        hold_labs(places, kit, held)
        if resume:
            targets = _unfinished(kit, targets)
        elif not targets:
            hint = f"lsblk shows disks; as: pocketcloud kit clone {source} /dev/sdb /srv/copy"
            raise UsageError("no TARGET is named", hint=hint)
        wanted = _look(places, kit, targets, names)
        if dry_run:
            _show_plan(kit, wanted, places, output)
            return
        if labels is not None:
            _check_labels(labels)
        _confirm(kit, wanted, serials, yes=yes)
        unhurried(held, f"copying kit {kit.name}", verbose)
        view = open_view(progress, verbose)
        try:
            done = _copied(kit, wanted, places, view)
        finally:
            view.close()
    _show(done, output)
    if labels is not None:
        _write_labels(labels, done)
    whole = [each for each in done if not each.fault]
    if len(whole) < len(done):
        again = shlex.join(["pocketcloud", "kit", "clone", source, *(str(each.device) for each in done if each.fault)])
        raise PartlyDone(f"{len(done) - len(whole)} of {len(done)} copies are not whole", hint=f"the others can be used; {again}")


def _copied(kit: Kit, wanted: Sequence[Wanted | WantedFolder], places: Places, view: View) -> list[Copied]:
    """From disk to disks block by block, to all at once; the others volume by volume, one after the other."""
    from pocketcloud.copies.clone import Wanted
    from pocketcloud.copies.clone import clone as clone_kit
    from pocketcloud.copies.logical import clone_by_volume
    from pocketcloud.kit.device import check_host
    from pocketcloud.system import run

    stop = threading.Event()
    blocks, others = _parted(kit, wanted)
    if any(isinstance(each, Wanted) for each in others):
        check_host(run)
    done: list[Copied] = []
    if blocks:
        # Each at once: whatever ends the command, those that are whole are known.
        enter = partial(_enter, kit)
        done += clone_kit(kit, blocks, places, run, now=now(), stop=stop, tell=view.emit, made=enter)
    if others:
        try:
            more = clone_by_volume(kit, others, _chunk, places, run, now=now(), stop=stop, tell=view.emit)
        except PocketcloudError as error:
            if not done:
                raise
            # What is done is to be told all the same.
            return [*done, *(_failed(each, error.message) for each in others)]
        for each in more:
            if not each.fault:
                _enter(kit, each)
        done += more
    return done


def _enter(kit: Kit, copied: Copied) -> None:
    """Have a copy on the kit's list."""
    from pocketcloud.copies.clone import entry_of
    from pocketcloud.copies.ledger import add_copies

    try:
        add_copies(kit, [entry_of(copied, now())])
    except (PocketcloudError, OSError) as error:
        click.echo(f"note: {copied.kit} is whole, and not on the list of kit {kit.name}: {error}", err=True)


def _failed(wanted: Wanted | WantedFolder, fault: str) -> Copied:
    from pocketcloud.copies.clone import Copied, Wanted

    path = wanted.chosen.target.path if isinstance(wanted, Wanted) else wanted.path
    return Copied(wanted.name, path, str(path), "", "", fault=fault)


def _parted(kit: Kit, wanted: Sequence[Wanted | WantedFolder]) -> tuple[list[Wanted], list[Wanted | WantedFolder]]:
    """What is copied block by block, and what volume by volume."""
    from pocketcloud.copies.clone import Wanted

    blocks = [each for each in wanted if kit.vg and isinstance(each, Wanted)]
    return blocks, [each for each in wanted if each not in blocks]


def _chunk(medium: Medium) -> int:
    """Of a pool on such a disk, by the profile for this host."""
    from pocketcloud import profiles
    from pocketcloud.host import read_facts

    return profiles.choose(read_facts()).media[medium].chunk


def _look(places: Places, kit: Kit, targets: Sequence[Path], names: Sequence[str]) -> list[Wanted | WantedFolder]:
    """Look at all disks and folders, and give each copy a name."""
    from pocketcloud.copies.clone import Wanted
    from pocketcloud.copies.folder import WantedFolder, checked_folder
    from pocketcloud.kit.disk import choose
    from pocketcloud.system import run

    found = [checked_folder(places, path) if _is_folder(path) else choose(places, path, run) for path in targets]
    _check_apart([one for one in found if not isinstance(one, Path)], [one for one in found if isinstance(one, Path)])
    begun = _apart([None if isinstance(one, Path) else _begun(kit, one) for one in found], places)
    # The same command again names those, too, that it has begun.
    names = [name for name in names if name not in begun]
    fresh = iter(_names(places, kit, names, begun.count(None), {name for name in begun if name}))
    named = [(one, name or next(fresh)) for one, name in zip(found, begun, strict=True)]
    return [WantedFolder(one, name) if isinstance(one, Path) else Wanted(one, name) for one, name in named]


def _apart(begun: Sequence[Name | None], places: Places) -> list[Name | None]:
    """The names of unfinished copies, each once and none that a kit has that is plugged in: those of other disks were given it
    since."""
    from pocketcloud.kit.attached import attached_kits
    from pocketcloud.kit.plugged import plugged_kits
    from pocketcloud.system import run, which

    taken = {str(one.name) for one in attached_kits(places)}
    taken |= {str(one.name) for one in (plugged_kits(run) if which("lvm") else ()) if not one.unfinished}
    found: list[Name | None] = []
    for name in begun:
        found.append(None if name in taken else name)
        taken |= {name} if name else set()
    return found


def _confirm(kit: Kit, wanted: Sequence[Wanted | WantedFolder], serials: Sequence[str], *, yes: bool) -> None:
    """Show what is on the disks, and ask once."""
    from pocketcloud.copies.clone import Wanted
    from pocketcloud.kit.disk import confirm_all

    disks = [each.chosen for each in wanted if isinstance(each, Wanted)]
    what = "folder" if not disks else "disk" if len(disks) == len(wanted) else "target"
    click.echo(f"kit {kit.name} is copied to {len(wanted)} {what}{'s' * (len(wanted) > 1)}:", err=True)
    for each in wanted:
        _show_target(kit, each)
    question = f"Copy kit {kit.name} to {f'these {what}s' if len(wanted) > 1 else f'this {what}'}?"
    if disks:
        confirm_all(disks, serials, _typed if sys.stdin.isatty() else None, lambda: ask(question, yes=yes))
    else:
        ask(question, yes=yes)


def _show_plan(kit: Kit, wanted: Sequence[Wanted | WantedFolder], places: Places, output: str) -> None:
    from pocketcloud.copies.logical import planned_by_volume
    from pocketcloud.copies.planned import planned
    from pocketcloud.model.sizes import size_text
    from pocketcloud.system import run

    blocks, others = _parted(kit, wanted)
    plan = [*(planned(kit, blocks, run) if blocks else ())]
    plan += planned_by_volume(kit, others, _chunk, places, run, now=now()) if others else ()
    if output == "json":
        print_json({"planned": plan})
        return
    for each in plan:
        click.echo(f"{each.kit} on {each.disk}")
        for line in each.lost or (
            "an unfinished copy of this kit, which is gone on with, or begun anew if the kit has changed"
            if each.resumed
            else "nothing",
        ):
            click.echo(f"  now on it: {line}")
        click.echo(f"  up to {size_text(each.bytes)} of kit {kit.name} are written, and read again")
        if each.layout:
            sizes = {"state": each.layout.state, "pool": each.layout.pool, "metadata, twice": each.layout.metadata}
            click.echo(f"  layout: {', '.join(f'{what} {size_text(size)}' for what, size in sizes.items())}")
        if each.fault:
            click.echo(f"  against it: {each.fault}")
    click.echo("Nothing was done.", err=True)


def _is_folder(path: Path) -> bool:
    return path.is_dir() or not (path.exists() or path.absolute().is_relative_to("/dev"))


def _begun(kit: Kit, chosen: Chosen) -> Name | None:
    """The name of the unfinished copy of this kit on a disk; None if there is none."""
    from pocketcloud.copies.clone import note_on
    from pocketcloud.kit.attached import checked_name
    from pocketcloud.kit.plugged import plugged_kits
    from pocketcloud.system import run

    if kit.vg:
        note = note_on(chosen)
        return note.name if note and note.source == kit.id else None
    if chosen.unfinished is None:
        return None
    return next((checked_name(one.name) for one in plugged_kits(run, [chosen.unfinished]) if one.unfinished == kit.id), None)


def _show_target(kit: Kit, wanted: Wanted | WantedFolder) -> None:
    from pocketcloud.copies.folder import WantedFolder
    from pocketcloud.kit.interlocks import contents, described
    from pocketcloud.model.sizes import size_text

    if isinstance(wanted, WantedFolder):
        click.echo(f"  {wanted.name} in the folder {wanted.path}", err=True)
        return
    devices, target = wanted.chosen.devices, wanted.chosen.target
    click.echo(f"  {wanted.name} on {described(devices, target)}, {size_text(wanted.chosen.room)} for the kit", err=True)
    if _begun(kit, wanted.chosen):
        then = "gone on with, or begun anew if the kit has changed" if kit.vg else "begun anew"
        click.echo(f"    now on it: an unfinished copy of this kit, which is {then}", err=True)
        return
    for line in contents(devices, target) or ("nothing",):
        click.echo(f"    now on it: {line}", err=True)


def _check_apart(chosen: Sequence[Chosen], folders: Sequence[Path]) -> None:
    """Two names may lead to one disk, or to a disk and a partition of it; one folder may lie in another."""
    seen: dict[str, Chosen] = {}
    for one in chosen:
        disk = one.devices.disk_of(one.target).name
        if disk in seen:
            raise UsageError(f"{one.target.path} and {seen[disk].target.path} are on one disk", hint="name each disk once")
        seen[disk] = one
    for number, folder in enumerate(folders):
        if other := next((each for each in folders[:number] if folder.is_relative_to(each) or each.is_relative_to(folder)), None):
            raise UsageError(f"{folder} and {other} are one folder, or one lies in the other", hint="name each folder once")


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
    from pocketcloud.system import run, which

    plugged = plugged_kits(run) if which("lvm") else ()
    taken = {str(one.name) for one in attached_kits(places)} | {one.name for one in plugged} | {str(name) for name in begun}
    if not given:
        return next_names(kit, count, taken)
    if len(given) != count:
        raise UsageError(f"{len(given)} names for {count} copies", hint="--name NAME once for each, in their order")
    names = [checked_name(text) for text in given]
    if twice := [name for name in names if name in taken or names.count(name) > 1]:
        raise Refused(
            f"the name {twice[0]} is taken", hint="choose another: kits that are plugged in together need names of their own"
        )
    return names


def _typed(question: str) -> str:
    return str(click.prompt(question, default="", show_default=False, err=True))


def _check_labels(path: Path) -> None:
    """Not after hours."""
    try:
        path.open("a").close()
    except OSError as error:
        raise UsageError(
            f"--labels: {path} cannot be written: {error.strerror}", hint="name a file in a folder that is there"
        ) from None


def _write_labels(path: Path, done: Sequence[Copied]) -> None:
    try:
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("kit", "id", "serial", "port", "device", "state"))
            for each in done:
                rows.writerow((each.kit, each.id, each.serial, each.port, each.device, each.fault or "verified"))
    except OSError as error:
        click.echo(f"note: the labels are not in {path}: {error.strerror}", err=True)


def _show(done: Sequence[Copied], output: str) -> None:
    if output == "json":
        print_json({"copies": list(done)})
        return
    rows = [
        (each.kit, each.device, each.serial or "-", each.port or "-", f"{each.seconds:.0f} s", each.fault or "verified")
        for each in done
    ]
    print_table(("KIT", "TARGET", "SERIAL", "PORT", "TOOK", "STATE"), rows)
