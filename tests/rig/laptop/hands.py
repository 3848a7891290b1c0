"""Asks the host (tests/rig/emulated_laptop.py) to plug disks into the laptop and to pull them."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

_PORTS = Path("/sys/class/virtio-ports")
_PORT = "pocketcloud.rig"
_WITHIN = 60.0
_SLEPT = Path("/sys/power/suspend_stats/success")


def plug(disk: str, controller: str = "xhci", port: int = 1, kind: str = "uas") -> Path:
    """Plug a disk in; its device, when udev has done with it. `kind` is "uas" or "bot"."""
    before = _disks()
    _ask(f"plug {disk} {controller} {port} {kind}")
    (new,) = _changed(before, lambda now: now - before)
    return new


def pull(disk: str) -> None:
    """Pull a disk out, whatever it is doing."""
    before = _disks()
    _ask(f"pull {disk}")
    _changed(before, lambda now: before - now)


def take(disk: str) -> None:
    """Pull a disk out that was switched off before."""
    _ask(f"pull {disk}")


def sleep(seconds: float, pulled: str = "") -> None:
    """Suspend the laptop to memory (ACPI's S3: all is frozen, and devices lose their power); it is woken after so long. A disk
    may be pulled meanwhile. Returns when it is awake, and udev has seen what is there."""
    before = int(_SLEPT.read_text())
    _ask(f"wake {seconds} {pulled}")
    Path("/sys/power/state").write_text("mem")
    assert int(_SLEPT.read_text()) == before + 1
    subprocess.run(["udevadm", "settle", "--timeout=60"], check=True)


def _ask(line: str) -> None:
    (device,) = [path.name for path in _PORTS.iterdir() if (path / "name").read_text().strip() == _PORT]
    with Path("/dev", device).open("r+b", buffering=0) as port:
        port.write(f"{line}\n".encode())
        answer = b""
        while not answer.endswith(b"\n"):
            answer += port.read(100)
    assert answer == b"done\n", f"{line}: {answer.decode()}"


def _disks() -> set[Path]:
    return {Path("/dev", path.name) for path in Path("/sys/block").glob("sd*")}


def _changed(before: set[Path], what: object) -> set[Path]:
    assert callable(what)
    until = time.monotonic() + _WITHIN
    while _disks() == before:
        assert time.monotonic() < until, f"still {before}"
        time.sleep(0.2)
    subprocess.run(["udevadm", "settle", "--timeout=60"], check=True)
    return set(what(_disks()))
