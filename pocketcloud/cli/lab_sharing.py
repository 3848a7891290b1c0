"""`pocketcloud lab inventory`: a lab for other tools."""

from __future__ import annotations

import click

from pocketcloud.cli.access import instance_files
from pocketcloud.cli.options import kit_option


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


COMMANDS = (inventory,)
