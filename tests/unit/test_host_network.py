"""Which IPv4 networks count as taken: from iproute2's JSON, from /proc, and on this host."""

from __future__ import annotations

import json
from ipaddress import IPv4Network
from pathlib import Path

from pocketcloud.errors import HostLacks
from pocketcloud.host.network import own_address, read_outer, read_subnets
from pocketcloud.system import CommandFailed, Completed, run, which
from tests.host_trees import plant
from tests.recorded import Recorded


class Ip(Recorded):
    """A Runner that is a host's `ip`: answers for `addr` and `route`, or an exception to raise."""

    def __init__(self, addresses: object, routes: object) -> None:
        self.answers = {"addr": addresses, "route": routes}
        super().__init__(self._answer)

    def _answer(self, words: tuple[str, ...]) -> str:
        assert words[:3] == ("ip", "-j", "-4")
        answer = self.answers[words[3]]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, str) else json.dumps(answer)


def address(device: str, local: str, prefix: int, peer: str = "") -> dict[str, object]:
    info = {"family": "inet", "local": local, "prefixlen": prefix} | ({"address": peer} if peer else {})
    return {"ifname": device, "addr_info": [info]}


def taken(root: Path, ip: Ip) -> dict[str, str]:
    return {str(subnet.network): subnet.holder for subnet in read_subnets(root, ip)}


def test_addresses_and_routes_count_and_each_network_once(tmp_path: Path) -> None:
    ip = Ip(
        [address("lo", "127.0.0.1", 8), address("wlan0", "192.168.1.34", 24), address("tun0", "10.8.0.6", 32, "10.8.0.5")],
        [
            {"dst": "default", "gateway": "192.168.1.1", "dev": "wlan0"},
            {"dst": "192.168.1.0/24", "dev": "wlan0"},
            {"dst": "10.20.0.0/16", "gateway": "10.8.0.5", "dev": "tun0"},
            {"dst": "192.0.2.7", "dev": "wlan0", "table": "52"},
            {"type": "blackhole", "dst": "172.16.0.0/12"},
            {"type": "local", "dst": "192.168.1.34", "dev": "wlan0", "table": "local"},
            {"type": "broadcast", "dst": "192.168.1.255", "dev": "wlan0", "table": "local"},
        ],
    )
    assert taken(tmp_path, ip) == {
        "10.8.0.5/32": "address on tun0",
        "10.8.0.6/32": "address on tun0",
        "10.20.0.0/16": "route via tun0",
        "172.16.0.0/12": "blackhole route",
        "192.0.2.7/32": "route via wlan0",
        "192.168.1.0/24": "address on wlan0",
    }


def test_default_routes_whole_or_split_by_a_vpn_take_nothing(tmp_path: Path) -> None:
    halves = ["default", "0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "64.0.0.0/2"]
    assert taken(tmp_path, Ip([], [{"dst": dst, "dev": "tun0"} for dst in halves])) == {}
    assert taken(tmp_path, Ip([], [{"dst": "10.0.0.0/8", "dev": "tun0"}])) == {"10.0.0.0/8": "route via tun0"}


def test_the_bridges_of_libvirt_are_left_to_libvirt(tmp_path: Path) -> None:
    status = "<networkstatus><network><bridge stp='on' delay='0' name='training0'/></network></networkstatus>"
    plant(tmp_path, {"run/libvirt/network/training.xml": status})
    ip = Ip(
        [
            address("virbr0", "192.168.122.1", 24),
            address("pc-0123456789", "10.77.3.1", 24),
            address("training0", "10.99.0.1", 24),
            address("pc-office", "10.50.0.1", 24),
        ],
        [{"dst": "192.168.122.0/24", "dev": "virbr0"}],
    )
    assert taken(tmp_path, ip) == {"10.50.0.0/24": "address on pc-office"}


ROUTES = (
    "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
    "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
    "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    "virbr0\t007AA8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    "tun0\t0000140A\t0500080A\t0003\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
    "short\n"
)


def test_without_iproute2_or_with_one_that_knows_no_json_proc_is_read(tmp_path: Path) -> None:
    plant(tmp_path, {"proc/net/route": ROUTES})
    expected = {"192.0.2.0/24": "route via eth0", "10.20.0.0/16": "route via tun0"}
    failed = CommandFailed(Completed(("ip",), 1, "", "ip: invalid option -- 'j'"))
    assert taken(tmp_path, Ip(HostLacks("ip is not installed"), [])) == expected
    assert taken(tmp_path, Ip(failed, [])) == expected
    assert taken(tmp_path, Ip("not json", [])) == expected
    assert taken(tmp_path, Ip("", "")) == {}


def test_this_host_says_the_same_both_ways(tmp_path: Path) -> None:
    subnets = read_subnets(Path("/"), run)
    assert all(subnet.network.prefixlen > 7 for subnet in subnets)
    assert not any(subnet.network.overlaps(IPv4Network("127.0.0.0/8")) for subnet in subnets)
    if which("ip"):
        plant(tmp_path, {"proc/net/route": Path("/proc/net/route").read_text()})
        from_proc = {subnet.network for subnet in read_subnets(tmp_path, Ip(HostLacks("no ip"), []))}
        assert from_proc <= {subnet.network for subnet in subnets}


def test_the_address_that_others_know_this_host_by() -> None:
    asked = Recorded(lambda _: json.dumps([{"dst": "198.51.100.1", "dev": "wlan0", "prefsrc": "203.0.113.9"}]))
    assert own_address(asked) == "203.0.113.9"

    def unreachable(words: tuple[str, ...]) -> str:
        raise CommandFailed(Completed(words, 2, "", "RTNETLINK answers: Network is unreachable"))

    for said in (unreachable, lambda _: "", lambda _: "[{}]", lambda _: "no JSON"):
        assert own_address(Recorded(said)) == ""


def test_a_machine_is_told_of_the_networks_around_it(tmp_path: Path) -> None:
    ip = Ip([address("eth0", "10.77.3.10", 24)], [])
    assert list(taken(tmp_path, ip)) == ["10.77.3.0/24"]
    told = "# of the laptop\n10.77.0.0/16\n\n  192.168.1.0/24 # the conference\n10.77.3.0/24\n172.16.5.1/16\n"
    told += "fe80::/64\nx\n0.0.0.0/0\n\xff"
    plant(tmp_path, {"etc/pocketcloud/outer-subnets": told})
    outside = "outside of this machine (/etc/pocketcloud/outer-subnets)"
    assert taken(tmp_path, ip) == {
        "10.77.0.0/16": outside,
        "10.77.3.0/24": "address on eth0",
        "172.16.0.0/16": outside,
        "192.168.1.0/24": outside,
    }
    assert read_outer(tmp_path)[1] == (7, 8, 10)
    endless = "10.0.0.0/24\n" * 2000
    plant(tmp_path, {"etc/pocketcloud/outer-subnets": endless})
    assert len(read_outer(tmp_path)[0]) == 1000
