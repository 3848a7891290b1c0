"""The host's bridges, and which of them libvirt's active networks have.

Outside facts: the kernel's sysfs (a bridge has the folders `bridge` and `brif` in its entry of /sys/class/net); libvirt keeps a
status file of each active network in /run/libvirt/network, which only root may read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.host.files import text

# libvirt's own name for a bridge, and ours (model.names.bridge_name).
LIKE_LIBVIRTS = re.compile(r"virbr[0-9]+|pc-[0-9a-f]{10}")
_STATUS = "run/libvirt/network"
_BRIDGE_ELEMENT = re.compile(r"<bridge\b[^>]*\bname=['\"]([^'\"]+)['\"]")
_BRIDGED = re.compile(r"<forward\b[^>]*\bmode=['\"]bridge['\"]")
_NAT = re.compile(r"<forward\b[^>]*\bmode=['\"]nat['\"]")


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge of the host, and the interfaces that are plugged into it, without libvirt's own stand-in (virbr0-nic)."""

    name: str
    ports: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ActiveNetwork:
    """A libvirt network that is up, on a bridge that libvirt made for it: its name, its bridge, and whether it reaches the world
    through the host's address."""

    name: str
    bridge: str
    nat: bool


def read_bridges(root: Path) -> tuple[Bridge, ...]:
    """All bridges, by name."""
    try:
        entries = sorted((root / "sys/class/net").iterdir())
    except OSError:
        return ()
    return tuple(Bridge(entry.name, _ports(entry)) for entry in entries if (entry / "bridge").is_dir())


def read_free(root: Path) -> tuple[str, ...]:
    """The bridges that machines may be put on by name: those of the host's own, without libvirt's and ours."""
    made = {network.bridge for network in read_active(root) or ()}
    names = (bridge.name for bridge in read_bridges(root))
    return tuple(name for name in names if name not in made and not LIKE_LIBVIRTS.fullmatch(name))


def _ports(entry: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(port.name for port in (entry / "brif").iterdir() if port.name != f"{entry.name}-nic"))
    except OSError:
        return ()


def read_active(root: Path) -> tuple[ActiveNetwork, ...] | None:
    """libvirt's active networks that have a bridge of their own, by their files' names; None where those may not be listed."""
    folder = root / _STATUS
    try:
        names = sorted(path.name for path in folder.iterdir() if path.suffix == ".xml")
    except FileNotFoundError:
        return ()
    except OSError:
        return None
    found = []
    for name in names:
        said = text(root, f"{_STATUS}/{name}")
        # The bridge of a network that is one is the host's own, and so are its addresses.
        if (match := _BRIDGE_ELEMENT.search(said)) and not _BRIDGED.search(said):
            found.append(ActiveNetwork(name.removesuffix(".xml"), match[1], _NAT.search(said) is not None))
    return tuple(found)
