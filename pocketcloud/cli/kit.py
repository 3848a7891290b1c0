"""`pocketcloud kit ...`."""

from __future__ import annotations

from pathlib import Path

import click

from pocketcloud.cli.options import kit_option, now, open_kit, output_option, require_root
from pocketcloud.cli.view import print_json, print_table


@click.group("kit")
def command() -> None:
    """Make, attach and detach kits, the stores that carry everything."""


@command.command()
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path, file_okay=False), help="The folder; left out: /var/lib/pocketcloud."
)
@click.option("--name", metavar="NAME", help="The kit's name; left out: from the folder's.")
def init(folder: Path | None, name: str | None) -> None:
    """Make a kit in a folder, of qcow2 files, and attach it."""
    from pocketcloud.kit.attached import Places
    from pocketcloud.kit.directory import init_directory

    require_root("make a kit that QEMU can read")
    places = Places.from_environment()
    kit = init_directory(places, folder or places.default, name, now=now())
    click.echo(f"Kit {kit.name} is made in {kit.path} and attached.")
    click.echo("next:  pocketcloud base build debian-12", err=True)


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
    own = sum(volume.used for volume in volumes)
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
    from pocketcloud.kit.attached import attach as attach_kit
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
    gone = forget(places, kit)
    left = "" if gone else " It is the default kit and stays in reach."
    click.echo(f"Kit {kit.name} is detached ({domains} domains and {networks} networks left libvirt).{left}")
