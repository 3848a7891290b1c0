"""Detaches kits: out of this host's libvirt, unmounted, inactive, so that nothing here points into it any more and its disk
can be pulled. Run again, a detach that was interrupted goes on; a disk that was pulled before is cleaned up after."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from pocketcloud.errors import NoSpace, NotFound, PocketcloudError, Refused, UsageError
from pocketcloud.host import kits as host
from pocketcloud.hosts_file import blocks_of, change
from pocketcloud.hypervisor import Domain, Hypervisor
from pocketcloud.kit import loops
from pocketcloud.kit.attached import Places, attached_kits, find_kit, forget, registered_names, registered_path
from pocketcloud.kit.device import CONTENT_FOLDER
from pocketcloud.kit.identity import is_group_name
from pocketcloud.kit.manifest import read_manifest, write_manifest
from pocketcloud.kit.mounts import mounted_at, mounts, number_of, unmount, users_of
from pocketcloud.kit.plugged import Plugged, plugged_kits
from pocketcloud.kit.remains import carriers, dead_trees, put_to_rest, take_down, tree
from pocketcloud.locks import held
from pocketcloud.model.kit import Kit
from pocketcloud.model.sizes import MIB, size_text
from pocketcloud.records import drop_memories
from pocketcloud.storage.devmapper import METADATA_BLOCK, Node, node_name, pool_status
from pocketcloud.storage.discards import discard_free, forget_killed
from pocketcloud.storage.lvm import Lvm
from pocketcloud.storage.thin_volumes import POOL, STATE
from pocketcloud.system import CommandFailed, Runner, run

BACKUPS = "backups"
_KEPT = 3
_AT_ONCE = 8
_ROOM = 4 * MIB
# What thin_dump writes for a mapping, against what the pool's own metadata take for it, in the worst case.
_TEXT_PER_METADATA = 6


@dataclass(frozen=True, slots=True)
class Leaving:
    """A kit that is to be detached, as far as it is still there: attached (`kit`), plugged in (`plugged`), or what is left in
    the kernel of a disk that was pulled (`dead`). `path` is where it is, or was, mounted."""

    name: str
    path: Path | None
    kit: Kit | None = None
    plugged: Plugged | None = None
    dead: tuple[Node, ...] = ()

    @property
    def on_lvm(self) -> bool:
        """Whether it lies on a disk, and not in a folder."""
        return self.kit is None or bool(self.kit.vg)


def leaving(places: Places, name: str | None, run: Runner = run) -> Leaving:
    """What there is of the kit of that name, or of the only one. Raises NotFound if there is nothing to detach."""
    if name is None and not attached_kits(places) and len(half := registered_names(places)) == 1:
        name = half[0]
    if name is None or any(kit.name == name for kit in attached_kits(places)):
        kit = find_kit(places, name)
        return Leaving(kit.name, kit.path, kit)
    path = registered_path(places, name)
    dead = _dead_of(path)
    if dead and path is not None:
        return Leaving(name, path, dead=dead)
    plugged = [kit for kit in plugged_kits(run) if kit.name == name]
    left = [kit for kit in plugged if _is_active(kit)] or [kit for kit in plugged if path is not None and _is_in_file(kit)]
    if len(left) > 1:
        devices = ", ".join(str(kit.device) for kit in left)
        raise UsageError(f"several kits named {name} are plugged in and not attached: {devices}", hint="losetup --detach DEVICE")
    if left:
        return Leaving(name, path, plugged=left[0])
    if path is not None:
        return Leaving(name, path)
    raise NotFound(f"no kit {name!r} is attached", hint="pocketcloud kit list shows the kits")


def _is_active(kit: Plugged) -> bool:
    return host.kernel_name(kit.device) in carriers(tree(kit.group.uuid))


def _is_in_file(kit: Plugged) -> bool:
    return host.loop_file(kit.device.name) is not None


def _dead_of(path: Path | None) -> tuple[Node, ...]:
    """The tree of a pulled disk whose `state` is mounted at a path; else, as a first try may have unmounted it, what is left
    of pulled kits that are mounted nowhere."""
    dead = dead_trees().values()
    numbers = {number_of(host.node(node.kernel)): found for found in dead for node in found}
    there = mounted_at(path) if path is not None else None
    if there is not None:
        return numbers.get(there.number, ())
    used = {mount.number for mount in mounts()}
    loose = [f for f in dead if not any(number_of(host.node(node.kernel)) in used for node in f)]
    return tuple(node for found in loose for node in found if is_group_name(host.group_of(node.name)))


# -- machines


def running(kit_id: str, hypervisor: Hypervisor) -> tuple[Domain, ...]:
    """The kit's machines that are not off."""
    return tuple(domain for domain in hypervisor.domains(kit_id) if domain.active)


def stop(domains: Iterable[Domain], hypervisor: Hypervisor, within: float, say: Callable[[str], None]) -> None:
    """Stop machines, side by side: each is asked to power off and has `within` seconds for it (0: none), then is switched
    off. `say` is told of those that were."""

    def stop_one(domain: Domain) -> None:
        if within <= 0 or not hypervisor.shutdown(domain.name, within):
            if within > 0:
                say(f"{domain.name} is still on after {within:.0f} s: switching it off")
            hypervisor.kill(domain.name)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(stop_one, domains))


def withdraw(kit: Kit, hypervisor: Hypervisor) -> tuple[int, int]:
    """Undefine the kit's domains and networks; how many of each. Raises Refused while a machine of the kit runs.

    Nothing is lost: attaching, or the next `lab up`, defines them again from the kit.
    """
    on = running(kit.id, hypervisor)
    if on:
        labs = sorted({domain.mark.instance for domain in on})
        raise Refused(
            f"kit {kit.name} is in use: {', '.join(domain.name for domain in on)} run",
            hint="; ".join(f"pocketcloud lab down {lab}" for lab in labs) + f"; or: pocketcloud kit detach -y {kit.name}",
        )
    return _undefine(kit.id, hypervisor)


def withdraw_pulled(name: str, hypervisor: Hypervisor) -> tuple[int, int]:
    """Take what points into a kit whose disk was pulled out of libvirt, machines that still run without it too: nothing they
    do reaches a disk any more."""
    ids = {domain.mark.kit_id for domain in hypervisor.domains() if domain.mark.kit == name}
    ids |= {network.mark.kit_id for network in hypervisor.networks() if network.mark.kit == name}
    counts = [_undefine(kit_id, hypervisor) for kit_id in sorted(ids)]
    return sum(count[0] for count in counts), sum(count[1] for count in counts)


def _undefine(kit_id: str, hypervisor: Hypervisor) -> tuple[int, int]:
    domains, networks = hypervisor.domains(kit_id), hypervisor.networks(kit_id)
    for domain in domains:
        hypervisor.undefine(domain.name)
    for network in networks:
        hypervisor.remove_network(network.name)
    return len(domains), len(networks)


# -- the disk


def detach(places: Places, kit: Leaving, *, now: str, trim: bool = False, run: Runner = run) -> tuple[str, ...]:
    """Unmount the kit, save copies of its metadata in it, make it inactive and forget it; notes for people, a line each. Its
    machines are off and undefined. With `trim` the disk is told what the pool does not use, which only an inactive pool's
    metadata can say. Raises Refused, naming who uses it; then it is attached still."""
    notes: tuple[str, ...] = ()
    if kit.dead:
        take_down(kit.dead, kit.name, run)
        notes = ("its disk had been pulled before: what was written last may be lost, and is checked when it is attached again",)
    elif kit.kit is not None and kit.kit.vg:
        notes = _close(kit.kit, now, run, trim=trim)
        _let_go(kit.kit.devices, run)
    elif kit.kit is not None:
        notes = _without_memories(kit.kit)
    elif kit.plugged is not None:
        # The first run got as far as unmounting; or the kit cannot be read, or is not finished.
        tree_at = kit.path or places.mounts / kit.name
        for place in (tree_at / CONTENT_FOLDER, tree_at):
            if mounted_at(place) is not None:
                unmount(place, run)
        put_to_rest(Lvm([kit.plugged.device], run), kit.plugged.group.name)
        _let_go((kit.plugged.device,), run)
    path = kit.path or places.mounts / kit.name
    if path.parent == places.mounts and path.is_dir() and mounted_at(path) is None:
        path.rmdir()
    forget(places, kit.name, path)
    return (*notes, *_forget_names(places, kit.name))


def _forget_names(places: Places, kit: str) -> tuple[str, ...]:
    """Take the names of the kit's labs out of this host's /etc/hosts; what kept that from being done, for people."""
    if not (blocks := blocks_of(places.hosts, kit)):
        return ()
    try:
        with held(places.locks, "hosts", "pocketcloud kit detach", wait=True):
            for block in blocks:
                change(places.hosts, block, ())
    except PocketcloudError as failure:
        return (f"{failure.message}; the names of its labs are left in there",)
    return ()


def _close(kit: Kit, now: str, run: Runner, *, trim: bool) -> tuple[str, ...]:
    lvm = Lvm(kit.devices, run)
    _check_unused(kit)
    forget_killed(kit.vg, run)
    notes = [*_without_memories(kit)]
    status = pool_status(f"{node_name(kit.vg, POOL)}-tpool", run)
    unmount(kit.path / CONTENT_FOLDER, run)
    put_to_rest(lvm, kit.vg, but=(STATE,))
    if trim:
        told = discard_free(kit.vg, lvm, run, status.data_used) if status else 0
        notes.append(f"the disk was told of {size_text(told)} that the kit does not use" if told else "nothing could be trimmed")
    manifest = read_manifest(kit.path)
    try:
        notes += save_metadata(kit, lvm, status.metadata_used * METADATA_BLOCK if status else 0, now, run)
    except (NoSpace, OSError, CommandFailed) as error:
        notes.append(f"no copy of its metadata could be kept this time ({str(error).splitlines()[-1]})")
    try:
        write_manifest(kit.path, replace(manifest, dirty=False, detached=now))
    except (NoSpace, OSError) as error:
        why = str(error).splitlines()[-1]
        notes.append(f"its state volume takes no more ({why}): it will count as not detached, and be checked")
    try:
        unmount(kit.path, run)
    except Refused:
        write_manifest(kit.path, manifest)
        raise
    put_to_rest(lvm, kit.vg)
    return tuple(notes)


def _without_memories(kit: Kit) -> tuple[str, ...]:
    """Remove the memory kept with states: it is of use on this computer only, and elsewhere nothing but a burden."""
    freed, trouble = drop_memories(kit)
    notes = [f"the memory kept with its labs' states is removed ({size_text(freed)}): those start cold now"] if freed else []
    return (*notes, *([f"memory kept with its labs' states could not be removed ({trouble})"] if trouble else []))


def _check_unused(kit: Kit) -> None:
    """Raise Refused, before anything is changed, if somebody is at work in the kit's tree."""
    places = [there for path in (kit.path / CONTENT_FOLDER, kit.path) if (there := mounted_at(path)) is not None]
    users = list(users_of(there.number for there in places))
    if users:
        raise Refused(f"kit {kit.name} is in use by {', '.join(users)}", hint="end that (a shell in its folder?), then run again")


def _let_go(devices: Iterable[Path], run: Runner) -> None:
    for device in devices:
        file = host.loop_file(device.name)
        if file is not None:
            loops.take_away(device, file, run)


def save_metadata(kit: Kit, lvm: Lvm, used: int, now: str, run: Runner) -> list[str]:
    """Copies of the volume group's and the pool's metadata, in the kit's own state volume, for the day on which they are
    damaged; the last few are kept. The pool is inactive, so that they are of one moment; `used` are the bytes of metadata it
    used. Notes where a copy had to be left out."""
    folder = kit.path / BACKUPS
    folder.mkdir(mode=0o700, exist_ok=True)
    for unfinished in folder.glob(".*"):
        unfinished.unlink()
    stamp = "".join(character for character in now if character.isalnum())
    lvm.command("vgcfgbackup", "-f", folder / ".vg", kit.vg)
    (folder / ".vg").rename(folder / f"{stamp}.vg")
    try:
        notes = _dump_pool(kit, lvm, used, folder, folder / f"{stamp}.pool.xml.gz", run)
    finally:
        for unfinished in folder.glob(".*"):
            unfinished.unlink()
    for kind in ("*.vg", "*.pool.xml.gz"):
        for old in sorted(folder.glob(kind))[:-_KEPT]:
            old.unlink()
    return notes


def _dump_pool(kit: Kit, lvm: Lvm, used: int, folder: Path, target: Path, run: Runner) -> list[str]:
    if used * _TEXT_PER_METADATA + _ROOM > shutil.disk_usage(folder).free:
        return ["its state volume has no room for a copy of the pool's metadata"]
    text, packed, part = folder / ".pool", folder / ".packed", f"{POOL}_tmeta"
    # LVM activates a part of an inactive pool by itself, read-only.
    lvm.command("lvchange", "-ay", f"{kit.vg}/{part}")
    try:
        run(["thin_dump", "-o", text, f"/dev/mapper/{node_name(kit.vg, part)}"])
    except CommandFailed as failed:
        said = " ".join((failed.completed.err or failed.completed.out).split())[:200]
        return [f"the pool's metadata could not be read whole ({said}): pocketcloud kit repair"]
    finally:
        lvm.command("lvchange", "-an", f"{kit.vg}/{part}")
    with text.open("rb") as read, gzip.open(packed, "wb", compresslevel=6) as write:
        shutil.copyfileobj(read, write, 1 << 20)
    packed.chmod(0o600)
    packed.rename(target)
    return []
