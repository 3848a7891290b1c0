"""`pocketcloud kit ...`."""

from __future__ import annotations

import shlex
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pocketcloud.cli.options import kit_option, now, open_kit, output_option, require_root, yes_option
from pocketcloud.cli.view import print_json, print_table
from pocketcloud.errors import UsageError

if TYPE_CHECKING:
    from pocketcloud.kit.attached import Places
    from pocketcloud.kit.device import InitPlan
    from pocketcloud.model.kit import Kit
    from pocketcloud.model.profile import Medium


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
    with _one_at_a_time(places):
        plan = plan_file(places, file, wanted, name, _chunk(Medium.LOOP, profile_name), run)
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
    raise UsageError(f"{device}: kits on disks are not made yet", hint="--file or --dir")


def _print_init(plan: InitPlan, *, dry_run: bool) -> None:
    from pocketcloud.kit.device import shown

    for line in shown(plan):
        click.echo(line, err=not dry_run)
    for line in plan.commands if dry_run else ():
        click.echo(f"    {line}")


def _chunk(medium: Medium, profile_name: str | None) -> int:
    """The chunk of a pool on that medium, as the profile decides."""
    from pocketcloud import profiles
    from pocketcloud.host import read_facts

    profile = profiles.find(profile_name) if profile_name else profiles.choose(read_facts())
    return profile.media[medium].chunk


def _one_at_a_time(places: Places) -> AbstractContextManager[None]:
    """Hold what makes, attaches and detaches kits on this host."""
    from pocketcloud.locks import held

    command = shlex.join(["pocketcloud", *sys.argv[1:]])
    return held(places.locks, "kits", command, wait=True, on_wait=lambda who: click.echo(f"waiting for {who} to end", err=True))


@command.command("list")
@output_option
def list_kits(output: str) -> None:
    """List the attached kits."""
    from pocketcloud.kit.attached import Places, attached_kits

    kits = attached_kits(Places.from_environment())
    if output == "json":
        print_json(
            [{"name": k.name, "id": k.id, "path": k.path, "medium": k.medium, "storage": k.manifest.storage} for k in kits]
        )
        return
    rows = [(k.name, k.medium, k.manifest.storage, k.path, k.id) for k in kits]
    print_table(("KIT", "MEDIUM", "STORAGE", "PATH", "ID"), rows, empty="No kit is attached. pocketcloud kit init makes one.")


@command.command()
@kit_option
@output_option
def status(kit_name: str | None, output: str) -> None:
    """Show a kit: its space, its bases, its labs."""
    from pocketcloud.bases import records
    from pocketcloud.model.sizes import size_text
    from pocketcloud.records import instances
    from pocketcloud.storage import open_storage

    kit = open_kit(kit_name)
    storage = open_storage(kit)
    usage, volumes, bases, labs = storage.usage(), storage.volumes(), records.built(kit), instances(kit)
    own = sum(volume.used or 0 for volume in volumes)
    if output == "json":
        print_json({"manifest": kit.manifest, "path": kit.path, "usage": usage, "volumes": volumes, "bases": bases, "labs": labs})
        return
    rows = [
        ("name", kit.name),
        ("id", kit.id),
        ("path", f"{kit.path} ({kit.medium}, {kit.manifest.storage})"),
        ("made", f"{kit.manifest.created} with pocketcloud {kit.manifest.made_with}"),
        (
            "space",
            f"{size_text(usage.free)} free of {size_text(usage.size)}; the kit's {len(volumes)} volumes hold {size_text(own)}",
        ),
        ("bases", ", ".join(f"{b.name} ({b.arch})" for b in bases) or "none"),
        ("labs", ", ".join(labs) or "none"),
    ]
    print_table(("KIT", ""), rows)


@command.command()
@click.argument("path", type=click.Path(path_type=Path))
def attach(path: Path) -> None:
    """Attach the kit in the folder PATH, until the next boot or `kit detach`."""
    from pocketcloud.kit.attached import Places
    from pocketcloud.kit.attached import register as attach_kit
    from pocketcloud.kit.directory import check_reachable

    require_root("attach a kit")
    check_reachable(path.absolute())
    kit = attach_kit(Places.from_environment(), path)
    click.echo(f"Kit {kit.name} is attached from {kit.path}.")


@command.command()
@click.argument("name")
def detach(name: str) -> None:
    """Detach the kit NAME: its domains and networks leave libvirt, its folder can be moved or carried away.

    Refused while machines of it run.
    """
    from pocketcloud.hypervisor import open_hypervisor
    from pocketcloud.kit.attached import Places, find_kit, forget
    from pocketcloud.kit.detach import withdraw

    require_root("detach a kit")
    places = Places.from_environment()
    kit = find_kit(places, name)
    domains, networks = withdraw(kit, open_hypervisor())
    gone = forget(places, kit.name, kit.path)
    left = "" if gone else " It is the default kit and stays in reach."
    click.echo(f"Kit {kit.name} is detached ({domains} domains and {networks} networks left libvirt).{left}")
