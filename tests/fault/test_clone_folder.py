"""A kit in a folder with a real lab is cloned to another folder, and the lab raised there beside the original."""

from __future__ import annotations

from pocketcloud.kit.manifest import kit_at
from pocketcloud.records import InstanceFiles, read_record
from pocketcloud.storage import open_storage
from tests.labkit import GREETING, LabKit, lab_kit, until

LAB = f"""\
lab: tiny
machines:
  a: &machine
    base: tiny
    memory: 64MiB
    ready: {{console: "{GREETING}", within: 60s}}
  b: *machine
"""


def greeted(kit: LabKit, folder: str, machine: str) -> bool:
    log = InstanceFiles(kit_at(kit.folder / folder), "tiny").console(machine)
    return log.exists() and GREETING in log.read_text(errors="replace")


def test_a_lab_goes_over_with_its_states_and_is_raised_there() -> None:
    with lab_kit() as kit:
        name, copy = kit.kit.name, f"{kit.kit.name}-01"
        kit.cli("lab", "up", kit.lab(LAB)).expect(0, "lab tiny is up")
        kit.cli("lab", "snapshot", "tiny@mine").expect(0)
        kit.cli("kit", "clone", name, kit.folder / "two", "-y").expect(5, "in use", "lab down")
        assert not (kit.folder / "two").exists()
        kit.cli("lab", "down", "tiny").expect(0)
        told = kit.cli("kit", "clone", name, kit.folder / "two", "--dry-run", "-o", "json").expect(0).json()["planned"]
        assert isinstance(told, list)
        assert [(each["kit"], each["lost"], each["fault"]) for each in told] == [(copy, [], "")]
        assert not (kit.folder / "two").exists()
        kit.cli("kit", "clone", name, kit.folder / "two").expect(2, "-y")
        kit.cli("kit", "clone", name, kit.folder / "two", "-y").expect(0, copy, "verified")
        made = kit_at(kit.folder / "two")
        volumes = open_storage(made).volumes()
        shape = {(volume.name, volume.parent, volume.sealed, volume.size) for volume in volumes}
        assert shape == {(volume.name, volume.parent, volume.sealed, volume.size) for volume in kit.storage.volumes()}
        kit.cli("kit", "attach", made.path).expect(0, f"Kit {copy} is attached")
        kit.cli("lab", "up", "tiny", "--kit", copy).expect(0, "lab tiny is up")
        until(lambda: greeted(kit, "two", "a") and greeted(kit, "two", "b"), "the machines of the copy say hello")
        # The original comes up beside it.
        kit.cli("lab", "up", "tiny", "--kit", name).expect(0, "lab tiny is up")
        kit.cli("lab", "restore", "tiny@mine", "--kit", copy, "-y").expect(0)
        record = read_record(InstanceFiles(made, "tiny"))
        assert record is not None
        assert record.at == "mine"
        for one in (copy, name):
            kit.cli("kit", "detach", one, "-y", "--force").expect(0, "is detached")
