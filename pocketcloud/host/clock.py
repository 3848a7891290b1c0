"""The host's clock: whether it is set by others' time, by what, and whether it can be right at all.

Outside facts: adjtimex(2) (STA_UNSYNC); adjtime_config(5); systemd-timesyncd(8), which touches a file when it has set the
clock and keeps its last time in another.
"""

from __future__ import annotations

import contextlib
import ctypes
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.host.files import text
from pocketcloud.host.processes import running

_STA_UNSYNC, _TIME_ERROR = 0x40, -1
_SYNCHRONISED = "run/systemd/timesync/synchronized"
_KEEPERS = ("systemd-timesyncd", "chronyd", "chrony", "ntpd", "ntp", "ntpsec", "openntpd")
# The name that timedatectl enables timesyncd by.
_ALIAS = "etc/systemd/system/dbus-org.freedesktop.timesync1.service"
_UNITS = ("usr/lib/systemd/system", "lib/systemd/system")
# Written when packages are installed or the clock was last known to be right.
_DATED = (
    "var/lib/systemd/timesync/clock",
    "var/lib/chrony/drift",
    "var/lib/dpkg/status",
    "usr/lib/sysimage/rpm/rpmdb.sqlite",
    "var/lib/rpm/rpmdb.sqlite",
    "etc/ld.so.cache",
)


@dataclass(frozen=True, slots=True)
class Clock:
    """`synchronised`: whether the kernel believes that it is set (None: not told); `keepers`: what is set up to set it,
    `installed` what could be; `local`: the hardware clock runs in local time; `newest`: when the newest of some files was
    written, in seconds since 1970, and its name."""

    synchronised: bool | None
    keepers: tuple[str, ...]
    installed: tuple[str, ...]
    local: bool
    newest: float
    newest_name: str


def read_clock(root: Path) -> Clock:
    """The clock of the host under `root`; the kernel is asked only for its own."""
    synchronised = kernel_synchronised() if root == Path("/") else (root / _SYNCHRONISED).exists() or None
    newest = max(((_written(root / name), f"/{name}") for name in _DATED), default=(0.0, ""))
    local = text(root, "etc/adjtime").splitlines()[2:3] == ["LOCAL"]
    installed = tuple(name for name in _KEEPERS if any((root / folder / f"{name}.service").is_file() for folder in _UNITS))
    return Clock(synchronised, _keepers(root), installed, local, *newest)


def kernel_synchronised() -> bool | None:
    """Whether something sets the kernel's clock by a better one, as adjtimex(2) tells anybody; None where it does not."""
    # struct timex begins with `modes` (0: only read) and four longs; behind them stands the status. The rest is for the kernel.
    buffer = (ctypes.c_long * 64)()
    try:
        code = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(buffer))
    except (OSError, AttributeError):
        return None
    status = ctypes.cast(ctypes.byref(buffer, 5 * ctypes.sizeof(ctypes.c_long)), ctypes.POINTER(ctypes.c_int))[0]
    return None if code == _TIME_ERROR else not status & _STA_UNSYNC


def _keepers(root: Path) -> tuple[str, ...]:
    wanted: set[str] = set()
    if (root / "run/systemd/system").is_dir():
        with contextlib.suppress(OSError):
            wanted = {link.stem for folder in (root / "etc/systemd/system").glob("*.wants") for link in folder.iterdir()}
        if (root / _ALIAS).is_symlink():
            wanted.add("systemd-timesyncd")
    return tuple(sorted(wanted & set(_KEEPERS) | running(root, _KEEPERS)))


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
