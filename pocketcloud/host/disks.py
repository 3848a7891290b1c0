"""Block devices as they are on this host: what lsblk, wipefs, sysfs, udev and the mount tables say, made one.

Where two of them say something of the same thing, all of it counts: a mount that only one of them knows is a mount. Whether
a device may be chosen for anything is kit/interlocks.py.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pocketcloud.errors import HostLacks
from pocketcloud.host.disk_sources import BlockNode, DiskSources, gather
from pocketcloud.host.files import number
from pocketcloud.model.disk import NAMELESS, UNREADABLE, BlockDevice, BlockDevices
from pocketcloud.system import Runner, run

# sysfs counts in these whatever the disk does (Documentation/ABI/stable/sysfs-block).
_SECTOR = 512
_ESCAPED = re.compile(r"\\([0-7]{3})")
# Tables of partitions, as wipefs names them; PMBR is what a GPT puts in the place of the old one.
_TABLES = frozenset(("gpt", "dos", "PMBR", "sun", "sgi", "mac", "bsd", "atari", "amiga", "minix-part"))
_ROOT = Path("/")


@dataclass
class _Uses:
    """What is known of the devices' use, by kernel name, while it is put together."""

    mounts: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    swaps: set[str] = field(default_factory=set)
    holders: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    parents: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    together: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


def read_block_devices(root: Path = _ROOT, run: Runner = run) -> BlockDevices:
    """All block devices of the host. Some 50 ms, and the time a sleeping disk takes to wake.

    Needs root to see every signature and every mount namespace; what cannot be read counts as unreadable, never as free.
    Raises HostLacks (util-linux is missing), CommandFailed (lsblk does not answer).
    """
    return assemble(gather(root, run))


def assemble(sources: DiskSources) -> BlockDevices:
    """The devices that the sources tell of; pure."""
    told = tuple(_rows(sources.lsblk))
    rows = {str(row["kname"]): row for row in told}
    nodes = {node.name: node for node in sources.nodes if not _is_empty_loop(node)}
    found = {name: _Found() for name in nodes}
    for report in sources.signatures:
        _read_signatures(report, found)
    names = dict(sources.links)
    names |= {f"/dev/mapper/{mapped}": name for name, node in nodes.items() if (mapped := node.attributes.get("dm/name"))}
    names |= {str(rows[name]["path"]): name for name in nodes if rows.get(name, {}).get("path")}
    names |= {f"/dev/{name}": name for name in nodes}
    uses = _uses(sources, nodes, names)
    _add_rows(told, nodes, uses)
    devices = [
        _device(node, rows.get(name, {}), found[name], sources, uses)
        for name, node in sorted(nodes.items(), key=lambda item: _natural(item[0]))
    ]
    disks = {device.name: device for device in devices}
    whole = [_part_of(disks[nodes[d.name].disk], d) if nodes[d.name].disk in disks else d for d in devices]
    return BlockDevices(tuple(whole), {path: name for path, name in sources.links.items() if name in nodes})


def _part_of(disk: BlockDevice, part: BlockDevice) -> BlockDevice:
    """A partition, with what is known of its disk only."""
    return replace(
        part,
        model=disk.model,
        serial=disk.serial,
        wwn=disk.wwn,
        transport=disk.transport,
        usb=disk.usb,
        removable=disk.removable,
        scsi=disk.scsi,
    )


@dataclass
class _Found:
    """What wipefs saw on one device."""

    types: list[str] = field(default_factory=list)
    label: str = ""
    table: str = ""


def _is_empty_loop(node: BlockNode) -> bool:
    return node.name.startswith("loop") and not node.disk and "loop/backing_file" not in node.attributes


def _device(node: BlockNode, row: Mapping[str, Any], found: _Found, sources: DiskSources, uses: _Uses) -> BlockDevice:
    has, udev, name = node.attributes, sources.udev.get(node.name, {}), node.name
    signatures = _signatures(
        found.types, _word(row.get("fstype")) or udev.get("ID_FS_TYPE", ""), unreadable=name in sources.unreadable
    )
    if not signatures and not found.table and name in sources.random_looking:
        signatures = (NAMELESS,)
    usb = node.usb
    model = _word(row.get("model")) or has.get("device/model") or udev.get("ID_MODEL", "")
    serial = _word(row.get("serial")) or udev.get("ID_SERIAL_SHORT") or has.get("device/serial") or has.get("serial", "")
    wwn = _word(row.get("wwn")) or udev.get("ID_WWN") or has.get("device/wwid") or has.get("wwid", "")
    return BlockDevice(
        name=name,
        path=Path(_word(row.get("path")) or f"/dev/{name.replace('!', '/')}"),
        kind=_kind(node, _word(row.get("type"))),
        size=_number(has.get("size")) * _SECTOR,
        logical_sector=_number(has.get("queue/logical_block_size")) or _SECTOR,
        physical_sector=_number(has.get("queue/physical_block_size")) or _SECTOR,
        read_only=has.get("ro") == "1",
        rotational=has.get("queue/rotational") == "1",
        removable=has.get("removable") == "1",
        model=_word(model),
        serial=_word(serial),
        wwn=_word(wwn),
        transport="usb" if usb else _word(row.get("tran")),
        usb=replace(usb, driver=usb.driver or udev.get("ID_USB_DRIVER", "")) if usb else None,
        diskseq=_number(has.get("diskseq")),
        optimal_io=_number(has.get("queue/optimal_io_size")),
        signature=signatures[0] if signatures else "",
        label=_word(found.label) or _word(row.get("label")),
        # lsblk gives a partition the table that it is an entry of.
        partition_table=found.table or ("" if node.disk else _word(row.get("pttype"))),
        mounts=tuple(sorted(uses.mounts[name])),
        swap=name in uses.swaps,
        holders=tuple(sorted(uses.holders[name])),
        parents=tuple(sorted(uses.parents[name])),
        number=has.get("dev", ""),
        signatures=signatures,
        together=tuple(sorted(uses.together[name])),
        backing_file=has.get("loop/backing_file", ""),
        port=_word(udev.get("ID_PATH")),
        discard_max=_number(has.get("queue/discard_max_bytes")),
        discard_granularity=_number(has.get("queue/discard_granularity")),
        write_cache=has.get("queue/write_cache", ""),
        fua={"0": False, "1": True}.get(has.get("queue/fua", "")),
        scsi=node.scsi,
    )


def _kind(node: BlockNode, told: str) -> str:
    """As lsblk says it, and as it would say it of what it leaves out."""
    if node.disk:
        return "part"
    if node.name.startswith("dm-"):
        prefix = node.attributes.get("dm/uuid", "").partition("-")[0].lower()
        return (
            told
            if told not in ("", "disk", "part", "loop")
            else {"lvm": "lvm", "crypt": "crypt", "mpath": "mpath"}.get(prefix, "dm")
        )
    if node.name.startswith("md"):
        return told if told not in ("", "disk", "part", "loop") else node.attributes.get("md/level", "md")
    return told or ("loop" if node.name.startswith("loop") else "rom" if node.name.startswith("sr") else "disk")


def _signatures(seen: Sequence[str], told: str, *, unreadable: bool) -> tuple[str, ...]:
    """Everything that anyone knows to be on it: members of something first, since it matters most."""
    known = [*dict.fromkeys([*seen, *([told] if told else []), *([UNREADABLE] if unreadable else [])])]
    return tuple(sorted(known, key=lambda kind: not (kind.endswith("_member") or kind == "crypto_LUKS")))


# -- who uses what


def _uses(sources: DiskSources, nodes: Mapping[str, BlockNode], names: Mapping[str, str]) -> _Uses:
    uses = _Uses()
    for name, node in nodes.items():
        uses.holders[name].update(node.holders)
        below = {node.disk, *node.slaves} - {""}
        # A loop device may be made of a disk; the kernel does not list it as that disk's holder.
        if backing := names.get(node.attributes.get("loop/backing_file", "")):
            below.add(backing)
        for parent in below:
            uses.parents[name].add(parent)
            if parent != node.disk:
                uses.holders[parent].add(name)
    numbers = {number: name for name, node in nodes.items() if (number := node.attributes.get("dev"))}
    for table in sources.mountinfos:
        for number, source, point in _mounts(table):
            for mounted in (numbers.get(number), names.get(source)):
                if mounted:
                    uses.mounts[mounted].add(point)
    for row in sources.swaps.splitlines()[1:]:
        path = _unescaped(row.split()[0]) if row.split() else ""
        if path in names:
            uses.swaps.add(names[path])
    _add_btrfs(sources, uses)
    return uses


def _add_rows(rows: Sequence[Mapping[str, Any]], nodes: Mapping[str, BlockNode], uses: _Uses) -> None:
    for row in rows:
        name, parent = str(row["kname"]), _word(row.get("pkname"))
        if parent and name in nodes:
            uses.parents[name].add(parent)
            if parent != nodes[name].disk:
                uses.holders[parent].add(name)
        for point in _mountpoints(row):
            if point == "[SWAP]":
                uses.swaps.add(name)
            else:
                uses.mounts[name].add(point)


def _add_btrfs(sources: DiskSources, uses: _Uses) -> None:
    """A btrfs of several devices is mounted by the name of one of them."""
    for members in sources.btrfs_sets:
        points = set().union(*(uses.mounts[name] for name in members)) or {"somewhere (btrfs)"}
        for name in members:
            uses.mounts[name] |= points
            uses.together[name] |= set(members) - {name}
    for name, count in sources.btrfs_counts.items():
        if count > 1 and not uses.together[name]:
            uses.together[name].add(f"{count - 1} more of its file system")


def _mounts(table: str) -> Iterator[tuple[str, str, str]]:
    """Device number, source and mount point of each line (proc_pid_mountinfo(5))."""
    for entry in table.splitlines():
        fields, _, rest = entry.partition(" - ")
        words, behind = fields.split(" "), rest.split(" ")
        if len(words) >= 5:
            yield words[2], _unescaped(behind[1]) if len(behind) > 1 else "", _unescaped(words[4])


def _unescaped(word: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), word)


# -- reports


def _rows(report: str) -> Iterator[Mapping[str, Any]]:
    """All rows of lsblk's tree; a device that stands on several comes several times, each with another parent."""
    try:
        front = list(json.loads(report or "{}").get("blockdevices") or ())
    except (ValueError, AttributeError, TypeError):
        raise HostLacks(
            f"lsblk gives no list of disks, but: {report[:60].strip()!r}",
            hint="lsblk --version; util-linux 2.27 or newer is needed",
        ) from None
    while front:
        row = front.pop()
        if not isinstance(row, Mapping):
            continue
        front += row.get("children") or ()
        if row.get("kname"):
            yield row


def _mountpoints(row: Mapping[str, Any]) -> Iterator[str]:
    """A list, with null for none; before util-linux 2.37 there is no such column."""
    points = row.get("mountpoints") or ()
    yield from (str(point) for point in (points if isinstance(points, list) else [points]) if point)


def _read_signatures(report: str, found: Mapping[str, _Found]) -> None:
    try:
        rows = [row for row in json.loads(report or "{}").get("signatures") or () if isinstance(row, Mapping)]
    except (ValueError, AttributeError, TypeError):
        raise HostLacks(
            f"wipefs gives no list of what is on disks, but: {report[:60].strip()!r}",
            hint="wipefs --version; util-linux 2.33 or newer is needed",
        ) from None
    for row in rows:
        if (seen := found.get(str(row.get("device", "")).replace("/", "!"))) is None:
            continue
        kind = _word(row.get("type"))
        if row.get("usage") == "partition-table" or kind in _TABLES:
            seen.table = kind if kind != "PMBR" or not seen.table else seen.table
            seen.table = seen.table if seen.table != "PMBR" else "gpt"
        elif kind and kind not in seen.types:
            seen.types.append(kind)
            seen.label = seen.label or _word(row.get("label"))


def _word(value: object) -> str:
    """A text from a disk, for people: blanks made one, and nothing in it that a terminal would obey."""
    return " ".join("".join(char if char.isprintable() else "?" for char in str(value or "")).split())


def _number(value: object) -> int:
    return number(str(value or "")) or 0


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    """sda2 before sda10, sdz before sdaa."""
    return tuple((int(part), "") if part.isdigit() else (len(part), part) for part in re.findall(r"[0-9]+|[^0-9]+", name))
