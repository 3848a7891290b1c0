"""Byte copies of kits: a copy becomes a kit of its own, which can be plugged in beside its original.

A copy made block by block has the LVM identity of its original, and LVM refuses to work with either while it sees both.
Here it gets new UUIDs and another volume group's name (vgimportclone(8)), then a kit id and a name of its own. Only the
copy's device is ever touched. A kill leaves a copy that is marked (`BECOMING`), and the same command again goes on.
"""

from __future__ import annotations

import base64
import fcntl
import os
import re
import secrets
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pocketcloud.errors import NotFound, NotOurs, Refused
from pocketcloud.kit.aside import aside, release
from pocketcloud.kit.attached import checked_name
from pocketcloud.kit.manifest import read_manifest, write_manifest
from pocketcloud.model.kit import KIT_SCHEMA, Manifest
from pocketcloud.model.names import Name
from pocketcloud.storage.devmapper import nodes, nodes_of
from pocketcloud.storage.lvm import Lvm, VolumeGroup
from pocketcloud.storage.thin_volumes import STATE
from pocketcloud.system import CommandFailed, Runner

KIT, KIT_NAME, SCHEMA = "pc:kit", "pc:kitname", "pc:schema"
# On the volume group of a copy whose new identity is not complete: the name that its volume group is getting.
BECOMING = "pc:becoming"
# On the volume group of a copy that is being made, volume by volume: the id of the kit that it is a copy of.
UNFINISHED = "pc:unfinished"
# What `fresh_group_name` gives.
_GROUP_NAME = re.compile(r"pc_[a-z2-7]{6}")
_FSCK_MENDED = (0, 1, 2)
_FSCK_ANY = range(256)


def give_new_identity(device: Path, new_name: str, run: Runner, now: str) -> str:
    """Make the byte copy of a kit on `device` (a partition, a disk or a loop device) a kit of its own, named `new_name`;
    the name of its volume group. `now` is ISO 8601 in UTC.

    Raises NotFound or NotOurs if there is no kit on it, Refused if it is attached, damaged or of a newer pocketcloud,
    UsageError for what is no name.
    """
    name = checked_name(new_name)
    lvm = Lvm([device], run)
    with _locked(device):
        group = kit_group(lvm, device)
        target = tag(group, BECOMING) or fresh_group_name()
        if group.name != target:
            _check_importable(group, device)
            if tag(group, BECOMING) is None:
                lvm.command("vgchange", "--addtag", f"{BECOMING}={target}", group.name)
            lvm.command("vgimportclone", "-n", target, device)
        original = tag(group, KIT) or ""
        manifest = _rewritten(lvm, target, original, name, run, now)
        _tag_anew(lvm, kit_group(lvm, device), manifest)
    return target


def kit_group(lvm: Lvm, device: Path) -> VolumeGroup:
    """The volume group of the kit on `device`. Raises NotFound if LVM sees none there, NotOurs if it is no kit's."""
    groups = lvm.groups()
    if not groups:
        raise NotFound(f"{device}: LVM finds no volume group there", hint="pocketcloud kit list shows the kits that are attached")
    (group, *others) = groups
    if others or tag(group, KIT) is None:
        raise NotOurs(f"{device} holds the volume group {group.name}, which is no kit's", hint="it is left alone")
    return group


def tag(group: VolumeGroup, key: str) -> str | None:
    """The value of the group's tag `key=VALUE`; None if there is none."""
    prefix = f"{key}="
    return next((text.removeprefix(prefix) for text in sorted(group.tags) if text.startswith(prefix)), None)


def fresh_group_name() -> str:
    """A name for a kit's volume group that no volume group active here has: `pc_` and 6 random characters of base32."""
    taken = {node.name.split("-")[0] for node in nodes()}
    while True:
        name = f"pc_{base64.b32encode(secrets.token_bytes(4)).decode().lower()[:6]}"
        if name not in taken:
            return name


def is_group_name(name: str) -> bool:
    """Whether a volume group's name is one that `fresh_group_name` gives: all that is left to tell a kit by when its disk is
    gone, and the tags with it."""
    return _GROUP_NAME.fullmatch(name) is not None


def stands_on(vg: str, device: Path) -> bool:
    """Whether a node of the volume group `vg` stands on `device` itself, not on another device with a copy of the same."""
    kernel = Path(f"/sys/dev/block/{_number(device)}").resolve().name
    return any(kernel in node.below for node in nodes_of(vg))


def _number(device: Path) -> str:
    number = device.stat().st_rdev
    return f"{os.major(number)}:{os.minor(number)}"


def _check_importable(group: VolumeGroup, device: Path) -> None:
    schema = tag(group, SCHEMA) or "1"
    if not schema.isdecimal() or int(schema) > KIT_SCHEMA:
        raise Refused(
            f"the kit on {device} was made by a newer pocketcloud (schema {schema}); nothing was changed",
            hint="install that version or a newer one",
        )
    if group.partial:
        raise Refused(
            f"{device} has only a part of the volume group {group.name}; the copy is not whole",
            hint="copy the kit's whole disk or partition again",
        )
    if stands_on(group.name, device):
        name = tag(group, KIT_NAME) or group.name
        raise Refused(f"the kit on {device} is in use here", hint=f"pocketcloud kit detach {name}, then again")


def _rewritten(lvm: Lvm, vg: str, original: str, name: Name, run: Runner, now: str) -> Manifest:
    """Give the manifest in the copy's state volume its new id and name; a manifest that an interrupted run had rewritten keeps
    the id it got then."""
    state = Path("/dev", vg, STATE)
    lvm.activate(vg, STATE)
    try:
        release(state, run)
        _mended(state, run)
        with aside(state, run) as folder:
            manifest = read_manifest(folder)
            if manifest.id == original:
                changed = replace(manifest, id=str(uuid.uuid4()), name=name, created=now, derived_from=original)
            elif manifest.derived_from == original:
                changed = replace(manifest, name=name)
            else:
                raise Refused(
                    f"the copy in volume group {vg} tells two ids: its tags {original}, its manifest {manifest.id}",
                    hint=f"pocketcloud kit repair {' '.join(map(str, lvm.devices))}",
                )
            write_manifest(folder, changed)
            return changed
    finally:
        lvm.command("lvchange", "-an", f"{vg}/{STATE}")


def _mended(state: Path, run: Runner) -> None:
    done = run(["e2fsck", "-p", state], codes=_FSCK_ANY)
    if done.code not in _FSCK_MENDED:
        raise Refused(
            f"the file system of the copy's state volume is damaged: {' '.join((done.out + done.err).split())[:300]}",
            hint="pocketcloud kit repair with the copy's device, or copy it again",
        ) from CommandFailed(done)


def _tag_anew(lvm: Lvm, group: VolumeGroup, manifest: Manifest) -> None:
    """Replace the tags that say whose the volume group is, in one commit, which ends the change."""
    wanted = {f"{KIT}={manifest.id}", f"{KIT_NAME}={manifest.name}"}
    old = {text for text in group.tags if text.partition("=")[0] in (KIT, KIT_NAME, BECOMING)}
    words = [word for text in sorted(wanted - old) for word in ("--addtag", text)]
    words += [word for text in sorted(old - wanted) for word in ("--deltag", text)]
    if words:
        lvm.command("vgchange", *words, group.name)


@contextmanager
def _locked(device: Path) -> Iterator[None]:
    """One at a time on a device; the lock ends with the process."""
    try:
        handle = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"{device}: there is no such device", hint="lsblk shows what is plugged in") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
