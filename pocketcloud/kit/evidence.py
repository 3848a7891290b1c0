"""What can be seen of a kit on LVM that may be damaged: gathered from the kernel, LVM and the kit, changing nothing.

A pool's metadata is read from the component volume, which LVM activates read-only while the pool is inactive; the state
volume is checked with `e2fsck -n` and looked into without replaying its journal. What is in use is asked for less: the kernel
knows how the pool is, and nobody else may read what it writes. What all that means stands in diagnosis.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pocketcloud.errors import NotFound, Refused
from pocketcloud.host import kits as host
from pocketcloud.kit.aside import aside, release
from pocketcloud.kit.attached import Places
from pocketcloud.kit.identity import BECOMING, kit_group, tag
from pocketcloud.kit.manifest import FILE, read_manifest
from pocketcloud.kit.mounts import mounts, number_of
from pocketcloud.kit.remains import carriers, is_dead, put_to_rest, stale_notes, tree
from pocketcloud.storage.devmapper import Node, PoolStatus, node_name, nodes_of, pool_status
from pocketcloud.storage.lvm import LogicalVolume, Lvm
from pocketcloud.storage.thin_volumes import BALLAST, CONTENT, NAME, POOL, STATE
from pocketcloud.system import CommandFailed, Runner

META = f"{POOL}_tmeta"
MAKER_FILES = ".making-*"
_ANY = range(256)
# struct thin_disk_superblock (drivers/md/dm-thin-metadata.c): checksum, flags, block, uuid, magic, version, time,
# transaction, held root; bit 0 of the flags is needs_check.
_SUPERBLOCK = struct.Struct("<IIQ16sQIIQQ")
_MAGIC = 27022010
_CHECK_TIMEOUT = 3600.0


@dataclass(frozen=True, slots=True)
class Target:
    """A kit to be looked at: its name, its volume group and that one's uuid; `device` is None where it is not plugged in."""

    name: str
    vg: str
    uuid: str
    device: Path | None


@dataclass(frozen=True, slots=True)
class Checked:
    """What a checking tool said: its exit code and its words, in one line."""

    code: int
    said: str


@dataclass(frozen=True, slots=True)
class Metadata:
    """A pool's metadata as read while nobody writes it. `check` is thin_check's; `devices` are the thin ids that are in it,
    or that would be left in it by a repair; `transaction` is None where the first block is no superblock."""

    check: Checked
    devices: frozenset[int]
    transaction: int | None = None
    needs_check: bool = False
    held: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """The state volume. `filesystem` is e2fsck's judgement (of a mounted one, the kernel's), `journal` whether there is
    something in its journal, `tree` whether it can be looked into; the rest is what was seen there then."""

    filesystem: Checked | None
    mounted: bool = False
    journal: bool = False
    tree: bool = False
    blank: bool = False
    fault: str = ""
    used: bool = False
    makers: tuple[str, ...] = ()
    records: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that was seen of one kit. `expected` is the transaction that LVM expects of the pool (`pending`: or one less, with
    messages still to be sent). `dead` and `suspended` are names of nodes."""

    target: Target
    volumes: tuple[LogicalVolume, ...] = ()
    partial: bool = False
    becoming: bool = False
    dead: tuple[str, ...] = ()
    suspended: tuple[str, ...] = ()
    expected: int = 0
    pending: bool = False
    pool: PoolStatus | None = None
    metadata: Metadata | None = None
    metadata_free: bool = True
    state: State | None = None
    run_files: tuple[Path, ...] = ()
    entries: tuple[Path, ...] = ()
    loops: tuple[Path, ...] = ()


def gather(target: Target, places: Places, run: Runner) -> Evidence:
    """Look at the kit. Nodes of a pulled disk or suspended ones are all that is told while there are any: they would make
    LVM's other answers wrong, or never come."""
    found = tree(target.uuid)
    entries = _stale_entries(target, places)
    if is_dead(found):
        return Evidence(target, dead=tuple(node.name for node in found), entries=entries)
    if target.device is None:
        return Evidence(target, entries=entries)
    _check_own(target, target.device, found)
    suspended = _suspended(target.vg)
    if suspended:
        return Evidence(target, suspended=suspended)
    lvm = Lvm([target.device], run)
    group = kit_group(lvm, target.device)
    volumes = lvm.volumes(target.vg)
    expected, pending = _expected(lvm, target.vg)
    names = {volume.name for volume in volumes}
    pool = pool_status(f"{node_name(target.vg, POOL)}-tpool", run) if POOL in names else None
    metadata = None
    if POOL in names and pool is None and not group.partial:
        metadata = read_pool(lvm, target.vg, run)
    return Evidence(
        target,
        volumes,
        partial=group.partial,
        becoming=tag(group, BECOMING) is not None,
        expected=expected,
        pending=pending,
        pool=pool,
        metadata=metadata,
        metadata_free=pool is None or not _is_read(target.vg, run),
        state=_state(lvm, target, run) if STATE in names and not group.partial else None,
        run_files=stale_notes(lvm, target.vg),
        entries=entries,
        loops=_other_loops(target.device),
    )


def _check_own(target: Target, device: Path, found: tuple[Node, ...]) -> None:
    """Raise Refused if nodes of that identity or name are another disk's: what is called the kit's would be that one's."""
    others = [name for name in carriers(found) if name != host.kernel_name(device)]
    strangers = [node.name for node in nodes_of(target.vg) if node not in found]
    if others:
        raise Refused(
            f"the kit {target.name} on {device} and an active one on {host.node(others[0])} are byte copies of each other",
            hint=f"pocketcloud kit attach {device} --as NEWNAME makes it another kit; or detach the active one first",
        )
    if strangers:
        raise Refused(
            f"the volume group {target.vg} of kit {target.name} has the name of another that is active: {', '.join(strangers)}",
            hint="deactivate or rename the other one first",
        )


def complete(volumes: tuple[LogicalVolume, ...]) -> bool:
    """Whether all volumes that a kit begins with were made. The ballast is given up at times, and made last."""
    return {STATE, POOL, CONTENT} <= {volume.name for volume in volumes}


def standing(volumes: tuple[LogicalVolume, ...]) -> dict[int, str]:
    """LVM's thin volumes by their thin id, with the name they have for people."""
    return {row.thin_id: row.tagged(NAME) or row.name for row in volumes if row.thin and row.name != BALLAST}


# -- the kernel


def _suspended(vg: str) -> tuple[str, ...]:
    """Nodes that stay suspended: a command that works right now has them so only for moments."""
    found: tuple[str, ...] = ()
    for _ in range(10):
        found = tuple(node.name for node in nodes_of(vg) if node.suspended)
        if not found:
            break
        time.sleep(0.1)
    return found


def _is_read(vg: str, run: Runner) -> bool:
    """Whether a tool has the active pool's metadata open; the pool itself does."""
    done = run(["dmsetup", "info", "--noheadings", "-c", "-o", "open", node_name(vg, META)], codes=_ANY)
    return done.out.strip().isdecimal() and int(done.out) > 1


# -- LVM


def _expected(lvm: Lvm, vg: str) -> tuple[int, bool]:
    """The transaction that LVM expects of the pool, and whether it has messages for it that it may not have sent."""
    text = metadata_text(lvm, vg)
    found = re.search(r'type = "thin-pool".*?transaction_id = (\d+)', text, re.DOTALL)
    return (int(found[1]) if found else 0), bool(re.search(r"^\s*message\d+ \{", text, re.MULTILINE))


def metadata_text(lvm: Lvm, vg: str) -> str:
    """The metadata of the volume group, as LVM writes it into a backup (vgcfgbackup(8))."""
    with tempfile.TemporaryDirectory(prefix="pocketcloud-") as folder:
        file = Path(folder, "vg")
        lvm.command("vgcfgbackup", "-f", file, vg)
        return file.read_text()


@contextlib.contextmanager
def component(lvm: Lvm, vg: str) -> Iterator[Path]:
    """The pool's metadata volume, readable while the pool is inactive."""
    lvm.command("lvchange", "-ay", f"{vg}/{META}")
    try:
        device = Path("/dev/mapper", node_name(vg, META))
        if not device.exists():
            lvm.command("vgmknodes", vg)
        yield device
    finally:
        lvm.command("lvchange", "-an", f"{vg}/{META}")


def read_pool(lvm: Lvm, vg: str, run: Runner) -> Metadata:
    """The metadata of the group's pool, which has to be inactive; it is only read. Raises CommandFailed if it cannot be read
    whole although nothing is found to be wrong with it."""
    with component(lvm, vg) as device:
        done = run(["thin_check", device], codes=_ANY, timeout=_CHECK_TIMEOUT)
        # Sound metadata that is not told whole (a read that failed) must not pass for metadata that lacks volumes.
        repaired, codes = (["--repair"], _ANY) if done.code else ([], (0,))
        dump = run(["thin_dump", "--skip-mappings", *repaired, device], codes=codes, timeout=_CHECK_TIMEOUT)
        with device.open("rb") as file:
            start = file.read(_SUPERBLOCK.size)
    return read_metadata(Checked(done.code, _one_line(done.err + done.out) if done.code else ""), dump.out, start)


def read_metadata(check: Checked, dump: str, start: bytes) -> Metadata:
    """What thin_check said, thin_dump's XML and the first block, as one value."""
    devices = frozenset(int(number) for number in re.findall(r'<device dev_id="(\d+)"', dump))
    if len(start) < _SUPERBLOCK.size or _SUPERBLOCK.unpack(start[: _SUPERBLOCK.size])[4] != _MAGIC:
        return Metadata(check, devices)
    _, flags, _, _, _, _, _, transaction, held = _SUPERBLOCK.unpack(start[: _SUPERBLOCK.size])
    return Metadata(check, devices, transaction, bool(flags & 1), held != 0)


# -- the state volume


def _state(lvm: Lvm, target: Target, run: Runner) -> State:
    device = Path("/dev", target.vg, STATE)
    # Else a look that was killed would count as the kit being attached.
    release(device, run)
    if mounted := _mounted(device):
        return _looked_into(mounted, State(_kernel_errors(device), mounted=True))
    lvm.activate(target.vg, STATE)
    try:
        with device.open("rb") as file:
            blank = not any(file.read(1 << 16))
        if blank:
            return State(None, blank=True)
        head = run(["dumpe2fs", "-h", device], codes=_ANY)
        journal = "needs_recovery" in head.out
        done = run(["e2fsck", "-f", "-n", device], codes=_ANY, timeout=_CHECK_TIMEOUT)
        seen = State(Checked(done.code, _one_line(done.out + done.err) if done.code else ""), journal=journal)
        with contextlib.suppress(CommandFailed), aside(device, run, read_only=True) as folder:
            return _looked_into(folder, seen)
        return seen
    finally:
        put_to_rest(lvm, target.vg, but=[row.name for row in lvm.volumes(target.vg) if row.name != STATE])


def _mounted(device: Path) -> Path | None:
    number = number_of(device)
    return next((mount.path for mount in mounts() if number and mount.number == number), None)


def _kernel_errors(device: Path) -> Checked | None:
    """Errors that the kernel met in a mounted file system (Documentation/ABI/testing/sysfs-fs-ext4)."""
    with contextlib.suppress(OSError, ValueError):
        count = int(Path("/sys/fs/ext4", device.resolve().name, "errors_count").read_text())
        return Checked(4, f"the kernel met {count} errors in it") if count else None
    return None


def _looked_into(folder: Path, seen: State) -> State:
    fault = ""
    try:
        read_manifest(folder)
    except NotFound:
        fault = f"it has no {FILE}"
    except Refused as error:
        fault = "" if "newer" in error.message else error.message
    try:
        used = any(any((folder / part).iterdir()) for part in ("labs", "bases") if (folder / part).is_dir())
        makers = tuple(sorted(path.name for path in (folder / "volumes").glob(MAKER_FILES) if not _is_held(path)))
        records = frozenset(path.parent.name for path in (folder / "labs").glob("*/lab.json"))
    except OSError as error:
        return replace(seen, filesystem=Checked(4, str(error)), tree=True, fault=fault)
    return replace(seen, tree=True, fault=fault, used=used, makers=makers, records=records)


def _is_held(path: Path) -> bool:
    """Whether the maker of a volume is alive: it holds its file."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


# -- the host


def _stale_entries(target: Target, places: Places) -> tuple[Path, ...]:
    """The kit's entry, where nothing is mounted any more at the place it names."""
    entry = places.entries / f"{target.name}.path"
    with contextlib.suppress(OSError):
        path = Path(entry.read_text().removesuffix("\n"))
        if path.is_relative_to(places.mounts) and all(mount.path != path for mount in mounts()):
            return (entry,)
    return ()


def _other_loops(device: Path) -> tuple[Path, ...]:
    """Loop devices on the same file beside the one in use."""
    file = host.loop_file(host.kernel_name(device))
    if file is None:
        return ()
    return tuple(host.node(name) for name in host.loops_of(file) if name != host.kernel_name(device))


def _one_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and "=" not in line]
    return "; ".join(lines)[:600]
