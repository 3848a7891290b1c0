"""What stands beside the memory itself: swap, compressed memory, huge pages, strict overcommit, KSM.

Outside facts: proc(5); the kernel's admin-guide/blockdev/zram.rst (mm_stat), mm/overcommit-accounting.rst and
admin-guide/mm/ksm.rst.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.host.files import line, number, text

_KSM = "sys/kernel/mm/ksm"
_KSMTUNED = "etc/systemd/system/multi-user.target.wants/ksmtuned.service"


@dataclass(frozen=True, slots=True)
class Swap:
    """A place that memory is moved to, in bytes; `zram`: it is memory itself, compressed, of which `taken` bytes are used."""

    name: str
    size: int
    used: int
    zram: bool
    taken: int


@dataclass(frozen=True, slots=True)
class Ksm:
    """KSM as the kernel has it: `on`, the bytes it `saves` now, and whether ksmtuned switches it when memory gets short."""

    on: bool
    saves: int
    tuned: bool


def read_swaps(root: Path) -> tuple[Swap, ...]:
    """The swap in use, in the kernel's order; sizes in /proc/swaps are KiB."""
    found = []
    for row in text(root, "proc/swaps").splitlines()[1:]:
        fields = row.split()
        size, used = (number(field) for field in (fields[2:4] if len(fields) >= 4 else ("", "")))
        if size is not None and used is not None:
            kernel = Path(fields[0]).name
            zram = kernel.startswith("zram")
            taken = _column(line(root, f"sys/block/{kernel}/mm_stat"), 2) if zram and re.fullmatch(r"zram\d+", kernel) else 0
            found.append(Swap(fields[0], size * 1024, used * 1024, zram, taken))
    return tuple(found)


def read_huge_pages(root: Path) -> int:
    """Bytes set aside as huge pages, which nothing else can have."""
    pages, size = (_meminfo(root, name) for name in ("HugePages_Total", "Hugepagesize"))
    return pages * size * 1024


def read_commit_left(root: Path) -> int | None:
    """Bytes that may still be promised to programs where the kernel keeps strict accounts; None where it does not."""
    if line(root, "proc/sys/vm/overcommit_memory") != "2":
        return None
    return max(0, _meminfo(root, "CommitLimit") - _meminfo(root, "Committed_AS")) * 1024


def read_ksm(root: Path) -> Ksm | None:
    """KSM; None for a kernel without."""
    state = line(root, f"{_KSM}/run")
    if not state:
        return None
    pages = _column(line(root, f"{_KSM}/pages_sharing"), 0)
    return Ksm(state == "1", pages * os.sysconf("SC_PAGE_SIZE"), (root / _KSMTUNED).is_symlink() or (root / _KSMTUNED).exists())


def _meminfo(root: Path, name: str) -> int:
    for row in text(root, "proc/meminfo").splitlines():
        if row.startswith(f"{name}:"):
            return _column(row, 1)
    return 0


def _column(row: str, column: int) -> int:
    return next((number(field) or 0 for field in row.split()[column : column + 1]), 0)
