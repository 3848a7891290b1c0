"""A real guest on a `nat` network tries all ways out of it (tests/lan.py): none is open, and all are with `lan: true`.

Its LAN is a network namespace, and what it meets there answers. The lab's file is changed and changed back while it runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.contract.test_fences import Place, connect, heard, place
from tests.labkit import LabKit
from tests.lan import CARRIER, CLOSED, LAN, LAN6, METADATA, VPN, Attempt, attempts, escaper_argv
from tests.real_kit import real_kit

__all__ = ["place"]

pytestmark = pytest.mark.slow

GUEST = """lab: demo
machines:
  guest: {base: debian-12, memory: 512MiB, networks: [front]}
networks:
  front: {}
"""
OTHER = """lab: other
machines:
  far: {base: tiny, memory: 16MiB, networks: [dmz], ready: {console: hello}}
networks:
  dmz: {kind: routed}
"""


@pytest.fixture
def kit() -> Iterator[LabKit]:
    with real_kit() as made:
        yield made


def test_a_real_guest_does_not_get_out_unless_it_is_meant_to(kit: LabKit, place: Callable[[], Place], tmp_path: Path) -> None:
    there, far = place(), place()
    connect(there)
    kit.cli("lab", "up", kit.lab(OTHER, "other.yaml")).expect(0)
    network = kit.network("other", "dmz")
    machine = str(network.range[77])
    far.plug(network.bridge, machine, str(network.range[1]))
    tried = attempts(machine, str(network.range[1]))
    with ExitStack() as stack:
        outside = (str(LAN[2]), VPN, CARRIER, METADATA, LAN6, str(LAN.broadcast_address))
        log = stack.enter_context(heard(there.name, tmp_path, *outside))
        stack.enter_context(heard(far.name, tmp_path, machine))
        here = stack.enter_context(heard("", tmp_path, str(LAN[1]), str(network.range[1])))

        def passed(round_: str, lan: str, seconds: float) -> set[str]:
            kit.cli("lab", "up", kit.lab(GUEST.replace("front: {}", f"front: {lan}")), timeout=1200).expect(0)
            named = tuple(Attempt(f"{round_}: {a.name}", a.way, a.target, a.source) for a in (*tried, *CLOSED))
            done = kit.cli("lab", "exec", "demo", "guest", "--", *escaper_argv("python3", named, seconds), timeout=300).expect(0)
            answered: list[str] = json.loads(done.out)
            known = {attempt.name for attempt in named}
            return {*answered, *(known & {*log.read_text().splitlines(), *here.read_text().splitlines()})}

        assert passed("closed", "{}", 3) == set()
        assert passed("open", "{lan: true}", 30) == {f"open: {attempt.name}" for attempt in tried}
        assert passed("closed again", "{}", 3) == set()
