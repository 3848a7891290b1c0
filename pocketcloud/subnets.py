"""Lab subnets: which /24 a lab network gets. Pure: what is taken comes in as values, from the host and from libvirt."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network

from pocketcloud.errors import Refused
from pocketcloud.model.facts import Facts, Subnet

PREFIX = 24
_SHOWN = 5
_LEVELS = 8
"""Nesting deeper than this is not met; 10.77 to 10.84 are ours to choose from."""

# For hosts on which all of 10.0.0.0/8 is routed elsewhere, as company VPNs do. 198.18.0.0/15 is set aside for benchmarks
# (RFC 2544) and in use nowhere.
_ELSEWHERE = (IPv4Network("172.29.0.0/16"), IPv4Network("192.168.0.0/16"), IPv4Network("198.18.0.0/16"))


# What libvirt's own network, `default`, has wherever it is installed (its src/network/default.xml.in).
LIBVIRT_DEFAULT = IPv4Network("192.168.122.0/24")

INSIDE = tuple(
    Subnet(IPv4Network(network), f"what {software} takes in machines")
    for network, software in (
        (str(LIBVIRT_DEFAULT), "libvirt"),
        ("172.17.0.0/16", "Docker"),
        ("172.18.0.0/16", "Docker"),
        ("192.168.0.0/20", "Docker"),
        ("10.88.0.0/16", "Podman"),
        ("10.89.0.0/16", "Podman"),
        ("10.42.0.0/16", "k3s"),
        ("10.43.0.0/16", "k3s"),
        ("10.96.0.0/12", "kubeadm"),
        ("10.244.0.0/16", "flannel"),
        ("10.0.2.0/24", "QEMU's user network"),
        ("10.0.3.0/24", "lxc-net"),
        ("172.24.4.0/24", "OpenStack"),
    )
)
"""What software in machines takes without looking around, or the first of what it takes: a lab network of these numbers would be
hidden from machines by their own bridges. Out here they are nobody's, so a lab may be pinned to one.

Sources: libvirt as above; Docker's default-address-pools (moby, libnetwork/ipamutils: 172.17.0.0/16 and on, then /20 of
192.168.0.0/16); podman-network(1) and containers.conf(5) (default_subnet, default_subnet_pools); k3s server's --cluster-cidr and
--service-cidr; kubeadm's serviceSubnet; flannel's kube-flannel.yml; QEMU's -netdev user (net=); lxc-net(8) (LXC_NETWORK);
devstack's and packstack's provider network. Incus and LXD look for a 10.x.y.0/24 that is free as they see it.
"""


def supernet(facts: Facts) -> IPv4Network:
    """The /16 that lab networks of this host are taken from.

    10.77.0.0/16 on a computer that is nobody's guest. In a guest, the one after the last that its networks touch, 10.78.0.0/16 at
    the least: a pocketcloud inside a pocketcloud's machine must not route away the networks of the one it lives in, nor of
    those around that one, which are numbered below. Where none is left above, any that is free; where there is no room in 10.x
    at all, a private range elsewhere.
    """
    tens = [IPv4Network(f"10.{77 + level}.0.0/16") for level in range(_LEVELS)]
    if facts.virtualised:
        free = [net for net in tens if not any(net.overlaps(taken.network) for taken in facts.subnets)]
        touched = [tens.index(net) for net in tens if net not in free]
        # All of them: a route as wide as a VPN's, which says nothing of levels.
        level = max(touched) if touched and free else 0
        first = next((net for net in (*tens[level + 1 :], *tens[1:]) if net in free), tens[1])
    else:
        first = tens[0]
    candidates = (first, *_ELSEWHERE)
    return next((net for net in candidates if room(net, facts.subnets)), first)


def below(facts: Facts) -> IPv4Network:
    """The /16 that a pocketcloud takes inside of a machine of this host's labs, which sees no network but its lab's."""
    inside = dataclasses.replace(facts, virtualised="kvm", subnets=(Subnet(supernet(facts), "lab network"),))
    return supernet(inside)


def room(within: IPv4Network, taken: Sequence[Subnet]) -> int:
    """How many /24 of `within` a lab network could have: they overlap nothing that is taken, here or inside of machines."""
    return sum(1 for _ in _free(within, (*taken, *INSIDE), 0))


def choose(within: IPv4Network, taken: Sequence[Subnet], *, keep: IPv4Network | None = None, seed: str = "") -> IPv4Network:
    """A /24 of `within` that overlaps nothing `taken` (which must not hold the asking network's own subnet), nor what
    software in machines takes by itself.

    `keep` is answered as long as it is free, wherever it lies: a lab stays where it was. Else the search starts at a place
    that follows from `seed` (the names of kit, instance and network), so that the same lab comes to the same subnet and two
    kits seldom meet on one. Raises Refused, naming what takes the space, when there is none left; ValueError when `within`
    is smaller than a /24.
    """
    if keep is not None and not any(keep.overlaps(subnet.network) for subnet in taken):
        return keep
    if within.prefixlen > PREFIX:
        raise ValueError(f"{within} holds no /{PREFIX}")
    start = int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=8).digest(), "big")
    for network in _free(within, (*taken, *INSIDE), start):
        return network
    raise Refused(
        f"no /{PREFIX} is left for a lab network in {within}: taken by {holders(within, (*taken, *INSIDE))}",
        hint="take down a lab or end what routes these networks (a VPN?); pocketcloud check shows them",
    )


def holders(within: IPv4Network, taken: Sequence[Subnet]) -> str:
    """What takes space in `within`, for people: the first few by name."""
    near = [f"{subnet.network} ({subnet.holder})" for subnet in taken if subnet.network.overlaps(within)]
    return ", ".join(near[:_SHOWN]) + (f" and {len(near) - _SHOWN} more" if len(near) > _SHOWN else "")


def _free(within: IPv4Network, taken: Sequence[Subnet], start: int) -> Iterator[IPv4Network]:
    """The free /24 of `within`, each once, beginning with the one at index `start` (modulo their number)."""
    near = [subnet.network for subnet in taken if subnet.network.overlaps(within)]
    count = 1 << max(0, PREFIX - within.prefixlen)
    first = int(within.network_address) >> (32 - PREFIX)
    for step in range(count if within.prefixlen <= PREFIX else 0):
        network = IPv4Network(((first + (start + step) % count) << (32 - PREFIX), PREFIX))
        if not any(network.overlaps(other) for other in near):
            yield network
