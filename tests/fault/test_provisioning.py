"""A command under `provision:` that does not end: an interruption ends the step, and so does the end of its machine.

The machine is a boot sector in libvirt; what it would run runs in an sshd of this computer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pocketcloud import profiles
from pocketcloud.apply.effects import effect_of
from pocketcloud.apply.world import World
from pocketcloud.errors import NotReady
from pocketcloud.guest import Login, WaitInterrupted
from pocketcloud.hypervisor import open_hypervisor
from pocketcloud.keys import new_key
from pocketcloud.model.base import Arch
from pocketcloud.model.lab import ProvisionStep
from pocketcloud.model.names import Name
from pocketcloud.model.record import Stage
from pocketcloud.plan.steps import Provision
from pocketcloud.profiles import Shape
from pocketcloud.records import read_record
from tests.labkit import GREETING, LabKit, lab_kit, until
from tests.sshd import Sshd

LAB = f"""\
lab: tiny
machines:
  web: {{base: tiny, memory: 16MiB, networks: [n], ready: {{console: {GREETING}, within: 60s}}}}
networks: {{n: {{kind: isolated}}}}
"""


@dataclass
class Elsewhere(World):
    """A world whose machines are logged in to by `way`."""

    way: Login | None = None

    def login(self, machine: str) -> Login:
        assert self.way is not None, machine
        return self.way


@pytest.fixture
def kit() -> Iterator[LabKit]:
    with lab_kit() as made:
        yield made


def _world(kit: LabKit, sshd: Sshd, command: str) -> Elsewhere:
    kit.cli("lab", "up", kit.lab(LAB)).expect(0)
    record = read_record(kit.files("tiny"))
    assert record is not None
    web = record.machines[Name("web")]
    definition = replace(web.definition, provision=(ProvisionStep(run=command),))

    def shape(arch: Arch) -> Shape:
        raise AssertionError(f"nothing of {arch} is defined anew")

    return Elsewhere(
        files=kit.files("tiny"),
        storage=kit.storage,
        hypervisor=open_hypervisor(),
        profile=profiles.find("emulated"),
        shape=shape,
        kit_key=lambda: new_key("none"),
        authorized=(),
        now=lambda: "2024-01-01T00:00:00+00:00",
        emit=lambda _: None,
        record=record.with_machine(Name("web"), replace(web, definition=definition)),
        stop=threading.Event(),
        way=sshd.login,
    )


@pytest.mark.parametrize(
    ("end", "error", "words"),
    [
        (lambda world: world.stop.set(), WaitInterrupted, "interrupted"),
        (lambda world: world.hypervisor.kill(world.domain("web")), NotReady, "web is off while it was provisioned"),
    ],
    ids=["interrupted", "its machine is off"],
)
def test_a_command_that_does_not_end_ends_with(
    kit: LabKit, tmp_path: Path, end: Callable[[World], None], error: type[NotReady], words: str
) -> None:
    begun = tmp_path / "begun"
    with Sshd(tmp_path / "sshd") as sshd, ThreadPoolExecutor(1) as pool:
        world = _world(kit, sshd, f"touch {begun}; exec sleep 600")
        step = pool.submit(effect_of(world), Provision(id="provision", reason="", machine="web"))
        until(lambda: begun.exists() or step.done(), "the command runs")
        end(world)
        with pytest.raises(error, match=words):
            step.result(60)
    assert world.machine("web").stage is Stage.PROVISIONING, "the next up makes it anew"
