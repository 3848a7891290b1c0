"""`pocketcloud lab import`: a lab from somebody else, shown before anything of it is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pocketcloud.cli.options import (
    bases_option,
    instance_name,
    kit_option,
    open_kit,
    output_option,
    require_root,
    templates_option,
    yes_option,
)
from pocketcloud.cli.view import ask, fit, print_json
from pocketcloud.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pocketcloud.model.lab import Machine
    from pocketcloud.sharing.importing import Candidate, SharedBase


@click.command("import")
@click.option("--as", "alias", metavar="NAME", help="Keep it under this name.")
@click.option("--dry-run", is_flag=True, help="Show what it is, and keep nothing.")
@click.option("-v", "--verbose", count=True, help="Show the contents of its files, too.")
@kit_option
@bases_option
@templates_option
@output_option
@yes_option
@click.argument("source")
def import_lab(
    kit_name: str | None, output: str, alias: str | None, verbose: int, source: str, *, dry_run: bool, yes: bool
) -> None:
    """Keep the lab of SOURCE in the kit, where `lab up NAME` finds it: a folder, an archive of `lab export`, or a git address.

    Git: https://HOST/PATH, ssh://, file:// or user@host:path, and behind it #REF or #REF:FOLDER. What the lab would run and
    fetch is shown first; nothing of it runs before `base build` and `lab up`.
    """
    from pocketcloud.kit.attached import Places
    from pocketcloud.locks import held
    from pocketcloud.sharing.importing import check_name, read_source
    from pocketcloud.sharing.kept import keep

    kit = None
    try:
        if not dry_run:
            require_root("keep it in the kit")
        kit = open_kit(kit_name, make=not dry_run)
    except NotFound:
        if kit_name or not dry_run:  # to look at a lab takes no kit
            raise
    candidate = read_source(source)
    lab = candidate.bundle.lab
    name = instance_name(alias) if alias else lab.lab
    if output == "table":
        for line in _account(candidate, verbose=bool(verbose)):
            click.echo(fit(line).replace("\n", "\\n"))
    new = False
    if kit is not None and not dry_run:
        check_name(kit, name, lab)
        ask(f"Keep lab {name} in kit {kit.name}? Nothing of it is run by that.", yes=yes)
        with held(Places.from_environment().locks, f"{kit.id}.imports", "pocketcloud lab import", wait=True):
            new = keep(kit, name, candidate.bundle)
    if output == "json":
        print_json(_as_json(candidate) | {"name": name, "kept": not dry_run})
        return
    if kit is None or dry_run:
        click.echo("Nothing was kept.")
        return
    click.echo(f"Lab {name} is in kit {kit.name}{'' if new else ' already'}.")
    builds = [f"pocketcloud base build {base.name}" for base in candidate.bases if base.standing == "new"]
    click.echo("next:  " + "; ".join([*builds, f"pocketcloud lab up {name}"]))


def _account(candidate: Candidate, *, verbose: bool) -> Iterator[str]:
    lab = candidate.bundle.lab
    yield f"Lab {lab.lab}{f': {lab.title}' if lab.title else ''}"
    yield f"from {candidate.source}{f', commit {candidate.commit}' if candidate.commit else ''}"
    for name, machine in lab.machines.items():
        yield f"machine {name} from base {machine.base}"
        yield from (f"  {line}" for line in _done_in(machine, verbose=verbose))
    for network, kind in lab.networks.items():
        where = f" {kind.bridge}" if kind.bridge else ", reaches the networks around this computer" if kind.lan else ""
        yield f"network {network}: {kind.kind}{where}"
    for check in lab.checks:
        yield f"check {check.name} on {check.machine}, as root: {check.run}"
    for base in candidate.bases:
        yield from _base_lines(base)


def _done_in(machine: Machine, *, verbose: bool) -> Iterator[str]:
    """What is done as root in a machine."""
    if machine.packages:
        yield f"installs: {', '.join(machine.packages)}"
    for step in machine.provision:
        if step.run is not None:
            first, *rest = step.run.splitlines() or [""]
            yield f"run: {first}"
            yield from (f"     {line}" for line in rest)
        else:
            content = step.content or ""
            yield f"write: {step.write} (mode {step.mode}, {len(content.encode())} bytes)"
            yield from (f"  | {line}" for line in (content.splitlines() if verbose else ()))
    if machine.ready.command is not None:
        yield f"ready when: {machine.ready.command}"


def _base_lines(base: SharedBase) -> Iterator[str]:
    from pocketcloud.sharing.importing import Standing

    said = {
        Standing.KNOWN: "as it is known here",
        Standing.NEW: "new here; it comes with the lab",
        Standing.OTHER: "this pocketcloud has another definition of that name, and uses its own",
        Standing.NONE: "there is no definition of it: the kit has to have it",
    }
    yield f"base {base.name}: {said[base.standing]}"
    if base.definition is None or base.standing is not Standing.NEW:
        return
    from pocketcloud.sharing.making import addresses

    yield from (f"  fetches: {address}" for address in addresses(base.definition))
    if base.definition.packages:
        yield f"  installs: {', '.join(base.definition.packages)}"
    for line in base.definition.post:
        yield from (f"  runs, while it is built: {each}" for each in line.splitlines())
    if base.definition.patches:
        yield f"  patches: {len(base.definition.patches)}"


def _as_json(candidate: Candidate) -> dict[str, Any]:
    from pocketcloud.documents import plain
    from pocketcloud.sharing.making import addresses

    bases = [
        {"name": base.name, "standing": base.standing, "fetches": addresses(base.definition) if base.definition else ()}
        for base in candidate.bases
    ]
    return {"lab": plain(candidate.bundle.lab), "source": candidate.source, "commit": candidate.commit, "bases": bases}
