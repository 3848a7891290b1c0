"""The bed of the kill campaign of states: a lab whose disks carry stamps, written and read on the host, and commands on its
states that are ended at a chosen point. Works on a kit of either driver; the points are tests/fault/killed.py's.

Where a case begins and ends the lab is up, its disks carry B, its state `one` carries A, `clean` carries nothing.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pocketcloud.hypervisor import DomainState
from pocketcloud.hypervisor.libvirt import LibvirtHypervisor
from pocketcloud.model.inventory import Domain, Volume
from pocketcloud.model.names import Name
from pocketcloud.model.record import Record
from pocketcloud.records import read_record
from tests.fault.campaign import SEED, drawn
from tests.labkit import GREETING, PATIENCE, TOP, LabKit, Ran

INSTANCE = Name("tiny")
LAB = f"""\
lab: {INSTANCE}
machines:
  a: {{base: tiny, memory: 16MiB, ready: {{console: hello, within: 10m}}, networks: [n]}}
  b: {{base: tiny, memory: 16MiB, ready: {{console: hello, within: 10m}}, disks: [{{name: data, size: 4MiB}}]}}
networks:
  n: {{kind: isolated}}
"""
# User-Mode Linux has no nftables, which libvirt's networks take.
WITHOUT_NETWORK = LAB.replace(", networks: [n]", "").partition("networks:")[0]
VERBS = {
    "snapshot": ("snapshot", f"{INSTANCE}@taken"),
    "snapshot of what is off": ("snapshot", f"{INSTANCE}@taken"),
    "restore": ("restore", f"{INSTANCE}@one", "-y"),
    "reset": ("reset", str(INSTANCE), "-y"),
    "undo": ("undo", str(INSTANCE), "-y"),
    "forget": ("forget", f"{INSTANCE}@taken", "-y"),
}
# Where in a disk its stamp is: nothing of the guest's lies there.
_AT = 512 << 10
_NOTHING = "\0"
_OFF = "snapshot of what is off"
_BROUGHT = {"reset": _NOTHING, "restore": "A", "undo": "B", "snapshot": "B", _OFF: "B", "forget": "B"}


@dataclass
class StatesBed:
    """One lab in a kit; `points` are those of each verb, from a run that was not ended. `patience` in seconds for a command;
    `warm`: its states hold memory; `killed` of the `cases` were ended before they were through."""

    kit: LabKit
    hypervisor: LibvirtHypervisor
    patience: float = PATIENCE
    text: str = LAB
    points: dict[str, list[str]] = field(default_factory=dict)
    cases: int = 0
    killed: int = 0
    warm: bool = False

    # -- what is done

    def lab(self, *arguments: str) -> Ran:
        """Run a lab command to its end."""
        return self.kit.cli("lab", *arguments, timeout=self.patience)

    def up(self) -> None:
        self.lab("up", str(INSTANCE)).expect(0)

    def begin(self) -> None:
        """Raise the lab and bring it to where cases begin."""
        text = f"{self.text}reset: warm\n" if self.warm else self.text
        self.lab("up", str(self.kit.lab(text))).expect(0)
        self._stamp("A")
        self.lab("snapshot", f"{INSTANCE}@one", *(["--ram"] if self.warm else [])).expect(0)
        self._stamp("B")
        assert self.stamp() == "B"

    def _stamp(self, letter: str) -> None:
        self.lab("down", str(INSTANCE), "--within", "0").expect(0)
        for name in self._live():
            path, form = self.kit.storage.place(name)
            self.kit.storage.activate(name)
            subprocess.run(["qemu-io", "-f", form, "-c", f"write -q -P {ord(letter)} {_AT} 512", path], check=True)
        self.up()

    def command(self, verb: str) -> tuple[str, ...]:
        """The arguments of a verb."""
        return (*VERBS[verb], "--ram") if self.warm and verb == "snapshot" else VERBS[verb]

    def ended(self, verb: str, point: int, delay: float) -> Ran:
        """Run the verb and kill it at a point (0: never)."""
        harness = TOP / "tests" / "fault" / "killed.py"
        argv = [sys.executable, "-P", str(harness), str(point), "KILL", str(delay), "--", "lab", *self.command(verb)]
        env = self.kit.env | {"POCKETCLOUD_POINTS": str(self.kit.folder / "points"), "PYTHONPATH": str(TOP)}
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=self.patience, env=env, check=False
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def recorded(self, verb: str) -> list[str]:
        """All points of a verb."""
        if verb not in self.points:
            self._prepare(verb)
            self.ended(verb, 0, 0.0).expect(0)
            self.points[verb] = (self.kit.folder / "points").read_text().splitlines()
            self._back(verb)
        return self.points[verb]

    def _prepare(self, verb: str) -> None:
        if verb == "undo":
            self.lab(*VERBS["reset"]).expect(0)
        elif verb == "forget":
            self.lab(*self.command("snapshot")).expect(0)
        elif verb == _OFF:
            self.lab("down", str(INSTANCE), "--within", "0").expect(0)

    def _back(self, verb: str) -> None:
        """Bring the lab to where the next case begins."""
        if verb in ("reset", "restore", "undo") and self.stamp() != "B":
            self.lab(*VERBS["undo"]).expect(0)
        if verb == _OFF:
            self.up()
        if "taken" in self.record.snapshots:
            self.lab(*VERBS["forget"]).expect(0)

    def case(self, verb: str, point: int, delay: float, *, same: bool) -> None:
        """Kill the verb at a point, then run the same command (`same`) or `up`: the lab is wholly in its old or its new state,
        after the same command in the new one, and what was left can still be brought back."""
        self._prepare(verb)
        first = self.ended(verb, point, delay)
        try:
            assert first.code in (-9, 0), f"exit code {first.code}\n{first.out}{first.err}"
            self._check_record()
            if same and not self._is_over(verb):
                self.lab(*self.command(verb)).expect(0)
                assert self.stamp() == _BROUGHT[verb]
                if verb == _OFF:
                    assert not any(domain.active for domain in self._domains().values())
                    self.up()
            else:
                self.up()
                assert self.stamp() in ("B", _BROUGHT[verb], _NOTHING if verb == "undo" else "B")
            self.check_settled()
            if "taken" in self.record.snapshots:
                assert self._stamps(part.disks for part in self.record.snapshots[Name("taken")].machines.values()) == {"B"}
            self._back(verb)
            assert self.stamp() == "B", "what was left is lost"
            self.check_settled()
            self.cases += 1
            self.killed += first.code == -9
        except AssertionError as error:
            passed = dict(line.split(" ", 1) for line in (self.kit.folder / "points").read_text().splitlines())
            at = f"{point} ({passed.get(str(point), 'not reached')})"
            error.add_note(f"{verb} was killed at {at}, delay {delay}, same {same}, POCKETCLOUD_SEED={SEED}")
            error.add_note(f"it said:\n{first.out}{first.err}")
            raise

    def _is_over(self, verb: str) -> bool:
        """Whether all was done but sweeping: the same command would be another one."""
        record = self.record
        if verb in ("snapshot", _OFF, "forget"):
            return ("taken" in record.snapshots) == (verb != "forget") and record.taking is None
        return self.stamp() == _BROUGHT[verb] and not any(machine.restoring for machine in record.machines.values())

    # -- what is there

    @property
    def record(self) -> Record:
        found = read_record(self.kit.files(INSTANCE))
        assert found is not None
        return found

    def _live(self) -> list[str]:
        return [volume for machine in self.record.machines.values() for volume in machine.disks.values()]

    def _domains(self) -> dict[str, Domain]:
        return {d.mark.part: d for d in self.hypervisor.domains(self.kit.kit.id) if d.mark.instance == INSTANCE}

    def _volumes(self) -> dict[str, Volume]:
        return {volume.name: volume for volume in self.kit.storage.volumes()}

    def stamp(self) -> str:
        """What all live disks carry."""
        found = self._stamps(machine.disks for machine in self.record.machines.values())
        assert len(found) == 1, f"half of the lab is in another state than the other: {found}"
        return found.pop()

    def _stamps(self, disks: Iterable[Mapping[str, str]]) -> set[str]:
        return {self._read(volume) for of_machine in disks for volume in of_machine.values()}

    def _read(self, volume: str) -> str:
        path, form = self.kit.storage.place(volume)
        self.kit.storage.activate(volume)
        told = subprocess.run(
            ["qemu-io", "-r", "-U", "-f", form, "-c", f"read -v {_AT} 512", path], capture_output=True, text=True, check=True
        )
        return chr(int(told.stdout.split()[1], 16))

    # -- what must hold

    def _check_record(self) -> None:
        record, volumes = self.record, self._volumes()
        missing = record.named_volumes() - set(volumes)
        assert not missing, f"the record names volumes that are not there: {missing}"
        for volume in volumes.values():
            assert volume.parent is None or volume.parent in volumes, f"{volume.name} stands on nothing"

    def check_settled(self) -> None:
        self._check_record()
        record, volumes = self.record, self._volumes()
        domains = self._domains()
        for name, machine in record.machines.items():
            assert domains[name].state is DomainState.RUNNING
            assert set(domains[name].disks.values()) == {volumes[v].path for v in machine.disks.values()}
            assert GREETING in self.kit.files(INSTANCE).console(name).read_text(errors="replace")
            assert machine.restoring is None
        needed: set[str] = set()
        for volume in record.named_volumes():
            current: str | None = volume
            while current is not None and current not in needed:
                needed.add(current)
                current = volumes[current].parent
        mine = {n for n, v in volumes.items() if n.startswith(f"lab.{INSTANCE}.") and not v.spare}
        assert mine <= needed, f"volumes that nothing needs: {mine - needed}"
        assert not [str(path) for path in self.kit.path.rglob(".*.aside")]
        kept = {path.name for path in (self.kit.path / "media" / "ram").glob("*")}
        assert kept == record.memories(), "memory that nothing needs, or too little"
        assert bool(kept) == self.warm


def block_of_cases(bed: StatesBed, verb: str, count: int, block: int = 0, blocks: int = 1) -> None:
    """`count` points of a verb, evenly over all it has; every `blocks`th of these, from `block` on. Two of three are
    completed by the same command, the others by `up`."""
    chance = drawn("states", verb, block)
    last = len(bed.recorded(verb))
    chosen = (
        sorted({1 + number * (last - 1) // max(1, count - 1) for number in range(count)})
        if count > 1
        else [1 + chance.randrange(last)]
    )
    for point in chosen[block::blocks]:
        bed.case(verb, point, chance.choice((0.001, 0.01, 0.05, 0.2, 0.5)), same=chance.randrange(3) != 0)
