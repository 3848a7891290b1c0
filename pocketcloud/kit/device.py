"""Makes a kit on LVM: in a sparse file, on a partition, or on a whole disk. First as a plan, which is data; then for real.

Which disks may be chosen is judged in interlocks.py, how the kit lies on one in storage/lvm_layout.py. `kit.json` is
written last: what a kill leaves is no kit, carries our mark, and the same command begins anew on it.
"""

from __future__ import annotations

import os
import re
import shlex
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pocketcloud import __version__
from pocketcloud.errors import HostLacks, NoSpace, PocketcloudError, Refused
from pocketcloud.files import sync_folder
from pocketcloud.host import kits as host
from pocketcloud.kit import loops
from pocketcloud.kit.attached import Places, attached_kits, checked_name, register
from pocketcloud.kit.directory import TREE_MODES, make_tree
from pocketcloud.kit.identity import KIT, KIT_NAME, SCHEMA, UNFINISHED, fresh_group_name
from pocketcloud.kit.manifest import host_mark, write_manifest
from pocketcloud.kit.mounts import OPTIONS, THIN_OPTIONS, mount, mounted_at, number_of, unmount
from pocketcloud.kit.plugged import check_tools
from pocketcloud.kit.remains import put_to_rest, take_down
from pocketcloud.model.kit import KIT_SCHEMA, Kit, Manifest
from pocketcloud.model.names import Name
from pocketcloud.model.profile import Medium
from pocketcloud.model.sizes import MIB, size_text
from pocketcloud.storage.ballast import fill_ballast
from pocketcloud.storage.devmapper import nodes_of
from pocketcloud.storage.lvm import Lvm, complaint
from pocketcloud.storage.lvm_layout import Layout, format_commands, layout_for
from pocketcloud.storage.thin_volumes import CONTENT, STATE
from pocketcloud.system import CommandFailed, Runner, which

CONTENT_FOLDER = "media"
_TOOLS = (
    ("lvm", "lvm2"),
    ("thin_check", "thin-provisioning-tools"),
    ("thin_metadata_size", "thin-provisioning-tools"),
    ("mkfs.ext4", "e2fsprogs"),
)
_MODULE = Path("/sys/module/dm_thin_pool")
_OLDEST_LVM = (2, 3, 12)
# What every ext4 of the last ten years reads; what newer mkfs add by default, older e2fsck refuse to check.
_FEATURES = (
    "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,"
    "metadata_csum"
)
_UNFINISHED = ".unfinished"
# Blocks of 4 KiB, which disks with sectors of either size can read.
_BLOCK = "4096"
# Tables of inodes are written at once: the kernel doing it later would go on after detach was asked for.
_WHOLE = "lazy_itable_init=0,lazy_journal_init=0"
_EXT4 = ("mkfs.ext4", "-q", "-b", _BLOCK, "-O", _FEATURES, "-E", _WHOLE)


@dataclass(frozen=True, slots=True)
class InitPlan:
    """A kit to be made: what it is called, on what it will lie, and the commands, as people type them, that make it.

    `device` is what becomes the physical volume (a placeholder for a file's loop device, which is found when it is made),
    `size` its bytes, `title` what it is for people; `contents` everything now on it, and `verdict` what is known of it. With
    `copy_of`, the id of another kit, it is to be a copy of that, and says so until it is whole.
    """

    name: Name
    id: str
    vg: str
    device: Path
    size: int
    medium: Medium
    layout: Layout
    title: str
    commands: tuple[str, ...]
    contents: tuple[str, ...] = ()
    verdict: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    copy_of: str = ""

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags of its volume group."""
        unfinished = (f"{UNFINISHED}={self.copy_of}",) if self.copy_of else ()
        return (f"{KIT}={self.id}", f"{KIT_NAME}={self.name}", f"{SCHEMA}={KIT_SCHEMA}", *unfinished)


def check_host(run: Runner) -> None:
    """Raise HostLacks, before anything is written, for what making a kit on LVM takes and this host has not."""
    check_tools(_TOOLS)
    run(["modprobe", "dm_thin_pool"], codes=range(256))
    if not _MODULE.exists():
        hint = "install the distribution's full kernel package"
        raise HostLacks("the kernel has no thin provisioning (dm_thin_pool)", hint=hint)
    found = lvm_version(run)
    if found < _OLDEST_LVM:
        text = ".".join(map(str, found))
        raise HostLacks(f"lvm2 {text} is too old: kits need 2.03.12", hint="use a distribution of 2021 or later")


def lvm_version(run: Runner) -> tuple[int, ...]:
    """LVM's version: 2.03.16 is (2, 3, 16)."""
    told = re.search(r"LVM version:\s+(\d+)\.(\d+)\.(\d+)", run(["lvm", "version"]).out)
    return tuple(int(part) for part in told.groups()) if told else (0,)


def new_name(places: Places, wanted: str | None, otherwise: str) -> Name:
    """The name of a kit to be made. Raises UsageError, and Refused if an attached kit has it."""
    name = checked_name(otherwise if wanted is None else wanted)
    if any(kit.name == name for kit in attached_kits(places)):
        raise Refused(f"a kit named {name} is attached already", hint="choose another with --name")
    return name


def draw_up(
    name: Name,
    device: Path,
    size: int,
    medium: Medium,
    chunk: int,
    places: Places,
    run: Runner,
    *,
    title: str,
    before: Sequence[str],
) -> InitPlan:
    """The plan for a kit on `device`; `before` are the commands that lead to it. Raises NoSpace if it is too small."""
    layout = layout_for(size, chunk, run)
    vg, kit_id = fresh_group_name(), str(uuid.uuid4())
    plan = InitPlan(name, kit_id, vg, device, size, medium, layout, title, ())
    lvm = Lvm([device], run)
    mount_point = places.mounts / name
    commands = (
        *before,
        *(lvm.line(verb, *words) for verb, *words in format_commands(device, vg, layout, plan.tags)),
        *(shlex.join(words) for words in _file_systems(vg)),
        shlex.join(["mount", "-o", OPTIONS, f"/dev/{vg}/{STATE}", str(mount_point)]),
        shlex.join(["mount", "-o", THIN_OPTIONS, f"/dev/{vg}/{CONTENT}", str(mount_point / CONTENT_FOLDER)]),
    )
    return replace(plan, commands=commands)


def _file_systems(vg: str) -> tuple[tuple[str, ...], ...]:
    return state_file_system(Path("/dev", vg, STATE)), content_file_system(Path("/dev", vg, CONTENT))


def state_file_system(device: Path, content: Path | None = None) -> tuple[str, ...]:
    """The command that makes the file system of `state` on a device, or in a file, with what lies in the folder `content`."""
    return (*_EXT4, "-L", "pc-state", *(("-d", str(content)) if content else ()), str(device))


def content_file_system(device: Path) -> tuple[str, ...]:
    """The command that makes the file system of `content` on a device."""
    # Few and large files: tables for a file per 16 KiB would take a hundredth of the pool from the start.
    return (*_EXT4, "-m", "0", "-T", "largefile", "-L", "pc-content", str(device))


def shown(plan: InitPlan) -> tuple[str, ...]:
    """The plan for people, before the question."""
    layout = plan.layout
    free = plan.size - layout.state - layout.pool - 2 * layout.metadata
    return (
        f"kit {plan.name} on {plan.title}",
        *(f"  now on it: {line}" for line in plan.contents or ("nothing",)),
        *(f"  {line}" for line in plan.verdict),
        f"  volume group {plan.vg}: state {size_text(layout.state)}, pool {size_text(layout.pool)} in chunks of"
        f" {size_text(layout.chunk)} with {size_text(layout.metadata)} for its metadata and as much in reserve,"
        f" {size_text(free)} kept free",
        f"  of the pool: content {size_text(layout.content)} at most, ballast {size_text(layout.ballast)}",
        *(f"  note: {line}" for line in plan.notes),
    )


def build(plan: InitPlan, device: Path, places: Places, run: Runner, *, now: str) -> Path:
    """Make the kit on a device that nothing is on any more; where it is mounted then. On a failure it is unmounted and
    inactive again; what is there is no kit, and may be begun anew."""
    with laid_out(plan, device, places, run) as mount_point:
        write_manifest(mount_point, replace(manifest_of(plan, device, run, now=now), dirty=True, last_host=host_mark()))
    return mount_point


def manifest_of(plan: InitPlan, device: Path, run: Runner, *, now: str) -> Manifest:
    """The manifest of a kit that is made by the plan on a device."""
    return Manifest(
        KIT_SCHEMA, plan.id, plan.name, now, __version__, "lvm", sector_size=host.sector_size(host.kernel_name(device)),
        derived_from=plan.copy_of, vg=plan.vg, arch=os.uname().machine, made_on=versions(run),
    )  # fmt: skip


@contextmanager
def laid_out(plan: InitPlan, device: Path, places: Places, run: Runner) -> Iterator[Path]:
    """All of a kit but its manifest, on a device that nothing is on any more: where it is mounted. On a failure, also of what is
    done meanwhile, it is unmounted and inactive again."""
    lvm = Lvm([device], run)
    mount_point = places.mounts / plan.name
    with ExitStack() as undo:
        undo.callback(_tried, _take_down_left, plan, mount_point, run)
        undo.callback(_tried, put_down, lvm, plan.vg, mount_point, run)
        try:
            for verb, *rest in format_commands(device, plan.vg, plan.layout, plan.tags):
                lvm.command(verb, *rest)
        except CommandFailed as failed:
            hint = "see what the kernel says: dmesg; then run the command again"
            raise Refused(f"LVM cannot make a kit on {device}: {complaint(failed)}", hint=hint) from failed
        _check_alignment(lvm, device)
        for words in _file_systems(plan.vg):
            run(words)
        mount(Path("/dev", plan.vg, STATE), mount_point, run)
        make_tree(mount_point)
        mount(Path("/dev", plan.vg, CONTENT), mount_point / CONTENT_FOLDER, run, THIN_OPTIONS)
        (mount_point / CONTENT_FOLDER).chmod(TREE_MODES.get(CONTENT_FOLDER, 0o755))
        fill_ballast(plan.vg, lvm, run)
        yield mount_point
        undo.pop_all()


def _check_alignment(lvm: Lvm, device: Path) -> None:
    """LVM before 2.03.31 believes what a USB adapter reports as its best I/O size, and begins at an odd place."""
    for row in lvm.physical_volumes():
        if row.pe_start % MIB:
            raise Refused(
                f"LVM aligned its volumes on {device} to {row.pe_start} bytes, which would make all writes slow",
                hint="please report this, with the disk's or adapter's model",
            )


def put_down(lvm: Lvm, vg: str, mount_point: Path, run: Runner) -> None:
    """Unmount and deactivate a kit that is not whole; not there is success."""
    for path, volume in ((mount_point / CONTENT_FOLDER, CONTENT), (mount_point, STATE)):
        there = mounted_at(path)
        if there is not None and there.number == number_of(Path("/dev", vg, volume)):
            unmount(path, run)
    if any(group.name == vg for group in lvm.groups()):
        put_to_rest(lvm, vg)
    if mount_point.is_dir() and mounted_at(mount_point) is None:
        mount_point.rmdir()


def _take_down_left(plan: InitPlan, mount_point: Path, run: Runner) -> None:
    """Take down what LVM cannot: on a disk that is smaller than it says, its own text is overwritten."""
    if left := nodes_of(plan.vg):
        take_down(left, plan.name, run)
        if mount_point.is_dir() and mounted_at(mount_point) is None:
            mount_point.rmdir()


def versions(run: Runner) -> dict[str, str]:
    """The versions of what a kit is made with, as far as it is there: for those who have to explain a difference later."""
    commands = {
        "lvm2": ("lvm", "version"),
        "thin-provisioning-tools": ("thin_check", "-V"),
        "e2fsprogs": ("mkfs.ext4", "-V"),
        "libvirt": ("virsh", "--version"),
        "qemu": ("qemu-img", "--version"),
    }
    found = {}
    for name, words in commands.items():
        if which(words[0]):
            done = run(words, codes=range(256), timeout=30)
            if told := re.search(r"\d+\.\d+[.\d]*\d", done.out + done.err):
                found[name] = told[0]
    return found | {"linux": os.uname().release}


# -- in a file


def plan_file(places: Places, path: Path, size: int, name: str | None, chunk: int, run: Runner) -> InitPlan:
    """The plan for a kit in a sparse file of `size` bytes. Raises Refused if something is there that is no unfinished kit."""
    path = path.absolute()
    if os.path.lexists(path):
        raise Refused(f"{path} exists already", hint=f"if it is a kit: pocketcloud kit attach {path}; else name another file")
    if not path.parent.is_dir():
        raise Refused(f"{path.parent} is no folder", hint=f"mkdir -p {shlex.quote(str(path.parent))}")
    before = (shlex.join(["truncate", "-s", str(size), str(path)]), shlex.join(loops.command(path)))
    stem = re.sub(r"[^a-z0-9-]+", "-", path.stem.lower()).strip("-")[:31]
    chosen = new_name(places, name, stem if re.match(r"[a-z]", stem) else "file")
    title = f"file {path} ({size_text(size)}, sparse)"
    plan = draw_up(chosen, Path("/dev/loopN"), size, Medium.LOOP, chunk, places, run, title=title, before=before)
    room = os.statvfs(path.parent)
    free = room.f_bavail * room.f_frsize
    if free < plan.layout.ballast + plan.layout.metadata + 64 * MIB:
        raise NoSpace(f"{path.parent} has {size_text(free)} free, too little even for an empty kit", hint="choose another place")
    if free < size:
        note = f"{path.parent} has {size_text(free)} free: machines pause once that is used, although the kit has room"
        return replace(plan, notes=(note,))
    return plan


def init_file(plan: InitPlan, path: Path, places: Places, run: Runner, *, now: str) -> Kit:
    """Make the kit in a file. It gets its name when it is whole, so that an unfinished one is visibly none; what an
    interrupted run left of it goes first."""
    path = path.absolute()
    aside = _unfinished_name(path)
    discard_file(aside, places, plan.name, run)
    with ExitStack() as undo:
        undo.callback(_tried, discard_file, aside, places, plan.name, run)
        handle = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(handle, plan.size)
        except OSError as error:
            raise NoSpace(f"{path} cannot be that large: {error.strerror}", hint="choose another size or place") from error
        finally:
            os.close(handle)
        device, _ = loops.put_before(aside, run)
        mount_point = build(plan, device, places, run, now=now)
        if os.path.lexists(path):
            raise Refused(f"{path} appeared meanwhile", hint="name another file")
        aside.rename(path)
        undo.pop_all()
    sync_folder(path.parent)
    return register(places, mount_point)


def _unfinished_name(path: Path) -> Path:
    return path.with_name(f".{path.name}{_UNFINISHED}")


def finished_name(path: Path) -> Path | None:
    """What a kit in an unfinished file was to be called; None for a file that is no such."""
    name = path.name.removeprefix(".").removesuffix(_UNFINISHED)
    return path.with_name(name) if name and _unfinished_name(path.with_name(name)) == path else None


def discard_file(aside: Path, places: Places, name: str, run: Runner) -> None:
    """Remove an unfinished kit in a file, with its loop device; absent is success."""
    for kernel in host.loops_of(aside):
        device = host.node(kernel)
        lvm = Lvm([device], run)
        for group in lvm.groups():
            tagged = next((tag.partition("=")[2] for tag in group.tags if tag.startswith(f"{KIT_NAME}=")), name)
            put_down(lvm, group.name, places.mounts / tagged, run)
        loops.take_away(device, aside, run)
    aside.unlink(missing_ok=True)


def _tried(undo: Callable[..., None], *words: object) -> None:
    """Undo something on the way out of a failure, whose own error is the one to be told."""
    with suppress(PocketcloudError, OSError):
        undo(*words)
