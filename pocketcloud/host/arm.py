"""What only ARM64 computers differ in: the interrupt controller, the size of pages, programs of 32 bits on a 64-bit kernel.

Outside facts: a GIC calls itself `GICv3`, `GICv2` or, of version 2 too, `GIC-0` in /proc/interrupts (Linux's
drivers/irqchip/irq-gic-v3.c and irq-gic.c, gic_irq_print_chip); the `compatible` of device tree nodes is that of
Documentation/devicetree/bindings/interrupt-controller/arm,gic.yaml and arm,gic-v3.yaml.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from pocketcloud.host.files import number, text

_NAMED = {"GICv2": 2, "GIC-0": 2, "GICv3": 3, "GICv4": 3}
_BOUND = {
    "arm,gic-400": 2,
    "arm,cortex-a15-gic": 2,
    "arm,cortex-a9-gic": 2,
    "arm,cortex-a7-gic": 2,
    "arm,eb11mp-gic": 2,
    "arm,gic-v3": 3,
}
# Where device trees have their interrupt controllers: at the top, in `soc`, in a bus of it.
_DEPTHS = ("*", "*/*", "*/*/*")
_LINKERS = {
    "lib/ld-linux-aarch64.so.1": 64,
    "lib/ld-musl-aarch64.so.1": 64,
    "lib/ld-linux-armhf.so.3": 32,
    "lib/ld-musl-armhf.so.1": 32,
}
_PAGE = re.compile(r"^KernelPageSize:\s*(\d+) kB", re.MULTILINE)


def read_gic(root: Path) -> tuple[int, str]:
    """The version of the interrupt controller (a GICv4 counts as 3), and what says so; 0 and what was looked at where none
    is seen."""
    interrupts = text(root, "proc/interrupts")
    for name in re.findall(r"\bGIC(?:v\d|-0)\b", interrupts):
        if name in _NAMED:
            return _NAMED[name], f"/proc/interrupts names {name}"
    tree = root / "proc/device-tree"
    for depth in _DEPTHS:
        for mark in sorted(tree.glob(f"{depth}/interrupt-controller")):
            for name in text(mark.parent, "compatible").split("\0"):
                if name in _BOUND:
                    return _BOUND[name], f"the device tree names {name}"
    looked = [name for name, there in (("/proc/interrupts", interrupts), ("the device tree", tree.is_dir())) if there]
    return 0, f"no GIC in {' or '.join(looked)}" if looked else "/proc/interrupts cannot be read"


def read_page_size(root: Path) -> int:
    """Bytes of a page of memory; 0 where it is not told."""
    if found := _PAGE.search(text(root, "proc/self/smaps")):
        return (number(found[1]) or 0) * 1024
    return os.sysconf("SC_PAGESIZE") if root == Path("/") else 0


def read_program_bits(root: Path) -> int:
    """64 or 32: what the system's programs are, by the dynamic linkers that are there; 0 where that does not tell."""
    return max((bits for name, bits in _LINKERS.items() if (root / name).exists()), default=0)
