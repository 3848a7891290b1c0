"""Bases: how one is built (its definition) and what a built one is (its record in the kit)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, ClassVar, Literal

from pocketcloud.model.data_disk import Disk
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import GIB, MIB, Size

_STRICT = {"extra": "forbid"}


def key_of(field_name: str) -> str:
    """A field's key in documents: words of Python's own (`from`) have an underscore as fields only."""
    return field_name.rstrip("_")


_WITH_FROM = _STRICT | {"alias_generator": key_of}


class Firmware(StrEnum):
    """What starts a machine's disk: UEFI, or the PC BIOS (x86 only)."""

    EFI = "efi"
    BIOS = "bios"


class Builder(StrEnum):
    """How a base comes to be.

    bootstrap: a package bootstrap into a disk image, in a namespace. kickstart, preseed, autoinstall: the distribution's own
    installer in a throw-away machine, with that answer file. cloud-image: the distribution's ready image, fetched and checked.
    layer: another base, with packages and steps of its own on top.
    """

    BOOTSTRAP = "bootstrap"
    KICKSTART = "kickstart"
    PRESEED = "preseed"
    AUTOINSTALL = "autoinstall"
    CLOUD_IMAGE = "cloud-image"
    LAYER = "layer"


class Arch(StrEnum):
    """A processor architecture, as the kernel names it (`uname -m`)."""

    X86_64 = "x86_64"
    AARCH64 = "aarch64"

    @property
    def debian(self) -> str:
        """Debian's name of it."""
        return {Arch.X86_64: "amd64", Arch.AARCH64: "arm64"}[self]


DEBIANS = ("debian", "ubuntu")
"""Families of Debian's kind: packages come from archives with suites, and architectures have Debian's names; all others have the
kernel's."""


def spelled(text: str, family: str, arch: Arch) -> str:
    """A definition's URL for one architecture: `{arch}` is put in as the distribution names it."""
    return text.replace("{arch}", arch.debian if family in DEBIANS else arch)


class CpuLevel(StrEnum):
    """What an x86 processor must have, by the levels of the psABI (x86-64 psABI, 3.1.1)."""

    V1 = "x86-64-v1"
    V2 = "x86-64-v2"
    V3 = "x86-64-v3"
    V4 = "x86-64-v4"


@dataclass(frozen=True, slots=True)
class Requirements:
    """What the host and the machine must have before anything starts: the `cpu` of x86 machines, the `memory` of the machine
    that installs (left out: the builder's own figure)."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    cpu: CpuLevel | None = None
    memory: Size | None = None


@dataclass(frozen=True, slots=True)
class Download:
    """A file to be fetched: where it is (`url`, or `file` on this host), and how it is known to be the right one.

    `sha256` (hex) pins it; `sums` is the URL of a list of sums that names it, SHA-256 or SHA-512 by their length; `signature` the
    URL of a detached OpenPGP signature, of the list where there is one, else of the file, made by a key in `keyring`, a file of
    this host. A list that carries its signature in itself, as Fedora's do, is named by both.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT

    url: str = ""
    file: str = ""
    sha256: str = ""
    sums: str = ""
    signature: str = ""
    keyring: str = ""

    def __post_init__(self) -> None:
        if bool(self.url) == bool(self.file):
            raise ValueError("expected either `url:` or `file:`")
        if self.sha256 and not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError(f"sha256: expected 64 hexadecimal digits, got {self.sha256[:70]!r}")
        if self.signature and not self.keyring:
            raise ValueError("signature: needs `keyring:`, the file of the keys that may sign")


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """What every base's definition has, one YAML file in `bases/`.

    `packages` are installed beside the builder's own; `patches` are unified diffs against files of the new system (paths from
    its root, `-p1`), `post` lines of sh, run as its root in this order; neither ever runs as the host's root. `disks` are
    empty ones that each machine made from it gets, unless its lab names one so.
    """

    base: Name
    title: str
    family: str
    version: str
    builder: Builder
    architectures: tuple[Arch, ...]
    size: Size = Size(40 * GIB)
    packages: tuple[str, ...] = ()
    patches: tuple[str, ...] = ()
    post: tuple[str, ...] = ()
    requires: Requirements = Requirements()
    disks: tuple[Disk, ...] = ()


@dataclass(frozen=True, slots=True)
class Wheels:
    """Python distributions that run pocketcloud here (`of`) and are carried into a new system with all that they require, but
    for those of `without`, which that system has of its own."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    of: tuple[str, ...]
    without: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BootstrapDefinition(Definition):
    """A Debian, bootstrapped. `mirror` and `security` are URLs, `keyring` is a file of the host's keyring package. The `wheels`
    lie in /var/tmp/wheels while the steps of `post` are taken."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    builder: Literal[Builder.BOOTSTRAP]
    suite: str
    mirror: str
    keyring: str
    security: str = ""
    wheels: Wheels | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallDefinition(Definition):
    """A system that its own installer puts on an empty disk. In URLs `{arch}` stands for the architecture as the distribution
    names it (Debian and Ubuntu: amd64, arm64).

    `template`: the answer file in `kickstarts/`. `tree`: the install tree (Debian and Ubuntu: the mirror, with its `suite`);
    `media`: an image of the installer's disc, by architecture. `repos`: further package sources by name, the updates among them
    (Debian and Ubuntu: `security`; Ubuntu: `ports`, the mirror of all but x86). `registration`: for RHEL.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT

    builder: Literal[Builder.KICKSTART, Builder.PRESEED, Builder.AUTOINSTALL]
    template: str
    tree: str = ""
    suite: str = ""
    keyring: str = ""
    media: Mapping[Arch, Download] = field(default_factory=dict)
    repos: Mapping[Name, str] = field(default_factory=dict)
    registration: Registration | None = None


@dataclass(frozen=True, slots=True)
class Registration:
    """Where RHEL gets its packages: the organization's number, and the file of this host that holds its activation key.

    Left out, the number stands in that file before the key: `ORGANIZATION:KEY`.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT

    activation_key_file: str
    organization: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageDefinition(Definition):
    """A distribution's ready cloud image, by architecture. `firmware` is what it is started by.

    `tree`, `suite`, `keyring` and `repos` say where the cache keeps packages from that are added to it, as an installer's do
    (InstallDefinition); they make no other base. Without the cache packages come from where the image itself says.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT

    builder: Literal[Builder.CLOUD_IMAGE]
    images: Mapping[Arch, Download]
    firmware: Firmware = Firmware.EFI
    tree: str = ""
    suite: str = ""
    keyring: str = ""
    repos: Mapping[Name, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDefinition(Definition):
    """Another base with something on top: a thin clone of `from`, keyed by both. What is left out is as in the other base; the
    larger `size` of the two counts."""

    __pydantic_config__: ClassVar[Any] = _WITH_FROM

    builder: Literal[Builder.LAYER] = Builder.LAYER
    from_: Name
    family: str = ""
    version: str = ""
    architectures: tuple[Arch, ...] = tuple(Arch)
    size: Size = Size(MIB)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a base's content takes, in bytes; 0 where it is not known. `unsealed`: its files before sealing and trimming; `files`:
    its files now, in blocks of 4 KiB, the EFI partition's among them; `stored`: what the volume occupied when it was made."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    unsealed: int = 0
    files: int = 0
    stored: int = 0


@dataclass(frozen=True, slots=True)
class Newest:
    """What the package sources had when a base was made: a digest (hex) of their lists, and the youngest one's date, ISO 8601 in
    UTC. Both are empty where it is not known."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    digest: str = ""
    date: str = ""


UNKNOWN = Newest()

BASE_SCHEMA = 2
"""2: sizes, seal, proof, parent, packages, and what was before (`earlier`, `failed`). Records of schema 1, which do not say
their schema, have none of it; their defaults mean that it is not known."""


@dataclass(frozen=True, slots=True)
class Base:
    """A built base: `bases/NAME/ARCH.json` in the kit.

    `volume` is the sealed volume's name in the store; `digest` (hex) is that of the inputs it was built from; `built` is an
    ISO 8601 time in UTC; `made_with` names the tools and their versions. `sealed` says what the check of its seal looked at
    (empty: it was not checked), `proven` when a machine made from it proved itself (empty: none was tried). `parent` is the
    volume that a layer stands on; `cpu` the level of processors that its system needs (None: any); `disks` are those that
    machines get beside its own. `earlier` are those it took the name from that are kept for going back, the youngest first,
    and `failed` one that did not prove itself and is kept to be looked at; neither of them has any itself.
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
    schema: int = 1
    sizes: Sizes = Sizes()
    sealed: str = ""
    proven: str = ""
    parent: str = ""
    cpu: CpuLevel | None = None
    packages: Newest = UNKNOWN
    disks: tuple[Disk, ...] = ()
    earlier: tuple[Base, ...] = ()
    failed: Base | None = None

    @property
    def volumes(self) -> tuple[str, ...]:
        """The volumes that the record names: its own first."""
        return (self.volume, *(base.volume for base in self.earlier), *([self.failed.volume] if self.failed else []))

    def alone(self) -> Base:
        """It without what was before it."""
        return replace(self, earlier=(), failed=None)
