"""Kits: the manifest that makes a store self-describing, and an attached kit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pocketcloud.model.names import Name
from pocketcloud.model.profile import Medium

_STRICT = {"extra": "forbid"}

KIT_SCHEMA = 1
TREE = ("labs", "bases", "keys", "nvram", "media", "volumes")


@dataclass(frozen=True, slots=True)
class Manifest:
    """`kit.json`. `id` is a UUID, `derived_from` the id of the kit this one was copied from, `sector_size` in bytes (0: none
    of its own, as in a directory), `made_with` the version of pocketcloud that made it, `created` ISO 8601 in UTC."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    schema: int
    id: str
    name: Name
    created: str
    made_with: str
    storage: str
    sector_size: int = 0
    derived_from: str = ""


@dataclass(frozen=True, slots=True)
class Kit:
    """An attached kit: its manifest, where its tree lies now, and what it lies on."""

    manifest: Manifest
    path: Path
    medium: Medium

    @property
    def name(self) -> Name:
        """The kit's name, unique among attached kits."""
        return self.manifest.name

    @property
    def id(self) -> str:
        """The kit's UUID as text."""
        return self.manifest.id
