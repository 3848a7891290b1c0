"""One machine of eight fails: the others come up, it is told which one, and the same command completes the lab."""

from __future__ import annotations

import pytest

from pocketcloud.records import read_record
from tests.fault.test_copies import in_the_way, running
from tests.labkit import lab_kit

NAMES = "abcdefgh"
MACHINE = "  {}: {{base: tiny, memory: 32MiB, ready: {{console: hello, within: 5m}}, networks: [{}]}}\n"
LAB = "lab: eight\nmachines:\n" + "".join(MACHINE.format(name, "apart" if name == "h" else "n") for name in NAMES)
LAB += "networks:\n  n: {kind: isolated}\n  apart: {kind: isolated}\n"


@pytest.mark.slow
def test_the_others_are_up_and_the_same_command_completes_it() -> None:
    with lab_kit() as kit:
        file = kit.lab(LAB)
        with in_the_way(kit, "eight", "apart"):
            ran = kit.cli("lab", "up", file)
            # libvirt refuses the one network, which keeps that machine from being started and `clean` from being taken.
            assert ran.code == 5, ran
            ran.expect(5, "start network apart", "failed", "not started", "lab up eight")
            before = running(kit)
            assert set(before) == {f"eight.{name}" for name in NAMES[:-1]}
            status = kit.cli("lab", "status", "eight").expect(0, "partly up (7 of 8 running)")
            assert [line.split()[1] for line in status.out.splitlines() if line.startswith("h ")] == ["off"]
            # A second try fails in the same way and harms nobody.
            kit.cli("lab", "up", file).expect(5, "start network apart")
            assert running(kit) == before
        ran = kit.cli("lab", "up", file, "-v").expect(0, "Lab eight is up", "start h")
        for name in NAMES[:-1]:
            assert f"start {name} " not in ran.err, f"{name}, which was up, was started anew"
        assert set(running(kit)) == {f"eight.{name}" for name in NAMES}
        record = read_record(kit.files("eight"))
        assert record is not None
        assert record.clean is not None
        assert set(record.clean.machines) == set(NAMES)
