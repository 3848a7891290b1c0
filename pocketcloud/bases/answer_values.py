"""What the templates of answers are given: every decision about an installation, as words, lists and numbers.

docs/bases.md lists the names. Lists that have one entry or none are how a template leaves something out. Facts: for Anaconda
pykickstart's documentation and the kickstarts of AlmaLinux's cloud images; for debian-installer its installation guide,
appendix B, and partman-auto's recipes; for Ubuntu the autoinstall reference and curtin's storage documentation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pocketcloud.bases import bootstrap
from pocketcloud.bases.archives import apt_lines, archives, has_ports
from pocketcloud.model.base import Arch, Builder, InstallDefinition

_RHEL_LIKE = ("centos", "almalinux", "rocky", "rhel")
# A service and the package that has it: Anaconda ends an installation at a service that is not installed. cloud-init's are not
# among them: their names change between versions, and its package enables them.
RPM_SERVICES = {"sshd": "openssh-server", "chronyd": "chrony", "qemu-guest-agent": "qemu-guest-agent"}
_RPM_PACKAGES = ("@core", "cloud-init", "cloud-utils-growpart", "dracut-config-generic", *RPM_SERVICES.values())
# A rescue initramfs is of one machine's hardware; firmware is for real hardware; a firewall would be one that Debian's bases and
# the distributions' own cloud images do not have.
_RPM_UNWANTED = ("dracut-config-rescue", "firewalld", "plymouth", "*-firmware")
_DEBIAN_PACKAGES = ("cloud-init", "cloud-guest-utils", "openssh-server", "openssh-sftp-server", "qemu-guest-agent")
_ESP_MIB = 512
_BOOT_MIB = 1024


@dataclass(frozen=True, slots=True)
class Installation:
    """What is particular to one build; see answers.Site."""

    build_id: str
    disk: str
    tree: str = field(repr=False)
    repos: Mapping[str, str] = field(repr=False)
    proxy: str = field(repr=False)
    gateway: str
    apt_mirror: str = field(repr=False)
    console: str
    port: str
    activation_key: str = field(repr=False)


def values(definition: InstallDefinition, arch: Arch, here: Installation) -> dict[str, Any]:
    """All that templates may name."""
    bios = [f"/dev/{here.disk}"] if arch is Arch.X86_64 else []
    kernel_arguments = f"console=tty0 console={here.console},115200 net.ifnames=0"
    said: dict[str, Any] = {
        "base": str(definition.base),
        "title": definition.title,
        "family": definition.family,
        "version": definition.version,
        "arch": str(arch),
        "build_id": here.build_id,
        "port": here.port,
        "console": here.console,
        "disk": here.disk,
        "device": f"/dev/{here.disk}",
        "bios": bios,
        "kernel_arguments": kernel_arguments,
        "grub_arguments": f'GRUB_CMDLINE_LINUX="{kernel_arguments}"',
        "proxy": [here.proxy] if here.proxy else [],
        "gateway": [here.gateway] if here.gateway else [],
        "patches": list(definition.patches),
        "post": list(definition.post),
        "ok": f"OK {here.build_id}",
    }
    match definition.builder:
        case Builder.KICKSTART:
            return said | _kickstart(definition, here, bios)
        case Builder.PRESEED:
            return said | _debian(definition, arch, here) | _preseed(definition, arch, here, bios)
        case Builder.AUTOINSTALL:
            return said | _debian(definition, arch, here) | _autoinstall(definition, arch, bios)


def _unique(*names: str) -> list[str]:
    return list(dict.fromkeys(names))


def _kickstart(definition: InstallDefinition, here: Installation, bios: list[str]) -> dict[str, Any]:
    registration = definition.registration
    organization, _, key = here.activation_key.rpartition(":")
    account = {"organization": (registration and registration.organization) or organization, "key": key}
    boot = [{"mount": "biosboot", "type": "biosboot", "mib": 1, "options": []}] if bios else []
    return {
        "tree": [here.tree] if here.tree else [],
        "registration": [account] if registration else [],
        "disc": [] if here.tree or registration else ["cdrom"],
        # Anaconda ignores a source of a name that it has from its own configuration, so ours are called otherwise.
        "repos": [{"name": f"pocketcloud-{name}", "url": url} for name, url in here.repos.items()],
        "services": ",".join(RPM_SERVICES),
        "partitions": [
            *boot,
            {"mount": "/boot/efi", "type": "efi", "mib": _ESP_MIB, "options": []},
            {"mount": "/boot", "type": "ext4", "mib": _BOOT_MIB, "options": []},
            # The installer puts what grows behind everything of a fixed size. ext4 can be looked into without a mount.
            {"mount": "/", "type": "ext4", "mib": 4096, "options": ["--grow"]},
        ],
        # kdump reserves memory in every machine; Fedora's installer does not know it any more.
        "addons_off": ["com_redhat_kdump"] if definition.family in _RHEL_LIKE else [],
        "packages": _unique(*_RPM_PACKAGES, *(["grub2-pc"] if bios else []), *_patch(definition), *definition.packages),
        "unwanted": [name for name in _RPM_UNWANTED if name not in definition.packages],
        "registered": ["/etc/pki/consumer", "/etc/pki/entitlement"] if registration else [],
    }


def _patch(definition: InstallDefinition) -> Iterator[str]:
    if definition.patches:
        yield "patch"


def _address(url: str) -> dict[str, str]:
    """A mirror in the parts that debian-installer asks for. User and password stay with the host, so it passes them on."""
    parts = urlsplit(url)
    return {"url": url.rstrip("/"), "protocol": parts.scheme, "host": parts.netloc, "path": parts.path.rstrip("/") or "/"}


def _repo(definition: InstallDefinition, name: str) -> str:
    return next((url for repo, url in definition.repos.items() if repo == name), "")


def _debian(definition: InstallDefinition, arch: Arch, here: Installation) -> dict[str, Any]:
    """What Debian and Ubuntu have in common: the mirror during the installation, and the sources that machines keep."""
    ports = has_ports(definition, arch)
    public, theirs = archives(definition, arch)
    mirror = here.apt_mirror or (here.repos.get("ports", "") if ports else here.tree) or public
    security = (mirror if here.apt_mirror or ports else here.repos.get("security", "")) or theirs or mirror
    return {
        "suite": definition.suite,
        "mirror": _address(mirror),
        "security": _address(security),
        "sources": list(apt_lines(definition, public, theirs)),
    }


def preseed_packages(definition: InstallDefinition, arch: Arch) -> tuple[str, ...]:
    """The packages that a preseed names, beside what Debian's installer takes of itself."""
    legacy = ["grub-pc-bin"] if arch is Arch.X86_64 else []
    return tuple(_unique(*_DEBIAN_PACKAGES, "systemd-resolved", *legacy, *_patch(definition), *definition.packages))


def _preseed(definition: InstallDefinition, arch: Arch, here: Installation, bios: list[str]) -> dict[str, Any]:
    # As partman-auto's own recipes for UEFI and for GPT with BIOS have them; sizes are MB: least, priority, most.
    boot = [_part("1", "1", "1", "free", "$iflabel{ gpt } $reusemethod{ } method{ biosgrub }")] if bios else []
    esp, least = str(_ESP_MIB), "2048"
    root = "method{ format } format{ } use_filesystem{ } filesystem{ ext4 } mountpoint{ / }"
    secure = bool(_repo(definition, "security")) and not here.apt_mirror
    address = _address(here.repos.get("security", "") or _repo(definition, "security"))
    return {
        "partitions": [
            *boot,
            _part(esp, esp, esp, "free", "$iflabel{ gpt } $reusemethod{ } method{ efi } format{ }"),
            _part(least, "10000", "-1", "ext4", root),
        ],
        "packages": list(preseed_packages(definition, arch)),
        "update_services": "security, updates" if secure else "updates",
        "security_mirror": [address] if secure else [],
        "files": list(_files()),
        "tell_ok": f"    echo 'OK {here.build_id}' > /dev/virtio-ports/{here.port}",
    }


def _part(least: str, wanted: str, most: str, kind: str, how: str) -> dict[str, str]:
    return {"least": least, "wanted": wanted, "most": most, "type": kind, "how": how}


def _files() -> Iterator[dict[str, str]]:
    """The files of bootstrapped bases that are about cloud-init, ssh and the network: both kinds of Debian behave alike. Those
    of the initramfs are left out, as this one is to be generic."""
    for name, content in bootstrap.parts():
        path = "/" + name.removeprefix("tree/")
        if name.startswith("tree/") and not path.startswith("/etc/initramfs-tools/"):
            yield {"path": path, "folder": path.rpartition("/")[0], "text": content.decode()}


def autoinstall_packages(definition: InstallDefinition, arch: Arch) -> tuple[str, ...]:
    """The packages that autoinstall user-data names, beside what Ubuntu's installer takes of itself."""
    legacy = ["grub-pc-bin"] if arch is Arch.X86_64 else []
    return tuple(_unique(*_DEBIAN_PACKAGES, *legacy, *_patch(definition), *definition.packages))


def _autoinstall(definition: InstallDefinition, arch: Arch, bios: list[str]) -> dict[str, Any]:
    boot = [{"id": "bios", "size": "1M", "flags": ["bios_grub"], "grub": False}] if bios else []
    return {
        "partitions": [
            *boot,
            {"id": "esp", "size": f"{_ESP_MIB}M", "flags": ["boot"], "grub": True},
            {"id": "root", "size": -1, "flags": [], "grub": False},
        ],
        "file_systems": [
            {"id": "root", "type": "ext4", "mount": "/"},
            {"id": "esp", "type": "fat32", "mount": "/boot/efi"},
        ],
        "packages": list(autoinstall_packages(definition, arch)),
    }
