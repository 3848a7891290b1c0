"""Bases: how one is built (its definition) and what a built one is (its record in the kit)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from pocketcloud.model.names import Name
from pocketcloud.model.sizes import GIB, Size

_STRICT = {"extra": "forbid"}


class Firmware(StrEnum):
    """What starts a machine's disk: UEFI, or the PC BIOS (x86 only)."""

    EFI = "efi"
    BIOS = "bios"


class Builder(StrEnum):
    """How a base comes to be. `bootstrap`: a package bootstrap into a disk image, in a namespace."""

    BOOTSTRAP = "bootstrap"


class Arch(StrEnum):
    """A processor architecture, as the kernel names it (`uname -m`)."""

    X86_64 = "x86_64"
    AARCH64 = "aarch64"

    @property
    def debian(self) -> str:
        """Debian's name of it."""
        return {Arch.X86_64: "amd64", Arch.AARCH64: "arm64"}[self]


@dataclass(frozen=True, slots=True)
class BaseDefinition:
    """A base's definition, one YAML file in `bases/`. `mirror` is a URL, `keyring` a file of the host's keyring package."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    base: Name
    title: str
    family: str
    version: str
    suite: str
    builder: Builder
    architectures: tuple[Arch, ...]
    mirror: str
    keyring: str
    security: str = ""
    size: Size = Size(10 * GIB)
    packages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Base:
    """A built base: `bases/NAME/ARCH.json` in the kit.

    `volume` is the sealed volume's name in the store; `digest` (hex) is that of the inputs it was built from; `built` is an
    ISO 8601 time in UTC; `made_with` names the tools and their versions.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT

    name: Name
    arch: Arch
    digest: str
    volume: str
    firmware: Firmware
    built: str
    made_with: str = ""
    title: str = ""
