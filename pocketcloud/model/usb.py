"""How a disk hangs on USB: each hop from the disk to the computer, and the driver in between."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Twin(StrEnum):
    """A USB 3 socket is two ports for the kernel, one for each kind of wires: what is known of the USB 3 twin of a USB 2 port."""

    NONE = "none"  # the socket has no USB 3 wires
    FREE = "free"  # it has, and nothing answers on them
    USED = "used"  # something hangs there: the USB 3 half of a hub
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class UsbHop:
    """A USB device between a disk and the computer: the disk's own bridge, a hub, or the root hub, which is the computer's.

    Speeds are in Mbit/s, 0 where they are not known: `speed` is that of its link upwards, `able` what it says it can do. `power`
    is what it may draw from the port, in mA (None: not told), `twin` of the port that it is plugged in.
    """

    name: str  # the kernel's: 2-1.3, usb2
    speed: int = 0
    able: int = 0
    version: str = ""  # bcdUSB: 3.20
    id: str = ""  # 152d:0578
    product: str = ""
    serial: str = ""
    power: int | None = None
    self_powered: bool = False
    fixed: bool = False  # it cannot be unplugged
    twin: Twin = Twin.UNKNOWN

    @property
    def is_root(self) -> bool:
        """Whether it is the computer's own."""
        return self.name.startswith("usb")


@dataclass(frozen=True, slots=True)
class UsbPath:
    """The way from a disk to the computer, `hops` from the disk on; there is at least one.

    `offers_uas` is None where its descriptors cannot be read, `has_uas` whether this kernel has the driver `uas`; `quirks` are
    the letters that somebody gave the driver for this device (usb-storage.quirks in Linux's kernel-parameters.txt).
    """

    driver: str  # uas, usb-storage
    hops: tuple[UsbHop, ...]
    autosuspend: bool = False
    offers_uas: bool | None = None
    has_uas: bool = True
    quirks: str = ""

    @property
    def disk(self) -> UsbHop:
        """The disk's own bridge."""
        return self.hops[0]

    @property
    def speed(self) -> int:
        """That of the slowest hop."""
        return min((hop.speed for hop in self.hops if hop.speed), default=0)

    @property
    def id(self) -> str:
        """The disk's, as lsusb shows it."""
        return self.disk.id
