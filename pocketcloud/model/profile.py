"""Profiles: how machines are shaped for a kind of host, with values per medium of the kit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from pocketcloud.model.base import Arch
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import GIB, KIB, Duration, Size, size_text

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
class DiskSpeed:
    """The least that a kit's disk should do: `sequential` in MB/s (a million bytes), `random_reads` of 4 KiB per second, one at
    a time."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    sequential: int
    random_reads: int

    def __post_init__(self) -> None:
        if self.sequential <= 0 or self.random_reads <= 0:
            raise ValueError("expected numbers above 0")


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long an installer may take, in seconds: `idle` without a new line, `total` in all. kickstart-tests give one half an
    hour, with a mirror at hand."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    idle: Duration = Duration(600)
    total: Duration = Duration(7200)


@dataclass(frozen=True, slots=True)
class Board:
    """What every board of a kind has, because its maker decided it: the sizes of `memory` it is sold with, ascending; how many
    `cores` of each name, the slow ones first; the version of its interrupt controller (`gic`); `usb`, the speed of its
    quickest port in Mbit/s; and `system`, the memory that firmware, kernel and a system without a desktop take."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    memory: tuple[Size, ...]
    cores: Mapping[str, int]
    gic: int
    usb: int
    system: Size

    def __post_init__(self) -> None:
        if not self.memory or list(self.memory) != sorted(set(self.memory)):
            raise ValueError("memory: expected sizes in ascending order")
        if not self.cores or min(self.cores.values()) < 1:
            raise ValueError("cores: expected a number of cores for each name")
        if self.gic not in (2, 3):
            raise ValueError(f"gic: expected 2 or 3, got {self.gic}")


@dataclass(frozen=True, slots=True)
class Selector:
    """For which hosts a profile is meant; what is left out does not matter. Of `compatible` one must be among what the device
    tree calls the host compatible with; `*` stands for anything."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    arch: tuple[Arch, ...] = ()
    acceleration: Acceleration | None = None
    device_tree: bool | None = None
    compatible: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Profile:
    """How machines are shaped for a kind of host.

    `machine` is QEMU's machine type per architecture; `cpu_mode` libvirt's CPU mode; `host_memory` stays with the host,
    whatever labs ask for; `machine_overhead` is what QEMU needs for each machine beside its memory; `max_vcpus` bounds one
    machine; `disk_speed` is the least that a kit's disk should do; `install` bounds what installs a base. Of the profiles
    whose selector matches, the one with the highest `precedence` is chosen. `board` is left out where hosts of the kind have
    little in common.
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
    disk_speed: Mapping[Medium, DiskSpeed]
    board: Board | None = None
    install: Deadlines = Deadlines()


@dataclass(frozen=True, slots=True)
class ProfileFile:
    """A profile as its file says it: what it leaves out is that of the profile it `extends`; of `media` and `disk_speed` each
    medium by itself."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    profile: Name
    title: str
    precedence: int
    selects: Selector
    extends: Name | None = None
    acceleration: Acceleration | None = None
    machine: Mapping[Arch, str] | None = None
    cpu_mode: str | None = None
    host_memory: Size | None = None
    machine_overhead: Size | None = None
    max_vcpus: int | None = None
    media: Mapping[Medium, DiskTuning] | None = None
    disk_speed: Mapping[Medium, DiskSpeed] | None = None
    board: Board | None = None
    install: Deadlines | None = None
