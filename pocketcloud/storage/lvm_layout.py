"""How a kit lies on a device: one PV, one VG, in it a linear `state`, a thin pool, a thin `content` and a thin `ballast`.

Sizes, and the commands that make it, as data; kit/ runs them and makes the file systems. What goes wrong with LVM's own
defaults (alignment, chunks that grow with the disk, a pool that fills the whole VG) is explained where it is set.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.errors import NoSpace
from pocketcloud.model.sizes import GIB, MIB, size_text
from pocketcloud.storage.thin_volumes import BALLAST, CONTENT, EXTENT, POOL, STATE, whole_extents
from pocketcloud.storage.watermarks import ballast_size
from pocketcloud.system import Runner

# The text of a thousand thin volumes with our tags is some 700 KiB, and the area holds two copies of it.
_METADATA_AREA = 8 * MIB
_ALIGNMENT = MIB
# Snapshots that the pool's metadata has room for while all of them differ from each other.
SNAPSHOTS = 1000
# 3 % stay free: pools whose metadata has to grow or to be repaired need extents then.
_FREE_PARTS = 33
SMALLEST = 2 * GIB
_OLDEST_METADATA_LIMIT = 15 * GIB  # lvm2 before 2.03.12 cuts at 15.81 GiB; the round figure is readable everywhere


@dataclass(frozen=True, slots=True)
class Layout:
    """The sizes, in bytes, of what a kit consists of. `metadata` is there twice: once spare, for repairs."""

    state: int
    pool: int
    metadata: int
    chunk: int
    content: int
    ballast: int


def metadata_size(pool: int, chunk: int, run: Runner) -> int:
    """Bytes of metadata for a pool of `pool` bytes in chunks of `chunk`, by the pool tools' own rule
    (thin_metadata_size(8)), for SNAPSHOTS volumes."""
    options = ["-b", f"{chunk}b", "-s", f"{pool}b", "-m", str(SNAPSHOTS), "-u", "b", "-n"]
    told = run(["thin_metadata_size", *options]).out
    needed = int(float(re.sub(r"[^0-9.]", "", told) or 0))
    return min(max(whole_extents(needed), 2 * EXTENT), _OLDEST_METADATA_LIMIT)


def layout_for(size: int, chunk: int, run: Runner) -> Layout:
    """The layout of a kit on a partition of `size` bytes. Raises NoSpace if that is too small to be of use."""
    if size < SMALLEST:
        raise NoSpace(f"{size_text(size)} is too small for a kit: it needs {size_text(SMALLEST)}", hint="choose a larger one")
    usable = (size - _METADATA_AREA - 2 * _ALIGNMENT) // EXTENT * EXTENT
    state = min(max(whole_extents(usable // 128), 32 * MIB), 2 * GIB)
    rest = usable - state - whole_extents(usable // _FREE_PARTS)
    metadata = metadata_size(rest, chunk, run)
    pool = (rest - 2 * metadata) // EXTENT * EXTENT
    return Layout(state, pool, metadata, chunk, content=content_size(pool), ballast=ballast_size(pool))


def content_size(pool: int) -> int:
    """Bytes that `content` may grow to in a pool of `pool` bytes."""
    return whole_extents(pool // 2)


def format_commands(device: Path, vg: str, layout: Layout, tags: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The LVM commands, in their order, as words after the options that name the devices; first the PV's."""
    tagged = [word for tag in tags for word in ("--addtag", tag)]
    pool = f"{vg}/{POOL}"
    return (
        # A bridge that reports nonsense as its optimal I/O size would misalign all that follows (lvm2 before 2.03.31).
        ("pvcreate", "--dataalignment", f"{_ALIGNMENT}b", "--metadatasize", f"{_METADATA_AREA}b", str(device)),
        # No system id, which would lock other hosts out; no autoactivation by whatever host it is plugged into.
        ("vgcreate", "--systemid", "", "--setautoactivation", "n", "-s", f"{EXTENT}b", *tagged, vg, str(device)),
        ("lvcreate", "-W", "y", "-L", f"{layout.state}b", "-n", STATE, vg),
        (
            "lvcreate", "--type", "thin-pool", "-n", POOL, "-L", f"{layout.pool}b", "--chunksize", f"{layout.chunk}b",
            "--poolmetadatasize", f"{layout.metadata}b", "--zero", "y", "--discards", "passdown", "--poolmetadataspare", "y", vg,
        ),
        # A full pool answers at once, and QEMU pauses the guest; by default it would hang it for a minute first. lvcreate
        # of 2.03.16 does not take the option.
        ("lvchange", "--errorwhenfull", "y", pool),
        ("lvcreate", "-V", f"{layout.content}b", "--thinpool", POOL, "-n", CONTENT, vg),
        ("lvcreate", "-V", f"{layout.ballast}b", "--thinpool", POOL, "-n", BALLAST, vg),
    )  # fmt: skip
