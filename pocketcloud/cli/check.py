"""`pocketcloud check`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pocketcloud.cli.options import kit_option, output_option, yes_option
from pocketcloud.cli.view import print_json
from pocketcloud.errors import HostLacks, NotFound, UsageError

if TYPE_CHECKING:
    from pocketcloud.check import Check
    from pocketcloud.model.disk import BlockDevice, Measured

# Seconds that a disk is read for when nobody asked for it by name.
_BRIEFLY = 2.0


def _measured(disk: BlockDevice, *, seconds: float) -> Measured | None:
    from pocketcloud.host.disk_speed import measure

    click.echo(f"Measuring how quickly {disk.path} can be read, for {seconds:.0f} s (nothing is written).", err=True)
    return measure(disk.path, seconds)


@click.command("check")
@kit_option
@click.option("--profile", "profile_name", metavar="NAME", envvar="POCKETCLOUD_PROFILE", help="Judge for this profile.")
@click.option("--device", "devices", multiple=True, type=click.Path(path_type=Path), help="Judge this disk only, and measure it.")
@click.option("--measure/--no-measure", default=True, help="Whether disks are measured: up to four, two seconds each.")
@click.option("--fix", is_flag=True, help="Do what can be done about what was found, each after a question.")
@click.option("--dry-run", is_flag=True, help="With --fix: only say what would be done.")
@yes_option
@click.option("--strict", is_flag=True, help="End with 3 for warnings, too.")
@output_option
@click.pass_context
def command(
    ctx: click.Context,
    kit_name: str | None,
    profile_name: str | None,
    devices: tuple[Path, ...],
    measure: bool,
    strict: bool,
    fix: bool,
    dry_run: bool,
    yes: bool,
    output: str,
) -> int:
    """Judge whether this host can carry labs: KVM (by a timed proof), nesting, disks, memory, space, tools, subnets.

    Ends with 3 if something that labs need is missing. Where KVM is not usable labs run on emulation, which is slower.
    """
    from pocketcloud import profiles
    from pocketcloud.check import failed, run_checks, summary
    from pocketcloud.cli.check_fix import fix as mend
    from pocketcloud.cli.check_table import print_checks
    from pocketcloud.cli.options import open_kit
    from pocketcloud.host import read_facts
    from pocketcloud.host.disk_speed import SECONDS
    from pocketcloud.hypervisor import open_hypervisor
    from pocketcloud.kit.attached import Places
    from pocketcloud.system import run

    try:
        path = open_kit(kit_name).path
    except (NotFound, UsageError):
        if kit_name:
            raise
        path = Places.from_environment().default
    facts = read_facts(fresh=True)
    profile = profiles.find(profile_name) if profile_name else None
    checks = run_checks(
        facts,
        kit_path=path,
        run=run,
        hypervisor=open_hypervisor,
        profile=profile,
        devices=devices,
        measure=partial(_measured, seconds=SECONDS if devices else _BRIEFLY) if measure and not fix else None,
    )
    if fix:

        def again() -> tuple[Check, ...]:
            facts = read_facts(fresh=True)
            return run_checks(facts, kit_path=path, run=run, hypervisor=open_hypervisor, profile=profile)

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
