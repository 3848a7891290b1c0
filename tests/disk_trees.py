"""Whole hosts' block devices, made up, as lsblk, wipefs, sysfs, udev and the mount tables would tell of them. Each device
knows whether it may be chosen, and what has to be said if not.

`Tree.sources()` are the texts, quickly; `Tree.plant` writes them as files below a root. tests/disk_uses.py fills the trees.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketcloud.host.disk_sources import BlockNode, DiskSources
from pocketcloud.model.disk import Scsi
from pocketcloud.model.sizes import GIB, KIB
from pocketcloud.model.usb import UsbHop, UsbPath
from pocketcloud.system import CommandFailed, Completed, Runner

MODELS = ("Portable SSD T7", "ASM105x", "", "Elements 25A2", "SAMSUNG MZVL2512HCJQ", "USB\tDisk \x1b[31m2.0")
# Cheap bridges give one serial to all.
SERIALS = ("123456789012", "0000000000000000", "", "DD56419883891")
USAGES = {"LVM2_member": "raid", "linux_raid_member": "raid", "crypto_LUKS": "crypto", "gpt": "partition-table"}
NONSENSE_IO = "33553920"


@dataclass
class Made:
    """One made-up device."""

    name: str
    kind: str
    size: int
    number: str
    disk: str = ""
    path: str = ""
    slaves: list[str] = field(default_factory=list)
    holders: list[str] = field(default_factory=list)
    attributes: dict[str, str] = field(default_factory=dict)
    row: dict[str, str] = field(default_factory=dict)
    signatures: list[str] = field(default_factory=list)
    label: str = ""
    table: str = ""
    usb: UsbPath | None = None
    scsi: Scsi | None = None
    points: list[str] = field(default_factory=list)
    readable: bool = True


class Tree:
    """A host that is being made up; `free` may be chosen, all others not, for a reason that has the word in `reasons`."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - repeatable, no secret
        self.made: dict[str, Made] = {}
        self.free: set[str] = set()
        self.reasons: dict[str, str] = {}
        self.tables: tuple[list[str], ...] = ([], [], [])
        self.swaps: list[str] = []
        self.links: dict[str, str] = {}
        self.btrfs_sets: list[tuple[str, ...]] = []
        self.btrfs_counts: dict[str, int] = {}
        self.kit_sources: set[str] = set()
        self.file: Path | None = None
        self._letters = iter(f"sd{a}{b}" for a in ("", "a") for b in "abcdefghijklmnopqrstuvwxyz")
        self._minor = 0
        # lsblk before util-linux 2.33 says everything as text, before 2.37 there is no MOUNTPOINTS.
        self.old = self.chance.random() < 0.2
        # Without udev, Debian's lsblk knows no file system.
        self.udev = self.chance.random() < 0.5
        # What stands on what is known from sysfs alone.
        self.flat = self.chance.random() < 0.3
        self.mounted: dict[str, set[str]] = {}

    # -- devices

    def number(self, major: int) -> str:
        self._minor += 1
        return f"{major}:{self._minor}"

    def add(self, made: Made) -> Made:
        made.path = made.path or f"/dev/{made.name}"
        self.made[made.name] = made
        return made

    def disk(self, size: int = 0, name: str = "") -> Made:
        chance = self.chance
        serial = chance.choice(SERIALS) if chance.random() < 0.4 else f"S{chance.randrange(16**8):08X}"
        attributes = {
            "queue/rotational": chance.choice("01"),
            "queue/logical_block_size": chance.choice(("512", "512", "4096")),
            "queue/physical_block_size": "4096",
            "queue/optimal_io_size": chance.choice(("0", NONSENSE_IO)),
            "removable": chance.choice("01"),
        }
        if chance.random() < 0.7:
            attributes["diskseq"] = str(chance.randrange(1, 99))
        name = name or next(self._letters)
        usb, scsi = None, None
        if chance.random() < 0.5:
            bridge = UsbHop(f"2-1-{name}", 10000, version="3.20", id="152d:0578")
            hub = UsbHop(f"usb2-{name}", chance.choice((480, 5000)), version="3.00", id="1d6b:0003")
            usb = UsbPath(chance.choice(("uas", "usb-storage")), (bridge, hub), autosuspend=True)
            scsi = Scsi("0:0:0:0", chance.choice(("full", "unmap")), "write back", chance.choice((None, True, False)))
        made = Made(name, "disk", size or chance.randrange(8, 4096) * GIB, self.number(8), usb=usb, scsi=scsi)
        made.attributes |= attributes
        made.row |= {"model": chance.choice(MODELS), "serial": serial, "tran": "usb" if usb else "sata"}
        self.links[f"/dev/disk/by-id/x-{made.name}"] = made.name
        return self.add(made)

    def part(self, disk: Made, size: int, *signatures: str) -> Made:
        disk.table = disk.table or self.chance.choice(("gpt", "dos"))
        count = 1 + sum(one.disk == disk.name for one in self.made.values())
        name = f"{disk.name}{'p' if disk.name[-1].isdigit() else ''}{count}"
        made = Made(name, "part", size, self.number(8), disk=disk.name, signatures=list(signatures))
        made.attributes |= {"partition": str(count)}
        return self.add(made)

    def stacked(self, kind: str, *below: Made, sides: str = "") -> Made:
        """A device that stands on others; `sides` who knows it: "both", "upper", "lower", by chance."""
        number = sum(one.name.startswith(("dm-", "md")) for one in self.made.values())
        name = f"md{number}" if kind.startswith("raid") else f"dm-{number}"
        made = Made(name, kind, 20 * GIB, self.number(253))
        if not kind.startswith("raid"):
            name_in_dm = f"{kind}--{number}" if self.chance.random() < 0.7 else f"my\\x20{kind}{number}"
            made.path = f"/dev/mapper/{name_in_dm}"
            made.attributes["dm/name"] = name_in_dm
            made.attributes["dm/uuid"] = {"lvm": "LVM-abc", "crypt": "CRYPT-LUKS2-abc", "mpath": "mpath-36"}.get(kind, "other")
        sides = sides or self.chance.choice(("both", "both", "upper", "lower"))
        if sides != "lower":
            made.slaves += [one.name for one in below]
        if sides != "upper":
            for one in below:
                one.holders.append(name)
        self.protect(made, "no disk")
        return self.add(made)

    # -- uses

    def mount(self, made: Made, point: str) -> None:
        """Mounted: told by number, by source or by both, in one or more of the mount tables, or by lsblk alone."""
        self.mounted.setdefault(made.name, set()).add(point)
        by = self.chance.choice(("number", "source", "both"))
        number = made.number if by != "source" else f"0:{self.chance.randrange(20, 90)}"
        source = made.path if by != "number" else "/dev/root"
        if by == "source" and self.chance.random() < 0.3:
            source = f"/dev/disk/by-uuid/{made.name}"
            self.links[source] = made.name
        entry = (
            f"{self.chance.randrange(20, 900)} 1 {number} / {_escaped(point)} rw,relatime shared:1 - ext4 {_escaped(source)} rw"
        )
        told = self.chance.sample(range(3), self.chance.randrange(1, 4))
        for number_of in told:
            self.tables[number_of].append(entry)
        if 0 in told and by != "number":
            made.points.append(point)
        elif not self.old and self.chance.random() < 0.1:
            for table in self.tables:
                table[:] = [line for line in table if line != entry]
            made.points.append(point)

    def swap(self, made: Made) -> None:
        if self.old or self.chance.random() < 0.7:
            self.swaps.append(f"{made.path} partition 2097148 0 -2")
        else:
            made.points.append("[SWAP]")

    def protect(self, made: Made, word: str, *more: Made) -> None:
        for one in (made, *more):
            self.reasons[one.name] = word

    def allow(self, *made: Made) -> None:
        self.free |= {one.name for one in made}

    # -- what the host says

    def sources(self) -> DiskSources:
        readable = {name for name, made in self.made.items() if self.is_looked_at(made)}
        dead = frozenset(name for name in readable if not self.made[name].readable)
        reports = tuple(self.wipefs([name]) for name in sorted(readable - dead)) if dead else (self.wipefs(sorted(readable)),)
        return DiskSources(
            lsblk=self.lsblk(),
            signatures=reports if readable else (),
            nodes=tuple(self.node(self.made[name]) for name in sorted(self.made)),
            mountinfos=tuple("\n".join(table) + "\n" for table in self.tables if table),
            swaps="\n".join(["Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority", *self.swaps]) + "\n",
            links=self.links | {made.path: made.name for made in self.made.values() if made.path.startswith("/dev/mapper/")},
            unreadable=dead,
            btrfs_sets=tuple(self.btrfs_sets),
            btrfs_counts=self.btrfs_counts,
        )

    def is_looked_at(self, made: Made) -> bool:
        return made.size > 0 and not made.slaves and not made.name.startswith(("dm-", "md", "sr", "zram", "nbd"))

    def attributes(self, made: Made) -> dict[str, str]:
        own = {"dev": made.number, "size": str(made.size // 512), "ro": "0", "removable": "0"} | made.attributes
        if made.disk:
            whole = self.attributes(self.made[made.disk])
            own |= {name: value for name, value in whole.items() if name.startswith("queue/") or name == "diskseq"}
            own |= {"ro": "1"} if whole["ro"] == "1" else {}
        return own

    def node(self, made: Made) -> BlockNode:
        usb = self.made[made.disk].usb if made.disk else made.usb
        return BlockNode(
            made.name, self.attributes(made), tuple(sorted(made.holders)), tuple(sorted(made.slaves)), made.disk, usb, made.scsi
        )

    def lsblk(self) -> str:
        tops = [made for made in self.made.values() if self.flat or not (made.disk or made.slaves)]
        return json.dumps({"blockdevices": [self._row(made, "") for made in tops]})

    def _row(self, made: Made, parent: str) -> dict[str, Any]:
        above = [one for one in self.made.values() if one.disk == made.name or made.name in one.slaves]
        known = made.signatures[0] if len(made.signatures) == 1 and self.udev else None
        row: dict[str, Any] = {"kname": made.name, "path": made.path, "type": made.kind, "pkname": parent or None}
        row |= {
            "size": str(made.size) if self.old else made.size,
            "fstype": known,
            "label": made.label or None,
            "pttype": made.table or None,
        }
        row |= made.row
        if not self.old:
            row["mountpoints"] = list(made.points) or [None]
        if above and not self.flat:
            row["children"] = [self._row(one, made.name) for one in above]
        return row

    def wipefs(self, names: Sequence[str]) -> str:
        rows = []
        for name in names:
            made = self.made[name]
            kinds = [*made.signatures, *([made.table] if made.table else []), *(["PMBR"] if made.table == "gpt" else [])]
            rows += [
                {"device": name, "type": kind, "usage": USAGES.get(kind, "filesystem"), "label": made.label or None}
                for kind in kinds
            ]
        return json.dumps({"signatures": rows})

    # -- as files

    def plant(self, root: Path) -> Runner:
        """Write everything below `root`; the answer is a Runner with this host's lsblk and wipefs."""
        self._plant_sysfs(root)
        for process, table in zip(("self", "1", "77"), self.tables, strict=True):
            _write(root / "proc" / process / "mountinfo", "".join(f"{line}\n" for line in table))
        sources = self.sources()
        _write(root / "proc/swaps", sources.swaps)
        for path, name in sources.links.items():
            link = root / path.removeprefix("/")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(f"../../{name}")
        for number, members in enumerate(self.btrfs_sets):
            for name in members:
                (root / f"sys/fs/btrfs/{number}/devices/{name}").mkdir(parents=True)
        for name, count in self.btrfs_counts.items():
            block = bytearray(4096)
            block[0x40:0x48], block[0x88:0x90] = b"_BHRfS_M", count.to_bytes(8, "little")
            (root / "dev").mkdir(exist_ok=True)
            (root / "dev" / name).write_bytes(bytes(64 * KIB) + block)
        return self._runner(sources)

    def _plant_sysfs(self, root: Path) -> None:
        for made in sorted(self.made.values(), key=lambda one: one.disk != ""):
            place = root / "sys/devices" / self._place(made)
            for name, value in (
                {"size": str(made.size // 512), "dev": made.number, "ro": "0", "removable": "0"} | made.attributes
            ).items():
                _write(place / name, f"{value}\n")
            for folder, names in (("holders", made.holders), ("slaves", made.slaves)):
                (place / folder).mkdir()
                for name in names:
                    (place / folder / name).symlink_to(f"../../{name}")
            link = root / "sys/class/block" / made.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(f"../../devices/{self._place(made)}")
            if made.usb:
                self._plant_usb(place, made.usb)
            if made.scsi:
                _plant_scsi(place / "device", made.scsi)

    def _place(self, made: Made) -> str:
        if made.disk:
            return f"{self._place(self.made[made.disk])}/{made.name}"
        return (
            f"pci0/usb2-{made.name}/2-1-{made.name}/2-1:1.0/host0/block/{made.name}" if made.usb else f"virtual/block/{made.name}"
        )

    def _plant_usb(self, place: Path, usb: UsbPath) -> None:
        interface = place.parents[2]
        _write(interface / "bInterfaceNumber", "00\n")
        (interface / "driver").symlink_to(f"../../../bus/usb/drivers/{usb.driver}")
        _write(interface.parent / "power/control", "auto\n")
        for hop, folder in zip(usb.hops, interface.parents, strict=False):
            vendor, _, product = hop.id.partition(":")
            files = {"idVendor": vendor, "idProduct": product, "version": f" {hop.version}", "speed": str(hop.speed)}
            for name, value in files.items():
                _write(folder / name, f"{value}\n")

    def _runner(self, sources: DiskSources) -> Runner:
        def answer(argv: Sequence[str | Path], *, codes: Sequence[int] = (0,), **_: Any) -> Completed:
            words = tuple(map(str, argv))
            if words[0] == "lsblk":
                columns = words[words.index("-o") + 1].split(",")
                if self.old and "MOUNTPOINTS" in columns:
                    unknown = ",".join(columns[columns.index("MOUNTPOINTS") :])
                    raise CommandFailed(Completed(words, 1, "", f"lsblk: unknown column: {unknown}\n"))
                return Completed(words, 0, sources.lsblk, "")
            names = [word.removeprefix("/dev/") for word in words[words.index("-O") + 2 :]]
            code = 1 if any(name in sources.unreadable for name in names) else 0
            assert code in codes
            return Completed(words, code, "" if code else self.wipefs(names), "")

        return answer


def _plant_scsi(device: Path, scsi: Scsi) -> None:
    _write(device / "scsi_disk" / scsi.address / "provisioning_mode", f"{scsi.provisioning}\n")
    _write(device / "scsi_disk" / scsi.address / "cache_type", f"{scsi.cache}\n")
    if scsi.declares_unmap is not None:
        (device / "vpd_pgb2").write_bytes(bytes((0, 0xB2, 0, 4, 0, 0x80 * scsi.declares_unmap, 0, 0)))


def _escaped(word: str) -> str:
    return word.replace("\\", "\\134").replace(" ", "\\040")


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
