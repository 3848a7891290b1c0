"""Bases of Debian 12 and 13 through their lives, by the real command line and in real machines: built, sealed, refreshed with a
proven new one, labs moved onto it on request, rolled back, pruned, removed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from pocketcloud.bases import records
from pocketcloud.lab.proof import instance_name
from pocketcloud.model.base import Arch, Base
from pocketcloud.storage import open_storage
from tests.labkit import LabKit, lab_kit, until

pytestmark = pytest.mark.slow

NATIVE = Arch(os.uname().machine)
LONG = 1800.0
LAB = """
lab: demo
machines:
  web:
    base: {base}
    networks: [net]
    provision: [{{run: touch /root/provisioned}}]
networks:
  net: {{kind: isolated}}
"""


@pytest.fixture
def kit() -> Iterator[LabKit]:
    with lab_kit() as made:
        yield made


def base(kit: LabKit, name: str) -> Base:
    found = records.find(kit.kit, name, NATIVE)
    assert found is not None
    return found


def volumes(kit: LabKit) -> set[str]:
    return {volume.name for volume in open_storage(kit.kit).volumes() if not volume.name.startswith("base.tiny.")}


def here(kit: LabKit, command: str) -> str:
    return kit.cli("lab", "exec", "demo", "web", "--", command, timeout=LONG).expect(0).out


@pytest.mark.parametrize("name", ["debian-12", "debian-13"])
def test_a_base_is_refreshed_and_labs_follow_when_they_are_told_to(kit: LabKit, name: str) -> None:
    kit.cli("base", "refresh", name, timeout=LONG).expect(0, "is refreshed", "ssh, guest agent")
    first = base(kit, name)
    assert first.proven
    assert first.sealed
    assert first.sizes.stored <= 1.1 * first.sizes.files
    kit.lab(LAB.format(base=name), "demo.yaml")
    kit.cli("lab", "up", kit.folder / "demo.yaml", timeout=LONG).expect(0)
    here(kit, "touch /root/mine")
    kit.cli("lab", "down", "demo", timeout=LONG).expect(0)

    kit.cli("base", "refresh", name, timeout=LONG).expect(0, "lab reset demo --onto-new-base")
    second = base(kit, name)
    assert second.earlier == (first.alone(),)
    assert kit.cli("lab", "list").expect(0).out.count("proof-") == 0
    kit.cli("lab", "up", "demo", timeout=LONG).expect(0, "newer")
    assert "mine" in here(kit, "ls /root")

    kit.cli("lab", "reset", "demo", "--onto-new-base", timeout=LONG).expect(2, "lost", "-y")
    kit.cli("lab", "reset", "demo", "--onto-new-base", "-y", timeout=LONG).expect(0)
    assert here(kit, "ls /root").split() == ["provisioned"]
    assert here(kit, "systemctl --failed --quiet --no-legend") == ""
    kit.cli("lab", "reset", "demo", "--onto-new-base", "-y", timeout=LONG).expect(0, "no newer")

    kit.cli("base", "rollback", name, "-y").expect(0)
    assert base(kit, name).volume == first.volume
    kit.cli("base", "prune", name, "-y").expect(0)
    assert second.volume in volumes(kit), "a lab stands on it"
    kit.cli("base", "remove", name, "-y").expect(0)
    kit.cli("lab", "destroy", "demo", "-y").expect(0)


# Without packages: those would come from the network, which a guest of the machine that runs this need not have.
LAYER = """
base: debian-12-more
title: Debian 12 with something on top
builder: layer
from: debian-12
post:
  - echo {step} > /etc/layered
"""


def test_a_layer_holds_only_what_it_adds_and_another_step_leaves_its_parent_alone(kit: LabKit) -> None:
    bases = kit.folder / "bases"
    bases.mkdir()
    (bases / "debian-12-more.yaml").write_text(LAYER.format(step="first"))
    build = ("base", "build", "debian-12-more", "--bases", str(bases))
    kit.cli(*build, timeout=LONG).expect(0, "is built")
    parent, layer = base(kit, "debian-12"), base(kit, "debian-12-more")
    assert (layer.parent, layer.firmware) == (parent.volume, parent.firmware)
    assert layer.sealed
    assert layer.sizes.stored < parent.sizes.stored / 2
    kit.cli(*build).expect(0, "up to date")
    kit.cli("base", "remove", "debian-12", "-y").expect(5, "base remove debian-12-more")

    (bases / "debian-12-more.yaml").write_text(LAYER.format(step="second"))
    kit.cli(*build, timeout=LONG).expect(0, "is built")
    assert base(kit, "debian-12") == parent
    kit.lab(LAB.format(base="debian-12-more"), "demo.yaml")
    kit.cli("lab", "up", kit.folder / "demo.yaml", timeout=LONG).expect(0)
    assert here(kit, "cat /etc/layered") == "second\n"

    (bases / "debian-12-more.yaml").write_text(LAYER.format(step="third; false"))
    before = base(kit, "debian-12-more")
    kit.cli(*build, timeout=LONG).expect(8, "was not built")
    assert base(kit, "debian-12-more") == before


def test_a_refresh_that_is_killed_and_two_at_once(kit: LabKit) -> None:
    name = "debian-12"
    kit.cli("base", "build", name, timeout=LONG).expect(0)
    before = base(kit, name)
    proof = instance_name(before)
    process = kit.start("base", "refresh", name)
    until(lambda: (kit.path / "labs" / proof / "lab.json").exists(), "the proof has begun", within=LONG)
    time.sleep(5)  # whatever it is at then
    process.send_signal(signal.SIGKILL)
    kit.finish(process)
    assert base(kit, name) == before
    assert len(volumes(kit)) > 1

    first, second = kit.start("base", "refresh", name), kit.start("base", "refresh", name)
    said = [kit.finish(process, timeout=2 * LONG).expect(0) for process in (first, second)]
    words = sorted("just been refreshed" in ran.out for ran in said)
    assert words == [False, True]
    after = base(kit, name)
    assert after.proven
    assert volumes(kit) == {before.volume, after.volume}
    assert not (kit.path / "labs" / proof).exists()
