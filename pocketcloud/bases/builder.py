"""Building a base: whether it is needed at all, the image by its builder, the volume, the record, and what is left of old ones.

A base is keyed by a digest of what it is made from. The volume is published whole and looked into, then the record names it
(that is the commit), then older volumes that nothing stands on are removed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path
from typing import Any

from pocketcloud.bases import needs, records, sealing
from pocketcloud.bases.namespace import give
from pocketcloud.bases.progress import OnProgress
from pocketcloud.bases.recipe import Measured, Order, Recipe, Supply
from pocketcloud.documents import plain
from pocketcloud.errors import Busy, NotFound, PocketcloudError, Refused, UsageError
from pocketcloud.hypervisor import Hypervisor, open_hypervisor
from pocketcloud.model.base import BASE_SCHEMA, Arch, Base, Builder, Definition, ImageDefinition, LayerDefinition, Sizes
from pocketcloud.model.kit import Kit
from pocketcloud.model.names import joined
from pocketcloud.storage import Storage
from pocketcloud.system import Runner, run

_SHOWN = 20
_SEEN = 0.97
"""How far a build is when its volume is there: what its recipe tells is of that much."""


@dataclass(frozen=True, slots=True)
class Built:
    """The base, and whether it was built just now (else nothing was to be done)."""

    base: Base
    fresh: bool


Recipes = Callable[[Builder], Recipe[Any] | None]
"""Gives the recipe of a builder; None for one that there is none of."""


def shipped(builder: Builder) -> Recipe[Any] | None:
    """Our own. Each is loaded when it is wanted: to find a base unchanged takes less time than to load them all."""
    match builder:
        case Builder.BOOTSTRAP:
            from pocketcloud.bases.bootstrap import Bootstrap

            return Bootstrap()
        case Builder.KICKSTART | Builder.PRESEED | Builder.AUTOINSTALL:
            from pocketcloud.bases.install.installation import Installation

            return Installation()
        case Builder.CLOUD_IMAGE:
            from pocketcloud.bases.cloud_image import CloudImage

            return CloudImage()
        case Builder.LAYER:
            from pocketcloud.bases.layer import Layer

            return Layer()


def _utc_now() -> datetime:
    return datetime.now(UTC)


_UNKEYED = ("tree", "suite", "keyring", "repos")
"""What a cloud image's definition says to the cache alone."""


def inputs_digest(definition: Definition, arch: Arch, parent: Base | None = None, recipes: Recipes = shipped) -> str:
    """What a base is made from, as hex: its definition, the architecture and what its builder adds; of a layer also what it
    stands on (`parent`). Touches no network.

    The packages' versions are not in it: newer ones come with `force`. Keys of the definition that are empty are left out, so
    that one that only a later version of us knows makes no other base of it.
    """
    unkeyed = _UNKEYED if isinstance(definition, ImageDefinition) else ()
    said = {key: value for key, value in plain(definition).items() if value and key not in unkeyed}
    digest = hashlib.sha256(f"{arch}\0{json.dumps(said, ensure_ascii=False)}".encode())
    if parent:
        digest.update(f"\0{parent.volume}\0{parent.digest}\0{parent.built}".encode())
    for name, content in _recipe(definition, recipes).inputs(definition, arch):
        digest.update(f"\0{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def parent_of(kit: Kit, definition: Definition, arch: Arch) -> Base | None:
    """The base that a layer is to stand on; None for what is no layer. Raises NotFound if the kit does not have it."""
    if not isinstance(definition, LayerDefinition):
        return None
    parent = records.find(kit, definition.from_, arch)
    if parent is None:
        raise NotFound(
            f"base {definition.base} is a layer on {definition.from_}, which kit {kit.name} does not have for {arch}",
            hint=f"pocketcloud base build {definition.from_} --arch {arch}",
        )
    return parent


def _recipe(definition: Definition, recipes: Recipes) -> Recipe[Any]:
    recipe = recipes(definition.builder)
    if recipe is None:
        raise UsageError(f"base {definition.base}: this version of pocketcloud has no builder {definition.builder}")
    return recipe


def volume_name(definition: Definition, arch: Arch, digest: str) -> str:
    """The name of the base's volume in the store."""
    return _volume(definition.base, arch, digest)


def _volume(name: str, arch: Arch, digest: str) -> str:
    return joined("base", name, arch, digest[:12])


@dataclass(frozen=True, slots=True)
class Site:
    """Where bases are built, and how: `mirror` is where the user wants packages from; `supply`: the kit's cache, and nothing
    may be fetched but from there; `hypervisor` connects when it is asked."""

    kit: Kit
    storage: Storage
    mirror: str | None = None
    supply: Supply | None = None
    run: Runner = run
    here: needs.Ground = field(default_factory=needs.ground)
    hypervisor: Callable[[], Hypervisor] = open_hypervisor
    clock: Callable[[], datetime] = _utc_now
    recipes: Recipes = shipped


def build(
    kit: Kit,
    storage: Storage,
    definition: Definition,
    arch: Arch,
    *,
    mirror: str | None = None,
    force: bool = False,
    supply: Supply | None = None,
    run: Runner = run,
    on_progress: OnProgress,
    here: needs.Ground | None = None,
    hypervisor: Callable[[], Hypervisor] = open_hypervisor,
    clock: Callable[[], datetime] = _utc_now,
    recipes: Recipes = shipped,
) -> Built:
    """Build the base unless the kit has it from the same inputs; `force` builds in any case, for newer packages. With
    `supply` nothing is fetched but from there, and what it lacks is told before anything starts. It takes its name untried (see
    refresh.py for the careful way), and what it replaces goes when nothing stands on it any more.

    The caller holds the lock of this base. Raises UsageError, HostLacks, NotFound, NoSpace, PartlyDone, or Refused for an image
    that is not sealed; nothing half-made is left then.
    """
    site = Site(kit, storage, mirror, supply, run, here or needs.ground(), hypervisor, clock, recipes)
    known = records.find(kit, definition.base, arch)
    if known and not force and is_current(site, definition, known):
        return Built(known, fresh=False)
    base = make(site, definition, arch, on_progress, anew=force)
    records.write(kit, base)
    sweep(storage, base.name, arch, base.volumes)
    on_progress("done", 1.0)
    return Built(base, fresh=True)


def _check_supply(supply: Supply | None, definition: Definition, arch: Arch) -> None:
    lacking = supply.lacking(definition, arch) if supply else ()
    if lacking:
        shown = [f"  {line}" for line in lacking[:_SHOWN]]
        shown += [f"  and {len(lacking) - _SHOWN} more"] if len(lacking) > _SHOWN else []
        raise NotFound(
            "\n".join([f"base {definition.base} ({arch}) cannot be built offline; the kit's cache lacks:", *shown]),
            hint=f"with a network: pocketcloud cache add {definition.base} --arch {arch}, then pocketcloud cache sync; if there"
            " is one now: --online",
        )


def is_current(site: Site, definition: Definition, known: Base) -> bool:
    """Whether the kit's base is what its definition would make now, but for newer packages."""
    digest = inputs_digest(definition, known.arch, parent_of(site.kit, definition, known.arch), site.recipes)
    return known.digest == digest and any(volume.name == known.volume for volume in site.storage.volumes())


def make(site: Site, definition: Definition, arch: Arch, on_progress: OnProgress, *, anew: bool) -> Base:
    """Make a base's volume and see that it is sealed. It is nobody's until a record names it: until then the next build of this
    base, which sweeps what no record names, would take it for the remains of an interrupted one. Raises as `build`."""
    kit, storage = site.kit, site.storage
    if arch not in definition.architectures:
        takes = ", ".join(definition.architectures)
        raise UsageError(f"base {definition.base} is not made for {arch}", hint=f"--arch takes: {takes}")
    recipe, parent = _recipe(definition, site.recipes), parent_of(kit, definition, arch)
    digest = inputs_digest(definition, arch, parent, site.recipes)
    _check_supply(site.supply, definition, arch)
    known = records.find(kit, definition.base, arch)
    sweep(storage, definition.base, arch, known.volumes if known else ())
    volume = _unused(volume_name(definition, arch, digest), {volume.name for volume in storage.volumes()})
    measured = [Measured()]

    def told(text: str, part: float) -> None:
        on_progress(text, part * _SEEN)

    with work_folder(kit, definition.base, arch) as work, ExitStack() as undo:
        order = Order(
            kit, storage, definition, arch, digest, work, site.mirror, site.here, site.run, told, site.hypervisor,
            supply=site.supply, anew=anew, parent=parent, measured=measured.append,
        )  # fmt: skip
        recipe.check(order)
        sealing.check_tools(site.here)
        undo.callback(_drop, storage, volume)
        made_with = recipe.make(order, volume)
        on_progress("looking whether it is sealed", _SEEN)
        what, ours = f"base {definition.base} ({arch})", not isinstance(definition, ImageDefinition)
        sealed = sealing.check(storage, volume, work, site.run, what, made_by_us=ours)
        undo.pop_all()
    stored = next(v.used for v in storage.volumes() if v.name == volume) or 0
    return Base(
        definition.base,
        arch,
        digest,
        volume,
        parent.firmware if parent else recipe.firmware(definition, arch),
        site.clock().isoformat(timespec="seconds"),
        made_with,
        definition.title,
        schema=BASE_SCHEMA,
        sizes=Sizes(measured[-1].unsealed, sealed.files, stored),
        sealed=sealed.text,
        parent=parent.volume if parent else "",
        cpu=definition.requires.cpu or (parent.cpu if parent else None),
        packages=measured[-1].packages,
        disks=definition.disks or (parent.disks if parent else ()),
    )


def _drop(storage: Storage, volume: str) -> None:
    """Remove a volume that did not become a base; one that was not made is none to be removed."""
    with suppress(PocketcloudError):
        storage.remove(volume)


def adopt(kit: Kit, storage: Storage, base: Base, make: Callable[[str], None], clock: Callable[[], datetime] = _utc_now) -> Built:
    """Take a base into the kit that has no definition: `base` says all but its volume and time, `make` makes the volume of that
    name. The same digest again makes no other volume; what else is said of it is noted. What it takes the name from is kept for
    `rollback`."""
    present = {volume.name for volume in storage.volumes()}
    known = records.find(kit, base.name, base.arch)
    if known and known.digest == base.digest and known.volume in present:
        if (known.firmware, known.title) == (base.firmware, base.title):
            return Built(known, fresh=False)
        base = replace(base, volume=known.volume)
    else:
        base = replace(base, volume=_volume(base.name, base.arch, base.digest))
        if base.volume not in present:
            make(base.volume)
        if known and known.volume in present and known.volume != base.volume:
            base = replace(base, earlier=(known.alone(),))
    base = replace(base, built=clock().isoformat(timespec="seconds"), schema=BASE_SCHEMA)
    records.write(kit, base)
    sweep(storage, base.name, base.arch, base.volumes)
    return Built(base, fresh=True)


def _unused(name: str, present: set[str]) -> str:
    """The name itself, or with a number if a volume has it: a base built again never replaces what labs may stand on."""
    numbered = (joined(name, str(number)) for number in count(2))
    return next(tried for tried in chain([name], numbered) if tried not in present)


@contextmanager
def work_folder(kit: Kit, name: str, arch: Arch) -> Iterator[Path]:
    """An empty folder of the namespace's root in the kit, where that has its room; what an interrupted build left is swept."""
    work = kit.path / "media" / f".work-{name}-{arch}"
    _sweep(work)
    work.mkdir()
    # Others may pass, not look: apt fetches as a user of its own.
    work.chmod(0o711)
    try:
        with suppress(OSError):  # needs.check says what it means if this is not possible
            give(work)
        yield work
    finally:
        _sweep(work)


def _sweep(work: Path) -> None:
    """Remove the folder. Its processes are dying if not dead, and may still add a file behind our back: hence the rounds."""
    for _ in range(5):
        with suppress(FileNotFoundError):
            shutil.rmtree(work, ignore_errors=True)
        if not work.exists():
            return
    shutil.rmtree(work)


def sweep(storage: Storage, name: str, arch: Arch, keep: Collection[str]) -> tuple[str, ...]:
    """Remove the volumes of a base that are not in `keep`, unless something stands on them: older ones, and what an interrupted
    build left. The names of those that went."""
    volumes = storage.volumes()
    needed = {volume.parent for volume in volumes} | set(keep)
    family = joined("base", name, arch, "")
    gone = []
    for volume in volumes:
        if volume.name.startswith(family) and volume.name not in needed:
            with suppress(Refused):
                storage.remove(volume.name)
                gone.append(volume.name)
    return tuple(gone)


def sweep_unnamed(kit: Kit, storage: Storage, hold: Callable[[str], AbstractContextManager[None]]) -> tuple[str, ...]:
    """Remove the volumes of all bases that no record names and nothing stands on any more: an older base goes with the last lab
    that was made from it. `hold` holds a base by name, or raises Busy: then its command does it. The names of those that went."""
    named = {volume for base in records.built(kit) for volume in base.volumes}
    volumes = storage.volumes()
    needed = named | {volume.parent for volume in volumes if not volume.spare}
    loose = [volume.name.split(".") for volume in volumes if volume.name.startswith("base.") and volume.name not in needed]
    gone: list[str] = []
    for name, arch in sorted({(words[1], words[2]) for words in loose if len(words) > 3 and words[2] in set(Arch)}):
        with suppress(Busy), hold(name):
            known = records.find(kit, name, Arch(arch))
            gone += sweep(storage, name, Arch(arch), known.volumes if known else ())
    return tuple(gone)
