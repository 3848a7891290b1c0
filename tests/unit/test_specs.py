"""From the record to what libvirt is asked for."""

from __future__ import annotations

import uuid
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from pocketcloud.errors import Refused
from pocketcloud.model.base import Firmware
from pocketcloud.model.kit import Kit, Manifest
from pocketcloud.model.lab import LabNetwork, NetworkKind, Ready
from pocketcloud.model.names import Name, mac_address
from pocketcloud.model.profile import Acceleration, Medium
from pocketcloud.model.record import Record
from pocketcloud.profiles import Shape
from pocketcloud.specs import lab_domain, machine_address, machine_spec, network_spec
from tests.plans import raise_lab
from tests.simulation import INSTANCE, PROFILE, STORE, Host, base, lab, machine

KIT = Kit(Manifest(1, str(uuid.UUID(int=5)), Name("usb"), "now", "0", "qcow2"), Path("/kit"), Medium.DIR)
SHAPE = Shape(Acceleration.EMULATION, "q35", "maximum")
WEB, FRONT = Name("web"), Name("front")


def place(volume: str) -> tuple[Path, str]:
    return STORE / volume, "qcow2"


@pytest.fixture
def record() -> Record:
    host = Host.with_bases(base())
    raise_lab(lab(("front", "back"), web=machine("front", "back", disks=["zz", "aa"]), db=machine("back"), alone=machine()), host)
    assert host.record is not None
    return host.record


def test_a_machine(record: Record) -> None:
    spec = machine_spec(KIT, record, WEB, PROFILE, SHAPE, place)
    assert spec.name == "usb.demo.web"
    assert (spec.mark.kit_id, spec.mark.instance, spec.mark.part) == (KIT.id, "demo", "web")
    assert [(disk.target, disk.serial) for disk in spec.disks] == [("vda", "root"), ("vdb", "aa"), ("vdc", "zz")]
    assert spec.disks[0].path.name.startswith("lab.demo.web.root.g")
    assert [nic.network for nic in spec.nics] == ["usb.demo.front", "usb.demo.back"]
    assert [nic.mac for nic in spec.nics] == [mac_address(INSTANCE, "web", 0), mac_address(INSTANCE, "web", 1)]
    assert spec.nvram is None
    assert spec.serial_log == Path("/kit/labs/demo/console/web.log")
    assert spec.memory == 64 << 20


def test_firmware_variables_only_with_uefi(record: Record) -> None:
    record = record.with_machine(WEB, replace(record.machines[WEB], firmware=Firmware.EFI))
    assert machine_spec(KIT, record, WEB, PROFILE, SHAPE, place).nvram == Path("/kit/nvram/demo.web.fd")


def test_a_seed_only_for_who_is_logged_in_to(record: Record) -> None:
    assert "vdz" not in {disk.target for disk in machine_spec(KIT, record, WEB, PROFILE, SHAPE, place).disks}
    known = record.machines[WEB]
    record = record.with_machine(WEB, replace(known, definition=replace(known.definition, ready=Ready())))
    seed = machine_spec(KIT, record, WEB, PROFILE, SHAPE, place).disks[-1]
    assert (seed.target, seed.format, seed.readonly, seed.path) == ("vdz", "raw", True, Path("/kit/labs/demo/seed/web.iso"))


def test_more_disks_than_letters_are_refused(record: Record) -> None:
    def with_disks(count: int) -> Record:
        disks = {"root": "lab.demo.web.root.g1"} | {f"d{i}": f"lab.demo.web.d{i}.g1" for i in range(count - 1)}
        return record.with_machine(WEB, replace(record.machines[WEB], disks=disks))

    targets = [disk.target for disk in machine_spec(KIT, with_disks(25), WEB, PROFILE, SHAPE, place).disks]
    assert targets == [f"vd{letter}" for letter in "abcdefghijklmnopqrstuvwxy"]
    with pytest.raises(Refused, match="26 disks; a machine has at most 25"):
        machine_spec(KIT, with_disks(26), WEB, PROFILE, SHAPE, place)


def test_a_network_has_the_leases_of_all_on_it(record: Record) -> None:
    spec = network_spec(KIT, record, Name("back"))
    assert spec.name == "usb.demo.back"
    assert spec.domain == "demo.internal" == lab_domain("demo")
    # web's second interface, db's first
    assert {(lease.hostname, lease.mac) for lease in spec.leases} == {
        ("web", mac_address(INSTANCE, "web", 1)),
        ("db", mac_address(INSTANCE, "db", 0)),
    }
    assert all(lease.address in spec.range for lease in spec.leases)
    assert len(spec.bridge) <= 15
    assert network_spec(KIT, record, FRONT).uuid != spec.uuid


def test_networks_are_fenced_unless_the_lab_says_otherwise(record: Record) -> None:
    near = (IPv4Network("203.0.113.0/24"),)

    def fenced(kind: NetworkKind, *, lan: bool) -> object:
        networks = {**record.networks, FRONT: replace(record.networks[FRONT], kind=kind)}
        lab = replace(record.lab, networks={**record.lab.networks, FRONT: LabNetwork(kind, lan=lan)})
        return network_spec(KIT, replace(record, networks=networks, lab=lab), FRONT, near).fenced

    assert fenced(NetworkKind.NAT, lan=False) == fenced(NetworkKind.ROUTED, lan=False) == near
    assert fenced(NetworkKind.NAT, lan=True) is fenced(NetworkKind.ROUTED, lan=True) is None
    assert fenced(NetworkKind.ISOLATED, lan=False) == near
    bridged = replace(record.networks[FRONT], kind=NetworkKind.BRIDGE, subnet=None, bridge="br0")
    on_bridge = replace(record, networks={**record.networks, FRONT: bridged})
    assert network_spec(KIT, on_bridge, FRONT, near).fenced is None
    with pytest.raises(ValueError, match="from one that is isolated nothing reaches out"):
        LabNetwork(NetworkKind.ISOLATED, lan=True)


def test_the_address_is_that_on_the_first_network(record: Record) -> None:
    assert machine_address(record, "web") == str(record.machines[WEB].addresses[FRONT])
    assert machine_address(record, "alone") is None
    moved = replace(record.machines[WEB], addresses={FRONT: IPv4Address("10.0.0.9")})
    assert machine_address(record.with_machine(WEB, moved), "web") == "10.0.0.9"
