"""`pocketcloud base refresh`, `rollback` and `prune`: newer ones, the way back, and what is kept for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import click

from pocketcloud.cli.installers import installer_options
from pocketcloud.cli.options import (
    arch_option,
    bases_option,
    instance_name,
    is_offline,
    kit_option,
    offline_option,
    open_bench,
    open_kit,
    progress_options,
    require_root,
    templates_option,
    wanted_arch,
    with_imported,
    yes_option,
)
from pocketcloud.cli.view import ask, fit, open_view
from pocketcloud.errors import NotFound, PartlyDone, PocketcloudError, UsageError

if TYPE_CHECKING:
    from pocketcloud.bases.builder import Site
    from pocketcloud.bases.needs import Ground
    from pocketcloud.cli.view import View
    from pocketcloud.model.base import Arch, Base, Definition
    from pocketcloud.model.kit import Kit


@contextmanager
def holding(
    kit: Kit, names: Sequence[str], command: str, view: View | None = None, *, media: bool = False, cache: bool = False
) -> Iterator[None]:
    """Hold bases for a command, those that others stand on first, so that two commands never wait for each other; with `media`
    and `cache` also what was fetched for bases, and what the kit's cache holds, against their removal."""
    from pocketcloud.events import Note
    from pocketcloud.kit.attached import Places
    from pocketcloud.locks import held, whole_kit

    def say(holder: str) -> None:
        text = f"waiting for {holder} to end"
        if view is not None:
            view.emit(Note(text, warn=True))
        else:
            click.echo(text, err=True)

    folder = Places.from_environment().locks
    with ExitStack() as locks:
        locks.enter_context(held(folder, whole_kit(kit.id), command, wait=True, on_wait=say, shared=True))
        for name in names:
            locks.enter_context(held(folder, f"{kit.id}.base.{name}", command, wait=True, on_wait=say))
        for name in [_media_lock(kit)] * media + [cache_lock(kit)] * cache:
            locks.enter_context(held(folder, name, command, wait=True, on_wait=say, shared=True))
        yield


def cache_lock(kit: Kit) -> str:
    """The name of the lock on what the kit's cache holds."""
    return f"{kit.id}.cache.kept"


def _media_lock(kit: Kit) -> str:
    return f"{kit.id}.media"


@click.command()
@click.argument("name", required=False)
@click.option("--all", "all_bases", is_flag=True, help="Refresh every base of the kit that has a definition.")
@arch_option
@click.option("--mirror", metavar="URL", help="Where packages come from; left out: this host's mirror, else the definition's.")
@offline_option
@click.option("--keep-failed", is_flag=True, help="Keep a new base that did not prove itself, to look at it.")
@installer_options
@templates_option
@bases_option
@kit_option
@progress_options
def refresh(
    name: str | None,
    arch: str | None,
    mirror: str | None,
    offline: bool | None,
    kit_name: str | None,
    progress: str,
    verbose: int,
    *,
    all_bases: bool,
    keep_failed: bool,
    here: Callable[[], Ground],
) -> None:
    """Build the base NAME anew with the newest packages, prove it in a machine, and only then make it current.

    The one before is kept for `base rollback`. Labs stay on what they were made from until `lab reset LAB --onto-new-base`.
    """
    from pocketcloud.bases.builder import Site
    from pocketcloud.cache.supply import KitSupply
    from pocketcloud.storage import open_storage

    if (name is None) is not all_bases:
        raise UsageError("which base?", hint="name one, or say --all; pocketcloud base list shows them")
    require_root("keep a base where QEMU can read it")
    if name is not None:
        with_imported(kit_name)
    if offline and mirror:
        raise UsageError("--offline uses the kit's cache, and --mirror something else", hint="leave one of them out")
    apart = is_offline(False if mirror and offline is None else offline)
    kit = open_kit(kit_name, make=name is not None)
    supply = KitSupply(kit) if apart else None
    todo = _all_of(kit, arch) if name is None else [_one(name, arch)]
    view = open_view(progress, verbose)
    failed: list[PocketcloudError] = []
    try:
        for definition, which in todo:
            try:
                site = Site(kit, open_storage(kit), mirror, supply, here=here())
                _refresh(site, definition, which, view, keep_failed=keep_failed)
            except PocketcloudError as error:
                if not all_bases:
                    raise
                # One that fails keeps nobody from the others.
                failed.append(error)
                click.echo(f"{definition.base} ({which}): {fit(error.message)}", err=True)
    finally:
        view.close()
    if failed:
        raise PartlyDone(f"{len(failed)} of {len(todo)} bases were not refreshed, see above", hint=failed[0].hint)


def _one(name: str, arch: str | None) -> tuple[Definition, Arch]:
    from pocketcloud.bases import definitions
    from pocketcloud.model.base import Arch

    return definitions.find(name), Arch(wanted_arch(arch))


def _all_of(kit: Kit, arch: str | None) -> list[tuple[Definition, Arch]]:
    """Those that the kit has and that can be made, what others are layers on first."""
    from pocketcloud.bases import definitions, records

    built = [base for base in records.built(kit) if arch in (None, base.arch)]
    known = {base.name: found for base in built if (found := definitions.find_or_none(base.name)) is not None}
    for base in built:
        if base.name not in known:
            click.echo(f"{base.name} ({base.arch}) has no definition and is left as it is.", err=True)
    order = definitions.parents_first(known.values())
    return [(definition, base.arch) for definition in order for base in built if base.name == definition.base]


def _refresh(site: Site, definition: Definition, arch: Arch, view: View, *, keep_failed: bool) -> None:
    from pocketcloud.bases import definitions, records
    from pocketcloud.bases.refresh import refresh as renew
    from pocketcloud.events import StepProgress
    from pocketcloud.lab.proof import prove
    from pocketcloud.model.sizes import duration_text

    kit = site.kit
    bench = open_bench(kit, view, profile_name=None)
    before = records.find(kit, definition.base, arch)
    started = time.monotonic()
    name = definition.base
    with holding(
        kit,
        [d.base for d in definitions.lineage(definition)],
        f"pocketcloud base refresh {name}",
        view,
        media=True,
        cache=site.supply is not None,
    ):
        now = records.find(kit, name, arch)
        if now and now.proven and (before is None or now.volume != before.volume):
            click.echo(f"Base {name} ({arch}) has just been refreshed by another command.")
            return
        done = renew(
            site,
            definition,
            arch,
            lambda base, wanted, tell: prove(bench, base, wanted, tell),
            lambda text, part: view.emit(StepProgress(f"base {name}", part, text)),
            keep_failed=keep_failed,
        )
    took = duration_text(time.monotonic() - started)
    click.echo(f"Base {name} ({arch}) is refreshed in {took}: digest {done.base.digest[:12]}, proven ({done.seen}).")
    labs, layers = records.users_of(bench.storage, done.before.volumes if done.before else ())
    for lab in labs:
        click.echo(f"Lab {lab} stands on an older one: pocketcloud lab reset {lab} --onto-new-base makes it anew.")
    for layer in layers:
        click.echo(f"Base {layer} is a layer on an older one: pocketcloud base refresh {layer} builds it anew.")


@click.command()
@click.argument("name")
@arch_option
@kit_option
@yes_option
def rollback(name: str, arch: str | None, kit_name: str | None, *, yes: bool) -> None:
    """Make the base NAME of before the last refresh current again; once more brings the newer one back."""
    from pocketcloud.bases import refresh as life
    from pocketcloud.model.base import Arch
    from pocketcloud.storage import open_storage

    require_root("change the kit")
    kit, wanted = open_kit(kit_name), Arch(wanted_arch(arch))
    base = _known(kit, name, wanted)
    if base.earlier:
        ask(f"Make {name} ({wanted}) built {base.earlier[0].built} current in place of that built {base.built}?", yes=yes)
    with holding(kit, [name], f"pocketcloud base rollback {name}"):
        now = life.rollback(kit, open_storage(kit), base.name, wanted)
    click.echo(f"Base {name} ({wanted}) is the one built {now.built} again; labs stay on what they were made from.")


@click.command()
@click.argument("name", required=False)
@click.option("--all", "all_bases", is_flag=True, help="Every base of the kit.")
@click.option("--media", is_flag=True, help="What was fetched for all bases: images, discs, installers.")
@arch_option
@kit_option
@yes_option
def prune(name: str | None, arch: str | None, kit_name: str | None, *, all_bases: bool, media: bool, yes: bool) -> None:
    """Remove what is kept beside the base NAME and nothing stands on: earlier ones, one that failed, its package stage."""
    from pocketcloud.bases import records
    from pocketcloud.bases import refresh as life
    from pocketcloud.model.base import Arch
    from pocketcloud.storage import open_storage

    if (name is not None and all_bases) or not (name or all_bases or media):
        raise UsageError("which base?", hint="name one, or say --all; pocketcloud base list shows them")
    if name is not None and media:
        raise UsageError("what was fetched is for all bases", hint="pocketcloud base prune --media, without a name")
    require_root("change the kit")
    kit = open_kit(kit_name)
    if name is None:
        bases = tuple(base for base in records.built(kit) if arch in (None, base.arch)) if all_bases else ()
    else:
        bases = (_known(kit, name, Arch(wanted_arch(arch))),)
    kept = [f"{base.name} ({base.arch}) built {former.built[:10]}" for base in bases for former in base.earlier]
    if kept:
        ask(f"Remove {', '.join(kept)}? There is no way back to an older base then.", yes=yes)
    gone: list[str] = []
    for base in bases:
        with holding(kit, [base.name], f"pocketcloud base prune {base.name}"):
            gone += life.prune(kit, open_storage(kit), _known(kit, base.name, base.arch))
    if media:
        gone += _forget_media(kit, yes=yes)
    click.echo("\n".join(f"Removed {what}." for what in gone) or "Nothing is kept beside what is current.")


def _forget_media(kit: Kit, *, yes: bool) -> list[str]:
    """Remove what was fetched; the names and sizes of what went."""
    from pocketcloud.downloads.kept import forget, kept, occupied
    from pocketcloud.kit.attached import Places
    from pocketcloud.locks import held
    from pocketcloud.model.sizes import size_text

    folder = kit.path / "media"

    def say(holder: str) -> None:
        click.echo(f"waiting for {holder} to end", err=True)

    if files := kept(folder):
        size = size_text(occupied(files))
        what = "1 file that was" if len(files) == 1 else f"{len(files)} files that were"
        ask(f"Remove {what} fetched, {size}? Bases cannot be built from them offline then.", yes=yes)
    with held(Places.from_environment().locks, _media_lock(kit), "pocketcloud base prune --media", wait=True, on_wait=say):
        files = tuple(path for path in kept(folder) if path in files)
        told = [f"{path.name} ({size_text(occupied((path,)))})" for path in files]
        forget(folder, files)
    return told


def _known(kit: Kit, name: str, arch: Arch) -> Base:
    from pocketcloud.bases import records

    base = records.find(kit, instance_name(name), arch)
    if base is None:
        raise NotFound(f"kit {kit.name} has no base {name} for {arch}", hint="pocketcloud base list shows what there is")
    return base
