"""`pocketcloud base ...`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from pocketcloud.cli import base_import
from pocketcloud.cli.installers import installer_options
from pocketcloud.cli.options import (
    arch_option,
    instance_name,
    is_offline,
    kit_option,
    offline_option,
    open_kit,
    output_option,
    own_files_option,
    progress_options,
    require_root,
    wanted_arch,
    yes_option,
)
from pocketcloud.cli.view import ask, open_view, print_json, print_table
from pocketcloud.errors import NotFound, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pocketcloud.bases.needs import Ground
    from pocketcloud.model.inventory import Volume

templates_option = own_files_option(
    "--templates", "POCKETCLOUD_TEMPLATES", "A folder of your own templates; each takes the place of ours of its name."
)
bases_option = own_files_option(
    "--bases", "POCKETCLOUD_BASES", "A folder of your own definitions; each takes the place of ours of its name."
)


@click.group("base")
def command() -> None:
    """Build and list bases, the images that machines are cloned from."""


command.add_command(base_import.import_base)


@command.command("list")
@click.option("--available", is_flag=True, help="List what could be built, not what is.")
@bases_option
@kit_option
@output_option
def list_bases(*, available: bool, kit_name: str | None, output: str) -> None:
    """List the kit's bases, and which labs use them."""
    from pocketcloud.bases import records
    from pocketcloud.storage import open_storage

    if available:
        _list_available(output)
        return
    kit = open_kit(kit_name)
    volumes = {volume.name: volume for volume in open_storage(kit).volumes()}
    users = {
        b.volume: sorted({v.name.split(".")[1] for v in volumes.values() if v.parent == b.volume}) for b in records.built(kit)
    }
    if output == "json":
        print_json([{"base": b, "volume": volumes.get(b.volume), "labs": users[b.volume]} for b in records.built(kit)])
        return
    rows = []
    for base in records.built(kit):
        volume = volumes.get(base.volume)
        size = _size(volume) if volume else "VOLUME MISSING"
        rows.append((base.name, base.arch, size, base.built, base.digest[:12], ", ".join(users[base.volume]) or "-"))
    print_table(
        ("BASE", "ARCH", "SIZE", "BUILT", "DIGEST", "USED BY"),
        rows,
        empty="No bases yet. pocketcloud base build debian-12 builds one.",
    )


def _list_available(output: str) -> None:
    from pocketcloud.bases import definitions
    from pocketcloud.documents import plain

    found = definitions.available()
    if output == "json":
        print_json([{**plain(d), "file": str(definitions.origin(d.base))} for d in found])
        return
    rows = [
        (
            d.base,
            d.title,
            ", ".join(d.architectures),
            d.builder,
            d.requires.cpu or "-",
            "yours" if definitions.is_own(d.base) else "",
        )
        for d in found
    ]
    print_table(("BASE", "TITLE", "ARCHITECTURES", "BUILDER", "NEEDS", ""), rows)


@command.command()
def schema() -> None:
    """Print the JSON Schema of a base's definition, for editors."""
    from pocketcloud.bases import definitions

    print_json(definitions.schema())


@command.command()
@click.argument("name")
@arch_option
@templates_option
@bases_option
def render(name: str, arch: str | None) -> None:
    """Print what the installer of the base NAME would be told: the answer file, with secrets masked."""
    from pocketcloud.bases import answers, definitions
    from pocketcloud.model.base import Arch, InstallDefinition

    definition = definitions.find(name)
    wanted = Arch(wanted_arch(arch))
    if not isinstance(definition, InstallDefinition):
        raise UsageError(
            f"base {name} has no answer file: it is made by {definition.builder}, not by an installer",
            hint="pocketcloud base list --available shows how each is made",
        )
    definitions.refuse_other(definition, wanted)
    click.echo(answers.preview(definition, wanted), nl=False)


@command.command()
@click.argument("name")
@arch_option
@click.option("--mirror", metavar="URL", help="Where packages come from; left out: this host's mirror, else the definition's.")
@click.option("--force", is_flag=True, help="Build even if nothing changed.")
@installer_options
@templates_option
@bases_option
@offline_option
@kit_option
@progress_options
def build(
    name: str,
    arch: str | None,
    mirror: str | None,
    offline: bool | None,
    kit_name: str | None,
    progress: str,
    verbose: int,
    *,
    force: bool,
    here: Callable[[], Ground],
) -> None:
    """Build the base NAME from its definition; unchanged, nothing is done."""
    from pocketcloud.bases import builder, definitions
    from pocketcloud.cache.supply import KitSupply
    from pocketcloud.events import StepProgress
    from pocketcloud.kit.attached import Places
    from pocketcloud.locks import held
    from pocketcloud.model.base import Arch
    from pocketcloud.model.sizes import duration_text
    from pocketcloud.storage import open_storage

    require_root("keep a base where QEMU can read it")
    definition = definitions.find(name)
    wanted = wanted_arch(arch)
    if offline and mirror:
        raise UsageError("--offline uses the kit's cache, and --mirror something else", hint="leave one of them out")
    # A mirror that is named may be in this room, where no route is needed.
    apart = is_offline(False if mirror and offline is None else offline)
    kit = open_kit(kit_name, make=True)
    storage = open_storage(kit)
    started = time.monotonic()
    view = open_view(progress, verbose)
    try:
        with held(
            Places.from_environment().locks, f"{kit.id}.base.{definition.base}", f"pocketcloud base build {name}", wait=True
        ):
            built = builder.build(
                kit,
                storage,
                definition,
                Arch(wanted),
                mirror=mirror,
                force=force,
                supply=KitSupply(kit) if apart else None,
                here=here(),
                on_progress=lambda text, fraction: view.emit(StepProgress(f"base {name}", fraction, text)),
            )
    finally:
        view.close()
    if not built.fresh:
        click.echo(
            f"Base {name} ({wanted}) is up to date: nothing changed since {built.base.built} (digest {built.base.digest[:12]})."
        )
        return
    volume = next(v for v in storage.volumes() if v.name == built.base.volume)
    took, size = duration_text(time.monotonic() - started), _size(volume)
    click.echo(f"Base {name} ({wanted}) is built in {took}: {size}, digest {built.base.digest[:12]}.")


def _size(volume: Volume) -> str:
    """What it occupies, where the store knows that without counting, and how large it is."""
    from pocketcloud.model.sizes import size_text

    whole = size_text(volume.size)
    return whole if volume.used is None else f"{size_text(volume.used)} of {whole}"


@command.command()
@click.argument("name")
@arch_option
@kit_option
@yes_option
def remove(name: str, arch: str | None, kit_name: str | None, *, yes: bool) -> None:
    """Remove the base NAME from the kit. Refused while a lab uses it."""
    from pocketcloud.bases import records
    from pocketcloud.model.base import Arch
    from pocketcloud.storage import open_storage

    require_root("change the kit")
    kit = open_kit(kit_name)
    wanted = Arch(wanted_arch(arch))
    base = records.find(kit, instance_name(name), wanted)
    if base is None:
        raise NotFound(f"kit {kit.name} has no base {name} for {wanted}", hint="pocketcloud base list shows what there is")
    storage = open_storage(kit)
    # Removing one that is in use is refused; that is told without asking first.
    if not records.users(storage, base.volume):
        ask(f"Remove base {name} ({wanted}) from kit {kit.name}? It can be built again.", yes=yes)
    records.remove(kit, storage, instance_name(name), wanted)
    click.echo(f"Base {name} ({wanted}) is removed from kit {kit.name}.")
