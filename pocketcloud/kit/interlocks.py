"""Which disk may be chosen for a kit, and which may not, whatever was typed: nothing of the user's is ever harmed.

`objections` and `contents` judge a tree of values and do nothing; `check_target` makes errors of it and has the serial typed
back; `claimed` holds the device while it is written and looks once more. What is in doubt counts as in use. The checks are
those of coreos-installer (mounts, swap and holders), bmaptool (O_EXCL), LVM, and of people who lost a disk to other tools.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.errors import Refused, UsageError
from pocketcloud.host.disk_sources import writers
from pocketcloud.model.disk import NAMELESS, UNREADABLE, BlockDevice, BlockDevices
from pocketcloud.model.sizes import GIB, size_text
from pocketcloud.storage.lvm_layout import SMALLEST

# Before the kit's partition on a whole disk.
FRONT = GIB
# Kinds of disks that are what they seem: what is not known to be one is none (network disks, zram, eMMC boot parts).
_SUITABLE = re.compile(r"(sd[a-z]+|x?vd[a-z]+|hd[a-z]+|ubd[a-z]+|nvme\d+n\d+p?|mmcblk\d+p?|ram\d+p?)\d*|loop\d+")
# <linux/fs.h>: _IOR(0x12, 114, size_t), _IOR(0x12, 128, __u64); the latter since Linux 5.15.
_BLKGETSIZE64, _BLKGETDISKSEQ = 0x80081272, 0x80081280
# For those who look at each new disk: udev, udisks, smartd. In seconds.
_PATIENCE, _PAUSE = 5.0, 0.1
_SYSTEM = ("/", "/boot", "/boot/efi", "/efi", "/usr", "/var", "/home", "/nix", "/gnu", "/sysroot", "/ostree")
# What is part of something larger, or locked, as libblkid names it. What ends in _member is one, too.
_MEMBERS = {
    "LVM2_member": "belongs to a volume group of LVM",
    "LVM1_member": "belongs to a volume group of LVM",
    "linux_raid_member": "belongs to a RAID (md)",
    "crypto_LUKS": "is encrypted (LUKS)",
    "zfs_member": "belongs to a ZFS pool",
    "bcache": "belongs to a cache (bcache)",
    "drbd": "belongs to a DRBD",
    "stratis": "belongs to a Stratis pool",
    "ceph_bluestore": "belongs to a Ceph store",
    "DM_snapshot_cow": "is a snapshot's store",
    "DM_integrity": "belongs to dm-integrity",
    "DM_verity_hash": "belongs to dm-verity",
    "vdo": "belongs to a VDO volume",
}
_CONTENTS = {
    UNREADABLE: "content that cannot be read",
    NAMELESS: "data of no known kind, as on an encrypted disk",
}


@dataclass(frozen=True, slots=True)
class _Objection:
    """Why not, and what the user can do about it."""

    reason: str
    cure: str = "choose another disk (lsblk lists them)"


def described(devices: BlockDevices, target: BlockDevice) -> str:
    """The device as people know it: model, size, serial, path."""
    if target.kind == "loop":
        return f"{target.path} ({size_text(target.size)}, file {target.backing_file or 'unknown'})"
    disk = devices.disk_of(target)
    facts = [size_text(disk.size), f"serial {disk.serial}" if disk.serial else "no serial", str(disk.path)]
    whole = f"{disk.model or 'disk'} ({', '.join(facts)})"
    return whole if disk.name == target.name else f"partition {target.path} ({size_text(target.size)}) of {whole}"


# -- what speaks against it


def objections(
    devices: BlockDevices,
    target: BlockDevice,
    *,
    kit_sources: Collection[str] = (),
    ours: Collection[str] = (),
    file: Path | None = None,
) -> tuple[str, ...]:
    """Why the device may not be chosen, a reason each; empty if it may.

    `kit_sources` are the devices (kernel names or paths) that attached kits lie on. `ours` are those whose LVM member was
    proven to be an unattached kit's by its tags, so that it may be erased or begun again. `file` is what was given as
    --file: a loop device is accepted only with it behind.
    """
    return tuple(found.reason for found in _objections(devices, target, kit_sources, ours, file))


def _objections(
    devices: BlockDevices, target: BlockDevice, kit_sources: Collection[str], ours: Collection[str], file: Path | None
) -> Iterator[_Objection]:
    yield from _of_its_kind(devices, target, file)
    yield from _of_its_size(target)
    stack = (target, *devices.above(target))
    beneath = devices.below(target)
    sources = {str(source).removeprefix("/dev/") for source in kit_sources}
    for device in (*stack, *beneath):
        if device.name in sources or str(device.path) in kit_sources:
            yield _Objection(f"{_named(device)} carries an attached kit", "detach that kit first: pocketcloud kit detach")
    for device in stack:
        yield from _of_use(devices, device)
        yield from _of_membership(device, {str(one).removeprefix("/dev/") for one in ours})
    for device in beneath:
        # Other partitions of its disk may be in use, but not the disk as a whole.
        yield from _of_use(devices, device)
        yield from _of_membership(device, ())


def _of_its_kind(devices: BlockDevices, target: BlockDevice, file: Path | None) -> Iterator[_Objection]:
    if target.kind == "loop":
        if file is None or target.backing_file != str(file):
            yield _Objection(
                f"it is a loop device of {target.backing_file or 'something unknown'}",
                "give the file itself: pocketcloud kit init --file PATH",
            )
        twins = [d.name for d in devices if d.name != target.name and d.backing_file and d.backing_file == target.backing_file]
        if twins:
            yield _Objection(
                f"its file is also behind {', '.join(twins)}", f"losetup --detach /dev/{twins[0]}, if nobody needs it"
            )
    elif target.kind not in ("disk", "part"):
        below = ", ".join(target.parents) or "other devices"
        yield _Objection(f"it is no disk but stands on {below} ({target.kind})", "name the disk or partition itself")
    elif not _SUITABLE.fullmatch(target.name):
        yield _Objection(f"{target.name} is of a kind that pocketcloud does not know as a disk")
    if target.read_only:
        yield _Objection("it is read-only", "look for a write-protect switch, or choose another disk (lsblk lists them)")


def _of_its_size(target: BlockDevice) -> Iterator[_Objection]:
    needed = SMALLEST + FRONT if target.kind == "disk" else SMALLEST
    if target.size == 0:
        yield _Objection("there is no medium in it", "insert one")
    elif target.size < needed:
        yield _Objection(f"it is too small: {size_text(target.size)}, a kit needs {size_text(needed)}", "choose a larger one")


def _of_use(devices: BlockDevices, device: BlockDevice) -> Iterator[_Objection]:
    system = [point for point in device.mounts if point in _SYSTEM]
    if system:
        yield _Objection(f"{_named(device)} carries this computer's system ({', '.join(system)})")
    elif device.mounts:
        more = f" and {len(device.mounts) - 2} more places" if len(device.mounts) > 2 else ""
        yield _Objection(
            f"{_named(device)} is mounted on {', '.join(device.mounts[:2])}{more}", f"unmount it: umount {device.mounts[0]}"
        )
    if device.swap:
        yield _Objection(f"{_named(device)} is swap space in use", f"swapoff {device.path}, if it is not needed")
    holders = [_named(known) if (known := devices.get(name)) else name for name in device.holders]
    if holders:
        yield _Objection(
            f"{_named(device)} is in use by {', '.join(holders)}", f"stop what uses it: lsblk {device.path} shows it"
        )
    if device.together:
        yield _Objection(
            f"{_named(device)} is one of several that make one file system, with {', '.join(device.together)}",
            f"take it out of its file system first: btrfs device remove {device.path}",
        )


def _of_membership(device: BlockDevice, ours: Collection[str]) -> Iterator[_Objection]:
    for signature in device.signatures:
        if signature == "LVM2_member" and device.name in ours:
            continue
        if signature == UNREADABLE:
            yield _Objection(
                f"what is on {_named(device)} cannot be read", "do it as root; if it is root who does it, the disk is failing"
            )
        if signature in _MEMBERS or signature.endswith("_member"):
            said = _MEMBERS.get(signature, f"belongs to something larger ({signature})")
            cure = "if it is a kit: pocketcloud kit erase; " if signature == "LVM2_member" else ""
            yield _Objection(
                f"{_named(device)} {said}", f"{cure}if nothing of that is needed any more: wipefs --all {device.path}, then again"
            )


def _named(device: BlockDevice) -> str:
    """A kernel name, with the name people gave it."""
    path = str(device.path)
    return f"{device.name} ({path})" if path != f"/dev/{device.name}" else device.name


# -- what is on it


def contents(devices: BlockDevices, target: BlockDevice) -> tuple[str, ...]:
    """Everything now on the device, a line each, for the question; empty if nothing is known to be on it."""
    lines = []
    for device in (target, *devices.above(target)):
        facts = [f"partition table ({device.partition_table})"] if device.partition_table else []
        facts += [_CONTENTS.get(one, one) for one in device.signatures]
        facts += [f"labelled {device.label!r}"] if device.label else []
        facts += [f"mounted on {', '.join(device.mounts)}"] if device.mounts else []
        facts += ["swap in use"] if device.swap else []
        if facts or device.name != target.name:
            lines.append(f"{_named(device)}, {size_text(device.size)}: {', '.join(facts) or 'nothing that is known'}")
    return tuple(lines)


def confirmation(devices: BlockDevices, target: BlockDevice) -> str:
    """What has to be typed before the device is erased: the serial of its disk.

    Where another disk here has the same serial, as with cheap bridges, the place is named too: SERIAL@PLACE, which is the
    port it is plugged into (/dev/disk/by-path), or its path. Without a serial: the WWN, or the place and the size in bytes,
    PLACE:BYTES. A loop device's is its file. A serial of one repeated character is none.
    """
    if target.kind == "loop":
        return target.backing_file
    disk = devices.disk_of(target)
    others = [device for device in devices if device.kind == "disk" and device.name != disk.name]
    place = disk.port if disk.port and all(other.port != disk.port for other in others) else str(disk.path)
    if len(set(disk.serial)) > 1:
        shared = any(other.serial.casefold() == disk.serial.casefold() for other in others)
        return f"{disk.serial}@{place}" if shared else disk.serial
    if disk.wwn and all(other.wwn != disk.wwn for other in others):
        return disk.wwn
    return f"{place}:{disk.size}"


def check_target(
    devices: BlockDevices,
    target: BlockDevice,
    *,
    erase_serial: str | None,
    ask_serial: Callable[[str], str] | None,
    kit_sources: Collection[str] = (),
    ours: Collection[str] = (),
    file: Path | None = None,
) -> None:
    """Let the device be erased, or say why not. If anything is on it, `confirmation` has to be given: as `erase_serial`
    (--erase-serial), or typed, where `ask_serial` shows its argument and returns what was typed (None: nobody can be asked).

    Raises Refused if it must not be chosen or if something else was typed, UsageError if nothing was given and nobody asked.
    An `erase_serial` that is another disk's is refused on an empty disk too.
    """
    name = described(devices, target)
    if against := tuple(_objections(devices, target, kit_sources, ours, file)):
        reasons = dict.fromkeys(found.reason for found in against)
        raise Refused(f"{name} cannot be chosen: {'; '.join(reasons)}", hint=against[0].cure)
    wanted = confirmation(devices, target)
    what = (
        "its file's name"
        if target.kind == "loop"
        else "its serial"
        if wanted == devices.disk_of(target).serial
        else "its identity"
    )
    if erase_serial is not None:
        if _typed(erase_serial) != _typed(wanted):
            raise Refused(
                f"--erase-serial {erase_serial} is not {name}: nothing was changed",
                hint=f"if this is the disk you mean: --erase-serial '{wanted}'",
            )
        return
    found = contents(devices, target)
    if not found:
        return
    if ask_serial is None:
        raise UsageError(
            f"{name} is not empty: {'; '.join(found)}", hint=f"if all of that may be erased: --erase-serial '{wanted}'"
        )
    typed = ask_serial(f"Everything on {name} will be lost. To go on, type {what}, {wanted}")
    if _typed(typed) != _typed(wanted):
        raise Refused(
            f"{what} was not typed: nothing on {name} was changed", hint=f"look at the disk once more: lsblk {target.path}"
        )


def _typed(text: str) -> str:
    return " ".join(text.split()).casefold()


# -- holding it


@contextmanager
def claimed(target: BlockDevice, reread: Callable[[], BlockDevices]) -> Iterator[int]:
    """Hold the device while it is written: yields a file descriptor of it, opened for writing with O_EXCL and flock'ed.

    O_EXCL (bd_prepare_to_claim in the kernel's block/bdev.c) fails if it, or a partition of it, is mounted or held by anything
    in the kernel, and keeps others from it, among them LVM: let go of it before pvcreate, also of the disk whose partition
    pvcreate is to have. The lock keeps udev from looking at it half-written (systemd.io/BLOCK_DEVICE_LOCKING).

    Just before it yields, it makes sure that this is still the disk that was chosen: number, size and disk sequence through
    the descriptor, the rest through `reread`. Raises Refused if it is not, or if it is in use.
    """
    # Before it is opened, too: that tells why, where the kernel only says "busy", and a disk in use is not even touched.
    _check_unchanged(target, reread())
    handle = _opened(target)
    try:
        _lock(handle, target)
        _check_handle(handle, target)
        devices = reread()
        _check_unchanged(target, devices)
        _check_writers(target, handle, devices)
        yield handle
    finally:
        os.close(handle)


def _opened(target: BlockDevice) -> int:
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return os.open(target.path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EBUSY and time.monotonic() < until:
                time.sleep(_PAUSE)
                continue
            raise _not_opened(target, error) from None


def _not_opened(target: BlockDevice, error: OSError) -> Refused:
    name = _short(target)
    match error.errno:
        case errno.EBUSY:
            return Refused(
                f"{name} is in use: the kernel does not give it to us alone", hint=f"lsblk {target.path} shows by whom"
            )
        case errno.EROFS:
            return _read_only(target)
        case errno.EACCES | errno.EPERM:
            return Refused(f"{name} may not be written by this user, or is read-only", hint="do it as root")
        case errno.ENOENT | errno.ENXIO | errno.ENODEV | errno.ENOMEDIUM:
            return Refused(f"{name} is not there any more", hint="plug it in and run the command again")
        case _:
            return Refused(f"{name} cannot be opened: {error.strerror}", hint="the kernel's log (dmesg) says more")


def _lock(handle: int, target: BlockDevice) -> None:
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                raise Refused(f"{_short(target)} is locked by another program", hint=f"fuser -v {target.path} names it") from None
            time.sleep(_PAUSE)


def _check_handle(handle: int, target: BlockDevice) -> None:
    """What was opened, asked of itself: names are given anew when disks come and go."""
    number = os.fstat(handle).st_rdev
    told = f"{os.major(number)}:{os.minor(number)}"
    size = _asked(handle, _BLKGETSIZE64)
    sequence = _asked(handle, _BLKGETDISKSEQ)
    if (
        target.number not in ("", told)
        or size not in (0, target.size)
        or (target.diskseq and sequence not in (0, target.diskseq))
    ):
        raise _another(target)


def _asked(handle: int, request: int) -> int:
    """A 64-bit answer of the block layer, 0 if this kernel does not know the question."""
    try:
        return int(struct.unpack("Q", fcntl.ioctl(handle, request, bytes(8)))[0])
    except OSError:
        return 0


def _check_unchanged(target: BlockDevice, devices: BlockDevices) -> None:
    now = devices.get(target.name)
    if now is None:
        raise _another(target)
    for what in ("number", "size", "diskseq", "serial", "wwn", "model", "backing_file"):
        if getattr(now, what) != getattr(target, what):
            raise _another(target)
    if (now.signatures, now.partition_table, now.label) != (target.signatures, target.partition_table, target.label):
        raise Refused(
            f"somebody has written to {_short(target)} since it was looked at: now there is "
            f"{', '.join(now.signatures) or now.partition_table or 'nothing'} on it",
            hint="see what that is, then run the command again",
        )
    if now.read_only:
        raise _read_only(target)
    used = [found for device in (now, *devices.above(now), *devices.below(now)) for found in _of_use(devices, device)]
    if used:
        raise Refused(f"{_short(target)} is in use: {used[0].reason}", hint=used[0].cure)


def _check_writers(target: BlockDevice, handle: int, devices: BlockDevices) -> None:
    """Guests that were given a disk or one of its partitions claim nothing; they only have it open."""
    numbers = {os.fstat(handle).st_rdev}
    for device in (*devices.above(target), *devices.below(target)):
        major, _, minor = device.number.partition(":")
        numbers |= {os.makedev(int(major), int(minor))} if major.isdigit() and minor.isdigit() else set()
    until = time.monotonic() + _PATIENCE
    while found := [process for number in numbers for process in writers(number)]:
        if time.monotonic() > until:
            raise Refused(
                f"{_short(target)} is open for writing in {', '.join(dict.fromkeys(found))}",
                hint="end that, or choose another disk",
            )
        time.sleep(_PAUSE)


def _another(target: BlockDevice) -> Refused:
    return Refused(
        f"{_short(target)} is not the disk any more that was chosen: nothing was changed",
        hint="disks were plugged meanwhile; run the command again and look at the plan",
    )


def _read_only(target: BlockDevice) -> Refused:
    return Refused(f"{_short(target)} is read-only", hint="look for a write-protect switch, or choose another disk")


def _short(target: BlockDevice) -> str:
    facts = [size_text(target.size), f"serial {target.serial}" if target.serial else "no serial"]
    return f"{target.path} ({', '.join([*([target.model] if target.model else []), *facts])})"
