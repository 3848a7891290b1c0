"""Facts: what the host is, as the host room reads it. Judgements over them are `check`'s."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network

from pocketcloud.model.base import Arch


class KvmState(StrEnum):
    """What a timed loop through KVM's ioctls proved."""

    USABLE = "usable"
    SLOW = "slow"
    """It answers and computes right, but every instruction is emulated: a kernel never gets up."""
    ABSENT = "absent"
    DENIED = "denied"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Kvm:
    """KVM as proven: `nanoseconds` an instruction took in the timed loop (0: not run); `evidence` says how it is known.

    `nested_state` is the size in bytes of a nested guest's state, `arm_el2` whether guests may enter EL2, as KVM tells of
    itself: 0 and False where it does not nest, or was not asked.
    """

    state: KvmState
    evidence: str
    nanoseconds: float = 0.0
    nested_state: int = 0
    arm_el2: bool = False


@dataclass(frozen=True, slots=True)
class Distribution:
    """From os-release: `id` (debian), `version` (12), `codename` (bookworm), `name` for people, `like` other ids it follows."""

    id: str
    version: str
    codename: str
    name: str
    like: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Subnet:
    """An IPv4 network that is taken, and by what (`route via eth0`, `libvirt network default`)."""

    network: IPv4Network
    holder: str


def libvirt_holder(network: str) -> str:
    """The holder of the subnets that one of libvirt's networks has."""
    return f"libvirt network {network}"


@dataclass(frozen=True, slots=True)
class Core:
    """A kind of ARM core: its name (`core 0x41:0xd99` where it is not known), the architecture's version (8.2; may be empty),
    whether it can run machines inside machines (None: not known), the numbers of the processors that are such, and what
    these can do together, in the kernel's units (`cpu_capacity`: 1024 is this computer's quickest one; 0: not told)."""

    name: str
    version: str
    nests: bool | None
    cpus: tuple[int, ...]
    capacity: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """The host. Memory in bytes: `memory` in all, `memory_available` what could be had now without swapping (MemAvailable).

    `arch` is None on an architecture that pocketcloud does not know, `machine` is `uname -m`; `model` is the device tree's
    or the DMI's name of the computer; `device_tree` whether it has a device tree; `virtualised` names the hypervisor the
    host itself runs under (empty: none seen); `subnets` are the IPv4 networks routed, addressed or otherwise taken here,
    without those of libvirt; `compatible` what the device tree says the computer is compatible with, its own name first;
    `cores` the kinds of ARM cores.
    """

    arch: Arch | None
    machine: str
    kernel: str
    distribution: Distribution
    model: str
    device_tree: bool
    cpus: int
    memory: int
    memory_available: int
    kvm: Kvm
    virtualised: str
    systemd: bool
    subnets: tuple[Subnet, ...]
    compatible: tuple[str, ...] = ()
    cores: tuple[Core, ...] = ()
