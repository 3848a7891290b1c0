"""`pocketcloud kit status` and `pocketcloud kit trim`: what holds a kit's space, and giving back what is free."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from pocketcloud.cli.options import kit_option, open_kit, output_option, progress_options, require_root
from pocketcloud.cli.view import print_json, print_table

if TYPE_CHECKING:
    from pocketcloud.kit.links import Link
    from pocketcloud.kit.space import Gauge, Holding, KitSpace
    from pocketcloud.model.base import Base
    from pocketcloud.model.kit import Kit

_BAR = 30
_ROLES = {
    "content": "media and caches",
    "ballast": "kept back for a full kit",
    "leftover": "leftover",
    "spare": "made in advance",
}


@click.command()
@kit_option
@output_option
def status(kit_name: str | None, output: str) -> None:
    """Show a kit: how full it is, what holds its space, where it lies.

    OWN is what comes back, at least, when only that is removed; SHARED is what others have too, counted for each disk.
    """
    from pocketcloud.bases import records
    from pocketcloud.kit.space import kit_space
    from pocketcloud.records import instances
    from pocketcloud.storage import open_storage

    kit = open_kit(kit_name)
    storage = open_storage(kit)
    bases, labs = records.built(kit), instances(kit)
    space = kit_space(kit, storage, bases)
    if output == "json":
        answer = {"manifest": kit.manifest, "path": kit.path, "volumes": storage.volumes(), "bases": bases, "labs": labs}
        usage = None if not space.gauges else storage.usage()
        where = {"medium": kit.medium, "vg": kit.vg, "devices": kit.devices}
        print_json({**answer, **where, "usage": usage, "space": space, "leftovers": space.leftovers})
        return
    print_table(("KIT", ""), _about(kit, bases, labs))
    click.echo()
    for line in (*_gauges(space), *_reserve(space)):
        click.echo(line)
    click.echo()
    print_table(("WHAT", "DISKS", "OWN", "SHARED"), [_row(held) for held in space.holdings], empty="No volumes yet.")
    for line in _remarks(space):
        click.echo(line, err=True)


def _about(kit: Kit, bases: tuple[Base, ...], labs: tuple[str, ...]) -> list[tuple[str, object]]:
    on = f" on {', '.join(map(str, kit.devices))} (volume group {kit.vg})" if kit.vg else ""
    rows: list[tuple[str, object]] = [
        ("name", kit.name),
        ("id", kit.id),
        ("path", f"{kit.path} ({kit.medium}, {kit.manifest.storage}{on})"),
        ("made", f"{kit.manifest.created} with pocketcloud {kit.manifest.made_with}"),
        ("bases", ", ".join(f"{b.name} ({b.arch})" for b in bases) or "none"),
        ("labs", ", ".join(labs) or "none"),
    ]
    if kit.vg:
        rows.append(("to pull it", f"pocketcloud kit detach {kit.name}, first"))
    return rows


def _gauges(space: KitSpace) -> Iterator[str]:
    from pocketcloud.model.sizes import size_text

    width = max((len(gauge.name) for gauge in space.gauges), default=0)
    for gauge in space.gauges:
        figures = f"{size_text(gauge.used)} of {size_text(gauge.size)}, {size_text(max(0, gauge.size - gauge.used))} free"
        yield f"{gauge.name.ljust(width)}  {bar(gauge)} {gauge.percent:3} %  {figures}{_mark(gauge)}"


def bar(gauge: Gauge) -> str:
    """A bar of `#`, with a `|` where new volumes are refused."""
    full = min(_BAR, -(-gauge.percent * _BAR // 100))
    cells = ["#" if number < full else "." for number in range(_BAR)]
    if gauge.refuse:
        cells[gauge.refuse * _BAR // 100] = "|"
    return f"[{''.join(cells)}]"


def _mark(gauge: Gauge) -> str:
    if gauge.refuse and gauge.percent >= gauge.refuse:
        return "  FULL: no new disks"
    return "  FILLING UP" if gauge.warn and gauge.percent >= gauge.warn else ""


def _reserve(space: KitSpace) -> Iterator[str]:
    from pocketcloud.model.sizes import size_text

    if space.ballast is not None:
        state = "there" if space.ballast else "given up or not full; it is made again when there is room: pocketcloud kit trim"
        yield f"reserve: ballast {state}; {size_text(space.reserve)} of the volume group for metadata and repairs"


def _row(held: Holding) -> tuple[str, int, str, str]:
    from pocketcloud.model.sizes import size_text

    own, shared = ("?" if figure is None else size_text(figure) for figure in (held.exclusive, held.shared))
    role = _ROLES.get(held.role, str(held.role))
    return (role if held.name == str(held.role) else f"{role} {held.name}", len(held.volumes), own, shared)


def _remarks(space: KitSpace) -> Iterator[str]:
    for line in space.warnings:
        yield f"WARNING: {line}"
    if space.uncounted:
        yield f"note: what each holds is not known: {space.uncounted}"
    if space.leftovers:
        yield f"note: no lab needs {', '.join(space.leftovers)}: left by an interrupted command, or being made right now"
    if space.strangers:
        yield f"note: not ours, and left alone: {', '.join(space.strangers)}"


@click.command()
@kit_option
@output_option
@progress_options
def trim(kit_name: str | None, output: str, progress: str, verbose: int) -> None:
    """Give free space back: from the guests through the kit's store to its disk, and say where that chain ends.

    Machines that run are asked through their guest agent; the disks of those that do not are mounted in a throw-away guest.
    Nothing is lost, and labs go on meanwhile.
    """
    from pocketcloud import profiles
    from pocketcloud.cli.view import open_view
    from pocketcloud.errors import PocketcloudError
    from pocketcloud.host import read_facts
    from pocketcloud.hypervisor import open_hypervisor
    from pocketcloud.kit.attached import Places
    from pocketcloud.kit.trim import trim_kit
    from pocketcloud.model.profile import Acceleration
    from pocketcloud.model.sizes import size_text
    from pocketcloud.storage import open_storage

    require_root("trim a kit")
    places = Places.from_environment()
    emulated = profiles.choose(read_facts()).acceleration is not Acceleration.KVM
    kit = open_kit(kit_name)
    try:
        hypervisor, unreachable = open_hypervisor(), ""
    except PocketcloudError as error:
        hypervisor, unreachable = None, error.message
    view = open_view(progress, verbose)
    try:
        trimmed = trim_kit(
            kit, open_storage(kit), hypervisor, emit=view.emit, locks=places.locks, emulated=emulated, unreachable=unreachable
        )
    finally:
        view.close()
    if output == "json":
        print_json({"kit": kit.name, "freed": trimmed.freed, "ends_at": trimmed.ends_at, "links": trimmed.links})
        return
    print_table(("LINK", "", "WHAT"), [_link(link) for link in trimmed.links])
    click.echo(f"Kit {kit.name}: {size_text(trimmed.freed)} of its store came back.")
    if trimmed.ends_at:
        click.echo(f"The chain ends at: {trimmed.ends_at}.")


def _link(link: Link) -> tuple[str, str, str]:
    return (link.name, str(link.state), f"{link.text}. {link.hint}" if link.hint else link.text)
