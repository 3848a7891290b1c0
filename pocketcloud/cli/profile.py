"""`pocketcloud profile ...`."""

from __future__ import annotations

import click

from pocketcloud.cli.options import output_option
from pocketcloud.cli.view import print_json, print_table


@click.group("profile")
def command() -> None:
    """Show how machines are shaped for each kind of host."""


@command.command("list")
@output_option
def list_profiles(output: str) -> None:
    """List the profiles; the one this host gets is marked."""
    from pocketcloud import profiles
    from pocketcloud.host import read_facts

    known = profiles.available()
    chosen = profiles.choose(read_facts(), known).profile
    if output == "json":
        print_json([{"profile": p.profile, "title": p.title, "chosen": p.profile == chosen} for p in known])
        return
    rows = [("*" if p.profile == chosen else "", p.profile, p.acceleration, p.title) for p in known]
    print_table(("", "PROFILE", "RUNS BY", "FOR"), rows)


@command.command()
@click.argument("name")
@output_option
def show(name: str, output: str) -> None:
    """Show all that the profile NAME decides."""
    from pocketcloud import profiles
    from pocketcloud.model.sizes import size_text

    profile = profiles.find(name)
    if output == "json":
        print_json(profile)
        return
    rows = [
        ("profile", profile.profile),
        ("for", profile.title),
        ("runs by", profile.acceleration),
        ("machine types", ", ".join(f"{arch}: {machine}" for arch, machine in profile.machine.items())),
        ("CPU mode", profile.cpu_mode),
        ("kept for the host", size_text(profile.host_memory)),
        ("QEMU's own, each", size_text(profile.machine_overhead)),
        ("vcpus at most", profile.max_vcpus),
        *((f"disks on {medium}", f"cache {tuning.cache}, io {tuning.io}") for medium, tuning in profile.media.items()),
    ]
    print_table(("KEY", "VALUE"), rows)
