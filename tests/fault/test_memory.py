"""Memory kept with states, through the real command line: machines that count in their memory tell whether they were woken or
started. What cannot be used is said, and the machine starts cold; it is never a reason to fail."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from pocketcloud.kit.manifest import kit_at
from pocketcloud.model.names import Name
from pocketcloud.model.record import Memory, Record
from pocketcloud.records import read_record
from tests.bootsector import counted
from tests.labkit import GREETING, LabKit, Ran, lab_kit, raw_libvirt, until

NAMES = ("a", "b")
# Ready when it has counted to four, so that what is kept is never the memory of a machine that has not begun to count.
_MACHINE = "{base: counter, memory: 16MiB, ready: {console: AAAE, within: 90s}, networks: [n]}"
WARM = "\n".join(
    ["lab: tiny", "reset: warm", "machines:", *(f"  {n}: {_MACHINE}" for n in NAMES), "networks: {n: {kind: isolated}}", ""]
)
ONE = f"lab: one\nmachines:\n  a: {_MACHINE}\nnetworks: {{n: {{kind: isolated}}}}\n"


@dataclass
class Bed:
    """A kit with the lab WARM, which is up."""

    kit: LabKit

    def record(self, instance: str = "tiny") -> Record:
        record = read_record(self.kit.files(instance))
        assert record is not None
        return record

    def memory(self, machine: str, instance: str = "tiny", state: str = "clean") -> Memory | None:
        return self.record(instance).snapshots[Name(state)].machines[Name(machine)].memory

    def file(self, machine: str) -> Path:
        memory = self.memory(machine)
        assert memory is not None
        return self.kit.files("tiny").memory_file(memory.file)

    def console(self, machine: str, instance: str = "tiny") -> str:
        return self.kit.files(instance).console(machine).read_text(errors="replace")

    def moves_on(self, *machines: str, instance: str = "tiny") -> None:
        """Wait until each machine has counted on by some; forget what their consoles said before."""
        for machine in machines:
            seen = len(counted(self.console(machine, instance)))
            until(lambda m=machine, n=seen: len(counted(self.console(m, instance))) >= n + 12, "it counts")  # type: ignore[misc] # bound as they are now
        self.forget(*machines, instance=instance)

    def forget(self, *machines: str, instance: str = "tiny") -> None:
        for machine in machines:
            self.kit.files(instance).console(machine).write_text("")

    def woken(self, machine: str, instance: str = "tiny") -> bool:
        """Whether the machine goes on from its memory; else it has started, and counts from one. What it still said before it was
        stopped is passed over: then its numbers were larger."""

        def came_back() -> bool:
            numbers = counted(self.console(machine, instance))
            return any(later <= earlier for earlier, later in pairwise(numbers)) or numbers[:1] == [1]

        until(came_back, f"{machine} counts again")
        said = self.console(machine, instance)
        numbers = counted(said)
        after = next((later for earlier, later in pairwise(numbers) if later <= earlier), numbers[0])
        assert (after == 1) == (GREETING in said)
        return after != 1

    def reset(self, *arguments: str) -> Ran:
        self.moves_on(*NAMES)
        return self.kit.cli("lab", "reset", "tiny", "-y", *arguments)


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with lab_kit() as kit:
        kit.add_base("counter", counts=True)
        kit.cli("lab", "up", kit.lab(WARM)).expect(0)
        made = Bed(kit)
        assert all(made.memory(name) for name in NAMES)
        yield made


@pytest.fixture
def memories(bed: Bed) -> Iterator[None]:
    """What a test does to the memory and to the record is taken back."""
    record = bed.kit.files("tiny").record
    before = record.read_bytes()
    files = {bed.file(name): bed.file(name).read_bytes() for name in NAMES}
    yield
    machines = json.loads(record.read_text())
    kept = json.loads(before)
    machines["snapshots"] = kept["snapshots"]
    record.write_text(json.dumps(machines))
    for path, content in files.items():
        path.write_bytes(content)


@pytest.mark.usefixtures("memories")
def test_a_warm_reset_is_no_boot_and_a_damaged_memory_no_failure(bed: Bed) -> None:
    path = bed.kit.files("tiny").record
    record = json.loads(path.read_text())
    record["snapshots"]["clean"]["taken"] = "2099-01-01T00:00:00+00:00"  # the clock was wrong then, or is now
    path.write_text(json.dumps(record))
    kept = bed.file("a").read_bytes()
    with bed.file("b").open("r+b") as file:
        file.seek(-4096, 2)
        file.write(b"\xff" * 4096)
    ran = bed.reset().expect(0, "is back to clean")
    assert "b starts cold, its memory is not used: its file is damaged: its content is not what was saved" in ran.err
    assert "a starts cold" not in ran.err
    assert [bed.woken(name) for name in NAMES] == [True, False]
    assert bed.file("a").read_bytes() == kept, "it serves the next reset, too"


def changed(bed: Bed, how: str) -> None:
    """Make the memory of `a` one that cannot be used."""
    file, path = bed.file("a"), bed.kit.files("tiny").record
    match how:
        case "truncated":
            with file.open("r+b") as opened:
                opened.truncate(file.stat().st_size // 2)
        case "gone":
            file.unlink()
        case "none":
            # Whole by its sum and its size, and no memory: libvirt is the last to judge.
            file.write_bytes(b"\0" * file.stat().st_size)
            record = json.loads(path.read_text())
            summed = subprocess.run(["sha256sum", file], capture_output=True, text=True, check=True).stdout.split()[0]
            record["snapshots"]["clean"]["machines"]["a"]["memory"]["sha256"] = summed
            path.write_text(json.dumps(record))
        case _:
            record = json.loads(path.read_text())
            record["snapshots"]["clean"]["machines"]["a"]["memory"]["made_on"][how] = "2.1.0"
            path.write_text(json.dumps(record))


@pytest.mark.slow
@pytest.mark.usefixtures("memories")
@pytest.mark.parametrize(
    ("how", "why", "beforehand"),
    [
        ("truncated", "its file is damaged: it has", True),
        ("gone", "its file is gone", True),
        ("none", "cannot be restored from", False),
        ("computer", "it was taken on another computer", True),
        ("QEMU", "QEMU was 2.1.0, is", True),
    ],
)
def test_memory_that_cannot_be_used_is_named_and_the_machine_starts_cold(
    bed: Bed, how: str, why: str, *, beforehand: bool
) -> None:
    changed(bed, how)
    plan = bed.kit.cli("lab", "reset", "tiny", "--dry-run").expect(0)
    assert (why in plan.out) == beforehand
    assert plan.out.count("virsh restore") == (1 if beforehand else 2)
    ran = bed.reset().expect(0, "is back to clean", "a starts cold, its memory is not used: ", why)
    assert "b starts cold" not in ran.err
    assert [bed.woken(name) for name in NAMES] == [False, True]


@pytest.mark.slow
def test_cold_on_purpose(bed: Bed) -> None:
    ran = bed.reset("--cold").expect(0, "is back to clean")
    assert "cold" not in ran.err, "it was asked for"
    assert [bed.woken(name) for name in NAMES] == [False] * 2
    assert all(bed.file(name).exists() for name in NAMES)


@pytest.mark.slow
def test_a_state_with_memory_a_copy_with_its_own_and_a_detach(bed: Bed) -> None:
    """Last, as it detaches the kit."""
    kit = bed.kit
    kit.cli("lab", "up", kit.lab(ONE, "one.yaml")).expect(0)
    kit.cli("lab", "up", kit.lab(ONE, "one.yaml"), "--as", "two", "--warm").expect(0)
    assert bed.memory("a", "one") is None, "nobody asked for it"
    mine = bed.memory("a", "two")
    assert mine is not None
    assert mine.made_on["machine"] == raw_libvirt().lookupByName(f"{kit.kit.name}.two.a").UUIDString()
    kit.cli("lab", "reset", "two", "-y").expect(0)

    kit.cli("lab", "snapshot", "one@later", "--ram").expect(0)
    tree = kit.cli("lab", "tree", "one", "-o", "json").expect(0).json()
    later = next(node for node in tree["states"] if node["name"] == "later")  # type: ignore[attr-defined] # JSON
    kept = bed.memory("a", "one", "later")
    assert kept is not None
    assert later["exclusive"] >= kit.files("one").memory_file(kept.file).stat().st_blocks * 512 > 0
    bed.moves_on("a", instance="one")
    kit.cli("lab", "restore", "one@later", "-y").expect(0)
    assert bed.woken("a", "one")
    bed.moves_on("a", instance="one")
    kit.cli("lab", "restore", "one@later", "-y", "--cold").expect(0)
    assert not bed.woken("a", "one")
    folder = kit.path / "media" / "ram"
    assert len(list(folder.iterdir())) == len(NAMES) + 2
    kit.cli("lab", "forget", "one@later", "-y").expect(0)
    assert len(list(folder.iterdir())) == len(NAMES) + 1

    kit.cli("kit", "detach", kit.kit.name, "-y").expect(0, "the memory kept with its labs' states is removed")
    assert list(folder.iterdir()) == []
    kit.cli("kit", "attach", kit.path).expect(0)
    assert [bed.memory(name) for name in NAMES] == [None] * 2
    kit.cli("lab", "up", "two").expect(0)
    kit.cli("lab", "reset", "two", "-y").expect(0)


@pytest.mark.slow
def test_no_space_for_memory_is_said_before_anything_stops() -> None:
    with lab_kit() as big:
        place = big.folder / "small"
        place.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=400m,mode=755", "tmpfs", place], check=True
        )  # the context unmounts it
        big.cli("kit", "detach", big.kit.name).expect(0)
        big.cli("kit", "init", "--dir", place / "kit", "--name", f"pct{secrets.token_hex(4)}").expect(0)
        kit = LabKit(big.folder, kit_at(place / "kit"), big.env)
        kit.add_base("counter", counts=True)
        kit.cli("lab", "up", kit.lab(ONE)).expect(0)
        machine = raw_libvirt().lookupByName(f"{kit.kit.name}.one.a")
        run = machine.ID()
        told = os.statvfs(place)
        with (place / "filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, told.f_bavail * told.f_frsize - (100 << 20))
        kit.cli("lab", "snapshot", "one@later", "--ram").expect(6, "saves the memory of a", "16 MiB", "free", "next:")
        kit.cli("lab", "up", "one", "--as", "two", "--warm").expect(6, "space")
        assert machine.ID() == run, "it was never stopped"
        assert not list((kit.path / "media" / "ram").iterdir())
        (place / "filler").unlink()
        kit.cli("lab", "destroy", "one", "-y").expect(0)
