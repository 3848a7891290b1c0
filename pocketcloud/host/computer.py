"""What tells this computer from others, and its processor from others, for what may be used on no other: saved memory.

Outside facts: machine-id(5); the DMI's UUID is readable by root only; proc(5) on cpuinfo, whose lines are of
arch/x86/kernel/cpu/proc.c and arch/arm64/kernel/cpuinfo.c in Linux.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pocketcloud.host.files import line, text

_DIGITS = 16
# What identifies a processor and what it can do: neither its clock rates, nor which of several it is, nor the number of its
# microcode. That shows where it matters: in the features.
_TELLING = frozenset(
    {
        "vendor_id",
        "cpu family",
        "model",
        "stepping",
        "model name",
        "flags",
        "vmx flags",
        "CPU implementer",
        "CPU architecture",
        "CPU variant",
        "CPU part",
        "CPU revision",
        "Features",
    }
)


def read_computer(root: Path) -> str:
    """This computer, as a digest: of its system's machine id, which images of whole disks share, with its board's UUID, which is
    not everywhere. Without either, of this start of its kernel: then nothing outlives the next one."""
    names = ("etc/machine-id", "sys/class/dmi/id/product_uuid", "proc/device-tree/serial-number")
    said = [line(root, name) for name in names]
    if not any(said):
        said = [line(root, "proc/sys/kernel/random/boot_id")]
    return _digest("\n".join(said))


def read_processor(root: Path) -> str:
    """The processor: its name, and a digest of its family, model, stepping and features, of each kind where there are several
    (`AMD EPYC, 0123456789abcdef`)."""
    entries = [entry.partition(":") for entry in text(root, "proc/cpuinfo").splitlines()]
    telling = sorted({f"{key.strip()}: {value.strip()}" for key, _, value in entries if key.strip() in _TELLING})
    name = next((value.strip() for key, _, value in entries if key.strip() == "model name"), "")
    digest = _digest("\n".join(telling))
    return f"{name}, {digest}" if name else digest


def _digest(said: str) -> str:
    return hashlib.sha256(said.encode()).hexdigest()[:_DIGITS]
