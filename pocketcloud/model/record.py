"""The lab's record: what one instance is made of. `labs/NAME/lab.json` in the kit; replacing it is the one commit point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from typing import Any, ClassVar

from pocketcloud.model.base import Arch, Firmware
from pocketcloud.model.lab import Lab, Machine, NetworkKind
from pocketcloud.model.names import Name

_STRICT = {"extra": "forbid"}

RECORD_SCHEMA = 1
CLEAN = "clean"
ROOT_DISK = "root"


class Stage(StrEnum):
    """How far a machine has come. Only `provisioning` matters to a later command: such a machine is made anew."""

    NEW = "new"
    PROVISIONING = "provisioning"
    PROVISIONED = "provisioned"


@dataclass(frozen=True, slots=True)
class NetworkRecord:
    """A network as raised: its kind and its subnet, kept while it is free."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    kind: NetworkKind
    subnet: IPv4Network


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """A machine as raised. `disks` maps disk names (`root` first) to the live volumes; `definition` is what it was made or
    last reconfigured from; `base_digest` that of the base it stands on."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    definition: Machine
    base_volume: str
    base_digest: str
    arch: Arch
    firmware: Firmware
    stage: Stage
    disks: Mapping[str, str]
    addresses: Mapping[Name, IPv4Address]


@dataclass(frozen=True, slots=True)
class Memory:
    """A machine's saved memory: `file` below the kit's `media/ram/`, its `size` in bytes and the `sha256` (hex) of its content;
    `made_on` says what must be the same where it is used, by names that say it to people (`QEMU`: `7.2.0`)."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    file: str
    size: int
    sha256: str
    made_on: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SnapshotPart:
    """One machine in a snapshot: its sealed volumes by disk name, its UEFI variables' file in `nvram/` (empty: none), and its
    memory of the same moment (None: it starts cold)."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    disks: Mapping[str, str]
    nvram: str = ""
    memory: Memory | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A named, kept state of the lab; `taken` is ISO 8601 in UTC, `parent` the snapshot it came from (empty: none)."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    taken: str
    machines: Mapping[Name, SnapshotPart]
    parent: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """One instance of a lab. `generation` counts the volumes made, so that new ones never meet old names."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    schema: int
    instance: Name
    lab: Lab
    created: str
    made_with: str
    generation: int
    networks: Mapping[Name, NetworkRecord] = field(default_factory=dict)
    machines: Mapping[Name, MachineRecord] = field(default_factory=dict)
    snapshots: Mapping[Name, Snapshot] = field(default_factory=dict)

    def with_machine(self, name: Name, machine: MachineRecord) -> Record:
        """This record with one machine put in or replaced."""
        return replace(self, machines={**self.machines, name: machine})

    def named_volumes(self) -> frozenset[str]:
        """Every volume this record needs by name; what those stand on is needed too."""
        live = [volume for machine in self.machines.values() for volume in machine.disks.values()]
        kept = [v for s in self.snapshots.values() for part in s.machines.values() for v in part.disks.values()]
        return frozenset(live + kept)

    def memories(self) -> frozenset[str]:
        """The files of saved memory that this record names, below the kit's `media/ram/`."""
        return frozenset(p.memory.file for s in self.snapshots.values() for p in s.machines.values() if p.memory)

    @property
    def clean(self) -> Snapshot | None:
        """The snapshot that reset returns to."""
        return self.snapshots.get(Name(CLEAN))
