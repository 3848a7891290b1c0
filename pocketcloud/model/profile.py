"""Profiles: how machines are shaped for a kind of host, with values per medium of the kit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from pocketcloud.model.base import Arch
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import GIB, KIB, Size, size_text

_STRICT = {"extra": "forbid"}

CHUNK = Size(64 * KIB)
_LARGEST_CHUNK = GIB


class Medium(StrEnum):
    """What a kit lies on."""

    INTERNAL = "internal"
    USB = "usb"
    LOOP = "loop"
    DIR = "dir"


class Acceleration(StrEnum):
    """How guests' instructions are run."""

    KVM = "kvm"
    EMULATION = "emulation"


@dataclass(frozen=True, slots=True)
class DiskTuning:
    """What a medium wants: QEMU's disk settings `cache` and `io` as libvirt spells them, and the chunk, in bytes, in which a
    thin pool made on it shares and copies (a multiple of 64 KiB, lvmthin(7); fixed for the kit's life)."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    cache: str
    io: str
    chunk: Size = CHUNK

    def __post_init__(self) -> None:
        if self.chunk % CHUNK or self.chunk > _LARGEST_CHUNK:
            raise ValueError(f"chunk: expected a multiple of 64KiB up to 1GiB, got {size_text(self.chunk)}")


@dataclass(frozen=True, slots=True)
class Selector:
    """For which hosts a profile is meant; what is left out does not matter. `model` is looked for in the device tree's model."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    arch: tuple[Arch, ...] = ()
    acceleration: Acceleration | None = None
    device_tree: bool | None = None
    model: str = ""


@dataclass(frozen=True, slots=True)
class Profile:
    """How machines are shaped for a kind of host.

    `machine` is QEMU's machine type per architecture; `cpu_mode` libvirt's CPU mode; `host_memory` stays with the host,
    whatever labs ask for; `machine_overhead` is what QEMU needs for each machine beside its memory; `max_vcpus` bounds one
    machine. Of the profiles whose selector matches, the one with the highest `precedence` is chosen.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT

    profile: Name
    title: str
    precedence: int
    selects: Selector
    acceleration: Acceleration
    machine: Mapping[Arch, str]
    cpu_mode: str
    host_memory: Size
    machine_overhead: Size
    max_vcpus: int
    media: Mapping[Medium, DiskTuning]
