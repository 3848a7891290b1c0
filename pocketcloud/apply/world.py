"""What effects work with: the kit, its store, libvirt, the instance's files and its record as it is now."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network
from typing import Protocol

from pocketcloud.errors import NotReady, PocketcloudError
from pocketcloud.events import Event
from pocketcloud.guest import Login
from pocketcloud.hypervisor import Hypervisor
from pocketcloud.keys import KeyPair, read_public
from pocketcloud.model.base import Arch
from pocketcloud.model.kit import Kit
from pocketcloud.model.machine import MachineSpec, NetworkSpec
from pocketcloud.model.names import Name, joined
from pocketcloud.model.profile import Profile
from pocketcloud.model.record import MachineRecord, Record
from pocketcloud.profiles import Shape
from pocketcloud.records import InstanceFiles, is_written, write_record
from pocketcloud.specs import machine_address, machine_spec, network_spec
from pocketcloud.storage import Storage


class LabCache(Protocol):
    """The kit's cache, for one lab."""

    @property
    def port(self) -> int:
        """The port."""
        ...

    def serve(self, networks: Sequence[NetworkSpec]) -> None:
        """Have it served on those networks of the host, and nowhere else, while they are there."""
        ...

    def explain(self, networks: Sequence[NetworkSpec]) -> list[str]:
        """What a person would type for it."""
        ...


@dataclass
class World:
    """One instance's surroundings while a plan is applied. `now` gives the time as ISO 8601 text in UTC; `authorized` are the
    public keys that may log in beside the kit's; `near` tells the networks that this host is on or has routes to, libvirt's among
    them; `record` is the record as committed (None: none yet); `cache` the kit's cache, where machines are to use that (None:
    they use the network); `here` tells what memory is bound to of this host (see memory_fit.py); `woken` are the machines that
    were brought back from memory, and whether their clocks were set then."""

    files: InstanceFiles
    storage: Storage
    hypervisor: Hypervisor
    profile: Profile
    shape: Callable[[Arch], Shape]
    kit_key: Callable[[], KeyPair]
    authorized: tuple[str, ...]
    now: Callable[[], str]
    emit: Callable[[Event], None]
    near: Callable[[], tuple[IPv4Network, ...]] = tuple
    record: Record | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    cache: LabCache | None = None
    here: Callable[[], Mapping[str, str]] = dict
    woken: dict[str, bool] = field(default_factory=dict)
    _commit: threading.Lock = field(default_factory=threading.Lock)

    @property
    def kit(self) -> Kit:
        """The kit."""
        return self.files.kit

    @property
    def instance(self) -> str:
        """The instance's name."""
        return self.files.instance

    def domain(self, machine: str) -> str:
        """libvirt's name of a machine, or of a network."""
        return joined(self.kit.name, self.instance, machine)

    def commit(self, change: Callable[[Record], Record]) -> Record:
        """Replace the record by what `change` makes of it. Machines commit from threads of their own: one at a time."""
        with self._commit:
            changed = change(self.known)
            self._write(changed)
            return changed

    def set_record(self, record: Record) -> None:
        """Make `record` the instance's record."""
        with self._commit:
            self._write(record)

    def _write(self, record: Record) -> None:
        """Write the record. What is known is what lies there, even where that could not be made durable."""
        try:
            write_record(self.files, record)
        except (OSError, PocketcloudError):
            if is_written(self.files, record):
                self.record = record
            raise
        self.record = record

    @property
    def known(self) -> Record:
        """The record, which is there once a plan has committed."""
        if self.record is None:
            raise LookupError(f"instance {self.instance} has no record yet")
        return self.record

    def machine(self, name: str) -> MachineRecord:
        """The record of a machine."""
        return self.known.machines[Name(name)]

    def change_machine(self, name: str, **changes: object) -> None:
        """Commit a change of one machine's record."""
        self.commit(lambda record: record.with_machine(Name(name), replace(record.machines[Name(name)], **changes)))  # type: ignore[arg-type] # field names of MachineRecord

    def spec(self, name: str) -> MachineSpec:
        """The machine's specification as the record has it now."""
        shape = self.shape(self.machine(name).arch)
        return machine_spec(self.kit, self.known, Name(name), self.profile, shape, self.storage.place)

    def network(self, name: str) -> NetworkSpec:
        """The network's specification as the record has it now."""
        return network_spec(self.kit, self.known, Name(name), self.near())

    def address(self, machine: str) -> str:
        """Where the host reaches the machine: its address on the first of its networks."""
        if address := machine_address(self.known, machine):
            return address
        raise NotReady(
            f"{machine} is on no network of this kit's own, so nobody here knows its address", hint="give it one in the lab file"
        )

    def login(self, machine: str) -> Login:
        """How to log in: the kit's key for us, the machine's own key to know it by."""
        host_key = read_public(self.files.host_key(machine))
        return Login(self.address(machine), " ".join(host_key.split()[:2]), self.kit_key().private)
