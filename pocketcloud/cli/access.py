"""`pocketcloud lab ssh|exec|cp|console|ssh-config`: reaching into the machines of a lab."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pocketcloud.cli.options import instance_of, kit_option, open_kit, require_root
from pocketcloud.errors import NotFound, NotReady, UsageError

if TYPE_CHECKING:
    from pocketcloud.guest import Guest
    from pocketcloud.model.record import Record
    from pocketcloud.records import InstanceFiles


def instance_files(kit_name: str | None, lab: str | None) -> tuple[InstanceFiles, Record]:
    """The files and the record of the instance that LAB names. Raises NotFound."""
    from pocketcloud.records import InstanceFiles, read_record

    kit = open_kit(kit_name)
    files = InstanceFiles(kit, instance_of(lab))
    record = read_record(files)
    if record is None:
        raise NotFound(
            f"kit {kit.name} has no lab {files.instance}",
            hint=f"pocketcloud lab up {files.instance}; pocketcloud lab list shows what there is",
        )
    return files, record


def _machine(record: Record, machine: str) -> None:
    if machine not in record.machines:
        raise NotFound(f"lab {record.instance} has no machine {machine}", hint=f"it has: {', '.join(record.machines)}")


def _unknown(record: Record, machine: str) -> NotReady:
    return NotReady(
        f"{machine} is on no network of this kit's own, so nobody here knows its address",
        hint=f"pocketcloud lab console {record.instance} {machine}",
    )


def _connect(files: InstanceFiles, record: Record, machine: str, user: str) -> Guest:
    from pocketcloud.guest import Guest
    from pocketcloud.lab.logins import login_of

    _machine(record, machine)
    login = login_of(files, record, machine, user)
    if login is None:
        raise _unknown(record, machine)
    return Guest.connect(login, timeout=60)


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@kit_option
@click.option("-l", "--user", default="root", show_default=True, help="Who to log in as.")
@click.argument("lab")
@click.argument("machine")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def ssh(kit_name: str | None, user: str, lab: str, machine: str, command: tuple[str, ...]) -> None:
    """Open a terminal on MACHINE of LAB, or run COMMAND in one."""
    from pocketcloud.specs import machine_address
    from pocketcloud.ssh_config import interactive_argv
    from pocketcloud.system import become, which

    require_root("use the kit's key")
    files, record = instance_files(kit_name, lab)
    _machine(record, machine)
    if which("ssh") is None:
        raise NotFound(
            "the OpenSSH client (ssh) is not installed",
            hint="pocketcloud check names its package; pocketcloud lab exec works without it",
        )
    if machine_address(record, machine) is None:
        raise _unknown(record, machine)
    argv = interactive_argv(files.ssh_config, machine, command)
    become([argv[0], "-l", user, *argv[1:]])


@click.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@kit_option
@click.option("-l", "--user", default="root", show_default=True, help="Who to run it as.")
@click.option("-i", "--stdin", "with_stdin", is_flag=True, help="Give it this command's standard input.")
@click.argument("lab")
@click.argument("machine")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
@click.pass_context
def execute(
    ctx: click.Context, kit_name: str | None, user: str, lab: str, machine: str, command: tuple[str, ...], *, with_stdin: bool
) -> None:
    """Run COMMAND in MACHINE of LAB and end with its exit code; 255 if the machine cannot be reached."""
    from pocketcloud.ssh_config import command_line

    require_root("use the kit's key")
    files, record = instance_files(kit_name, lab)
    words = command[1:] if command[0] == "--" else command
    if not words:
        raise UsageError("exec needs a command", hint="pocketcloud lab exec LAB MACHINE -- COMMAND")
    content = sys.stdin.buffer.read() if with_stdin else None

    def show(piece: bytes, is_error: bool) -> None:
        stream = sys.stderr.buffer if is_error else sys.stdout.buffer
        stream.write(piece)
        stream.flush()

    with _connect(files, record, machine, user) as guest:
        done = guest.run(command_line(words), stdin=content, on_output=show)
    ctx.exit(done.code if done.code >= 0 else 255)


@click.command()
@kit_option
@click.argument("lab")
@click.argument("source")
@click.argument("target")
def cp(kit_name: str | None, lab: str, source: str, target: str) -> None:
    """Copy a file or folder: SOURCE or TARGET is MACHINE:PATH, the other a path here."""
    require_root("use the kit's key")
    files, record = instance_files(kit_name, lab)
    ends = [_remote(record, end) for end in (source, target)]
    if (ends[0] is None) == (ends[1] is None):
        raise UsageError(
            "one of SOURCE and TARGET is MACHINE:PATH, the other a path here", hint=f"machines: {', '.join(record.machines)}"
        )
    machine, path = next(end for end in ends if end is not None)
    with _connect(files, record, machine, "root") as guest:
        if ends[0] is None:
            guest.put(Path(source), path)
        else:
            guest.get(path, Path(target))
    click.echo(f"Copied {source} to {target}.", err=True)


def _remote(record: Record, text: str) -> tuple[str, str] | None:
    machine, colon, path = text.partition(":")
    return (machine, path or ".") if colon and machine in record.machines else None


@click.command()
@kit_option
@click.argument("lab")
@click.argument("machine")
def console(kit_name: str | None, lab: str, machine: str) -> None:
    """Open the serial console of MACHINE of LAB; Ctrl-] leaves it."""
    from pocketcloud.hypervisor import open_hypervisor
    from pocketcloud.model.names import joined
    from pocketcloud.system import become, which

    require_root("open a console")
    files, record = instance_files(kit_name, lab)
    _machine(record, machine)
    name = joined(files.kit.name, record.instance, machine)
    hypervisor = open_hypervisor()
    domain = hypervisor.domain(name)
    if domain is None or not domain.active:
        raise NotReady(
            f"{machine} is off", hint=f"pocketcloud lab up {record.instance}; what it said last: {files.console(machine)}"
        )
    if which("virsh") is None:
        raise NotFound("virsh is not installed, and the console takes it", hint="pocketcloud check names its package")
    become(["virsh", "-c", hypervisor.facts().uri, "console", name], dict(os.environ))


@click.command("ssh-config")
@kit_option
@click.argument("lab")
def ssh_config(kit_name: str | None, lab: str) -> None:
    """Print a configuration for `ssh -F` with all machines of LAB."""
    files, _ = instance_files(kit_name, lab)
    click.echo(files.ssh_config.read_text(), nl=False)


COMMANDS = (ssh, execute, cp, console, ssh_config)
