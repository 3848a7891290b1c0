"""Takes a disk or a partition for a kit: what is on it now, whether it may be erased, and the partition table.

What may be chosen is judged in interlocks.py, the kit itself is made by device.py. An interrupted run leaves a volume group
with our tags and no kit in it, or a partition of our name with nothing in it: the same command begins anew on that.
"""

from __future__ import annotations

import fcntl
import json
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pocketcloud.errors import NotFound, NotReady, Refused, UsageError
from pocketcloud.host import kits as host
from pocketcloud.host.disks import read_block_devices
from pocketcloud.kit.aside import aside
from pocketcloud.kit.attached import Places, attached_kits, register
from pocketcloud.kit.device import InitPlan, build, draw_up, new_name, put_down
from pocketcloud.kit.interlocks import check_target, claimed, confirmation, contents, described
from pocketcloud.kit.manifest import FILE
from pocketcloud.kit.mounts import mounts, number_of
from pocketcloud.kit.plugged import PARTITION_NAME, PARTITION_START, Plugged, plugged_kits
from pocketcloud.kit.remains import clear
from pocketcloud.model.disk import BlockDevice, BlockDevices
from pocketcloud.model.kit import Kit
from pocketcloud.model.sizes import MIB
from pocketcloud.storage.lvm import Lvm
from pocketcloud.storage.thin_volumes import NAME, STATE
from pocketcloud.system import CommandFailed, Runner, which

# Linux LVM, as the UEFI's registry of partition types has it; older sfdisk know no name for it.
_PARTITION_TYPE = "E6D6D379-F507-44C2-A23C-238F2A3DF928"
# The last MiB holds the copy of the partition table.
_BACK = MIB
_BLKRRPART = 0x125F
_APPEARS_WITHIN = 20.0
_TABLE = ("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", "--wipe", "always", "--wipe-partitions", "always")


@dataclass(frozen=True, slots=True)
class Chosen:
    """A disk or partition that may become a kit. `unfinished` is where an interrupted run began one, None if none did."""

    devices: BlockDevices
    target: BlockDevice
    kit_sources: tuple[str, ...]
    unfinished: Path | None = None

    @property
    def whole(self) -> bool:
        """Whether it is a disk, which gets a partition table."""
        return self.target.kind == "disk"

    @property
    def room(self) -> int:
        """The bytes that the kit will have."""
        if not self.whole:
            return self.target.size
        return (self.target.size - PARTITION_START - _BACK) // MIB * MIB

    @property
    def carrier(self) -> Path:
        """What becomes the physical volume."""
        digit = self.target.name[-1:].isdigit()
        return Path(f"{self.target.path}{'p' if digit else ''}1") if self.whole else self.target.path


def choose(places: Places, path: Path, run: Runner) -> Chosen:
    """Look at the disk or partition that `path` names. Raises NotFound if there is none, Refused where it may not be chosen."""
    devices = read_block_devices(run=run)
    target = devices.get(path) or devices.get(path.resolve())
    if target is None:
        raise NotFound(f"{path} is no disk", hint="lsblk shows what is plugged in; a new file: kit init --file PATH --size SIZE")
    sources = tuple(str(device) for kit in attached_kits(places) for device in kit.devices)
    chosen = Chosen(devices, target, sources)
    if not any(source in sources for source in (str(target.path), str(chosen.carrier))):
        chosen = replace(chosen, unfinished=_unfinished(chosen, run))
    if chosen.unfinished is None:
        # All that speaks against it; what has to be typed is asked for when the plan has been shown.
        _check(chosen, confirmation(devices, target), None)
    return chosen


def confirm(chosen: Chosen, erase_serial: str | None, ask_serial: Callable[[str], str] | None, ask: Callable[[], None]) -> None:
    """Have the erasure confirmed: by the serial if something is on the disk, else by `ask`, which raises on a no. What an
    interrupted run left there asks for no more than that run did."""
    if chosen.unfinished is not None:
        ask()
        return
    _check(chosen, erase_serial, ask_serial)
    if erase_serial is None and not contents(chosen.devices, chosen.target):
        ask()


def confirm_all(
    targets: Sequence[Chosen], given: Sequence[str], ask_serials: Callable[[str], str] | None, ask: Callable[[], None]
) -> None:
    """Have the erasure of many confirmed in one question: by the serials of those that are not empty (`given`, or typed with
    blanks between them), else by `ask`, which raises on a no.

    Raises Refused where something else was typed or a serial is none of theirs, UsageError if nobody can be asked.
    """
    wanted = {confirmation(chosen.devices, chosen.target): chosen for chosen in targets}
    folded = {_folded(text) for text in wanted}
    for text in given:
        if _folded(text) not in folded:
            raise Refused(
                f"--erase-serial {text} is none of the disks: nothing was changed", hint=f"theirs are: {', '.join(wanted)}"
            )
    full = [text for text, chosen in wanted.items() if chosen.unfinished is None and contents(chosen.devices, chosen.target)]
    if not full:
        ask()
        return
    missing = [text for text in full if _folded(text) not in set(map(_folded, given))]
    if not missing:
        return
    if given or ask_serials is None:
        raise UsageError(
            f"{len(missing)} of the disks are not empty: {', '.join(str(wanted[text].target.path) for text in missing)}",
            hint="if all of that may be erased: " + " ".join(f"--erase-serial '{text}'" for text in full),
        )
    number = f"these {len(full)} disks" if len(full) > 1 else str(wanted[full[0]].target.path)
    typed = ask_serials(f"Everything on {number} will be lost. To go on, type what tells them apart: {' '.join(full)}")
    if sorted(_folded(typed).split()) != sorted(" ".join(map(_folded, full)).split()):
        raise Refused("that was not typed: nothing was changed", hint="look at the disks once more: lsblk")


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def _check(chosen: Chosen, erase_serial: str | None, ask_serial: Callable[[str], str] | None) -> None:
    check_target(chosen.devices, chosen.target, erase_serial=erase_serial, ask_serial=ask_serial, kit_sources=chosen.kit_sources)


def plan_disk(chosen: Chosen, name: str | None, chunk: int, places: Places, run: Runner, verdict: Sequence[str]) -> InitPlan:
    """The plan for a kit there; `verdict` is what is known of the disk. Raises NoSpace if it is too small."""
    medium = host.medium(chosen.target.name)
    title = described(chosen.devices, chosen.target)
    if chosen.target.transport:
        title += f", {chosen.target.transport}"
    plan = draw_up(
        new_name(places, name, str(medium)), chosen.carrier, chosen.room, medium, chunk, places, run,
        title=title, before=_shown_before(chosen),
    )  # fmt: skip
    notes = ("a kit that was begun here and not finished is begun anew",) if chosen.unfinished else ()
    return replace(plan, contents=contents(chosen.devices, chosen.target), verdict=tuple(verdict), notes=notes)


def _table(room: int) -> str:
    """The partition table, as sfdisk reads it. The first GiB is left for a boot partition."""
    start, size = PARTITION_START // MIB, room // MIB
    return f'label: gpt\nstart={start}MiB, size={size}MiB, type={_PARTITION_TYPE}, name="{PARTITION_NAME}"\n'


def _wiped(chosen: Chosen) -> list[str]:
    """What has signatures to be wiped by itself: partitions, before their table goes; and a partition that is taken."""
    parts = [device for device in chosen.devices.above(chosen.target) if device.kind == "part"] if chosen.whole else []
    return [str(device.path) for device in (*parts, *([] if chosen.whole else [chosen.target]))]


def _shown_before(chosen: Chosen) -> list[str]:
    lines = [shlex.join(["wipefs", "--all", "--force", path]) for path in _wiped(chosen)]
    if chosen.whole:
        told = shlex.quote(_table(chosen.room))
        lines += [f"printf %s {told} | {shlex.join([*_TABLE, str(chosen.target.path)])}"]
        lines += [shlex.join(["blockdev", "--rereadpt", str(chosen.target.path)])]
    return lines


def init_disk(chosen: Chosen, plan: InitPlan, places: Places, run: Runner, *, now: str) -> Kit:
    """Make the kit, on a disk whose erasure was confirmed. Raises as `cleared` does."""
    carrier = cleared(chosen, places, run)
    return register(places, build(replace(plan, device=carrier), carrier, places, run, now=now))


def cleared(chosen: Chosen, places: Places, run: Runner) -> Path:
    """Take away what is on a disk whose erasure was confirmed, and give it the partition table of a kit; what the kit is to lie
    on. The disk is looked at once more, and held against all others, from just before the first write. Raises Refused if it is
    in use, or not the same any more."""
    if chosen.unfinished is not None:
        # The question may have been open for long: another disk, with a whole kit, may have the name by now.
        _same(chosen, run)
        for kit in plugged_kits(run, [chosen.unfinished]):
            _check_not_whole(kit, chosen, run)
        dismantle(chosen.unfinished, places, run)
        chosen = _again(chosen, run)
    with claimed(chosen.target, lambda: read_block_devices(run=run)) as handle:
        for path in _wiped(chosen):
            run(["wipefs", "--all", "--force", path])
        if chosen.whole:
            run([*_TABLE, chosen.target.path], stdin=_table(chosen.room).encode())
            # Only whoever holds a disk may have its table read anew while it is held.
            with suppress(OSError):
                fcntl.ioctl(handle, _BLKRRPART)
    return _appeared(chosen, run) if chosen.whole else chosen.target.path


def _same(chosen: Chosen, run: Runner) -> Chosen:
    """The disk as it is now. Raises Refused if it is another one."""
    devices = read_block_devices(run=run)
    target = devices.get(chosen.target.name)
    same = ("number", "size", "diskseq", "serial")
    if target is None or any(getattr(target, what) != getattr(chosen.target, what) for what in same):
        raise Refused(f"{chosen.target.path} is not the disk any more that was chosen", hint="run the command again")
    return Chosen(devices, target, chosen.kit_sources)


def _again(chosen: Chosen, run: Runner) -> Chosen:
    """The same disk after it was changed by us."""
    again = _same(chosen, run)
    devices, target = again.devices, again.target
    _check(again, confirmation(devices, target), None)
    return again


def _appeared(chosen: Chosen, run: Runner) -> Path:
    """The new partition's node, once it is there."""
    until = time.monotonic() + _APPEARS_WITHIN
    asked = False
    while time.monotonic() < until:
        if which("udevadm"):
            run(["udevadm", "settle", "--timeout=5"], codes=range(256))
        parts = [host.node(part) for part in host.partitions(chosen.target.name)]
        if len(parts) == 1 and parts[0].is_block_device() and _is_new(parts[0], chosen):
            return parts[0]
        if not asked:
            run(["blockdev", "--rereadpt", chosen.target.path], codes=range(256))
            asked = True
        time.sleep(0.1)
    raise NotReady(
        f"the new partition of {chosen.target.path} did not appear within {_APPEARS_WITHIN:.0f} s",
        hint="plug the disk in again, then run the command again",
    )


def _is_new(part: Path, chosen: Chosen) -> bool:
    """Whether the kernel has the partition as the new table has it: sizes in sysfs are in units of 512 bytes."""
    folder = Path("/sys/class/block", host.kernel_name(part))
    with suppress(OSError, ValueError):
        start, size = int((folder / "start").read_text()), int((folder / "size").read_text())
        return (start * 512, size * 512) == (PARTITION_START, chosen.room)
    return False


# -- what an interrupted run left


def _unfinished(chosen: Chosen, run: Runner) -> Path | None:
    """Where on the disk a kit was begun and not finished; None if none was. Raises Refused if there is a whole one, or one that
    may be whole and is damaged."""
    carrier = _own_partition(chosen, run) if chosen.whole else chosen.target.path
    if carrier is None:
        return None
    if not host.has_label(carrier):
        return carrier if chosen.whole and not _signatures(chosen, carrier) else None
    for kit in plugged_kits(run, [carrier]):
        clear(kit.group.uuid, carrier, kit.name, run)
        _check_not_whole(kit, chosen, run)
        return carrier
    try:
        (volume, *_) = Lvm([carrier], run).physical_volumes()
    except (CommandFailed, ValueError):
        return None
    return carrier if chosen.whole and not volume.vg else None


def _own_partition(chosen: Chosen, run: Runner) -> Path | None:
    """The only partition of a disk, if it is where and what our table puts it."""
    if chosen.target.partition_table != "gpt":
        return None
    told = run(["sfdisk", "--json", chosen.target.path], codes=range(256))
    with suppress(ValueError, KeyError, TypeError):
        table = json.loads(told.out)["partitiontable"]
        (part,) = table["partitions"]
        begins = part["start"] * table.get("sectorsize", chosen.target.logical_sector) == PARTITION_START
        if part.get("name") == PARTITION_NAME and part["type"].upper() == _PARTITION_TYPE and begins:
            return Path(part["node"])
    return None


def _signatures(chosen: Chosen, carrier: Path) -> tuple[str, ...]:
    device = chosen.devices.get(carrier)
    return device.signatures if device is not None else ()


def _check_not_whole(kit: Plugged, chosen: Chosen, run: Runner) -> None:
    where = chosen.target.path
    if kit.unfinished:
        return
    damaged = Refused(
        f"there is a kit named {kit.name} on {where}, and it is damaged",
        hint=f"pocketcloud kit repair {where}; if it is not needed any more: pocketcloud kit erase {where}",
    )
    lvm, vg = Lvm([kit.device], run), kit.group.name
    rows = lvm.volumes(vg)
    if any(row.tagged(NAME) for row in rows):
        raise _whole(kit, where) if _has_manifest(lvm, vg, run) else damaged
    if not any(row.name == STATE for row in rows):
        return
    found = _has_manifest(lvm, vg, run)
    if found:
        raise _whole(kit, where)
    if found is None:
        raise damaged


def _whole(kit: Plugged, where: Path) -> Refused:
    return Refused(
        f"there is a kit named {kit.name} on {where}",
        hint=f"use it: pocketcloud kit attach {where}; if it is not needed any more: pocketcloud kit erase {where}",
    )


def _has_manifest(lvm: Lvm, vg: str, run: Runner) -> bool | None:
    """Whether there is a `kit.json` in the state volume; None if its file system is there and cannot be read."""
    state = Path("/dev", vg, STATE)
    mounted = [there.path for there in mounts() if there.number == number_of(state)]
    if mounted:
        return (mounted[-1] / FILE).exists()
    row = next(row for row in lvm.volumes(vg) if row.name == STATE)
    if not row.active or not state.exists():
        lvm.activate(vg, STATE)
    try:
        if run(["blkid", "--probe", "--output", "value", "--match-tag", "TYPE", state], codes=range(256)).out.strip() != "ext4":
            return False
        with aside(state, run, read_only=True) as folder:
            return (folder / FILE).exists()
    except CommandFailed:
        return None
    finally:
        if not row.active:
            lvm.command("lvchange", "-an", f"{vg}/{STATE}", codes=range(256))


def dismantle(carrier: Path, places: Places, run: Runner) -> None:
    """Take an unfinished kit apart: unmounted, its volume group and label removed. Nothing there is success."""
    lvm = Lvm([carrier], run)
    if not host.has_label(carrier):
        return
    for kit in plugged_kits(run, [carrier]):
        put_down(lvm, kit.group.name, places.mounts / kit.name, run)
        lvm.command("vgremove", "-f", kit.group.name)
    lvm.command("pvremove", carrier)
