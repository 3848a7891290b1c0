"""`pocketcloud cache ...`: what bases and labs need, kept in the kit."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from pocketcloud.cli.base_life import cache_lock
from pocketcloud.cli.options import (
    kit_option,
    now,
    open_kit,
    output_option,
    progress_options,
    require_root,
    with_imported,
    yes_option,
)
from pocketcloud.cli.view import ask, open_view, print_json, print_table
from pocketcloud.errors import NotFound, PartlyDone, UsageError

if TYPE_CHECKING:
    from pocketcloud.cache.process import Place
    from pocketcloud.cache.store import Store
    from pocketcloud.model.base import Arch
    from pocketcloud.model.cache import Collection, Wish
    from pocketcloud.model.kit import Kit
    from pocketcloud.model.lab import Lab
    from pocketcloud.model.names import Name

_ARCH = click.Choice(["x86_64", "aarch64"])
_MANY = 10


@click.group("cache")
def command() -> None:
    """Keep what bases and labs need in the kit, and serve it where there is no network.

    `add` says what to keep, `sync` fetches it, `--offline` of other commands uses nothing else.
    """


@contextmanager
def _held(kit: Kit, what: str) -> Iterator[None]:
    """Hold the kit's cache against other commands that change it."""
    from pocketcloud.kit.attached import Places
    from pocketcloud.locks import held

    def say(holder: str) -> None:
        click.echo(f"waiting for {holder} to end", err=True)

    with held(Places.from_environment().locks, cache_lock(kit), f"pocketcloud cache {what}", wait=True, on_wait=say):
        yield


def _store(kit: Kit) -> Store:
    from pocketcloud.cache.store import Store, folder_of

    return Store(folder_of(kit))


def _arch(text: str | None) -> Arch:
    from pocketcloud.model.base import Arch

    wanted = text or platform.machine()
    if wanted not in _ARCH.choices:
        raise UsageError(f"this host is a {wanted}; pocketcloud knows {', '.join(_ARCH.choices)}", hint="--arch names one")
    return Arch(wanted)


@command.command()
@click.argument("bases", nargs=-1)
@click.option(
    "--lab", "labs", multiple=True, metavar="LAB", help="For a lab: its bases, their packages, and what is named beside it."
)
@click.option(
    "--package", "packages", multiple=True, metavar="NAME", help="For machines of these bases: packages they may install."
)
@click.option("--url", metavar="URL", help="A file, pinned by --sha256.")
@click.option("--sha256", default="", metavar="HEX", help="The file's checksum.")
@click.option("--image", "images", multiple=True, metavar="REF", help="A container image, as docker.io/library/nginx:1.27.")
@click.option("--arch", type=_ARCH, help="The architecture; left out: this host's.")
@kit_option
def add(
    bases: tuple[str, ...],
    labs: tuple[str, ...],
    packages: tuple[str, ...],
    url: str | None,
    sha256: str,
    images: tuple[str, ...],
    arch: str | None,
    kit_name: str | None,
) -> None:
    """Say what to keep; `cache sync` fetches it.

    BASES bring all that building them takes; a LAB brings its bases, and the packages that its machines name. What they install
    beside that is named with --package.
    """
    from pocketcloud.cache.addresses import checked
    from pocketcloud.cache.labs import wishes_of
    from pocketcloud.cache.syncing import checked_reference, joined
    from pocketcloud.model.base import Download
    from pocketcloud.model.cache import Kind, Wish
    from pocketcloud.model.names import Name

    if not (bases or labs or url or images):
        raise UsageError("what is to be kept?", hint="name a base, or give --lab, --url or --image")
    wanted = _arch(arch)
    with_imported(kit_name)
    named = [_lab_of(lab, kit_name) for lab in labs]
    owners = tuple(Name(name) for name, _ in named)
    alone = not labs
    new = [Wish(Kind.BASE, base, wanted, _checked_packages(packages), "", owners, alone) for base in _known_bases(bases, wanted)]
    for name, lab in named:
        its = wishes_of(lab, Name(name), wanted, _checked_packages(packages)) if lab else ()
        kept = {wish.name for wish in its}
        if lab and (left := ", ".join(dict.fromkeys(m.base for m in lab.machines.values() if m.base not in kept))):
            click.echo(
                f"Lab {name}: nothing of {left} can be kept, without a definition; what `base import` brings is in the kit."
            )
        new += its
    if packages and not new:
        raise UsageError("--package goes with a base", hint="pocketcloud cache add BASE --package NAME")
    if url:
        try:
            Download(url=url, sha256=sha256)
        except ValueError as error:
            raise UsageError(str(error), hint="sha256sum prints it") from None
        if not sha256:
            raise UsageError("nothing says whether what comes from there is the right file", hint="give its --sha256")
        new.append(Wish(Kind.FILE, checked(url), wanted, (), sha256, owners, alone))
    new += [Wish(Kind.IMAGE, checked_reference(image), wanted, (), "", owners, alone) for image in images]
    require_root("change the kit")
    kit = open_kit(kit_name, make=True)
    store = _store(kit)
    with _held(kit, "add"):
        wishes = store.wishes()
        for wish in new:
            wishes = joined(wishes, wish)
        store.wish(*wishes)
    for wish in new:
        added = f" with {', '.join(wish.packages)}" if wish.packages else ""
        click.echo(f"Kit {kit.name} is to keep {wish.title}{added}. pocketcloud cache sync fetches what is missing.")


def _checked_packages(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names as distributions allow them: nothing that apt would take for an option, a pattern or a version."""
    from pocketcloud.model.names import is_package

    for name in names:
        if not is_package(name):
            raise UsageError(f"{name[:60]!r} is not a package's name", hint="one name for each --package")
    return names


def _known_bases(names: tuple[str, ...], arch: Arch) -> tuple[str, ...]:
    from pocketcloud.bases import definitions
    from pocketcloud.cache.supply import bottom_of, not_kept

    for name in names:
        definition, _ = bottom_of(definitions.find(name))
        if arch not in definition.architectures:
            raise UsageError(f"base {name} is not made for {arch}", hint=f"--arch takes: {', '.join(definition.architectures)}")
        if reason := not_kept(definition):
            raise UsageError(
                f"base {name}: {reason}", hint="build it while there is a network: the kit keeps bases that are built"
            )
    return names


def _lab_of(text: str, kit_name: str | None) -> tuple[str, Lab | None]:
    """The name of a lab, and what it declares: by its file, as it was raised or imported, or as we ship it."""
    from pocketcloud.cli.options import wanted_lab
    from pocketcloud.kit.attached import Places
    from pocketcloud.records import InstanceFiles, read_record

    found: Kit | None
    try:
        found = open_kit(kit_name)
    except (NotFound, UsageError):
        found = None
    lab, name = wanted_lab(text, found.path if found else Places.from_environment().default)
    if lab is None and found is not None:
        record = read_record(InstanceFiles(found, name))
        lab = record.lab if record else None
    return name, lab


@command.command()
@click.argument("names", nargs=-1)
@click.option(
    "--mirror", metavar="URL", help="Where Debian's packages come from; left out: this host's mirror, else the definition's."
)
@click.option("--delete", is_flag=True, help="Remove what newer files have replaced; without it `cache prune` does.")
@kit_option
@progress_options
def sync(names: tuple[str, ...], mirror: str | None, kit_name: str | None, progress: str, verbose: int, *, delete: bool) -> None:
    """Fetch what is to be kept, or only NAMES of it, and check all that is there.

    Interrupted, it goes on when it is run again; what was there before is served until all of the new is.
    """
    from pocketcloud.cache.labs import renewed
    from pocketcloud.cache.syncing import Means, sweep, sync_all
    from pocketcloud.events import StepProgress
    from pocketcloud.model.sizes import size_text

    require_root("keep what it fetches in the kit")
    kit = open_kit(kit_name)
    store = _store(kit)
    with _held(kit, "sync"):
        known = store.wishes()
        wanted = renewed(known, _labs_of(kit, known), _arch(None)) if any(wish.labs for wish in known) else known
        if wanted != known:
            store.wish(*wanted)
        wishes = _named(wanted, names)
        if not wishes:
            raise NotFound(f"nothing is to be kept in kit {kit.name}", hint="pocketcloud cache add BASE says what is")
        view = open_view(progress, verbose)
        done: list[tuple[Wish, Collection]] = []
        try:
            means = Means(store, kit.path / "media", mirror, now)
            for fulfilled in sync_all(means, wishes, lambda wish, text, part: view.emit(StepProgress(wish.title, part, text))):
                done.append(fulfilled)  # noqa: PERF402 - what is done is told, also where a later one fails
        finally:
            view.close()
            for wish, collection in done:
                click.echo(f"{wish.title}: {len(collection.files)} files, {size_text(collection.size)}, complete.")
        if delete and (freed := sweep(store)):
            click.echo(f"Removed what newer files replaced: {size_text(freed)}.")


def _labs_of(kit: Kit, wishes: tuple[Wish, ...]) -> dict[Name, Lab]:
    """The labs that the wishes are for, as they are now: raised, or else imported or shipped. Others are known by their wishes
    alone."""
    from pocketcloud.documents import load_lab
    from pocketcloud.errors import Refused
    from pocketcloud.records import InstanceFiles, read_record
    from pocketcloud.resources import shipped
    from pocketcloud.sharing.kept import lab_file

    found = {}
    for name in dict.fromkeys(lab for wish in wishes for lab in wish.labs):
        try:
            record = read_record(InstanceFiles(kit, name))
        except Refused:  # a damaged record is told by the commands on that lab
            record = None
        if record is not None:
            found[name] = record.lab
        elif path := next((p for p in (lab_file(kit.path, name), shipped("labs", f"{name}.yaml")) if p.exists()), None):
            found[name] = load_lab(path)
    return found


def _named(wishes: tuple[Wish, ...], names: tuple[str, ...]) -> tuple[Wish, ...]:
    unknown = [name for name in names if name not in {wish.name for wish in wishes}]
    if unknown:
        raise NotFound(f"the cache is not to keep {', '.join(unknown)}", hint="pocketcloud cache list shows what it is to keep")
    return tuple(wish for wish in wishes if not names or wish.name in names)


@command.command("list")
@click.option("--verify", is_flag=True, help="Read all of it, and tell what is damaged.")
@kit_option
@output_option
def list_cache(kit_name: str | None, output: str, *, verify: bool) -> None:
    """Show what the cache keeps: sizes, ages, what needs it, and whether it is complete."""
    from pocketcloud.cache.store import id_of
    from pocketcloud.cache.supply import state_of
    from pocketcloud.model.sizes import size_text

    kit = open_kit(kit_name)
    store = _store(kit)
    rows, found, damaged = [], [], list[str]()
    for wish in store.wishes():
        collection = store.collection(id_of(wish))
        bad = store.damaged(collection) if verify and collection else ()
        damaged += bad
        state = f"{len(bad)} files damaged" if bad else state_of(kit, wish) or "complete"
        size = size_text(collection.size) if collection else "-"
        synced = collection.synced if collection else "-"
        needed = ", ".join([*(["asked for"] if wish.asked else []), *(f"lab {lab}" for lab in wish.labs)])
        rows.append((wish.title, len(collection.files) if collection else 0, size, synced, needed, state))
        found.append(
            {"wish": wish, "size": collection.size if collection else 0, "synced": synced, "state": state, "damaged": bad}
        )
    if output == "json":
        print_json(found)
    else:
        columns = ("WHAT", "FILES", "SIZE", "SYNCED", "NEEDED BY", "STATE")
        print_table(columns, rows, empty="The cache is empty. pocketcloud cache add BASE says what to keep.")
    if damaged:
        more = [f"and {len(damaged) - _MANY} more"] if len(damaged) > _MANY else []
        raise PartlyDone("\n".join(["damaged or missing in the cache:", *damaged[:_MANY], *more]), hint="pocketcloud cache sync")


@command.command()
@click.argument("names", nargs=-1)
@kit_option
@yes_option
def prune(names: tuple[str, ...], kit_name: str | None, *, yes: bool) -> None:
    """Remove what nothing needs any more; NAMES are forgotten first, whatever needs them.

    What was kept for labs goes when none of them is in the kit, imported ones among them, or shipped.
    """
    from dataclasses import replace

    from pocketcloud.cache.syncing import prune as remove
    from pocketcloud.model.sizes import size_text
    from pocketcloud.records import instances
    from pocketcloud.resources import shipped
    from pocketcloud.sharing.kept import imported_labs

    require_root("change the kit")
    kit = open_kit(kit_name)
    store = _store(kit)
    with _held(kit, "prune"):
        wishes = store.wishes()
        forgotten = {wish.key for wish in _named(wishes, names)} if names else set()
        there = {*instances(kit), *imported_labs(kit.path), *(path.stem for path in shipped("labs").glob("*.yaml"))}
        living = [
            replace(wish, labs=tuple(lab for lab in wish.labs if lab in there)) for wish in wishes if wish.key not in forgotten
        ]
        kept = tuple(wish for wish in living if wish.asked or wish.labs)
        gone = [wish.title for wish in wishes if wish.key not in {one.key for one in kept}]
        if gone:
            ask(f"Forget {', '.join(gone)} and remove it from kit {kit.name}? It can be fetched again.", yes=yes)
        freed = remove(store, kept)
    click.echo(f"Forgot {', '.join(gone)}; " * bool(gone) + f"{size_text(freed)} are free again in kit {kit.name}.")


@command.command()
@click.option(
    "--bind", "addresses", multiple=True, metavar="ADDRESS", help="Where; left out: on the bridges of the kit's networks."
)
@click.option("--port", type=click.IntRange(1, 65535), help="The port; left out: 3143.")
@click.option("--place", "places", multiple=True, hidden=True, help="An address and its bridge, ADDRESS%BRIDGE: for `lab up`.")
@click.option("--record", type=click.Path(), hidden=True, help="The file that tells of the server: for `lab up`.")
@kit_option
def serve(
    addresses: tuple[str, ...], port: int | None, places: tuple[str, ...], record: str | None, kit_name: str | None
) -> None:  # fmt: skip
    """Serve the kit's cache by plain HTTP, read-only, until its last bridge is gone or Ctrl-C.

    `lab up --offline` and `base build --offline` do this by themselves. Only loopback addresses and those of lab networks can be
    chosen, and only their networks are answered.
    """
    from pathlib import Path

    from pocketcloud.cache.process import Place
    from pocketcloud.cache.process import serve as serve_cache
    from pocketcloud.model.cache import PORT

    kit = open_kit(kit_name)
    wanted = tuple(Place.parse(place) for place in places) or _places(kit, addresses)
    said = Path(record) if record else None
    serve_cache(
        kit, wanted, port or PORT, record=said, say=_log, begun=lambda url: _log(f"serving the cache of kit {kit.name} on {url}")
    )


def _log(line: str) -> None:
    click.echo(line, err=True)


def _places(kit: Kit, addresses: tuple[str, ...]) -> tuple[Place, ...]:
    """The addresses that may be served on, of those that are asked for; none asked for: all of the kit's networks."""
    from ipaddress import AddressValueError, IPv4Address, IPv4Network

    from pocketcloud.cache.process import Place
    from pocketcloud.errors import Refused
    from pocketcloud.hypervisor import open_hypervisor

    try:
        asked = [IPv4Address(address) for address in addresses]
    except AddressValueError as error:
        raise UsageError(f"--bind: {error}", hint="an IPv4 address, as 127.0.0.1") from None
    bridges: dict[IPv4Address, str] = {}
    if not asked or not all(address.is_loopback for address in asked):
        networks = [
            net for net in open_hypervisor().networks() if net.active and net.subnet and (asked or net.mark.kit_id == kit.id)
        ]
        bridges = {IPv4Network(net.subnet).network_address + 1: net.bridge for net in networks}
    for address in asked:
        if not address.is_loopback and address not in bridges:
            raise Refused(
                f"the cache is served to labs alone, and {address} is no lab network's",
                hint=f"--bind takes: {', '.join(map(str, bridges)) or 'nothing but 127.0.0.1, as no lab is up'}",
            )
    if not asked and not bridges:
        raise NotFound(f"kit {kit.name} has no network that is up", hint="pocketcloud lab up LAB, or --bind 127.0.0.1")
    return tuple(Place(str(address), bridges.get(address, "")) for address in asked or bridges)
