"""Cures a kit on LVM: one finding after the other, each asked for, and after each the kit is looked at anew.

Before the first change to a kit its metadata (that of the volume group, and the pool's as it is, block by block) is saved in
two places: on its state volume and outside of the kit, or in two folders outside where the state volume cannot be written.
Nothing that could be evidence is removed: repaired pool metadata leaves the old as a volume, a changed file system an undo
file, a replaced manifest the damaged one. What is wrong and why that cures it stands in diagnosis.py.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pocketcloud import __version__
from pocketcloud.errors import NoSpace, Refused
from pocketcloud.files import sync_folder, write_whole
from pocketcloud.host import kits as host
from pocketcloud.kit.aside import aside
from pocketcloud.kit.attached import Places, checked_name
from pocketcloud.kit.device import content_file_system
from pocketcloud.kit.diagnosis import Finding, Trouble, findings
from pocketcloud.kit.evidence import META, Target, component, gather, metadata_text
from pocketcloud.kit.identity import KIT, kit_group, tag
from pocketcloud.kit.manifest import FILE, write_manifest
from pocketcloud.kit.mounts import mounts, number_of
from pocketcloud.kit.remains import put_to_rest, take_down, tree
from pocketcloud.model.kit import KIT_SCHEMA, Manifest
from pocketcloud.storage.devmapper import node_name, resume_left_suspended
from pocketcloud.storage.lvm import Lvm, complaint, environment
from pocketcloud.storage.lvm_layout import content_size
from pocketcloud.storage.thin_volumes import CONTENT, POOL, STATE
from pocketcloud.system import CommandFailed, Runner

# Debian's lvm2 leaves that out of its defaults, so that a flag that is set stays for ever.
_CLEARING: Mapping[str, str] = {"global/thin_check_options": '["-q","--clear-needs-check-flag"]'}
_MENDED = (0, 1, 2)
_ANY = range(256)
SAVED = "repair"
_NEW_CONTENT = f"{CONTENT}_new"
# These leave what is on the kit's disk as it is, or only do what mounting it does.
_HARMLESS = {
    Trouble.DEAD_TREE,
    Trouble.SUSPENDED,
    Trouble.ENTRY,
    Trouble.RUN_FILES,
    Trouble.LOOPS,
    Trouble.JOURNAL,
    Trouble.MAKERS,
}


@dataclass(slots=True)
class _Bench:
    """What the cures work with; `saved` are the folders that the metadata lies in, none before it had to be saved."""

    target: Target
    places: Places
    run: Runner
    say: Callable[[str], None]
    save: Path | None
    now: str
    saved: list[Path] = field(default_factory=list)

    @property
    def device(self) -> Path:
        if self.target.device is None:
            raise Refused(f"the disk of kit {self.target.name} is not plugged in", hint="plug it in, then run again")
        return self.target.device

    @property
    def lvm(self) -> Lvm:
        return Lvm([self.device], self.run)

    @property
    def vg(self) -> str:
        return self.target.vg

    @property
    def label(self) -> str:
        """A folder's name for what is saved in this run."""
        return f"{self.target.name}-{re.sub(r'[^0-9T]', '', self.now.partition('+')[0])}"


def diagnose(target: Target, places: Places, run: Runner) -> tuple[Finding, ...]:
    """What is wrong with the kit; nothing is changed."""
    return findings(gather(target, places, run))


def repair(
    target: Target,
    places: Places,
    run: Runner,
    *,
    ask: Callable[[Finding], bool],
    say: Callable[[str], None],
    now: str,
    save: Path | None = None,
) -> tuple[Finding, ...]:
    """Cure what can be cured; what is left. `ask` is asked before each change, `say` told what was done; `save` is a folder
    outside of the kit for copies of its metadata, `now` ISO 8601 in UTC.

    Raises Refused if the metadata cannot be saved in two places, or if a cure fails: what was done before is kept.
    """
    bench = _Bench(target, places, run, say, save, now)
    asked: set[Trouble] = set()
    while True:
        found = diagnose(target, places, run)
        one = next((finding for finding in found if finding.curable and finding.trouble not in asked), None)
        if one is None:
            return found
        asked.add(one.trouble)
        if ask(one):
            _cure(bench, one)


def _cure(bench: _Bench, finding: Finding) -> None:
    if finding.trouble not in _HARMLESS and not bench.saved:
        bench.saved = _save(bench, inside=finding.trouble is not Trouble.STATE)
    try:
        _CURES[finding.trouble](bench)
    except CommandFailed as failed:
        kept = f"; the metadata as it was lies in {', '.join(map(str, bench.saved))}" if bench.saved else ""
        raise Refused(
            f"kit {bench.target.name}, {finding.trouble}: the repair failed: {complaint(failed)}{kept}",
            hint="copy the whole disk before anything else is tried (dd, ddrescue)",
        ) from failed
    bench.say(f"{finding.trouble}: done")


# -- saving


def _save(bench: _Bench, *, inside: bool) -> list[Path]:
    """Save the metadata in two places; where. Raises Refused if there is only one."""
    outside = [bench.save or bench.places.run / SAVED]
    if not (inside and _save_on_state(bench)):
        if bench.save is None:
            raise Refused(
                f"the state volume of kit {bench.target.name} cannot take a copy of the metadata, which is to lie in two"
                " places before anything is changed",
                hint="name a folder with some space for the second: --save DIR",
            )
        outside.append(bench.places.run / SAVED)
    folders = [place / bench.label for place in outside]
    for folder in folders:
        _write_copies(bench, folder)
    told = [*map(str, folders)] + ([f"the state volume ({SAVED}/{bench.label})"] if len(folders) == 1 else [])
    bench.say(f"the metadata as it is was saved in {' and '.join(told)}")
    return folders


def _save_on_state(bench: _Bench) -> bool:
    """Save the metadata on the kit's state volume; whether that can be done."""
    device = Path("/dev", bench.vg, STATE)
    number = number_of(device)
    try:
        if mounted := next((mount.path for mount in mounts() if number and mount.number == number), None):
            _write_copies(bench, mounted / SAVED / bench.label)
            return True
        bench.lvm.activate(bench.vg, STATE)
        with aside(device, bench.run) as folder:
            _write_copies(bench, folder / SAVED / bench.label)
    except (CommandFailed, NoSpace, OSError):
        return False
    finally:
        if not number:
            bench.lvm.command("lvchange", "-an", f"{bench.vg}/{STATE}", codes=_ANY)
    return True


def _write_copies(bench: _Bench, folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(folder / "vg.txt", metadata_text(bench.lvm, bench.vg), mode=0o600)
    rows = {row.name: row for row in bench.lvm.volumes(bench.vg)}
    if META in rows and not rows[META].active:
        with component(bench.lvm, bench.vg) as device, device.open("rb") as read, (folder / f"{META}.gz").open("wb") as file:
            with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1) as write:
                shutil.copyfileobj(read, write, 1 << 20)
            os.fsync(file.fileno())
    sync_folder(folder)


# -- the cures


def _take_down(bench: _Bench) -> None:
    take_down(tree(bench.target.uuid), bench.target.name, bench.run)


def _resume(bench: _Bench) -> None:
    resume_left_suspended(bench.vg, bench.run)


def _remove_notes(bench: _Bench) -> None:
    seen = gather(bench.target, bench.places, bench.run)
    for path in (*seen.entries, *seen.run_files):
        path.unlink(missing_ok=True)


def _detach_loops(bench: _Bench) -> None:
    for loop in gather(bench.target, bench.places, bench.run).loops:
        if not any((Path("/sys/block") / loop.name / "holders").iterdir()):
            bench.run(["losetup", "--detach", loop])


def _replay(bench: _Bench) -> None:
    with _StateVolume(bench) as device:
        bench.run(["e2fsck", "-E", "journal_only", "-y", device], codes=_MENDED)


def _mend_state(bench: _Bench) -> None:
    undo = bench.saved[0] / "state.e2undo"
    with _StateVolume(bench) as device:
        bench.run(["e2fsck", "-f", "-y", "-z", undo, device], codes=_MENDED)
    for other in bench.saved[1:]:
        shutil.copyfile(undo, other / undo.name)
    bench.say(f"what was changed can be undone with e2undo {undo}")


def _write_manifest(bench: _Bench) -> None:
    group = kit_group(bench.lvm, bench.device)
    name = checked_name(bench.target.name)
    sector = host.sector_size(host.kernel_name(bench.device))
    made = Manifest(KIT_SCHEMA, tag(group, KIT) or "", name, bench.now, __version__, "lvm", sector_size=sector, vg=bench.vg)
    with _StateVolume(bench) as device, aside(device, bench.run) as folder:
        if (folder / FILE).exists():
            (folder / FILE).rename(folder / f"{FILE}.{bench.label}")
        write_manifest(folder, made)


def _rebuild_pool(bench: _Bench) -> None:
    bench.lvm.command("lvconvert", "--repair", "--poolmetadataspare", "y", f"{bench.vg}/{POOL}")
    kept = sorted(row.name for row in bench.lvm.volumes(bench.vg) if re.fullmatch(rf"{POOL}_meta\d+", row.name))
    words = " ".join(f"{bench.vg}/{name}" for name in kept)
    bench.say(f"the metadata as it was is kept in the group; when all is well: lvremove --devices {bench.device} {words}")


def _clear_flag(bench: _Bench) -> None:
    lvm = Lvm([bench.device], bench.run, _CLEARING)
    lvm.command("lvchange", "-K", "-ay", f"{bench.vg}/{POOL}")
    put_to_rest(lvm, bench.vg)


def _align_transaction(bench: _Bench) -> None:
    """LVM's number is made the pool's. Only that one line of LVM's metadata is changed, and the pool is not touched."""
    metadata = gather(bench.target, bench.places, bench.run).metadata
    if metadata is None or metadata.transaction is None:
        raise Refused(f"the transaction of the pool of kit {bench.target.name} cannot be read")
    wanted = re.compile(r'(type = "thin-pool".*?transaction_id = )\d+', re.DOTALL)
    text = wanted.sub(rf"\g<1>{metadata.transaction}", metadata_text(bench.lvm, bench.vg), count=1)
    file = bench.saved[0] / "vg-changed.txt"
    write_whole(file, text, mode=0o600)
    put_to_rest(bench.lvm, bench.vg)
    bench.lvm.command("vgcfgrestore", "--force", "-f", file, bench.vg)


def _release_snapshot(bench: _Bench) -> None:
    node = f"{node_name(bench.vg, POOL)}-tpool"
    inactive = not any(row.name == POOL and row.active for row in bench.lvm.volumes(bench.vg))
    if inactive:
        bench.lvm.command("lvchange", "-K", "-ay", f"{bench.vg}/{POOL}")
    try:
        bench.run(["dmsetup", "message", node, "0", "release_metadata_snap"], env=environment())
    finally:
        if inactive:
            put_to_rest(bench.lvm, bench.vg)


def _make_content(bench: _Bench) -> None:
    """It gets its name when there is a file system on it: a run that was interrupted is begun anew."""
    if all(finding.trouble is not Trouble.CONTENT for finding in diagnose(bench.target, bench.places, bench.run)):
        return  # what is removed for good is looked at once more
    rows = {row.name: row for row in bench.lvm.volumes(bench.vg)}
    size = rows[CONTENT].size if CONTENT in rows else content_size(rows[POOL].size)
    for name in (_NEW_CONTENT, CONTENT):
        if name in rows:
            bench.lvm.command("lvremove", f"{bench.vg}/{name}")
    bench.lvm.command("lvcreate", "-V", f"{size}b", "--thinpool", POOL, "-n", _NEW_CONTENT, bench.vg)
    bench.run(content_file_system(Path("/dev", bench.vg, _NEW_CONTENT)))
    bench.lvm.command("lvrename", bench.vg, _NEW_CONTENT, CONTENT)
    put_to_rest(bench.lvm, bench.vg)


def _remove_maker_files(bench: _Bench) -> None:
    state = gather(bench.target, bench.places, bench.run).state
    makers = state.makers if state else ()
    number = number_of(Path("/dev", bench.vg, STATE))
    mounted = next((mount.path for mount in mounts() if number and mount.number == number), None)
    if mounted:
        for name in makers:
            (mounted / "volumes" / name).unlink(missing_ok=True)
        return
    with _StateVolume(bench) as device, aside(device, bench.run) as folder:
        for name in makers:
            (folder / "volumes" / name).unlink(missing_ok=True)


class _StateVolume:
    """The state volume active for a moment."""

    def __init__(self, bench: _Bench) -> None:
        self._bench = bench
        self._name = f"{bench.vg}/{STATE}"

    def __enter__(self) -> Path:
        self._bench.lvm.activate(self._bench.vg, STATE)
        return Path("/dev", self._bench.vg, STATE)

    def __exit__(self, *_: object) -> None:
        number = number_of(Path("/dev", self._bench.vg, STATE))
        if all(mount.number != number for mount in mounts()):
            self._bench.lvm.command("lvchange", "-an", self._name)


_CURES: Mapping[Trouble, Callable[[_Bench], None]] = {
    Trouble.DEAD_TREE: _take_down,
    Trouble.SUSPENDED: _resume,
    Trouble.ENTRY: _remove_notes,
    Trouble.RUN_FILES: _remove_notes,
    Trouble.LOOPS: _detach_loops,
    Trouble.JOURNAL: _replay,
    Trouble.STATE: _mend_state,
    Trouble.MANIFEST: _write_manifest,
    Trouble.METADATA: _rebuild_pool,
    Trouble.NEEDS_CHECK: _clear_flag,
    Trouble.TRANSACTION: _align_transaction,
    Trouble.HELD: _release_snapshot,
    Trouble.CONTENT: _make_content,
    Trouble.MAKERS: _remove_maker_files,
}
