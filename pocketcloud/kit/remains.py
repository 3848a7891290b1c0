"""A kit's device-mapper nodes outside of LVM's sight: those of a disk that was pulled, which LVM no more finds and which keep
the disk from being used when it is plugged in again; and the way to put a volume group to rest.

Only nodes whose uuid begins with that of the kit's own volume group are ever touched.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path

from pocketcloud.errors import Refused
from pocketcloud.host import kits as host
from pocketcloud.kit.mounts import number_of, unmount_all, users_of
from pocketcloud.storage.devmapper import Node, nodes
from pocketcloud.storage.lvm import Lvm, complaint, environment
from pocketcloud.storage.thin_volumes import POOL
from pocketcloud.system import CommandFailed, Runner

_BLOCK = Path("/sys/block")
_TRIES = 10
_LVM = "LVM-"
_RUN_LVM = Path("/run/lvm")
_PARTS = ("_tdata", "_tmeta", "_pmspare")


def tree(group_uuid: str) -> tuple[Node, ...]:
    """The nodes of the volume group with this uuid, whatever it is called. LVM's node uuids are `LVM-`, the group's and the
    volume's uuid without dashes."""
    prefix = _LVM + group_uuid.replace("-", "")
    return tuple(node for node in nodes() if node.uuid.startswith(prefix))


def carriers(found: Iterable[Node]) -> tuple[str, ...]:
    """The kernel names of the devices, there or gone, that a tree stands on."""
    own = {node.kernel for node in found}
    return tuple(sorted({name for node in found for name in node.below if name not in own}))


def is_dead(found: Iterable[Node]) -> bool:
    """Whether the disk below a tree is gone: something of it stands on a device that is no more."""
    found = tuple(found)
    return bool(found) and any(not host.is_there(name) for name in carriers(found))


def dead_trees() -> dict[str, tuple[Node, ...]]:
    """All trees of LVM on devices that are gone, by the uuid of their volume group, without its dashes."""
    by_group: dict[str, list[Node]] = {}
    for node in nodes():
        if node.uuid.startswith(_LVM):
            by_group.setdefault(node.uuid[len(_LVM) :][:32], []).append(node)
    return {uuid: tuple(found) for uuid, found in by_group.items() if is_dead(found)}


def clear(group_uuid: str, device: Path, name: str, run: Runner) -> bool:
    """Make way for a kit that is to be attached from `device`: take down what an earlier plug of it left; whether there was
    anything. Raises Refused if the group is alive on another device, or if something still holds what is dead."""
    found = tree(group_uuid)
    if is_dead(found):
        take_down(found, name, run)
        return True
    elsewhere = [kernel for kernel in carriers(found) if kernel != host.kernel_name(device)]
    if elsewhere:
        raise Refused(
            f"the kit {name} on {device} has the same LVM identity as one that is active on {host.node(elsewhere[0])}:"
            " one is a byte copy of the other",
            hint=f"to use both, give this one an identity of its own: pocketcloud kit attach {device} --as NEWNAME",
        )
    return False


def stale_notes(lvm: Lvm, vg: str) -> tuple[Path, ...]:
    """What LVM's udev rules noted under /run of an earlier plug of this disk, with another device number; nothing takes these
    notes away when a disk is pulled (pvscan(8), --cache)."""
    folder = _RUN_LVM / "pvs_online"
    if not folder.exists():
        return ()
    stale: list[Path] = []
    for row in lvm.physical_volumes():
        note = folder / row.uuid.replace("-", "")
        with contextlib.suppress(OSError):
            if note.read_text().split("\n")[0].strip() != number_of(row.device):
                stale.append(note)
    group = _RUN_LVM / "vgs_online" / vg
    return (*stale, group) if stale and group.exists() else tuple(stale)


def take_down(found: Iterable[Node], name: str, run: Runner) -> None:
    """Remove a dead tree from the top down, unmounted first. Raises Refused, naming them, if processes hold it."""
    left = list(found)
    groups = {host.group_of(node.name) for node in left}
    unmount_all({(_BLOCK / node.kernel / "dev").read_text().strip() for node in left}, run)
    while left:
        below = {kernel for node in left for kernel in node.below}
        top = next((node for node in left if node.kernel not in below), left[0])
        left.remove(top)
        if top.suspended:
            # Nothing waits for an answer from below any more: what was held back fails now.
            run(["dmsetup", "wipe_table", "--", top.name], codes=range(256), env=environment())
        done = run(["dmsetup", "remove", "--retry", "--", top.name], codes=range(256), env=environment())
        if done.code and (_BLOCK / top.kernel).exists():
            number = (_BLOCK / top.kernel / "dev").read_text().strip()
            users = ", ".join(users_of([number])) or "something in the kernel"
            raise Refused(
                f"the disk of kit {name} was pulled while it was used, and {users} still has {top.name} open",
                hint=f"pocketcloud kit detach {name} ends its machines; end what else it is, then run the command again",
            )
    for group in groups:
        _sweep_links(Path("/dev", group))


def _sweep_links(folder: Path) -> None:
    """Remove the links to nodes that are gone, as udev does where it runs; LVM takes a folder of them for a volume group."""
    with contextlib.suppress(OSError):
        for link in folder.iterdir():
            if link.is_symlink() and not link.exists():
                link.unlink()
        folder.rmdir()


def put_parts_to_rest(lvm: Lvm, vg: str) -> bool:
    """Deactivate the parts of a pool that are active without it; whether any were. Raises CommandFailed."""
    rows = [row for row in lvm.volumes(vg) if row.active]
    parts = [f"{vg}/{row.name}" for row in rows if row.name.endswith(_PARTS)]
    if not parts or any(row.thin or row.name == POOL for row in rows):
        return False
    for part in parts:
        lvm.command("lvchange", "-an", part)
    return True


def put_to_rest(lvm: Lvm, vg: str, *, but: Iterable[str] = ()) -> None:
    """Deactivate all volumes of a group but some; inactive is success. Raises Refused, naming who has one open.

    udev and desktops look into volumes for a moment, so an open one is tried again for a second.
    """
    kept = set(but)
    for attempt in range(_TRIES):
        rows = [row for row in lvm.volumes(vg) if row.active and row.name not in kept]
        # Parts of a pool go with it, unless they are active by themselves.
        rows = [row for row in rows if not row.name.endswith(_PARTS)] or rows
        if not rows:
            return
        try:
            for chosen in ([row for row in rows if row.thin], [row for row in rows if not row.thin]):
                if chosen:
                    lvm.command("lvchange", "-an", *(f"{vg}/{row.name}" for row in chosen))
        except CommandFailed as failed:
            if attempt + 1 < _TRIES:
                time.sleep(0.1)
                continue
            names = [f"{vg}/{row.name}" for row in rows if row.open] or [f"{vg}/{row.name}" for row in rows]
            numbers = [number for name in names if (number := number_of(Path("/dev", name)))]
            users = ", ".join(users_of(numbers)) or complaint(failed)
            raise Refused(f"{', '.join(names)} cannot be closed: {users}", hint="end what uses it, then run again") from failed
