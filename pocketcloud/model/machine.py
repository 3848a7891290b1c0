"""What libvirt is to make of a lab's machines and networks: specifications with every decision made."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from pocketcloud.model.base import Arch, Firmware
from pocketcloud.model.lab import NetworkKind
from pocketcloud.model.profile import Acceleration, DiskTuning


@dataclass(frozen=True, slots=True)
class Mark:
    """What makes a domain or network ours: the kit, the instance and the part it plays. Kept in libvirt's metadata."""

    kit: str
    kit_id: str
    instance: str
    part: str


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """A disk of a machine: `target` (vda; sda for a `disc`, which is in a CD-ROM drive), what to open and how; `serial` shows in
    the guest."""

    target: str
    path: Path
    format: str
    tuning: DiskTuning
    serial: str = ""
    readonly: bool = False
    disc: bool = False


@dataclass(frozen=True, slots=True)
class NicSpec:
    """A network interface: `network` is libvirt's name of the network."""

    mac: str
    network: str


@dataclass(frozen=True, slots=True)
class KernelBoot:
    """What a machine starts instead of its disk's boot loader: files of this host, and the kernel's words."""

    kernel: Path
    initrd: Path
    cmdline: str


@dataclass(frozen=True, slots=True)
class PortSpec:
    """A port that the guest has as /dev/virtio-ports/`name`; what it writes there goes into `log`."""

    name: str
    log: Path


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """A machine for the hypervisor room. `memory` in bytes; `serial_log` receives the console; `nvram` is the file of the
    UEFI variables (None with BIOS firmware); `cpus` are the host's processors it has to stay on (`4-7`; empty: any);
    `kernel`, where it is started with one; `restarts`: whether a reboot starts it again, else it switches it off; `nested`:
    whether its processor shows that it can run machines, where it can; `secure_boot`: its firmware has keys, and starts only what
    is signed by them; `screen`: whether viewers on this host find its graphical console at an address."""

    name: str
    uuid: str
    mark: Mark
    title: str
    arch: Arch
    machine: str
    acceleration: Acceleration
    cpu_mode: str
    vcpus: int
    memory: int
    firmware: Firmware
    nvram: Path | None
    disks: tuple[DiskSpec, ...]
    nics: tuple[NicSpec, ...]
    serial_log: Path
    cpus: str = ""
    kernel: KernelBoot | None = None
    ports: tuple[PortSpec, ...] = ()
    restarts: bool = True
    nested: bool = False
    secure_boot: bool = False
    screen: bool = False


@dataclass(frozen=True, slots=True)
class Lease:
    """A fixed DHCP answer."""

    mac: str
    address: IPv4Address
    hostname: str


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """A lab network for the hypervisor room: the host has the subnet's first address on `bridge`. `fenced` are networks that its
    machines may not reach, beside all private ones; None: they may reach what the host reaches. Of kind bridge it is one that
    the host has: without a subnet, names and leases of its own, and never made or removed."""

    name: str
    uuid: str
    mark: Mark
    bridge: str
    kind: NetworkKind
    subnet: IPv4Network | None
    domain: str
    leases: tuple[Lease, ...]
    fenced: tuple[IPv4Network, ...] | None = None

    @property
    def range(self) -> IPv4Network:
        """The subnet, where there is one. Raises LookupError for a bridge of the host."""
        if self.subnet is None:
            raise LookupError(f"the bridge {self.bridge} has no subnet of ours")
        return self.subnet
