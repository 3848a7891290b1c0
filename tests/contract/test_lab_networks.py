"""The networks of labs by the real command line, on real libvirt: what it says of them, and what it leaves on the host."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.labkit import LabKit, lab_kit

LAB = """lab: demo
machines:
  web:
    base: tiny
    memory: 16MiB
    ready: {console: hello}
    networks: [front]
networks:
  front: {KIND}
"""


@pytest.fixture
def kit() -> Iterator[LabKit]:
    with lab_kit() as made:
        yield made


def status(kit: LabKit) -> dict[str, object]:
    """What `lab status demo` says."""
    found: dict[str, object] = json.loads(kit.cli("lab", "status", "demo", "-o", "json").expect(0).out)
    return found


def test_a_routed_lab_tells_the_route_that_others_need(kit: LabKit) -> None:
    path = kit.lab(LAB.replace("{KIND}", "{kind: routed}"))
    said = kit.cli("lab", "up", path).expect(0).err
    found = status(kit)
    assert str(found["machines"][0]["screen"]).startswith("vnc://127.0.0.1:59")  # type: ignore[index] # JSON
    assert "vnc://127.0.0.1:59" in kit.cli("lab", "status", "demo").expect(0).out
    subnet = found["networks"]["front"]  # type: ignore[index] # JSON
    note = re.compile(rf"network front is routed: .*\(ip route add {re.escape(str(subnet))} via [^ )]+\)")
    assert any(note.fullmatch(text) for text in found["notes"])  # type: ignore[attr-defined] # JSON
    assert note.search(said)
    shown = kit.cli("lab", "plan", path).expect(0).out
    assert "<forward mode='route'/>" in shown
    assert "admin-prohibited" in shown
    kit.cli("lab", "down", "demo").expect(0)
    found = status(kit)
    assert found["notes"] == []
    assert found["machines"][0]["screen"] == ""  # type: ignore[index] # JSON
