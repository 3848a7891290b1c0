"""Bad days, through the real command line: each ends with an exit code of its own, a message that says what to do, and
nothing touched or half made. What can go wrong inside a lab file is tested with the documents.

`make test` runs an eighth of what edits labs and moves kits, and a tenth of the strange names beyond `up`, chosen by the seed;
`make test-slow` all of it.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import libvirt
import pytest

from pocketcloud.kit.manifest import kit_at
from pocketcloud.model.names import Name
from pocketcloud.model.record import Record
from pocketcloud.records import read_record, write_record
from tests.labkit import GREETING, LabKit, Ran, lab_kit, raw_libvirt, until

sampled = pytest.mark.sampled(8)

READY = "ready: {console: hello, within: 90s}"
ONE = f"""\
lab: tiny
machines:
  a: {{base: tiny, memory: 32MiB, {READY}, networks: [n]}}
networks:
  n: {{kind: isolated}}
"""


@pytest.fixture
def kit() -> Iterator[LabKit]:
    with lab_kit() as made:
        yield made


def record_of(kit: LabKit, instance: str = "tiny") -> Record:
    record = read_record(kit.files(instance))
    assert record is not None
    return record


def domain(kit: LabKit, machine: str, instance: str = "tiny") -> libvirt.virDomain:
    return raw_libvirt().lookupByName(f"{kit.kit.name}.{instance}.{machine}")


def everything(kit: LabKit) -> list[str]:
    """What there is of the kit: its files, and what libvirt has of its name."""
    connection = raw_libvirt()
    names = [d.name() for d in connection.listAllDomains()] + [n.name() for n in connection.listAllNetworks()]
    return sorted(name for name in names if name.startswith(f"{kit.kit.name}.")) + sorted(map(str, kit.path.rglob("*")))


@contextlib.contextmanager
def nothing_changes(kit: LabKit) -> Iterator[None]:
    before = everything(kit)
    yield
    assert everything(kit) == before


# -- the host


def test_libvirt_cannot_be_reached(kit: LabKit) -> None:
    away = {"LIBVIRT_DEFAULT_URI": "qemu+unix:///system?socket=/nonexistent/libvirt-sock"}
    file = kit.lab(ONE)
    with nothing_changes(kit):
        for arguments in (("up", file), ("plan", file), ("reset", "tiny", "-y"), ("destroy", "tiny", "-y"), ("status", "tiny")):
            ran = kit.cli("lab", *arguments, env=away).expect(3, "libvirt", "next:")
            assert "/nonexistent/libvirt-sock" in ran.err
        kit.cli("lab", "list", env=away).expect(0, "states are unknown")
        kit.cli("kit", "status", env=away).expect(0, kit.kit.name)


def test_without_root_changes_say_so_and_queries_work(kit: LabKit) -> None:
    # An ordinary user, who may read this checkout wherever it lies (root's home, a private folder of CI's).
    reads = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *reads)
    file = kit.lab(ONE)
    with nothing_changes(kit):
        for arguments in (
            ("lab", "up", file),
            ("lab", "reset", "tiny", "-y"),
            ("lab", "down", "tiny"),
            ("lab", "destroy", "tiny", "-y"),
            ("kit", "init", "--dir", kit.folder / "other"),
            ("kit", "attach", kit.path),
            ("kit", "detach", kit.kit.name),
            ("base", "remove", "tiny", "-y"),
        ):
            kit.cli(*arguments, prefix=nobody).expect(3, "root is needed", "sudo")
        for query in (
            ("kit", "list"),
            ("kit", "status"),
            ("base", "list"),
            ("lab", "list"),
            ("lab", "schema"),
            ("profile", "list"),
        ):
            kit.cli(*query, prefix=nobody).expect(0)


def test_more_memory_than_the_host_has(kit: LabKit) -> None:
    with nothing_changes(kit):
        ran = kit.cli("lab", "up", kit.lab(ONE.replace("32MiB", "2TiB"))).expect(
            6, "memory", "this host can give", "2 TiB", "next:"
        )
        assert "GiB" in ran.err


def test_machines_in_machines_without_kvm(kit: LabKit) -> None:
    """A profile that emulates stands for a host whose KVM cannot nest: what a lab with `nested: true` is told does not differ."""
    emulated = {"POCKETCLOUD_PROFILE": "emulated"}
    nested = ONE.replace("32MiB", "32MiB, nested: true")
    with nothing_changes(kit):
        kit.cli("lab", "up", kit.lab(nested), env=emulated).expect(
            3, "a is to run machines", "its machines are emulated", "next:"
        )
    kit.cli("lab", "up", kit.lab(nested.replace("true", "emulate")), env=emulated).expect(0, "a: machines inside it are emulated")
    kit.cli("lab", "up", kit.lab(ONE), "--reconfigure", env=emulated).expect(0, "stop a")


@pytest.mark.parametrize(("base", "way"), [("debian-12", "base build debian-12"), ("nosuch", "base import nosuch")])
def test_the_base_is_missing(kit: LabKit, base: str, way: str) -> None:
    """One that has a definition is built, any other can only be imported."""
    with nothing_changes(kit):
        kit.cli("lab", "up", kit.lab(ONE.replace("base: tiny", f"base: {base}"))).expect(4, f"base {base}", way)


# -- space


@pytest.fixture
def small(kit: LabKit) -> Iterator[LabKit]:
    """A second kit, on a file system of 320 MiB."""
    place = kit.folder / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=320m,mode=755", "tmpfs", place], check=True)
    try:
        kit.cli("kit", "detach", kit.kit.name).expect(0)
        kit.cli("kit", "init", "--dir", place / "kit", "--name", f"pct{secrets.token_hex(4)}").expect(0)
        tiny = LabKit(kit.folder, kit_at(place / "kit"), kit.env)
        tiny.add_base()
        yield tiny
        tiny.cli("lab", "destroy", "tiny", "-y")
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(kit: LabKit, leave: int) -> Path:
    told = os.statvfs(kit.path)
    path = kit.path.parent / "filler"
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, told.f_bavail * told.f_frsize - leave)
    return path


def test_a_full_store_is_refused_beforehand(small: LabKit) -> None:
    fill(small, 100 << 20)
    with nothing_changes(small):
        small.cli("lab", "up", small.lab(ONE)).expect(6, "space", "needs at least", "100 MiB")


def test_space_that_runs_out_on_the_way(small: LabKit) -> None:
    """The store fills up while the machine starts: its memory cannot be saved. The lab is none the worse for it."""
    file = small.lab(ONE)
    process = small.start("lab", "up", file)
    until(lambda: small.files("tiny").record.exists(), "the record is committed")
    filler = fill(small, 300 << 10)
    small.finish(process).expect(6, "no space", "lab up tiny")
    assert record_of(small).clean is None
    filler.unlink()
    small.cli("lab", "up", file).expect(0, "is up")
    assert record_of(small).clean is not None
    assert domain(small, "a").isActive()
    assert not list(small.path.rglob("*.save"))


# -- others' things in our way


def test_a_machine_of_that_name_is_not_ours(kit: LabKit) -> None:
    connection = raw_libvirt()
    name = f"{kit.kit.name}.tiny.a"
    foreign = connection.defineXML(
        f"<domain type='qemu'><name>{name}</name><memory>32768</memory><os><type>hvm</type></os></domain>"
    )
    try:
        before, file = foreign.XMLDesc(0), kit.lab(ONE)
        with nothing_changes(kit):
            kit.cli("lab", "up", file).expect(5, name, "next:")
        assert foreign.XMLDesc(0) == before
    finally:
        foreign.undefine()
    kit.cli("lab", "up", file).expect(0)


def test_a_network_of_that_name_is_not_ours(kit: LabKit) -> None:
    connection = raw_libvirt()
    name = f"{kit.kit.name}.tiny.n"
    foreign = connection.networkDefineXML(f"<network><name>{name}</name></network>")
    try:
        before, file = foreign.XMLDesc(0), kit.lab(ONE)
        with nothing_changes(kit):
            kit.cli("lab", "up", file).expect(5, name, "next:")
        assert foreign.XMLDesc(0) == before
    finally:
        foreign.undefine()
    kit.cli("lab", "up", file).expect(0)


def test_a_subnet_that_is_taken_meanwhile_is_left(kit: LabKit) -> None:
    file = kit.lab(ONE)
    kit.cli("lab", "up", file).expect(0)
    (network,) = record_of(kit).networks.values()
    kit.cli("lab", "down", "tiny", "--within", "0").expect(0)
    interface = f"pct{secrets.token_hex(4)}"
    subprocess.run(["ip", "link", "add", interface, "type", "bridge"], check=True)
    try:
        subprocess.run(["ip", "address", "add", f"{network.range[77]}/28", "dev", interface], check=True)
        subprocess.run(["ip", "link", "set", interface, "up"], check=True)
        kit.cli("lab", "up", file).expect(0, "moves from", str(network.subnet), "taken")
        (moved,) = record_of(kit).networks.values()
        assert not moved.range.overlaps(network.range)
        assert record_of(kit).machines["a"].addresses["n"] in moved.range  # type: ignore[index]  # a Name is a str
        shown = raw_libvirt().networkLookupByName(f"{kit.kit.name}.tiny.n").XMLDesc(0)
        assert str(moved.range[1]) in shown
        kit.cli("lab", "reset", "tiny", "-y").expect(0)
    finally:
        subprocess.run(["ip", "link", "delete", interface], check=True)


# -- machines that do not get ready


@sampled
def test_a_port_that_never_opens(kit: LabKit) -> None:
    file = kit.lab(ONE.replace(READY, "ready: {console: hello, tcp: 81, within: 8s}"))
    ran = kit.cli("lab", "up", file).expect(7, "port 81", "the console ends with", GREETING, "lab console tiny a")
    assert IPv4Network("10.0.0.0/8").supernet_of(next(iter(record_of(kit).networks.values())).range)
    assert "lab up tiny" in ran.err
    # It is left as it is, to be looked into; and goes on once it is told otherwise.
    assert domain(kit, "a").isActive()
    kit.cli("lab", "status", "tiny").expect(0, "partly up (0 of 1 running)", "new")
    ran = kit.cli("lab", "up", "-v", kit.lab(ONE)).expect(0, "is up", "take the state clean")
    assert "start a" not in ran.err, "it was started anew"


@sampled
@pytest.mark.parametrize("years", [-2, 2])
def test_a_lab_whose_states_were_taken_by_another_clock(kit: LabKit, years: int) -> None:
    """The kit was on a computer whose clock was years off: what it wrote of times is no reason for anything."""
    file = kit.lab(ONE)
    kit.cli("lab", "up", file).expect(0)
    kit.cli("lab", "snapshot", "tiny@before").expect(0)
    kit.cli("lab", "reset", "tiny", "-y").expect(0)
    path = kit.files("tiny").record
    content = json.loads(path.read_text())
    then = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=365 * years)).isoformat(timespec="seconds")
    content["created"] = then
    for snapshot in content["snapshots"].values():
        snapshot["taken"] = then
    path.write_text(json.dumps(content))
    kit.cli("lab", "status", "tiny").expect(0, "is up")
    tree = kit.cli("lab", "tree", "tiny").expect(0, "before", "by another clock" if years > 0 else "ago")
    assert "-" not in tree.out.split("before")[1].splitlines()[0].replace(then, ""), "an age below zero"
    kit.cli("lab", "up", file).expect(0, "is up")
    kit.cli("lab", "restore", "tiny@before", "-y").expect(0)
    kit.cli("lab", "reset", "tiny", "-y").expect(0)
    assert set(record_of(kit).snapshots) >= {"clean", "before"}


@sampled
def test_a_machine_that_powers_off_while_it_is_waited_for(kit: LabKit) -> None:
    process = kit.start("lab", "up", kit.lab(ONE.replace("console: hello", "console: never-said")))
    console = kit.files("tiny").console("a")
    until(lambda: console.exists() and GREETING in console.read_text(errors="replace"), "the machine is up")
    domain(kit, "a").destroy()
    kit.finish(process, timeout=30).expect(7, "a is off while it was waited for", GREETING)


# -- an edited file


def two(more: str = "", memory: str = "32MiB") -> str:
    return f"lab: tiny\nmachines:\n  a: {{base: tiny, memory: {memory}, {READY}}}\n{more}"


@sampled
def test_a_machine_that_is_added_and_one_that_leaves(kit: LabKit) -> None:
    with_b = two(f"  b: {{base: tiny, memory: 32MiB, {READY}}}\n")
    kit.cli("lab", "up", kit.lab(two())).expect(0)
    number = domain(kit, "a").ID()
    kit.cli("lab", "up", kit.lab(with_b)).expect(0)
    assert domain(kit, "b").isActive()
    clean = record_of(kit).clean
    assert clean is not None
    assert set(clean.machines) == {"a", "b"}

    file = kit.lab(two())
    kit.cli("lab", "up", file).expect(0, "b is no longer in the file", "--prune")
    assert domain(kit, "b").isActive()
    kit.cli("lab", "up", file, "--prune").expect(2, "b will be removed", "add -y")
    kit.cli("lab", "up", file, "--prune", "-y").expect(0)
    assert set(record_of(kit).machines) == {"a"}
    assert not [name for name in everything(kit) if ".tiny.b" in name or name.endswith("/b.log")]
    assert domain(kit, "a").ID() == number, "the machine that stayed was not left alone"
    kit.cli("lab", "reset", "tiny", "-y").expect(0)


@sampled
def test_a_state_whose_uefi_variables_are_gone_is_brought_back_with_new_ones(kit: LabKit) -> None:
    kit.cli("lab", "up", kit.lab(two())).expect(0)
    record = record_of(kit)
    assert record.clean is not None
    parts = {name: replace(part, nvram="tiny.a@clean.fd") for name, part in record.clean.machines.items()}
    write_record(kit.files("tiny"), replace(record, snapshots={Name("clean"): replace(record.clean, machines=parts)}))
    kit.cli("lab", "reset", "tiny", "-y").expect(0, "a begins with new UEFI variables", "tiny.a@clean.fd", "is gone")


@sampled
def test_memory_that_is_changed_waits_for_reconfigure(kit: LabKit) -> None:
    kit.cli("lab", "up", kit.lab(two())).expect(0)
    number = domain(kit, "a").ID()
    file = kit.lab(two(memory="48MiB"))
    kit.cli("lab", "up", file).expect(0, "memory changed", "--reconfigure")
    assert (domain(kit, "a").ID(), domain(kit, "a").maxMemory()) == (number, 32 << 10)
    kit.cli("lab", "up", file, "--reconfigure").expect(0)
    assert domain(kit, "a").maxMemory() == 48 << 10
    kit.cli("lab", "up", file).expect(0)


@sampled
def test_an_edit_to_a_base_that_is_not_there_changes_nothing(kit: LabKit) -> None:
    kit.cli("lab", "up", kit.lab(two())).expect(0)
    with nothing_changes(kit):
        kit.cli("lab", "up", kit.lab(two(f"  b: {{base: nosuch, memory: 32MiB, {READY}}}\n"))).expect(4, "nosuch", "base import")
    assert domain(kit, "a").isActive()


@sampled
def test_another_base_for_a_machine_asks_before_it_is_made_anew(kit: LabKit) -> None:
    kit.add_base("other", f"{GREETING}, the other one")
    kit.cli("lab", "up", kit.lab(two())).expect(0)
    file = kit.lab(two().replace("base: tiny", "base: other"))
    kit.cli("lab", "up", file).expect(0, "base changed", "--reconfigure")
    kit.cli("lab", "up", file, "--reconfigure").expect(2, "lost", "-y")
    kit.cli("lab", "up", file, "--reconfigure", "-y").expect(0)
    assert "the other one" in kit.files("tiny").console("a").read_text(errors="replace")
    kit.cli("lab", "reset", "tiny", "-y").expect(0)
    assert "the other one" in kit.files("tiny").console("a").read_text(errors="replace")


# -- records and files that are gone or broken


@sampled
def test_a_broken_record_does_not_stop_destroy(kit: LabKit) -> None:
    # The folder for saved memory is the kit's: another lab may be about to use it.
    (kit.path / "media" / "ram").mkdir(mode=0o700)
    before = everything(kit)
    kit.cli("lab", "up", kit.lab(ONE)).expect(0)
    for content in ("", "{}", '{"schema": 99}', "[]", "\0\0", "{"):
        kit.files("tiny").record.write_text(content)
        kit.cli("lab", "status", "tiny").expect(5, "record", "lab destroy tiny")
    kit.cli("lab", "list").expect(0, "tiny")
    kit.cli("lab", "reset", "tiny", "-y").expect(5, "record", "lab destroy tiny")
    kit.cli("lab", "up", kit.lab(ONE)).expect(5, "record", "lab destroy tiny")
    kit.cli("lab", "destroy", "tiny", "-y").expect(0)
    assert everything(kit) == before


@sampled
def test_a_lab_whose_file_is_gone(kit: LabKit) -> None:
    file = kit.lab(ONE)
    kit.cli("lab", "up", file).expect(0)
    file.unlink()
    kit.cli("lab", "up", file).expect(4, "no such file")
    kit.cli("lab", "down", "tiny", "--within", "0").expect(0)
    kit.cli("lab", "up", "tiny").expect(0)
    kit.cli("lab", "destroy", "tiny", "-y").expect(0)
    kit.cli("lab", "destroy", "tiny", "-y").expect(4, "no lab tiny")


# -- kits that move


@sampled
def test_a_kit_is_detached_moved_and_attached(kit: LabKit) -> None:
    file = kit.lab(ONE)
    kit.cli("lab", "up", file).expect(0)
    kit.cli("kit", "detach", kit.kit.name).expect(5, "in use", "lab down tiny")
    kit.cli("lab", "down", "tiny", "--within", "0").expect(0)
    kit.cli("kit", "detach", kit.kit.name).expect(0)
    assert not [name for name in everything(kit) if name.startswith(f"{kit.kit.name}.")]
    elsewhere = kit.folder / "else where"
    kit.path.rename(elsewhere)
    kit.cli("lab", "status", "tiny").expect(4, "no kit here", "kit attach")
    kit.cli("lab", "up", kit.lab("lab: [", "bad.yaml")).expect(2)
    kit.cli("kit", "attach", elsewhere).expect(0, kit.kit.name)
    kit.cli("lab", "up", "tiny").expect(0)
    assert str(elsewhere) in domain(kit, "a").XMLDesc(0)
    assert str(kit.path) not in domain(kit, "a").XMLDesc(0)
    kit.cli("lab", "reset", "tiny", "-y").expect(0)
    assert not (kit.folder / "default").exists()


@sampled
def test_a_machine_that_crashed_is_off(kit: LabKit) -> None:
    """Its QEMU was killed, as by the kernel when memory gets short."""
    kit.cli("lab", "up", kit.lab(ONE)).expect(0)
    os.kill(int(Path(f"/run/libvirt/qemu/{kit.kit.name}.tiny.a.pid").read_text()), signal.SIGKILL)
    until(lambda: not domain(kit, "a").isActive(), "libvirt has seen it")
    kit.cli("lab", "status", "tiny").expect(0, "crashed")
    kit.cli("lab", "console", "tiny", "a").expect(7, "a is off")
    kit.cli("kit", "detach", kit.kit.name).expect(0, "is detached")


@sampled
def test_a_machine_that_somebody_suspended_goes_on(kit: LabKit) -> None:
    kit.cli("lab", "up", kit.lab(ONE)).expect(0)
    number = domain(kit, "a").ID()
    domain(kit, "a").suspend()
    kit.cli("lab", "status", "tiny").expect(0, "paused (suspended)", "lab up tiny")
    kit.cli("lab", "up", "tiny", "--dry-run").expect(0, "virsh resume")
    kit.cli("lab", "up", "tiny").expect(0)
    kit.cli("lab", "status", "tiny").expect(0, "running")
    assert domain(kit, "a").ID() == number, "it was started anew"


def test_a_kit_that_is_attached_twice_and_its_copy(kit: LabKit) -> None:
    kit.cli("kit", "attach", kit.path).expect(0)
    assert json.loads(kit.cli("kit", "list", "-o", "json").expect(0).out)[0]["name"] == kit.kit.name
    copy = kit.folder / "copy"
    shutil.copytree(kit.path, copy)
    kit.cli("kit", "attach", copy).expect(5, "copy", kit.kit.id, "detach")
    kit.cli("kit", "init", "--dir", kit.folder / "namesake", "--name", kit.kit.name).expect(5, "attached already")
    kit.cli("kit", "attach", kit.folder / "nothing-here").expect(4, "no kit there")
    assert len(json.loads(kit.cli("kit", "list", "-o", "json").expect(0).out)) == 1


# -- names

STRANGE = ("a b", "Großer", "лаб", "a'b", 'a"b', "x" * 300, "-", "", "a.b", "$(id)", "a\nb", "../tiny", "/etc/passwd", "🧪")


def commands(kit: LabKit) -> dict[str, Callable[[str], Ran]]:
    return {
        "up": lambda name: kit.cli("lab", "up", "--", name),
        "reset": lambda name: kit.cli("lab", "reset", "-y", "--", name),
        "destroy": lambda name: kit.cli("lab", "destroy", "-y", "--", name),
        "status": lambda name: kit.cli("lab", "status", "--", name),
        "kit": lambda name: kit.cli("lab", "up", "--kit", name, "tiny"),
        "machine": lambda name: kit.cli("lab", "reset", "-y", "--", "tiny", name),
        "init": lambda name: kit.cli("kit", "init", "--dir", kit.folder / "new", "--name", name),
        "detach": lambda name: kit.cli("kit", "detach", "--", name),
        "base": lambda name: kit.cli("base", "remove", "-y", "--", name),
    }


VERBS = ("reset", "destroy", "status", "kit", "machine", "init", "detach", "base")


def test_strange_names_get_one_clear_message_from_up(kit: LabKit) -> None:
    refused(kit, "up", STRANGE)


@pytest.mark.sampled(10)
@pytest.mark.parametrize("name", STRANGE, ids=ascii)
@pytest.mark.parametrize("verb", VERBS)
def test_strange_names_get_one_clear_message(kit: LabKit, verb: str, name: str) -> None:
    refused(kit, verb, [name])


def refused(kit: LabKit, verb: str, names: Iterable[str]) -> None:
    before = sorted(str(path) for path in kit.folder.rglob("*") if "/locks" not in str(path))
    for name in names:
        ran = commands(kit)[verb](name)
        assert ran.code in (2, 4), f"{name!r}: {ran}"
        ran.expect(ran.code)
        assert ran.err.count("rror: ") == 1, f"{name!r}: {ran.err}"
        assert len(ran.err) < 1500, f"{name!r}: {ran.err}"
    assert sorted(str(path) for path in kit.folder.rglob("*") if "/locks" not in str(path)) == before
