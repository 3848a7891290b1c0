"""What is wanted: a lab as its YAML file declares it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network
from typing import Any, ClassVar, Literal

from pocketcloud.model.base import Arch
from pocketcloud.model.data_disk import DISK_BOUNDS, Disk
from pocketcloud.model.names import Name, is_package
from pocketcloud.model.sizes import MIB, TIB, Duration, Size, bounded, size_text

# Keys that a file may not have are refused; pydantic reads this attribute of a plain dataclass (documents.py).
_STRICT = {"extra": "forbid"}

NATIVE: Literal["native"] = "native"
READY_WITHIN = Duration(600)
CHECK_WITHIN = Duration(30)

# Less than this no guest gets up with; more than this is a slip of the keyboard.
_MEMORY = (16 * MIB, 4 * TIB)
_MOST_POINTS = 1000
DISK_SERIAL = 20
"""How many characters of a disk's name the guest is told, as /dev/disk/by-id/virtio-NAME: virtio-blk has no more."""
SEED_SERIAL = "seed"
"""What the guest finds the disk with its settings by."""

# Whatever anybody may number a network of his own with: RFC 1918, and RFC 2544, of benchmarks.
_PRIVATE = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15")))
_OF = f"of {', '.join(map(str, _PRIVATE[:-1]))} or {_PRIVATE[-1]}"


class Outside(StrEnum):
    """What a lab takes from outside while it is raised and used: `nothing`; what the kit's `cache` can keep, so that it works
    without a network where it was synced before; what only a `network` has."""

    NOTHING = "nothing"
    CACHE = "cache"
    NETWORK = "network"


@dataclass(frozen=True, slots=True)
class Needs:
    """What a lab takes as a whole: `memory` that the host can give its machines, QEMU's share not counted; `space` that the
    kit has free before it is raised for the first time; what comes from `outside`; whether the host's processor has to let
    machines run machines (`nesting`). Left out: what its machines say."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    memory: Size | None = None
    space: Size | None = None
    outside: Outside | None = None
    nesting: bool = False

    def __post_init__(self) -> None:
        if self.memory is not None:
            bounded("memory", self.memory, _MEMORY)
        if self.space is not None:
            bounded("space", self.space, DISK_BOUNDS)


class NetworkKind(StrEnum):
    """How a lab network meets the world: `nat` reaches out through the host and its address, `routed` reaches and is reached
    by its own addresses, `isolated` does not; with `bridge` machines sit on a bridge that the host has."""

    NAT = "nat"
    ISOLATED = "isolated"
    ROUTED = "routed"
    BRIDGE = "bridge"

    @property
    def forwards(self) -> bool:
        """Whether the host forwards packets between such a network and others."""
        return self in (NetworkKind.NAT, NetworkKind.ROUTED)


class ResetKind(StrEnum):
    """How machines come back to `clean`: `cold` by a start, `warm` from memory that is kept with it, where that fits."""

    COLD = "cold"
    WARM = "warm"


@dataclass(frozen=True, slots=True)
class LabNetwork:
    """A network of a lab; `subnet`, a private /24, where it has to be this one and no other: left out, one that is free is
    chosen, and another where that is taken. `lan`: whether machines on a `nat` or `routed` network reach the networks that this
    host is on by themselves, or only what is beyond them. `bridge`, of that kind only: the host's bridge,
    where addresses are not ours to give."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    kind: NetworkKind = NetworkKind.NAT
    subnet: IPv4Network | None = None
    lan: bool = False
    bridge: str | None = None

    def __post_init__(self) -> None:
        if (self.kind is NetworkKind.BRIDGE) != (self.bridge is not None):
            raise ValueError("bridge: names a bridge of the host, as br0, for networks of kind bridge and for no others")
        # Of what the kernel takes for an interface's name (its dev_valid_name), what a terminal and a shell take as it is.
        if self.bridge is not None and not re.fullmatch(r"(?!\.\.?$)[A-Za-z0-9._][A-Za-z0-9._-]{0,14}", self.bridge):
            raise ValueError(f"bridge: {self.bridge[:40]!r} is no name of an interface")
        if self.bridge is not None and self.subnet is not None:
            raise ValueError(
                "subnet: who serves on the bridge gives addresses there; a network of kind bridge has none of its own"
            )
        if self.bridge is not None and self.lan:
            raise ValueError("lan: machines on a bridge are on the host's network itself; nothing is to be allowed")
        if self.lan and not self.kind.forwards:
            raise ValueError(f"lan: is for networks of kind nat or routed; from one that is {self.kind} nothing reaches out")
        if self.subnet is not None and not (self.subnet.prefixlen == 24 and any(map(self.subnet.subnet_of, _PRIVATE))):
            raise ValueError(f"subnet: expected a private /24, as 10.99.1.0/24, got {self.subnet} ({_OF})")


@dataclass(frozen=True, slots=True)
class Attachment:
    """How a machine sits on a network; `address` is the host part in the lab's /24 (2 to 254), left out: assigned."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    address: int | None = None

    def __post_init__(self) -> None:
        if self.address is not None and not 2 <= self.address <= 254:
            raise ValueError(f"expected the host part of an address, 2 to 254, got {self.address}")


@dataclass(frozen=True, slots=True)
class ProvisionStep:
    """One thing done as root in a new machine: write a file (`write` and `content`) or run a command line (`run`, in sh).
    In a file `content` may be taken from another (provision_files.py)."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    write: str | None = None
    content: str | None = None
    mode: str = "0644"
    run: str | None = None

    def __post_init__(self) -> None:
        if (self.write is None) == (self.run is None):
            raise ValueError("expected either `write:` (with `content:`) or `run:`")
        if self.write is not None:
            if not self.write.startswith("/") or "\0" in self.write:
                raise ValueError(f"write: expected an absolute path, got {self.write!r}")
            if self.content is None:
                raise ValueError("write: needs `content:` or `from:`")
        elif self.content is not None:
            raise ValueError("content: goes with `write:`, not with `run:`")
        if len(self.mode) not in (3, 4) or set(self.mode) - set("01234567"):
            raise ValueError(f"mode: expected an octal mode in quotes, as '0644', got {self.mode!r}")

    @property
    def title(self) -> str:
        """The step in a few words, for progress and errors."""
        if self.write is not None:
            return f"write {self.write}"
        first = (self.run or "").strip().splitlines()[:1]
        return f"run {first[0][:60] if first else ''}"


@dataclass(frozen=True, slots=True)
class Ready:
    """When a machine counts as ready; all that is given must hold, within `within` seconds of its start.

    ssh: a login by ssh succeeds. tcp: a port of the machine accepts connections. command: a command line run as root ends
    with 0. console: a regular expression found in a line of the serial console since this start. Nothing given: ssh.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT

    ssh: bool = False
    tcp: int | None = None
    command: str | None = None
    console: str | None = None
    within: Duration = READY_WITHIN

    def __post_init__(self) -> None:
        if self.tcp is not None and not 1 <= self.tcp <= 65535:
            raise ValueError(f"tcp: expected a port, 1 to 65535, got {self.tcp}")
        if self.console is not None:
            try:
                re.compile(self.console)
            except re.error as error:
                raise ValueError(f"console: {self.console!r} is not a regular expression: {error}") from None

    @property
    def needs_ssh(self) -> bool:
        """Whether proving readiness takes a login."""
        return self.ssh or self.command is not None or (self.tcp is None and self.console is None)


@dataclass(frozen=True, slots=True)
class Machine:
    """One VM of a lab. `disk` is the size of its system disk, left out: the base's. `packages` are installed by its own package
    manager when it is new, before `provision`. `nested`: whether it runs machines of its
    own with the host's help; `emulate`: without that help too, its machines then are emulated. `secure_boot`: its firmware
    starts only what is signed. One that is `protected` keeps its disks when the others are reset, unless that is said of it."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    base: Name
    memory: Size = Size(512 * MIB)
    vcpus: int = 1
    disk: Size | None = None
    disks: tuple[Disk, ...] = ()
    networks: Mapping[Name, Attachment] = field(default_factory=dict)
    provision: tuple[ProvisionStep, ...] = ()
    ready: Ready = Ready()
    nested: Literal[False, True, "emulate"] = False
    secure_boot: bool = False
    packages: tuple[str, ...] = ()
    protected: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.vcpus <= 512:
            raise ValueError(f"vcpus: expected 1 to 512, got {self.vcpus}")
        if not self.networks and (self.needs_ssh or self.ready.tcp is not None):
            raise ValueError("needs a network to be provisioned or proven ready over; without one: `ready: {console: ...}`")
        if odd := [name for name in self.packages if not is_package(name)]:
            raise ValueError(f"packages: no package is called {odd[0][:60]!r}; names alone, without versions or options")
        known = {SEED_SERIAL: "the disk with the machine's settings"}
        for disk in self.disks:
            if (other := known.setdefault(disk.name[:DISK_SERIAL], disk.name)) != disk.name:
                raise ValueError(
                    f"disks: {disk.name} could not be told from {other}: the machine finds it by its first {DISK_SERIAL} letters"
                )
        bounded("memory", self.memory, _MEMORY)
        if self.disk is not None:
            bounded("disk", self.disk, DISK_BOUNDS)

    @property
    def runs_machines(self) -> bool:
        """Whether it may run machines of its own."""
        return self.nested is not False

    @property
    def needs_ssh(self) -> bool:
        """Whether bringing it up takes a login: to provision it or to prove it ready."""
        return self.to_provision or self.ready.needs_ssh

    @property
    def to_provision(self) -> bool:
        """Whether anything is done in it when it is new."""
        return bool(self.packages or self.provision)


@dataclass(frozen=True, slots=True)
class Check:
    """A question to a machine: whether `run`, a command line for sh, ends there with 0 as root, within `within` seconds. It is
    worth `points`; `hint` is for who did not pass. Checks are asked from the host: no machine's disk ever holds them."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    name: Name
    machine: Name
    run: str
    points: int = 1
    hint: str = ""
    within: Duration = CHECK_WITHIN

    def __post_init__(self) -> None:
        if not self.run.strip() or "\0" in self.run:
            raise ValueError(f"run: expected a command line, got {self.run[:40]!r}")
        if not 0 <= self.points <= _MOST_POINTS:
            raise ValueError(f"points: expected 0 to {_MOST_POINTS}, got {self.points}")


@dataclass(frozen=True, slots=True)
class Lab:
    """Machines, networks and disks declared in one file; the unit of up, reset and down. `arch` is the architecture of its
    machines: the host's own (`native`), or one by name, which is emulated where it is not the host's. `checks` are what
    `lab status --checks` asks its machines. `teaches` are lines for whoever
    chooses a lab, `needs` what it takes as a whole. `reset`: whether `clean` is taken with the machines' memory."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    lab: Name
    machines: Mapping[Name, Machine]
    networks: Mapping[Name, LabNetwork] = field(default_factory=dict)
    title: str = ""
    arch: Arch | Literal["native"] = NATIVE
    checks: tuple[Check, ...] = ()
    teaches: tuple[str, ...] = ()
    needs: Needs = Needs()
    reset: ResetKind = ResetKind.COLD

    def __post_init__(self) -> None:
        least = sum(machine.memory for machine in self.machines.values())
        if self.needs.memory is not None and self.needs.memory < least:
            told = size_text(self.needs.memory)
            raise ValueError(f"needs: memory: its machines have {size_text(least)} together, and {told} is less")
        if self.needs.nesting and not any(machine.runs_machines for machine in self.machines.values()):
            raise ValueError("needs: nesting: none of its machines is `nested:`")

    @property
    def memory(self) -> Size:
        """What its machines have together, in bytes, or more where it says so."""
        return self.needs.memory or Size(sum(machine.memory for machine in self.machines.values()))

    @property
    def nesting(self) -> bool:
        """Whether a machine of it runs machines with the host's help, and not without."""
        return any(machine.nested is True for machine in self.machines.values())

    def arch_on(self, host: Arch) -> Arch:
        """The architecture of its machines on a host of that one."""
        return host if self.arch == NATIVE else Arch(self.arch)
