"""`pocketcloud kit export` and `pocketcloud kit import`: a kit as one stream, in a file or through a pipe."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from pocketcloud.cli.holding import hold_labs, one_at_a_time, unhurried
from pocketcloud.cli.options import now, open_kit, progress_options, require_root, yes_option
from pocketcloud.cli.view import open_view
from pocketcloud.errors import NotFound, Refused, UsageError

if TYPE_CHECKING:
    from pocketcloud.cli.view import View
    from pocketcloud.copies.clone import Wanted
    from pocketcloud.copies.incoming import Incoming
    from pocketcloud.kit.attached import Places
    from pocketcloud.model.names import Name

_PIPE = "-"
_TOLD_EVERY = 0.5


@click.command()
@click.argument("source", metavar="KIT")
@click.argument("file", metavar="FILE|-")
@progress_options
def export(source: str, file: str, progress: str, verbose: int) -> None:
    """Write the attached kit KIT as one stream to FILE|-, a new file or stdout, for `kit import` on this or another computer.

    Only what is in use travels, packed. The labs of KIT are down meanwhile.
    """
    from pocketcloud.copies.exporting import export as export_kit
    from pocketcloud.kit.attached import Places
    from pocketcloud.model.sizes import size_text
    from pocketcloud.system import run

    if file == _PIPE and sys.stdout.isatty():
        raise UsageError("a stream is nothing for a terminal", hint=f"pocketcloud kit export {source} - | ssh HOST ...")
    require_root("read a kit's disk")
    places = Places.from_environment()
    kit = open_kit(source)
    if not kit.vg:
        raise Refused(f"kit {kit.name} is a folder, which travels by itself", hint=f"rsync -a --sparse {kit.path}/ ELSEWHERE/")
    with ExitStack() as held:
        held.enter_context(one_at_a_time(places, shared=True))
        hold_labs(places, kit, held)
        handle = held.enter_context(_opened(file))
        unhurried(held, f"exporting kit {kit.name}", verbose)
        view = open_view(progress, verbose)
        try:
            tell = _teller(view, kit.name)
            written = export_kit(kit, handle, run, now=now(), stop=threading.Event(), tell=tell)
        finally:
            view.close()
    click.echo(f"Kit {kit.name} is exported: {size_text(written)}.", err=True)


@contextmanager
def _opened(file: str) -> Iterator[int]:
    """What the stream is written to; a file has its name only when it is whole."""
    from pocketcloud.files import sync_folder

    if file == _PIPE:
        yield sys.stdout.fileno()
        return
    path = Path(file)
    if path.exists() or path.is_symlink():
        raise Refused(f"{path} is there already", hint="choose another name, or remove it")
    aside = path.with_name(f".{path.name}.{os.getpid()}.aside")
    try:
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", hint="name a file in a folder that is there") from error
    try:
        try:
            yield handle
            os.fsync(handle)
        finally:
            os.close(handle)
        try:
            os.link(aside, path)  # which replaces nothing
        except FileExistsError:
            raise Refused(f"somebody has made {path} meanwhile", hint="choose another name") from None
        except OSError:
            aside.rename(path)  # a file system without links
        sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def _teller(view: View, name: str) -> Callable[[int, int], None]:
    from pocketcloud.events import StepProgress
    from pocketcloud.model.sizes import progress_text

    begun, last = time.monotonic(), 0.0

    def tell(done: int, total: int) -> None:
        nonlocal last
        at = time.monotonic()
        if at - last < _TOLD_EVERY and done < total:
            return
        last = at
        text = f"read {progress_text(done, total, at - begun)}"
        view.emit(StepProgress(name, done / max(total, 1), text, name))

    return tell


@click.command("import")
@click.argument("file", metavar="FILE|-")
@click.argument("target", metavar="DISK", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="The kit's name; left out: that of the kit that was exported.")
@click.option("--erase-serial", metavar="SERIAL", help="Erase what is on DISK: its serial, in place of typing it.")
@progress_options
@yes_option
def import_kit(
    file: str, target: Path, name: str | None, erase_serial: str | None, progress: str, verbose: int, yes: bool
) -> None:
    """Make DISK the kit that was exported to FILE|-, a file or what comes on stdin. All that was on DISK is lost.

    It becomes a kit only when the stream was whole and the disk was read again; before it is none, and the same command begins
    anew. It has an identity of its own: the kit that was exported may be plugged in beside it.
    """
    from pocketcloud.copies.clone import Wanted
    from pocketcloud.copies.importing import import_kit as import_stream
    from pocketcloud.copies.incoming import Incoming
    from pocketcloud.kit.attached import Places
    from pocketcloud.kit.device import check_host
    from pocketcloud.kit.disk import choose
    from pocketcloud.system import run

    if file == _PIPE and sys.stdin.isatty():
        raise UsageError("a stream does not come from a terminal", hint="ssh HOST pocketcloud kit export KIT - | ...")
    require_root("write to disks")
    check_host(run)
    places = Places.from_environment()
    with ExitStack() as held:
        held.enter_context(one_at_a_time(places, shared=True))
        chosen = choose(places, target, run)
        incoming = Incoming(held.enter_context(_read(file)))
        wanted = Wanted(chosen, _name(places, incoming, name))
        _confirm(incoming, wanted, erase_serial, yes=yes)
        unhurried(held, f"importing kit {wanted.name}", verbose)
        view = open_view(progress, verbose)
        try:
            done = import_stream(incoming, wanted, places, run, now=now(), stop=threading.Event(), tell=view.emit)
        finally:
            view.close()
    if done.fault:
        raise Refused(
            f"{target} did not become a kit: {done.fault}", hint="the same command begins anew, there or on another disk"
        )
    click.echo(f"Kit {done.kit} is on {target}, verified.")
    click.echo(f"next:  pocketcloud kit attach {target}", err=True)


@contextmanager
def _read(file: str) -> Iterator[BinaryIO]:
    if file == _PIPE:
        yield sys.stdin.buffer
        return
    try:
        opened = Path(file).open("rb")  # noqa: SIM115 - what is raised while it is read is none of its opening
    except OSError as error:
        raise NotFound(f"{file} cannot be read: {error.strerror}", hint="pocketcloud kit export makes one") from error
    with opened:
        yield opened


def _name(places: Places, incoming: Incoming, given: str | None) -> Name:
    from pocketcloud.kit.attached import attached_kits, checked_name
    from pocketcloud.kit.plugged import plugged_kits
    from pocketcloud.system import run

    name = incoming.manifest.name if given is None else checked_name(given)
    if name in {str(one.name) for one in attached_kits(places)} | {one.name for one in plugged_kits(run)}:
        raise Refused(f"there is a kit named {name} plugged in", hint="choose another name: --name NAME")
    return name


def _confirm(incoming: Incoming, wanted: Wanted, erase_serial: str | None, *, yes: bool) -> None:
    from pocketcloud.kit.disk import confirm_all
    from pocketcloud.kit.interlocks import contents, described
    from pocketcloud.model.sizes import size_text

    devices, target = wanted.chosen.devices, wanted.chosen.target
    what = f"kit {incoming.manifest.name}, exported with {size_text(incoming.header.data)} in use"
    click.echo(f"{what}, becomes kit {wanted.name} on {described(devices, target)}", err=True)
    for line in contents(devices, target) or ("nothing",):
        click.echo(f"  now on it: {line}", err=True)
    with _terminal() as asked:
        serials = [] if erase_serial is None else [erase_serial]
        confirm_all([wanted.chosen], serials, asked, lambda: _ask(f"Import it to {target.path}?", asked, yes=yes))


def _ask(question: str, asked: Callable[[str], str] | None, *, yes: bool) -> None:
    if yes:
        return
    if asked is None:
        raise UsageError(f"{question} Nobody is there to ask.", hint="add -y if that is meant")
    if asked(f"{question} [y/N]").strip().casefold() not in ("y", "yes"):
        raise Refused("nothing was done")


@contextmanager
def _terminal() -> Iterator[Callable[[str], str] | None]:
    """Who can be asked: the terminal, as the stream may come on stdin; None where there is none."""
    with ExitStack() as held:
        terminal = None
        with suppress(OSError):
            terminal = held.enter_context(Path("/dev/tty").open("rb+", buffering=0))
        if terminal is None:
            yield None
            return

        def asked(question: str) -> str:
            terminal.write(f"{question}: ".encode())
            return terminal.readline(1000).decode(errors="replace").strip()

        yield asked
