"""`pocketcloud lab hosts`: the names of a lab's machines, for the host."""

from __future__ import annotations

import click

from pocketcloud.cli.access import instance_files
from pocketcloud.cli.options import kit_option, require_root
from pocketcloud.errors import NotReady, UsageError


@click.command()
@kit_option
@click.option("--write", is_flag=True, help="Put them into /etc/hosts, between two marks, until the lab is down.")
@click.option("--remove", is_flag=True, help="Take them out of it.")
@click.argument("lab", required=False)
def hosts(kit_name: str | None, lab: str | None, *, write: bool, remove: bool) -> None:
    """Print the names of LAB's machines as lines for /etc/hosts: web.demo.internal and web.demo.

    With --write this host knows them while the lab is up: every other line of the file is left alone, `lab up` and `lab reset`
    keep them true, `lab down` and `lab destroy` take them out.
    """
    from pocketcloud.hypervisor import open_hypervisor
    from pocketcloud.kit.attached import Places
    from pocketcloud.lab.host_names import host_lines, is_up, remove_names, write_names

    if write and remove:
        raise UsageError("--write and --remove are opposites", hint="give one of them, or none to see the lines")
    if write or remove:
        require_root("change /etc/hosts")
    files, record = instance_files(kit_name, lab)
    places, command = Places.from_environment(), "pocketcloud lab hosts"
    if remove:
        changed = remove_names(places, files, command)
        click.echo(
            f"The names of lab {record.instance} are {'out' if changed else 'not in it; nothing was done in'} {places.hosts}."
        )
        return
    if write and not is_up(open_hypervisor(), files):
        raise NotReady(
            f"lab {record.instance} is down, and nobody answers at its addresses; {places.hosts} is left as it is",
            hint=f"pocketcloud lab up {record.instance}, then this again",
        )
    lines = host_lines(record)
    if not lines:
        click.echo(f"note: no machine of lab {record.instance} is on a network of its own, so none has a name here", err=True)
    if write:
        write_names(places, files, record, command)
        click.echo(f"{len(lines)} machines of lab {record.instance} are known on this host ({places.hosts}).", err=True)
    for line in lines:
        click.echo(line.text)


COMMANDS = (hosts,)
