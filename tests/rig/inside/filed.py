"""Detached kits in files, for the tests that attach them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pocketcloud.kit.aside import aside
from pocketcloud.kit.attach import Attached, attach
from pocketcloud.kit.attached import Places
from pocketcloud.kit.detach import detach, leaving
from pocketcloud.kit.manifest import read_manifest, write_manifest
from pocketcloud.model.kit import Manifest
from pocketcloud.system import Runner, run
from tests.rig.inside.made import NOW, SIZE, Made, loop, make_kit, unloop


@dataclass(frozen=True, slots=True)
class Filed:
    """A detached kit in a file."""

    path: Path
    made: Made

    @contextmanager
    def opened(self) -> Iterator[Made]:
        """The kit on a loop device, for changes behind pocketcloud's back."""
        device = loop(self.path)
        try:
            yield Made(device, self.made.vg, self.made.id)
        finally:
            unloop(device)

    def manifest(self) -> Manifest:
        with self.opened() as kit:
            return kit.manifest()

    def change(self, **changes: object) -> None:
        """Change the manifest behind pocketcloud's back."""
        with self.opened() as kit:
            kit.activate("state")
            with aside(kit.state, run) as folder:
                write_manifest(folder, replace(read_manifest(folder), **changes))  # type: ignore[arg-type] # field names
            kit.deactivate()


def filed(folder: Path, name: str, vg: str) -> Filed:
    path = folder / f"{name}.img"
    device = loop(path, SIZE)
    made = make_kit(device, name, vg)
    unloop(device)
    return Filed(path, made)


def attached(places: Places, what: object, rename: str | None = None, runner: Runner = run) -> Attached:
    return attach(places, None if what is None else str(what), rename=rename, now=NOW, run=runner)


def detached(places: Places, name: str | None = None, runner: Runner = run) -> tuple[str, ...]:
    return detach(places, leaving(places, name, runner), now=NOW, run=runner)


def pull(disk: Path) -> None:
    """Pull a SCSI disk, whatever it is doing."""
    (Path("/sys/block") / disk.name / "device/delete").write_text("1")


def plugged_kit(disk: Path) -> Made:
    """A detached kit on a disk, whatever was there."""
    run(["lvm", "pvcreate", "--devices", disk, "-ff", "-y", disk])
    run(["lvm", "pvremove", "--devices", disk, "-y", disk])
    return make_kit(disk, "usb", "pc_pulled")
