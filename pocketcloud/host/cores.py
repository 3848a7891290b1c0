"""The kinds of ARM cores of this computer. Boards may have two, and a virtual processor made on one does not run on the other.

Outside facts: the numbers are those of Linux's arch/arm64/include/asm/cputype.h. Machines inside machines take FEAT_NV2, which
came with Armv8.4: cores of Armv8.0 to 8.2 never have it (Arm's reference manuals of the cores); Neoverse V1 has it and runs
them (cloud-hypervisor issue 8717), what is not known is not claimed. How quick the kinds are is the kernel's word
(drivers/base/arch_topology.c: `cpu_capacity`, from the device tree's capacity-dmips-mhz and the clock).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pocketcloud.host.files import line, text
from pocketcloud.host.files import number as whole
from pocketcloud.model.facts import Core

_ARM, _AMPERE, _APPLE = 0x41, 0xC0, 0x61
# Implementer and part -> the name, the architecture's version, whether it has FEAT_NV2 (None: not known).
_CORES: dict[tuple[int, int], tuple[str, str, bool | None]] = {
    (_ARM, 0xD02): ("Cortex-A34", "8.0", False),
    (_ARM, 0xD03): ("Cortex-A53", "8.0", False),
    (_ARM, 0xD04): ("Cortex-A35", "8.0", False),
    (_ARM, 0xD05): ("Cortex-A55", "8.2", False),
    (_ARM, 0xD07): ("Cortex-A57", "8.0", False),
    (_ARM, 0xD08): ("Cortex-A72", "8.0", False),
    (_ARM, 0xD09): ("Cortex-A73", "8.0", False),
    (_ARM, 0xD0A): ("Cortex-A75", "8.2", False),
    (_ARM, 0xD0B): ("Cortex-A76", "8.2", False),
    (_ARM, 0xD0C): ("Neoverse N1", "8.2", False),
    (_ARM, 0xD0D): ("Cortex-A77", "8.2", False),
    (_ARM, 0xD0E): ("Cortex-A76AE", "8.2", False),
    (_ARM, 0xD40): ("Neoverse V1", "8.4", True),
    (_ARM, 0xD41): ("Cortex-A78", "8.2", False),
    (_ARM, 0xD42): ("Cortex-A78AE", "8.2", False),
    (_ARM, 0xD44): ("Cortex-X1", "8.2", False),
    (_ARM, 0xD46): ("Cortex-A510", "9.0", None),
    (_ARM, 0xD47): ("Cortex-A710", "9.0", None),
    (_ARM, 0xD48): ("Cortex-X2", "9.0", None),
    (_ARM, 0xD49): ("Neoverse N2", "9.0", None),
    (_ARM, 0xD4B): ("Cortex-A78C", "8.2", False),
    (_ARM, 0xD4D): ("Cortex-A715", "9.0", None),
    (_ARM, 0xD4E): ("Cortex-X3", "9.0", None),
    (_ARM, 0xD4F): ("Neoverse V2", "9.0", None),
    (_ARM, 0xD81): ("Cortex-A720", "9.2", None),
    (_ARM, 0xD82): ("Cortex-X4", "9.2", None),
    (_AMPERE, 0xAC3): ("Ampere-1", "8.6", None),
    (_APPLE, 0x022): ("Apple M1 Icestorm", "8.5", None),
    (_APPLE, 0x023): ("Apple M1 Firestorm", "8.5", None),
}


def read_cores(root: Path) -> tuple[Core, ...]:
    """The kinds of cores that /proc/cpuinfo shows, in the order of their first processor; empty on x86."""
    found: dict[tuple[int, int], list[int]] = {}
    number = implementer = -1
    for entry in text(root, "proc/cpuinfo").splitlines():
        name, _, value = (part.strip() for part in entry.partition(":"))
        if name == "processor" and (found_number := whole(value)) is not None:
            number, implementer = found_number, -1
        elif name == "CPU implementer":
            implementer = _hexadecimal(value)
        elif name == "CPU part" and (part := _hexadecimal(value)) >= 0 and implementer >= 0:
            found.setdefault((implementer, part), []).append(number)
    return tuple(_core(key, tuple(cpus), root) for key, cpus in found.items())


def named_cores(counts: Mapping[str, int]) -> tuple[Core, ...]:
    """The cores of a computer that is not at hand: so many of each name, numbered in that order."""
    known = {name: (version, nests) for name, version, nests in _CORES.values()}
    cores, first = [], 0
    for name, count in counts.items():
        cores.append(Core(name, *known.get(name, ("", None)), tuple(range(first, first + count))))
        first += count
    return tuple(cores)


def _core(key: tuple[int, int], cpus: tuple[int, ...], root: Path) -> Core:
    name, version, nests = _CORES.get(key, (f"core {key[0]:#x}:{key[1]:#x}", "", None))
    told = [line(root, f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity") for cpu in cpus]
    return Core(name, version, nests, cpus, sum(whole(each) or 0 for each in told))


def _hexadecimal(value: str) -> int:
    try:
        return int(value, 16)
    except ValueError:
        return -1
