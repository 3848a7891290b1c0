"""The seed of a guest: a small ISO image from which cloud-init's NoCloud source takes who the machine is and who may enter.

Only identity, keys and addresses are in it. What a lab provisions is done later over ssh, where it can be watched and fail.
The documents are built as data and written as JSON, which is YAML too, so that no value can become anything but a value.
Sources: cloud-init's reference for the NoCloud source (label, file names) and for networking version 2.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketcloud import guest_cache
from pocketcloud.files import write_whole
from pocketcloud.iso import iso_image
from pocketcloud.keys import KeyPair

# NoCloud looks for a file system labelled `cidata` or `CIDATA`; ISO 9660 allows capital letters only.
_LABEL = "CIDATA"
OUTER_SUBNETS = "/etc/pocketcloud/outer-subnets"
"""Where a machine that runs machines finds which subnets are in use around it, one a line: what it cannot see, and would use."""


@dataclass(frozen=True, slots=True)
class SeedNic:
    """A network interface by its MAC, "52:54:00:12:34:56"; its address comes from DHCP."""

    mac: str


@dataclass(frozen=True, slots=True)
class Seed:
    """What a guest is told at its first boot.

    `instance_id` tells cloud-init whether this is a first boot: a new one makes it do everything again. `hostname` is without
    the domain, `domain` may be empty. `host_key` becomes the sshd's only host key. `authorized_keys` are root's.
    `outer` are subnets, as 10.77.3.0/24, that machines inside of it had better not use.
    `cache_port` is where the kit's cache is served on the host's addresses in the guest's networks (0: it is not).
    Everything must be printable ASCII (keys.py and model/names.py see to that): ValueError otherwise.
    """

    instance_id: str
    hostname: str
    domain: str
    host_key: KeyPair
    authorized_keys: tuple[str, ...]
    nics: tuple[SeedNic, ...]
    cache_port: int = 0
    outer: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        lines = (self.instance_id, self.hostname, self.domain, self.host_key.public, *self.authorized_keys, *self.outer)
        for line in (*lines, *(nic.mac for nic in self.nics)):
            if not (line.isascii() and (line.isprintable() or not line)):
                raise ValueError(f"{line!r} is not printable ASCII")

    @property
    def fqdn(self) -> str:
        """The full name: hostname and domain, or the hostname alone."""
        return f"{self.hostname}.{self.domain}" if self.domain else self.hostname


def user_data(seed: Seed) -> str:
    """The cloud-config document of `seed`."""
    config: dict[str, Any] = {
        "hostname": seed.hostname,
        "fqdn": seed.fqdn,
        # Adds the name to /etc/hosts and leaves the rest of that file to the lab ("true" would write it anew at every boot).
        "manage_etc_hosts": "localhost",
        # Naming root alone means that the distribution's default user is not made. Its password stays as the base has it.
        "users": [{"name": "root", "lock_passwd": False, "ssh_authorized_keys": list(seed.authorized_keys)}],
        "disable_root": False,
        "ssh_pwauth": False,
        # With ssh_keys given cloud-init makes none of its own; the ones that an unsealed base may have are deleted.
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": seed.host_key.private, "ed25519_public": seed.host_key.public},
        "ssh": {"emit_keys_to_console": False},
        "no_ssh_fingerprints": True,
        "growpart": {"mode": "auto", "devices": ["/"]},
        "resize_rootfs": True,
        # The base's own package sources stay, and nothing is fetched: a lab need not have a way out.
        "apt": {"preserve_sources_list": True},
        "package_update": False,
        "package_upgrade": False,
    }
    if seed.cache_port:
        config |= guest_cache.cloud_config(seed.cache_port)
    if seed.outer:
        told = {"path": OUTER_SUBNETS, "content": "".join(f"{subnet}\n" for subnet in seed.outer), "permissions": "0644"}
        config["write_files"] = [*config.get("write_files", ()), told]
    return "#cloud-config\n" + _document(config)


def meta_data(seed: Seed) -> str:
    """The meta-data document of `seed`."""
    return _document({"instance-id": seed.instance_id, "local-hostname": seed.hostname})


def network_config(seed: Seed) -> str:
    """The network-config document (version 2) of `seed`: DHCP on every interface, found by its MAC, keeping the kernel's names.

    `optional`: a network without DHCP must not hold up the boot.
    """
    ethernets = {
        f"nic{index}": {
            "match": {"macaddress": nic.mac.lower()},
            # The order of the lab file: eth0 is on the machine's first network.
            "set-name": f"eth{index}",
            "dhcp4": True,
            # The lab's domain, which DHCP names, is searched: so `web` alone is found. cloud-init 22.4 looks this up by the
            # interface's name, and finds it only where that is set.
            "dhcp4-overrides": {"use-domains": True},
            "dhcp6": False,
            "optional": True,
        }
        for index, nic in enumerate(seed.nics)
    }
    return _document({"version": 2, "ethernets": ethernets})


def _document(data: object) -> str:
    return json.dumps(data, indent=2) + "\n"


def write_seed(path: Path, seed: Seed) -> None:
    """Write the ISO image of `seed` to `path`, whole or not at all; replaces what was there.

    Its mode is 0600, because the host key is in it; libvirt gives disks to QEMU's user when a machine starts.
    """
    files = {"meta-data": meta_data(seed), "user-data": user_data(seed), "network-config": network_config(seed)}
    write_whole(path, iso_image(_LABEL, {name: text.encode("ascii") for name, text in files.items()}), 0o600)
