"""Checks of networks: libvirt's against the host's, and the room for labs."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from pocketcloud.check import State
from pocketcloud.errors import HostLacks
from pocketcloud.host.bridges import read_active, read_free
from pocketcloud.hypervisor.firewall import Fences
from pocketcloud.model.facts import Subnet
from pocketcloud.model.inventory import LibvirtNetwork
from pocketcloud.model.kit import Kit, Manifest
from pocketcloud.model.lab import LabNetwork
from pocketcloud.model.machine import Mark
from pocketcloud.model.names import Name
from pocketcloud.model.profile import Medium
from pocketcloud.records import InstanceFiles, write_record
from pocketcloud.system import CommandFailed, Completed
from tests.computers import Computer, Libvirt
from tests.host_trees import plant, x86_laptop
from tests.plans import up_host
from tests.recorded import Recorded
from tests.simulation import INSTANCE, KIT_ID

VIRSH = ("virsh net-edit default", "virsh net-destroy default", "Start it again when it has another subnet")


@pytest.fixture
def laptop(tmp_path: Path) -> Computer:
    return Computer(tmp_path, x86_laptop("debian-13"))


def test_libvirts_networks_are_held_against_the_hosts(laptop: Computer) -> None:
    home = Subnet(IPv4Network("192.168.0.0/16"), "route via wlan0")
    default = Subnet(IPv4Network("192.168.122.0/24"), "libvirt network default")
    laptop.change(subnets=(home,))
    laptop.libvirt = Libvirt(subnets=(default,))
    check = laptop.checks()["libvirt-networks"]
    assert check.state is State.WARN
    pair = "192.168.122.0/24 (libvirt network default) overlaps 192.168.0.0/16 (route via wlan0)"
    assert check.evidence == pair
    assert check.remedy == VIRSH


def test_a_lab_that_a_wlan_overlaps_is_moved_by_its_own_commands(laptop: Computer) -> None:
    laptop.change(subnets=(Subnet(IPv4Network("10.77.0.0/16"), "route via wlan0"),))
    name, subnet = "usb.demo.front", "10.77.3.0/24"
    network = LibvirtNetwork(name, Mark("usb", "id", "demo", "front"), active=True, bridge="pc-1", subnet=subnet)
    default = Subnet(IPv4Network("10.77.9.0/24"), "libvirt network default")
    taken = (Subnet(IPv4Network(subnet), f"libvirt network {name}"),)
    laptop.libvirt = Libvirt(subnets=taken, networks=(network,))
    check = laptop.checks()["libvirt-networks"]
    assert check.state is State.WARN
    assert check.remedy == ("pocketcloud lab down demo --kit usb", "pocketcloud lab up demo --kit usb")
    laptop.libvirt = Libvirt(subnets=(*taken, default), networks=(network,))
    assert laptop.checks()["libvirt-networks"].remedy == (*check.remedy, *VIRSH)
    # Its next `up` moves it by itself.
    laptop.libvirt = Libvirt(subnets=taken, networks=(replace(network, active=False),))
    assert laptop.checks()["libvirt-networks"].state is State.OK


def test_a_host_without_room_for_labs_fails(laptop: Computer) -> None:
    ranges = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15")
    laptop.change(subnets=tuple(Subnet(IPv4Network(net), "route via tun0") for net in ranges))
    check = laptop.checks()["lab-subnets"]
    assert check.state is State.FAIL
    assert "10.0.0.0/8 (route via tun0)" in check.evidence


def test_libvirt_that_cannot_be_asked_is_known_to_have_its_default(laptop: Computer) -> None:
    laptop.libvirt = HostLacks("not installed")
    laptop.change(subnets=(Subnet(IPv4Network("192.168.122.0/24"), "address on eth0"),))
    check = laptop.checks()["libvirt-networks"]
    assert check.state is State.UNKNOWN
    assert "its own, 192.168.122.0/24, would overlap 192.168.122.0/24 (address on eth0)" in check.evidence


def test_labs_inside_of_machines_take_the_next_range(laptop: Computer) -> None:
    check = laptop.checks()["nested-subnets"]
    assert check.state is State.OK
    assert "labs here take 10.77.0.0/16, labs inside of their machines 10.78.0.0/16" in check.evidence
    laptop.change(subnets=(Subnet(IPv4Network("10.78.4.0/22"), "route via tun0"),))
    check = laptop.checks()["nested-subnets"]
    assert check.state is State.WARN
    assert "hides 10.78.4.0/22 (route via tun0) from them" in check.evidence
    laptop.change(virtualised="kvm", subnets=(Subnet(IPv4Network("10.77.9.0/24"), "address on eth0"),))
    assert "labs here take 10.78.0.0/16, labs inside of their machines 10.79.0.0/16" in laptop.checks()["nested-subnets"].evidence


def test_what_a_machine_is_told_of_the_networks_around_it_has_to_be_networks(laptop: Computer) -> None:
    plant(laptop.root, {"etc/pocketcloud/outer-subnets": "10.77.0.0/16\nten.something\n"})
    check = laptop.checks()["nested-subnets"]
    assert check.state is State.WARN
    assert "/etc/pocketcloud/outer-subnets names no network in line 2;" in check.evidence


NONE_IS_UP = "no network that is to have one is up"


def test_a_fence_that_is_gone_is_missed(laptop: Computer, tmp_path: Path) -> None:
    assert laptop.checks()["fences"].evidence == NONE_IS_UP
    record = up_host().record
    assert record is not None
    laptop.kit = Kit(Manifest(1, KIT_ID, Name("usb"), "now", "0", "qcow2"), tmp_path / "kit", Medium.DIR)
    files = InstanceFiles(laptop.kit, INSTANCE)
    files.record.parent.mkdir(parents=True)
    write_record(files, record)
    network = LibvirtNetwork("usb.demo.front", Mark("usb", KIT_ID, INSTANCE, "front"), active=True, bridge="pc-1", subnet="")
    laptop.libvirt = Libvirt(networks=(network,))
    laptop.run.says["nft"] = 'elements = { "pc-1" : jump pc-1 }'
    assert laptop.checks()["fences"].state is State.OK
    laptop.run.says["nft"] = 'elements = { "pc-2" : jump pc-2 }'
    check = laptop.checks()["fences"]
    assert (check.state, check.evidence) == (State.WARN, "gone: those of usb.demo.front")
    assert check.remedy == ("pocketcloud lab up demo --kit usb",)
    open_ = replace(record.lab, networks={Name("front"): LabNetwork(lan=True)})
    write_record(files, replace(record, lab=open_))
    assert laptop.checks()["fences"].evidence == NONE_IS_UP
    files.record.write_text("{")
    assert laptop.checks()["fences"].evidence == NONE_IS_UP


def test_no_fence_is_unlike_one_that_may_not_be_seen() -> None:
    def nft(*known: str) -> Recorded:
        def tell(words: tuple[str, ...]) -> str:
            if words[2] in known:
                return ""
            raise CommandFailed(Completed(words, 1, "", "Error: No such file or directory; or: you must be root"))

        return Recorded(tell)

    assert Fences(nft("map", "tables")).seen() == ()
    assert Fences(nft("tables")).seen() == ()
    assert Fences(nft()).seen() is None


def status(name: str, bridge: str, mode: str = "nat") -> dict[str, str]:
    """libvirt's status file of an active network."""
    network = f"<network><name>{name}</name><forward mode='{mode}'/><bridge name='{bridge}' stp='off'/></network>"
    return {f"run/libvirt/network/{name}.xml": f"<networkstatus>{network}</networkstatus>"}


def bridge(name: str, *ports: str) -> dict[str, str]:
    """A bridge in sysfs."""
    return {
        f"sys/class/net/{name}/bridge/stp_state": "0",
        f"sys/class/net/{name}/brif/": "",
        **{f"sys/class/net/{name}/brif/{port}/state": "3" for port in ports},
    }


def test_a_bridge_of_the_host_stays_the_hosts_when_a_network_is_that_bridge(laptop: Computer) -> None:
    out = "<network><name>kit.demo.out</name><forward mode='bridge'/><bridge name='br0'/></network>"
    plant(laptop.root, {"run/libvirt/network/kit.demo.out.xml": f"<networkstatus>{out}</networkstatus>"})
    plant(laptop.root, status("kit.demo.front", "lab7"))
    for name in ("br0", "br-lan", "virbr0", "pc-0123456789", "lab7"):
        planted(laptop.root, bridge(name))
    assert [network.bridge for network in read_active(laptop.root) or ()] == ["lab7"]
    assert read_free(laptop.root) == ("br-lan", "br0")


def planted(root: Path, files: dict[str, str]) -> None:
    folders = [name for name in files if name.endswith("/")]
    for name in folders:
        (root / name).mkdir(parents=True, exist_ok=True)
    plant(root, {name: text for name, text in files.items() if name not in folders})


def test_a_bridge_without_network_and_ports_is_left_over(laptop: Computer) -> None:
    planted(
        laptop.root,
        {
            **bridge("virbr0", "virbr0-nic"),
            **bridge("virbr7", "virbr7-nic"),
            **bridge("pc-0123456789"),
            **bridge("pc-aaaaaaaaaa", "vnet3"),
            **bridge("br0"),
            **bridge("docker0"),
            "sys/class/net/virbr9/address": "",
            **status("default", "virbr0"),
        },
    )
    check = laptop.checks()["bridges"]
    assert check.state is State.WARN
    assert check.remedy == ("ip link delete pc-0123456789", "ip link delete virbr7")
    assert not check.fix, "whose they are is not known"
    plant(laptop.root, {**status("kit.demo.net", "pc-0123456789"), **status("other", "virbr7")})
    check = laptop.checks()["bridges"]
    assert (check.state, check.evidence) == (State.OK, "named as libvirt's: 4, none of them left over")


def test_a_network_that_is_just_started_has_left_no_bridge(laptop: Computer) -> None:
    planted(laptop.root, bridge("pc-0123456789"))
    later = threading.Timer(0.3, plant, (laptop.root, status("kit.demo.net", "pc-0123456789")))
    later.start()
    try:
        assert laptop.checks()["bridges"].state is State.OK
    finally:
        later.join()


@pytest.mark.parametrize(
    ("files", "state", "words"),
    [
        ({"proc/sys/net/ipv4/ip_forward": "1\n"}, State.OK, "ip_forward is on"),
        ({"proc/sys/net/ipv4/ip_forward": "0\n"}, State.OK, "libvirt switches it on with a network"),
        ({"proc/sys/net/ipv4/ip_forward": "0\n", **status("default", "virbr0")}, State.WARN, "although default is up"),
        ({"proc/sys/net/ipv4/ip_forward": "0\n", **status("lonely", "virbr0", "open")}, State.OK, "switches it on"),
        (
            {"proc/sys/net/ipv4/ip_forward": "1\n", "etc/sysctl.d/90-hard.conf": "# x\nnet.ipv4.ip_forward = 0\n"},
            State.WARN,
            "/etc/sysctl.d/90-hard.conf switches it off",
        ),
        (
            {
                "proc/sys/net/ipv4/ip_forward": "1\n",
                "usr/lib/sysctl.d/10-a.conf": "-net/ipv4/ip_forward=0\n",
                "etc/sysctl.d/20-b.conf": "net.ipv4.conf.all.forwarding=1\n",
            },
            State.OK,
            "ip_forward is on",
        ),
        ({"etc/hostname": "x"}, State.UNKNOWN, "not told"),
    ],
)
def test_forwarding_is_libvirts_to_switch_on_unless_something_switches_it_off(
    laptop: Computer, files: dict[str, str], state: State, words: str
) -> None:
    (laptop.root / "proc/sys/net/ipv4/ip_forward").unlink()
    plant(laptop.root, files)
    check = laptop.checks()["forwarding"]
    assert check.state is state
    assert words in check.evidence


def chains(*found: tuple[str, str, str, str]) -> str:
    """What `nft -j list chains` says of chains that see what is forwarded."""
    keys = ("family", "table", "name", "policy")
    told = [{"chain": {**dict(zip(keys, each, strict=True)), "type": "filter", "hook": "forward", "prio": 0}} for each in found]
    return json.dumps(
        {"nftables": [{"metainfo": {"json_schema_version": 1}}, *told, {"chain": {"family": "ip", "table": "nat"}}]}
    )


DOCKER = ("ip", "filter", "FORWARD", "drop")
OWN = ("inet", "filter", "forward", "drop")


def test_iptables_policy_cuts_machines_off_where_libvirts_rules_are_elsewhere(laptop: Computer) -> None:
    plant(laptop.root, {"sys/class/net/docker0/address": ""})
    laptop.run.says["nft"] = chains(DOCKER)
    assert laptop.checks()["firewall"].state is State.OK, "libvirt 9 has its rules in the same chain"
    laptop.libvirt = Libvirt("11.3.0")
    check = laptop.checks()["firewall"]
    assert check.state is State.WARN
    assert "ip filter FORWARD drops what is forwarded" in check.evidence
    assert check.remedy[:2] == (
        "echo 'firewall_backend = \"iptables\"' >> /etc/libvirt/network.conf",
        "systemctl restart libvirtd",
    )
    assert "ip-forward-no-drop" in check.remedy[2]
    plant(laptop.root, {"etc/libvirt/network.conf": '# x\nfirewall_backend = "iptables"\n'})
    assert laptop.checks()["firewall"].state is State.OK


def test_a_firewall_of_ones_own_cuts_machines_off_whatever_libvirt_does(laptop: Computer) -> None:
    laptop.run.says["nft"] = chains(OWN, ("inet", "x", "forward", "accept"))
    check = laptop.checks()["firewall"]
    assert check.state is State.WARN
    assert check.remedy == tuple(f"nft insert rule inet filter forward {side} 'pc-*' accept" for side in ("iifname", "oifname"))


def test_firewalld_needs_libvirts_zone(laptop: Computer) -> None:
    plant(laptop.root, {"sys/fs/cgroup/system.slice/firewalld.service/cgroup.procs": "1"})
    laptop.run.says["nft"] = chains(("inet", "firewalld", "filter_FORWARD", "drop"))
    assert "has no zone" in laptop.checks()["firewall"].evidence
    plant(laptop.root, {"usr/lib/firewalld/zones/libvirt.xml": "<zone/>"})
    assert laptop.checks()["firewall"].state is State.OK


def test_rules_that_cannot_be_read_are_unknown_only_where_there_is_a_suspect(laptop: Computer) -> None:
    laptop.run.says["nft"] = "Operation not permitted (you must be root)"
    check = laptop.checks()["firewall"]
    assert (check.state, "shown to root only" in check.evidence) == (State.OK, True)
    plant(laptop.root, {"etc/ufw/ufw.conf": "ENABLED=yes\n"})
    assert laptop.checks()["firewall"].state is State.UNKNOWN


def test_old_iptables_are_asked_only_where_they_are(laptop: Computer) -> None:
    laptop.libvirt = Libvirt("11.3.0")
    plant(laptop.root, {"proc/modules": "kvm 1 0 - Live 0x0\n"})
    laptop.run.says |= {"nft": "must not be asked: it would load the module", "iptables-legacy": "-P FORWARD DROP\n"}
    assert laptop.checks()["firewall"].state is State.OK
    plant(laptop.root, {"proc/net/ip_tables_names": "filter\n"})
    assert laptop.checks()["firewall"].state is State.WARN
