"""The computer: architecture, model, processors, memory, and the hypervisor it may itself run under."""

from __future__ import annotations

import os
from pathlib import Path

from pocketcloud.host.files import line, number, text
from pocketcloud.model.base import Arch

_DEVICE_TREE = "proc/device-tree"
_DMI = "sys/class/dmi/id"
# What mainboard makers leave in fields nobody filled in.
_PLACEHOLDERS = ("to be filled", "default string", "system manufacturer", "system product name", "not specified", "o.e.m.")
# A text in the vendor's or product's DMI name -> the hypervisor, as systemd-detect-virt calls it.
_HYPERVISORS = (
    ("kvm", "kvm"),
    ("qemu", "qemu"),
    ("vmware", "vmware"),
    ("virtualbox", "oracle"),
    ("innotek", "oracle"),
    ("xen", "xen"),
    ("bochs", "bochs"),
    ("parallels", "parallels"),
    ("bhyve", "bhyve"),
    ("apple virtualization", "apple"),
    ("microsoft corporation virtual machine", "microsoft"),
    ("google compute engine", "google"),
    ("amazon ec2", "amazon"),
    ("openstack", "kvm"),
    ("rhev", "kvm"),
)


def read_machine(root: Path) -> str:
    """The architecture as `uname -m` says it. The file is there from Linux 6.1 on; before, the running system is asked."""
    return line(root, "proc/sys/kernel/arch") or os.uname().machine


def read_arch(root: Path) -> Arch | None:
    """The architecture if pocketcloud knows it."""
    machine = read_machine(root)
    return next((arch for arch in Arch if arch == machine), None)


def read_kernel(root: Path) -> str:
    """The kernel's release, as `uname -r` says it."""
    return line(root, "proc/sys/kernel/osrelease") or os.uname().release


def has_device_tree(root: Path) -> bool:
    """Whether a device tree describes the computer. Newer kernels show an empty one on PCs: that one has no `compatible`."""
    return bool(line(root, f"{_DEVICE_TREE}/compatible"))


def read_compatible(root: Path) -> tuple[str, ...]:
    """What the device tree says the computer is compatible with, its own name first, then its family's, last the chip's; empty
    without one."""
    return tuple(part for part in text(root, f"{_DEVICE_TREE}/compatible").strip().split("\0") if part)


def read_model(root: Path) -> str:
    """The computer's name: the device tree's model, else the maker and product of the DMI, else empty."""
    if model := line(root, f"{_DEVICE_TREE}/model"):
        return model
    vendor, product = _dmi(root, "sys_vendor"), _dmi(root, "product_name")
    if vendor.upper() == "LENOVO":
        # Its product name is an order code (20XXS3HC0G); the name on the lid stands in the version.
        product = _dmi(root, "product_version") or product
    return product if product.lower().startswith(vendor.lower()) else f"{vendor} {product}".strip()


def _dmi(root: Path, field: str) -> str:
    value = line(root, f"{_DMI}/{field}")
    return "" if any(word in value.lower() for word in _PLACEHOLDERS) else value


def read_cpus(root: Path) -> int:
    """Processors that are online: from sysfs (`0-3,6`), else counted in /proc/cpuinfo; at least 1."""
    count = 0
    for part in line(root, "sys/devices/system/cpu/online").split(","):
        first, _, last = part.partition("-")
        begin, end = number(first), number(last or first)
        if begin is not None and end is not None:
            count += max(0, end - begin + 1)
    return count or max(1, sum(entry.startswith("processor") for entry in text(root, "proc/cpuinfo").splitlines()))


def read_cpu_flags(root: Path) -> frozenset[str]:
    """The features of an x86 processor, as /proc/cpuinfo names them; empty on others."""
    flags = next((entry.partition(":")[2] for entry in text(root, "proc/cpuinfo").splitlines() if entry.startswith("flags")), "")
    return frozenset(flags.split())


def read_memory(root: Path) -> tuple[int, int]:
    """Bytes of memory in all (MemTotal) and to be had without swapping (MemAvailable); 0 where it is not said."""
    values = {}
    for entry in text(root, "proc/meminfo").splitlines():
        name, _, value = entry.partition(":")
        values[name] = (number(next(iter(value.split()), "")) or 0) * 1024
    return values.get("MemTotal", 0), values.get("MemAvailable", 0)


def read_hypervisor(root: Path) -> str:
    """The hypervisor this computer is a guest of, empty if none is seen.

    On x86 the processor's flag `hypervisor` decides, because makers' names also stand on bare metal (Amazon's *.metal); the
    names then say which, `unknown` if they do not. On ARM there is only the names.
    """
    if line(root, "sys/hypervisor/type") == "xen":
        return "xen"
    cpuinfo = text(root, "proc/cpuinfo")
    if "User Mode Linux" in cpuinfo:
        return "uml"
    named = _named_hypervisor(root)
    flags = next((entry.split() for entry in cpuinfo.splitlines() if entry.startswith("flags")), None)
    if flags is not None:
        return (named or "unknown") if "hypervisor" in flags else ""
    return named


def _named_hypervisor(root: Path) -> str:
    if "linux,dummy-virt" in text(root, f"{_DEVICE_TREE}/compatible"):
        return "qemu"
    names = " ".join(line(root, f"{_DMI}/{field}") for field in ("sys_vendor", "product_name")).lower()
    if "amazon ec2" in names and ".metal" in names:
        return ""
    return next((hypervisor for word, hypervisor in _HYPERVISORS if word in names), "")
