"""`pocketcloud base ...`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from pocketcloud.cli import base_import, base_life
from pocketcloud.cli.base_life import holding
from pocketcloud.cli.base_list import show, size_of
from pocketcloud.cli.installers import installer_options
from pocketcloud.cli.options import (
    arch_option,
    bases_option,
    instance_name,
    is_offline,
    kit_option,
    offline_option,
    open_kit,
    output_option,
    progress_options,
    require_root,
    templates_option,
    wanted_arch,
    with_imported,
    yes_option,
)
from pocketcloud.cli.view import ask, open_view, print_json, print_table
from pocketcloud.errors import NotFound, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pocketcloud.bases.needs import Ground
    from pocketcloud.bases.progress import OnProgress
    from pocketcloud.bases.recipe import Supply
    from pocketcloud.cli.view import View
    from pocketcloud.model.kit import Kit


@click.group("base")
def command() -> None:
    """Build and list bases, the images that machines are cloned from."""


command.add_command(base_import.import_base)
for _life in (base_life.refresh, base_life.rollback, base_life.prune):
    command.add_command(_life)


@command.command("list")
@click.option("--available", is_flag=True, help="List what could be built, not what is.")
@bases_option
@click.option("--offline", is_flag=True, help="Do not ask mirrors whether there is anything newer.")
@kit_option
@output_option
def list_bases(*, available: bool, offline: bool, kit_name: str | None, output: str) -> None:
    """List the kit's bases: size, age, updates, and which labs use them."""
    if available:
        with_imported(kit_name)
        _list_available(output)
        return
    show(open_kit(kit_name), output, offline=offline)


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
            "imported" if definitions.came_with(d.base) else "yours" if definitions.is_own(d.base) else "",
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
@kit_option
def render(name: str, arch: str | None, kit_name: str | None) -> None:
    """Print what the installer of the base NAME would be told: the answer file, with secrets masked."""
    from pocketcloud.bases import answers, definitions
    from pocketcloud.model.base import Arch, InstallDefinition

    with_imported(kit_name)
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
    from pocketcloud.bases import builder, definitions, records
    from pocketcloud.model.base import Arch
    from pocketcloud.model.sizes import duration_text
    from pocketcloud.storage import open_storage

    require_root("keep a base where QEMU can read it")
    with_imported(kit_name)
    definition = definitions.find(name)
    wanted = wanted_arch(arch)
    if offline and mirror:
        raise UsageError("--offline uses the kit's cache, and --mirror something else", hint="leave one of them out")
    # A mirror that is named may be in this room, where no route is needed.
    apart = is_offline(False if mirror and offline is None else offline)
    kit = open_kit(kit_name, make=True)
    storage = open_storage(kit)
    supply = _supply(kit) if apart else None
    started = time.monotonic()
    view = open_view(progress, verbose)
    try:
        chain = definitions.lineage(definition)
        with holding(kit, [each.base for each in chain], f"pocketcloud base build {name}", view, media=True, cache=apart):
            # What a layer stands on is built first where it is missing; it is not renewed for that.
            for each in chain[:-1]:
                if records.find(kit, each.base, Arch(wanted)) is None:
                    builder.build(
                        kit,
                        storage,
                        each,
                        Arch(wanted),
                        mirror=mirror,
                        supply=supply,
                        here=here(),
                        on_progress=_progress(view, each.base),
                    )
            built = builder.build(
                kit,
                storage,
                definition,
                Arch(wanted),
                mirror=mirror,
                force=force,
                supply=supply,
                here=here(),
                on_progress=_progress(view, name),
            )
    finally:
        view.close()
    if not built.fresh:
        click.echo(
            f"Base {name} ({wanted}) is up to date: nothing changed since {built.base.built} (digest {built.base.digest[:12]})."
        )
        return
    volume = next(v for v in storage.volumes() if v.name == built.base.volume)
    took, size = duration_text(time.monotonic() - started), size_of(volume, built.base)
    click.echo(f"Base {name} ({wanted}) is built in {took}: {size}, digest {built.base.digest[:12]}.")


def _supply(kit: Kit) -> Supply:
    from pocketcloud.cache.supply import KitSupply

    return KitSupply(kit)


def _progress(view: View, name: str) -> OnProgress:
    from pocketcloud.events import StepProgress

    return lambda text, fraction: view.emit(StepProgress(f"base {name}", fraction, text))


@command.command()
@click.argument("name")
@arch_option
@kit_option
@yes_option
def remove(name: str, arch: str | None, kit_name: str | None, *, yes: bool) -> None:
    """Remove the base NAME from the kit. Refused while a lab uses it."""
    from pocketcloud.bases import records, stages
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
    if not any(records.users(storage, volume) for volume in base.volumes):
        ask(f"Remove base {name} ({wanted}) from kit {kit.name}? It can be built again.", yes=yes)
    with holding(kit, [base.name], f"pocketcloud base remove {name}"):
        records.remove(kit, storage, base.name, wanted)
        stages.forget(kit, base.name, wanted)
    click.echo(f"Base {name} ({wanted}) is removed from kit {kit.name}.")
