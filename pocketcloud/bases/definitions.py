"""The bases that can be built: `bases/*.yaml`."""

from __future__ import annotations

from pathlib import Path

from pocketcloud.documents import load
from pocketcloud.errors import BadDocument, Fault, NotFound
from pocketcloud.model.base import BaseDefinition
from pocketcloud.resources import shipped


def available(folder: Path | None = None) -> tuple[BaseDefinition, ...]:
    """The definitions in `folder` (left out: those we ship), by name. Raises BadDocument with the faults of a bad file."""
    return tuple(_read(path) for path in _files(folder))


def find(name: str, folder: Path | None = None) -> BaseDefinition:
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


def _read(path: Path) -> BaseDefinition:
    definition = load(path, BaseDefinition)
    if definition.base != path.stem:
        raise BadDocument(str(path), [Fault(0, "base", f"the file's name says {path.stem}, this says {definition.base}")])
    return definition
