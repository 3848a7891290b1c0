"""Ways out of a lab's fenced network to what this host is on, and who is there to meet them: for guests that are network
namespaces and for real ones alike.

The LAN is a namespace that answers on addresses of all kinds of private networks. A guest tries by ESCAPER, a program for Python
without anything else; that it got out is told by its answers and, where none can come back, by what the LAN heard.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from ipaddress import IPv4Network

LAN = IPv4Network("203.0.113.0/28")
"""A public network that the host is on by a card of its own: it is the first address, a neighbour the second."""

VPN, OFFICE, CARRIER, METADATA = "10.251.7.9", "192.168.251.3", "100.64.3.3", "169.254.77.7"
LAN6 = "fd00:7777:1::2"
PORT = 7777


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way out. `way` is what ESCAPER does to `target`; `source` the address that it says it is (empty: its own)."""

    name: str
    way: str
    target: str
    source: str = ""


def attempts(other_machine: str, other_gateway: str) -> tuple[Attempt, ...]:
    """Those that are open with `lan: true`. The machine is on another lab's routed network, the gateway this host there."""
    neighbour, host = str(LAN[2]), str(LAN[1])
    return (
        Attempt("a neighbour of the host's, by TCP", "tcp", neighbour),
        Attempt("a neighbour of the host's, by UDP", "udp", neighbour),
        Attempt("a neighbour of the host's, by ICMP", "icmp", neighbour),
        Attempt("the host by its address on the LAN, by TCP", "tcp", host),
        Attempt("the host by its address on the LAN, by UDP", "udp", host),
        Attempt("the host by its address on the LAN, by ICMP", "icmp", host),
        Attempt("the company's VPN", "tcp", VPN),
        Attempt("the office's network, by ICMP", "icmp", OFFICE),
        Attempt("a carrier's network, by UDP", "udp", CARRIER),
        Attempt("the metadata of a cloud (link-local)", "tcp", METADATA),
        Attempt("a machine of another lab", "tcp", other_machine),
        Attempt("the host by its address in another lab", "tcp", other_gateway),
    )


CLOSED = (
    Attempt("a neighbour of the host's, as if from there", "deaf-udp", str(LAN[2]), source=str(LAN[5])),
    Attempt("all neighbours at once (directed broadcast)", "broadcast", str(LAN.broadcast_address)),
    Attempt("a neighbour of the host's, by IPv6", "deaf-udp6", LAN6, source="fd00:7777:2::9"),
)
"""Those that stay closed with `lan: true`, too: a lab has no such addresses, and answers would go to others."""

# Answers on the addresses that are its arguments, and says (a line each) what it heard by UDP.
ANSWERER = """
import contextlib, selectors, socket, sys
ready = selectors.DefaultSelector()
for address in sys.argv[1:]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if not address.endswith(".15"):
        ready.register(socket.create_server((address, PORT), family=family), selectors.EVENT_READ, True)
    udp = socket.socket(family, socket.SOCK_DGRAM)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    udp.bind((address, PORT))
    ready.register(udp, selectors.EVENT_READ, False)
print("listening", flush=True)
while True:
    for key, _ in ready.select():
        if key.data:
            key.fileobj.accept()[0].close()
        else:
            data, peer = key.fileobj.recvfrom(200)
            print(data.decode(), flush=True)
            with contextlib.suppress(OSError):
                key.fileobj.sendto(b"yes", peer)
""".replace("PORT", str(PORT))

# The attempts are its argument, as JSON; the names of those that were answered are what it prints. As root, with iproute2.
ESCAPER = """
import json, os, socket, struct, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
def ip(*words):
    return subprocess.run(("ip", *words), capture_output=True, text=True).stdout
way_out = ip("route", "show", "default").split()
gateway, card = way_out[way_out.index("via") + 1], way_out[way_out.index("dev") + 1]
def tcp(a):
    with socket.create_connection((a["target"], PORT), timeout=SECONDS):
        return True
def udp(a):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(SECONDS)
        sock.connect((a["target"], PORT))
        sock.send(a["name"].encode())
        return sock.recv(10) == b"yes"
def icmp(a):
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.settimeout(SECONDS)
        sock.connect((a["target"], 0))
        number = int.from_bytes(os.urandom(2), "big")
        checksum = 0x0800 + number + 1
        checksum = ~(checksum + (checksum >> 16)) & 0xffff
        sock.send(struct.pack("!BBHHH", 8, 0, checksum, number, 1))
        while True:
            said = sock.recv(200)
            kind, _, _, back, _ = struct.unpack("!BBHHH", said[(said[0] & 15) * 4:][:8])
            if kind == 0 and back == number:
                return True
def deaf(family, a, width):
    ip("address", "add", a["source"] + width, "dev", card, *(["nodad"] if family == socket.AF_INET6 else []))
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((a["source"], 0))
            for _ in range(3):
                sock.sendto(a["name"].encode(), (a["target"], PORT))
    finally:
        ip("address", "delete", a["source"] + width, "dev", card)
def deaf_udp(a):
    deaf(socket.AF_INET, a, "/32")
def deaf_udp6(a):
    # The host has no address of IPv6 here, but it is the gateway's card that takes packets in.
    mac = ip("neigh", "show", gateway, "dev", card).split()
    ip("-6", "route", "add", a["target"] + "/128", "dev", card)
    ip("-6", "neigh", "replace", a["target"], "lladdr", mac[mac.index("lladdr") + 1], "dev", card)
    deaf(socket.AF_INET6, a, "/64")
def broadcast(a):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for _ in range(3):
            sock.sendto(a["name"].encode(), (a["target"], PORT))
ways = {"tcp": tcp, "udp": udp, "icmp": icmp, "deaf-udp": deaf_udp, "deaf-udp6": deaf_udp6, "broadcast": broadcast}
def passed(a):
    try:
        return bool(ways[a["way"]](a))
    except TimeoutError:
        return False
    except OSError:
        return False
with ThreadPoolExecutor(32) as pool:
    wanted = json.loads(sys.argv[1])
    print(json.dumps([a["name"] for a, there in zip(wanted, pool.map(passed, wanted)) if there]))
""".replace("PORT", str(PORT))


def escaper_argv(python: str, tried: tuple[Attempt, ...], seconds: float) -> list[str]:
    """What a guest runs to try them all at once, each for so many seconds."""
    return [python, "-I", "-c", ESCAPER.replace("SECONDS", str(seconds)), json.dumps([asdict(attempt) for attempt in tried])]
