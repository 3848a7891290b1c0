"""libvirt's XML: written from specifications, and read back. Pure functions over values: no daemon, no files, no libvirt.

Every decision is made here or in the specification; the templates only substitute and loop. Our mark is one element of
our own namespace in libvirt's metadata.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Network, NetmaskValueError
from pathlib import Path

from pocketcloud.errors import Refused
from pocketcloud.model.base import Arch, Firmware
from pocketcloud.model.inventory import LibvirtNetwork
from pocketcloud.model.lab import NetworkKind
from pocketcloud.model.machine import DiskSpec, KernelBoot, MachineSpec, Mark, NetworkSpec
from pocketcloud.model.profile import Acceleration
from pocketcloud.render import render_xml

NAMESPACE = "urn:pocketcloud:libvirt:1"
STATE_NAMESPACE = "urn:pocketcloud:libvirt:state:1"
AGENT_CHANNEL = "org.qemu.guest_agent.0"
_TEMPLATES = Path(__file__).parent / "templates"
# libvirt's words for how a network forwards (formatnetwork.html); without one nothing leaves it.
_FORWARD = {NetworkKind.NAT: "nat", NetworkKind.ROUTED: "route", NetworkKind.BRIDGE: "bridge"}
# Where screens are shown: to who is on this computer, and nobody else, whatever libvirt's own default is.
_LOOPBACK = "127.0.0.1"
_UNITS = {"b": 1, "bytes": 1, "KiB": 1 << 10, "k": 1 << 10, "MiB": 1 << 20, "M": 1 << 20, "GiB": 1 << 30, "G": 1 << 30}

ET.register_namespace("pocketcloud", NAMESPACE)


def machine_xml(spec: MachineSpec) -> str:
    """The domain XML of a machine. Raises Refused for a path that XML cannot carry."""
    values: dict[str, object] = {
        "namespace": NAMESPACE,
        "type": {Acceleration.KVM: "kvm", Acceleration.EMULATION: "qemu"}[spec.acceleration],
        "name": spec.name,
        "uuid": spec.uuid,
        "title": _one_line(spec.title),
        "mark": spec.mark,
        "memory": spec.memory,
        "vcpus": spec.vcpus,
        # Without a <cputune> it binds QEMU's own threads too, one of which makes the virtual processors.
        "cpus": spec.cpus,
        "efi": spec.firmware is Firmware.EFI,
        "arch": spec.arch.value,
        "pc": spec.arch is Arch.X86_64,
        "machine": spec.machine,
        "nvram": _path(spec.nvram) if spec.nvram else "",
        "cpu_mode": spec.cpu_mode,
        # On x86 a CPU with every feature of the host, invtsc among them, cannot be saved, and `clean` holds saved memory;
        # `on` leaves those few out, nesting stays. ARM's QEMU has no such switch and libvirt refuses the attribute.
        "migratable": spec.arch is Arch.X86_64 and spec.cpu_mode == "host-passthrough",
        # Said either way: left open, libvirt takes the first firmware described, which on Debian has keys.
        "secure": "yes" if spec.secure_boot else "no",
        "smm": spec.secure_boot and spec.arch is Arch.X86_64,
        "virtualisation": _virtualisation(spec),
        "disks": [_disk_values(disk) for disk in spec.disks],
        "scsi": any(disk.disc for disk in spec.disks),
        "nics": spec.nics,
        "serial_log": _path(spec.serial_log),
        "kernel": spec.kernel and _kernel_values(spec.kernel),
        "ports": [{"name": port.name, "log": _path(port.log)} for port in spec.ports],
        "restarts": spec.restarts,
        "screen": _LOOPBACK if spec.screen else "",
    }
    return render_xml(_TEMPLATES, "domain.xml.j2", values)


def network_xml(spec: NetworkSpec) -> str:
    """The network XML: the host has the subnet's first address, unknown machines get addresses from its last quarter. One that is
    a bridge of the host is its name and nothing else."""
    values: dict[str, object] = {
        "namespace": NAMESPACE,
        "name": spec.name,
        "uuid": spec.uuid,
        "mark": spec.mark,
        "forward": _FORWARD.get(spec.kind, ""),
        "bridge": spec.bridge,
    }
    if (subnet := spec.subnet) is None:
        return render_xml(_TEMPLATES, "bridge.xml.j2", values)
    values |= {
        "domain": spec.domain,
        "gateway": str(subnet[1]),
        "prefix": subnet.prefixlen,
        "first": str(subnet[max(2, subnet.num_addresses * 3 // 4)]),
        "last": str(subnet[-2]),
        "leases": spec.leases,
    }
    return render_xml(_TEMPLATES, "network.xml.j2", values)


def _virtualisation(spec: MachineSpec) -> str:
    """The policy for Intel's vmx and AMD's svm, both, as the next computer's processor may be the other maker's; empty: what the
    CPU mode gives. Hidden from machines that run none: on AMD the memory of one that does cannot be saved (Linux's
    running-nested-guests.rst), and who is not to nest shall not. Never `require`, which the other maker's processor refuses.

    Emulated processors are left as they are: without svm, Linux 6.1 in QEMU 7.2 does not get up (its mounts fail with EBUSY).
    """
    if spec.arch is not Arch.X86_64 or spec.acceleration is Acceleration.EMULATION:
        return ""
    if not spec.nested:
        return "disable"
    return "" if spec.cpu_mode in ("host-passthrough", "maximum") else "optional"


def _disk_values(disk: DiskSpec) -> dict[str, object]:
    block = disk.path.is_relative_to("/dev")
    return {
        "type": "block" if block else "file",
        "attribute": "dev" if block else "file",
        "path": _path(disk.path),
        "target": disk.target,
        "format": disk.format,
        "cache": disk.tuning.cache,
        "io": disk.tuning.io,
        "serial": disk.serial,
        "readonly": disk.readonly or disk.disc,
        # SCSI is the one bus of CD-ROM drives that both PCs and ARM's virt have.
        "device": "cdrom" if disk.disc else "disk",
        "bus": "scsi" if disk.disc else "virtio",
    }


def _kernel_values(boot: KernelBoot) -> dict[str, str]:
    return {"kernel": _path(boot.kernel), "initrd": _path(boot.initrd), "cmdline": _one_line(boot.cmdline)}


def _one_line(text: str) -> str:
    """`text` as libvirt takes a title: no line ends, nothing that XML cannot hold."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def _path(path: Path) -> str:
    text = str(path)
    if not path.is_absolute() or not text.isprintable():
        raise Refused(
            f"{text!r}: libvirt takes absolute paths of printable characters only",
            hint="keep the kit in a folder with an ordinary name",
        )
    return text


@dataclass(frozen=True, slots=True)
class DomainReading:
    """What a domain's XML says of it; `mark` is None if it is not ours, `memory` in bytes; `frozen`: we froze its
    file systems and have not thawed them yet; `machine_type` as libvirt resolved it (`pc-q35-7.2`);
    `screen` where its graphical console is shown now (`vnc://127.0.0.1:5900`; empty: nowhere)."""

    name: str
    uuid: str
    mark: Mark | None
    disks: Mapping[str, Path]
    agent: bool
    memory: int
    frozen: bool
    machine_type: str
    screen: str


@dataclass(frozen=True, slots=True)
class NetworkReading:
    """What a network's XML says of it; `mark` is None if it is not ours. `subnets` are its IPv4 addresses' and routes'."""

    name: str
    uuid: str
    mark: Mark | None
    bridge: str
    forward: str
    domain: str
    subnets: tuple[IPv4Network, ...]
    leases: frozenset[str]
    names: frozenset[str]
    addresses: Mapping[str, str]

    def network(self, mark: Mark, *, active: bool) -> LibvirtNetwork:
        """The network, which is ours."""
        subnet = str(self.subnets[0]) if self.subnets else ""
        kind = next((kind for kind, mode in _FORWARD.items() if mode == self.forward), NetworkKind.ISOLATED)
        return LibvirtNetwork(self.name, mark, active, self.bridge, subnet, kind, self.addresses)

    @property
    def shape(self) -> tuple[object, ...]:
        """What of a network cannot be changed while it is up."""
        return self.bridge, self.forward, self.domain, self.subnets


def version(number: int) -> str:
    """A version as libvirt counts it, as text: 9000000 is `9.0.0`."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def read_domain(text: str) -> DomainReading:
    """Read the XML of any domain, live or not."""
    root = _tree(text)
    memory, machine = root.find("memory"), root.find("os/type")
    return DomainReading(
        name=root.findtext("name", ""),
        uuid=root.findtext("uuid", ""),
        mark=_mark(root, "machine"),
        disks=_disks(root),
        agent=any(
            target.get("name") == AGENT_CHANNEL and target.get("state") == "connected"
            for target in root.iterfind("devices/channel/target")
        ),
        frozen=root.find(f"metadata/{{{STATE_NAMESPACE}}}frozen") is not None,
        memory=0 if memory is None else int(memory.text or 0) * _UNITS[memory.get("unit", "KiB")],
        machine_type="" if machine is None else machine.get("machine", ""),
        screen=_screen(root),
    )


def _screen(root: ET.Element) -> str:
    """Where the graphical console can be seen now; one that is off has no port yet, and one on a socket is not for viewers."""
    graphics = root.find("devices/graphics[@type='vnc']")
    listen = None if graphics is None else graphics.find("listen[@type='address']")
    if graphics is None or listen is None or int(graphics.get("port", "-1")) <= 0:
        return ""
    return f"vnc://{listen.get('address')}:{graphics.get('port')}"


def read_network(text: str) -> NetworkReading:
    """Read the XML of any network, live or not. `leases` and `names` hold the `<host>` elements, in one spelling, as
    libvirt takes them in a live update; `addresses` is what the leases say, by MAC."""
    root = _tree(text)
    bridge, forward, domain = root.find("bridge"), root.find("forward"), root.find("domain")
    subnets = [_subnet(element) for element in (*root.iterfind("ip"), *root.iterfind("route"))]
    return NetworkReading(
        name=root.findtext("name", ""),
        uuid=root.findtext("uuid", ""),
        mark=_mark(root, "network"),
        bridge="" if bridge is None else bridge.get("name", ""),
        forward="" if forward is None else forward.get("mode", "nat"),
        domain="" if domain is None else domain.get("name", ""),
        subnets=tuple(subnet for subnet in subnets if subnet is not None),
        leases=frozenset(_canonical(host) for host in root.iterfind("ip/dhcp/host")),
        names=frozenset(_canonical(host) for host in root.iterfind("dns/host")),
        addresses={host.get("mac", ""): host.get("ip", "") for host in root.iterfind("ip/dhcp/host")},
    )


def restored_xml(saved: str, spec: MachineSpec) -> str:
    """The XML inside a memory image, with the files of `spec` in place of those it was saved with.

    It starts from the image's own XML and not from a fresh rendering: guest memory knows every device and its address, so
    nothing but files may differ, even when a later version of us would shape the machine otherwise. And the host's processors
    that it is bound to: those are this host's, and the guest does not see them.
    """
    root = _tree(saved)
    _pin(root.find("vcpu"), spec.cpus)
    wanted = {disk.target: disk for disk in spec.disks}
    for element in root.iterfind("devices/disk"):
        disk = wanted.get(element.find("target").get("dev", ""))  # type: ignore[union-attr]  # the schema demands a target
        if disk is None:
            continue
        for stale in (*element.findall("backingStore"), *element.findall("source")):
            element.remove(stale)  # libvirt reads the new chain from the new file
        values = _disk_values(disk)
        element.set("type", str(values["type"]))
        element.find("driver").set("type", disk.format)  # type: ignore[union-attr]  # we always write one
        ET.SubElement(element, "source", {str(values["attribute"]): str(values["path"])})
    for log in root.iterfind("devices/*/log"):
        log.set("file", _path(spec.serial_log))
        log.set("append", "on")  # the machine goes on, and so does what it said since its start
    nvram = root.find("os/nvram")
    if nvram is not None and spec.nvram is not None:
        for stale in nvram.findall("source"):
            nvram.remove(stale)
        nvram.attrib.pop("type", None)
        nvram.text = _path(spec.nvram)
    return ET.tostring(root, encoding="unicode")


def _pin(vcpu: ET.Element | None, cpus: str) -> None:
    if vcpu is not None:
        vcpu.attrib.pop("cpuset", None)
        if cpus:
            vcpu.set("cpuset", cpus)


def guests(capabilities: str) -> tuple[tuple[Arch, ...], tuple[Arch, ...]]:
    """From libvirt's capabilities: the architectures that can be emulated, and those that can run with KVM."""
    known = {arch.value: arch for arch in Arch}
    found: dict[str, list[Arch]] = {"qemu": [], "kvm": []}
    for element in _tree(capabilities).iterfind("guest/arch"):
        arch = known.get(element.get("name", ""))
        for domain in element.iterfind("domain"):
            if arch is not None and domain.get("type", "") in found:
                found[domain.get("type", "")].append(arch)
    return tuple(found["qemu"]), tuple(found["kvm"])


def host_model(capabilities: str) -> str:
    """From libvirt's domain capabilities: the processor of the mode `host-model`, as XML; empty where it has none."""
    found = _tree(capabilities).find("cpu/mode[@name='host-model'][@supported='yes']")
    if found is None:
        return ""
    found.tag = "cpu"
    return ET.tostring(found, encoding="unicode")


def cpu_features(cpu: str) -> frozenset[str]:
    """The features that a processor has, by XML that names all of them, those of its model too."""
    return frozenset(part.get("name", "") for part in _tree(cpu).iterfind("feature") if part.get("policy") != "disable")


def _tree(text: str) -> ET.Element:
    return ET.fromstring(text)  # noqa: S314 - the text is libvirt's own


def _mark(root: ET.Element, kind: str) -> Mark | None:
    element = root.find(f"metadata/{{{NAMESPACE}}}{kind}")
    if element is None:
        return None
    values = [element.get(key, "") for key in ("kit", "kit_id", "instance", "part")]
    return Mark(*values) if all(values) else None


def _disks(root: ET.Element) -> dict[str, Path]:
    found = {}
    for disk in root.iterfind("devices/disk"):
        source, target = disk.find("source"), disk.find("target")
        path = None if source is None else source.get("file") or source.get("dev")
        if path and target is not None:
            found[target.get("dev", "")] = Path(path)
    return found


def _subnet(element: ET.Element) -> IPv4Network | None:
    if element.get("family", "ipv4") != "ipv4" or not element.get("address"):
        return None
    width = element.get("prefix") or element.get("netmask") or "32"
    try:
        return IPv4Network(f"{element.get('address')}/{width}", strict=False)
    except (AddressValueError, NetmaskValueError):
        return None  # an IPv6 address does not need to say its family


def _canonical(element: ET.Element) -> str:
    for part in element.iter():
        part.text, part.tail = (part.text or "").strip() or None, None
    return ET.canonicalize(ET.tostring(element, encoding="unicode"))
