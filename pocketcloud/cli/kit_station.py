"""`pocketcloud kit station`."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pocketcloud.cli.holding import hold_labs, one_at_a_time, unhurried
from pocketcloud.cli.options import now, open_kit, progress_options, require_root, yes_option
from pocketcloud.cli.view import ask, open_view, print_table
from pocketcloud.errors import PartlyDone, Refused

if TYPE_CHECKING:
    from pocketcloud.copies.station import Tally
    from pocketcloud.model.disk import BlockDevice


@click.command()
@click.option("--master", metavar="KIT", required=True, help="The attached kit that all become copies of.")
@click.option(
    "--port", "ports", metavar="PORT", multiple=True, help="A port that is used, as 2-1.3 or by udev's ID_PATH; * is any."
)
@click.option("--count", metavar="N", type=click.IntRange(min=1), help="End after so many copies.")
@click.option(
    "--log", type=click.Path(path_type=Path, dir_okay=False), help="Add what happens to this file, a JSON object a line."
)
@progress_options
@yes_option
def station(
    master: str, ports: tuple[str, ...], count: int | None, log: Path | None, progress: str, verbose: int, yes: bool
) -> None:
    """Make a copy of a kit of each blank disk that is plugged in, until Ctrl-C: it is verified, switched off, and can be pulled.

    A copy that was interrupted is gone on with, one of an earlier state that nobody has used is brought to this one, one that is
    done is known. Disks with anything else on them are left alone; to erase those is for `kit clone`. The labs of KIT are down
    meanwhile.
    """
    from pocketcloud.copies.source import source_of
    from pocketcloud.copies.station import Orders, Station
    from pocketcloud.kit.attached import Places
    from pocketcloud.system import run

    require_root("write to disks")
    places = Places.from_environment()
    kit = open_kit(master)
    if not kit.vg:
        raise Refused(
            f"kit {kit.name} is a folder; a station copies kits on disks",
            hint=f"copy it to a disk first: pocketcloud kit clone {kit.name} DISK",
        )
    with ExitStack() as held:
        held.enter_context(one_at_a_time(places))
        hold_labs(places, kit, held)
        click.echo(
            f"each blank disk in {_ports_text(ports)} becomes a copy of kit {kit.name}; so do unfinished copies of it,", err=True
        )
        click.echo(
            "and copies of an earlier state of it that nobody has used. Disks with anything else are left alone.", err=True
        )
        ask("Begin?", yes=yes)
        unhurried(held, f"copying kit {kit.name}", verbose)
        record = held.enter_context(_recording(log))
        stop = threading.Event()
        source = held.enter_context(source_of(kit, run, now=now()))
        view = open_view(progress, verbose)
        orders = Orders(lambda device: _allowed(device, ports), now, view.emit, record, count=count or 0)
        station = Station(source, places, run, orders, stop)
        try:
            with _ending(stop):
                station.work()
        except BaseException:
            view.close()
            _print(station.tally)
            raise
        view.close()
    _show(station.tally)


def _ports_text(ports: Sequence[str]) -> str:
    return f"the port{'s' * (len(ports) > 1)} {', '.join(ports)}" if ports else "any USB port"


def _allowed(device: BlockDevice, ports: Sequence[str]) -> bool:
    """Whether a disk is plugged into one of the ports; without any, whether it hangs on USB."""
    if not ports:
        return device.usb is not None
    names = [device.port, device.usb.disk.name if device.usb else ""]
    return any(fnmatchcase(name, port) for name in names if name for port in ports)


@contextmanager
def _recording(path: Path | None) -> Iterator[Callable[[Mapping[str, object]], None]]:
    """Adds records to a log, each on the disk before the next; a copy that is done rings, too."""
    lock, broken = threading.Lock(), False
    if path is not None:
        try:
            file: Any = path.open("a")
        except OSError as error:
            raise Refused(f"{path} cannot be written: {error.strerror}", hint="name another file: --log FILE") from error
    else:
        file = None

    def record(what: Mapping[str, object]) -> None:
        nonlocal broken
        with lock:
            if what["event"] == "done" and sys.stderr.isatty():
                click.echo("\a", nl=False, err=True)
            if file is None or broken:
                return
            try:
                file.write(json.dumps(what) + "\n")
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                # The copies are what counts.
                broken = True
                click.echo(f"WARNING: {path} cannot be written: {error.strerror}; nothing more is recorded", err=True)

    try:
        yield record
    finally:
        if file is not None:
            with suppress(OSError):
                file.close()


@contextmanager
def _ending(stop: threading.Event) -> Iterator[None]:
    """The first Ctrl-C ends the work cleanly, the second as ever."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def end(number: int, _frame: object) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])
        # What is being written at this moment must not be written to again from here.
        os.write(2, b"no more disks; copies that are on their way are left unfinished, and are gone on with next time\n")

    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print(tally: Tally) -> None:
    rows = [
        (str(one.kit), one.serial or "-", one.port or "-", f"{one.seconds:.0f} s", one.fault or "verified") for one in tally.done
    ]
    rows += [(str(one.kit), one.serial or "-", one.port or "-", "-", one.fault) for one in tally.failed.values()]
    rows += [(name, "-", "-", "-", "unfinished") for name in tally.unfinished]
    print_table(("KIT", "SERIAL", "PORT", "TOOK", "STATE"), rows, empty="no copies were made")


def _show(tally: Tally) -> None:
    _print(tally)
    if tally.failed:
        raise PartlyDone(
            f"{len(tally.failed)} copies are not whole: {', '.join(tally.failed)}",
            hint="plug them in again while the station works, or try other disks",
        )
