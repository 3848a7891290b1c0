"""`pocketcloud kit sync`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from pocketcloud.cli.holding import hold_labs, one_at_a_time, unhurried
from pocketcloud.cli.options import now, open_kit, output_option, progress_options, require_root, yes_option
from pocketcloud.cli.view import ask, open_view, print_json, print_table
from pocketcloud.errors import PartlyDone, Refused, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pocketcloud.copies.clone import Copied
    from pocketcloud.copies.ledger import CopyEntry
    from pocketcloud.copies.sync import Synced
    from pocketcloud.events import Event
    from pocketcloud.kit.attached import Places
    from pocketcloud.kit.plugged import Plugged
    from pocketcloud.model.kit import Kit


@click.command()
@click.argument("master", metavar="KIT")
@click.argument("targets", metavar="[COPY...]", nargs=-1)
@click.option("--keep-labs", is_flag=True, help="Labs that are on a copy stay as they are; left out: they become the master's.")
@click.option("--verify", "thorough", is_flag=True, help="Read all that a copy has already, too, in place of a sample.")
@output_option
@progress_options
@yes_option
def sync(
    master: str,
    targets: Sequence[str],
    keep_labs: bool,
    thorough: bool,
    output: str,
    progress: str,
    verbose: int,
    yes: bool,
) -> None:
    """Bring copies of the attached kit KIT to its state by sending only what differs.

    Each of [COPY...] is a plugged copy of KIT that is not attached: its disk or its name; left out: all that are
    plugged in. Until its very end a copy is as it was. One of which KIT no longer has what it shipped is copied whole.
    """
    from pocketcloud.copies.ledger import add_copies
    from pocketcloud.copies.sync import sync as sync_copies
    from pocketcloud.kit.attached import Places
    from pocketcloud.system import run

    require_root("write to disks")
    places, kit = Places.from_environment(), open_kit(master)
    if not kit.vg:
        raise Refused(f"kit {kit.name} is a folder, and has no copies that could be synced", hint="pocketcloud kit clone")
    with ExitStack() as held:
        held.enter_context(one_at_a_time(places))
        hold_labs(places, kit, held)
        unhurried(held, f"copies of kit {kit.name} are brought up to date", verbose)
        copies = _choose(places, kit, targets, keep_labs=keep_labs)
        ask(f"Bring {'these copies' if len(copies) > 1 else 'this copy'} to the state of kit {kit.name}?", yes=yes)
        view = open_view(progress, verbose)
        held.callback(view.close)
        shown = _Shown(copies, view.emit)
        done = sync_copies(
            kit,
            copies,
            run,
            keep_labs=keep_labs,
            thorough=thorough,
            now=now(),
            stop=threading.Event(),
            tell=view.emit,
        )
        shown.end(done)
        entries = [_entry(copy, each) for copy, each in zip(copies, done, strict=True) if not each.fault]
        add_copies(kit, entries)
        whole = [copy for copy, each in zip(copies, done, strict=True) if each.whole]
        again = () if keep_labs else _clone(places, kit, whole, view.emit)
    _show(done, again, output)
    failed = [each for each in done if each.fault and (keep_labs or not each.whole)]
    if failed or any(each.fault for each in again):
        count = len(failed) + sum(bool(each.fault) for each in again)
        raise PartlyDone(
            f"{count} of {len(done)} copies are as they were, or not whole",
            hint="what each lacks stands in the table; the same command goes on with them",
        )


def _choose(places: Places, kit: Kit, targets: Sequence[str], *, keep_labs: bool) -> list[Plugged]:
    from pathlib import Path

    from pocketcloud.kit.attached import attached_kits
    from pocketcloud.kit.plugged import kit_on, plugged_kits, the_one
    from pocketcloud.system import run

    attached = attached_kits(places)
    in_use = {device for one in attached for device in one.devices}
    plugged = [one for one in plugged_kits(run) if one.device not in in_use]
    known = _known_ids(kit)
    if targets:
        copies = [kit_on(Path(name), run) if "/" in name else the_one(plugged, attached, name) for name in targets]
    else:
        copies = [one for one in plugged if one.id in known]
    if not copies:
        raise UsageError(f"no copy of kit {kit.name} is plugged in that is not attached", hint="pocketcloud kit list shows them")
    for copy in copies:
        if copy.device in in_use:
            raise Refused(f"kit {copy.name} on {copy.device} is attached", hint=f"pocketcloud kit detach {copy.name}")
    if len({copy.device for copy in copies}) < len(copies):
        raise UsageError("a copy is named twice", hint="name each once")
    stays = "its labs stay"
    if not keep_labs:
        stays = "its labs become the master's, and what was done in them goes; if it is too old for that, it is copied anew"
    for copy in copies:
        click.echo(f"  {copy.name} on {copy.device}: {stays}", err=True)
    return copies


def _known_ids(kit: Kit) -> set[str]:
    from pocketcloud.copies.ledger import read_ledger

    return {entry.id for entry in read_ledger(kit).copies}


def _entry(copy: Plugged, done: Synced) -> CopyEntry:
    """What the kit's list of copies has of one that is up to date now."""
    from pocketcloud.copies.ledger import CopyEntry
    from pocketcloud.host import kits as host
    from pocketcloud.host.disks import read_block_devices
    from pocketcloud.kit.attached import checked_name
    from pocketcloud.system import run

    devices = read_block_devices(run=run)
    carrier = devices.get(host.kernel_name(copy.device))
    name = checked_name(copy.name)
    if carrier is None:
        return CopyEntry(name, done.id, "", now(), "", done.generation)
    disk = devices.disk_of(carrier)
    return CopyEntry(name, done.id, disk.serial, now(), "", done.generation, port=disk.port, size=disk.size)


def _clone(places: Places, kit: Kit, copies: Sequence[Plugged], emit: Callable[[Event], None]) -> Sequence[Copied]:
    """Copy whole what cannot be brought up to date by what differs; it is our own copy, and was asked about."""
    from pocketcloud.copies.clone import Wanted, clone, entry_of
    from pocketcloud.copies.ledger import add_copies
    from pocketcloud.kit import erase
    from pocketcloud.kit.attached import checked_name
    from pocketcloud.kit.disk import choose
    from pocketcloud.kit.target import opened
    from pocketcloud.system import run

    done: list[Copied] = []
    for copy in copies:
        # One after the other, so that no more than one is nothing if this is cut off.
        with opened(str(copy.device), places, run) as target:
            erasure = erase.plan_erasure(target, places, run)
            if (erasure.kit_id, erasure.target.uuid) != (copy.id, copy.group.uuid):
                raise Refused(
                    f"{copy.device} is not kit {copy.name} any more", hint="see what is plugged in: pocketcloud kit list"
                )
            erase.erase(erasure, run, discard=False)
        wanted = [Wanted(choose(places, erasure.whole.path, run), checked_name(copy.name))]
        done += clone(kit, wanted, places, run, now=now(), stop=threading.Event(), tell=emit)
    add_copies(kit, [entry_of(each, now()) for each in done if not each.fault])
    return done


class _Shown:
    """A line for each copy, from its begin to its end."""

    def __init__(self, copies: Sequence[Plugged], emit: Callable[[Event], None]) -> None:
        from pocketcloud.events import StepStarted

        self._emit = emit
        self._titles = {copy.name: f"sync {copy.name} on {copy.device}" for copy in copies}
        for name, title in self._titles.items():
            emit(StepStarted(name, title, ""))

    def end(self, done: Sequence[Synced]) -> None:
        """Tell what became of each."""
        from pocketcloud.events import StepDone, StepFailed

        for each in done:
            title = self._titles[each.kit]
            self._emit(
                StepFailed(each.kit, title, "", each.seconds, each.fault)
                if each.fault
                else StepDone(each.kit, title, "", each.seconds)
            )


def _show(done: Sequence[Synced], again: Sequence[Copied], output: str) -> None:
    from pocketcloud.model.sizes import size_text

    if output == "json":
        print_json({"copies": list(done), "cloned": list(again)})
        return
    cloned = {str(each.kit): each for each in again}
    rows = []
    for each in done:
        state = each.fault or "in sync"
        if each.whole:
            state = f"{each.fault}: " + (
                (cloned[each.kit].fault or "copied whole") if each.kit in cloned else "has to be copied whole"
            )
        rows.append((each.kit, str(each.device), size_text(each.sent), size_text(each.known), f"{each.seconds:.0f} s", state))
    print_table(("KIT", "DISK", "SENT", "HAD", "TOOK", "STATE"), rows)
