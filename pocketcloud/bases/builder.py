"""Building a base: whether it is needed at all, the image by its builder, the volume, the record, and what is left of old ones.

A base is keyed by a digest of what it is made from. The volume is published whole, then the record names it (that is the
commit), then older volumes that nothing stands on are removed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path
from typing import Any

from pocketcloud.bases import bootstrap, cloud_image, needs, records
from pocketcloud.bases.install.installation import Installation
from pocketcloud.bases.namespace import give
from pocketcloud.bases.progress import OnProgress
from pocketcloud.bases.recipe import Order, Recipe, Supply
from pocketcloud.documents import plain
from pocketcloud.errors import NotFound, Refused, UsageError
from pocketcloud.hypervisor import Hypervisor, open_hypervisor
from pocketcloud.model.base import Arch, Base, Builder, Definition
from pocketcloud.model.kit import Kit
from pocketcloud.model.names import joined
from pocketcloud.storage import Storage
from pocketcloud.system import Runner, run

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Built:
    """The base, and whether it was built just now (else nothing was to be done)."""

    base: Base
    fresh: bool


_RECIPES: Mapping[Builder, Recipe[Any]] = {
    Builder.BOOTSTRAP: bootstrap.Bootstrap(),
    Builder.KICKSTART: Installation(),
    Builder.PRESEED: Installation(),
    Builder.AUTOINSTALL: Installation(),
    Builder.CLOUD_IMAGE: cloud_image.CloudImage(),
}


def _utc_now() -> datetime:
    return datetime.now(UTC)


def inputs_digest(definition: Definition, arch: Arch) -> str:
    """What a base is made from, as hex: its definition, the architecture and what its builder adds. Touches no network.

    The packages' versions are not in it: newer ones come with `force`. Keys of the definition that are empty are left out, so
    that one that only a later version of us knows makes no other base of it.
    """
    said = {key: value for key, value in plain(definition).items() if value}
    digest = hashlib.sha256(f"{arch}\0{json.dumps(said, ensure_ascii=False)}".encode())
    for name, content in _recipe(definition).inputs(definition, arch):
        digest.update(f"\0{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _recipe(definition: Definition) -> Recipe[Any]:
    recipe = _RECIPES.get(definition.builder)
    if recipe is None:
        raise UsageError(f"base {definition.base}: this version of pocketcloud has no builder {definition.builder}")
    return recipe


def volume_name(definition: Definition, arch: Arch, digest: str) -> str:
    """The name of the base's volume in the store."""
    return _volume(definition.base, arch, digest)


def _volume(name: str, arch: Arch, digest: str) -> str:
    return joined("base", name, arch, digest[:12])


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
) -> Built:
    """Build the base unless the kit has it from the same inputs; `force` builds in any case, for newer packages. With
    `supply` nothing is fetched but from there, and what it lacks is told before anything starts.

    The caller holds the lock of this base. Raises UsageError, HostLacks, NotFound, NoSpace or PartlyDone; nothing half-made is
    left then.
    """
    if arch not in definition.architectures:
        known = ", ".join(definition.architectures)
        raise UsageError(f"base {definition.base} is not made for {arch}", hint=f"--arch takes: {known}")
    digest = inputs_digest(definition, arch)
    present = {volume.name for volume in storage.volumes()}
    name = volume_name(definition, arch, digest)
    if not force:
        known_base = records.find(kit, definition.base, arch)
        if known_base and known_base.digest == digest and known_base.volume in present:
            return Built(known_base, fresh=False)
    recipe = _recipe(definition)
    _check_supply(supply, definition, arch)
    volume = _unused(name, present)
    base = Base(definition.base, arch, digest, volume, recipe.firmware(definition, arch), "", title=definition.title)
    with work_folder(kit, definition.base, arch) as work:
        order = Order(
            kit, storage, definition, arch, digest, work, mirror, here or needs.ground(), run, on_progress, hypervisor, supply
        )
        recipe.check(order)
        base = replace(base, made_with=recipe.make(order, base.volume))
    base = replace(base, built=clock().isoformat(timespec="seconds"))
    records.write(kit, base)
    _remove_older(storage, base)
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


def adopt(kit: Kit, storage: Storage, base: Base, make: Callable[[str], None], clock: Callable[[], datetime] = _utc_now) -> Built:
    """Take a base into the kit that has no definition: `base` says all but its volume and time, `make` makes the volume of that
    name. The same digest again makes no other volume; what else is said of it is noted."""
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
    base = replace(base, built=clock().isoformat(timespec="seconds"))
    records.write(kit, base)
    _remove_older(storage, base)
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


def _remove_older(storage: Storage, base: Base) -> None:
    """Remove the volumes of this base that were made before `base`, unless something stands on them."""
    volumes = storage.volumes()
    needed = {volume.parent for volume in volumes}
    family = joined("base", base.name, base.arch, "")
    for volume in volumes:
        if volume.name.startswith(family) and volume.name != base.volume and volume.name not in needed:
            with suppress(Refused):
                storage.remove(volume.name)
