"""Checks of networks: libvirt's against the host's, and the room for labs."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from pocketcloud.check import State
from pocketcloud.model.facts import Subnet
from tests.computers import Computer, Libvirt
from tests.host_trees import x86_laptop


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
    assert check.remedy


def test_a_host_without_room_for_labs_fails(laptop: Computer) -> None:
    ranges = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15")
    laptop.change(subnets=tuple(Subnet(IPv4Network(net), "route via tun0") for net in ranges))
    check = laptop.checks()["lab-subnets"]
    assert check.state is State.FAIL
    assert "10.0.0.0/8 (route via tun0)" in check.evidence
