"""IPv4 networks that are taken on this host: its addresses and routes, and those of the computers that it is a machine on.
libvirt's networks are the hypervisor room's.

Outside facts: iproute2's JSON (`ip -j`), and /proc/net/route (hexadecimal, in the host's byte order) where there is none;
/proc/net/ipv6_route (destination, prefix, ..., flags, device), whose flags are the kernel's uapi/linux/ipv6_route.h.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from pocketcloud.errors import HostLacks
from pocketcloud.host.bridges import LIKE_LIBVIRTS, read_active
from pocketcloud.host.files import text
from pocketcloud.model.facts import Subnet
from pocketcloud.system import CommandFailed, Runner

_DEFAULT_PREFIX = 7
"""Routes this wide stand for "everything else". VPNs split the default route in two halves or more, to go before the host's
own; the largest private network is a /8."""

_OWN_ROUTES = ("local", "broadcast", "multicast", "anycast")
_LOOPBACK = IPv4Network("127.0.0.0/8")


OUTER = "etc/pocketcloud/outer-subnets"
"""In a machine of a lab: the networks of the computer it runs on, and of those around that one, which it cannot see itself and
which labs in it must not hide. One IPv4 network a line, `#` begins a comment."""

_OUTER_LINES = 1000


def read_outer(root: Path) -> tuple[tuple[Subnet, ...], tuple[int, ...]]:
    """What the file OUTER names (absent: nothing), and the numbers of the lines that name no network, which are passed over: this
    computer has a use without them."""
    found: list[Subnet] = []
    bad: list[int] = []
    for number, line in enumerate(text(root, OUTER).splitlines()[:_OUTER_LINES], 1):
        said = line.partition("#")[0].strip()
        if said:
            try:
                found.append(Subnet(IPv4Network(said, strict=False), f"outside of this machine (/{OUTER})"))
            except ValueError:
                bad.append(number)
    return tuple(found), tuple(bad)


def read_subnets(root: Path, run: Runner) -> tuple[Subnet, ...]:
    """The networks of the host's addresses and routes (all tables) and of the file OUTER, without default routes, loopback and
    libvirt's bridges, each once, by address. Where iproute2 is not there or too old for JSON: the main routing table of /proc."""
    # libvirt's bridges have any name, which only root sees; those it gives by itself are known by it.
    bridges = frozenset(network.bridge for network in read_active(root) or ())
    try:
        addresses = json.loads(run(["ip", "-j", "-4", "addr"], timeout=10).out or "[]")
        routes = json.loads(run(["ip", "-j", "-4", "route", "show", "table", "all"], timeout=10).out or "[]")
        found = [*_addressed(addresses), *_routed(routes)]
    except (HostLacks, CommandFailed, ValueError, TypeError, AttributeError):
        found = list(_routed_in_proc(text(root, "proc/net/route")))
    return _without([*found, *(("", subnet) for subnet in read_outer(root)[0])], bridges)


def own_address(run: Runner) -> str:
    """The address that others know this host by: the one that packets to the world leave with; empty where there is no way out,
    or no iproute2 to ask. Nothing is sent."""
    try:
        # An address of documentation's (RFC 5737), which has no route of its own anywhere.
        routes = json.loads(run(["ip", "-j", "-4", "route", "get", "198.51.100.1"], timeout=10).out or "[]")
        return str(routes[0]["prefsrc"])
    except (HostLacks, CommandFailed, ValueError, TypeError, LookupError):
        return ""


def has_way_out(root: Path) -> bool:
    """Whether the kernel has a default route, IPv4 or IPv6, through any interface but the loopback."""
    for row in text(root, "proc/net/route").splitlines()[1:]:
        fields = row.split()
        if len(fields) >= 8 and fields[1] == fields[7] == "00000000" and fields[0] != "lo" and int(fields[3], 16) & 1:
            return True
    for row in text(root, "proc/net/ipv6_route").splitlines():
        fields = row.split()
        # The kernel keeps a rejecting default route on the loopback, where there is no other (RTF_REJECT, 0x200).
        if len(fields) >= 10 and fields[1] == "00" and fields[9] != "lo" and not int(fields[8], 16) & 0x200:
            return True
    return False


def _without(found: Iterable[tuple[str, Subnet]], bridges: frozenset[str]) -> tuple[Subnet, ...]:
    kept: dict[IPv4Network, Subnet] = {}
    for device, subnet in found:
        network = subnet.network
        if device in bridges or LIKE_LIBVIRTS.fullmatch(device) or network.prefixlen <= _DEFAULT_PREFIX:
            continue
        if not network.subnet_of(_LOOPBACK):
            kept.setdefault(network, subnet)
    return tuple(kept[network] for network in sorted(kept))


def _addressed(interfaces: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Subnet]]:
    for interface in interfaces:
        device = str(interface.get("ifname", ""))
        for info in interface.get("addr_info", ()):
            # On a point-to-point link the prefix belongs to the other end's address, and ours is one by itself.
            ours, theirs = info.get("local"), info.get("address")
            if theirs and ours:
                yield device, Subnet(IPv4Network(f"{ours}/32"), f"address on {device}")
            if theirs or ours:
                network = IPv4Network(f"{theirs or ours}/{info.get('prefixlen', 32)}", strict=False)
                yield device, Subnet(network, f"address on {device}")


def _routed(routes: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Subnet]]:
    for route in routes:
        destination = str(route.get("dst", "default"))
        if destination == "default" or route.get("type") in _OWN_ROUTES:
            continue
        device = str(route.get("dev", ""))
        via = f"route via {device}" if device else f"{route.get('type', 'unicast')} route"
        yield device, Subnet(IPv4Network(destination, strict=False), via)


def _routed_in_proc(table: str) -> Iterator[tuple[str, Subnet]]:
    for row in table.splitlines()[1:]:
        fields = row.split()
        if len(fields) >= 8:
            device, destination, mask = fields[0], fields[1], fields[7]
            try:
                prefix = int(mask, 16).bit_count()
                address = int.from_bytes(bytes.fromhex(destination), "big" if sys.byteorder == "big" else "little")
                network = IPv4Network((address, prefix), strict=False)
            except ValueError:
                continue
            yield device, Subnet(network, f"route via {device}")
