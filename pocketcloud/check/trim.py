"""The chain of TRIM above a disk, and switching it on where the disk declares what Linux makes no use of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pocketcloud.check.fixes import Action, Command, NewFile
from pocketcloud.check.judgement import Surroundings
from pocketcloud.errors import PocketcloudError
from pocketcloud.model.disk import BlockDevice
from pocketcloud.model.judgement import Remark, State, Topic
from pocketcloud.storage.devmapper import PoolStatus, pool_status
from pocketcloud.verdict import may_unmap

_RULES = Path("/etc/udev/rules.d")
_PLAIN = re.compile(r"[A-Za-z0-9_.:-]+")
# The most that Linux trims at a time where the disk sets no limit: SD_MAX_WS16_BLOCKS (drivers/scsi/sd.h) of 512 bytes.
_LINUX_MAX = 0x7FFFFF * 512


def switching_on(here: Surroundings, disk: BlockDevice) -> tuple[Action, ...]:
    """What has Linux send UNMAP to a disk that declares it: a rule for its enclosure, or by hand, once, where there is no udev;
    none for any other disk, as one that is told to trim against its word loses data."""
    scsi = disk.scsi
    if scsi is None or not may_unmap(disk):
        return ()
    usb = disk.usb.disk if disk.usb else None
    if usb is None or here.find("udevadm") is None or not (here.root / "run/udev/control").exists():
        return (Command(("sh", "-c", f"echo unmap > /sys/class/scsi_disk/{scsi.address}/provisioning_mode")),)
    vendor, _, product = usb.id.partition(":")
    match = [f'ATTRS{{idVendor}}=="{vendor}"', f'ATTRS{{idProduct}}=="{product}"']
    # The enclosures of one kind need not all declare it; a serial number that udev would take for a pattern is left out.
    serial = usb.serial if _PLAIN.fullmatch(usb.serial) else ""
    match += [f'ATTRS{{serial}}=="{serial}"'] if serial else []
    # The disk, not its scsi_disk: the limit has to be set after the mode, as that sets it anew.
    change = ['ATTR{device/scsi_disk/*/provisioning_mode}="unmap"']
    change += [f'ATTR{{queue/discard_max_bytes}}="{scsi.unmap_max}"'] if 0 < scsi.unmap_max < _LINUX_MAX else []
    rule = ", ".join(('ACTION=="add|change"', 'SUBSYSTEM=="block"', 'ENV{DEVTYPE}=="disk"', *match, *change))
    name = "-".join(word for word in ("70-pocketcloud-trim", vendor, product, serial) if word)
    why = f"the disk {disk.model or usb.id} declares UNMAP, and Linux does not use it by itself"
    return (
        NewFile(_RULES / f"{name}.rules", (rule,), why, "udevadm control --reload", folder=True),
        Command(("udevadm", "control", "--reload")),
        Command(("udevadm", "trigger", "--action=change", f"/sys/block/{disk.name}")),
        Command(("udevadm", "settle", "--timeout=30")),
    )


def above(here: Surroundings, disk: BlockDevice) -> Iterator[Remark]:
    """The link above a disk that takes discards: thin pools on it, which need not pass them on."""
    if not disk.discard_max:
        return
    for device in here.disks.above(disk):
        if device.path.name.endswith("-tpool") and (status := _status(here, device.path.name)) and not status.passes_discards:
            text = f"but the pool {device.path.name} passes nothing on: that is decided when it is activated, and by its setting"
            again = "pocketcloud kit detach, then pocketcloud kit attach"
            yield Remark(Topic.TRIM, State.WARN, text, (f"Activate it anew ({again}); `pocketcloud kit trim` tells more",))


def _status(here: Surroundings, name: str) -> PoolStatus | None:
    try:
        return pool_status(name, here.run)
    except PocketcloudError:  # no dmsetup, or not root
        return None
