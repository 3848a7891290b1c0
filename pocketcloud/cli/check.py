"""`pocketcloud check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pocketcloud.cli.measuring import measuring
from pocketcloud.cli.options import kit_option, output_option, progress_options, yes_option
from pocketcloud.cli.view import print_json
from pocketcloud.errors import HostLacks, NotFound, UsageError

if TYPE_CHECKING:
    from pocketcloud.check import Check
    from pocketcloud.hypervisor import Hypervisor
    from pocketcloud.model.kit import Kit
    from pocketcloud.model.lab import Lab

# Seconds that a disk is read for when nobody asked for it by name.
_BRIEFLY = 2.0


@click.command("check")
@kit_option
@click.option("--profile", "profile_name", metavar="NAME", envvar="POCKETCLOUD_PROFILE", help="Judge for this profile.")
@click.option("--lab", "lab_name", metavar="LAB", help="Judge also whether this lab would fit.")
@click.option("--device", "devices", multiple=True, type=click.Path(path_type=Path), help="Judge this disk only, and measure it.")
@click.option("--measure/--no-measure", default=True, help="Whether disks are measured: up to four, two seconds each.")
@click.option("--deep", is_flag=True, help="Start guests: one as labs do, and one that looks for a KVM of its own.")
@click.option("--fix", is_flag=True, help="Do what can be done about what was found, each after a question.")
@click.option("--dry-run", is_flag=True, help="With --fix: only say what would be done.")
@yes_option
@click.option("--strict", is_flag=True, help="End with 3 for warnings, too.")
@output_option
@progress_options
@click.pass_context
def command(
    ctx: click.Context,
    kit_name: str | None,
    profile_name: str | None,
    lab_name: str | None,
    devices: tuple[Path, ...],
    measure: bool,
    deep: bool,
    strict: bool,
    fix: bool,
    dry_run: bool,
    yes: bool,
    output: str,
    progress: str,
    verbose: int,
) -> int:
    """Judge whether this host can carry labs: KVM (by a timed proof), nesting, disks, memory, space, tools, subnets.

    With --profile of a kind of computer that this is none of, that one is judged, by what all of its kind have.

    Ends with 3 if something that labs need is missing. Where KVM is not usable labs run on emulation, which is slower.
    """
    from pocketcloud import profiles
    from pocketcloud.check import failed, run_checks, summary
    from pocketcloud.check.judgement import PATIENCE
    from pocketcloud.check.waiting import Asked
    from pocketcloud.cli.check_fix import fix as mend
    from pocketcloud.cli.check_table import print_checks
    from pocketcloud.cli.options import open_kit
    from pocketcloud.host import read_facts
    from pocketcloud.host.disk_speed import SECONDS
    from pocketcloud.hypervisor import open_hypervisor
    from pocketcloud.kit.attached import Places
    from pocketcloud.system import run

    kit = None
    try:
        kit = open_kit(kit_name)
        path = kit.path
    except (NotFound, UsageError):
        if kit_name:
            raise
        path = Places.from_environment().default
    lab = _lab(lab_name, kit, path) if lab_name else None
    if deep:
        _announce_guests(profile_name)
    # It takes a while, most of it the daemon's: meanwhile the host is looked at.
    connecting = Asked(_connect)
    facts = read_facts(fresh=True)
    profile = profiles.find(profile_name) if profile_name else None
    with measuring(progress, verbose, SECONDS if devices else _BRIEFLY) as measured:
        checks = run_checks(
            facts,
            kit_path=path,
            run=run,
            hypervisor=lambda: connecting.answer(PATIENCE),
            profile=profile,
            devices=devices,
            measure=measured if measure and not fix else None,
            lab=lab,
            deep=deep,
            kit=kit,
        )
    if fix:

        def again() -> tuple[Check, ...]:
            facts = read_facts(fresh=True)
            return run_checks(
                facts, kit_path=path, run=run, hypervisor=open_hypervisor, profile=profile, devices=devices, kit=kit
            )

        ctx.exit(mend(checks, again, dry_run=dry_run, yes=yes, output=output))
    code = 3 if failed(checks, strict=strict) else 0
    if output == "json":
        print_json([check.told for check in checks])
        ctx.exit(code)
    print_checks(checks)
    try:
        chosen = profile or profiles.choose(facts)
    except HostLacks:
        chosen = None
    click.echo(summary(checks, facts, chosen))
    ctx.exit(code)


def _lab(name: str, kit: Kit | None, path: Path) -> Lab:
    """The lab that is meant, by what was asked for when it was raised, or by its file."""
    from pocketcloud.cli.options import wanted_lab
    from pocketcloud.records import InstanceFiles, read_record

    lab, instance = wanted_lab(name, path)
    record = read_record(InstanceFiles(kit, instance)) if lab is None and kit is not None else None
    if lab is None and record is None:
        raise NotFound(f"no lab {instance}", hint="pocketcloud lab list shows those there are")
    return lab or record.lab  # type: ignore[union-attr]  # one of them is there


def _connect() -> Hypervisor:
    """A connection to libvirt, which then has its capabilities at hand."""
    from pocketcloud.hypervisor import open_hypervisor

    connection = open_hypervisor()
    connection.facts()
    return connection


def _announce_guests(profile: str | None) -> None:
    """Say that guests will be started; SIGTERM is answered so that none is left."""
    import signal
    import sys

    from pocketcloud.check.deep import BOOT_SECONDS, NESTED_SECONDS

    if profile:
        raise UsageError("--deep starts guests on this computer, --profile judges another", hint="leave one of them out")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    within = (BOOT_SECONDS + NESTED_SECONDS) / 60
    click.echo(f"Starting two tiny guests, which go by themselves: seconds, {within:.0f} minutes at most.", err=True)
