"""Guest agents that fail, lie or hang, through the real command line: they hold up no state and no `lab up`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import libvirt
import pytest

from pocketcloud.hypervisor import open_hypervisor
from pocketcloud.hypervisor.handles import look
from pocketcloud.model.names import joined
from tests.agents import Agent
from tests.labkit import GREETING, LabKit, lab_kit, raw_libvirt, until

LAB = f"""\
lab: tiny
machines:
  web: {{base: tiny, memory: 16MiB, networks: [], ready: {{console: {GREETING}, within: 60s}}}}
"""


@dataclass
class Bed:
    """A lab that is up, and the agent in its machine."""

    kit: LabKit
    agent: Agent

    @property
    def domain(self) -> str:
        return joined(self.kit.kit.name, "tiny", "web")

    def known_as_frozen(self) -> bool:
        """What the next command would go by; the agent is not asked."""
        with contextlib.closing(raw_libvirt()) as connection:
            return look(connection.lookupByName(self.domain)).frozen


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with lab_kit() as kit, Agent() as agent:
        kit.cli("lab", "up", kit.lab(LAB)).expect(0)
        made = Bed(kit, agent)
        connection = raw_libvirt()
        domain = connection.lookupByName(made.domain)
        domain.destroy()
        connection.defineXML(agent.domain_xml(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)))
        console = kit.files("tiny").console("web")
        console.write_text("")
        domain.create()
        until(lambda: GREETING in console.read_text(errors="replace"), "it runs")
        connection.close()
        yield made


@pytest.fixture(autouse=True)
def _well(bed: Bed) -> None:
    bed.agent.fails.clear()
    bed.agent.heard.clear()
    bed.agent.hangs = False


def test_a_state_is_taken_frozen_and_the_clock_set_afterwards(bed: Bed) -> None:
    said = bed.kit.cli("lab", "snapshot", "tiny@whole").expect(0)
    assert "power cut" not in said.err
    assert bed.agent.commands()[:3] == ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw", "guest-set-time"]
    ((asked, arguments),) = ((asked, arguments) for name, asked, arguments in bed.agent.heard if name == "guest-set-time")
    assert abs(arguments["time"] / 1e9 - asked) < 10, "nanoseconds since 1970"


def test_a_state_of_an_agent_that_cannot_freeze_is_that_of_a_power_cut(bed: Bed) -> None:
    bed.agent.fails["guest-fsfreeze-freeze"] = "the command has been disabled"
    bed.kit.cli("lab", "snapshot", "tiny@cut").expect(0, "the command has been disabled", "as after a power cut")
    assert bed.agent.commands()[:2] == ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]
    bed.kit.cli("lab", "up", "tiny").expect(0)


def test_an_agent_that_hangs_does_not_hold_up_a_machine_that_is_ready(bed: Bed) -> None:
    hypervisor = open_hypervisor()
    assert hypervisor.freeze(bed.domain)
    assert bed.known_as_frozen()
    bed.agent.hangs = True
    bed.kit.cli("lab", "up", "tiny").expect(0, "does not thaw", "taken as thawed")
    assert not bed.known_as_frozen()
