"""Kits on plugged disks, attached or not: found by LVM's label and the tags of their volume groups."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.errors import HostLacks, NotFound, Refused, UsageError
from pocketcloud.host import kits as host
from pocketcloud.kit.identity import KIT, KIT_NAME, UNFINISHED, kit_group, tag
from pocketcloud.model.kit import Kit
from pocketcloud.model.profile import Medium
from pocketcloud.model.sizes import GIB
from pocketcloud.storage.lvm import Lvm, VolumeGroup, complaint
from pocketcloud.system import CommandFailed, Runner, which

# Where the partition of a kit on a whole disk begins; what is before it is kept for a boot partition.
PARTITION_START = GIB
# And what it is called in the partition table.
PARTITION_NAME = "pocketcloud"
_TOOLS = (("lvm", "lvm2"), ("thin_check", "thin-provisioning-tools"), ("e2fsck", "e2fsprogs"))


@dataclass(frozen=True, slots=True)
class Plugged:
    """A kit on a device that is plugged in: what its volume group's tags say of it."""

    device: Path
    group: VolumeGroup

    @property
    def id(self) -> str:
        """The kit's id."""
        return tag(self.group, KIT) or ""

    @property
    def name(self) -> str:
        """The kit's name."""
        return tag(self.group, KIT_NAME) or ""

    @property
    def unfinished(self) -> str:
        """The id of the kit that it is an unfinished copy of; empty for one that is whole, as far as its tags say."""
        return tag(self.group, UNFINISHED) or ""

    @property
    def medium(self) -> Medium:
        """What it lies on."""
        return host.medium(host.kernel_name(self.device))


def check_tools(tools: Iterable[tuple[str, str]] = _TOOLS) -> None:
    """Raise HostLacks, naming them all, if tools are missing that kits on LVM need: (program, package)."""
    missing = [f"{tool} (of {package})" for tool, package in tools if which(tool) is None]
    if missing:
        raise HostLacks(
            f"kits on disks need programs that are not installed: {', '.join(missing)}",
            hint="pocketcloud check names the packages for this distribution",
        )


def plugged_kits(run: Runner, devices: Iterable[Path] | None = None) -> tuple[Plugged, ...]:
    """The kits on `devices` (left out: on all that are plugged in). LVM is asked about one device at a time: byte copies of
    one kit would hide each other."""
    found = []
    for device in host.physical_volumes() if devices is None else devices:
        try:
            groups = Lvm([device], run).groups()
        except CommandFailed:
            continue  # a device that vanished or cannot be read is none of ours
        found += [Plugged(device, group) for group in groups if tag(group, KIT) is not None]
    return tuple(found)


def kit_on(device: Path, run: Runner) -> Plugged:
    """The kit on a disk, a partition or a loop device. Raises NotFound or NotOurs with what is there instead, Refused where it
    cannot be used as it is plugged in."""
    kernel = host.kernel_name(device)
    if not kernel:
        raise NotFound(f"{device} is no disk", hint="lsblk shows what is plugged in")
    parts = [host.node(part) for part in host.partitions(kernel)]
    carrying = [path for path in (host.node(kernel), *parts) if host.has_label(path)]
    if not carrying:
        _explain_sectors(kernel)
        called = host.partition_names()
        if any(called.get(part) == PARTITION_NAME for part in host.partitions(kernel)):
            raise NotFound(
                f"there is no kit on {device} yet: what was begun there is unfinished",
                hint=f"to go on with a copy: pocketcloud kit clone KIT --resume; to begin anew: pocketcloud kit init {device}",
            )
        raise NotFound(f"there is no kit on {device}", hint=f"pocketcloud kit init {device} makes one")
    kits = plugged_kits(run, carrying)
    if len(kits) > 1:
        raise UsageError(f"{device} has several kits: {', '.join(str(kit.device) for kit in kits)}", hint="name one of these")
    if not kits:
        try:
            kit_group(Lvm([carrying[0]], run), carrying[0])
        except CommandFailed as failed:
            raise Refused(f"LVM cannot read {carrying[0]}: {complaint(failed)}", hint="pocketcloud kit repair") from failed
        # It can be read now: that a moment ago it could not was no more than a moment.
        kits = plugged_kits(run, carrying)
    if not kits:
        raise Refused(f"LVM reads {device} now and again only", hint="look at its cable and port, and at dmesg; then run again")
    found = kits[0]
    if found.group.exported:
        raise Refused(
            f"kit {found.name} on {found.device} was exported with vgexport",
            hint=f"vgimport --devices {found.device} {found.group.name}",
        )
    if host.is_read_only(host.kernel_name(found.device)):
        raise Refused(
            f"{found.device}, the disk of kit {found.name}, is read-only here",
            hint="look for a write-protect switch, or another port or adapter",
        )
    return found


def _explain_sectors(kernel: str) -> None:
    """A kit that is not seen because its disk shows other sectors here than where it was made, as some USB adapters do."""
    disk, shown = host.node(host.disk_of(kernel)), host.sector_size(kernel)
    written = host.table_sector_size(disk)
    if written and shown and written != shown and host.has_label(disk, PARTITION_START):
        raise Refused(
            f"the kit on {disk} was made while the disk showed sectors of {written} bytes; here it shows {shown}, so that this"
            " computer cannot read its partition table. Nothing is lost",
            hint="plug the disk in as it was when the kit was made: in the same enclosure or adapter, or directly",
        )


def the_one(kits: Iterable[Plugged], attached: Iterable[Kit], name: str | None) -> Plugged:
    """Of the plugged kits that are not attached, the one of that name, or the only one. Raises NotFound, UsageError."""
    in_use = {device for kit in attached for device in kit.devices}
    free = [kit for kit in kits if kit.device not in in_use and not (kit.unfinished and name is None)]
    found = [kit for kit in free if name in (None, kit.name)]
    if len(found) == 1:
        return found[0]
    seen = ", ".join(f"{kit.name} on {kit.device}" for kit in free)
    if found:
        hint = f"say which by its device: pocketcloud kit attach {found[0].device}"
        raise UsageError(f"several kits are plugged in: {seen}", hint=hint)
    if name is None:
        raise NotFound(
            "no kit is plugged in that is not attached",
            hint="plug one in; a kit in a folder or a file is named by its path: pocketcloud kit attach PATH",
        )
    raise NotFound(
        f"no kit {name} is plugged in" + (f"; there are: {seen}" if seen else ""),
        hint="pocketcloud kit list shows attached and plugged kits; a path has a `/` in it",
    )
