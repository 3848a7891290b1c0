"""Two commands at once: on one lab they take turns or refuse, different labs of a kit come up side by side."""

from __future__ import annotations

import json
from pathlib import Path

from pocketcloud.locks import held, whole_kit
from pocketcloud.records import read_record
from tests.labkit import LabKit, lab_kit, until


def lab_text(name: str) -> str:
    return f"""\
lab: {name}
machines:
  a: {{base: tiny, memory: 32MiB, ready: {{console: hello, within: 90s}}, networks: [n]}}
networks:
  n: {{kind: nat}}
"""


def holder(kit: LabKit, instance: str) -> str:
    """What the holder of the lab's lock says of itself."""
    lock = kit.run / "locks" / f"{kit.kit.id}.{instance}.lock"
    return lock.read_text() if lock.exists() else ""


def subnet(kit: LabKit, instance: str) -> str:
    record = read_record(kit.files(instance))
    assert record is not None
    (network,) = record.networks.values()
    return str(network.subnet)


def test_the_second_command_on_a_lab_waits_or_refuses() -> None:
    with lab_kit() as kit:
        file = kit.lab(lab_text("turns"))
        first = kit.start("lab", "up", file)
        until(lambda: "lab up" in holder(kit, "turns"), "the first command holds the lab")
        refused = kit.cli("lab", "destroy", "turns", "-y", "--no-wait").expect(5, "busy", "lab up", str(first.pid))
        assert "--no-wait" in refused.err
        second = kit.start("lab", "down", "turns", "--within", "0")
        assert first.poll() is None, "the first command was too quick for this test"
        kit.finish(first).expect(0)
        waited = kit.finish(second).expect(0, "down")
        assert "waiting for" in waited.err
        assert f"lab up {file}" in waited.err, "the message does not name the first command"
        assert str(first.pid) in waited.err


def test_no_lab_or_base_begins_to_change_while_a_whole_kit_is_held() -> None:
    """As while it is copied: what is new would be in the copy in part."""
    with lab_kit() as kit:
        file = kit.lab(lab_text("new"))
        with held(kit.run / "locks", whole_kit(kit.kit.id), "a copy", wait=False):
            kit.cli("lab", "up", file, "--no-wait").expect(5, "busy: `a copy`")
            waiting = kit.start("base", "remove", "tiny", "-y")
            assert waiting.stderr is not None
            assert "waiting for `a copy`" in waiting.stderr.readline()
            assert waiting.poll() is None
        assert waiting.wait(60) == 0


def test_two_copies_of_one_lab_side_by_side() -> None:
    with lab_kit() as kit:
        file = kit.lab(lab_text("twin"))
        started = [kit.start("lab", "up", file), kit.start("lab", "up", file, "--as", "twin-2")]
        for process in started:
            kit.finish(process).expect(0, "is up")
        kit.cli("lab", "up", "twin", "--as", "twin-3").expect(0, "Lab twin-3 is up")
        names = ("twin", "twin-2", "twin-3")
        assert len({subnet(kit, name) for name in names}) == len(names)
        other = kit.lab(lab_text("other"), "other.yaml")
        kit.cli("lab", "up", other, "--as", "twin-2").expect(5, "instance of the lab twin", "another name")
        kit.cli("lab", "up", file, "--as", "Twin 4").expect(2, "not a name")
        kit.cli("lab", "destroy", "twin-2", "-y").expect(0)
        left = json.loads(kit.cli("lab", "list", "-o", "json").out)["labs"]
        assert [(line["instance"], line["lab"], line["running"]) for line in left] == [("twin", "twin", 1), ("twin-3", "twin", 1)]


def test_labs_of_one_kit_come_up_side_by_side() -> None:
    names = ("left", "right", "middle")
    with lab_kit() as kit:
        files: dict[str, Path] = {name: kit.lab(lab_text(name), f"{name}.yaml") for name in names}
        started = [kit.start("lab", "up", file) for file in files.values()]
        for process in started:
            ran = kit.finish(process).expect(0, "is up")
            assert "waiting for" not in ran.err
        assert len({subnet(kit, name) for name in names}) == len(names)
        for name in names:
            kit.cli("lab", "destroy", name, "-y").expect(0)
        assert [volume.name for volume in kit.storage.volumes() if volume.name.startswith("lab.")] == []
