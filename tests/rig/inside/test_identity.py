"""Byte copies of kits become kits of their own, while their originals are in use; a kill at any command is only a delay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pocketcloud.errors import NotFound, NotOurs, Refused, UsageError
from pocketcloud.kit.aside import aside
from pocketcloud.kit.identity import KIT, KIT_NAME, SCHEMA, give_new_identity, tag
from pocketcloud.kit.manifest import read_manifest, write_manifest
from pocketcloud.kit.mounts import mounts
from pocketcloud.model.kit import KIT_SCHEMA
from pocketcloud.model.sizes import MIB
from pocketcloud.storage.devmapper import nodes, nodes_of
from pocketcloud.storage.lvm import Lvm
from pocketcloud.storage.thin_volumes import STATE
from pocketcloud.system import Runner, run
from tests.contract.stores import filled
from tests.rig.inside.made import NOW, SIZE, Kill, Made, backing, copied, digest, killed, loop, make_kit, under_every_kill, unloop

pytestmark = pytest.mark.sampled(6)

LATER = "2026-12-01T00:00:00+00:00"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """A kit with a base and a clone of it, active as an attached one is."""
    folder = tmp_path_factory.mktemp("original")
    kit = make_kit(loop(folder / "kit.img", SIZE), "first", "pc_first1")
    kit.activate(STATE, "pool")
    store = kit.store(folder)
    store.create("base.x", 8 * MIB, filled(7))
    store.clone("base.x", "lab.a.m.root")
    yield kit
    kit.deactivate()
    unloop(kit.device)


@pytest.fixture
def copy(original: Made, tmp_path: Path) -> Iterator[Path]:
    """A byte copy of it; whatever is done to that leaves the original as it is, and no node behind."""
    before, names = identity_of(original), {node.name for node in nodes()}
    device = copied(original.device, tmp_path / "copy.img")
    yield device
    assert {node.name for node in nodes()} == names
    unloop(device)
    assert identity_of(original) == before, "the original was changed"


def identity_of(kit: Made) -> tuple[object, ...]:
    """What must not change of a kit."""
    (group,), (disk,) = kit.lvm.groups(), kit.lvm.physical_volumes()
    return replace(group, seqno=0), disk, kit.manifest()


def is_whole(device: Path, vg: str, name: str, original: str) -> Made:
    """The copy on `device`, of which all places tell the same new identity."""
    (group,) = Lvm([device]).groups()
    manifest = Made(device, vg, "").manifest()
    assert group.name == vg
    assert (manifest.name, manifest.derived_from, manifest.created) == (name, original, LATER)
    assert manifest.id != original
    assert {text for text in group.tags if not text.startswith(SCHEMA)} == {f"{KIT}={manifest.id}", f"{KIT_NAME}={name}"}
    assert not nodes_of(vg)
    return Made(device, vg, manifest.id)


def test_a_copy_gets_an_identity_of_its_own_while_the_original_is_in_use(original: Made, copy: Path, tmp_path: Path) -> None:
    with aside(original.state, run) as folder:
        (folder / "labs" / "in-use").touch()
        made = is_whole(copy, give_new_identity(copy, "second", run, LATER), "second", original.id)
    assert made.vg.startswith("pc_")
    assert (original.manifest().id, original.manifest().created) == (original.id, NOW)
    # Both pools at once: the same volumes, the same content, and room for new clones.
    stores = [kit.store(tmp_path) for kit in (original, made)]
    made.activate("pool")
    assert [volume.name for volume in stores[0].volumes()] == [volume.name for volume in stores[1].volumes()]
    for store in stores:
        store.clone("base.x", "lab.new")
        store.activate("lab.new")
    assert digest(stores[0].place("lab.new")[0]) == digest(stores[1].place("lab.new")[0])
    stores[0].remove("lab.new")
    made.deactivate()


def _becomes_third(device: Path, runner: Runner) -> None:
    give_new_identity(device, "third", runner, LATER)


def check_kill(original: Made, copy: Path, folder: Path, at: int, kill: Kill) -> bool:
    device = copied(copy, folder / f"{at}.img")
    hit = killed(partial(_becomes_third, device), at, kill)
    (group,) = Lvm([device]).groups()
    # Killed after the last commit it is complete: the same again makes a copy of the copy.
    source = tag(group, KIT) if hit else original.id
    vg = give_new_identity(device, "third", run, LATER) if hit else group.name
    is_whole(device, vg, "third", source or "").check_metadata()
    assert not [mount for mount in mounts() if "aside" in str(mount.path)]
    file = backing(device)
    unloop(device)
    file.unlink()
    return hit


@pytest.mark.parametrize(("at", "kill"), [(3, Kill.CHILD), (7, Kill.AFTER)])
def test_a_kill_is_only_a_delay(original: Made, copy: Path, tmp_path: Path, at: int, kill: Kill) -> None:
    assert check_kill(original, copy, tmp_path, at, kill)


@pytest.mark.slow
def test_a_kill_at_any_command_is_only_a_delay(original: Made, copy: Path, tmp_path: Path) -> None:
    assert under_every_kill(partial(check_kill, original, copy, tmp_path)) > 32


def test_a_copy_in_use_is_refused(original: Made) -> None:
    with pytest.raises(Refused, match="is in use here") as refusal:
        give_new_identity(original.device, "second", run, LATER)
    assert "kit detach first" in refusal.value.hint


def test_a_newer_kit_is_left_as_it_is(original: Made, copy: Path) -> None:
    tags = ("--deltag", f"{SCHEMA}={KIT_SCHEMA}", "--addtag", f"{SCHEMA}={KIT_SCHEMA + 1}")
    Lvm([copy]).command("vgchange", *tags, original.vg)
    before = digest(backing(copy))
    with pytest.raises(Refused, match="newer pocketcloud"):
        give_new_identity(copy, "second", run, LATER)
    assert digest(backing(copy)) == before


def test_what_is_no_kit_is_left_as_it_is(original: Made, copy: Path, tmp_path: Path) -> None:
    empty = loop(tmp_path / "empty.img", 64 * MIB)
    with pytest.raises(NotFound):
        give_new_identity(empty, "second", run, LATER)
    Lvm([empty]).command("pvcreate", empty)
    Lvm([empty]).command("vgcreate", "others", empty)
    before = digest(backing(empty))
    with pytest.raises(NotOurs):
        give_new_identity(empty, "second", run, LATER)
    with pytest.raises(NotFound):
        give_new_identity(tmp_path / "nothing", "second", run, LATER)
    with pytest.raises(UsageError):
        give_new_identity(copy, "No Name", run, LATER)
    assert digest(backing(empty)) == before
    unloop(empty)
    assert Lvm([copy]).groups()[0].name == original.vg


def test_two_ids_are_not_guessed_between(copy: Path) -> None:
    vg = give_new_identity(copy, "second", run, LATER)
    made = Made(copy, vg, "")
    made.activate(STATE)
    with aside(made.state, run) as folder:
        write_manifest(folder, replace(read_manifest(folder), id="strange", derived_from="nobody"))
    made.deactivate()
    with pytest.raises(Refused, match="tells two ids") as refusal:
        give_new_identity(copy, "third", run, LATER)
    assert "kit repair" in refusal.value.hint
