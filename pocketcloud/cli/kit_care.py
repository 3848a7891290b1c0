"""`pocketcloud kit repair` and `pocketcloud kit erase`: curing a kit, and giving its disk back."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pocketcloud.cli.options import now, require_root, yes_option
from pocketcloud.errors import PartlyDone, Refused, UsageError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from pocketcloud.kit.attached import Places
    from pocketcloud.kit.diagnosis import Finding
    from pocketcloud.kit.evidence import Target
    from pocketcloud.model.kit import Kit

_WHAT = "[KIT]"


@click.command()
@click.argument("what", metavar=_WHAT, required=False)
@click.option("--dry-run", is_flag=True, help="Only look and say what is wrong; nothing is changed.")
@click.option("--save", type=click.Path(path_type=Path, file_okay=False), help="A folder for copies of the kit's metadata.")
@click.option("--lose-volumes", is_flag=True, help="With -y: also do what gives up volumes that cannot be saved.")
@yes_option
def repair(what: str | None, save: Path | None, *, dry_run: bool, lose_volumes: bool, yes: bool) -> None:
    """Look for what is wrong with a kit on a disk or in a file, and cure it step by step.

    [KIT] is its disk, its file (with a `/` in it) or its name; left out, it is the only one that is plugged in. Its metadata
    is saved in two places before the first change to it, and what was there before is kept. Each step is asked for; -y answers
    yes where nothing is lost by it.
    """
    from pocketcloud.kit.attached import Places
    from pocketcloud.kit.repair import diagnose
    from pocketcloud.kit.repair import repair as repair_kit
    from pocketcloud.kit.target import opened
    from pocketcloud.system import run

    require_root("look into a kit's disk")
    places = Places.from_environment()
    with _one_at_a_time(places), opened(what, places, run) as target:
        found = diagnose(target, places, run)
        _show(target, found)
        if dry_run or not any(finding.curable for finding in found):
            _conclude(found)
            return
        if not yes and not sys.stdin.isatty():
            raise UsageError("the steps above have to be confirmed, and nobody is there to ask", hint="add -y if they are meant")

        def agreed(finding: Finding) -> bool:
            return _agreed(finding, yes=yes, lose_volumes=lose_volumes)

        left = repair_kit(target, places, run, ask=agreed, say=lambda line: click.echo(f"  {line}"), now=now(), save=save)
        _conclude(left)


def _show(target: Target, found: tuple[Finding, ...]) -> None:
    click.echo(f"kit {target.name}, volume group {target.vg}, on {target.device or 'a disk that is not plugged in'}")
    for finding in found:
        _show_one(finding)


def _show_one(finding: Finding) -> None:
    click.echo(f"- {finding.what}")
    click.echo(f"    seen:  {finding.evidence}")
    click.echo(f"    cure:  {finding.cure}")
    if finding.loses:
        click.echo(f"    lost:  {', '.join(finding.loses)}")


def _agreed(finding: Finding, *, yes: bool, lose_volumes: bool) -> bool:
    """Whether one step is wanted. It is shown again: after the step before it, it may have become another."""
    _show_one(finding)
    if yes:
        if finding.loses and not lose_volumes:
            click.echo("    not done: it gives up volumes; --lose-volumes if that is meant", err=True)
            return False
        return True
    return click.confirm("  Do that?", default=not finding.loses, err=True)


def _conclude(left: tuple[Finding, ...]) -> None:
    if not left:
        click.echo("Nothing is wrong.")
        return
    names = ", ".join(str(finding.trouble) for finding in left)
    raise PartlyDone(f"this is left: {names}", hint=next((finding.cure for finding in left), ""))


@click.command()
@click.argument("what", metavar=_WHAT)
@click.option("--erase-serial", metavar="SERIAL", help="The serial of the kit's disk, in place of typing it.")
@click.option("--discard", is_flag=True, help="Tell the disk that all of it is free (TRIM).")
@click.option("--dry-run", is_flag=True, help="Print what would be lost, with the exact commands, and do nothing.")
@yes_option
@click.pass_context
def erase(context: click.Context, what: str, erase_serial: str | None, *, discard: bool, dry_run: bool, yes: bool) -> None:
    """Erase a kit and give its disk back: everything on the kit is lost.

    [KIT] is its disk, its file (with a `/` in it) or its name. Refused while machines of it run. -y only answers whether a
    kit's file is to be deleted too; the disk's serial has to be typed, or given.
    """
    from pocketcloud.kit import erase as erasing
    from pocketcloud.kit.attached import Places
    from pocketcloud.kit.target import opened
    from pocketcloud.system import run

    require_root("erase a kit")
    places = Places.from_environment()
    if not dry_run:
        what = _detach_first(context, places, what)
    with _one_at_a_time(places), opened(what, places, run) as target:
        erasure = erasing.plan_erasure(target, places, run)
        for line in erasing.shown(erasure):
            click.echo(line, err=not dry_run)
        if dry_run:
            return
        erasing.confirm(erasure, erase_serial, _typed if sys.stdin.isatty() else None)
        notes = erasing.erase(erasure, run, discard=discard)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"Kit {target.name} is erased; {erasure.file or erasure.whole.path} is free.")
    if erasure.file and (yes or sys.stdin.isatty()):
        _delete(erasure.file, yes=yes)


def _delete(file: Path, *, yes: bool) -> None:
    if yes or click.confirm(f"Delete the file {file}, too?", err=True):
        file.unlink(missing_ok=True)
    else:
        click.echo(f"{file} is kept: empty, without a kit.", err=True)


def _detach_first(context: click.Context, places: Places, what: str) -> str:
    """Detach the kit if it is attached; what it is known by then, its device or its file. Raises Refused while machines of it
    run."""
    from pocketcloud.cli.kit import detach
    from pocketcloud.errors import HostLacks
    from pocketcloud.host import kits as host
    from pocketcloud.hypervisor import open_hypervisor
    from pocketcloud.kit.detach import running

    kit = _attached(places, what)
    if kit is None:
        return what
    file = host.loop_file(host.kernel_name(kit.devices[0]))
    try:
        on = running(kit.id, open_hypervisor())
    except HostLacks:
        on = ()
    if on:
        raise Refused(
            f"kit {kit.name} is in use: {', '.join(domain.name for domain in on)} run",
            hint=f"pocketcloud kit detach {kit.name}, then again",
        )
    context.invoke(detach, name=str(kit.name), force=False, within=90.0, yes=False)
    return str(file or kit.devices[0])


def _attached(places: Places, what: str) -> Kit | None:
    """The attached kit on LVM that is meant."""
    from pocketcloud.host import kits as host
    from pocketcloud.kit.attached import attached_kits

    path = Path(what)
    kernel = host.kernel_name(path) if path.exists() else ""
    for kit in attached_kits(places):
        names = {host.kernel_name(device) for device in kit.devices}
        own = {*names, *(host.disk_of(name) for name in names)}
        file = next((found for name in names if (found := host.loop_file(name))), None)
        if kit.vg and (what == kit.name or kernel in own or (file is not None and path.exists() and file.samefile(path))):
            return kit
    return None


def _typed(question: str) -> str:
    return str(click.prompt(question, default="", show_default=False, err=True))


def _one_at_a_time(places: Places) -> AbstractContextManager[None]:
    """Hold what makes, attaches and detaches kits on this host."""
    from pocketcloud.locks import held

    def say(holder: str) -> None:
        click.echo(f"waiting for {holder} to end", err=True)

    return held(places.locks, "kits", shlex.join(["pocketcloud", *sys.argv[1:]]), wait=True, on_wait=say)
