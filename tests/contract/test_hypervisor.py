"""The hypervisor room against the real daemon (qemu:///system): real QEMU, real networks, guests that are boot sectors.

All names, kits and subnets are random; what a test makes it removes, failed or not. Nothing else of the host is touched.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network
from pathlib import Path
from urllib.parse import urlsplit

import libvirt
import pytest

from pocketcloud.errors import HostLacks, NoSpace, NotFound, NotOurs, PocketcloudError, Refused
from pocketcloud.hypervisor import AgentFailed, DomainState, open_hypervisor, xml
from pocketcloud.hypervisor.libvirt import LibvirtHypervisor
from pocketcloud.model.base import Arch, Firmware
from pocketcloud.model.lab import NetworkKind
from pocketcloud.model.machine import DiskSpec, Lease, MachineSpec, Mark, NetworkSpec, NicSpec
from pocketcloud.model.names import joined, machine_uuid, network_uuid
from pocketcloud.model.profile import Acceleration, DiskTuning
from tests.agents import Agent
from tests.bootsector import counted, write_disk

PATIENCE = 60.0
TUNING = DiskTuning("writeback", "threads")


@dataclass
class Bed:
    """A throw-away kit: its folder, which QEMU can read, and what was made in libvirt for it."""

    hypervisor: LibvirtHypervisor
    folder: Path
    kit: str = field(default_factory=lambda: f"pctest{secrets.token_hex(3)}")
    kit_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    machines: set[str] = field(default_factory=set)
    networks: set[str] = field(default_factory=set)

    def machine(self, name: str, *, letter: str = "", nics: tuple[NicSpec, ...] = ()) -> MachineSpec:
        """A machine whose disk prints `hello from NAME`, and beats `letter` (see tests/bootsector.py)."""
        disk = write_disk(self.folder / f"{name}.img", f"hello from {name}", letter=letter)
        full = joined(self.kit, "demo", name)
        self.machines.add(full)
        return MachineSpec(
            name=full,
            uuid=str(machine_uuid(self.kit_id, "demo", name)),
            mark=Mark(self.kit, self.kit_id, "demo", name),
            title=f"{name} of a test",
            arch=Arch.X86_64,
            machine="q35",
            acceleration=Acceleration.EMULATION,
            cpu_mode="maximum",
            vcpus=1,
            memory=32 << 20,
            firmware=Firmware.BIOS,
            nvram=None,
            disks=(DiskSpec("vda", disk, "raw", TUNING, "root"),),
            nics=nics,
            serial_log=self.folder / f"{name}.console",
        )

    def network(self, name: str, subnet: IPv4Network, *leases: Lease) -> NetworkSpec:
        full = joined(self.kit, "demo", name)
        self.networks.add(full)
        mark = Mark(self.kit, self.kit_id, "demo", name)
        identity = str(network_uuid(self.kit_id, "demo", name))
        return NetworkSpec(full, identity, mark, f"pct-{secrets.token_hex(4)}", NetworkKind.NAT, subnet, "demo.internal", leases)

    def raw(self) -> libvirt.virConnect:
        """libvirt itself, to look at what the room did, and to do what others might do."""
        return libvirt.open(self.hypervisor.facts().uri)

    def state(self, spec: MachineSpec) -> DomainState:
        domain = self.hypervisor.domain(spec.name)
        assert domain is not None
        return domain.state

    def free_subnet(self) -> IPv4Network:
        """A /24 of 10.224.0.0/11 that no libvirt network has; this host's routes are looked at by the kernel's own answer."""
        taken = [subnet.network for subnet in self.hypervisor.subnets()]
        routes = subprocess.run(["ip", "-4", "route"], capture_output=True, text=True, check=True).stdout
        while True:
            subnet = IPv4Network(f"10.{224 + secrets.randbelow(31)}.{secrets.randbelow(256)}.0/24")
            if not any(subnet.overlaps(other) for other in taken) and str(subnet) not in routes:
                return subnet


@pytest.fixture(scope="module")
def hypervisor() -> Iterator[LibvirtHypervisor]:
    connected = LibvirtHypervisor.connect()
    yield connected
    connected.close()


@pytest.fixture
def bed(hypervisor: LibvirtHypervisor) -> Iterator[Bed]:
    folder = Path(tempfile.mkdtemp(prefix="pocketcloud-test-", dir="/var/tmp"))  # not below a folder of mode 0700, as tmp_path
    folder.chmod(0o755)
    bed = Bed(hypervisor, folder)
    yield bed
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, folder)
        for network in bed.networks:
            undo.callback(_gone, lambda name: bed.raw().networkLookupByName(name), network)
        for machine in bed.machines:
            undo.callback(_gone, lambda name: bed.raw().lookupByName(name), machine)


def _gone(look_up: Callable[[str], libvirt.virDomain | libvirt.virNetwork], name: str) -> None:
    """Remove what is left of a test, by libvirt's own means: the room may be what is broken."""
    try:
        handle = look_up(name)
    except libvirt.libvirtError:
        return
    with contextlib.suppress(libvirt.libvirtError):
        handle.destroy()
    if isinstance(handle, libvirt.virDomain):
        handle.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)
    else:
        handle.undefine()


def says(spec: MachineSpec, text: str) -> str:
    """Wait until the machine's console holds `text`; what it holds then."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if spec.serial_log.exists() and text in (seen := spec.serial_log.read_text(errors="replace")):
            return seen
        time.sleep(0.05)
    raise AssertionError(f"{spec.name} did not say {text!r}: {spec.serial_log.exists() and spec.serial_log.read_bytes()!r}")


def asked(server: str, name: str) -> str:
    """The IPv4 address that the DNS server has for a name (RFC 1035, one question, the last answer's data); "" for none."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        channel.settimeout(PATIENCE)
        channel.sendto(b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + labels + b"\x00\x00\x01\x00\x01", (server, 53))
        answer = channel.recv(512)
    return socket.inet_ntoa(answer[-4:]) if answer[7] else ""


def test_the_processor_that_machines_would_get(bed: Bed) -> None:
    """libvirt takes KVM for usable wherever its device answers, so it names a processor there."""
    features = bed.hypervisor.cpu_features(Arch.X86_64)
    assert bool(features) == (Arch.X86_64 in bed.hypervisor.facts().kvm)
    assert not features or {"apic", "hypervisor"} <= features


def test_a_machine_from_its_definition_to_its_removal(bed: Bed) -> None:
    hypervisor, web = bed.hypervisor, bed.machine("web")
    assert hypervisor.domain(web.name) is None
    hypervisor.define(web)
    hypervisor.define(web)
    defined = hypervisor.domain(web.name)
    assert defined is not None
    assert (defined.state, defined.mark, defined.memory) == (DomainState.OFF, web.mark, web.memory)
    assert defined.disks == {"vda": web.disks[0].path}

    hypervisor.start(web.name)
    says(web, "hello from web")
    assert [domain.state for domain in hypervisor.domains(bed.kit_id)] == [DomainState.RUNNING]
    number = bed.raw().lookupByName(web.name).ID()
    hypervisor.start(web.name)
    assert bed.raw().lookupByName(web.name).ID() == number, "starting a running machine started it anew"

    bed.raw().lookupByName(web.name).suspend()
    paused = hypervisor.domain(web.name)
    assert paused is not None
    assert (paused.state, paused.reason, paused.waits) == (DomainState.PAUSED, "suspended", True)
    hypervisor.resume(web.name)
    hypervisor.resume(web.name)
    assert bed.state(web) is DomainState.RUNNING
    assert bed.raw().lookupByName(web.name).ID() == number

    hypervisor.kill(web.name)
    hypervisor.kill(web.name)
    hypervisor.resume(web.name)
    assert bed.state(web) is DomainState.OFF
    hypervisor.start(web.name)
    assert says(web, "hello from web").count("hello") == 1, "the log holds more than this start"
    assert hypervisor.shutdown(web.name, PATIENCE)
    assert bed.state(web) is DomainState.OFF
    assert hypervisor.shutdown(web.name, PATIENCE)

    hypervisor.start(web.name)
    hypervisor.undefine(web.name)
    hypervisor.undefine(web.name)
    hypervisor.kill(web.name)
    assert hypervisor.domain(web.name) is None
    assert hypervisor.domains(bed.kit_id) == ()
    with pytest.raises(NotFound, match=web.name):
        hypervisor.start(web.name)


def off(hypervisor: LibvirtHypervisor, name: str) -> bool:
    """Wait until the machine is off; whether it switched itself off."""
    deadline = time.monotonic() + PATIENCE
    while (domain := hypervisor.domain(name)) is not None and domain.active:
        assert time.monotonic() < deadline, f"{name} is still up"
        time.sleep(0.05)
    assert domain is not None
    return domain.clean


def test_a_tied_machine_ends_with_its_process(bed: Bed) -> None:
    hypervisor, web = bed.hypervisor, bed.machine("web")
    hypervisor.define(web)
    code = (
        "import sys, time\nfrom pocketcloud.hypervisor import open_hypervisor\n"
        "held = open_hypervisor()\nheld.start(sys.argv[1], tied=True)\nprint('up', flush=True)\ntime.sleep(1000)"
    )
    top = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", code, web.name], cwd=top, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "up\n"
            says(web, "hello from web")
        finally:
            other.kill()
    assert off(hypervisor, web.name) is False, "it was ended, and did not end by itself"
    hypervisor.start(web.name)
    says(web, "hello from web")
    assert hypervisor.shutdown(web.name, PATIENCE)
    assert off(hypervisor, web.name) is True


def test_memory_goes_on_where_it_was_on_other_disks(bed: Bed) -> None:
    hypervisor, web = bed.hypervisor, bed.machine("web", letter="A")
    memory = bed.folder / "web.ram"
    hypervisor.define(web)
    hypervisor.start(web.name)
    says(web, "A")
    hypervisor.save(web.name, memory)
    assert bed.state(web) is DomainState.OFF
    with pytest.raises(Refused, match="off"):
        hypervisor.save(web.name, memory)

    other = write_disk(bed.folder / "other.img", "booted anew", letter="B")
    after = replace(web, disks=(replace(web.disks[0], path=other),), serial_log=bed.folder / "after.console")
    hypervisor.restore(after, memory)
    assert "h" not in says(after, "B"), "it booted instead of going on"
    assert memory.exists()
    with pytest.raises(Refused, match="runs"):
        hypervisor.restore(after, memory)
    hypervisor.kill(web.name)
    off = hypervisor.domain(web.name)
    assert off is not None
    assert off.disks == {"vda": other}, "the next start would use the old disk"
    with pytest.raises(NotFound, match=r"web\.none"):
        hypervisor.restore(after, bed.folder / "web.none")


def screen(bed: Bed, spec: MachineSpec) -> tuple[str, int]:
    """Where the machine's screen is, after somebody was greeted there as viewers are (RFC 6143, 7.1.1)."""
    found = bed.hypervisor.domain(spec.name)
    assert found is not None
    at = urlsplit(found.screen)
    assert (at.scheme, at.hostname) == ("vnc", "127.0.0.1")
    assert at.port is not None
    with socket.create_connection(("127.0.0.1", at.port), timeout=10) as viewer:
        assert viewer.recv(4) == b"RFB "
    return "127.0.0.1", at.port


def test_a_screen_is_at_an_address_of_loopback_only_and_moves_where_that_was_taken(bed: Bed) -> None:
    hypervisor, web = bed.hypervisor, bed.machine("web")
    before, shown = replace(web, screen=False), replace(web, screen=True)
    hypervisor.define(before)
    hypervisor.start(web.name)
    running = hypervisor.domain(web.name)
    assert running is not None
    assert running.screen == "", "it is on a socket, as machines of earlier versions are"
    says(web, "hello from web")
    hypervisor.save(web.name, old := bed.folder / "old.ram")

    # Memory that was saved so goes on so, and the next start shows the screen.
    hypervisor.restore(shown, old)
    assert bed.state(web) is DomainState.RUNNING
    hypervisor.kill(web.name)
    off = hypervisor.domain(web.name)
    assert off is not None
    assert off.screen == ""
    hypervisor.start(web.name)
    host, port = screen(bed, web)
    listening = subprocess.run(["ss", "-Hltn", f"sport = :{port}"], capture_output=True, text=True, check=True).stdout
    assert [line.split()[3] for line in listening.splitlines()] == [f"{host}:{port}"]

    # What comes back finds its port taken.
    hypervisor.save(web.name, memory := bed.folder / "web.ram")
    with socket.create_server((host, port)):
        hypervisor.restore(shown, memory)
        assert screen(bed, web) != (host, port)


def test_a_machine_that_is_woken_goes_on_counting_and_has_another_generation_id(bed: Bed) -> None:
    hypervisor, web = bed.hypervisor, bed.machine("web")
    write_disk(web.disks[0].path, "it booted", counts=True)
    memory = bed.folder / "web.ram"

    def genid() -> str:
        return ET.fromstring(bed.raw().lookupByName(web.name).XMLDesc(0)).findtext("genid", "")  # noqa: S314 - libvirt's own

    def goes_on() -> list[int]:
        deadline = time.monotonic() + PATIENCE
        while len(counted(web.serial_log.read_text())) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        return counted(web.serial_log.read_text())

    hypervisor.define(web)
    hypervisor.start(web.name)
    assert goes_on()[0] == 1
    first, known = genid(), hypervisor.domain(web.name)
    assert known is not None
    assert known.machine_type.startswith("pc-q35-")
    hypervisor.save(web.name, memory)
    kept = counted(web.serial_log.read_text())[-1]
    ids = {first}
    for _time in range(2):  # from the same file as often as one likes
        web.serial_log.write_text("")
        hypervisor.restore(web, memory)
        assert goes_on()[0] == kept + 1
        assert "booted" not in web.serial_log.read_text()
        ids.add(genid())
        hypervisor.kill(web.name)
    assert len(ids) == 3
    hypervisor.start(web.name)
    assert goes_on()[0] == 1


def test_a_machine_of_before_there_were_generation_ids_is_woken_too(bed: Bed) -> None:
    hypervisor, web = bed.hypervisor, bed.machine("web", letter="A")
    bed.raw().defineXML(hypervisor.machine_xml(web).replace("<genid/>", ""))
    hypervisor.start(web.name)
    says(web, "A")
    assert "genid" not in bed.raw().lookupByName(web.name).XMLDesc(0)
    hypervisor.save(web.name, bed.folder / "web.ram")
    web.serial_log.write_text("")
    hypervisor.restore(web, bed.folder / "web.ram")
    assert "h" not in says(web, "A")


def test_a_memory_file_that_is_not_whole_is_refused(bed: Bed) -> None:
    web = bed.machine("web")
    broken = bed.folder / "broken.ram"
    broken.write_bytes(b"LibvirtQemudPart".ljust(4096, b"\0"))
    with pytest.raises(Refused, match=r"broken\.ram"):
        bed.hypervisor.restore(web, broken)
    assert bed.state(web) is DomainState.OFF


def test_saved_memory_of_others_is_never_started_from(bed: Bed) -> None:
    web = bed.machine("web", letter="A")
    bed.hypervisor.define(web)
    bed.hypervisor.start(web.name)
    says(web, "A")
    bed.raw().lookupByName(web.name).managedSave(0)  # as libvirt-guests does when the host goes down
    bed.hypervisor.start(web.name)
    says(web, "hello from web")
    assert not bed.raw().lookupByName(web.name).hasManagedSaveImage()


def test_what_is_not_ours_is_left_alone(bed: Bed) -> None:
    hypervisor, web = bed.hypervisor, bed.machine("web")
    theirs = f"<domain type='qemu'><name>{web.name}</name><memory>32768</memory><os><type arch='x86_64'>hvm</type></os></domain>"
    bed.raw().defineXML(theirs)
    before = bed.raw().lookupByName(web.name).XMLDesc(0)
    verbs: list[Callable[[], object]] = [
        lambda: hypervisor.domain(web.name),
        lambda: hypervisor.define(web),
        lambda: hypervisor.start(web.name),
        lambda: hypervisor.kill(web.name),
        lambda: hypervisor.resume(web.name),
        lambda: hypervisor.undefine(web.name),
        lambda: hypervisor.thaw(web.name),
        lambda: hypervisor.restore(web, web.disks[0].path),
    ]
    for verb in verbs:
        with pytest.raises(NotOurs, match=web.name) as caught:
            verb()
        assert "virsh dominfo" in caught.value.hint
    assert hypervisor.domains(bed.kit_id) == ()
    assert bed.raw().lookupByName(web.name).XMLDesc(0) == before


def test_another_kits_machine_is_not_taken_over(bed: Bed) -> None:
    web = bed.machine("web")
    bed.hypervisor.define(web)
    other_kit = replace(web, mark=replace(web.mark, kit_id=str(uuid.uuid4())), uuid=str(uuid.uuid4()))
    with pytest.raises(NotOurs, match=bed.kit_id):
        bed.hypervisor.define(other_kit)
    bed.machines.add(web.name + "2")
    with pytest.raises(NotOurs, match=web.uuid):
        bed.hypervisor.define(replace(web, name=web.name + "2"))


def test_uefi_variables_are_made_from_the_template_and_kept(bed: Bed) -> None:
    nvram = bed.folder / "web.fd"
    web = replace(bed.machine("web"), firmware=Firmware.EFI, nvram=nvram, memory=256 << 20)
    bed.hypervisor.define(web)
    assert not nvram.exists()
    bed.hypervisor.start(web.name)
    says(web, "BdsDxe")
    live = bed.raw().lookupByName(web.name).XMLDesc(0)
    assert "secboot" not in live
    assert ".ms." not in live
    size = nvram.stat().st_size
    bed.hypervisor.undefine(web.name)
    assert nvram.stat().st_size == size > 0


def test_what_cannot_start_says_why(bed: Bed) -> None:
    lost = bed.machine("lost")
    lost.disks[0].path.unlink()
    huge = replace(bed.machine("huge"), memory=512 << 40)
    cases: list[tuple[MachineSpec, type[PocketcloudError], str]] = [(lost, Refused, r"lost\.img"), (huge, NoSpace, "memory")]
    for spec, error, words in cases:
        bed.hypervisor.define(spec)
        with pytest.raises(error, match=words) as caught:
            bed.hypervisor.start(spec.name)
        assert spec.name in caught.value.message
        assert caught.value.hint
        assert bed.state(spec) is DomainState.OFF


def test_a_qemu_that_died_is_told_from_one_that_ended(bed: Bed) -> None:
    web = bed.machine("web")
    bed.hypervisor.define(web)
    bed.hypervisor.start(web.name)
    says(web, "hello")
    os.kill(_qemu_of(web), signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while bed.state(web) is DomainState.RUNNING and time.monotonic() < deadline:
        time.sleep(0.05)
    assert bed.state(web) is DomainState.CRASHED
    bed.hypervisor.start(web.name)
    assert bed.state(web) is DomainState.RUNNING


def _qemu_of(spec: MachineSpec) -> int:
    """The process whose command line carries the machine's UUID."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"-uuid\0{spec.uuid}\0".encode() in (process / "cmdline").read_bytes():
                return int(process.name)
    raise AssertionError(f"no QEMU runs {spec.name}")


def test_a_guest_that_does_not_listen_is_neither_waited_for_nor_frozen(bed: Bed) -> None:
    web = bed.machine("web")
    bed.hypervisor.define(web)
    bed.hypervisor.start(web.name)
    says(web, "hello")
    began = time.monotonic()
    assert not bed.hypervisor.freeze(web.name)
    bed.hypervisor.thaw(web.name)
    assert not bed.hypervisor.trim(web.name)
    assert not bed.hypervisor.set_clock(web.name, time.time())
    bed.raw().lookupByName(web.name).suspend()
    assert bed.state(web) is DomainState.PAUSED
    assert not bed.hypervisor.shutdown(web.name, within=0.5)
    assert time.monotonic() - began < PATIENCE / 2
    assert not bed.hypervisor.trim(web.name)
    bed.hypervisor.kill(web.name)
    bed.hypervisor.thaw(web.name)
    assert not bed.hypervisor.trim(web.name)
    with pytest.raises(NotFound, match="nobody"):
        bed.hypervisor.trim("nobody")


@contextlib.contextmanager
def with_agent(bed: Bed) -> Iterator[tuple[MachineSpec, Agent]]:
    """A machine that runs, and the agent in it."""
    web = bed.machine("web")
    with Agent() as agent:
        bed.raw().defineXML(agent.domain_xml(bed.hypervisor.machine_xml(web)))
        bed.hypervisor.start(web.name)
        says(web, "hello")
        yield web, agent


def marked_frozen(bed: Bed, spec: MachineSpec) -> bool:
    return xml.read_domain(bed.raw().lookupByName(spec.name).XMLDesc(0)).frozen


def test_an_agent_freezes_and_thaws_also_after_a_restore(bed: Bed) -> None:
    with with_agent(bed) as (web, agent):
        assert bed.hypervisor.freeze(web.name)
        assert marked_frozen(bed, web)
        bed.hypervisor.save(web.name, bed.folder / "memory")
        bed.hypervisor.restore(web, bed.folder / "memory")
        assert marked_frozen(bed, web)
        assert bed.hypervisor.thaw(web.name)
        assert not marked_frozen(bed, web)
        assert bed.hypervisor.set_clock(web.name, time.time())
        assert agent.commands() == ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw", "guest-set-time"]


@pytest.mark.parametrize("thaw_fails", [False, True])
def test_an_agent_that_cannot_freeze_is_thawed_and_says_why(bed: Bed, thaw_fails: bool) -> None:
    """As where SELinux denies a mount, or the command is blocked in the guest: then thawing mostly is, too."""
    with with_agent(bed) as (web, agent):
        agent.fails["guest-fsfreeze-freeze"] = "the command has been disabled"
        if thaw_fails:
            agent.fails["guest-fsfreeze-thaw"] = "the command has been disabled"
        with pytest.raises(AgentFailed, match="has been disabled"):
            bed.hypervisor.freeze(web.name)
        assert agent.commands() == ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]
        assert not marked_frozen(bed, web)
        assert bed.hypervisor.thaw(web.name)


def test_an_agent_that_hangs_leaves_a_mark_until_it_thaws_or_is_told_as_thawed(bed: Bed) -> None:
    with with_agent(bed) as (web, agent):
        agent.hangs = True
        assert not bed.hypervisor.freeze(web.name)
        assert not bed.hypervisor.thaw(web.name)
        agent.hangs = False
        assert marked_frozen(bed, web), "what it was sent may still have an effect"
        assert bed.hypervisor.thaw(web.name)
        assert not marked_frozen(bed, web)
        assert bed.hypervisor.freeze(web.name)
        agent.fails["guest-fsfreeze-thaw"] = "not now"
        assert not bed.hypervisor.thaw(web.name)
        bed.hypervisor.forget_frozen(web.name)
        assert bed.hypervisor.thaw(web.name)


def test_many_at_once_through_one_connection(bed: Bed) -> None:
    specs = [bed.machine(name) for name in ("one", "two", "three", "four")]

    def raise_up(spec: MachineSpec) -> str:
        bed.hypervisor.define(spec)
        bed.hypervisor.start(spec.name)
        return says(spec, f"hello from {spec.mark.part}")

    with ThreadPoolExecutor(len(specs)) as pool:
        greetings = list(pool.map(raise_up, specs))
        list(pool.map(lambda spec: bed.hypervisor.undefine(spec.name), specs))
    assert [greeting.strip() for greeting in greetings] == [f"hello from {spec.mark.part}" for spec in specs]
    assert bed.hypervisor.domains(bed.kit_id) == ()


def test_networks_lease_name_and_follow_what_is_wanted(bed: Bed) -> None:
    hypervisor, subnet = bed.hypervisor, bed.free_subnet()
    web = Lease("52:54:00:0a:0b:01", subnet[10], "web")
    front = bed.network("front", subnet, web)
    hypervisor.ensure_network(front)
    hypervisor.ensure_network(front)
    (made,) = hypervisor.networks(bed.kit_id)
    assert (made.name, made.mark, made.active, made.subnet) == (front.name, front.mark, True, str(subnet))
    assert (made.kind, made.leases) == (NetworkKind.NAT, {web.mac: str(subnet[10])})
    assert any(taken.network == subnet and front.name in taken.holder for taken in hypervisor.subnets())
    gateway = str(subnet[1])
    assert asked(gateway, "web.demo.internal") == asked(gateway, "web") == str(subnet[10])

    index = socket.if_nametoindex(front.bridge)
    swapped = (replace(web, address=subnet[11]), Lease("52:54:00:0a:0b:02", subnet[10], "client"))
    hypervisor.ensure_network(replace(front, leases=swapped))
    assert asked(gateway, "web.demo.internal") == str(subnet[11])
    assert asked(gateway, "client") == str(subnet[10])
    assert socket.if_nametoindex(front.bridge) == index, "new leases restarted the network"
    live = bed.raw().networkLookupByName(front.name).XMLDesc(0)
    assert all(lease.mac in live for lease in swapped)

    moved = bed.free_subnet()
    hypervisor.ensure_network(replace(front, subnet=moved, leases=(replace(web, address=moved[10]),)))
    assert asked(str(moved[1]), "web") == str(moved[10])
    hypervisor.ensure_network(replace(front, kind=NetworkKind.ISOLATED, subnet=moved, leases=()))
    (made,) = hypervisor.networks(bed.kit_id)
    assert (made.kind, made.leases) == (NetworkKind.ISOLATED, {})
    hypervisor.remove_network(front.name)
    hypervisor.remove_network(front.name)
    assert hypervisor.networks(bed.kit_id) == ()


def test_a_network_whose_place_is_taken_is_refused_and_leaves_nothing(bed: Bed) -> None:
    hypervisor, subnet = bed.hypervisor, bed.free_subnet()
    front = bed.network("front", subnet)
    hypervisor.ensure_network(front)
    same_subnet = bed.network("back", subnet)
    same_bridge = replace(same_subnet, subnet=bed.free_subnet(), bridge=front.bridge)
    for spec in (same_subnet, same_bridge):
        with pytest.raises(Refused, match=r"already in use") as caught:
            hypervisor.ensure_network(spec)
        assert "virsh net-list" in caught.value.hint
    assert [network.name for network in hypervisor.networks(bed.kit_id)] == [front.name]


def test_a_network_of_others_is_left_alone(bed: Bed) -> None:
    front = bed.network("front", bed.free_subnet())
    bed.raw().networkDefineXML(f"<network><name>{front.name}</name></network>")
    with pytest.raises(NotOurs, match=front.name):
        bed.hypervisor.ensure_network(front)
    with pytest.raises(NotOurs, match=front.name):
        bed.hypervisor.check_network(front.name)
    bed.hypervisor.check_network(f"{front.name}x")
    with pytest.raises(NotOurs, match=front.name):
        bed.hypervisor.remove_network(front.name)
    assert bed.hypervisor.networks(bed.kit_id) == ()
    bed.raw().networkLookupByName(front.name)


def test_the_facts_of_the_daemon(hypervisor: LibvirtHypervisor) -> None:
    facts = hypervisor.facts()
    assert Arch.X86_64 in facts.emulated
    assert set(facts.kvm) <= set(facts.emulated)
    assert facts.libvirt.count(".") == facts.qemu.count(".") == 2


def test_a_daemon_that_does_not_run_is_named_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(HostLacks, match="does not answer") as caught:
        open_hypervisor(f"qemu:///system?socket={tmp_path / 'none'}")
    assert "virtlogd" in caught.value.hint or "systemctl start" in caught.value.hint


def test_a_lost_connection_is_opened_again(bed: Bed) -> None:
    hypervisor = LibvirtHypervisor.connect()
    before = _sockets()
    mine = LibvirtHypervisor.connect()
    for number in _sockets() - before:
        with socket.socket(fileno=os.dup(number)) as channel:
            channel.shutdown(socket.SHUT_RDWR)  # as if the daemon had gone
    mine.define(bed.machine("web"))
    assert [domain.mark.part for domain in mine.domains(bed.kit_id)] == ["web"]
    mine.close()
    hypervisor.close()


def _sockets() -> set[int]:
    numbers = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if entry.readlink().name.startswith("socket:"):
                numbers.add(int(entry.name))
    return numbers
