"""States of a lab of two real guests: memory that outlives a warm reset, a tree of states, two copies side by side.

One lab for all, as its boots take most of the time; `make test` runs the tree or the copies. What the guests have on their
disks is read in the guests, over ssh.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.labkit import LabKit, Ran
from tests.real_kit import real_kit

LAB = """\
lab: class
reset: warm
machines:
  web:
    base: debian-12
    memory: 384MiB
    networks: [front]
    disks: [{name: data, size: 64MiB}]
  client: {base: debian-12, memory: 384MiB, networks: [front]}
networks:
  front: {kind: nat}
checks:
- {name: web-answers, machine: client, run: ping -c 1 -W 5 web, points: 2}
- {name: homework, machine: web, run: test -e /root/homework, hint: touch it}
"""
ALONE = """\
lab: alone
reset: warm
machines:
  web: {base: debian-12, memory: 384MiB, networks: [front]}
networks:
  front: {kind: nat}
"""
# A boot in emulation takes a minute and more.
PATIENCE = 1500.0
# Less than a machine stands still for a state under emulation; `date` cuts fractions off, and setting takes a moment.
CLOCK_SECONDS = 2.0
BOOT = "cat /proc/sys/kernel/random/boot_id"
# In memory only, and gone with a boot.
COUNT = "mkdir -p /run/counted; printf %s {0} > /run/counted/{0}; ls /run/counted"
DISK = "dd if=/dev/disk/by-id/virtio-data bs=512 count=1 status=none | tr -d '\\0'"

pytestmark = pytest.mark.timeout(3600)


class Class:
    """The lab, and what is done in it."""

    def __init__(self, kit: LabKit) -> None:
        self.kit = kit

    def lab(self, *arguments: str) -> Ran:
        return self.kit.cli("lab", *arguments, timeout=PATIENCE)

    def asked(self, machine: str, command: str, lab: str = "class") -> str:
        return self.lab("exec", lab, machine, "--", "sh", "-c", command).expect(0).out.strip()

    def both(self, web: str, client: str) -> tuple[str, str]:
        """What the two say, asked at once."""
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(self.asked, ("web", "client"), (web, client))
        return first, second

    def mark(self, what: str) -> None:
        """Leave something in the file system of both, on the second disk, and in memory."""
        mark = f"echo {what} > /root/mark && sync; {COUNT.format(what)}"
        self.both(f"printf %-512s {what} | dd of=/dev/disk/by-id/virtio-data bs=512 conv=fsync status=none; {mark}", mark)

    def marks(self) -> tuple[set[str], str]:
        """What is on their disks: one word, if the state is that of one moment; and what one of them has in memory."""
        mark = "cat /root/mark 2> /dev/null || echo none"
        web, client = self.both(f"{mark}; {DISK}; echo", f"{mark}; ls /run/counted 2> /dev/null || true")
        name, *counted = client.split()
        return {name, *(web.split() if len(web.split()) > 1 else [web, "none"])}, " ".join(sorted(counted))

    def check_clocks(self) -> None:
        """Their clocks are the host's: a guest tells its time somewhere between asking and hearing."""
        for machine in ("web", "client"):
            asked = time.time()
            told = int(self.asked(machine, "date +%s"))
            assert asked - CLOCK_SECONDS < told < time.time() + CLOCK_SECONDS, f"the clock of {machine}"


@pytest.fixture(scope="module")
def lab() -> Iterator[Class]:
    with real_kit() as kit:
        made = Class(kit)
        made.lab("up", str(kit.lab(LAB))).expect(0)
        yield made
        made.lab("destroy", "class", "-y").expect(0)


def test_a_warm_reset_of_two_machines_is_no_boot_and_takes_the_work_back(lab: Class) -> None:
    boots = lab.both(BOOT, BOOT)
    keys = (lab.kit.files("class").folder / "known_hosts").read_text()
    lab.mark("homework")
    ran = lab.lab("reset", "class", "-y", "-o", "json").expect(0)
    told = ran.json()
    assert "randomness" not in ran.err
    assert set(told["ready"]) == {"web", "client"}  # type: ignore[call-overload] # JSON
    assert lab.both(BOOT, BOOT) == boots, "they were booted"
    assert lab.marks() == ({"none"}, ""), "disks and memory are those of clean"
    assert (lab.kit.files("class").folder / "known_hosts").read_text() == keys
    lab.check_clocks()


@pytest.mark.slow
def test_what_the_reset_took_away_comes_back(lab: Class) -> None:
    """With two boots; what undo does is tried with boot sectors in `make test`."""
    lab.mark("homework")
    lab.lab("reset", "class", "-y").expect(0)
    lab.lab("undo", "class", "-y").expect(0)
    assert lab.marks()[0] == {"homework"}
    lab.lab("reset", "class", "-y").expect(0)


@pytest.mark.sampled(2)
def test_a_tree_of_states_in_any_order(lab: Class) -> None:
    """Three deep, with branches: clean, one, two, three, and from one: other. In memory something counts along."""
    for name, parent in (("one", ""), ("two", ""), ("three", ""), ("other", "one")):
        if parent:
            lab.lab("restore", f"class@{parent}", "-y", "--no-undo").expect(0)
        lab.mark(name)
        lab.lab("snapshot", f"class@{name}", "--ram").expect(0)
        assert lab.marks()[0] == {name}, "taking a state changes nothing"
    lab.check_clocks()
    told = lab.lab("tree", "class", "-o", "json").expect(0).json()
    tree = {node["name"]: node["parent"] for node in told["states"] if node["name"] != "undo"}  # type: ignore[attr-defined] # JSON
    assert tree == {"clean": "", "one": "clean", "two": "one", "three": "two", "other": "one"}
    counted = {"one": "one", "two": "one two", "three": "one three two", "other": "one other"}
    for name in ("three", "one", "other", "two"):
        lab.lab("restore", f"class@{name}", "-y", "--no-undo").expect(0)
        assert lab.marks() == ({name}, " ".join(sorted(counted[name].split()))), "disks and memory of one moment"
    for name in ("two", "one", "three", "other"):
        lab.lab("forget", f"class@{name}", "-y").expect(0)


@pytest.mark.slow
def test_checks_give_points(lab: Class) -> None:
    lab.lab("reset", "class", "-y").expect(0)
    for done, points in (("true", 2), ("touch /root/homework", 3)):
        lab.asked("web", done)
        told = lab.lab("status", "class", "--checks", "-o", "json").expect(0).json()
        assert (told["points"], told["of"]) == (points, 3)


@pytest.mark.sampled(2)
def test_two_copies_side_by_side(lab: Class) -> None:
    """Of a lab of one machine, with the class switched off: emulated guests take all that a small computer has."""
    lab.lab("down", "class", "--within", "0").expect(0)
    lab.lab("up", str(lab.kit.lab(ALONE, "alone.yaml")), "--count", "2").expect(0)
    copies = ("alone-1", "alone-2")

    def each(*commands: str) -> tuple[str, ...]:
        with ThreadPoolExecutor(2) as pool:
            return tuple(pool.map(lambda name, command: lab.asked("web", command, name), copies, commands))

    mark = "cat /root/mark 2> /dev/null || echo none"
    ids = "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub; hostname -I"
    told = each(f"echo first > /root/mark; {ids}", f"echo second > /root/mark; {ids}")
    assert not set(told[0].splitlines()) & set(told[1].splitlines()), "they share an identity, or an address"
    assert each(mark, mark) == ("first", "second")
    lab.lab("reset", "alone-2", "-y").expect(0)
    assert each(mark, mark) == ("first", "none")
    for name in copies:
        lab.lab("destroy", name, "-y").expect(0)
