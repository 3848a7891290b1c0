"""`kit verify` on real dm-thin: a copy proves what it was shipped with, tells what was changed since, and finds every flip."""

from __future__ import annotations

import json
import os
import random
import threading
from pathlib import Path

import pytest

from pocketcloud.copies.pieces import unit_of
from pocketcloud.copies.shipped import read_all, read_sums
from pocketcloud.copies.source import read_map
from pocketcloud.copies.verify import Held, Verified, forget, verify
from pocketcloud.errors import NotFound, Refused
from pocketcloud.kit.attached import Places
from pocketcloud.kit.plugged import plugged_kits
from pocketcloud.model.kit import Kit
from pocketcloud.model.sizes import MIB
from pocketcloud.storage import Clone, open_storage
from pocketcloud.storage.devmapper import node_name
from pocketcloud.storage.lvm import Lvm
from pocketcloud.storage.thin_volumes import POOL
from pocketcloud.system import run
from tests.rig.inside.asked import Asked
from tests.rig.inside.filed import attached, detached
from tests.rig.inside.test_clone import contents, copied, disks, furnish, one_base, targets, write
from tests.rig.inside.test_kit_device import in_file

__all__ = ["disks", "targets"]
FLIPS = 3 if os.environ.get("POCKETCLOUD_SAMPLE") else 64


def verified(kit: Kit) -> Verified:
    return verify(kit, run, stop=threading.Event(), tell=lambda _done, _total: None)


def by_volume(found: Verified) -> dict[str, Held]:
    return {proof.volume: proof.held for proof in found.proofs}


def flip(kit: Kit, unit: int, size: int, chance: random.Random) -> None:
    """Change one bit in a unit of the pool's data, behind the pool's back; the same again changes it back."""
    path = Path("/dev/mapper", node_name(kit.vg, f"{POOL}_tdata"))
    with path.open("r+b", buffering=0) as file:
        at = unit * size + chance.randrange(size)
        (byte,) = os.pread(file.fileno(), 1, at)
        os.pwrite(file.fileno(), bytes([byte ^ 1 << chance.randrange(8)]), at)
        os.fsync(file.fileno())
    run(["blockdev", "--flushbufs", path])


def test_a_copy_proves_what_it_was_shipped_with(places: Places, tmp_path: Path, targets: tuple[Path, ...]) -> None:
    disk, *_ = targets
    kit = in_file(places, tmp_path / "usb.img")
    furnish(kit)
    copied(kit, places, disk)
    copy = attached(places, disk).kit
    for one in (kit, copy):
        found = verified(one)
        assert found.whole
        assert set(by_volume(found).values()) == {Held.INTACT}
        assert not found.added
        assert sum(proof.changed for proof in found.proofs if proof.volume != "content") == 0
    # What its user does is told, and is no fault.
    storage = open_storage(copy)
    write(storage, "lab.1", 3 * MIB, 2 * MIB, 77)
    storage.remove("lab.2")
    storage.clone_all([Clone("layer.2", "lab.own")])
    write(storage, "lab.own", 0, MIB, 78)
    found = verified(copy)
    assert found.whole
    assert set(by_volume(found).values()) == {Held.INTACT}, "what was shipped of a volume that is gone is still there"
    changed = {proof.volume: proof.changed for proof in found.proofs if proof.changed and proof.volume != "content"}
    assert changed == {"lab.1": 2 * MIB}
    assert dict(found.added) == {"lab.own": MIB}
    # Every flip is found, in the volumes that have that chunk and in no other.
    (shipped,) = read_all(copy.path)
    sums, unit = read_sums(copy.path, shipped.generation), unit_of(read_map(copy, run).chunk)
    assert sums is not None
    seed = f"{os.environ.get('POCKETCLOUD_SEED')}"
    chosen = random.Random(seed)  # noqa: S311 - keeps no secret
    everything = [first + step for first, digests in sums.runs for step in range(len(digests) // 16)]
    for number in range(FLIPS):
        where = chosen.choice(everything)
        flip(copy, where, unit, random.Random(f"{seed}.{number}"))  # noqa: S311
        found = verified(copy)
        damaged = [proof for proof in found.proofs if proof.held is Held.DAMAGED]
        assert damaged, f"a flip in chunk {where} was not found"
        assert {proof.damaged for proof in damaged} == {unit}
        assert not found.whole
        flip(copy, where, unit, random.Random(f"{seed}.{number}"))  # noqa: S311
    assert verified(copy).whole
    print(f"{FLIPS} flips found")
    # What is no longer right in the master is not shipped again.
    fault = random.Random(f"{seed}.master")  # noqa: S311 - keeps no secret
    sums = read_sums(kit.path, shipped.generation)
    assert sums is not None
    where = fault.choice([first + step for first, digests in sums.runs for step in range(len(digests) // 16)])
    flip(kit, where, unit, random.Random(f"{seed}.there"))  # noqa: S311 - keeps no secret
    with pytest.raises(Refused, match="kit usb no longer holds what was copied from it before"):
        copied(kit, places, targets[1])
    assert "usb-01" in {each.name for each in plugged_kits(run)}
    assert read_sums(kit.path, shipped.generation) == sums
    flip(kit, where, unit, random.Random(f"{seed}.there"))  # noqa: S311 - keeps no secret
    # What was shipped is given up: what alone needed it comes back, and all that is in use stays.
    before = contents(copy)
    assert forget(copy, run) > 0
    assert contents(copy) == before
    with pytest.raises(NotFound, match="nothing to hold it against"):
        verified(copy)
    for name in ("usb", "usb-01"):
        detached(places, name)


@pytest.mark.sampled(10)
def test_by_hand(places: Places, tmp_path: Path) -> None:
    kit = in_file(places, tmp_path / "usb.img")
    one_base(kit, 8 * MIB)
    Asked(places, "kit", "verify", "usb").ends(4, "there is nothing to hold it against", "--record")
    Asked(places, "kit", "verify", "usb", "--record").ends(0, "kit usb: 2 of 2 volumes are what was shipped")
    open_storage(kit).remove("base.one")
    Asked(places, "kit", "verify", "usb").ends(0, "base.one", "gone")
    asked = Asked(places, "kit", "verify", "usb", "-o", "json")
    text = asked.ends(0, '"whole": true')
    assert json.loads(text[text.index("{") :])["kit"] == "usb"
    Asked(places, "kit", "verify", "usb", "--record", "--forget").ends(2, "say opposite things")
    Asked(places, "kit", "verify", "usb", "--forget").ends(0, "keeps nothing any more of what was shipped", "came back")
    assert not [row.name for row in Lvm(kit.devices).volumes(kit.vg) if row.name.startswith("s.")]
    assert not list((kit.path / "shipped").iterdir())
    Asked(places, "kit", "verify", "usb").ends(4, "there is nothing to hold it against", "--record")
    detached(places)
