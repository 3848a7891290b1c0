"""Giving free space back: the chain of discards from the guests to the disk, and the link at which it ends.

Each link is told of by itself, because a missing one is silent everywhere: a guest's `fstrim` succeeds also where nothing
reaches the disk. Nothing is switched on that the disk does not announce: a USB bridge that lies about TRIM loses data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.errors import PocketcloudError
from pocketcloud.events import Event, StepProgress
from pocketcloud.host.files import line
from pocketcloud.host.kits import disk_of, kernel_name
from pocketcloud.hypervisor import Domain, DomainState, Hypervisor
from pocketcloud.kit.links import Link, LinkState
from pocketcloud.kit.mounts import mounted_at
from pocketcloud.kit.resting import trim_resting
from pocketcloud.model.kit import Kit
from pocketcloud.model.sizes import size_text
from pocketcloud.storage import Storage
from pocketcloud.storage.ballast import restore_ballast
from pocketcloud.storage.devmapper import node_name, pool_status
from pocketcloud.storage.lvm import Lvm, report_rows
from pocketcloud.storage.thin_volumes import POOL
from pocketcloud.system import CommandFailed, Completed, Runner, run

_TRIMMED = re.compile(r"\(([0-9]+) bytes\)")
_STEP = "trim"
_BLOCK = 512  # of stat(2)'s st_blocks


@dataclass(frozen=True, slots=True)
class Trimmed:
    """The links in their order, and the bytes that came back to the kit's store (at least: guests write meanwhile)."""

    links: tuple[Link, ...]
    freed: int

    @property
    def ends_at(self) -> str:
        """The first link that lets nothing through; empty if the chain reaches its end."""
        return next((link.name for link in self.links if link.state is LinkState.ENDS), "")


Emit = Callable[[Event], None]


def trim_kit(
    kit: Kit,
    storage: Storage,
    hypervisor: Hypervisor | None,
    *,
    emit: Emit,
    locks: Path,
    emulated: bool = False,
    unreachable: str = "",
    run: Runner = run,
    root: Path = Path("/"),
) -> Trimmed:
    """Run the whole chain for a kit. Without a hypervisor, `unreachable` says why the guests are left out; `locks` is where
    commands hold labs, `emulated` says that KVM is of no use here.

    A link that fails is told of and does not keep the others from being tried. Raises only where the store cannot be read.
    """
    before = storage.usage().used
    domains = hypervisor.domains(kit.id) if hypervisor else ()
    links = [_guests(domains, hypervisor, unreachable, emit)]
    if hypervisor:

        def say(part: float, name: str) -> None:
            emit(StepProgress(_STEP, part, f"stopped machine {name}, in a guest of its own"))

        links.append(trim_resting(kit, hypervisor, storage, locks, run, emulated=emulated, progress=say))
    if not kit.vg:
        links.append(Link("files", LinkState.PASSED, "the images' holes are those of the file system they lie on"))
        host = "what the file system itself gives its disk is the host's matter: fstrim.timer"
        return Trimmed((*links, Link("host", LinkState.LEFT_OUT, host)), max(0, before - storage.usage().used))
    emit(StepProgress(_STEP, -1.0, "the kit's own file systems"))
    files = _backing_files(kit, root)
    occupied = {file: _occupied(file) for file in files}
    links += [_file_system(name, path, run) for name, path in (("content", kit.path / "media"), ("state", kit.path))]
    usage = storage.usage()
    freed = max(0, before - usage.used)
    links.append(Link("pool", LinkState.PASSED, f"{size_text(freed)} came back; {size_text(usage.free)} are free now"))
    links += [_passdown(kit, run), *(_device(device, _chunk(kit, usage.size, run), root) for device in kit.devices)]
    links += [_backing_file(file, occupied[file]) for file in files]
    emit(StepProgress(_STEP, -1.0, "the ballast"))
    links += _ballast(kit, run)
    return Trimmed(tuple(links), freed)


def _guests(domains: Sequence[Domain], hypervisor: Hypervisor | None, unreachable: str, emit: Emit) -> Link:
    """Have those that run trim their file systems."""
    if hypervisor is None:
        return Link("guests", LinkState.LEFT_OUT, f"libvirt cannot be asked: {unreachable}")
    asked: list[str] = []
    deaf: list[str] = []
    for number, domain in enumerate(domains):
        name = f"{domain.mark.instance}.{domain.mark.part}"
        emit(StepProgress(_STEP, number / len(domains), f"guest {name}"))
        match domain.state:
            case DomainState.RUNNING:
                try:
                    (asked if hypervisor.trim(domain.name) else deaf).append(name)
                except PocketcloudError as error:
                    deaf.append(f"{name} ({error.message})")
            case DomainState.PAUSED:
                deaf.append(f"{name} (paused)")
            case DomainState.OFF | DomainState.CRASHED:
                pass
    parts = [f"{len(asked)} trimmed"] if asked else []
    parts += [f"without a guest agent: {', '.join(deaf)}"] if deaf else []
    if not parts:
        return Link("guests", LinkState.LEFT_OUT, "none runs")
    state = LinkState.LEFT_OUT if not asked else LinkState.IN_PART if deaf else LinkState.PASSED
    return Link("guests", state, "; ".join(parts))


def _file_system(name: str, path: Path, run: Runner) -> Link:
    if mounted_at(path) is None:
        return Link(name, LinkState.LEFT_OUT, f"nothing is mounted on {path}")
    try:
        done = run(["fstrim", "-v", path], codes=range(256))
    except PocketcloudError as error:
        return Link(name, LinkState.LEFT_OUT, error.message)
    return read_fstrim(name, done)


def read_fstrim(name: str, done: Completed) -> Link:
    """What `fstrim -v` did; where the device below takes no discards, it says so and exits with 1."""
    if done.code == 0:
        found = _TRIMMED.search(done.out)
        return Link(name, LinkState.PASSED, f"{size_text(int(found[1]))} trimmed" if found else "trimmed")
    said = (done.err or done.out).strip().splitlines()
    unsupported = "not supported" in done.err
    text = "its device takes no discards" if unsupported else said[0] if said else f"fstrim ended with {done.code}"
    return Link(name, LinkState.LEFT_OUT, text)


def _passdown(kit: Kit, run: Runner) -> Link:
    """Whether the pool passes on what it frees; the kernel switches it off, with a line in its log only, where the device's
    largest discard is smaller than a chunk (Documentation/admin-guide/device-mapper/thin-provisioning.rst)."""
    status = pool_status(f"{node_name(kit.vg, POOL)}-tpool", run)
    if status is None:
        return Link("passdown", LinkState.ENDS, "the pool is not active", "pocketcloud kit attach")
    if status.passes_discards:
        # dm-thin frees a removed volume's chunks in its metadata and discards nothing.
        text = "the pool passes on what is discarded in it, but not what removed volumes held: that is free in the pool alone"
        return Link("passdown", LinkState.IN_PART, text, f"pocketcloud kit detach --trim {kit.name}")
    setting = _setting(kit, run)
    if setting and setting != "passdown":
        hint = f"lvchange --discards passdown {kit.vg}/{POOL}"
        return Link("passdown", LinkState.ENDS, f"the pool is set to keep what it frees ({setting})", hint)
    return Link("passdown", LinkState.ENDS, "the kernel does not pass discards to this device: it takes none, or too small ones")


def _setting(kit: Kit, run: Runner) -> str:
    """What LVM is told to do with discards: `passdown`, `nopassdown` or `ignore`."""
    with suppress(CommandFailed, StopIteration, ValueError):
        shape = ("--reportformat", "json", "-o", "discards")
        rows = report_rows(Lvm(kit.devices, run).command("lvs", *shape, f"{kit.vg}/{POOL}").out, "lv")
        return str(next(iter(rows))["discards"])
    return ""


def _chunk(kit: Kit, size: int, run: Runner) -> int:
    status = pool_status(f"{node_name(kit.vg, POOL)}-tpool", run)
    return size // status.data_total if status and status.data_total else 0


def _device(device: Path, chunk: int, root: Path) -> Link:
    """Whether the disk takes discards, from its queue in sysfs."""
    kernel = kernel_name(device, root)
    return read_device(device, disk_of(kernel, root) if kernel else "", chunk, root)


def read_device(device: Path, disk: str, chunk: int, root: Path) -> Link:
    """What sysfs says of a disk's discards: `discard_max_bytes` is 0 without, and `provisioning_mode` of a SCSI disk (all USB
    disks are) is what the kernel has made of what the disk announces (Documentation/ABI/testing/sysfs-class-scsi_disk)."""
    name = f"device {device}"
    folder = root / "sys/class/block" / disk
    largest = int(line(folder, "queue/discard_max_bytes") or 0)
    mode = next((line(found, "provisioning_mode") for found in sorted(folder.glob("device/scsi_disk/*"))), "")
    if largest and largest >= chunk:
        kind = f" ({mode})" if mode else ""
        return Link(name, LinkState.PASSED, f"takes discards of up to {size_text(largest)}{kind}")
    if largest:
        return Link(name, LinkState.ENDS, f"takes discards of {size_text(largest)} at most, smaller than the pool's chunks")
    if not mode:
        return Link(name, LinkState.ENDS, "takes no discards")
    return Link(
        name,
        LinkState.ENDS,
        f"announces no TRIM (provisioning_mode {mode})",
        f"if `sg_vpd -p lbpv {device.parent / disk}` says `Unmap command supported (LBPU): 1`, then `unmap` may be written to"
        f" {folder}/device/scsi_disk/*/provisioning_mode; an enclosure that lies loses data then",
    )


def _backing_files(kit: Kit, root: Path) -> tuple[Path, ...]:
    """The files that the kit's loop devices are."""
    found = []
    for device in kit.devices:
        kernel = kernel_name(device, root)
        if kernel and (told := line(root / "sys/class/block" / disk_of(kernel, root), "loop/backing_file")):
            found.append(Path(told))
    return tuple(found)


def _occupied(file: Path) -> int:
    with suppress(OSError):
        return file.stat().st_blocks * _BLOCK
    return 0


def _backing_file(file: Path, before: int) -> Link:
    now = _occupied(file)
    return Link(f"file {file}", LinkState.PASSED, f"{size_text(max(0, before - now))} became holes; it occupies {size_text(now)}")


def _ballast(kit: Kit, run: Runner) -> Iterator[Link]:
    try:
        there = restore_ballast(kit.vg, Lvm(kit.devices, run), run, kit.path / "volumes")
    except PocketcloudError as error:
        yield Link("ballast", LinkState.LEFT_OUT, error.message, error.hint)
        return
    if there:
        yield Link("ballast", LinkState.PASSED, "the space that is kept back for a full kit is there")
    else:
        hint = "pocketcloud kit status shows what holds space"
        yield Link("ballast", LinkState.LEFT_OUT, "there is no room yet for the space that is kept back for a full kit", hint)
