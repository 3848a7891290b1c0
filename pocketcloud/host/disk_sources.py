"""Everything that says something of block devices, gathered: lsblk, wipefs, sysfs, udev, mount tables, swaps, links in /dev.

Texts and small values, not understood yet: that is disks.py, which is pure, so that it can be tried on thousands of hosts
that are none. Nothing is changed here, and no device-mapper node is opened: one left suspended would never answer.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pocketcloud.host.files import line, number, text
from pocketcloud.host.usb import read_path
from pocketcloud.model.disk import Scsi
from pocketcloud.model.usb import UsbPath
from pocketcloud.system import CommandFailed, Completed, Runner

# MOUNTPOINTS came with util-linux 2.37; a column that is not known here is left out.
COLUMNS = (
    "KNAME",
    "PATH",
    "TYPE",
    "SIZE",
    "MODEL",
    "SERIAL",
    "WWN",
    "TRAN",
    "FSTYPE",
    "LABEL",
    "PTTYPE",
    "MOUNTPOINTS",
    "PKNAME",
)
SIGNATURE_COLUMNS = "DEVICE,TYPE,USAGE,LABEL"
_ATTRIBUTES = (
    "dev", "size", "ro", "removable", "diskseq", "partition", "serial", "wwid", "loop/backing_file", "dm/name", "dm/uuid",
    "md/level", "device/model", "device/serial", "device/wwid", "queue/rotational", "queue/logical_block_size",
    "queue/physical_block_size", "queue/optimal_io_size", "queue/discard_max_bytes", "queue/discard_granularity",
    "queue/write_cache", "queue/fua",
)  # fmt: skip
_CLASS = "sys/class/block"
# A disk that is dying may take long for its first sector; one that takes longer than this is told as unreadable.
_TIMEOUT = 30.0
# In bytes; the second is where partitions begin, so that a boot loader in front of nothing does not count.
_SAMPLE, _SAMPLES = 65536, (0, 1048576)
# Of UNMAP's blocks, all bits set.
_NO_LIMIT = 0xFFFFFFFF
_BTRFS_SUPERBLOCK, _BTRFS_MAGIC, _BTRFS_DEVICES = 65536, 0x40, 0x88


@dataclass(frozen=True, slots=True)
class BlockNode:
    """A block device's folder in sysfs: attributes by their path in it, and the kernel names of its neighbours. `disk` is the
    disk that a partition is part of."""

    name: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    holders: tuple[str, ...] = ()
    slaves: tuple[str, ...] = ()
    disk: str = ""
    usb: UsbPath | None = None
    scsi: Scsi | None = None


@dataclass(frozen=True, slots=True)
class DiskSources:
    """All that is known of block devices, in the words of those who say it.

    `signatures` is wipefs's report, per device where one of them could not be read; `unreadable` has those. `btrfs_sets` are
    the kernel names of devices of one mounted btrfs each, `btrfs_counts` how many devices an unmounted one belongs to;
    `random_looking` are devices that begin with what looks like nothing but chance.
    """

    lsblk: str
    signatures: tuple[str, ...]
    nodes: tuple[BlockNode, ...]
    mountinfos: tuple[str, ...] = ()
    swaps: str = ""
    udev: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    unreadable: frozenset[str] = frozenset()
    btrfs_sets: tuple[tuple[str, ...], ...] = ()
    btrfs_counts: Mapping[str, int] = field(default_factory=dict)
    random_looking: frozenset[str] = frozenset()


def gather(root: Path, run: Runner) -> DiskSources:
    """Read everything. Raises HostLacks without lsblk or wipefs (util-linux), CommandFailed if lsblk does not answer."""
    nodes = tuple(_nodes(root))
    readable = [node for node in nodes if may_be_read(node)]
    reports, unreadable = _signatures(run, readable)
    return DiskSources(
        lsblk=_lsblk(run),
        signatures=reports,
        nodes=nodes,
        mountinfos=tuple(_mountinfos(root)),
        swaps=text(root, "proc/swaps"),
        udev=_udev() if root == Path("/") else {},
        links=dict(_links(root)),
        unreadable=unreadable,
        btrfs_sets=tuple(_btrfs_sets(root)),
        btrfs_counts=dict(_btrfs_counts(root, (node.name for node in readable), reports)),
        random_looking=frozenset(
            node.name for node in readable if node.name not in unreadable and _looks_random(root, node.name)
        ),
    )


def may_be_read(node: BlockNode) -> bool:
    """Whether a device is looked at for signatures: disks, partitions, loop devices that have a medium."""
    stacked = node.slaves or node.name.startswith(("dm-", "md", "sr", "fd", "zram", "nbd"))
    return not stacked and node.attributes.get("size", "0") != "0"


# -- commands


def _lsblk(run: Runner) -> str:
    columns = list(COLUMNS)
    while True:
        try:
            # -a: RAM disks, too, which are left out otherwise. 32 and 64: some devices went while it looked.
            return run(["lsblk", "-J", "-b", "-a", "-o", ",".join(columns)], codes=(0, 32, 64), timeout=_TIMEOUT).out
        except CommandFailed as failed:
            unknown = failed.completed.err.partition("unknown column:")[2].split(",")[0].strip()
            if unknown not in columns:
                raise
            columns.remove(unknown)


def _signatures(run: Runner, nodes: Sequence[BlockNode]) -> tuple[tuple[str, ...], frozenset[str]]:
    """wipefs on all at once; it gives up at the first that it cannot read, so then on one after the other."""
    paths = [f"/dev/{node.name.replace('!', '/')}" for node in nodes]
    if not paths:
        return (), frozenset()
    done = _wipefs(run, paths)
    if done is not None and done.code == 0:
        return (done.out,), frozenset()
    reports, unreadable = [], set()
    for node, path in zip(nodes, paths, strict=True):
        done = _wipefs(run, [path])
        if done is not None and done.code == 0:
            reports.append(done.out)
        else:
            unreadable.add(node.name)
    return tuple(reports), frozenset(unreadable)


def _wipefs(run: Runner, paths: Sequence[str]) -> Completed | None:
    """Not blkid or udev: where two signatures lie on a device, they say neither, and udev may not have looked yet."""
    try:
        return run(["wipefs", "-J", "-n", "-O", SIGNATURE_COLUMNS, *paths], codes=range(256), timeout=_TIMEOUT)
    except CommandFailed:
        return None


# -- sysfs


def _nodes(root: Path) -> Iterator[BlockNode]:
    with contextlib.suppress(OSError):
        for entry in sorted((root / _CLASS).iterdir()):
            with contextlib.suppress(OSError):  # it may go while we look
                yield _node(root, entry)


def _node(root: Path, entry: Path) -> BlockNode:
    place = entry.resolve(strict=True)
    present = set(_entries(place))
    attributes = {name: value for name in _ATTRIBUTES if name.partition("/")[0] in present and (value := line(place, name))}
    disk = ""
    if "partition" in attributes:
        disk = place.parent.name
        # What a partition inherits stands at its disk only.
        inherited = [name for name in _ATTRIBUTES if name.startswith("queue/") or name == "diskseq"]
        attributes |= {name: value for name in inherited if (value := line(place.parent, name))}
        if line(place.parent, "ro") == "1":
            attributes["ro"] = "1"
    elif serial := _vital_serial(place):
        attributes.setdefault("device/serial", serial)
    neighbours = (_entries(place / "holders"), _entries(place / "slaves"))
    return BlockNode(entry.name, attributes, *neighbours, disk, read_path(place, root), _scsi(place))


def _entries(folder: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(entry.name for entry in folder.iterdir()))
    except OSError:
        return ()


def _vital_serial(place: Path) -> str:
    """The serial of a SCSI disk as page 80h of its vital product data has it: four bytes of header, then the text."""
    return _page(place, "80")[4:].decode("ascii", "replace").replace("\0", " ").strip()


def _scsi(place: Path) -> Scsi | None:
    """What the folder of a SCSI disk and its pages of vital product data have. The pages are those of SBC-4; in B2h bit 7 of byte
    5 is LBPU, in B0h the word at 20 is the most blocks that an UNMAP may have."""
    found = sorted(place.glob("device/scsi_disk/*"))
    if not found:
        return None
    provisioning, limits = _page(place, "b2"), _page(place, "b0")
    most = int.from_bytes(limits[20:24], "big")
    block = line(place, "queue/logical_block_size")
    return Scsi(
        found[0].name,
        line(found[0], "provisioning_mode"),
        line(found[0], "cache_type"),
        bool(provisioning[5] & 0x80) if len(provisioning) > 5 else None,
        most * (number(block) or 0) if most != _NO_LIMIT else 0,
    )


def _page(place: Path, number: str) -> bytes:
    try:
        return (place / f"device/vpd_pg{number}").read_bytes()
    except OSError:
        return b""


# -- mount tables, links, udev, btrfs


def _mountinfos(root: Path) -> Iterator[str]:
    """The mount table of each mount namespace that can be seen: containers and desktop programs have their own."""
    seen = set()
    processes = sorted((entry.name for entry in (root / "proc").glob("[0-9]*")), key=lambda name: number(name) or 0)
    for process in ["self", *processes]:
        try:
            namespace = str((root / "proc" / process / "ns/mnt").readlink())
        except OSError:
            namespace = process
        if namespace not in seen and (table := text(root, f"proc/{process}/mountinfo")):
            seen.add(namespace)
            yield table


def _links(root: Path) -> Iterator[tuple[str, str]]:
    for folder in ("dev/mapper", *(f"dev/disk/{entry}" for entry in _entries(root / "dev/disk"))):
        for name in _entries(root / folder):
            with contextlib.suppress(OSError):
                yield f"/{folder}/{name}", (root / folder / name).readlink().name


def _udev() -> Mapping[str, Mapping[str, str]]:
    """udev's properties by kernel name; empty where udev's library or its database is not there."""
    try:
        import pyudev

        devices = pyudev.Context().list_devices(subsystem="block")
        return {device.sys_name: dict(device.properties.items()) for device in devices}
    except (ImportError, OSError):
        return {}


def _btrfs_sets(root: Path) -> Iterator[tuple[str, ...]]:
    """Only mounted file systems are listed there."""
    with contextlib.suppress(OSError):
        for folder in (root / "sys/fs/btrfs").iterdir():
            if members := _entries(folder / "devices"):
                yield members


def _btrfs_counts(root: Path, names: Iterable[str], reports: Sequence[str]) -> Iterator[tuple[str, int]]:
    """How many devices each btrfs consists of, by its superblock (struct btrfs_super_block, num_devices): the others need not
    be plugged in."""
    if not any('"btrfs"' in report for report in reports):
        return
    for name in names:
        with contextlib.suppress(OSError):
            with (root / "dev" / name).open("rb") as device:
                device.seek(_BTRFS_SUPERBLOCK)
                block = device.read(4096)
            if block[_BTRFS_MAGIC : _BTRFS_MAGIC + 8] == b"_BHRfS_M":
                yield name, int.from_bytes(block[_BTRFS_DEVICES : _BTRFS_DEVICES + 8], "little")


def _looks_random(root: Path, name: str) -> bool:
    """Whether a device's beginning has all bytes about equally often, as what is encrypted has; VeraCrypt's and plain dm-crypt's
    disks have no signature at all."""
    try:
        with (root / "dev" / name).open("rb") as device:
            for place in _SAMPLES:
                device.seek(place)
                counts = Counter(device.read(_SAMPLE))
                if len(counts) < 256 or max(counts.values()) > 2 * _SAMPLE // 256:
                    return False
    except OSError:
        return False
    return True


# -- who has it open


def writers(number: int, root: Path = Path("/")) -> tuple[str, ...]:
    """The processes, but for this one, that have the block device `number` (st_rdev) open for writing: `qemu-system-x86 (4711)`.

    A guest that was given a whole disk claims nothing in the kernel: this is the only trace it leaves. Needs root to see
    other users' processes.
    """
    others = [process for process in (root / "proc").glob("[0-9]*") if process.name != str(os.getpid())]
    found = [process for process in others if any(_writes(process, handle, number) for handle in _entries(process / "fd"))]
    return tuple(sorted(f"{line(process, 'comm')} ({process.name})" for process in found))


def _writes(process: Path, handle: str, number: int) -> bool:
    try:
        status = (process / "fd" / handle).stat()
    except OSError:
        return False
    if not stat.S_ISBLK(status.st_mode) or status.st_rdev != number:
        return False
    flags = next((row.split()[1] for row in text(process, f"fdinfo/{handle}").splitlines() if row.startswith("flags:")), "0")
    return int(flags, 8) & os.O_ACCMODE != os.O_RDONLY
