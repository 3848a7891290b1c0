"""Device-mapper below LVM: which nodes there are, as sysfs has them, and what the kernel says of a thin pool.

LVM is asked for what it knows; this is for what it does not: nodes that an interrupted command left suspended, a pool that
is full or has failed, nodes of a disk that was pulled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pocketcloud.system import CommandFailed, Runner

_BLOCK = Path("/sys/block")
# Of metadata; fixed in the kernel (Documentation/admin-guide/device-mapper/thin-provisioning.rst).
METADATA_BLOCK = 4096
# A pool that has failed may never answer.
_STATUS_TIMEOUT = 20.0


@dataclass(frozen=True, slots=True)
class Node:
    """A device-mapper device: its kernel name (`dm-3`), its own name and uuid, and what it stands on (`sdb2`, `dm-1`)."""

    kernel: str
    name: str
    uuid: str
    suspended: bool
    below: tuple[str, ...]
    holders: tuple[str, ...]


class PoolMode(StrEnum):
    """What a pool still does, as the kernel says it."""

    WRITING = "rw"
    READ_ONLY = "ro"
    OUT_OF_DATA = "out_of_data_space"
    FAILED = "fail"


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """What the kernel says of a thin pool: `used` and `total` in chunks of data and in blocks of metadata (of 4 KiB).

    `held` is the root of a metadata snapshot that somebody holds, None if nobody does.
    """

    mode: PoolMode
    transaction: int = 0
    data_used: int = 0
    data_total: int = 0
    metadata_used: int = 0
    metadata_total: int = 0
    held: int | None = None
    needs_check: bool = False
    passes_discards: bool = False


def node_name(vg: str, volume: str) -> str:
    """Device-mapper's name of a logical volume: dashes doubled, joined by one."""
    return f"{vg.replace('-', '--')}-{volume.replace('-', '--')}"


def nodes(block: Path = _BLOCK) -> tuple[Node, ...]:
    """All device-mapper devices, by name."""
    return tuple(sorted(_nodes(block), key=lambda node: node.name))


def nodes_of(vg: str, block: Path = _BLOCK) -> tuple[Node, ...]:
    """Those of LVM that belong to a volume group, by name."""
    prefix = node_name(vg, "")
    return tuple(node for node in nodes(block) if node.name.startswith(prefix) and node.uuid.startswith("LVM-"))


def _nodes(block: Path) -> Iterator[Node]:
    for folder in block.glob("dm-*"):
        with contextlib.suppress(OSError):  # it may go while we look
            yield Node(
                folder.name,
                (folder / "dm/name").read_text().strip(),
                (folder / "dm/uuid").read_text().strip(),
                (folder / "dm/suspended").read_text().strip() == "1",
                tuple(sorted(entry.name for entry in (folder / "slaves").iterdir())),
                tuple(sorted(entry.name for entry in (folder / "holders").iterdir())),
            )


def resume_left_suspended(vg: str, run: Runner, block: Path = _BLOCK) -> None:
    """Resume the nodes of a VG that a killed LVM command left suspended: reading them would hang for ever. The lowest first.

    The caller holds the store, so that nobody has suspended them on purpose right now.
    """
    stuck = [node for node in nodes_of(vg, block) if node.suspended]
    while stuck:
        names = {node.kernel for node in stuck}
        lowest = next((node for node in stuck if not names & set(node.below)), stuck[0])
        run(["dmsetup", "resume", "--", lowest.name], codes=(0, 1))
        stuck.remove(lowest)


def pool_status(name: str, run: Runner) -> PoolStatus | None:
    """The status of the pool node `name`, None if it is not there. Nothing is committed by asking (`--noflush`), so a pool in
    trouble is not made worse. One that does not answer in time counts as failed."""
    try:
        done = run(["dmsetup", "status", "--noflush", "--", name], codes=(0, 1), timeout=_STATUS_TIMEOUT)
    except CommandFailed:
        return PoolStatus(PoolMode.FAILED)
    return None if done.code else read_status(done.out)


def read_status(text: str) -> PoolStatus | None:
    """A pool's status out of `dmsetup status`; None if it is no pool's. The fields are those of the kernel's
    Documentation/admin-guide/device-mapper/thin-provisioning.rst."""
    fields = text.split()
    if len(fields) < 4 or fields[2] != "thin-pool":
        return None
    if fields[3].lower() in ("fail", "error"):
        return PoolStatus(PoolMode.FAILED)
    transaction, metadata, data, held, *rest = fields[3:]
    metadata_used, metadata_total = map(int, metadata.split("/"))
    data_used, data_total = map(int, data.split("/"))
    return PoolStatus(
        mode=PoolMode(rest[0]),
        transaction=int(transaction),
        data_used=data_used,
        data_total=data_total,
        metadata_used=metadata_used,
        metadata_total=metadata_total,
        held=None if held == "-" else int(held),
        needs_check="needs_check" in rest,
        passes_discards="discard_passdown" in rest,
    )
