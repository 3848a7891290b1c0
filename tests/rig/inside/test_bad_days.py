"""A disk that is pulled in the middle of a command, and a state volume that is full: an error with the next command, and
nothing lost that was there before. (Pulled during `kit init`, which wants a larger disk: tests/rig/laptop.)"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pocketcloud.errors import NoSpace, NotFound, PocketcloudError
from pocketcloud.files import write_whole
from pocketcloud.kit.attached import Places, attached_kits
from pocketcloud.model.kit import Kit
from pocketcloud.model.sizes import MIB
from pocketcloud.storage import Clone, Storage, open_storage
from pocketcloud.storage.devmapper import nodes
from pocketcloud.storage.lvm_thin import ThinPool
from pocketcloud.system import Completed, Runner, run
from tests.contract.stores import filled
from tests.rig.inside.filed import Filed, attached, detached, plugged_kit, pull

pytestmark = pytest.mark.sampled(20)

BASE = "base.x"


def pulled(disk: Path, at: int) -> Runner:
    """A Runner at whose `at`-th command (from 1) the disk is gone."""
    numbers = count(1)

    def runner(argv: Sequence[str | Path], **options: Any) -> Completed:
        if next(numbers) == at:
            pull(disk)
        return run(argv, **options)

    return runner


@contextlib.contextmanager
def told() -> Iterator[None]:
    """What goes wrong is told as an error of ours."""
    with pytest.raises(PocketcloudError) as error:
        yield
    print(f"{error.value.message}\n  next: {error.value.hint}")
    assert error.value.message


@pytest.mark.parametrize("at", [3, 6, 8])
def test_pulled_during_attach(places: Places, scsi_disk: Callable[[], Path], at: int) -> None:
    disk = scsi_disk()
    plugged_kit(disk)
    open_storage(attached(places, None).kit).create(BASE, 8 * MIB, filled(7))
    detached(places)
    with told():
        attached(places, None, None, pulled(disk, at))
    assert attached_kits(places) == ()
    scsi_disk()
    check_base(attached(places, None).kit)
    detached(places)


def clone(store: Storage) -> None:
    store.clone(BASE, "lab.a.m.root.g2")


def reset(store: Storage) -> None:
    store.clone_all([Clone(BASE, "lab.a.m.root.g2")], reserve=True)
    store.activate("lab.a.m.root.g2")
    store.remove("lab.a.m.root.g1")
    store.prepare([Clone(BASE, "lab.a.m.root.g3")])


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("verb", [clone, reset])
def test_pulled_while_disks_are_made(
    places: Places, scsi_disk: Callable[[], Path], verb: Callable[[Storage], None], at: int
) -> None:
    disk = scsi_disk()
    plugged_kit(disk)
    kit = attached(places, None).kit
    store = open_storage(kit)
    store.create(BASE, 8 * MIB, filled(7))
    store.clone(BASE, "lab.a.m.root.g1")
    store.activate("lab.a.m.root.g1")
    with told():
        verb(ThinPool(kit.vg, kit.devices, kit.path / "volumes", pulled(disk, at)))
    scsi_disk()
    again = attached(places, None).kit
    check_base(again)
    store = open_storage(again)
    if "lab.a.m.root.g2" not in [volume.name for volume in store.volumes()]:
        verb(store)
    assert "lab.a.m.root.g2" in [volume.name for volume in store.volumes()]
    detached(places)
    assert not nodes()


def check_base(kit: Kit) -> None:
    store = open_storage(kit)
    store.activate(BASE)
    with store.place(BASE)[0].open("rb") as volume:
        assert volume.read(4096) == b"\7" * 4096


# -- full


def fill(folder: Path) -> None:
    """Until nothing more goes into its file system, not even the name of a file."""
    with contextlib.suppress(OSError), (folder / "filler").open("wb") as file:
        while True:
            file.write(bytes(MIB))
            file.flush()
    for number in range(10_000):
        try:
            (folder / f"filler{number}").write_bytes(b"x" * 4096)
        except OSError:
            return


def test_a_full_state_volume(places: Places, kit: Filed) -> None:
    path = attached(places, kit.path).kit.path
    store = open_storage(attached(places, kit.path).kit)
    store.create(BASE, 8 * MIB, filled(7))
    fill(path)
    with pytest.raises(NoSpace, match="no space"):
        write_whole(path / "labs" / "record", "x" * 100_000)
    # Volumes are no matter of this file system.
    store.clone(BASE, "lab.a.m.root.g1")
    store.remove("lab.a.m.root.g1")
    notes = detached(places)
    assert any("takes no more" in note for note in notes), notes
    again = attached(places, kit.path)
    assert any("not detached the last time" in note for note in again.notes)
    check_base(again.kit)
    for filler in again.kit.path.glob("filler*"):
        filler.unlink()
    assert detached(places) == ()
    assert not kit.manifest().dirty
    with pytest.raises(NotFound):
        detached(places)
