"""`pocketcloud profile ...`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pocketcloud.cli.options import output_option
from pocketcloud.cli.view import print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pocketcloud.model.facts import Facts
    from pocketcloud.model.profile import Profile, Selector


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
@click.argument("name", required=False, envvar="POCKETCLOUD_PROFILE")
@output_option
def show(name: str | None, output: str) -> None:
    """Show all that the profile NAME decides, where each value comes from, and what this computer makes of it.

    Without NAME it is the one that labs get here: POCKETCLOUD_PROFILE's, else the one chosen for this computer.
    """
    from pocketcloud import profiles
    from pocketcloud.documents import plain
    from pocketcloud.host import read_facts

    facts = read_facts()
    profile = profiles.find(name) if name else profiles.choose(facts)
    files = {key: f"profiles/{origin}.yaml" for key, origin in profiles.origins(profile.profile).items()}
    here = _here(profile, facts, _why_this(profile, facts, named=bool(name)))
    if output == "json":
        decided = [{"key": key, "value": value, "from": source} for key, value, source in here]
        print_json({**plain(profile), "from": files, "here": decided})
        return
    rows = [(key, value, files.get(origin, "")) for key, value, origin in _values(profile)]
    print_table(("KEY", "VALUE", "FROM"), rows)
    click.echo()
    print_table(("ON THIS COMPUTER", "VALUE", "FROM"), here)


def _values(profile: Profile) -> Iterator[tuple[str, str, str]]:
    """What the profile says: words for the key, the value, and the key whose origin is told."""
    from pocketcloud.model.sizes import duration_text, size_text

    yield "profile", profile.profile, "profile"
    yield "for", profile.title, "title"
    yield "chosen where", _selected(profile.selects), "selects"
    for name in profile.selects.compatible:
        yield "", f"  {name}", "selects"
    yield "precedence", str(profile.precedence), "precedence"
    yield "runs by", profile.acceleration, "acceleration"
    yield "machine types", ", ".join(f"{arch}: {machine}" for arch, machine in profile.machine.items()), "machine"
    yield "CPU mode", profile.cpu_mode, "cpu_mode"
    yield "kept for the host", size_text(profile.host_memory), "host_memory"
    yield "QEMU's own, each", size_text(profile.machine_overhead), "machine_overhead"
    yield "vcpus at most", str(profile.max_vcpus), "max_vcpus"
    for medium, tuning in profile.media.items():
        told = f"cache {tuning.cache}, io {tuning.io}"
        yield f"disks on {medium}", told if medium == "dir" else f"{told}, chunk {size_text(tuning.chunk)}", f"media.{medium}"
    for medium, least in profile.disk_speed.items():
        told = f"{least.sequential} MB/s, {least.random_reads} random reads a second"
        yield f"least of a disk, {medium}", told, f"disk_speed.{medium}"
    idle, total = map(duration_text, (profile.install.idle, profile.install.total))
    yield "installers' deadlines", f"{idle} without a new line, {total} in all", "install"
    if board := profile.board:
        yield "such a board has", f"{' or '.join(map(size_text, board.memory))} of memory", "board"
        yield "", ", ".join(f"{count} {core}" for core, count in board.cores.items()), "board"
        yield "", f"GICv{board.gic}, USB of {board.usb} Mbit/s, {size_text(board.system)} taken by its system", "board"


def _selected(selector: Selector) -> str:
    parts = list(map(str, selector.arch))
    parts += [f"KVM {'' if selector.acceleration == 'kvm' else 'not '}usable"] if selector.acceleration else []
    if selector.compatible:
        parts.append("device tree says one of")
    elif selector.device_tree is not None:
        parts.append(f"{'a' if selector.device_tree else 'no'} device tree")
    return ", ".join(parts)


def _why_this(profile: Profile, facts: Facts, *, named: bool) -> str:
    from pocketcloud import profiles

    if not named:
        return f"chosen: {profiles.why_chosen(profile, facts)}"
    chosen = profiles.choose(facts).profile
    if chosen == profile.profile:
        return f"named, and chosen: {profiles.why_chosen(profile, facts)}"
    kind = "; this computer is of another kind" if not profiles.is_kind(profile.selects, facts) else ""
    return f"named; by itself this computer gets {chosen}{kind}"


def _here(profile: Profile, facts: Facts, why: str) -> list[tuple[str, str, str]]:
    """What this computer makes of it: words for the key, the value, and the fact that decides."""
    from pocketcloud import profiles
    from pocketcloud.model.profile import Acceleration
    from pocketcloud.model.sizes import size_text

    if not profiles.is_kind(profile.selects, facts):
        there = f"pocketcloud check --profile {profile.profile}"
        return [("profile", profile.profile, why), ("such a computer", "not this one", f"{there} judges it")]
    kvm = facts.kvm
    proof = f"a timed loop: {kvm.nanoseconds:.3g} ns an instruction" if kvm.nanoseconds else kvm.evidence
    free = profiles.memory_for_labs(facts, profile, 0)
    less = f"{size_text(facts.memory_available)} available of {size_text(facts.memory)}, less what is kept for the host"
    rows = [
        ("profile", str(profile.profile), why),
        ("KVM", str(kvm.state), proof),
        ("memory for labs", size_text(free), less),
    ]
    if (quick := profiles.quickest_cores(facts.cores)) and profile.acceleration is Acceleration.KVM:
        kinds = ", ".join(f"{len(core.cpus)} {core.name}" for core in facts.cores)
        rows.append(
            (
                "machines stay on",
                f"CPU {profiles.ranges(quick.cpus)} ({quick.name})",
                f"{len(facts.cores)} kinds of cores: {kinds}",
            )
        )
    return rows
