"""A view of a running pool's metadata as of one moment, for the tools that read it: dm-thin's metadata snapshot.

A pool has at most one, and it pins metadata until it is released, over reboots too. The kernel does not say whose it is: a note
in the kit's folder does, written before ours is reserved and removed after it is released. So one that a kill left is known and
released by the next of ours; another program's is left alone. Only one that was reserved after we were killed between note and
reservation, and before the next of ours, would be taken for ours: not while anybody reads it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from pocketcloud.errors import NoSpace, NotFound, Refused
from pocketcloud.storage.devmapper import PoolMode, PoolStatus, node_name, pool_status
from pocketcloud.storage.lvm import complaint, environment
from pocketcloud.storage.thin_volumes import POOL
from pocketcloud.storage.watermarks import percent
from pocketcloud.system import CommandFailed, Runner

# In the kit's folder, where everybody who uses the kit finds it.
NOTE = ".counting"
_OURS = "a metadata snapshot of the pool is held, or about to be\n"
# Above that the blocks that a snapshot pins may be those that a guest needs.
_TOO_FULL = 90
_READER_ENDS = 20


@contextlib.contextmanager
def metadata_snapshot(vg: str, run: Runner, folder: Path | None = None) -> Iterator[Path]:
    """Hold a metadata snapshot of a kit's pool: yields the device that the tools read with `--metadata-snap`, as of the moment
    it was reserved. `folder` is the one that all users of the kit share. Released in every case.

    Raises NotFound if the pool is not active, Refused if it cannot be asked, or if another program holds a metadata snapshot,
    NoSpace if its metadata is too full for one.
    """
    with _one_at_a_time(folder) as note:
        _check(vg, _release_own(vg, _status(vg, run), note, run))
        with _snapshot(vg, note, run):
            yield Path("/dev/mapper", node_name(vg, f"{POOL}_tmeta"))


def _status(vg: str, run: Runner) -> PoolStatus:
    status = pool_status(_tpool(vg), run)
    if status is None:
        raise NotFound(f"volume group {vg} has no active pool", hint="pocketcloud kit attach")
    return status


def _check(vg: str, status: PoolStatus) -> None:
    if status.mode in (PoolMode.FAILED, PoolMode.READ_ONLY) or status.needs_check:
        raise Refused(f"the pool of volume group {vg} cannot be read: it needs a check", hint="pocketcloud kit repair")
    if status.held is not None:
        raise Refused(
            f"another program holds a metadata snapshot of volume group {vg}'s pool, and a pool has only one",
            hint=f"wait until it is done; if it is known to be dead: dmsetup message {_tpool(vg)} 0 release_metadata_snap",
        )
    if (used := percent(status.metadata_used, status.metadata_total)) >= _TOO_FULL:
        raise NoSpace(f"the metadata of volume group {vg}'s pool is {used} % full: too full to be read", hint="remove a snapshot")


@contextlib.contextmanager
def _one_at_a_time(folder: Path | None) -> Iterator[Path | None]:
    """Wait for the count of another of our processes, and hold the note. It goes unless it says that a snapshot is held."""
    if folder is None:
        yield None
        return
    note = folder / NOTE
    while True:
        handle = os.open(note, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            break
        os.close(handle)  # who had it before us has removed it
    try:
        yield note
    finally:
        if not note.read_text():
            note.unlink()
        os.close(handle)


def _release_own(vg: str, status: PoolStatus, note: Path | None, run: Runner) -> PoolStatus:
    """Release the snapshot that a killed count of ours left: one is held, and the note says that we were about to."""
    if status.held is None or note is None or note.read_text() != _OURS:
        return status
    for _ in range(_READER_ENDS):
        if not _is_read(vg, run):
            _release(vg, note, run)
            return _status(vg, run)
        time.sleep(0.1)  # a child outlives its parent by moments
    return status


@contextlib.contextmanager
def _snapshot(vg: str, note: Path | None, run: Runner) -> Iterator[None]:
    if note:
        note.write_text(_OURS)
    try:
        try:
            run(["dmsetup", "message", _tpool(vg), "0", "reserve_metadata_snap"], env=environment())
        except CommandFailed as failed:
            raise Refused(f"the pool of volume group {vg} gives no metadata snapshot: {complaint(failed)}") from failed
        yield
    finally:
        _release(vg, note, run)


def _release(vg: str, note: Path | None, run: Runner) -> None:
    """Release the snapshot, and strike the note out when none is held any more."""
    run(["dmsetup", "message", _tpool(vg), "0", "release_metadata_snap"], codes=(0, 1), env=environment())
    if note and (status := pool_status(_tpool(vg), run)) and status.held is None:
        note.write_text("")


def _is_read(vg: str, run: Runner) -> bool:
    """Whether a tool has the pool's metadata open; the pool itself is one of those who do."""
    argv = ["dmsetup", "info", "--noheadings", "-c", "-o", "open", node_name(vg, f"{POOL}_tmeta")]
    return int(run(argv, env=environment()).out.strip() or 0) > 1


def _tpool(vg: str) -> str:
    """The pool's own node; the one of the volume's name is a façade of LVM's."""
    return f"{node_name(vg, POOL)}-tpool"
