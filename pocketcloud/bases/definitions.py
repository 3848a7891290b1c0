"""The bases that can be built: `bases/*.yaml`, the user's own first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pocketcloud.bases.faults import faults
from pocketcloud.documents import load_one_of, schema_of_one
from pocketcloud.errors import BadDocument, Fault, NotFound, UsageError
from pocketcloud.model.base import (
    Arch,
    BootstrapDefinition,
    Builder,
    Definition,
    ImageDefinition,
    InstallDefinition,
    LayerDefinition,
)
from pocketcloud.resources import imported, overlaid, shipped

_KINDS: Mapping[str, type[Definition]] = {
    Builder.BOOTSTRAP: BootstrapDefinition,
    Builder.KICKSTART: InstallDefinition,
    Builder.PRESEED: InstallDefinition,
    Builder.AUTOINSTALL: InstallDefinition,
    Builder.CLOUD_IMAGE: ImageDefinition,
    Builder.LAYER: LayerDefinition,
}


def available(folder: Path | None = None) -> tuple[Definition, ...]:
    """The definitions in `folder` (left out: the user's own and those we ship), by name. Raises BadDocument with the faults of
    a bad file, NotFound if the user's folder is not there."""
    return tuple(_read(path) for path in _files(folder))


def find(name: str, folder: Path | None = None) -> Definition:
    """The definition of that name; reads no other. Raises NotFound naming those there are, BadDocument."""
    files = _files(folder)
    for path in files:
        if path.stem == name:
            return _read(path)
    raise NotFound(
        f"there is no base {name!r} to build; there are: {', '.join(path.stem for path in files) or 'none'}",
        hint="pocketcloud base list --available shows them",
    )


def schema() -> dict[str, Any]:
    """The JSON Schema of a definition, for editors."""
    return schema_of_one(_KINDS.values(), "pocketcloud base")


def origin(name: str) -> Path:
    """The file that `find(name)` reads."""
    return next(path for path in _files(None) if path.stem == name)


def is_own(name: str) -> bool:
    """Whether that file is the user's own."""
    return origin(name).parent != shipped("bases")


def names(folder: Path | None = None) -> tuple[str, ...]:
    """The names of what `available` gives; reads no file."""
    return tuple(path.stem for path in _files(folder))


def came_with(name: str) -> Path | None:
    """The folder of the imported lab that the definition of that name came with; None for any other, and where there is none."""
    place = _path(name, None)
    return place.parent.parent if place and is_imported(place) else None


def is_imported(path: Path) -> bool:
    """Whether a file of a definition came with an imported lab."""
    return path.parent in imported()


def refuse_other(definition: Definition, arch: Arch) -> None:
    """Raise UsageError if the base is not made for that architecture."""
    if arch not in definition.architectures:
        known = ", ".join(definition.architectures)
        raise UsageError(f"base {definition.base} is not made for {arch}", hint=f"--arch takes: {known}")


def find_or_none(name: str, folder: Path | None = None) -> Definition | None:
    """The definition of that name; None if there is none (a base may have been imported). Raises BadDocument."""
    return _read(path) if (path := _path(name, folder)) else None


def lineage(definition: Definition, folder: Path | None = None) -> tuple[Definition, ...]:
    """What the base stands on, the lowest first, itself last. Raises BadDocument with all that is wrong with its layers: a parent
    that there is no definition of, a circle, an architecture that a parent is not made for."""
    chain, wrong = [definition], list[Fault]()
    while isinstance(lowest := chain[0], LayerDefinition):
        parent = find_or_none(lowest.from_, folder)
        if parent is None:
            there = ", ".join(path.stem for path in _files(folder))
            wrong.append(Fault(0, "from", f"{lowest.base} stands on {lowest.from_}, which there is none of; there are: {there}"))
            break
        if any(parent.base == other.base for other in chain):
            circle = " stands on ".join([*(each.base for each in reversed(chain)), parent.base])
            wrong.append(Fault(0, "from", f"a circle: {circle}"))
            break
        if not set(lowest.architectures) & set(parent.architectures):
            which = ", ".join(lowest.architectures)
            wrong.append(
                Fault(0, "architectures", f"{lowest.base} is for {which}, and {parent.base}, which it stands on, is not")
            )
        chain.insert(0, parent)
    if wrong:
        raise BadDocument(f"{definition.base}.yaml", wrong, hint="pocketcloud base list --available shows what there is")
    return tuple(chain)


def parents_first(wanted: Iterable[Definition], folder: Path | None = None) -> tuple[Definition, ...]:
    """These definitions, each after what it stands on. Raises as `lineage`."""
    asked = {definition.base: definition for definition in wanted}
    chains = sorted((lineage(definition, folder) for definition in asked.values()), key=len)
    names = dict.fromkeys(each.base for chain in chains for each in chain if each.base in asked)
    return tuple(asked[name] for name in names)


def _path(name: str, folder: Path | None) -> Path | None:
    return next((path for path in _files(folder) if path.stem == name), None)


def _files(folder: Path | None) -> list[Path]:
    """By name; a file of the user's own stands in place of ours of the same name."""
    found: dict[str, Path] = {}
    for place in (folder,) if folder else overlaid("bases"):
        for path in place.glob("*.yaml"):
            found.setdefault(path.name, path)
    return [found[name] for name in sorted(found)]


def _read(path: Path) -> Definition:
    definition = load_one_of(path, "builder", _KINDS, faults)
    if definition.base != path.stem:
        raise BadDocument(str(path), [Fault(0, "base", f"the file's name says {path.stem}, this says {definition.base}")])
    return definition
