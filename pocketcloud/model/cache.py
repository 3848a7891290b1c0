"""The content cache: what is to be kept (wishes), and what is kept (collections), as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from pocketcloud.model.base import Arch
from pocketcloud.model.names import Name

_STRICT = {"extra": "forbid"}

CACHE_SCHEMA = 1
PORT = 3143
"""Where the cache is served on the bridges of labs: beside 3128 (Squid) and 3142 (apt-cacher-ng), which a host may run itself."""


class Kind(StrEnum):
    """What is kept: all that building a `base` takes (and packages for machines of it), a `file` by its URL, a container
    `image` by its reference."""

    BASE = "base"
    FILE = "file"
    IMAGE = "image"


@dataclass(frozen=True, slots=True)
class Wish:
    """Something to be kept: `name` is a base's name, a URL or an image's reference. `packages` are for machines, beside those
    of the base's own definition; `sha256` (hex) pins a file. It is needed while it is `asked` for by itself, or one of `labs` is
    there.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT

    kind: Kind
    name: str
    arch: Arch
    packages: tuple[str, ...] = ()
    sha256: str = ""
    labs: tuple[Name, ...] = ()
    asked: bool = True

    @property
    def key(self) -> tuple[Kind, str, Arch]:
        """What makes it another wish."""
        return self.kind, self.name, self.arch

    @property
    def title(self) -> str:
        """It in a few words."""
        of_arch = f" ({self.arch})" if self.kind is not Kind.FILE else ""
        return f"{self.kind} {self.name}{of_arch}"


@dataclass(frozen=True, slots=True)
class Wishes:
    """`wishes.json` in the cache."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    schema: int = CACHE_SCHEMA
    wishes: tuple[Wish, ...] = ()


@dataclass(frozen=True, slots=True)
class Stored:
    """A file in the cache: the SHA-256 of its content (hex), by which it is stored, and its size in bytes."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Collection:
    """What a wish was fulfilled with, `sets/ID.json` in the cache: published whole. `files` are by their key, the address
    without its scheme (`mirrors.kernel.org/debian/dists/...`); `packages` those that were asked for by name; `synced` is ISO 8601
    in UTC."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    schema: int
    title: str
    synced: str
    packages: tuple[str, ...] = ()
    files: Mapping[str, Stored] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The bytes of all files, each content counted once."""
        return sum({stored.sha256: stored.size for stored in self.files.values()}.values())
