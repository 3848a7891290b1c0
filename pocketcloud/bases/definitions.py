"""The bases that can be built: `bases/*.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pocketcloud.documents import load_one_of
from pocketcloud.errors import BadDocument, Fault, NotFound
from pocketcloud.model.base import (
    BootstrapDefinition,
    Builder,
    Definition,
    ImageDefinition,
    InstallDefinition,
    LayerDefinition,
)
from pocketcloud.resources import shipped

_KINDS: Mapping[str, type[Definition]] = {
    Builder.BOOTSTRAP: BootstrapDefinition,
    Builder.KICKSTART: InstallDefinition,
    Builder.PRESEED: InstallDefinition,
    Builder.AUTOINSTALL: InstallDefinition,
    Builder.CLOUD_IMAGE: ImageDefinition,
    Builder.LAYER: LayerDefinition,
}


def available(folder: Path | None = None) -> tuple[Definition, ...]:
    """The definitions in `folder` (left out: those we ship), by name. Raises BadDocument with the faults of a bad file."""
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


def _files(folder: Path | None) -> list[Path]:
    return sorted((folder or shipped("bases")).glob("*.yaml"))


def _read(path: Path) -> Definition:
    definition = load_one_of(path, "builder", _KINDS)
    if definition.base != path.stem:
        raise BadDocument(str(path), [Fault(0, "base", f"the file's name says {path.stem}, this says {definition.base}")])
    return definition
