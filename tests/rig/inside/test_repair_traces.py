"""Kits that never were whole, or whose disk is gone: found as that, and cleared away after."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from pocketcloud.kit.attached import Places
from pocketcloud.kit.diagnosis import Trouble
from pocketcloud.kit.evidence import Target
from pocketcloud.kit.repair import diagnose, repair
from pocketcloud.kit.target import opened
from pocketcloud.model.sizes import MIB
from pocketcloud.storage.devmapper import nodes, nodes_of
from pocketcloud.storage.thin_volumes import CONTENT, POOL, STATE
from pocketcloud.system import run
from tests.rig.inside.made import NOW, SIZE, loop, make_kit, unloop
from tests.rig.inside.test_repair import cured, target

pytestmark = pytest.mark.sampled(20)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(default=tmp_path / "none", run=tmp_path / "run")


@pytest.mark.parametrize("stop_after", [2, 3, 4, 5, 6])
def test_a_half_made_kit_is_known_as_that(places: Places, tmp_path: Path, stop_after: int) -> None:
    kit = make_kit(loop(tmp_path / "half.img", SIZE), "first", "pc_bbbbbb", stop_after=stop_after)
    if nodes_of(kit.vg):
        kit.deactivate()
    (finding,) = [f for f in diagnose(target(kit), places, run) if f.trouble is Trouble.HALF_MADE]
    assert not finding.curable
    assert "kit init" in finding.cure
    unloop(kit.device)


def test_a_pulled_disk_and_its_traces(places: Places) -> None:
    """Pulled under an attached kit, found without the disk by its name, and once more plugged in."""
    run(["modprobe", "-a", "sd_mod", "dm_thin_pool"])
    run(["modprobe", "scsi_debug", f"dev_size_mb={SIZE // MIB}", "lbpu=1"])
    disk = _appears("sda")
    kit = make_kit(disk, "pulled", "pc_cccccc")
    kit.activate(STATE, POOL, CONTENT)
    (places.mounts / "pulled").mkdir(parents=True)
    run(["mount", kit.state, places.mounts / "pulled"])
    places.entries.mkdir(parents=True)
    (places.entries / "pulled.path").write_text(f"{places.mounts / 'pulled'}\n")
    (uuid,) = (row.uuid.replace("-", "") for row in kit.lvm.physical_volumes())
    notes = [Path("/run/lvm/pvs_online", uuid), Path("/run/lvm/vgs_online", kit.vg), Path("/run/lvm/pvs_online/others")]
    for note in notes:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text("8:0\n")
    run(["sync"])
    Path("/sys/block/sda/device/delete").write_text("1")
    while Path("/sys/block/sda").exists():
        time.sleep(0.05)
    with opened("pulled", places, run) as pulled:
        assert pulled == Target("pulled", kit.vg, pulled.uuid, None)
        assert [f.trouble for f in diagnose(pulled, places, run)] == [Trouble.DEAD_TREE]
        left = repair(pulled, places, run, ask=lambda _: True, say=print, now=NOW)
    assert left == ()
    assert not nodes()
    assert not (places.entries / "pulled.path").exists()
    Path("/sys/class/scsi_host/host0/scan").write_text("- - -")
    again = replace(kit, device=_appears("sda", "sdb"))
    notes[0].write_text("8:250\n")
    assert target(again).uuid.replace("-", "") == pulled.uuid
    found = [f.trouble for f in diagnose(target(again), places, run)]
    assert found == [Trouble.RUN_FILES, Trouble.JOURNAL]
    assert cured(again, places)[0] == []
    assert [note.exists() for note in notes] == [False, False, True]
    assert again.manifest().id == kit.id
    assert not nodes()


def _appears(*names: str) -> Path:
    while True:
        for name in names:
            if Path("/sys/block", name).exists() and Path("/dev", name).exists():
                return Path("/dev", name)
        time.sleep(0.05)
