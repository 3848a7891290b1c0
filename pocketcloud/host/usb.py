"""USB devices as sysfs has them, from a disk up to the computer.

Outside facts: Linux's Documentation/ABI/testing/sysfs-bus-usb and ABI/stable/sysfs-bus-usb; the descriptors are those of the USB
specification (chapter 9 of USB 2.0 and 3.2) and of the USB mass storage class (UAS has protocol 62h, bulk-only 50h).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from pocketcloud.host.files import line, number, text
from pocketcloud.model.usb import Twin, UsbHop, UsbPath

_INTERFACE, _CAPABILITY = 4, 0x10  # types of descriptors
_STORAGE, _SCSI, _UAS = 8, 6, 0x62  # class, subclass and protocol of an interface
_SUPER_SPEED, _SUPER_SPEED_PLUS = 3, 10  # device capabilities
# Of wSpeedsSupported of the first: bits 3 to 0 are 5000, 480, 12 and 1.5 Mbit/s.
_SPEEDS = ((3, 5000), (2, 480), (1, 12))
# Of bmAttributes of a configuration.
_SELF_POWERED = 0x40


def read_path(place: Path, root: Path) -> UsbPath | None:
    """The way of the block device whose folder is `place`, None if it does not hang on USB."""
    driver, interface, devices = "", None, []
    top = (root / "sys").resolve()
    for folder in place.parents:
        if folder == top:
            break
        if interface is None and (folder / "bInterfaceNumber").exists():
            interface = folder
            with contextlib.suppress(OSError):
                driver = (folder / "driver").readlink().name
        if (folder / "idVendor").exists():
            devices.append(folder)
    if not devices:
        return None
    disk = devices[0]
    hops = tuple(_hop(device) for device in devices)
    return UsbPath(
        driver,
        hops,
        autosuspend=_may_sleep(disk, interface, place),
        offers_uas=_offers_uas(_bytes(disk / "descriptors")),
        has_uas=driver == "uas" or _has_module(root, "uas"),
        quirks=_quirks(line(root, "sys/module/usb_storage/parameters/quirks"), hops[0].id),
    )


def _may_sleep(disk: Path, interface: Path | None, place: Path) -> bool:
    """Whether the kernel may suspend it when idle: where its USB device may sleep, its driver knows how to wake it, and the disk
    on top of it lets it (Documentation/driver-api/usb/power-management.rst)."""
    allowed = line(disk, "power/control") == "auto" and not line(disk, "power/autosuspend_delay_ms").startswith("-")
    knows = interface is None or line(interface, "supports_autosuspend") != "0"
    return allowed and knows and line(place, "device/power/control") != "on"


def _hop(device: Path) -> UsbHop:
    speed = line(device, "speed")
    power = line(device, "bMaxPower").removesuffix("mA")
    attributes = line(device, "bmAttributes")
    return UsbHop(
        device.name,
        speed=int(float(speed)) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?", speed) else 0,
        able=_able(_bytes(device / "bos_descriptors")),
        version=line(device, "version"),
        id=f"{line(device, 'idVendor')}:{line(device, 'idProduct')}",
        product=line(device, "product"),
        serial=line(device, "serial"),
        power=number(power),
        self_powered=_hexadecimal(attributes) & _SELF_POWERED != 0,
        fixed=line(device, "removable") == "fixed",
        twin=_twin(device / "port"),
    )


def _twin(port: Path) -> Twin:
    """Of the port that a device is plugged in, which its folder links to. The kernel links ports that are one socket as each
    other's `peer` (find_and_link_peer in drivers/usb/core/port.c); what is plugged in there is its `device`."""
    try:
        place = port.resolve(strict=True)
    except OSError:
        return Twin.UNKNOWN
    if not (place / "peer").exists():
        return Twin.NONE
    return Twin.USED if (place / "peer/device").exists() else Twin.FREE


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _parts(descriptors: bytes) -> Iterator[bytes]:
    """One descriptor after the other: each begins with its length and its type."""
    while len(descriptors) >= 2 and descriptors[0] >= 2:
        yield descriptors[: descriptors[0]]
        descriptors = descriptors[descriptors[0] :]


def _offers_uas(descriptors: bytes) -> bool | None:
    """Whether a setting of an interface speaks UAS: devices that do offer both, and the driver chooses."""
    interfaces = [part[5:8] for part in _parts(descriptors) if part[1] == _INTERFACE and len(part) >= 9]
    storage = [kind for kind in interfaces if kind[:2] == bytes((_STORAGE, _SCSI))]
    return any(kind[2] == _UAS for kind in storage) if storage else None


def _able(bos: bytes) -> int:
    """The quickest speed that a device says it can do, in Mbit/s, 0 where it does not say: by its SuperSpeed and SuperSpeedPlus
    capabilities (USB 3.2, 9.6.2), which it tells on a USB 2 link, too. Kernels have them in sysfs since 2024."""
    found = 0
    for part in _parts(bos):
        if part[1] != _CAPABILITY or len(part) < 3:
            continue
        if part[2] == _SUPER_SPEED and len(part) >= 6:
            found = max(found, *(speed for bit, speed in _SPEEDS if part[4] & 1 << bit), 0)
        elif part[2] == _SUPER_SPEED_PLUS and len(part) >= 12:
            found = max(found, *_sublinks(part))
    return found


def _sublinks(capability: bytes) -> tuple[int, ...]:
    """The speeds of a SuperSpeedPlus capability in Mbit/s: from its 12th byte on words of 32 bits, with the mantissa in the upper
    16 and in bits 4 and 5 the power of 1000 that it is multiplied with, as bit/s."""
    words = [int.from_bytes(capability[at : at + 4], "little") for at in range(12, len(capability) - 3, 4)]
    return (0, *((word >> 16) * 1000 ** (word >> 4 & 3) // 1000**2 for word in words))


def _quirks(parameter: str, identity: str) -> str:
    """The letters for a device, of `152d:0578:u,174c:55aa:f`; numbers may have fewer digits there."""
    for entry in parameter.lower().split(","):
        vendor, _, rest = entry.strip().partition(":")
        product, _, letters = rest.partition(":")
        if identity == f"{vendor:0>4}:{product:0>4}":
            return letters
    return ""


def _has_module(root: Path, name: str) -> bool:
    """Whether this kernel has a module, loaded or not, or built in; where its list of modules cannot be read, it has."""
    if (root / "sys/module" / name).is_dir():
        return True
    folder = f"lib/modules/{line(root, 'proc/sys/kernel/osrelease')}"
    lists = text(root, f"{folder}/modules.dep") + text(root, f"{folder}/modules.builtin")
    return not lists or f"/{name}.ko" in lists


def _hexadecimal(word: str) -> int:
    try:
        return int(word, 16)
    except ValueError:
        return 0
