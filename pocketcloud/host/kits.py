"""Where kits may be plugged in: LVM's physical volumes among the block devices, and what carries them. Only reads.

Whose they are, LVM is asked elsewhere; which disks may be written to is disks.py's and the interlocks' matter.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from pocketcloud.model.profile import Medium

BY_NUMBER = Path("/sys/dev/block")
_ROOT = Path("/")
_SECTOR = 512
_GPT = b"EFI PART"
# What never carries a kit, or stands on what does.
_PASSED_OVER = ("dm-", "zram", "sr", "fd", "mtdblock")


def physical_volumes(root: Path = _ROOT) -> tuple[Path, ...]:
    """The devices with LVM's label, by name. udev's word is taken where it has one, which leaves sleeping disks asleep."""
    known = _by_udev() if root == _ROOT else {}
    found = []
    for folder in sorted((root / "sys/class/block").glob("*")):
        if folder.name.startswith(_PASSED_OVER) or _number(folder / "size") == 0:
            continue
        device = node(folder.name, root)
        if known[folder.name] if folder.name in known else has_label(device):
            found.append(device)
    return tuple(found)


def _by_udev() -> dict[str, bool]:
    """Whether each block device is a physical volume, as far as udev's database has it; empty without udev."""
    known: dict[str, bool] = {}
    with contextlib.suppress(ImportError, OSError):
        import pyudev

        for device in pyudev.Context().list_devices(subsystem="block"):
            if device.is_initialized and device.properties.get("DEVTYPE") in ("disk", "partition"):
                kind = device.properties.get("ID_FS_TYPE", "")
                # A device that is claimed by something above shows no type after a change; then the label tells.
                if kind:
                    known[device.sys_name] = kind == "LVM2_member"
    return known


def has_label(device: Path, at: int = 0) -> bool:
    """Whether an LVM label lies on the device, `at` bytes from its start: in one of its first four sectors (pvcreate(8));
    False where it cannot be read."""
    try:
        with device.open("rb", buffering=0) as disk:
            disk.seek(at)
            start = disk.read(4 * _SECTOR)
    except OSError:
        return False
    sectors = [start[n * _SECTOR : (n + 1) * _SECTOR] for n in range(4)]
    return any(sector.startswith(b"LABELONE") and sector[24:32] == b"LVM2 001" for sector in sectors)


def table_sector_size(disk: Path) -> int:
    """The sector size, in bytes, that the disk's GPT was written for; 0 if there is no GPT. The kernel does not see a table
    that was written for another size than the disk shows now."""
    with contextlib.suppress(OSError), disk.open("rb", buffering=0) as read:
        start = read.read(4096 + len(_GPT))
        return next((size for size in (512, 4096) if start[size:].startswith(_GPT)), 0)
    return 0


def kernel_name(device: Path, root: Path = _ROOT) -> str:
    """The kernel's name of a block device node, whatever link it is named by; empty if it is none."""
    try:
        number = device.stat().st_rdev
    except OSError:
        return ""
    link = root / "sys/dev/block" / f"{os.major(number)}:{os.minor(number)}"
    return link.resolve().name if number and link.exists() else ""


def node(kernel: str, root: Path = _ROOT) -> Path:
    """The device node of a kernel name; for a device-mapper device the one with its lasting name."""
    if mapped := mapped_name(kernel, root):
        return root / "dev/mapper" / mapped
    return root / "dev" / kernel.replace("!", "/")


def mapped_name(kernel: str, root: Path = _ROOT) -> str:
    """Device-mapper's name of a device; empty for any other."""
    with contextlib.suppress(OSError):
        return (root / "sys/class/block" / kernel / "dm/name").read_text().strip()
    return ""


def group_of(mapped: str) -> str:
    """The volume group in device-mapper's name of a logical volume, where dashes are doubled and one joins."""
    return mapped.replace("--", "\0").partition("-")[0].replace("\0", "-")


def below(kernel: str, root: Path = _ROOT) -> tuple[str, ...]:
    """What a device stands on directly: kernel names, those of devices that are gone among them."""
    with contextlib.suppress(OSError):
        return tuple(sorted(entry.name for entry in (root / "sys/class/block" / kernel / "slaves").iterdir()))
    return ()


def above(kernel: str, root: Path = _ROOT) -> tuple[str, ...]:
    """What stands on a device directly: kernel names."""
    with contextlib.suppress(OSError):
        return tuple(sorted(entry.name for entry in (root / "sys/class/block" / kernel / "holders").iterdir()))
    return ()


def is_there(kernel: str, root: Path = _ROOT) -> bool:
    """Whether the device is there; a link to it may outlive it where something stands on it."""
    return (root / "sys/class/block" / kernel).exists()


def partitions(kernel: str, root: Path = _ROOT) -> tuple[str, ...]:
    """The kernel names of a disk's partitions."""
    return tuple(sorted(entry.parent.name for entry in (root / "sys/class/block" / kernel).glob("*/partition")))


def partition_names(root: Path = _ROOT) -> dict[str, str]:
    """All partitions by their kernel names, and what each is called in its partition table (empty: nothing)."""
    found = {}
    for folder in sorted((root / "sys/class/block").glob("*")):
        with contextlib.suppress(OSError):
            told = dict(
                line.split("=", 1) for line in (folder / "uevent").read_text(errors="replace").splitlines() if "=" in line
            )
            if told.get("DEVTYPE") == "partition":
                found[folder.name] = told.get("PARTNAME", "")
    return found


def disk_of(kernel: str, root: Path = _ROOT) -> str:
    """The kernel name of the disk that a partition is on; any other device's own."""
    folder = (root / "sys/class/block" / kernel).resolve()
    return folder.parent.name if (folder / "partition").exists() else kernel


def sector_size(kernel: str, root: Path = _ROOT) -> int:
    """The logical sector size in bytes; 0 if it is not known."""
    return _number(root / "sys/class/block" / disk_of(kernel, root) / "queue/logical_block_size")


def is_read_only(kernel: str, root: Path = _ROOT) -> bool:
    """Whether nothing can be written to it."""
    return _number(root / "sys/class/block" / kernel / "ro") == 1


def medium(kernel: str, root: Path = _ROOT) -> Medium:
    """What the device is, for the choice of its settings: of one that stands on others, what those are."""
    names = list(_lowest(kernel, root))
    if any(name.startswith("loop") for name in names):
        return Medium.LOOP
    paths = [(root / "sys/class/block" / name).resolve() for name in names]
    return Medium.USB if any(part.startswith("usb") for path in paths for part in path.parts) else Medium.INTERNAL


def _lowest(kernel: str, root: Path) -> Iterator[str]:
    under = below(kernel, root)
    if not under:
        yield kernel
    for name in under:
        yield from _lowest(name, root)


def loop_file(kernel: str, root: Path = _ROOT) -> Path | None:
    """The file behind a loop device; None for any other, and for one that is free."""
    try:
        text = (root / "sys/block" / kernel / "loop/backing_file").read_text().removesuffix("\n")
    except OSError:
        return None
    return Path(text.removesuffix(" (deleted)"))


def loops_of(file: Path, root: Path = _ROOT) -> tuple[str, ...]:
    """The kernel names of the loop devices that a file lies behind."""
    names = (folder.name for folder in sorted((root / "sys/block").glob("loop*")))
    return tuple(name for name in names if (found := loop_file(name, root)) is not None and _same(found, file))


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return one == other.absolute()


def _number(path: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return 0
