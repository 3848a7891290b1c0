"""Attaches kits: finds the one that is meant, looks whether it can be used here, and mounts it.

What can be judged without a change is judged before the first one: a kit that is refused is left as it was, to the byte.
Every step takes what an interrupted run left, so that the same command again goes on. What labs need on this host is
lab/moving.py's matter.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pocketcloud.errors import NoSpace, NotFound, PocketcloudError, Refused
from pocketcloud.host import kits as host
from pocketcloud.kit import loops
from pocketcloud.kit.aside import aside, release
from pocketcloud.kit.attached import Places, attached_kits, register, unreadable_kits
from pocketcloud.kit.device import CONTENT_FOLDER, finished_name, put_down
from pocketcloud.kit.directory import PARTIAL, check_reachable
from pocketcloud.kit.identity import BECOMING, fresh_group_name, give_new_identity, tag
from pocketcloud.kit.manifest import FILE, NewerKit, host_mark, read_manifest, write_manifest
from pocketcloud.kit.mounts import THIN_OPTIONS, mount, mounted_at, number_of
from pocketcloud.kit.plugged import Plugged, check_tools, kit_on, plugged_kits, the_one
from pocketcloud.kit.remains import clear, put_parts_to_rest, stale_notes
from pocketcloud.model.kit import Kit, Manifest
from pocketcloud.model.sizes import MIB
from pocketcloud.storage.devmapper import nodes_of
from pocketcloud.storage.lvm import Lvm, complaint
from pocketcloud.storage.thin_volumes import CONTENT, STATE
from pocketcloud.system import CommandFailed, Runner, run

_FSCK_MENDED, _FSCK_DONE = 1, (0, 1, 2)


@dataclass(frozen=True, slots=True)
class Attached:
    """An attached kit, and what there is to say about it, a line each; `already` if it was attached before."""

    kit: Kit
    notes: tuple[str, ...] = ()
    already: bool = False


def attach(places: Places, what: str | None, *, rename: str | None, now: str, run: Runner = run) -> Attached:
    """Attach the kit that `what` names: a device, a folder, a file, the name of a plugged kit, or (None) the only one that is
    plugged in. It being attached already is success. With `rename` it gets that name and an identity of its own first, which
    a byte copy needs to be used beside its original. `now` is ISO 8601 in UTC.

    The caller holds what makes and attaches kits. Raises NotFound, NotOurs, Refused, UsageError, HostLacks.
    """
    path = _as_path(what)
    if path is None:
        check_tools()
        kits = attached_kits(places)
        for kit in kits:
            if kit.name == what:
                return _already(kit, rename)
        plugged, on_disks = plugged_kits(run), [kit for kit in kits if kit.vg]
        if what is None and len(on_disks) == 1 and len(plugged) == 1:
            return _already(on_disks[0], rename)
        found = the_one(plugged, kits, what)
        return _attach_device(places, found.device, rename, now, run)
    if path.is_dir():
        return _attach_folder(places, path, rename)
    if path.is_block_device():
        check_tools()
        return _attach_device(places, path, rename, now, run)
    if path.is_file():
        check_tools()
        return _attach_file(places, path, rename, now, run)
    raise NotFound(f"{path}: no kit there, and nothing else", hint="pocketcloud kit list shows the kits that are plugged in")


def _as_path(what: str | None) -> Path | None:
    """What was typed as a path: with a `/` it is one, else only where no name can be meant and something is there."""
    if what is None:
        return None
    if "/" in what:
        return Path(what)
    named = Path(what)
    return named.absolute() if named.exists() and (named.is_file() or (named / FILE).exists()) else None


def _attach_folder(places: Places, path: Path, rename: str | None) -> Attached:
    if rename is not None:
        raise Refused(f"{path}: kits in folders keep their identity", hint="detach the other one first")
    if PARTIAL.fullmatch(path.resolve().name):
        raise Refused(
            f"{path} is an unfinished copy of a kit: `kit clone` was interrupted, or is at work",
            hint=f"run that command again, which makes it anew; or: rm -r {shlex.quote(str(path))}",
        )
    check_reachable(path.absolute())
    before = {kit.path for kit in attached_kits(places)}
    kit = register(places, path)
    return Attached(kit, already=kit.path in before)


def _attach_file(places: Places, path: Path, rename: str | None, now: str, run: Runner) -> Attached:
    if not os.access(path, os.W_OK):
        raise Refused(f"{path} cannot be written to", hint=f"chmod u+w {path}, or copy it to where it can")
    device, made = loops.put_before(path, run)
    with ExitStack() as undo:
        if made:
            undo.callback(_tried_away, device, path, run)
        done = _attach_device(places, device, rename, now, run)
        undo.pop_all()
    return done


def _tried_away(device: Path, path: Path, run: Runner) -> None:
    with suppress(PocketcloudError):
        loops.take_away(device, path, run)


def _attach_device(places: Places, device: Path, rename: str | None, now: str, run: Runner) -> Attached:
    found = kit_on(device, run)
    if found.unfinished:
        raise Refused(
            f"the kit {found.name} on {found.device} is an unfinished copy: `kit clone` was interrupted",
            hint=f"run that command again, which makes it anew; or: pocketcloud kit erase {found.device}",
        )
    if (unreadable := unreadable_kits(places).get(found.name)) is not None:
        raise unreadable
    kits = attached_kits(places)
    for kit in kits:
        if found.device in kit.devices:
            return _already(kit, rename)
    found, notes = _with_identity(found, kits, rename, now, run)
    if clear(found.group.uuid, found.device, found.name, run):
        notes.append("the disk had been pulled without `kit detach`: what was left of that in the kernel is cleared")
    for note in stale_notes(Lvm([found.device], run), found.group.name):
        note.unlink(missing_ok=True)
    found, renamed = _with_free_group(found, run)
    notes += renamed
    with _awake(found, places, run) as mount_point:
        notes += _take_in(found, mount_point, run)
        kit = register(places, mount_point)
    return Attached(kit, tuple(notes))


def _already(kit: Kit, rename: str | None) -> Attached:
    if rename not in (None, kit.name):
        raise Refused(f"kit {kit.name} is attached and keeps its name", hint=f"pocketcloud kit detach {kit.name}, then again")
    return Attached(kit, already=True)


def _with_identity(found: Plugged, kits: tuple[Kit, ...], rename: str | None, now: str, run: Runner) -> tuple[Plugged, list[str]]:
    """The kit with an identity that no attached one has. Raises Refused where it would take a new one to get there."""
    half = tag(found.group, BECOMING) is not None
    if rename is not None and (half or found.name != rename):
        if any(kit.name == rename for kit in kits):
            raise Refused(f"a kit named {rename} is attached already", hint="choose another name with --as")
        before = found.name
        give_new_identity(found.device, rename, run, now)
        return kit_on(found.device, run), [f"it is a kit of its own now: {rename}, a copy of {before}"]
    again = f"pocketcloud kit attach {found.device} --as NEWNAME"
    if half:
        raise Refused(f"{found.device} was to become a kit of its own, and was interrupted", hint=f"go on: {again}")
    for kit in kits:
        where = ", ".join(map(str, kit.devices)) or str(kit.path)
        if kit.id == found.id:
            raise Refused(
                f"the kit on {found.device} is a copy of {kit.name}, which is attached from {where}",
                hint=f"give it an identity of its own: {again}; or pocketcloud kit detach {kit.name} first",
            )
        if kit.name == found.name:
            raise Refused(
                f"another kit named {kit.name} is attached, from {where}",
                hint=f"pocketcloud kit detach {kit.name} first; or give this one another identity: {again}",
            )
    return found, []


def _with_free_group(found: Plugged, run: Runner) -> tuple[Plugged, list[str]]:
    """The kit with a volume group's name that no other has here: nodes of one name cannot be there twice."""
    prefix = "LVM-" + found.group.uuid.replace("-", "")
    if all(node.uuid.startswith(prefix) for node in nodes_of(found.group.name)):
        return found, []
    name = fresh_group_name()
    Lvm([found.device], run).command("vgrename", found.group.name, name)
    note = f"its volume group is called {name} now: {found.group.name} is another one's name here"
    return kit_on(found.device, run), [note]


@contextmanager
def _awake(found: Plugged, places: Places, run: Runner) -> Iterator[Path]:
    """The kit's `state` active, checked and mounted where people find it; put to rest again if something goes wrong."""
    lvm, vg = Lvm([found.device], run), found.group.name
    mount_point = places.mounts / found.name
    with ExitStack() as undo:
        undo.callback(_tried_down, lvm, vg, mount_point, run)
        state = _activated(lvm, vg, STATE)
        there = mounted_at(mount_point)
        if there is None or there.number != number_of(state):
            manifest = _looked_into(found, state, run)
            _judge(manifest, found)
            _mended(state, manifest.name, run, thorough=manifest.dirty)
            mount(state, mount_point, run)
        yield mount_point
        undo.pop_all()


def _tried_down(lvm: Lvm, vg: str, mount_point: Path, run: Runner) -> None:
    with suppress(PocketcloudError, OSError):
        put_down(lvm, vg, mount_point, run)


def _activated(lvm: Lvm, vg: str, volume: str) -> Path:
    try:
        try:
            lvm.activate(vg, volume)
        except CommandFailed:
            # A command that was killed while it had the pool's metadata checked leaves these active by themselves, and LVM
            # activates no volume of the pool then.
            if not put_parts_to_rest(lvm, vg):
                raise
            lvm.activate(vg, volume)
    except CommandFailed as failed:
        part = "pool" if volume == CONTENT else "volume group"
        raise Refused(
            f"the {part} of the kit on {', '.join(map(str, lvm.devices))} cannot be activated: {complaint(failed)}",
            hint=f"pocketcloud kit repair {lvm.devices[0]}",
        ) from failed
    return Path("/dev", vg, volume)


def _looked_into(found: Plugged, state: Path, run: Runner) -> Manifest:
    """The manifest, read without a change to the disk; where that shows nothing sound, after a check of the file system."""
    repair = f"pocketcloud kit repair {found.device}"
    try:
        with aside(state, run, read_only=True) as folder:
            return read_manifest(folder)
    except NewerKit:
        raise
    except (NotFound, Refused, CommandFailed):
        pass  # without its journal, what was written last may be half there
    release(state, run)  # says who keeps that first look mounted; a check would only say that it is
    _mended(state, found.name, run, thorough=True)
    try:
        with aside(state, run, read_only=True) as folder:
            return read_manifest(folder)
    except NotFound as none:
        raise NotFound(
            f"the kit {found.name} on {found.device} is not finished: its `kit init` was interrupted",
            hint=f"make it anew: {_made_anew(found.device)}; if there was more on it: {repair}",
        ) from none
    except CommandFailed as failed:
        said = (failed.completed.err or failed.completed.out).strip().splitlines()
        raise Refused(
            f"the state volume of kit {found.name} cannot be mounted: {said[0] if said else 'mount does not say why'}",
            hint=repair,
        ) from failed


def _made_anew(device: Path) -> str:
    """What makes a kit that was never finished anew; one in a file by the name it was to get, or where it lies now."""
    file = host.loop_file(device.name)
    if file is None:
        return f"pocketcloud kit init {device}"
    size = f"--size {file.stat().st_size // MIB}MiB"
    if (meant := finished_name(file)) is not None:
        return shlex.join(["pocketcloud", "kit", "init", "--file", str(meant)]) + f" {size}"
    words = (["pocketcloud", "kit", "erase", "-y", str(file)], ["pocketcloud", "kit", "init", "--file", str(file)])
    return f"{'; '.join(map(shlex.join, words))} {size}"


def _judge(manifest: Manifest, found: Plugged) -> None:
    shown = host.sector_size(host.kernel_name(found.device))
    if manifest.sector_size and shown and manifest.sector_size != shown:
        raise Refused(
            f"kit {manifest.name} was made while its disk showed sectors of {manifest.sector_size} bytes; on {found.device} it"
            f" shows {shown}. Nothing is lost",
            hint="plug the disk in as it was when the kit was made: in the same enclosure or adapter, or directly",
        )
    if manifest.id != found.id:
        raise Refused(
            f"the kit on {found.device} tells two ids: its volume group {found.id}, its manifest {manifest.id}",
            hint=f"pocketcloud kit repair {found.device}",
        )


def _mended(device: Path, name: str, run: Runner, *, thorough: bool) -> bool:
    """Check a file system that is not mounted, as every boot does; whether something was put right. `thorough` also looks
    where the journal says that all is well. Raises Refused for damage that takes a decision."""
    words = ["e2fsck", "-p", *(["-f"] if thorough else []), str(device)]
    done = run(words, codes=range(256))
    if done.code not in _FSCK_DONE:
        said = " ".join((done.out + done.err).split())[:300]
        raise Refused(
            f"the file system {device.name} of kit {name} is damaged, or cannot be checked: {said}",
            hint=f"pocketcloud kit repair (it shows first what it would do); by hand: e2fsck -f {device}",
        )
    return bool(done.code & _FSCK_MENDED)


def _take_in(found: Plugged, mount_point: Path, run: Runner) -> list[str]:
    """What follows once `state` is mounted: the pool and `content`, saved memory, and the manifest's marks."""
    notes = []
    manifest = read_manifest(mount_point)
    here = host_mark()
    if manifest.dirty and not (manifest.last_host == here and mounted_at(mount_point / CONTENT_FOLDER)):
        notes.append("it was not detached the last time (pulled, or a computer that went down): its file systems were checked")
    content = _activated(Lvm([found.device], run), found.group.name, CONTENT)
    there = mounted_at(mount_point / CONTENT_FOLDER)
    if there is None or there.number != number_of(content):
        if _mended(content, manifest.name, run, thorough=manifest.dirty):
            notes.append("the file system of its content was put right")
        mount(content, mount_point / CONTENT_FOLDER, run, THIN_OPTIONS)
    if manifest.last_host != here:
        dropped = drop_memory(mount_point)
        if dropped:
            notes.append(f"saved memory of {dropped} machines was dropped: another computer cannot go on with it")
    arch = os.uname().machine
    if manifest.arch not in ("", arch):
        notes.append(f"it was made on {manifest.arch}, this computer is {arch}: machines of {manifest.arch} are emulated here")
    try:
        write_manifest(mount_point, replace(manifest, dirty=True, last_host=here, vg=found.group.name))
    except NoSpace as error:
        notes.append(f"{error.message}: remove labs that are not needed")
    return notes


def drop_memory(tree: Path) -> int:
    """Remove all saved memory of a kit's machines; how much there was. On another computer it would be another processor's,
    and disks may have moved on since."""
    files = [path for path in (*tree.glob(f"{CONTENT_FOLDER}/ram/*"), *tree.glob("labs/*/ram/*")) if not path.is_dir()]
    for path in files:
        path.unlink(missing_ok=True)
    return len(files)
