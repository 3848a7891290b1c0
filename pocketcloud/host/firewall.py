"""What decides whether machines reach the world through the host: forwarding, and firewalls beside libvirt's own rules.

Outside facts: `nft -j list chains` (libnftables-json(5)); iptables' tables of the old kind stand in /proc/net/ip_tables_names;
sysctl.d(5); firewalld.zone(5); ufw's files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketcloud.errors import PocketcloudError
from pocketcloud.host.drop_ins import assignments, drop_ins
from pocketcloud.host.files import line, text
from pocketcloud.host.hardware import read_kernel
from pocketcloud.system import Runner

_SYSCTL = ("etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d", "lib/sysctl.d")
# The last two names are the same switch (the kernel's ip-sysctl.rst).
_SWITCHES = ("net.ipv4.ip_forward", "net.ipv4.conf.all.forwarding")
# systemd's control group of a running unit, on version 2 and 1 of the groups.
_UNITS = ("sys/fs/cgroup/system.slice", "sys/fs/cgroup/systemd/system.slice")
_ZONES = ("etc/firewalld/zones", "usr/lib/firewalld/zones")
_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Forwarding:
    """`on`: as the kernel has it now (None: not told); `forced_off`: the file that switches it off, empty if none does."""

    on: bool | None
    forced_off: str


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain that sees what is forwarded and drops what no rule of its own accepts: `ip filter FORWARD` is iptables'."""

    family: str
    table: str
    name: str

    @property
    def iptables(self) -> bool:
        """Whether it is the one that iptables fills, which libvirt's rules can go into."""
        return (self.family, self.table, self.name) == ("ip", "filter", "FORWARD")

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.name}"


@dataclass(frozen=True, slots=True)
class Firewall:
    """`backend`: what network.conf asks libvirt to use (empty: nothing); `drops`: the dropping chains, None where they cannot be
    read; `others`: known firewalls and what is known to set one up that run; `zone`: whether firewalld has libvirt's zone."""

    backend: str
    drops: tuple[Chain, ...] | None
    others: tuple[str, ...]
    zone: bool


def read_forwarding(root: Path) -> Forwarding:
    """Forwarding of IPv4, now and by the files that are read at boot."""
    now = line(root, "proc/sys/net/ipv4/ip_forward")
    last, value = "", ""
    for file in (*drop_ins(root, _SYSCTL), "etc/sysctl.conf", "etc/ufw/sysctl.conf"):
        for name, said in assignments(root, file):
            if name.lstrip("-").strip().replace("/", ".") in _SWITCHES:
                last, value = file, said
    return Forwarding({"0": False, "1": True}.get(now), f"/{last}" if value == "0" else "")


def read_firewall(root: Path, run: Runner) -> Firewall:
    """Firewalls as far as this user may see them. Only tables that are there are asked for: no module is loaded for it."""
    settings = dict(assignments(root, "etc/libvirt/network.conf"))
    others = tuple(name for name, there in _others(root) if there)
    zone = any((root / folder / "libvirt.xml").is_file() for folder in _ZONES)
    return Firewall(settings.get("firewall_backend", "").strip("\"'"), _drops(root, run), others, zone)


def _others(root: Path) -> Iterator[tuple[str, bool]]:
    yield "docker", (root / "sys/class/net/docker0").exists() or _runs(root, "docker.service")
    yield "ufw", dict(assignments(root, "etc/ufw/ufw.conf")).get("ENABLED") == "yes"
    yield "firewalld", _runs(root, "firewalld.service")


def _runs(root: Path, unit: str) -> bool:
    return any((root / folder / unit).is_dir() for folder in _UNITS)


def _drops(root: Path, run: Runner) -> tuple[Chain, ...] | None:
    found: list[Chain] = []
    if _has_nftables(root):
        try:
            told = json.loads(run(["nft", "-j", "list", "chains"], timeout=_TIMEOUT).out)
            found += _dropping(told)
        except (PocketcloudError, ValueError, TypeError, AttributeError):
            return None
    if "filter" in line(root, "proc/net/ip_tables_names").split():
        try:
            said = run(["iptables-legacy", "-S", "FORWARD"], timeout=_TIMEOUT).out
        except PocketcloudError:
            return None
        if "-P FORWARD DROP" in said.splitlines():
            found.append(Chain("ip", "filter", "FORWARD"))
    return tuple(dict.fromkeys(found))


def _has_nftables(root: Path) -> bool:
    """Whether the kernel has nftables now; where they are a module that is not loaded there are no tables, and asking nft would
    load it. A kernel without modules shows none of what is built in."""
    loaded = (root / "sys/module/nf_tables").is_dir() or not text(root, "proc/modules").strip()
    return loaded or "/nf_tables.ko" in text(root, f"lib/modules/{read_kernel(root)}/modules.builtin")


def _dropping(told: dict[str, Any]) -> Iterator[Chain]:
    for entry in told.get("nftables", ()):
        chain = entry.get("chain", {})
        if chain.get("hook") == "forward" and chain.get("policy") == "drop" and chain.get("family") in ("ip", "inet"):
            yield Chain(str(chain["family"]), str(chain.get("table", "")), str(chain.get("name", "")))
