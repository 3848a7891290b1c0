"""libvirt's daemons on this host: which run, which sockets are there, which start at boot. From /proc, /run and systemd's links.

Outside facts: libvirt's docs/daemons.rst: one daemon for all (libvirtd) or one per task (virtqemud, virtnetworkd, ...), never
both; either needs virtlogd for what machines write on their consoles.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.host.processes import running

_KNOWN = ("libvirtd", "virtqemud", "virtnetworkd", "virtlogd", "virtproxyd")
# By the daemon that listens there; virtproxyd serves libvirtd's in the other form.
_SOCKETS = {
    "libvirt-sock": "libvirtd",
    "virtqemud-sock": "virtqemud",
    "virtnetworkd-sock": "virtnetworkd",
    "virtlogd-sock": "virtlogd",
}
_PLACE = "run/libvirt"


@dataclass(frozen=True, slots=True)
class Daemons:
    """`running`: names of processes; `sockets`: by daemon, the socket's mode as `ls -l` has it (behind one, systemd may start
    the daemon at its first use); `enabled`: units that systemd starts at boot."""

    running: frozenset[str]
    sockets: Mapping[str, str]
    enabled: frozenset[str]

    def reachable(self, name: str) -> bool:
        """Whether a daemon runs, or is started when it is asked for."""
        return name in self.running or name in self.sockets

    def starts_at_boot(self, name: str) -> bool:
        """Whether systemd starts it, or listens for it."""
        return f"{name}.service" in self.enabled or f"{name}.socket" in self.enabled


def read_daemons(root: Path) -> Daemons:
    """The daemons of the host under `root`."""
    there = running(root, _KNOWN)
    sockets = {daemon: mode for name, daemon in _SOCKETS.items() if (mode := _socket(root / _PLACE / name))}
    if "virtproxyd" in there and "libvirtd" not in there:
        sockets.pop("libvirtd", None)
    return Daemons(there, sockets, _enabled(root))


def _socket(path: Path) -> str:
    try:
        return stat.filemode(path.stat().st_mode)
    except OSError:
        return ""


def _enabled(root: Path) -> frozenset[str]:
    """The units of libvirt's that a target wants (systemd.unit(5): links in TARGET.wants)."""
    try:
        links = [link.name for folder in (root / "etc/systemd/system").glob("*.wants") for link in folder.iterdir()]
    except OSError:
        return frozenset()
    return frozenset(name for name in links if name.rpartition(".")[0] in _KNOWN)
