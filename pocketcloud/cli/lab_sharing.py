"""`pocketcloud lab inventory|export`: a lab for other tools, and for others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pocketcloud.cli import lab_import
from pocketcloud.cli.access import instance_files
from pocketcloud.cli.options import bases_option, kit_option, open_kit, output_option, templates_option, wanted_lab
from pocketcloud.cli.view import fit, print_json
from pocketcloud.errors import NotFound, Refused, UsageError

if TYPE_CHECKING:
    from pocketcloud.model.kit import Kit
    from pocketcloud.model.lab import Lab

_SUFFIXES = (".tar.gz", ".tgz")


@click.command()
@kit_option
@click.option("--format", "form", type=click.Choice(["yaml", "json", "ini"]), default="yaml", show_default=True, help="Its form.")
@click.argument("lab", required=False)
def inventory(kit_name: str | None, form: str, lab: str | None) -> None:
    """Print an Ansible inventory of the machines of LAB: ansible -i <(pocketcloud lab inventory LAB) all -m ping.

    `json` is what Ansible expects of an inventory script. The machines' host keys are known; Ansible has to run as root to use
    the kit's key, or as the user who raised the lab, whose own key is in the machines, too.
    """
    from pocketcloud.keys import kit_key_path
    from pocketcloud.lab.ansible import Format, Host
    from pocketcloud.lab.ansible import inventory as written
    from pocketcloud.specs import machine_address

    files, record = instance_files(kit_name, lab)
    hosts = []
    for name, machine in record.machines.items():
        if (address := machine_address(record, name)) is None:
            click.echo(f"note: {name} is on no network and left out", err=True)
        else:
            hosts.append(Host(name, machine.definition.base, address))
    click.echo(written(record.instance, hosts, kit_key_path(files.kit.path), files.known_hosts, Format(form)), nl=False)


@click.command()
@kit_option
@bases_option
@templates_option
@output_option
@click.argument("lab", required=False)
@click.argument("target", required=False, type=click.Path(path_type=Path))
def export(kit_name: str | None, output: str, lab: str | None, target: Path | None) -> None:
    """Write LAB with all that it is made from to TARGET: an archive (.tar.gz), or else a folder; left out: LAB.tar.gz here.

    The definition of a lab in the kit, of a file, or one that we ship; with what its machines are provisioned with, and the
    definitions and templates of its bases. Not in it: keys, disks, addresses. The same lab gives the same bytes.
    """
    from pocketcloud.sharing.bundle import archive, contents
    from pocketcloud.sharing.making import bundle_of, secrets_in
    from pocketcloud.sharing.writing import write_file, write_folder

    found, name = _definition(kit_name, lab)
    bundle = bundle_of(found)
    files = contents(bundle)
    place = target or Path(f"{name}.tar.gz")
    if place.name.endswith((".zip", ".tar", ".tar.zst", ".tar.xz", ".tar.bz2")):
        raise UsageError(f"{place}: archives are .tar.gz, which every host can unpack", hint="or give the name of a folder")
    if place.name.endswith(_SUFFIXES):
        write_file(place, archive(files, found.lab))
    else:
        write_folder(place, files)
    for where in secrets_in(found):
        click.echo(f"note: {fit(where)} holds a private key, which is given away with the lab", err=True)
    lacking = sorted({machine.base for machine in found.machines.values()} - set(bundle.bases))
    for base in lacking:
        click.echo(f"note: there is no definition of base {base}; whoever imports the lab has to have it", err=True)
    if output == "json":
        print_json(
            {"lab": found.lab, "target": str(place), "files": list(files), "bases": list(bundle.bases), "lacking": lacking}
        )
    else:
        click.echo(f"Exported lab {found.lab} to {place}: {len(files)} files, {len(bundle.bases)} definitions of bases.")


def _definition(kit_name: str | None, text: str | None) -> tuple[Lab, str]:
    """The definition of LAB, and the name it goes by; a kit is needed only for what is in one."""
    from pocketcloud.kit.attached import Places
    from pocketcloud.records import InstanceFiles, read_record

    kit: Kit | None
    try:
        kit = open_kit(kit_name)
    except NotFound:
        if kit_name:
            raise
        kit = None
    found, name = wanted_lab(text, kit.path if kit else Places.from_environment().default)
    if found is None and kit is not None and (record := read_record(InstanceFiles(kit, name))) is not None:
        found = record.lab
    if found is None:
        raise Refused(f"lab {name} has no record any more", hint="another command may have removed it: pocketcloud lab list")
    return found, name


COMMANDS = (inventory, export, lab_import.import_lab)
