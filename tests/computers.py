"""Computers under test, which are not this one: their files, what their tools say, what libvirt answers there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from pocketcloud.check import Check, run_checks
from pocketcloud.errors import HostLacks
from pocketcloud.host import read_facts
from pocketcloud.hypervisor import Hypervisor, HypervisorFacts
from pocketcloud.model.base import Arch
from pocketcloud.model.disk import BlockDevice, Measured
from pocketcloud.model.facts import Facts, Kvm, KvmState, Subnet
from pocketcloud.model.inventory import LibvirtNetwork
from pocketcloud.model.kit import Kit
from pocketcloud.model.sizes import GIB
from tests.host_trees import plant
from tests.recorded import Recorded

TOOLS = (
    "qemu-system-x86_64", "qemu-system-aarch64", "qemu-img", "dnsmasq", "nft", "ip", "ssh", "virsh", "mmdebstrap", "sfdisk",
    "mke2fs", "mkfs.vfat", "gpgv", "mcopy", "git", "libvirtd", "lvm", "lvmconfig", "modprobe",
    "thin_check", "thin_dump", "thin_ls", "thin_metadata_size", "thin_repair",
)  # fmt: skip
USABLE = Kvm(KvmState.USABLE, "2 ns an instruction", 2.0)


# What lsblk says of the disks below.
LSBLK = {
    "blockdevices": [
        {"name": "sda", "kname": "sda", "path": "/dev/sda", "type": "disk", "tran": "sata", "model": "Inside", "serial": "S1"},
        {"name": "sdb", "kname": "sdb", "path": "/dev/sdb", "type": "disk", "tran": "usb", "model": "Pocket", "serial": "S2"},
    ]
}
QUICK = Measured(sequential=412e6, random_reads=9800, p50=0.0001, p99=0.0004)
LIMPING = Measured(sequential=30e6, random_reads=700, p50=0.0014, p99=0.02, failed=3)
USB = "sys/devices/pci0000:00/0000:00:14.0/usb2/2-1"


def disk(place: str, *, rotational: int = 0) -> dict[str, str]:
    """A disk of 256 GiB in sysfs."""
    queue = {
        "rotational": str(rotational),
        "logical_block_size": "512",
        "physical_block_size": "512",
        "discard_max_bytes": str(4 * GIB),
        "write_cache": "write back",
    }
    return {f"{place}/size": str(256 * GIB // 512), f"{place}/dev": "8:0", **{f"{place}/queue/{k}": v for k, v in queue.items()}}


def plug(root: Path) -> None:
    """A SATA disk, and a USB 3 disk in a USB 2 port, behind a bridge that says it rotates."""
    inside = "sys/devices/pci0000:00/0000:00:17.0/ata1/host0/block/sda"
    outside = f"{USB}/2-1:1.0/host6/block/sdb"
    plant(
        root,
        {
            **disk(inside),
            **disk(outside, rotational=1),
            f"{USB}/idVendor": "152d",
            f"{USB}/idProduct": "0578",
            f"{USB}/speed": "480",
            f"{USB}/version": " 2.10",
            f"{USB}/2-1:1.0/bInterfaceNumber": "00",
        },
    )
    (root / "sys/bus/uas").mkdir(parents=True)
    (root / USB / "2-1:1.0/driver").symlink_to(root / "sys/bus/uas")
    (root / "sys/class/block").mkdir(parents=True)
    for name, place in (("sda", inside), ("sdb", outside)):
        (root / "sys/class/block" / name).symlink_to(root / place)


# What tools say when they are asked for their version; the others say `NAME 1.2.3`.
SAYS = {
    "qemu-system-x86_64": "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright (c) 2003-2022\n",
    "qemu-system-aarch64": "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\n",
    "qemu-kvm": "QEMU emulator version 9.1.0 (qemu-kvm-9.1.0-15.el10)\n",
    "qemu-img": "qemu-img version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\n",
    "dnsmasq": "Dnsmasq version 2.90  Copyright (c) 2000-2024 Simon Kelley\n",
    "mmdebstrap": "mmdebstrap 1.3.5\n",
    "sfdisk": "sfdisk from util-linux 2.38.1\n",
    "mke2fs": "mke2fs 1.47.0 (5-Feb-2023)\n\tUsing EXT2FS Library version 1.47.0\n",
    "thin_check": "0.9.0\n",
    "ip": "[]",
    "nft": '{"nftables": []}',
    "lsblk": json.dumps(LSBLK),
    "wipefs": "{}",
    "lvm": "  LVM version:     2.03.16(2) (2022-05-18)\n  Library version: 1.02.185 (2022-05-18)\n",
    "lvmconfig": "issue_discards=0\nthin_pool_autoextend_threshold=100\nscan_lvs=0\nuse_devicesfile=1\n",
}


# libvirt as one daemon, started at boot.
LIBVIRTD = {
    "proc/900/comm": "libvirtd\n",
    "proc/901/comm": "virtlogd\n",
    "run/libvirt/libvirt-sock": "",
    "etc/systemd/system/multi-user.target.wants/libvirtd.service": "",
}


class Tools(Recorded):
    """A Runner that starts nothing: a tool says what `says` has for it, whatever it is asked."""

    def __init__(self) -> None:
        super().__init__(self._said)
        self.says = dict(SAYS)

    def _said(self, words: tuple[str, ...]) -> str:
        name = Path(words[0]).name
        return self.says.get(name, f"{name} 1.2.3\nmore\n")


class Libvirt:
    """As much of a hypervisor as checks ask: its facts, its networks' subnets, and the networks of labs."""

    def __init__(
        self,
        version: str = "9.0.0",
        kvm: tuple[Arch, ...] = tuple(Arch),
        subnets: tuple[Subnet, ...] = (),
        networks: tuple[LibvirtNetwork, ...] = (),
    ) -> None:
        self.version, self.kvm, self.taken, self.labs = version, kvm, subnets, networks
        self.features = frozenset({"vmx", "svm"})

    def facts(self) -> HypervisorFacts:
        return HypervisorFacts("qemu:///system", self.version, "7.2.22", tuple(Arch), self.kvm)

    def cpu_features(self, _arch: Arch) -> frozenset[str]:
        return self.features

    def subnets(self) -> tuple[Subnet, ...]:
        return self.taken

    def networks(self) -> tuple[LibvirtNetwork, ...]:
        return self.labs


class Computer:
    """A computer under test; everything is in order until a test changes it."""

    def __init__(self, root: Path, files: Mapping[str, str]) -> None:
        self.root = root
        arch = "x86_64" if "x86_64" in files["proc/sys/kernel/arch"] else "aarch64"
        descriptor = {
            "interface-types": ["uefi"],
            "targets": [{"architecture": arch}],
            "mapping": {"device": "flash", "executable": {"filename": "/usr/share/fw/CODE.fd"}},
        }
        plant(root, files)
        plant(
            root,
            {
                "usr/share/qemu/firmware/60-edk2.json": json.dumps(descriptor),
                "usr/share/fw/CODE.fd": "",
                "etc/passwd": "libvirt-qemu:x:64055:107::/var/lib/libvirt:/bin/false\n",
                "etc/group": "kvm:x:107:\n",
                "dev/kvm": "",
                "proc/sys/net/ipv4/ip_forward": "0\n",
                "proc/sys/vm/overcommit_memory": "0\n",
                "proc/910/comm": "chronyd\n",
                "sys/kernel/mm/ksm/run": "1\n",
                **LIBVIRTD,
            },
        )
        (root / "dev/kvm").chmod(0o666)
        plug(root)
        self.measured: dict[str, Measured | HostLacks | None] = {"sda": QUICK, "sdb": QUICK}
        self.devices: tuple[Path, ...] = ()
        self.run = Tools()
        self.facts: Facts = dataclasses.replace(read_facts(root, run=self.run), kvm=USABLE)
        self.tools = set(TOOLS)
        self.kit_path = Path("/var/lib/pocketcloud")
        self.kit: Kit | None = None
        self.libvirt: Libvirt | HostLacks = Libvirt()

    def connect(self) -> Hypervisor:
        if isinstance(self.libvirt, HostLacks):
            raise self.libvirt
        return self.libvirt  # type: ignore[return-value]  # a stand-in: the part of the protocol that checks use

    def measure(self, device: BlockDevice) -> Measured | None:
        found = self.measured[device.name]
        if isinstance(found, HostLacks):
            raise found
        return found

    def checks(self) -> dict[str, Check]:
        found = run_checks(
            self.facts,
            kit_path=self.kit_path,
            run=self.run,
            hypervisor=self.connect,
            root=self.root,
            find=lambda tool: Path("/usr/bin") / tool if tool in self.tools else None,
            devices=self.devices,
            measure=self.measure,
            kit=self.kit,
        )
        by_id = {check.id: check for check in found}
        assert len(by_id) == len(found), "ids are unique"
        return by_id

    def change(self, **changes: object) -> None:
        self.facts = dataclasses.replace(self.facts, **changes)  # type: ignore[arg-type]  # names are checked at run time
