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
    wanted_arch,
    yes_option,
)
from pocketcloud.cli.view import ask, fit, print_json
from pocketcloud.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pocketcloud.model.kit import Kit
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
    keeps = kit is not None and not dry_run
    if output == "table" or (keeps and not yes):
        for line in _account(candidate, verbose=bool(verbose)):
            click.echo(fit(line).replace("\n", "\\n"), err=output == "json")
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
    click.echo("next:  " + "; ".join([*_lacking(kit, candidate), f"pocketcloud lab up {name}"]))


def _lacking(kit: Kit, candidate: Candidate) -> Iterator[str]:
    """The commands that bring what the kit has no base for yet."""
    from pocketcloud.bases import records
    from pocketcloud.model.base import Arch
    from pocketcloud.model.lab import NATIVE

    lab = candidate.bundle.lab
    arch = lab.arch_on(Arch(wanted_arch(None)))
    asked = "" if lab.arch == NATIVE else f" --arch {arch}"
    machines = {machine.base for machine in lab.machines.values()}
    for base in candidate.bases:
        if base.name in machines and records.find(kit, base.name, arch) is None:
            yield f"pocketcloud base {f'build {base.name}{asked}' if base.definition else f'import {base.name} IMAGE'}"


def _account(candidate: Candidate, *, verbose: bool) -> Iterator[str]:
    from pocketcloud.sharing.importing import Standing
    from pocketcloud.sharing.making import own_templates

    lab = candidate.bundle.lab
    yield f"Lab {lab.lab}{f': {lab.title}' if lab.title else ''}"
    yield f"from {candidate.source}{f', commit {candidate.commit}' if candidate.commit else ''}"
    for name, machine in lab.machines.items():
        yield f"machine {name} from base {machine.base}: {', '.join(_made_of(machine))}"
        yield from (f"  {line}" for line in _done_in(machine, verbose=verbose))
    for network, kind in lab.networks.items():
        where = f" {kind.bridge}" if kind.bridge else ", reaches the networks around this computer" if kind.lan else ""
        subnet = f", always {kind.subnet}" if kind.subnet else ""
        yield f"network {network}: {kind.kind}{where}{subnet}"
    for check in lab.checks:
        yield f"check {check.name} on {check.machine}, as root: {check.run}"
    for base in candidate.bases:
        yield from _base_lines(base, verbose=verbose)
    # Definitions that are known here are used with the templates that are here.
    new = any(base.standing is Standing.NEW for base in candidate.bases)
    for template, content in own_templates(candidate.bundle).items() if new else ():
        yield f"template {template} comes with the lab, for installers of new bases: {len(content)} bytes"
        yield from _text(content.decode(errors="replace"), verbose=verbose)


def _text(text: str, *, verbose: bool) -> Iterator[str]:
    yield from (f"    | {line}" for line in (text.splitlines() if verbose else ()))


def _made_of(machine: Machine) -> Iterator[str]:
    from pocketcloud.model.sizes import size_text

    yield f"{size_text(machine.memory)} of memory"
    yield f"{machine.vcpus} processor{'s' * (machine.vcpus != 1)}"
    if machine.disk:
        yield f"disk of {size_text(machine.disk)}"
    yield from (f"disk {disk.name} of {size_text(disk.size)}" for disk in machine.disks)
    if machine.runs_machines:
        yield "runs machines of its own"


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
            yield from _text(content, verbose=verbose)
    if machine.ready.command is not None:
        yield f"ready when: {machine.ready.command}"


def _base_lines(base: SharedBase, *, verbose: bool) -> Iterator[str]:
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
    from pocketcloud.model.base import BootstrapDefinition, InstallDefinition, LayerDefinition
    from pocketcloud.sharing.making import addresses, host_files

    if isinstance(base.definition, LayerDefinition):
        yield f"  stands on: {base.definition.from_}"
    if isinstance(base.definition, InstallDefinition):
        yield f"  the installer's answers: template {base.definition.template}"
    yield from (f"  fetches: {address}" for address in addresses(base.definition))
    yield from (f"  reads, on this computer: {path}" for path in host_files(base.definition))
    if isinstance(base.definition, BootstrapDefinition) and base.definition.wheels:
        yield f"  takes from this computer's Python: {', '.join(base.definition.wheels.of)}"
    if base.definition.packages:
        yield f"  installs: {', '.join(base.definition.packages)}"
    for line in base.definition.post:
        yield from (f"  runs, while it is built: {each}" for each in line.splitlines())
    for number, patch in enumerate(base.definition.patches, 1):
        yield f"  patch {number}: {len(patch.encode())} bytes"
        yield from _text(patch, verbose=verbose)


def _as_json(candidate: Candidate) -> dict[str, Any]:
    from pocketcloud.documents import plain
    from pocketcloud.sharing.making import addresses, host_files, own_templates

    bases = [
        {
            "name": base.name,
            "standing": base.standing,
            "fetches": addresses(base.definition) if base.definition else (),
            "reads": host_files(base.definition) if base.definition else (),
            "definition": plain(base.definition),
        }
        for base in candidate.bases
    ]
    templates = {name: content.decode(errors="replace") for name, content in own_templates(candidate.bundle).items()}
    return {
        "lab": plain(candidate.bundle.lab),
        "source": candidate.source,
        "commit": candidate.commit,
        "bases": bases,
        "templates": templates,
    }
