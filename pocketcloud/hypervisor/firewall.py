"""The fence around lab networks: their machines reach the world beyond this host's networks (of kind `isolated`, not even that),
not those.

libvirt lets out whatever comes from such a network, to the conference's LAN as well as to the world. Our rules stand in a table
of nftables of our own, beside libvirt's and everybody else's: a packet has to pass all of them, so none is opened by ours.

Outside facts: nft(8) (verdict maps, `reject`, priorities; scripts of `nft -f` take effect whole or not at all); private IPv4
ranges are those of RFC 1918, RFC 6598 (carriers' networks), RFC 3927 (link-local), and RFC 2544 (benchmarks), where labs are
that find no room elsewhere.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network, collapse_addresses
from pathlib import Path

from pocketcloud.errors import HostLacks, PocketcloudError
from pocketcloud.model.machine import NetworkSpec
from pocketcloud.system import CommandFailed, Runner, run

TABLE = "inet pocketcloud"
_MAP = "fences"
PRIVATE = tuple(
    map(IPv4Network, ("10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15"))
)
_TIMEOUT = 30.0
_LOCK = Path("/run/pocketcloud/locks/firewall.lock")
_INTERFACES = "/sys/class/net"


class Fences:
    """The fences of one host. Nothing is kept of them but what nftables have."""

    def __init__(self, run: Runner = run) -> None:
        self._run = run

    def settle(self, spec: NetworkSpec) -> None:
        """Have the network fenced, or not, as it says. Raises HostLacks where it is to be and there are no nftables."""
        if spec.fenced is None:
            self.remove(spec.bridge)
            return
        try:
            self._change(fence_script(spec.bridge, spec.range, spec.fenced))
        except (CommandFailed, HostLacks) as failure:
            hint = "install nftables (pocketcloud check names the package)"
            if spec.kind.forwards:
                hint += ", or say `lan: true` of the network in the lab file"
            text = f"network {spec.name} cannot be kept out of this host's networks: {failure.message.splitlines()[-1]}"
            raise HostLacks(text, hint=hint) from failure

    def remove(self, bridge: str) -> None:
        """Take a bridge's fence down, and the table with the last; none is success, as it is where there are no nftables."""
        with self._held():
            self._take_down((bridge,))

    def sweep(self, known: Callable[[], Collection[str]]) -> None:
        """Take the fences down whose networks others took away. `known` asks libvirt for the bridges of all its networks.

        It is asked while no fence can be put up, and fences are put up around networks that libvirt knows: so no fence goes
        that another command has just made. One whose bridge is there stays, whoever made that bridge.
        """
        with self._held():
            if fenced := self.bridges():
                kept = known()
                self._take_down([bridge for bridge in fenced if bridge not in kept and not Path(_INTERFACES, bridge).exists()])

    def bridges(self) -> tuple[str, ...]:
        """The bridges that have a fence, by name; none where that cannot be asked."""
        return self.seen() or ()

    def seen(self) -> tuple[str, ...] | None:
        """The same; None where it cannot be asked: there is no nft, or this is not root, who alone is told."""
        try:
            said = self._run(["nft", "list", "map", *TABLE.split(), _MAP], timeout=_TIMEOUT).out
        except PocketcloudError:
            try:
                self._run(["nft", "list", "tables"], timeout=_TIMEOUT)
            except PocketcloudError:
                return None
            return ()
        return tuple(sorted(re.findall(r'"([^"]+)" : jump', said)))

    def _take_down(self, bridges: Collection[str]) -> None:
        fenced = self.bridges()
        gone = [bridge for bridge in fenced if bridge in bridges]
        if gone:
            self._run(["nft", "-f", "-"], stdin=_removal(gone, last=len(gone) == len(fenced)).encode(), timeout=_TIMEOUT)

    def _change(self, script: str) -> None:
        with self._held():
            self._run(["nft", "-f", "-"], stdin=script.encode(), timeout=_TIMEOUT)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Against another command that takes the last fence away, and the table with it, just as one is put up."""
        _LOCK.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with _LOCK.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def fence_script(bridge: str, own: IPv4Network, networks: Iterable[IPv4Network]) -> str:
    """What nft is told: all of it is there afterwards, whatever of it was there before. `own` is the subnet behind the fence,
    where machines have the host itself as their gateway and name server; by its other addresses they do not reach it either."""
    closed = ", ".join(str(net) for net in collapse_addresses((*PRIVATE, *networks)))
    return "\n".join(
        (
            f"add table {TABLE}",
            f"add chain {TABLE} forward {{ type filter hook forward priority filter - 10; policy accept; }}",
            f"add chain {TABLE} input {{ type filter hook input priority filter - 10; policy accept; }}",
            f"add map {TABLE} {_MAP} {{ type ifname : verdict; }}",
            # Answers to those who may come in: machines of other labs, who then pass their own fence, and this host.
            *(
                line
                for chain in ("forward", "input")
                for line in (
                    f"flush chain {TABLE} {chain}",
                    f"add rule {TABLE} {chain} ct state established,related accept",
                    f"add rule {TABLE} {chain} iifname vmap @{_MAP}",
                )
            ),
            f"add chain {TABLE} {bridge}",
            f"flush chain {TABLE} {bridge}",
            f'add rule {TABLE} {bridge} oifname "{bridge}" accept',
            f"add rule {TABLE} {bridge} ip daddr {own} accept",
            # All that the host has by now, and will have: addresses of mobile links and VPNs come and go.
            f"add rule {TABLE} {bridge} fib daddr type local reject with icmp type admin-prohibited",
            f"add rule {TABLE} {bridge} ip daddr {{ {closed} }} reject with icmp type admin-prohibited",
            # Lab networks have no addresses of IPv6; whoever gives himself some gets nowhere.
            f"add rule {TABLE} {bridge} meta nfproto ipv6 drop",
            f'add element {TABLE} {_MAP} {{ "{bridge}" : jump {bridge} }}',
            "",
        )
    )


def _removal(bridges: Iterable[str], *, last: bool) -> str:
    if last:
        return f"delete table {TABLE}\n"
    lines = []
    for bridge in bridges:
        lines.append(f'delete element {TABLE} {_MAP} {{ "{bridge}" : jump {bridge} }}')
        lines += [f"flush chain {TABLE} {bridge}", f"delete chain {TABLE} {bridge}"]
    return "\n".join((*lines, ""))
