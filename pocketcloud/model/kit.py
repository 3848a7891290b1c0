"""Kits: the manifest that makes a store self-describing, and an attached kit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    of its own, as in a directory), `made_with` the version of pocketcloud that made it, `created` ISO 8601 in UTC.

    Of kits on LVM: `vg` is the volume group, `arch` the machine (`uname -m`) that made it and `made_on` the versions of what
    it was made with there; `dirty` is set from attach to detach, `last_host` is the mark of the computer that attached it
    last, `detached` when it was detached last, ISO 8601 in UTC.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT

    schema: int
    id: str
    name: Name
    created: str
    made_with: str
    storage: str
    sector_size: int = 0
    derived_from: str = ""
    vg: str = ""
    arch: str = ""
    dirty: bool = False
    last_host: str = ""
    detached: str = ""
    made_on: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Kit:
    """An attached kit: its manifest, where its tree lies now, and what it lies on. On LVM: its volume group, which is named
    anew where two would meet, and the devices that carry it here."""

    manifest: Manifest
    path: Path
    medium: Medium
    vg: str = ""
    devices: tuple[Path, ...] = ()

    @property
    def name(self) -> Name:
        """The kit's name, unique among attached kits."""
        return self.manifest.name

    @property
    def id(self) -> str:
        """The kit's UUID as text."""
        return self.manifest.id
