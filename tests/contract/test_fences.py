"""Where machines on `nat` and `routed` networks get to: real libvirt networks and nftables, between network namespaces.

A guest, a LAN and the world beyond it are namespaces that the test makes: packets take the way that a machine's take, from a port
of the network's bridge through the host. All names and subnets are random; what is made here is removed, failed or not.
"""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from pocketcloud.hypervisor import Hypervisor, open_hypervisor
from pocketcloud.hypervisor.firewall import Fences
from pocketcloud.model.lab import NetworkKind
from pocketcloud.model.machine import Mark, NetworkSpec
from pocketcloud.model.names import joined, network_uuid
from pocketcloud.subnets import choose
from pocketcloud.system import run
from tests.labkit import raw_libvirt
from tests.lan import ANSWERER, CARRIER, CLOSED, LAN, LAN6, METADATA, OFFICE, PORT, VPN, Attempt, attempts, escaper_argv

# What a conference's LAN may have: private networks of all kinds, and a public one that the host is on. Ten ways out.
PRIVATE = (
    "10.251.7.9",
    "10.252.0.1",
    "172.16.9.9",
    "172.31.255.1",
    "192.168.251.3",
    "192.168.252.77",
    "100.64.3.3",
    "169.254.77.7",
)
ESCAPES = (*PRIVATE, str(LAN[2]), str(LAN[3]))
WORLD = "198.51.100.77"

# Answers on the addresses that are its arguments, to TCP and to UDP: by UDP an answer has to come from where it was asked.
SERVER = """
import contextlib, selectors, socket, sys
ready = selectors.DefaultSelector()
for address in sys.argv[1:]:
    ready.register(socket.create_server((address, PORT)), selectors.EVENT_READ, True)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((address, PORT))
    ready.register(udp, selectors.EVENT_READ, False)
print("listening", flush=True)
while True:
    for key, _ in ready.select():
        if key.data:
            key.fileobj.accept()[0].close()
        else:
            data, peer = key.fileobj.recvfrom(100)
            with contextlib.suppress(OSError):  # there may be no way back
                key.fileobj.sendto(peer[0].encode(), peer)
"""
# Which of its arguments answer, by TCP and by UDP; and as whom those saw it.
CLIENT = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def tcp(address):
    with socket.create_connection((address, PORT), timeout=SECONDS):
        return True
def udp(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(SECONDS)
        sock.connect((address, PORT))
        sock.send(b"?")
        return sock.recv(100).decode()
def reached(way, address):
    try:
        return way(address)
    except OSError:
        return False
wanted = sys.argv[1:]
with ThreadPoolExecutor(32) as pool:
    by = {name: pool.map(lambda address: reached(way, address), wanted) for name, way in (("tcp", tcp), ("udp", udp))}
    by = {name: list(answers) for name, answers in by.items()}
    found = {name: [address for address, there in zip(wanted, answers) if there] for name, answers in by.items()}
found["seen"] = sorted({said for said in by["udp"] if said})
print(json.dumps(found))
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass
class Place:
    """A network namespace with one interface, whose other end `outside` is the host's."""

    name: str
    outside: str

    def ip(self, *words: str) -> None:
        ip("-n", self.name, *words)

    def plug(self, bridge: str, address: str, gateway: str) -> None:
        """Put it on a lab's network as a machine is."""
        ip("link", "set", self.outside, "master", bridge)
        self.ip("address", "add", f"{address}/24", "dev", "eth0")
        self.ip("route", "add", "default", "via", gateway)

    def python(self, program: str, seconds: float) -> list[str]:
        text = program.replace("PORT", str(PORT)).replace("SECONDS", str(seconds))
        return ["ip", "netns", "exec", self.name, sys.executable, "-I", "-c", text]

    @contextmanager
    def serving(self, *addresses: str) -> Iterator[None]:
        """Answer on these addresses."""
        with subprocess.Popen([*self.python(SERVER, 0), *addresses], stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == b"listening\n"
            try:
                yield
            finally:
                server.kill()

    def reached(self, *addresses: str, seconds: float = 1.0) -> dict[str, list[str]]:
        """Those that answer, by `tcp` and by `udp`."""
        answer = self._ask(*addresses, seconds=seconds)
        return {way: answer[way] for way in ("tcp", "udp")}

    def seen_by(self, address: str, seconds: float = 5.0) -> list[str]:
        """The address that this place has for who answers there; none if nobody does."""
        return self._ask(address, seconds=seconds)["seen"]

    def _ask(self, *addresses: str, seconds: float) -> dict[str, list[str]]:
        argv = [*self.python(CLIENT, seconds), *addresses]
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
        answer: dict[str, list[str]] = json.loads(done.stdout)
        return answer


@pytest.fixture
def place() -> Iterator[Callable[[], Place]]:
    with ExitStack() as undo:

        def make() -> Place:
            token = secrets.token_hex(3)
            made = Place(f"pctest-{token}", f"pct{token}o")
            ip("netns", "add", made.name)
            undo.callback(subprocess.run, ["ip", "netns", "delete", made.name], check=True)
            ip("link", "add", made.outside, "type", "veth", "peer", "name", "eth0", "netns", made.name)
            # By itself: a namespace takes its interfaces, and their routes, with it only some time after it was deleted.
            undo.callback(ip, "link", "delete", made.outside)
            made.ip("link", "set", "lo", "up")
            made.ip("link", "set", "eth0", "up")
            ip("link", "set", made.outside, "up")
            return made

        yield make


@pytest.fixture
def lan(place: Callable[[], Place]) -> Iterator[Place]:
    """The LAN that this host is on, with a router to the world; it answers on all its addresses."""
    there = place()
    ip("address", "add", f"{LAN[1]}/{LAN.prefixlen}", "dev", there.outside)
    there.ip("address", "add", f"{LAN[2]}/{LAN.prefixlen}", "dev", "eth0")
    there.ip("address", "add", f"{LAN[3]}/{LAN.prefixlen}", "dev", "eth0")
    for address in (*PRIVATE, WORLD):
        there.ip("address", "add", f"{address}/32", "dev", "lo")
        ip("route", "add", f"{address}/32", "via", str(LAN[2]))  # goes with the interface
    with there.serving(*ESCAPES, WORLD):
        yield there


@pytest.fixture
def hypervisor() -> Hypervisor:
    return open_hypervisor()


@pytest.fixture
def network(hypervisor: Hypervisor) -> Iterator[Callable[..., NetworkSpec]]:
    kit, kit_id = f"pctest{secrets.token_hex(3)}", str(uuid.uuid4())
    made: list[NetworkSpec] = []

    def make(kind: NetworkKind = NetworkKind.NAT, within: str = "10.224.0.0/12") -> NetworkSpec:
        part = f"net{len(made)}"
        subnet = choose(IPv4Network(within), hypervisor.subnets(), seed=kit)
        name, identity = joined(kit, "demo", part), str(network_uuid(kit_id, "demo", part))
        bridge = f"pct-{secrets.token_hex(4)}"
        spec = NetworkSpec(
            name, identity, Mark(kit, kit_id, "demo", part), bridge, kind, subnet, "demo.internal", (), fenced=(LAN,)
        )
        made.append(spec)
        hypervisor.ensure_network(spec)
        return spec

    yield make
    for spec in made:
        hypervisor.remove_network(spec.name)
    assert not {spec.bridge for spec in made} & set(Fences(run).bridges())


def plug(guest: Place, spec: NetworkSpec, host: int = 9) -> str:
    """Put the guest on a network as a machine is, and return its address."""
    address = str(spec.range[host])
    guest.plug(spec.bridge, address, str(spec.range[1]))
    return address


def connect(there: Place) -> None:
    """Put this host on that place as on a LAN, beyond which are a VPN, an office and whatever else has private addresses."""
    ip("address", "add", f"{LAN[1]}/{LAN.prefixlen}", "dev", there.outside)
    ip("-6", "address", "add", "fd00:7777:1::1/64", "dev", there.outside, "nodad")
    there.ip("-6", "address", "add", f"{LAN6}/64", "dev", "eth0", "nodad")
    there.ip("address", "add", f"{LAN[2]}/{LAN.prefixlen}", "broadcast", str(LAN.broadcast_address), "dev", "eth0")
    for address in (VPN, OFFICE, CARRIER, METADATA):
        there.ip("address", "add", f"{address}/32", "dev", "lo")
        ip("route", "add", f"{address}/32", "via", str(LAN[2]))  # goes with the interface


@pytest.mark.usefixtures("lan")
def test_a_lab_reaches_the_world_and_not_the_lan(
    place: Callable[[], Place], network: Callable[[], NetworkSpec], hypervisor: Hypervisor
) -> None:
    guest, spec = place(), network()
    plug(guest, spec)
    assert guest.reached(WORLD, seconds=10) == {"tcp": [WORLD], "udp": [WORLD]}
    assert guest.reached(*ESCAPES) == {"tcp": [], "udp": []}
    # By another source address, and by a route of its own that says the LAN is next door.
    guest.ip("address", "add", f"{LAN[5]}/{LAN.prefixlen}", "dev", "eth0")
    guest.ip("route", "replace", "172.16.0.0/12", "via", str(spec.range[1]), "src", str(LAN[5]))
    assert guest.reached("172.16.9.9", str(LAN[2])) == {"tcp": [], "udp": []}
    guest.ip("address", "delete", f"{LAN[5]}/{LAN.prefixlen}", "dev", "eth0")

    # The lab's file is changed while its machines run; and back.
    hypervisor.ensure_network(replace(spec, fenced=None))
    assert guest.reached(*ESCAPES, seconds=10) == {"tcp": list(ESCAPES), "udp": list(ESCAPES)}
    hypervisor.ensure_network(spec)
    assert guest.reached(WORLD, *ESCAPES) == {"tcp": [WORLD], "udp": [WORLD]}


@contextmanager
def heard(place: str, folder: Path, *addresses: str) -> Iterator[Path]:
    """Answer on addresses in a namespace (empty: on this host itself); a file with what is heard there by UDP."""
    log = folder / f"heard-{place or 'host'}"
    where = ["ip", "netns", "exec", place] if place else []
    with (
        log.open("wb") as out,
        subprocess.Popen([*where, sys.executable, "-I", "-c", ANSWERER, *addresses], stdout=out) as server,
    ):
        try:
            deadline = time.monotonic() + 30
            while not log.read_text().startswith("listening"):
                assert time.monotonic() < deadline
                assert server.poll() is None
                time.sleep(0.05)
            yield log
        finally:
            server.kill()


def test_no_way_out_of_a_nat_lab_that_is_not_meant_and_all_of_them_where_it_is(
    place: Callable[[], Place], network: Callable[..., NetworkSpec], hypervisor: Hypervisor, tmp_path: Path
) -> None:
    """The attempts of tests/lan.py: twelve that `lan: true` opens, three that nothing does."""
    guest, there, far, spec = place(), place(), place(), network()
    plug(guest, spec)
    other = network(NetworkKind.ROUTED)
    machine = plug(far, other)
    connect(there)
    tried = attempts(machine, str(other.range[1]))
    with ExitStack() as stack:
        outside = (str(LAN[2]), VPN, CARRIER, METADATA, LAN6, str(LAN.broadcast_address))
        log = stack.enter_context(heard(there.name, tmp_path, *outside))
        stack.enter_context(heard(far.name, tmp_path, machine))
        here = stack.enter_context(heard("", tmp_path, str(LAN[1]), str(other.range[1])))

        def passed(*tried: Attempt, seconds: float) -> set[str]:
            argv = ["ip", "netns", "exec", guest.name, *escaper_argv(sys.executable, tried, seconds)]
            answered: list[str] = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout)
            known = {attempt.name for attempt in tried}
            return {*answered, *(known & {*log.read_text().splitlines(), *here.read_text().splitlines()})}

        # The gateway is this host, by the one address that is the lab's own; the guest learns of it there.
        assert passed(Attempt("the gateway", "icmp", str(spec.range[1])), seconds=10) == {"the gateway"}
        assert passed(*tried, *CLOSED, seconds=1.0) == set()
        hypervisor.ensure_network(replace(spec, fenced=None))
        assert passed(*tried, *CLOSED, seconds=10) == {attempt.name for attempt in tried}
        hypervisor.ensure_network(spec)
        again = tuple(replace(attempt, name=f"again: {attempt.name}") for attempt in (*tried, *CLOSED))
        assert passed(*again, seconds=1.0) == set()
        # Whoever may, is heard: silence above was not deafness.
        for family, target in ((socket.AF_INET, str(LAN.broadcast_address)), (socket.AF_INET6, LAN6)):
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                sock.sendto(f"this host to {target}".encode(), (target, PORT))
        deadline = time.monotonic() + 10
        while log.read_text().count("this host to") < 2:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)


@pytest.mark.parametrize("kind", [NetworkKind.NAT, NetworkKind.ROUTED, NetworkKind.ISOLATED])
def test_the_host_is_met_by_none_of_its_addresses_but_the_gateways(
    kind: NetworkKind, place: Callable[[], Place], network: Callable[..., NetworkSpec], hypervisor: Hypervisor, tmp_path: Path
) -> None:
    guest, far, link, spec = place(), place(), place(), network(kind)
    plug(guest, spec)
    # A lab where labs are that find no room elsewhere; the public address that a mobile link or PPP gives this host.
    other = network(NetworkKind.ROUTED, within="198.18.0.0/16")
    machine, gateway, mobile, six = plug(far, other), str(other.range[1]), "203.0.113.77", "fd00:7777:1::1"
    ip("address", "add", mobile, "peer", "203.0.113.78/32", "dev", link.outside)
    ip("-6", "address", "add", f"{six}/64", "dev", link.outside, "nodad")
    # libvirt has no IPv6 there; somebody may.
    Path("/proc/sys/net/ipv6/conf", spec.bridge, "disable_ipv6").write_text("0")
    ip("-6", "address", "add", "fd00:7777:3::1/64", "dev", spec.bridge, "nodad")
    guest.ip("-6", "address", "add", "fd00:7777:3::9/64", "dev", "eth0", "nodad")
    guest.ip("-6", "route", "add", "default", "via", "fd00:7777:3::1")
    closed = (mobile, gateway, machine, six, "fd00:7777:3::1")
    met = [mobile, gateway] if kind is NetworkKind.ISOLATED else [mobile, gateway, machine]
    with heard("", tmp_path, mobile, gateway, six, "fd00:7777:3::1", own := str(spec.range[1])), far.serving(machine):
        hypervisor.ensure_network(replace(spec, fenced=None))
        everywhere = {"tcp": [own, *met, six, "fd00:7777:3::1"], "udp": [own, *met]}
        deadline = time.monotonic() + 60
        # Neighbours of IPv6 are not found at the first go, where all is so new.
        while (found := guest.reached(own, *closed)) != everywhere:
            assert time.monotonic() < deadline, found
        hypervisor.ensure_network(spec)
        assert guest.reached(own, *closed) == {"tcp": [own], "udp": [own]}


def test_a_routed_lab_is_met_by_its_own_addresses(
    place: Callable[[], Place], lan: Place, network: Callable[..., NetworkSpec], hypervisor: Hypervisor
) -> None:
    guest, spec = place(), network(NetworkKind.ROUTED)
    own = plug(guest, spec)
    neighbour = str(LAN[2])
    with guest.serving(own):
        # Nobody has told the LAN the way yet.
        assert guest.seen_by(WORLD, seconds=0.7) == []
        assert lan.seen_by(own, seconds=0.7) == []
        lan.ip("route", "add", str(spec.subnet), "via", str(LAN[1]))
        assert lan.seen_by(own) == [neighbour]
        assert guest.seen_by(WORLD) == [own]
        # It answers those who come in, and begins nothing with them.
        assert guest.reached(*ESCAPES) == {"tcp": [], "udp": []}
        hypervisor.ensure_network(replace(spec, fenced=None))
        assert guest.reached(*ESCAPES, seconds=10) == {"tcp": list(ESCAPES), "udp": list(ESCAPES)}
        assert guest.seen_by(neighbour) == [own]
    (made,) = [found for found in hypervisor.networks(spec.mark.kit_id) if found.name == spec.name]
    assert (made.kind, made.subnet) == (NetworkKind.ROUTED, str(spec.subnet))


def test_labs_do_not_reach_each_other_and_machines_of_one_do(
    place: Callable[[], Place], network: Callable[[], NetworkSpec]
) -> None:
    one, neighbour, other = place(), place(), place()
    first, second = network(), network()
    plug(one, first)
    near, far = plug(neighbour, first, 10), plug(other, second)
    with neighbour.serving(near), other.serving(far):
        assert one.reached(near, far, seconds=3) == {"tcp": [near], "udp": [near]}


def test_the_last_fence_takes_the_table_with_it_and_no_other(hypervisor: Hypervisor, network: Callable[[], NetworkSpec]) -> None:
    first, second = network(), network()
    assert {first.bridge, second.bridge} <= set(Fences(run).bridges())
    hypervisor.remove_network(first.name)
    left = Fences(run).bridges()
    assert second.bridge in left
    assert first.bridge not in left
    hypervisor.remove_network(first.name)  # absent is success


def test_the_fence_of_a_network_that_others_took_away_goes_with_the_next_change(network: Callable[[], NetworkSpec]) -> None:
    lost = network()
    connection = raw_libvirt()
    handle = connection.networkLookupByName(lost.name)
    handle.destroy()
    # Not running is not gone: it keeps its fence while libvirt knows it.
    kept = network()
    assert {lost.bridge, kept.bridge} <= set(Fences().bridges())
    handle.undefine()
    connection.close()
    other = network()  # which sweeps
    assert lost.bridge not in Fences().bridges()
    assert {kept.bridge, other.bridge} <= set(Fences().bridges())


def test_a_fence_stays_while_its_bridge_is_there(hypervisor: Hypervisor, network: Callable[[], NetworkSpec]) -> None:
    bridge = f"pct-{secrets.token_hex(4)}"
    ip("link", "add", bridge, "type", "bridge")
    fences = Fences()
    spec = network()
    try:
        fences.settle(replace(spec, bridge=bridge))
        hypervisor.ensure_network(spec)  # which sweeps
        assert {bridge, spec.bridge} <= set(fences.bridges())
    finally:
        ip("link", "delete", bridge)
    hypervisor.remove_network(spec.name)
    assert not {bridge, spec.bridge} & set(fences.bridges())
