"""The XML for libvirt, whole, as files to read; each is valid by libvirt's own schemas and accepted by its parser.

After an intended change: POCKETCLOUD_GOLDEN=write pytest tests/golden, then read the difference.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import libvirt
import pytest
from lxml import etree

from pocketcloud.errors import Refused
from pocketcloud.hypervisor.xml import machine_xml, network_xml, read_domain, read_network, restored_xml
from pocketcloud.model.base import Arch, Firmware
from pocketcloud.model.lab import NetworkKind
from pocketcloud.model.machine import DiskSpec, KernelBoot, Lease, MachineSpec, Mark, NetworkSpec, NicSpec, PortSpec
from pocketcloud.model.profile import Acceleration, DiskTuning

GOLDEN = Path(__file__).parent / "xml"
SCHEMAS = Path("/usr/share/libvirt/schemas")
KIT_ID = "3e0bd0f6-0c0f-4a6e-9d43-5b2f4f6f3b10"
MARK = Mark("travel", KIT_ID, "demo", "web")
FILES = DiskTuning("writeback", "threads")
BLOCKS = DiskTuning("none", "native")
KIT = Path("/var/lib/pocketcloud")

BIOS = MachineSpec(
    name="travel.demo.web",
    uuid="0f5c4a9e-8f55-5e2e-9a52-0d6f7f1f4c11",
    mark=MARK,
    title="web of lab demo (pocketcloud kit travel)",
    arch=Arch.X86_64,
    machine="q35",
    acceleration=Acceleration.EMULATION,
    cpu_mode="maximum",
    vcpus=1,
    memory=512 << 20,
    firmware=Firmware.BIOS,
    nvram=None,
    disks=(DiskSpec("vda", KIT / "volumes/demo.web.root.1.qcow2", "qcow2", FILES, "root"),),
    nics=(NicSpec("52:54:00:01:02:03", "travel.demo.front"),),
    serial_log=KIT / "labs/demo/web.console",
)
EFI = replace(
    BIOS,
    screen=True,
    acceleration=Acceleration.KVM,
    cpu_mode="host-passthrough",
    vcpus=4,
    firmware=Firmware.EFI,
    nvram=KIT / "nvram/demo.web.fd",
    disks=(
        DiskSpec("vda", Path("/dev/pc-travel/demo.web.root.1"), "raw", BLOCKS, "root"),
        DiskSpec("vdb", Path("/dev/pc-travel/demo.web.data.1"), "raw", BLOCKS, "data"),
        DiskSpec("vdz", KIT / "labs/demo/web.seed.iso", "raw", FILES, "seed", readonly=True),
    ),
    nics=(NicSpec("52:54:00:01:02:03", "travel.demo.front"), NicSpec("52:54:00:01:02:04", "travel.demo.back")),
)
ARM = replace(EFI, arch=Arch.AARCH64, machine="virt", disks=BIOS.disks)
HOSTILE = replace(
    BIOS,
    title="<&>'\"\n]]> \x00\x1b[31m rôle ガ",
    disks=(DiskSpec("vda", Path("/srv/a kit, 'quoted' & <odd>=\"ü\"/root.qcow2"), "qcow2", FILES),),
    nics=(),
)
INSTALL = replace(
    BIOS,
    disks=(*BIOS.disks, DiskSpec("sda", KIT / "media/boot.iso", "raw", DiskTuning("unsafe", "threads"), disc=True)),
    kernel=KernelBoot(KIT / "media/vmlinuz", KIT / "media/.work/initrd", "inst.ks=file:/ks.cfg console=ttyS0"),
    ports=(PortSpec("org.pocketcloud.install.0", KIT / "media/.work/said"),),
    restarts=False,
)
FRONT = NetworkSpec(
    name="travel.demo.front",
    uuid="9b1f4e2c-64a7-5b4e-8f0a-6d5f0c3f2a01",
    mark=replace(MARK, part="front"),
    bridge="pc-0123456789",
    kind=NetworkKind.NAT,
    subnet=IPv4Network("10.77.3.0/24"),
    domain="demo.internal",
    leases=(
        Lease("52:54:00:01:02:03", IPv4Address("10.77.3.10"), "web"),
        Lease("52:54:00:01:02:05", IPv4Address("10.77.3.11"), "client"),
    ),
)
BACK = replace(FRONT, name="travel.demo.back", kind=NetworkKind.ISOLATED, leases=(), domain="")

MACHINES = {
    "machine-bios-emulated": BIOS,
    "machine-efi-kvm-block": EFI,
    "machine-arm-kvm": ARM,
    "machine-arm-emulated": replace(ARM, acceleration=Acceleration.EMULATION, cpu_mode="maximum"),
    "machine-arm-two-kinds-of-cores": replace(ARM, vcpus=2, cpus="4-5"),
    "machine-nested": replace(EFI, nested=True),
    "machine-nested-by-model": replace(EFI, nested=True, cpu_mode="host-model"),
    "machine-secure-boot": replace(EFI, secure_boot=True),
    "machine-hostile": HOSTILE,
    "machine-install": INSTALL,
    "machine-arm-install": replace(
        ARM,
        disks=INSTALL.disks,
        kernel=INSTALL.kernel,
        ports=INSTALL.ports,
        restarts=False,
        screen=False,
        nvram=KIT / "media/.work/nvram.fd",
    ),
}
ROUTED = replace(FRONT, name="travel.demo.dmz", kind=NetworkKind.ROUTED)
BRIDGE = replace(FRONT, name="travel.demo.out", kind=NetworkKind.BRIDGE, bridge="br0", subnet=None, leases=())
NETWORKS = {"network-nat": FRONT, "network-isolated": BACK, "network-routed": ROUTED, "network-bridge": BRIDGE}
TEXTS = {name: machine_xml(spec) for name, spec in MACHINES.items()} | {n: network_xml(s) for n, s in NETWORKS.items()}


@pytest.fixture
def private_node(tmp_path: Path) -> Iterator[libvirt.virConnect]:
    """libvirt's test driver with a state of its own: an empty node, seen by this connection only."""
    node = tmp_path / "node.xml"
    node.write_text("<node/>")
    connection = libvirt.open(f"test://{node}")
    yield connection
    connection.close()


@pytest.mark.parametrize("name", TEXTS)
def test_it_is_what_the_golden_file_says(name: str) -> None:
    golden = GOLDEN / f"{name}.xml"
    if os.environ.get("POCKETCLOUD_GOLDEN") == "write":
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(TEXTS[name], encoding="utf-8")
    assert TEXTS[name] == golden.read_text(encoding="utf-8")


def test_every_golden_file_belongs_to_a_case() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(TEXTS)


@pytest.mark.parametrize("name", TEXTS)
def test_libvirts_schema_accepts_it(name: str) -> None:
    kind = "domain" if name in MACHINES else "network"
    schema = etree.RelaxNG(etree.parse(SCHEMAS / f"{kind}.rng"))
    document = etree.fromstring(TEXTS[name].encode())
    assert schema.validate(document), schema.error_log


def test_the_schema_would_find_a_mistake() -> None:
    schema = etree.RelaxNG(etree.parse(SCHEMAS / "domain.rng"))
    wrong = TEXTS["machine-bios-emulated"].replace("discard='unmap'", "discard='maybe'")
    assert not schema.validate(etree.fromstring(wrong.encode()))


# The test driver is an x86 host of its own, which knows no ARM guests.
@pytest.mark.parametrize("name", [name for name in MACHINES if "arm" not in name])
def test_libvirt_takes_a_machine_and_gives_it_back(name: str, private_node: libvirt.virConnect) -> None:
    spec = MACHINES[name]
    reading = read_domain(private_node.defineXML(TEXTS[name]).XMLDesc(0))
    assert (reading.name, reading.uuid, reading.mark, reading.memory) == (spec.name, spec.uuid, spec.mark, spec.memory)
    assert reading.disks == {disk.target: disk.path for disk in spec.disks}
    assert not reading.screen
    assert not reading.agent
    assert not reading.frozen


@pytest.mark.parametrize("name", NETWORKS)
def test_libvirt_takes_a_network_and_gives_it_back(name: str, private_node: libvirt.virConnect) -> None:
    wanted = read_network(TEXTS[name])
    reading = read_network(private_node.networkDefineXML(TEXTS[name]).XMLDesc(0))
    assert reading == wanted
    assert reading.mark == NETWORKS[name].mark
    assert reading.subnets == tuple(filter(None, [NETWORKS[name].subnet]))
    assert (reading.network(MARK, active=True).kind, reading.bridge) == (NETWORKS[name].kind, NETWORKS[name].bridge)


def test_a_title_is_one_line_of_what_xml_can_hold() -> None:
    title = etree.fromstring(machine_xml(HOSTILE).encode()).findtext("title")
    assert title == "<&>'\" ]]> [31m rôle ガ"


@pytest.mark.parametrize("path", ["relative/disk.qcow2", "/srv/bell\a.qcow2", "/srv/two\nlines.qcow2", "/srv/\udcff.qcow2"])
def test_a_path_that_xml_cannot_carry_is_refused(path: str) -> None:
    with pytest.raises(Refused, match="absolute paths of printable characters"):
        machine_xml(replace(BIOS, disks=(replace(BIOS.disks[0], path=Path(path)),)))


def test_a_screen_is_where_a_running_machine_says() -> None:
    def screen(graphics: str) -> str:
        return read_domain(f"<domain><devices>{graphics}</devices></domain>").screen

    listens = "<listen type='address' address='127.0.0.1'/>"
    assert (
        screen(f"<graphics type='vnc' port='5903' autoport='yes' listen='127.0.0.1'>{listens}</graphics>")
        == "vnc://127.0.0.1:5903"
    )
    assert screen(f"<graphics type='vnc' port='-1' autoport='yes'>{listens}</graphics>") == ""
    # As machines were defined by earlier versions.
    assert screen("<graphics type='vnc' socket='/run/x.sock'><listen type='socket' socket='/run/x.sock'/></graphics>") == ""
    assert screen(f"<graphics type='spice' port='5900'>{listens}</graphics>") == screen("") == ""


def test_somebody_elses_xml_is_not_ours() -> None:
    theirs = "<domain type='qemu'><name>web</name><metadata><m:machine xmlns:m='urn:other' kit='travel'/></metadata></domain>"
    assert read_domain(theirs).mark is None
    assert read_network("<network><name>n</name></network>").mark is None


def test_all_subnets_of_a_network_are_seen() -> None:
    text = """<network><name>odd</name><route address='10.9.0.0' prefix='16' gateway='192.168.7.2'/>
      <ip address='192.168.7.1' netmask='255.255.255.0'/><ip address='172.20.0.1' prefix='20'/>
      <ip family='ipv6' address='fd00::1' prefix='64'/>
      <ip address='fd01::1' prefix='64'/></network>"""
    assert {str(subnet) for subnet in read_network(text).subnets} == {"192.168.7.0/24", "172.20.0.0/20", "10.9.0.0/16"}


def test_a_memory_image_gets_the_new_files_and_keeps_its_devices() -> None:
    saved = machine_xml(EFI).replace(
        "<target dev='vda'", "<backingStore type='file'><source file='/old'/></backingStore><target dev='vda'"
    )
    saved = saved.replace(
        "</memory>", "</memory><!-- devices of an older version --><maxMemory slots='3' unit='b'>99</maxMemory>"
    )
    moved = replace(
        EFI,
        disks=(DiskSpec("vda", Path("/mnt/new.qcow2"), "qcow2", FILES), *EFI.disks[1:]),
        nvram=Path("/mnt/new.fd"),
        serial_log=Path("/mnt/new.console"),
    )
    root = etree.fromstring(restored_xml(saved, moved).encode())
    disk = root.find("devices/disk")
    assert disk.get("type") == "file"
    assert disk.find("source").attrib == {"file": "/mnt/new.qcow2"}
    assert disk.find("driver").get("type") == "qcow2"
    assert disk.find("backingStore") is None
    assert root.findtext("os/nvram") == "/mnt/new.fd"
    assert root.find("devices/serial/log").get("file") == "/mnt/new.console"
    assert root.find("maxMemory") is not None
    assert read_domain(restored_xml(saved, moved)).mark == EFI.mark


def test_a_memory_image_is_bound_to_the_processors_of_this_host() -> None:
    bound = replace(ARM, cpus="4-7")
    for saved, wanted, cpus in ((bound, ARM, None), (ARM, bound, "4-7"), (bound, replace(ARM, cpus="0-3"), "0-3")):
        vcpu = etree.fromstring(restored_xml(machine_xml(saved), wanted).encode()).find("vcpu")
        assert (vcpu.text, vcpu.get("cpuset")) == ("4", cpus)
