"""`pocketcloud kit ...`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pocketcloud.cli import kit_care, kit_clone, kit_space, kit_station, kit_stream, kit_sync, kit_verify
from pocketcloud.cli.holding import hold_labs, one_at_a_time
from pocketcloud.cli.options import (
    now,
    open_bench,
    output_option,
    progress_options,
    require_root,
    yes_option,
)
from pocketcloud.cli.view import ask, print_json, print_table
from pocketcloud.errors import HostLacks, UsageError

if TYPE_CHECKING:
    from pocketcloud.kit.attached import Places
    from pocketcloud.kit.detach import Leaving
    from pocketcloud.kit.device import InitPlan
    from pocketcloud.kit.plugged import Plugged
    from pocketcloud.model.kit import Kit
    from pocketcloud.model.profile import Profile

_PLUGGED, _UNFINISHED = "not attached", "unfinished copy"


@click.group("kit")
def command() -> None:
    """Make, attach and detach kits, the stores that carry everything."""


@command.command()
@click.argument("device", required=False, type=click.Path(path_type=Path))
@click.option("--file", type=click.Path(path_type=Path, dir_okay=False), help="A new sparse file, to try kits on LVM out.")
@click.option("--size", metavar="SIZE", help="The size of the file, as 60GiB.")
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path, file_okay=False), help="A folder; by itself: /var/lib/pocketcloud."
)
@click.option("--name", metavar="NAME", help="The kit's name; left out: from the file's or folder's, or the kind of disk.")
@click.option("--erase-serial", metavar="SERIAL", help="Erase what is on DEVICE: its disk's serial, in place of typing it.")
@click.option("--profile", "profile_name", metavar="NAME", envvar="POCKETCLOUD_PROFILE", help="Shape the pool by this profile.")
@click.option("--dry-run", is_flag=True, help="Print the plan, with the exact commands, and do nothing.")
@yes_option
def init(
    device: Path | None,
    file: Path | None,
    size: str | None,
    folder: Path | None,
    name: str | None,
    erase_serial: str | None,
    profile_name: str | None,
    dry_run: bool,
    yes: bool,
) -> None:
    """Make a kit and attach it: on DEVICE (a disk or a partition), in a file, or in a folder.

    On a disk or in a file it is a pool of LVM; all that was on DEVICE is lost. In a folder, which is what is made if nothing
    is named, it consists of qcow2 files.
    """
    from pocketcloud.kit.attached import Places
    from pocketcloud.kit.directory import init_directory

    if sum(given is not None for given in (device, file, folder)) > 1:
        raise UsageError("DEVICE, --file and --dir are three places; a kit has one", hint="pocketcloud kit init --help")
    if (size is None) != (file is None):
        raise UsageError("--file and --size go together", hint="as: pocketcloud kit init --file kit.img --size 60GiB")
    require_root("make a kit that QEMU can read")
    places = Places.from_environment()
    if file is not None:
        kit = _init_file(places, file, size or "", name, profile_name, dry_run=dry_run)
    elif device is not None:
        kit = _init_device(places, device, name, profile_name, erase_serial, dry_run=dry_run, yes=yes)
    elif dry_run:
        click.echo(f"a folder of qcow2 files: {folder or places.default}")
        return
    else:
        kit = init_directory(places, folder or places.default, name, now=now())
    if kit is None:
        return
    click.echo(f"Kit {kit.name} is made in {kit.path} and attached.")
    click.echo("next:  pocketcloud base build debian-12", err=True)


def _init_file(places: Places, file: Path, size: str, name: str | None, profile_name: str | None, *, dry_run: bool) -> Kit | None:
    from pocketcloud.kit.device import check_host, init_file, plan_file
    from pocketcloud.model.profile import Medium
    from pocketcloud.model.sizes import Size
    from pocketcloud.system import run

    try:
        wanted = Size.parse(size)
    except ValueError as error:
        raise UsageError(f"--size: {error}", hint="as: --size 60GiB") from None
    check_host(run)
    with one_at_a_time(places):
        plan = plan_file(places, file, wanted, name, _profile(profile_name).media[Medium.LOOP].chunk, run)
        _print_init(plan, dry_run=dry_run)
        return None if dry_run else init_file(plan, file, places, run, now=now())


def _init_device(
    places: Places,
    device: Path,
    name: str | None,
    profile_name: str | None,
    erase_serial: str | None,
    *,
    dry_run: bool,
    yes: bool,
) -> Kit | None:
    from pocketcloud.cli.measuring import measuring, times_line
    from pocketcloud.host import kits as host
    from pocketcloud.host.disk_speed import SECONDS
    from pocketcloud.kit.device import check_host
    from pocketcloud.kit.disk import choose, confirm, init_disk, plan_disk
    from pocketcloud.system import run
    from pocketcloud.verdict import verdict

    check_host(run)
    with one_at_a_time(places):
        chosen = choose(places, device, run)
        with measuring("auto", 0, SECONDS) as measure:
            measured = measure(chosen.target)
        profile = _profile(profile_name)
        known = [remark.text for remark in verdict(chosen.target, measured, profile.disk_speed)]
        known += [times_line(measured)] if measured and measured.counts else []
        chunk = profile.media[host.medium(chosen.target.name)].chunk
        plan = plan_disk(chosen, name, chunk, places, run, known)
        _print_init(plan, dry_run=dry_run)
        if dry_run:
            return None
        question = f"Make the kit {plan.name} on {chosen.target.path}?"
        confirm(chosen, erase_serial, _typed if sys.stdin.isatty() else None, lambda: ask(question, yes=yes))
        return init_disk(chosen, plan, places, run, now=now())


def _typed(question: str) -> str:
    return str(click.prompt(question, default="", show_default=False, err=True))


def _print_init(plan: InitPlan, *, dry_run: bool) -> None:
    from pocketcloud.kit.device import shown

    for line in shown(plan):
        click.echo(line, err=not dry_run)
    for line in plan.commands if dry_run else ():
        click.echo(f"    {line}")


def _profile(name: str | None) -> Profile:
    """The profile of that name, else the one for this host."""
    from pocketcloud import profiles
    from pocketcloud.host import read_facts

    return profiles.find(name) if name else profiles.choose(read_facts())


@command.command("list")
@output_option
def list_kits(output: str) -> None:
    """List the attached kits and, for root, those on plugged disks that are not."""
    from pocketcloud.kit.attached import Places, attached_kits, unreadable_kits

    places = Places.from_environment()
    kits = attached_kits(places)
    for name, why in unreadable_kits(places).items():
        click.echo(f"warning: {name}: {why.message} (pocketcloud kit detach {name})", err=True)
    plugged = _not_attached(kits)
    if output == "json":
        there = [
            {"name": k.name, "id": k.id, "path": k.path, "medium": k.medium, "storage": k.manifest.storage, "devices": k.devices}
            for k in kits
        ]
        away = [
            {"name": p.name, "id": p.id, "path": None, "medium": p.medium, "storage": "lvm", "devices": [p.device]}
            | ({"unfinished": True} if p.unfinished else {})
            for p in plugged
        ]
        print_json(there + away)
        return
    rows = [(str(k.name), k.medium, k.manifest.storage, str(k.path), k.id) for k in kits]
    rows += [(p.name, p.medium, "lvm", f"{_UNFINISHED if p.unfinished else _PLUGGED}: {p.device}", p.id) for p in plugged]
    print_table(("KIT", "MEDIUM", "STORAGE", "PATH", "ID"), rows, empty="No kit is attached. pocketcloud kit init makes one.")


def _not_attached(kits: Sequence[Kit]) -> list[Plugged]:
    from pocketcloud.kit.plugged import plugged_kits
    from pocketcloud.system import run, which

    if os.geteuid() or which("lvm") is None:
        return []
    in_use = {device for kit in kits for device in kit.devices}
    return [kit for kit in plugged_kits(run) if kit.device not in in_use]


@command.command()
@click.argument("what", metavar="[KIT]", required=False)
@click.option("--as", "rename", metavar="NEWNAME", help="Give it this name and an identity of its own first: for a byte copy.")
@progress_options
def attach(what: str | None, rename: str | None, progress: str, verbose: int) -> None:
    """Attach a kit, until the next boot or `kit detach`.

    [KIT] is its disk, the path of its folder or file (with a `/` in it), or its name; left out, it is the only one that is
    plugged in. Its labs are defined for this computer.
    """
    from pocketcloud.kit.attach import attach as attach_kit
    from pocketcloud.kit.attached import Places

    require_root("attach a kit")
    places = Places.from_environment()
    with one_at_a_time(places):
        done = attach_kit(places, what, rename=rename, now=now())
    for note in done.notes:
        click.echo(f"note: {note}", err=True)
    where = f"from {', '.join(map(str, done.kit.devices))} on {done.kit.path}" if done.kit.devices else f"from {done.kit.path}"
    click.echo(f"Kit {done.kit.name} is attached {'already, ' * done.already}{where}.")
    _define_labs(done.kit, progress, verbose)


def _define_labs(kit: Kit, progress: str, verbose: int) -> None:
    """Define the kit's labs here, and say what is different for them."""
    from pocketcloud.cli.view import open_view
    from pocketcloud.lab.moving import move_in
    from pocketcloud.records import instances

    if not instances(kit):
        return
    view = open_view(progress, verbose)
    try:
        arrivals = move_in(open_bench(kit, view, profile_name=None))
    except HostLacks as error:
        click.echo(f"note: {error.message.splitlines()[0]}; its labs are defined by `lab up`", err=True)
        return
    finally:
        view.close()
    for arrival in arrivals:
        state = f"cannot be defined yet: {arrival.trouble}" if arrival.trouble else "; ".join(arrival.changes) or "as it was"
        click.echo(f"  lab {arrival.instance}: {state}")


@command.command()
@click.argument("name", required=False)
@click.option("--force", is_flag=True, help="Switch running machines off instead of asking them to power off.")
@click.option("--within", type=float, default=90, show_default=True, metavar="SECONDS", help="How long machines may take.")
@click.option("--trim", is_flag=True, help="Tell the disk (TRIM) what removed labs and bases held; up to half a minute.")
@yes_option
def detach(name: str | None, force: bool, within: float, trim: bool, yes: bool) -> None:
    """Detach the kit NAME, or the only one, so that its disk can be pulled or its folder carried away.

    Running machines are stopped, after a question. Domains and networks leave libvirt; attaching defines them again.
    """
    from pocketcloud.cache.process import Servers
    from pocketcloud.kit.attached import Places
    from pocketcloud.kit.detach import detach as detach_kit
    from pocketcloud.kit.detach import leaving

    require_root("detach a kit")
    places = Places.from_environment()
    with one_at_a_time(places):
        kit = leaving(places, name)
        with ExitStack() as labs:
            if kit.kit is not None:
                hold_labs(places, kit.kit, labs)
            left = _take_out_of_libvirt(kit, yes=yes, within=0 if force else within)
            if kit.kit is not None:
                Servers(kit.kit, places.run / "cache").end_all()
            notes = detach_kit(places, kit, now=now(), trim=trim)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    if not kit.on_lvm and kit.path == places.default.resolve():
        left += " It is the default kit and stays in reach."
    pull = " Its disk can be pulled." if kit.on_lvm and not kit.dead and _has_disk(kit) else ""
    click.echo(f"Kit {kit.name} is detached{left}.{pull}")


def _has_disk(kit: Leaving) -> bool:
    from pocketcloud.model.profile import Medium

    return kit.kit is None or kit.kit.medium is not Medium.LOOP


def _take_out_of_libvirt(kit: Leaving, *, yes: bool, within: float) -> str:
    """Stop and undefine the kit's machines, remove its networks; what became of them, for the last line."""
    from pocketcloud.hypervisor import open_hypervisor
    from pocketcloud.kit.detach import running, stop, withdraw, withdraw_pulled
    from pocketcloud.records import instances

    try:
        hypervisor = open_hypervisor()
        if kit.kit is None:
            domains, networks = withdraw_pulled(kit.name, hypervisor)
        else:
            on = running(kit.kit.id, hypervisor)
            if on and (yes or within <= 0 or sys.stdin.isatty()):
                names = ", ".join(domain.name for domain in on)
                ask(
                    f"{names} run{'s' * (len(on) == 1)}. Stop {'it' if len(on) == 1 else 'them'} and detach?",
                    yes=yes or within <= 0,
                )
                stop(on, hypervisor, within, lambda line: click.echo(line, err=True))
            domains, networks = withdraw(kit.kit, hypervisor)
    except HostLacks as error:
        if not kit.on_lvm:
            raise
        # Machines that run all the same keep its volumes open, and the detach ends there.
        if kit.kit is None or instances(kit.kit):
            click.echo(f"note: {error.message.splitlines()[0]}; if it knows labs of this kit, it keeps knowing them", err=True)
        return ""
    return f" ({domains} domains and {networks} networks left libvirt)"


for _other in (
    kit_clone.clone,
    kit_station.station,
    kit_sync.sync,
    kit_stream.export,
    kit_stream.import_kit,
    kit_verify.verify,
    kit_space.status,
    kit_space.trim,
    kit_care.repair,
    kit_care.erase,
):
    command.add_command(_other)
