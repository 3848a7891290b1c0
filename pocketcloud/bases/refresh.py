"""Refresh, blue and green: a new base is made beside the old one, proves itself in a machine, and only then takes the name.

Who does the proving is handed in (`Prove`): it takes the machinery of labs, which is above this room. The base that was
current is kept for `rollback`, one generation of it, until the next refresh or `prune`; labs stay on what they were made from in
any case, because a volume that something stands on is never removed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from pocketcloud.bases import records, stages
from pocketcloud.bases.builder import Site, make, sweep
from pocketcloud.bases.progress import OnProgress
from pocketcloud.errors import NotFound, PartlyDone, PocketcloudError, Refused
from pocketcloud.files import write_whole
from pocketcloud.model.base import Arch, Base, Definition
from pocketcloud.model.kit import Kit
from pocketcloud.model.names import Name
from pocketcloud.storage import Storage

_BUILT = 0.6
"""How much of a refresh the build takes; the proof takes the rest."""


class NotProven(PartlyDone):
    """A machine made from the new base did not prove it; carries what its console said (`log`)."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


Prove = Callable[[Base, Definition, OnProgress], str]
"""Starts a machine from a base that no record names yet, and looks whether it is what its definition says; returns what was seen,
for people. Raises NotProven; whatever else it raises (no room, no libvirt) is no judgement of the base."""


@dataclass(frozen=True, slots=True)
class Refreshed:
    """The base that is current now; `before` is the one it replaced (None: there was none); `seen` what its proof saw."""

    base: Base
    before: Base | None
    seen: str


def refresh(
    site: Site,
    definition: Definition,
    arch: Arch,
    prove: Prove,
    on_progress: OnProgress,
    *,
    keep_failed: bool = False,
) -> Refreshed:
    """Build a new base with the newest packages, prove it, and make it current. The caller holds the lock of this base.

    Raises what the build raises, and NotProven: then the old one is current as before, and the new one is gone, or kept to be
    looked at (`keep_failed`), until the next refresh or `prune`.
    """
    kit, storage = site.kit, site.storage
    before = records.find(kit, definition.base, arch)
    made = make(site, definition, arch, lambda text, part: on_progress(text, part * _BUILT), anew=True)
    try:
        seen = prove(made, definition, lambda text, part: on_progress(text, _BUILT + part * (1 - _BUILT)))
    except NotProven as error:
        raise _failed(site, made, before, error, keep=keep_failed) from error
    except BaseException:
        with suppress(PocketcloudError):
            storage.remove(made.volume)
        raise
    earlier = (before.alone(),) if before and before.volume in {v.name for v in storage.volumes()} else ()
    base = replace(made, proven=site.clock().isoformat(timespec="seconds"), earlier=earlier)
    records.write(kit, base)
    records.proof_log(kit, base.name, arch).unlink(missing_ok=True)
    sweep(storage, base.name, arch, base.volumes)
    on_progress("done", 1.0)
    return Refreshed(base, before, seen)


def _failed(site: Site, made: Base, before: Base | None, error: NotProven, *, keep: bool) -> PartlyDone:
    """Keep the log of a proof that failed, and the base if that is wanted; the error to be told."""
    log = records.proof_log(site.kit, made.name, made.arch)
    log.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    write_whole(log, error.log)
    kept = f"; it is kept as volume {made.volume}" if keep and before else ""
    if kept and before:
        records.write(site.kit, replace(before, failed=made.alone()))
        _remove_quietly(site.storage, [before.failed.volume] if before.failed else [])
    else:
        _remove_quietly(site.storage, [made.volume])
    stays = f"{made.name} of {before.built} stays current" if before else f"kit {site.kit.name} has no {made.name} still"
    return PartlyDone(
        f"the new base {made.name} ({made.arch}) did not prove itself: {error.message}; {stays}{kept}",
        hint=f"what its console said: {log}" + ("" if keep else "; --keep-failed keeps the base, too"),
    )


def _remove_quietly(storage: Storage, names: Sequence[str]) -> tuple[str, ...]:
    gone = []
    for name in names:
        with suppress(PocketcloudError):
            storage.remove(name)
            gone.append(name)
    return tuple(gone)


def rollback(kit: Kit, storage: Storage, name: Name, arch: Arch) -> Base:
    """Make the base of before the last refresh current again, and keep the other for the way back. The caller holds the lock.

    Raises NotFound without such a base, Refused if there is nothing to go back to.
    """
    base = records.find(kit, name, arch)
    if base is None:
        raise NotFound(f"kit {kit.name} has no base {name} for {arch}", hint="pocketcloud base list shows what there is")
    there = {volume.name for volume in storage.volumes()}
    former = next((earlier for earlier in base.earlier if earlier.volume in there), None)
    if former is None:
        raise Refused(
            f"base {name} ({arch}) has no earlier one to go back to: one is kept by `base refresh`, until `base prune`",
            hint=f"pocketcloud base refresh {name} builds a new one and proves it first",
        )
    others = tuple(earlier for earlier in base.earlier if earlier is not former)
    current = replace(former, earlier=(base.alone(), *others), failed=base.failed)
    records.write(kit, current)
    sweep(storage, name, arch, current.volumes)
    return current


def prune(kit: Kit, storage: Storage, base: Base) -> tuple[str, ...]:
    """Remove what is kept of a base beside itself, and that nothing stands on: earlier ones, one that failed, its package stage.
    The names of the volumes that went, and the path of the stage. The caller holds the lock.

    The record forgets them first: what is interrupted then is swept by the next build.
    """
    stage = stages.folder(kit, base.name, base.arch)
    kept = [str(path) for path in sorted(stage.glob("*"))]
    if base.earlier or base.failed:
        records.write(kit, base.alone())
    gone = sweep(storage, base.name, base.arch, [base.volume])
    stages.forget(kit, base.name, base.arch)
    records.proof_log(kit, base.name, base.arch).unlink(missing_ok=True)
    return (*gone, *kept)
