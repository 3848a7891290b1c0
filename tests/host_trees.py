"""Trees of the files that the host room reads, as other computers have them, for tests that cannot run there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

X86_FLAGS = "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat clflush mmx fxsr sse sse2 ht syscall nx lm"

OS_RELEASE = {
    "debian-12": """PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
NAME="Debian GNU/Linux"
VERSION_ID="12"
VERSION="12 (bookworm)"
VERSION_CODENAME=bookworm
ID=debian
HOME_URL="https://www.debian.org/"
""",
    "debian-13": """PRETTY_NAME="Debian GNU/Linux 13 (trixie)"
NAME="Debian GNU/Linux"
VERSION_ID="13"
VERSION="13 (trixie)"
VERSION_CODENAME=trixie
DEBIAN_VERSION_FULL=13.6
ID=debian
""",
    "ubuntu-2404": """PRETTY_NAME="Ubuntu 24.04.3 LTS"
NAME="Ubuntu"
VERSION_ID="24.04"
VERSION="24.04.3 LTS (Noble Numbat)"
VERSION_CODENAME=noble
ID=ubuntu
ID_LIKE=debian
UBUNTU_CODENAME=noble
""",
    "fedora-44": """NAME="Fedora Linux"
VERSION="44 (Workstation Edition)"
RELEASE_TYPE=stable
ID=fedora
VERSION_ID=44
VERSION_CODENAME=""
PRETTY_NAME="Fedora Linux 44 (Workstation Edition)"
""",
    "centos-9": """NAME="CentOS Stream"
VERSION="9"
ID="centos"
ID_LIKE="rhel fedora"
VERSION_ID="9"
PLATFORM_ID="platform:el9"
PRETTY_NAME="CentOS Stream 9"
""",
    "centos-10": """NAME="CentOS Stream"
VERSION="10 (Coughlan)"
ID="centos"
ID_LIKE="rhel fedora"
VERSION_ID="10"
PLATFORM_ID="platform:el10"
PRETTY_NAME="CentOS Stream 10 (Coughlan)"
""",
    "raspios": """PRETTY_NAME="Debian GNU/Linux 13 (trixie)"
NAME="Debian GNU/Linux"
VERSION_ID="13"
VERSION_CODENAME=trixie
ID=debian
""",
    "mint": """NAME="Linux Mint"
VERSION_ID="22.1"
ID=linuxmint
ID_LIKE="ubuntu debian"
PRETTY_NAME="Linux Mint 22.1"
VERSION_CODENAME=xia
""",
    "arch": """NAME="Arch Linux"
PRETTY_NAME="Arch Linux"
ID=arch
BUILD_ID=rolling
""",
}


def plant(root: Path, files: Mapping[str, str]) -> Path:
    """Write the files under `root`, which is the answer; a name that ends in / makes a folder."""
    for name, content in files.items():
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
    return root


def _kernel(arch: str, release: str, total_kib: int, available_kib: int, cpus: str) -> dict[str, str]:
    return {
        "proc/sys/kernel/arch": f"{arch}\n",
        "proc/sys/kernel/osrelease": f"{release}\n",
        "proc/sys/kernel/random/boot_id": "0f9e1d5c-8f3b-4d53-9a26-1b7a5b0c9a11\n",
        "proc/meminfo": f"MemTotal:       {total_kib} kB\nMemFree:  1 kB\nMemAvailable:   {available_kib} kB\nBuffers: 4 kB\n",
        "sys/devices/system/cpu/online": f"{cpus}\n",
    }


def x86_laptop(distribution: str, *, flags: str = "vmx") -> dict[str, str]:
    """A ThinkPad with 16 GiB on systemd."""
    return {
        "etc/os-release": OS_RELEASE[distribution],
        "proc/cpuinfo": f"processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: {X86_FLAGS} {flags}\n\nprocessor\t: 1\n",
        "sys/class/dmi/id/sys_vendor": "LENOVO\n",
        "sys/class/dmi/id/product_name": "20XXS3HC0G\n",
        "sys/class/dmi/id/product_version": "ThinkPad X1 Carbon Gen 9\n",
        "run/systemd/system/": "",
        "sys/module/kvm_intel/initstate": "live\n",
        **{f"sys/module/kvm_intel/parameters/{name}": "Y\n" for name in ("nested", "ept", "enable_shadow_vmcs", "enable_apicv")},
        **_kernel("x86_64", "6.12.48-amd64", 16 << 20, 12 << 20, "0-7"),
    }


def arm_board(model: str, compatible: str, *, memory_mib: int, distribution: str = "debian-13") -> dict[str, str]:
    """A board with a device tree, whose texts end in a zero byte and whose /proc/cpuinfo names no flags."""
    return {
        "etc/os-release": OS_RELEASE[distribution],
        "proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 48.00\nCPU implementer\t: 0x41\nCPU part\t: 0xd03\n\nprocessor\t: 1\n",
        "proc/interrupts": "           CPU0\n 11:       1000     GICv2  30 Level     arch_timer\n",
        "proc/self/smaps": "KernelPageSize:        4 kB\n",
        "proc/device-tree/model": f"{model}\0",
        "proc/device-tree/compatible": f"{compatible}\0",
        **_kernel("aarch64", "6.12.48-arm64", memory_mib << 10, (memory_mib - 200) << 10, "0-3"),
    }


def arm_server() -> dict[str, str]:
    """An ARM64 server: UEFI, ACPI, DMI, no device tree."""
    return {
        "etc/os-release": OS_RELEASE["ubuntu-2404"],
        "proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd evtstrm\n",
        "sys/class/dmi/id/sys_vendor": "GIGABYTE\n",
        "sys/class/dmi/id/product_name": "R272-P30-JG\n",
        "run/systemd/system/": "",
        **_kernel("aarch64", "6.8.0-79-generic", 128 << 20, 120 << 20, "0-79"),
    }


def pine64() -> dict[str, str]:
    """The board that the profile is named after."""
    return arm_board("Pine64+", "pine64,pine64-plus\0allwinner,sun50i-a64", memory_mib=2048)


def raspberry_pi() -> dict[str, str]:
    """A Raspberry Pi 4 with 4 GiB."""
    return arm_board("Raspberry Pi 4 Model B Rev 1.4", "raspberrypi,4-model-b\0brcm,bcm2711", memory_mib=4096)
