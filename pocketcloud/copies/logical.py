"""`kit clone` where the kit or its copy lies in a folder: volume by volume, so that clones stay clones in another kind of store.

The targets are made one after the other. On a disk all of a kit is there but a tag that says that it is unfinished, which goes
last; a folder gets its name last. Before that everything is read again, when nothing of it is in memory any more.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pocketcloud import __version__
from pocketcloud.copies.clone import Copied, Wanted
from pocketcloud.copies.filling import Contents, Progress, check, contents_of, fill
from pocketcloud.copies.folder import WantedFolder, begun, finished
from pocketcloud.copies.planned import Planned
from pocketcloud.copies.reading import reading_of
from pocketcloud.copies.tree import copy_files, digests, forget_cached, size_of
from pocketcloud.disk_space import spare
from pocketcloud.errors import NoSpace, PocketcloudError, Refused
from pocketcloud.events import Event, StepDone, StepFailed, StepProgress, StepStarted
from pocketcloud.host import kits as host
from pocketcloud.kit import interlocks
from pocketcloud.kit.attached import Places
from pocketcloud.kit.device import CONTENT_FOLDER, InitPlan, draw_up, laid_out, manifest_of, put_down
from pocketcloud.kit.disk import cleared
from pocketcloud.kit.identity import UNFINISHED
from pocketcloud.kit.manifest import write_manifest
from pocketcloud.kit.mounts import mount
from pocketcloud.model.kit import KIT_SCHEMA, Kit, Manifest
from pocketcloud.model.profile import Medium
from pocketcloud.model.sizes import progress_text, size_text
from pocketcloud.storage.lvm import Lvm
from pocketcloud.storage.thin_volumes import CONTENT, STATE
from pocketcloud.storage.watermarks import REFUSE_DATA
from pocketcloud.system import Runner

_TOLD_EVERY = 0.5
# Of a file system's size, what files may take: tables and folders need the rest.
_FILLED = 90
_ELSEWHERE = "choose a larger one, or remove what is not needed: pocketcloud kit status shows what takes the space"


def clone_by_volume(
    kit: Kit,
    wanted: Sequence[Wanted | WantedFolder],
    chunks: Callable[[Medium], int],
    places: Places,
    run: Runner,
    *,
    now: str,
    stop: threading.Event,
    tell: Callable[[Event], None],
) -> tuple[Copied, ...]:
    """Make copies of an attached kit whose labs are down, in folders, or on disks whose erasure was confirmed; what became of
    each. `chunks` is the size of a pool's chunks, in bytes, for what a disk is. The caller holds what makes kits, and the kit's
    labs and bases.

    Raises Refused and the like before anything is written where that concerns the kit.
    """
    done = []
    with reading_of(kit, run) as reading:
        contents = contents_of(reading)
        for each in wanted:
            target = _Target(each, contents, places, run, now, tell)
            done.append(target.made(chunks, stop))
    return tuple(done)


def planned_by_volume(
    kit: Kit, wanted: Sequence[Wanted | WantedFolder], chunks: Callable[[Medium], int], places: Places, run: Runner, *, now: str
) -> tuple[Planned, ...]:
    """What `clone_by_volume` would do, in their order; only reads. Raises as that does."""
    with reading_of(kit, run) as reading:
        contents = contents_of(reading)
        return tuple(_Target(each, contents, places, run, now, lambda _: None).planned(chunks) for each in wanted)


class _Target:
    """One copy on its way."""

    def __init__(
        self,
        wanted: Wanted | WantedFolder,
        contents: Contents,
        places: Places,
        run: Runner,
        now: str,
        tell: Callable[[Event], None],
    ) -> None:
        self._wanted = wanted
        self._path = wanted.path if isinstance(wanted, WantedFolder) else wanted.chosen.target.path
        self._contents = contents
        self._kit = contents.reading.kit
        self._places = places
        self._run = run
        self._now = now
        self._tell = tell
        self._told = 0.0
        self._begun = {"written": 0.0, "read again": 0.0}
        self._progress = Progress(threading.Event(), lambda: None)

    def made(self, chunks: Callable[[Medium], int], stop: threading.Event) -> Copied:
        """Make it; what became of it. Raises InterruptedError when `stop` was set."""
        wanted, since = self._wanted, time.monotonic()
        self._progress = Progress(stop, self._show)
        self._begun = {"written": since, "read again": 0.0}
        title = f"copy to {self._path}"
        self._tell(StepStarted(wanted.name, title, ""))
        identity, fault = "", ""
        try:
            identity = self._to_folder(wanted) if isinstance(wanted, WantedFolder) else self._to_disk(wanted, chunks)
        except PocketcloudError as error:
            fault = error.message
        except InterruptedError:
            raise
        except OSError as error:
            fault = error.strerror or str(error)
        seconds = time.monotonic() - since
        self._tell(StepFailed(wanted.name, title, "", seconds, fault) if fault else StepDone(wanted.name, title, "", seconds))
        return self._copied(identity, seconds, fault)

    def planned(self, chunks: Callable[[Medium], int]) -> Planned:
        """What would be done."""
        wanted, layout, fault = self._wanted, None, ""
        lost: tuple[str, ...] = ()
        try:
            if isinstance(wanted, WantedFolder):
                self._check_folder(wanted)
            else:
                lost = interlocks.contents(wanted.chosen.devices, wanted.chosen.target)
                plan = self._drawn(wanted, chunks)
                layout = plan.layout
                self._check_room(plan)
        except NoSpace as error:
            fault = error.message
        disk, serial, port = self._place()
        used = self._contents.bytes + sum(size_of(self._kit, self._run))
        return Planned(wanted.name, self._path, disk, serial, port, lost, resumed=False, bytes=used, layout=layout, fault=fault)

    def _place(self) -> tuple[str, str, str]:
        """What people know it by, the serial of its disk, and the port."""
        if isinstance(self._wanted, WantedFolder):
            return f"folder {self._path}", "", ""
        devices, target = self._wanted.chosen.devices, self._wanted.chosen.target
        disk = devices.disk_of(target)
        return interlocks.described(devices, target), disk.serial, disk.port

    def _copied(self, identity: str, seconds: float, fault: str) -> Copied:
        wanted, progress = self._wanted, self._progress
        disk, serial, port = self._place()
        return Copied(
            wanted.name, self._path, disk, serial, port, identity, "" if fault else progress.digest(),
            progress.written, progress.verified, seconds, fault,
        )  # fmt: skip

    # -- a folder

    def _to_folder(self, wanted: WantedFolder) -> str:
        self._check_folder(wanted)
        manifest = Manifest(
            KIT_SCHEMA, str(uuid.uuid4()), wanted.name, self._now, __version__, "qcow2", derived_from=self._kit.id
        )
        with begun(wanted.path) as aside:
            copy = Kit(manifest, aside, Medium.DIR)
            fill(self._contents, copy, 0, self._progress, self._run)
            copy_files(self._kit, copy, wanted.path, self._run)
            known = digests(copy)
            forget_cached(aside)
            self._check(copy, known)
            finished(aside, wanted.path, manifest)
        return manifest.id

    def _check_folder(self, wanted: WantedFolder) -> None:
        """Raise NoSpace for what does not fit."""
        needed, free = self._contents.bytes + sum(size_of(self._kit, self._run)), max(spare(wanted.path.parent), 0)
        if needed > free:
            raise NoSpace(
                f"the copy takes {size_text(needed)}, {wanted.path.parent} has {size_text(free)} to give", hint=_ELSEWHERE
            )

    def _check(self, copy: Kit, known: dict[str, bytes]) -> None:
        if digests(copy) != known:
            raise Refused("files read again are not what was written: the disk is failing, or smaller than it says")
        check(self._contents, copy, self._progress, self._run)

    # -- a disk

    def _to_disk(self, wanted: Wanted, chunks: Callable[[Medium], int]) -> str:
        chosen, run, places = wanted.chosen, self._run, self._places
        plan = self._drawn(wanted, chunks)
        self._check_room(plan)
        carrier = cleared(chosen, places, run)
        plan = replace(plan, device=carrier, copy_of=self._kit.id)
        lvm = Lvm([carrier], run)
        with laid_out(plan, carrier, places, run) as tree:
            manifest = replace(manifest_of(plan, carrier, run, now=self._now), detached=self._now)
            copy = Kit(manifest, tree, plan.medium, plan.vg, (carrier,))
            fill(self._contents, copy, plan.layout.chunk, self._progress, run)
            copy_files(self._kit, copy, tree, run)
            known = digests(copy)
            # Nothing of it stays in memory when its nodes are gone.
            put_down(lvm, plan.vg, tree, run)
            for volume, folder in ((STATE, tree), (CONTENT, tree / CONTENT_FOLDER)):
                lvm.activate(plan.vg, volume)
                mount(Path("/dev", plan.vg, volume), folder, run)
            self._check(copy, known)
            write_manifest(tree, manifest)
            put_down(lvm, plan.vg, tree, run)
            lvm.command("vgchange", "--deltag", f"{UNFINISHED}={plan.copy_of}", plan.vg)
        return plan.id

    def _drawn(self, wanted: Wanted, chunks: Callable[[Medium], int]) -> InitPlan:
        chosen = wanted.chosen
        medium = host.medium(chosen.target.name)
        title = interlocks.described(chosen.devices, chosen.target)
        chunk, room = chunks(medium), chosen.room
        return draw_up(wanted.name, chosen.carrier, room, medium, chunk, self._places, self._run, title=title, before=())

    def _check_room(self, plan: InitPlan) -> None:
        """Raise NoSpace for what does not fit; a chunk is taken whole."""
        layout, (top, media) = plan.layout, size_of(self._kit, self._run)
        chunk = layout.chunk
        runs = [extent for extents in self._contents.extents.values() for extent in extents if not extent.zero]
        volumes = sum((-(-run.end // chunk) - run.begin // chunk) * chunk for run in runs)
        parts = (
            ("volumes and media", volumes + media + layout.ballast, layout.pool * REFUSE_DATA // 100),
            ("media", media, layout.content * _FILLED // 100),
            ("records", top, layout.state * _FILLED // 100),
        )
        for what, needed, room in parts:
            if needed > room:
                raise NoSpace(
                    f"the {what} of kit {self._kit.name} take {size_text(needed)}; {plan.title} has {size_text(room)} for them",
                    hint=_ELSEWHERE,
                )

    def _show(self) -> None:
        if time.monotonic() - self._told < _TOLD_EVERY:
            return
        self._told = time.monotonic()
        progress, total = self._progress, max(self._contents.bytes, 1)
        what, done = ("read again", progress.verified) if progress.verified else ("written", progress.written)
        # Each goes at a rate of its own.
        self._begun[what] = self._begun[what] or time.monotonic()
        text = progress_text(done, self._contents.bytes, time.monotonic() - self._begun[what])
        self._tell(StepProgress(self._wanted.name, min(done / total, 1.0), f"{what} {text}"))
