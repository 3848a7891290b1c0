"""Block devices as one tree of values: what each is, what is on it, what uses it, what stands on what.

Nothing here reads or judges: host/disks.py makes these values, kit/interlocks.py says what may be chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pocketcloud.model.usb import UsbPath

# What stands in `signatures` of a device whose content could not be read.
UNREADABLE = "unreadable"
# And where it is full of what looks random and has no signature: encrypted without a header, for one.
NAMELESS = "nameless data"


@dataclass(frozen=True, slots=True)
class Scsi:
    """What only SCSI disks have; for the kernel all disks on USB and SATA are some (Linux's ABI/testing/sysfs-class-scsi_disk).

    `provisioning` is how it is trimmed: `unmap`, `writesame_16` ..., `full` (not at all), `disabled` (not any more).
    `declares_unmap` is what the disk says of itself in its vital product data (page B2h, bit LBPU), None where the kernel did
    not ask for them; `unmap_max` how much of it an UNMAP may take (page B0h), 0 where it does not say.
    """

    address: str  # 6:0:0:0
    provisioning: str = ""
    cache: str = ""  # what the disk says: write back, write through, none
    declares_unmap: bool | None = None
    unmap_max: int = 0


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """One block device. Sizes are in bytes; a text that is not known is empty, a number 0.

    `holders` are the kernel names directly above it that the kernel or we know as users (device-mapper, md, bcache, a loop
    device made of it), `parents` those directly below (a partition's disk, what a device-mapper or md device stands on);
    partitions are no holders of their disk, but `BlockDevices.above` counts them. A partition has its disk's model, serial and
    connection. `mounts` are mount points in any mount
    namespace that could be seen.
    """

    name: str  # the kernel's: sdb, sdb1, dm-0, loop3
    path: Path
    kind: str  # disk, part, lvm, crypt, raid1, loop, mpath, rom ... as lsblk says it
    size: int
    logical_sector: int = 512
    physical_sector: int = 512
    read_only: bool = False
    rotational: bool = False
    removable: bool = False
    model: str = ""
    serial: str = ""
    wwn: str = ""
    transport: str = ""  # usb, sata, nvme ...
    usb: UsbPath | None = None
    diskseq: int = 0
    optimal_io: int = 0
    signature: str = ""  # ext4, LVM2_member, crypto_LUKS ...; the first of `signatures`
    label: str = ""
    partition_table: str = ""  # gpt, dos
    mounts: tuple[str, ...] = ()
    swap: bool = False
    holders: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    number: str = ""  # 8:16
    signatures: tuple[str, ...] = ()  # all that are on it, members' before others'
    together: tuple[str, ...] = ()  # what else belongs to its file system: kernel names, or words for what is not here
    backing_file: str = ""  # of a loop device
    port: str = ""  # where it is plugged, as /dev/disk/by-path says it
    discard_max: int = 0  # 0: no TRIM
    discard_granularity: int = 0
    write_cache: str = ""  # what the kernel takes it for: write back (flushes are sent), write through
    fua: bool | None = None  # whether single writes are forced out
    scsi: Scsi | None = None


@dataclass(frozen=True, slots=True)
class BlockDevices:
    """All block devices of a host, and the other names they go by (`links`: path -> kernel name)."""

    devices: tuple[BlockDevice, ...]
    links: Mapping[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[BlockDevice]:
        return iter(self.devices)

    def get(self, what: str | Path) -> BlockDevice | None:
        """The device of that kernel name or path (also by a link below /dev/disk); None if there is none."""
        text = str(what)
        name = self.links.get(text, text.removeprefix("/dev/"))
        return next((device for device in self.devices if device.name == name or str(device.path) == text), None)

    def above(self, device: BlockDevice) -> tuple[BlockDevice, ...]:
        """Everything that stands on the device, its partitions too, the nearest first."""
        return self._closure(device, lambda one: [d for d in self.devices if one.name in d.parents or d.name in one.holders])

    def below(self, device: BlockDevice) -> tuple[BlockDevice, ...]:
        """Everything that the device stands on, the nearest first."""
        return self._closure(device, lambda one: [d for d in self.devices if d.name in one.parents or one.name in d.holders])

    def disk_of(self, device: BlockDevice) -> BlockDevice:
        """The disk that a partition is a part of; any other device is its own."""
        if device.kind != "part":
            return device
        return next((parent for name in device.parents if (parent := self.get(name))), device)

    def _closure(self, device: BlockDevice, step: Callable[[BlockDevice], Sequence[BlockDevice]]) -> tuple[BlockDevice, ...]:
        found: dict[str, BlockDevice] = {}
        front = [device]
        while front:
            front = [near for one in front for near in step(one) if near.name not in found and near.name != device.name]
            found |= {near.name: near for near in front}
        return tuple(found.values())


TIMES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03)
"""The seconds that `Measured.counts` is divided at: flash answers in the first three, a moving arm in those from 3 ms on."""


@dataclass(frozen=True, slots=True)
class Measured:
    """How quickly a disk was read: `sequential` in bytes per second, `random_reads` of 4 KiB per second, the median and the
    99th percentile of their times in seconds; `failed` reads gave an error.

    `first` is of the disk's first part, in bytes per second; `counts` are how many random reads took less than each of TIMES,
    and last how many took longer. `others` are the bytes that others read and wrote meanwhile (0: too few to matter): then the
    figures are too low. `asleep` is how many seconds it took to wake up, which is in none of the figures; 0 if it was awake.
    """

    sequential: float
    random_reads: float
    p50: float
    p99: float
    failed: int = 0
    first: float = 0.0
    counts: tuple[int, ...] = ()
    others: int = 0
    asleep: float = 0.0

    @property
    def told(self) -> dict[str, object]:
        """The figures as JSON has them."""
        words = {name: getattr(self, name) for name in ("sequential", "first", "random_reads", "p50", "p99", "failed")}
        times = [{"below": below, "reads": reads} for below, reads in zip((*TIMES, None), self.counts, strict=False)]
        return {**words, "times": times, "others": self.others, "asleep": self.asleep}
