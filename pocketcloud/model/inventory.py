"""What is there: volumes, domains and networks as their rooms report them, and the Inventory of one instance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from pocketcloud.model.base import Base
from pocketcloud.model.lab import NetworkKind
from pocketcloud.model.machine import Mark
from pocketcloud.model.record import Record


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume as it is now.

    `path` is what QEMU opens, in `format` (`qcow2`, `raw`); sizes in bytes: `size` is what a guest sees, `used` what it
    occupies by itself (None: the store would have to count first), without what it shares with `parent` (the name of the
    volume it is a clone of; None: of nothing). A `sealed` one that is `kept` stays so without clones, too. A `spare` one was
    made in advance and is nobody's yet; `marks` are those it was made with, where the store keeps them.
    """

    name: str
    path: Path
    format: str
    size: int
    used: int | None
    sealed: bool
    parent: str | None
    spare: bool = False
    marks: Mapping[str, str] = field(default_factory=dict)
    kept: bool = False


Marks = Mapping[str, str]
"""What a volume is to pocketcloud (`lab`, `machine`, `disk`, `base`, `digest`), kept with the volume where the store can keep
it: enough to tell what is there when the records are lost. Keys and values are of a-z, 0-9, '-', '_' and '.'."""


@dataclass(frozen=True, slots=True)
class Clone:
    """A clone to be made: of `source`, as `name`, of `size` bytes (0: as large as the source)."""

    source: str
    name: str
    size: int = 0
    marks: Marks = field(default_factory=dict)


# The reason of a pause.
NO_SPACE = "no space"


class DomainState(StrEnum):
    """What a domain is doing."""

    RUNNING = "running"
    PAUSED = "paused"
    OFF = "off"
    CRASHED = "crashed"


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain of ours as libvirt has it. `disks` maps targets (vda) to the paths it has or will open; `reason` explains a
    crash, and a pause from which it can go on (`no space`, `I/O error`, `suspended` by somebody), else empty; `agent` whether
    the guest agent's channel is open. `memory` is in bytes; `saved`: libvirt keeps its memory in a file, to go on from
    (managed save); `clean`: the guest itself switched it off (or rebooted, where that ends it). `machine_type` is QEMU's full
    name of what it is (`pc-q35-7.2`), `screen` where its graphical console is shown now (`vnc://127.0.0.1:5900`; empty:
    nowhere)."""

    name: str
    mark: Mark
    state: DomainState
    disks: Mapping[str, Path]
    agent: bool
    reason: str = ""
    memory: int = 0
    saved: bool = False
    clean: bool = False
    machine_type: str = ""
    screen: str = ""

    @property
    def active(self) -> bool:
        """Whether there is a process behind it: it is neither off nor crashed."""
        return self.state not in (DomainState.OFF, DomainState.CRASHED)

    @property
    def waits(self) -> bool:
        """Whether it is paused, and can go on as if nothing had been."""
        return self.state is DomainState.PAUSED and bool(self.reason)


@dataclass(frozen=True, slots=True)
class LibvirtNetwork:
    """A network of ours as libvirt has it; `subnet` as text (`10.77.3.0/24`), empty if it has none; `leases` are the IPv4
    addresses, as text, that it keeps for MAC addresses."""

    name: str
    mark: Mark
    active: bool
    bridge: str
    subnet: str
    kind: NetworkKind = NetworkKind.NAT
    leases: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Inventory:
    """What there is of one instance: its record (None: none), and by name of machine, network and volume what carries its
    mark; `bases` are those of the kit for the lab's architecture, by name."""

    record: Record | None
    domains: Mapping[str, Domain]
    networks: Mapping[str, LibvirtNetwork]
    volumes: Mapping[str, Volume]
    bases: Mapping[str, Base]

    @property
    def empty(self) -> bool:
        """Whether nothing of the instance is there (the bases' volumes are the kit's)."""
        return self.record is None and not (self.domains or self.networks or any(v.startswith("lab.") for v in self.volumes))
