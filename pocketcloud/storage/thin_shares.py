"""How much of a thin pool each volume holds by itself and how much it shares: counted by `thin_ls` on the running pool.

That needs a metadata snapshot, of which a pool has at most one, and which pins metadata until it is released, over reboots
too. The kernel does not say whose it is: a note in the kit's folder does, written before ours is reserved and removed after
it is released. So one that a kill left is known and released by the next count; another program's is left alone. Only one
that was reserved after we were killed between note and reservation, and before the next count, would be taken for ours: not
while anybody reads it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.errors import HostLacks, NoSpace, NotFound, Refused
from pocketcloud.storage.devmapper import PoolMode, PoolStatus, node_name, pool_status
from pocketcloud.storage.lvm import complaint, environment
from pocketcloud.storage.thin_volumes import POOL
from pocketcloud.storage.watermarks import percent
from pocketcloud.system import CommandFailed, Runner, run

# In the kit's folder, where everybody who uses the kit finds it.
NOTE = ".counting"
_OURS = "a metadata snapshot of the pool is held, or about to be\n"
_FIELDS = "DEV,MAPPED_BYTES,EXCLUSIVE_BYTES,SHARED_BYTES"
# Above that the blocks that a snapshot pins may be those that a guest needs.
_TOO_FULL = 90
# The tools before 1.0 count a terabyte in minutes.
_COUNT_TIMEOUT = 600.0
_READER_ENDS = 20


@dataclass(frozen=True, slots=True)
class Share:
    """What a thin volume occupies, in bytes: `exclusive` is given back when it is removed, `shared` other volumes have too."""

    mapped: int
    exclusive: int
    shared: int


def thin_shares(vg: str, run: Runner = run, folder: Path | None = None) -> Mapping[int, Share]:
    """The share of each thin volume of a kit's pool, by its thin id. `folder` is the one that all users of the kit share.

    A volume's figures are those of one moment. Raises NotFound if the pool is not active, Refused if it cannot be asked, or
    if another program holds a metadata snapshot, NoSpace if its metadata is too full for one, HostLacks without thin_ls.
    """
    with _one_at_a_time(folder) as note:
        _check(vg, _release_own(vg, _status(vg, run), note, run))
        with _snapshot(vg, note, run):
            options = ["--metadata-snap", "--no-headers", "-o", _FIELDS]
            try:
                # Its output is taken from a pipe: it could not write to a file on a tmpfs.
                told = run(["thin_ls", *options, _node(vg, f"{POOL}_tmeta")], timeout=_COUNT_TIMEOUT).out
            except HostLacks as error:
                hint = "pocketcloud check names the package for this distribution"
                raise HostLacks("thin_ls (thin-provisioning-tools) is not installed", hint=hint) from error
            except CommandFailed as failed:
                raise Refused(
                    f"what the volumes of volume group {vg} occupy cannot be counted: {complaint(failed)}",
                    hint="pocketcloud kit repair looks at the pool",
                ) from failed
    return read_shares(told)


def read_shares(text: str) -> dict[int, Share]:
    """The rows of `thin_ls -o DEV,MAPPED_BYTES,EXCLUSIVE_BYTES,SHARED_BYTES`, with headers or without."""
    rows = (line.split() for line in text.splitlines())
    return {int(row[0]): Share(*map(int, row[1:4])) for row in rows if len(row) >= 4 and all(cell.isdigit() for cell in row[:4])}


def _status(vg: str, run: Runner) -> PoolStatus:
    status = pool_status(_tpool(vg), run)
    if status is None:
        raise NotFound(f"volume group {vg} has no active pool", hint="pocketcloud kit attach")
    return status


def _check(vg: str, status: PoolStatus) -> None:
    if status.mode in (PoolMode.FAILED, PoolMode.READ_ONLY) or status.needs_check:
        raise Refused(f"the pool of volume group {vg} cannot be counted: it needs a check", hint="pocketcloud kit repair")
    if status.held is not None:
        raise Refused(
            f"another program holds a metadata snapshot of volume group {vg}'s pool, and a pool has only one",
            hint=f"wait until it is done; if it is known to be dead: dmsetup message {_tpool(vg)} 0 release_metadata_snap",
        )
    if (used := percent(status.metadata_used, status.metadata_total)) >= _TOO_FULL:
        raise NoSpace(
            f"the metadata of volume group {vg}'s pool is {used} % full: too full for a count", hint="remove a snapshot"
        )


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


def _node(vg: str, volume: str) -> Path:
    return Path("/dev/mapper", node_name(vg, volume))
