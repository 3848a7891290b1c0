"""The bed of the kill campaign: a kit with a lab and things beside it that nobody may touch, commands that are ended at a
chosen point, and what must hold afterwards. The points are tests/fault/killed.py's."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import secrets
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pocketcloud.hypervisor import DomainState
from pocketcloud.hypervisor.firewall import Fences
from pocketcloud.hypervisor.libvirt import LibvirtHypervisor
from pocketcloud.hypervisor.xml import NAMESPACE
from pocketcloud.model.inventory import Volume
from pocketcloud.model.names import bridge_name
from pocketcloud.model.record import Record
from pocketcloud.records import read_record
from tests.labkit import GREETING, PATIENCE, TOP, LabKit, Ran, lab_kit, raw_libvirt

SEED = int(os.environ.get("POCKETCLOUD_SEED") or secrets.randbelow(10**9))
# How long after the begin of a libvirt verb or a command the signal comes when it is to hit its middle; a start takes
# about 0.4 s, a save a second or two.
DELAYS = (0.001, 0.01, 0.05, 0.2, 0.5, 1.0)
NOT_REACHED = 0

INSTANCE = "tiny"
LAB = f"""\
lab: {INSTANCE}
machines:
  a: {{base: tiny, memory: 32MiB, ready: {{console: hello, within: 90s}}, networks: [n]}}
  b: {{base: tiny, memory: 32MiB, ready: {{console: hello, within: 90s}}, disks: [{{name: data, size: 10MiB}}]}}
networks:
  n: {{kind: nat}}
"""
# Another lab of the same kit, whose name begins as ours does; it runs all the time.
NEIGHBOUR = """\
lab: tiny-2
machines:
  a: {base: tiny, memory: 32MiB, ready: {console: hello, within: 90s}}
"""


@dataclass
class Campaign:
    """One kit, in which commands are ended. `code` is the folder that `pocketcloud` is imported from."""

    kit: LabKit
    lab: Path
    hypervisor: LibvirtHypervisor
    foreign: tuple[str, str]
    code: Path = TOP
    base: str = ""
    beside: tuple[str, ...] = ()
    points: dict[str, list[str]] = field(default_factory=dict)

    def arguments(self, verb: str) -> list[str]:
        """The command line of a verb."""
        return ["lab", "up", str(self.lab)] if verb == "up" else ["lab", verb, INSTANCE, "-y"]

    def run(self, verb: str) -> Ran:
        """Run the verb to its end."""
        return self.kit.cli(*self.arguments(verb), env={"PYTHONPATH": str(self.code)}, cwd=self.kit.folder)

    def ended(self, verb: str, point: int | str, name: str = "KILL", delay: float = 0.05) -> Ran:
        """Run the verb and end it at a point (its number or name, 0: never) with a signal."""
        harness = TOP / "tests" / "fault" / "killed.py"
        argv = [sys.executable, "-P", str(harness), str(point), name, str(delay), "--", *self.arguments(verb)]
        env = self.kit.env | {"PYTHONPATH": str(self.code), "POCKETCLOUD_POINTS": str(self._log)}
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, env=env, check=False
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    @property
    def _log(self) -> Path:
        return self.kit.folder / "points"

    def passed(self) -> list[str]:
        """What the points were that the last command passed, in order: number and name."""
        return self._log.read_text().splitlines()

    def recorded(self, verb: str) -> list[str]:
        """All points of a verb, from a run that is not ended. The lab has to be as `prepare` leaves it."""
        if verb not in self.points:
            self.prepare(verb)
            self.ended(verb, NOT_REACHED).expect(0)
            self.points[verb] = self.passed()
            self.check(verb)
        return self.points[verb]

    def prepare(self, verb: str) -> None:
        """Bring the lab to where the verb starts from: not there for `up`, up for the others."""
        if verb == "up":
            if self.remains():
                self.run("destroy").expect(0)
        else:
            self.run("up").expect(0)

    def case(
        self, verb: str, point: int | str, name: str = "KILL", delay: float = 0.05, again: tuple[int, float] | None = None
    ) -> None:
        """End the verb at a point, with `again` its rerun at another; run it again: it converges. Starts where the lab is."""
        first = self.ended(verb, point, name, delay)
        passed = dict(line.split(" ", 1) for line in self.passed())
        try:
            _check_ending(first, name)
            self.check_between(verb)
            if again:
                second = self.ended(verb, again[0], name, again[1])
                if not _was_over(verb, second):
                    _check_ending(second, name)
                self.check_between(verb)
            rerun = self.run(verb)
            if not _was_over(verb, rerun):
                rerun.expect(0)
            self.check(verb)
        except AssertionError as error:
            at = f"{point} ({passed.get(str(point), 'by name, or not reached')})"
            error.add_note(f"{verb} got SIG{name} at point {at}, delay {delay}, again {again}, POCKETCLOUD_SEED={SEED}")
            error.add_note(f"the ended command said:\n{first.out}{first.err}")
            raise

    # -- what must hold

    def check(self, verb: str) -> None:
        """After a verb that was run to its end."""
        if verb == "destroy":
            assert self.remains() == []
        else:
            self._check_up()
        self.check_beside()

    def check_between(self, verb: str) -> None:
        """After a verb was ended: what is recorded can be relied on."""
        self.check_beside()
        if verb == "destroy":
            return
        record, volumes = read_record(self.kit.files(INSTANCE)), self._volumes()
        missing = (record.named_volumes() if record else frozenset()) - set(volumes)
        assert not missing, f"the record names volumes that are not there: {missing}"
        for volume in volumes.values():
            assert volume.parent is None or volume.parent in volumes, f"{volume.name} stands on nothing"

    def check_beside(self) -> None:
        """The base and all that is not the lab's is as it was."""
        assert self._seen_beside() == self.beside

    def remains(self) -> list[str]:
        """All there is of the lab, wherever."""
        kit = self.kit
        found = [f"domain {d.name}" for d in self.hypervisor.domains(kit.kit.id) if d.mark.instance == INSTANCE]
        found += [f"network {n.name}" for n in self.hypervisor.networks(kit.kit.id) if n.mark.instance == INSTANCE]
        found += [f"fence {self._bridge}"] if self._bridge in Fences().bridges() else []
        return sorted(found) + [str(p) for p in sorted(kit.path.rglob("*")) if self._is_labs(p)]

    @property
    def _bridge(self) -> str:
        return bridge_name(self.kit.kit.id, INSTANCE, "n")

    def _is_labs(self, path: Path) -> bool:
        parts = path.relative_to(self.kit.path).parts
        return parts[:2] == ("labs", INSTANCE) or path.name.lstrip(".").removeprefix("lab.").startswith(f"{INSTANCE}.")

    def _volumes(self) -> dict[str, Volume]:
        return {volume.name: volume for volume in self.kit.storage.volumes()}

    def _check_up(self) -> None:
        record, volumes = read_record(self.kit.files(INSTANCE)), self._volumes()
        assert record is not None
        assert record.clean is not None
        assert {"a", "b"} == set(record.machines) == set(record.clean.machines)
        for name, machine in record.machines.items():
            clean = record.clean.machines[name].disks
            assert set(machine.disks) == set(clean) == ({"root", "data"} if name == "b" else {"root"})
            for disk, volume in machine.disks.items():
                assert not volumes[volume].sealed, f"{volume} is live and sealed"
                assert volumes[clean[disk]].sealed, f"{clean[disk]} is clean and not sealed"
                assert volumes[volume].parent == clean[disk], f"{volume} does not stand on clean"
        self._check_machines(record, volumes)
        self._check_no_leftovers(record, volumes)

    def _check_machines(self, record: Record, volumes: dict[str, Volume]) -> None:
        domains = {d.mark.part: d for d in self.hypervisor.domains(self.kit.kit.id) if d.mark.instance == INSTANCE}
        assert set(domains) == {"a", "b"}
        for name, machine in record.machines.items():
            assert domains[name].state is DomainState.RUNNING
            assert set(domains[name].disks.values()) == {volumes[v].path for v in machine.disks.values()}
            assert GREETING in self.kit.files(INSTANCE).console(name).read_text(errors="replace")
        assert self._bridge in Fences().bridges()
        (network,) = (n for n in self.hypervisor.networks(self.kit.kit.id) if n.mark.instance == INSTANCE)
        assert (network.mark.part, network.active, network.subnet) == (
            "n",
            True,
            str(next(iter(record.networks.values())).subnet),
        )

    def _check_no_leftovers(self, record: Record, volumes: dict[str, Volume]) -> None:
        needed: set[str] = set()
        for name in record.named_volumes():
            current: str | None = name
            while current is not None and current not in needed:
                needed.add(current)
                current = volumes[current].parent
        mine = {name for name in volumes if name.startswith(f"lab.{INSTANCE}.")}
        assert mine == {name for name in needed if name.startswith("lab.")}, "volumes that nothing needs"
        folder = self.kit.files(INSTANCE).folder
        files = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
        assert files == {"lab.json", "console/a.log", "console/b.log", "ssh_config", "known_hosts"}, (
            f"files that nothing needs, or too few: {files}"
        )
        hidden = [str(p) for p in self.kit.path.rglob(".*")]
        assert not hidden, f"unfinished files: {hidden}"

    def _seen_beside(self) -> tuple[str, ...]:
        """What is not the lab's: the base's bytes, the neighbour, the foreign domain and network."""
        connection = raw_libvirt()
        try:
            seen = [connection.lookupByName(f"{self.kit.kit.name}.tiny-2.a").ID()]
            seen += [
                connection.lookupByName(self.foreign[0]).XMLDesc(0),
                connection.networkLookupByName(self.foreign[1]).XMLDesc(0),
            ]
        finally:
            connection.close()
        path, _ = self.kit.storage.place(self.base)
        seen += [hashlib.sha256(path.read_bytes()).hexdigest(), str(path.stat().st_mode)]
        seen += [str(sorted(p for p in self.kit.path.rglob("*") if "tiny-2" in str(p)))]
        seen += [self.kit.files("tiny-2").record.read_text()]
        return tuple(map(str, seen))


def _was_over(verb: str, ran: Ran) -> bool:
    """Whether all was gone already: who is ended late in `destroy` has done it."""
    return verb == "destroy" and ran.code == 4 and "no lab" in ran.err


def _check_ending(ran: Ran, name: str) -> None:
    """Killed, or interrupted, or it was done before the signal came."""
    assert ran.code in ((-9, 0) if name == "KILL" else (130, 0)), f"exit code {ran.code}\n{ran.out}{ran.err}"
    assert "Traceback" not in ran.err, ran.err


@contextlib.contextmanager
def campaign(code: Path = TOP) -> Iterator[Campaign]:
    """A bed with the neighbour up and the foreign things in place; all is removed at the end."""
    with lab_kit() as kit, contextlib.ExitStack() as undo:
        kit.cli("lab", "up", kit.lab(NEIGHBOUR, "neighbour.yaml")).expect(0)
        hypervisor = LibvirtHypervisor.connect()
        undo.callback(hypervisor.close)
        bed = Campaign(kit, kit.lab(LAB), hypervisor, (f"{kit.kit.name}.{INSTANCE}.c", f"{kit.kit.name}.{INSTANCE}.m"), code)
        connection = undo.enter_context(contextlib.closing(raw_libvirt()))
        # A machine without our mark, of a name as ours would have; a network with the mark of another kit.
        domain = connection.defineXML(
            f"<domain type='qemu'><name>{bed.foreign[0]}</name><memory>32768</memory><os><type>hvm</type></os></domain>"
        )
        undo.callback(domain.undefine)
        mark = f"kit='other' kit_id='{uuid.uuid4()}' instance='{INSTANCE}' part='n'"
        network = connection.networkDefineXML(
            f"<network><name>{bed.foreign[1]}</name><metadata><p:network xmlns:p='{NAMESPACE}' {mark}/></metadata></network>"
        )
        undo.callback(network.undefine)
        bed.base = next(volume.name for volume in kit.storage.volumes() if volume.name.startswith("base."))
        bed.beside = bed._seen_beside()
        yield bed


def drawn(*words: object) -> random.Random:
    """Chance that is the same for the same seed and words."""
    return random.Random(" ".join(map(str, (SEED, *words))))  # noqa: S311 - it chooses samples, and guards nothing


def delay(chance: random.Random) -> float:
    """Some delay for a signal in the middle of a verb."""
    return chance.choice(DELAYS)


def whole_block(bed: Campaign, verb: str, block: int, blocks: int) -> None:
    """The cases of one block of a verb's points: every `blocks`th, so that each block goes through the whole command."""
    chance = drawn(verb, block)
    count = len(bed.recorded(verb))
    for point in range(1 + block, count + 1, blocks):
        bed.prepare(verb)
        bed.case(verb, point, delay=delay(chance))
