"""The lab's record: what one instance is made of. `labs/NAME/lab.json` in the kit; replacing it is the one commit point."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from typing import Any, ClassVar

from pocketcloud.model.base import Arch, Firmware
from pocketcloud.model.lab import Lab, LabNetwork, Machine, NetworkKind
from pocketcloud.model.names import Name, mac_address

_STRICT = {"extra": "forbid"}

RECORD_SCHEMA = 1
CLEAN = "clean"
UNDO = "undo"
ROOT_DISK = "root"


class Stage(StrEnum):
    """How far a machine has come. Only `provisioning` matters to a later command: such a machine is made anew."""

    NEW = "new"
    PROVISIONING = "provisioning"
    PROVISIONED = "provisioned"


@dataclass(frozen=True, slots=True)
class NetworkRecord:
    """A network as raised: its kind and its subnet, kept while it is free; or the host's bridge that it is."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    kind: NetworkKind
    subnet: IPv4Network | None = None
    bridge: str = ""

    @property
    def subnet_text(self) -> str:
        """The subnet as libvirt's networks say it (model/inventory.py)."""
        return str(self.subnet) if self.subnet else ""

    @property
    def bridged(self) -> bool:
        """Whether it is a bridge of the host."""
        return self.kind is NetworkKind.BRIDGE

    @property
    def range(self) -> IPv4Network:
        """The subnet, where there is one. Raises LookupError for a bridge of the host."""
        if self.subnet is None:
            raise LookupError(f"the bridge {self.bridge} has no subnet of ours")
        return self.subnet


@dataclass(frozen=True, slots=True)
class Restoring:
    """The state that a machine was brought back to, while it has not been ready since; `nvram` is the file of the UEFI variables
    that it starts with (empty: those it has). `woken`: if it runs, then from memory that was kept, and it may not have been given
    the time and randomness of its own yet. `ready`: it has been ready since, and waits for the others that were brought back
    with it."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    state: str
    nvram: str = ""
    woken: bool = False
    ready: bool = False


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """A machine as raised. `disks` maps disk names (`root` first) to the live volumes; `definition` is what it was made or
    last reconfigured from; `base_digest` that of the base it stands on; `restoring` is set while it is brought back."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    definition: Machine
    base_volume: str
    base_digest: str
    arch: Arch
    firmware: Firmware
    stage: Stage
    disks: Mapping[str, str]
    addresses: Mapping[Name, IPv4Address]
    restoring: Restoring | None = None


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
    """One machine in a snapshot: its volumes by disk name, its UEFI variables' file in `nvram/` (empty: none), what it was
    declared as then (None: in a state taken before that was kept), and its memory of the same moment (None: it starts cold).
    The volumes are sealed, but those of `undo`, which were the live ones and are nobody else's."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    disks: Mapping[str, str]
    nvram: str = ""
    definition: Machine | None = None
    memory: Memory | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A named, kept state of the lab; `taken` is ISO 8601 in UTC, `parent` the snapshot it came from (empty: none), `networks`
    the lab's as they were declared then. One that is `protected` is not forgotten."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    taken: str
    machines: Mapping[Name, SnapshotPart]
    parent: str = ""
    protected: bool = False
    networks: Mapping[Name, LabNetwork] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Taking:
    """A snapshot that is being taken. `machines` ran when it was begun, and are off for a while: who finds this later brings them
    up."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    state: str
    machines: tuple[Name, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """One instance of a lab. `generation` counts the volumes made, so that new ones never meet old names; `at` is the snapshot
    that the lab was last brought to, or that was taken of it last: where it is in their tree (empty: nowhere yet)."""

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
    at: str = ""
    taking: Taking | None = None

    def with_machine(self, name: Name, machine: MachineRecord) -> Record:
        """This record with one machine put in or replaced."""
        return replace(self, machines={**self.machines, name: machine})

    def macs(self, machine: Name, kit_id: str) -> tuple[tuple[Name, str], ...]:
        """A machine's interfaces in order: (network, MAC). On bridges, where kits meet, the kit is told by them, too."""
        bridged = {name for name, network in self.networks.items() if network.bridged}
        networks = enumerate(self.machines[machine].definition.networks)
        return tuple((n, mac_address(self.instance, machine, i, kit_id if n in bridged else "")) for i, n in networks)

    @property
    def raised_networks(self) -> dict[Name, LabNetwork]:
        """The lab's networks as they are declared; but as they are, where another kind waits for `up --reconfigure`."""
        found = dict(self.lab.networks)
        for name, known in self.networks.items():
            if name in found and found[name].kind is not known.kind:
                found[name] = LabNetwork(known.kind, bridge=known.bridge if known.bridged else None)
        return found

    def named_volumes(self) -> frozenset[str]:
        """Every volume this record needs by name; what those stand on is needed too."""
        live = [volume for machine in self.machines.values() for volume in machine.disks.values()]
        kept = [v for s in self.snapshots.values() for part in s.machines.values() for v in part.disks.values()]
        return frozenset(live + kept)

    def memories(self) -> frozenset[str]:
        """The files of saved memory that this record names, below the kit's `media/ram/`."""
        return frozenset(p.memory.file for s in self.snapshots.values() for p in s.machines.values() if p.memory)

    def named_nvrams(self) -> frozenset[str]:
        """The names of all files of UEFI variables, beside the live ones, that this record needs."""
        parts = [part.nvram for snapshot in self.snapshots.values() for part in snapshot.machines.values()]
        again = [machine.restoring.nvram for machine in self.machines.values() if machine.restoring]
        return frozenset({*parts, *again} - {""})

    def settled(self, machines: Collection[str]) -> Record:
        """This record once these machines are as they are to be, after a snapshot that was being taken."""
        left = tuple(name for name in self.taking.machines if name not in machines) if self.taking else ()
        return replace(self, taking=replace(self.taking, machines=left) if self.taking and left else None)

    def brought_back(self, machines: Collection[str]) -> Record:
        """This record once these machines are ready again. Others that were ready before them end their way back with the last
        of those that were not."""
        record = self.settled(machines)
        waits = {name for name, machine in self.machines.items() if machine.restoring and name not in machines}
        ended = {*machines, *waits} if all(self.is_ready_again(name) for name in waits) else set(machines)
        back = {name: replace(m, restoring=None) if name in ended else m for name, m in self.machines.items()}
        return replace(record, machines=back)

    def is_ready_again(self, name: str) -> bool:
        """Whether a machine was brought back, and has been ready since."""
        restoring = self.machines[Name(name)].restoring
        return restoring is not None and restoring.ready

    def without_memories(self) -> Record:
        """This record without the memory of any state."""
        snapshots = {
            name: replace(state, machines={machine: replace(part, memory=None) for machine, part in state.machines.items()})
            for name, state in self.snapshots.items()
        }
        return replace(self, snapshots=snapshots)

    @property
    def clean(self) -> Snapshot | None:
        """The snapshot that reset returns to."""
        return self.snapshots.get(Name(CLEAN))

    @property
    def undo(self) -> Snapshot | None:
        """What the last reset or restore left."""
        return self.snapshots.get(Name(UNDO))
