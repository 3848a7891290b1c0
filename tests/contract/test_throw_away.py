"""Throw-away guests against the real daemon: heard, ended, and gone, with what others left. The guests are boot sectors."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from pocketcloud import profiles
from pocketcloud.bases.install.machine import (
    CONSOLE,
    DISPOSABLE,
    KIT_ID,
    PREFIX,
    End,
    GuestOrder,
    machine_spec,
    networked,
    run_guest,
    sweep,
    throw_away,
)
from pocketcloud.check.boot_disk import boot_disk
from pocketcloud.host import read_facts
from pocketcloud.hypervisor import DomainState
from pocketcloud.hypervisor.libvirt import LibvirtHypervisor
from pocketcloud.model.base import Arch, Firmware
from pocketcloud.model.lab import NetworkKind
from pocketcloud.model.machine import DiskSpec, Mark
from pocketcloud.model.names import Name
from tests.bootsector import write_disk

PATIENCE = 60.0


@dataclass
class Ear:
    """A watcher that has heard enough when the console says `until`."""

    until: str = "\0"
    heard: dict[str, bytes] = field(default_factory=dict)

    def hear(self, source: str, said: bytes, now: float) -> None:
        assert now > 0
        self.heard[source] = self.heard.get(source, b"") + said

    def enough(self, now: float) -> bool:
        assert now > 0
        return self.until.encode() in self.heard.get(CONSOLE, b"")


@pytest.fixture
def hypervisor() -> Iterator[LibvirtHypervisor]:
    connected = LibvirtHypervisor.connect()
    yield connected
    connected.close()


@pytest.fixture
def order() -> Iterator[GuestOrder]:
    """A guest of a purpose of its own, whose disk says `hello`, and sleeps."""
    folder = Path(tempfile.mkdtemp(prefix="pocketcloud-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    facts = read_facts()
    yield GuestOrder(
        purpose=Name(f"test-{uuid.uuid4().hex[:8]}"),
        title="a guest of a test",
        folder=folder,
        arch=Arch.X86_64,
        facts=facts,
        profile=profiles.find("emulated"),
        memory=32 << 20,
        vcpus=1,
        firmware=Firmware.BIOS,
        disks=(DiskSpec("vda", write_disk(folder / "disk.img", "hello"), "raw", DISPOSABLE),),
        ports=("org.example.0",),
    )
    shutil.rmtree(folder)


def gone(hypervisor: LibvirtHypervisor, order: GuestOrder) -> bool:
    mine = [domain.mark.instance for domain in hypervisor.domains(KIT_ID)] + [
        n.mark.instance for n in hypervisor.networks(KIT_ID)
    ]
    return order.purpose not in mine


def test_a_guest_that_switches_itself_off_is_heard_to_its_end(hypervisor: LibvirtHypervisor, order: GuestOrder) -> None:
    order.disks[0].path.write_bytes(boot_disk(Arch.X86_64, "the last words"))
    ear = Ear()
    outcome = run_guest(hypervisor, order, ear)
    assert outcome.end is End.OFF
    assert outcome.seconds > 0
    assert b"the last words" in ear.heard[CONSOLE]
    assert gone(hypervisor, order)
    assert not list(Path("/var/log/libvirt/qemu").glob(f"*{order.purpose}*"))
    assert b"the last words" in (order.folder / "console.log").read_bytes(), "what it said is left in its folder"


@pytest.mark.parametrize("kind", [NetworkKind.NAT, NetworkKind.ISOLATED])
def test_a_guest_has_an_address_on_a_network_that_goes_with_it(
    hypervisor: LibvirtHypervisor, order: GuestOrder, kind: NetworkKind
) -> None:
    with (
        networked(hypervisor, order.facts, order.purpose, kind) as made,
        throw_away(hypervisor, replace(order, network=made)) as guest,
    ):
        domain, (network,) = guest.domain(), [n for n in hypervisor.networks(KIT_ID) if n.mark.instance == order.purpose]
        assert domain is not None
        assert domain.state is DomainState.RUNNING
        assert network.kind is kind
        assert list(network.leases.values()) == [str(guest.address)]
        with socket.create_server((str(made.host), 0)) as server:
            assert server.getsockname()[0] == str(made.host), "the host can serve it there"
    assert gone(hypervisor, order)


@pytest.mark.slow
def test_a_watcher_that_has_heard_enough_ends_it(hypervisor: LibvirtHypervisor, order: GuestOrder) -> None:
    assert run_guest(hypervisor, order, Ear("hello")).end is End.STOPPED
    assert gone(hypervisor, order)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["killed", "removed"])
def test_one_that_others_end_is_told_apart(hypervisor: LibvirtHypervisor, order: GuestOrder, way: str) -> None:
    name = machine_spec(order).name

    class Traitor(Ear):
        def hear(self, source: str, said: bytes, now: float) -> None:
            super().hear(source, said, now)
            if b"hello" in self.heard.get(CONSOLE, b""):
                hypervisor.kill(name) if way == "killed" else hypervisor.undefine(name)

    assert run_guest(hypervisor, order, Traitor()).end is End.KILLED
    assert gone(hypervisor, order)


@pytest.mark.slow
def test_an_exception_leaves_nothing(hypervisor: LibvirtHypervisor, order: GuestOrder) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        networked(hypervisor, order.facts, order.purpose) as made,
        throw_away(hypervisor, replace(order, network=made)),
    ):
        raise KeyboardInterrupt
    assert gone(hypervisor, order)


def test_what_the_dead_left_is_swept_and_what_the_living_have_is_not(hypervisor: LibvirtHypervisor, order: GuestOrder) -> None:
    with subprocess.Popen(["sleep", "1000"]) as living:
        try:
            began = Path(f"/proc/{living.pid}/stat").read_text().rpartition(")")[2].split()[19]
            # A process of the same number that began at another time is another one.
            parts = {"dead": "999999999-1", "other": f"{living.pid}-1", "alive": f"{living.pid}-{began}"}
            names = {}
            for what, part in parts.items():
                spec = replace(
                    machine_spec(order), name=f"{PREFIX}.{order.purpose}.{part}", uuid=str(uuid.uuid4()),
                    mark=Mark(PREFIX, KIT_ID, order.purpose, part),
                )  # fmt: skip
                hypervisor.define(spec)
                names[what] = spec.name
            sweep(hypervisor)
            assert {what for what, name in names.items() if hypervisor.domain(name)} == {"alive"}
        finally:
            living.kill()
    deadline = time.monotonic() + PATIENCE
    while not gone(hypervisor, order):
        assert time.monotonic() < deadline
        sweep(hypervisor)
    with contextlib.suppress(ProcessLookupError):
        living.kill()


def test_two_may_sweep_at_once(hypervisor: LibvirtHypervisor, order: GuestOrder) -> None:
    for number in range(20):
        name = f"{PREFIX}.{order.purpose}.999999999-{number}"
        mark = Mark(PREFIX, KIT_ID, order.purpose, f"999999999-{number}")
        hypervisor.define(replace(machine_spec(order), name=name, uuid=str(uuid.uuid4()), mark=mark))
    others = [LibvirtHypervisor.connect() for _ in range(3)]
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(sweep, other) for other in others]:
            done.result()
    for other in others:
        other.close()
    assert gone(hypervisor, order)
