"""LVM: the only place that knows its argv and its reports. What the rows mean to a kit is for those who ask.

Every command is given the kit's own devices (`--devices`), so a devices file, filters, other disks' VGs and slow disks of
the host neither hide the kit nor are touched (lvmdevices(8)); lvm2 has that option since 2.03.12. `CONFIG` says what else
differs from the host's lvm.conf, and why that is safe.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketcloud.errors import HostLacks
from pocketcloud.system import CommandFailed, Completed, Runner, run

# Settings for each of our commands, in place of the host's lvm.conf.
CONFIG: Mapping[str, str] = {
    # No wait for dmeventd, up to 0.8 s at each clone of an active volume: it could not act on a kit outside of the host's
    # devices file anyway, and pocketcloud looks at the pool's space itself before each clone.
    "activation/monitoring": "0",
    # No file in /etc/lvm of every laptop at each change: a detach copies the metadata to the kit's state volume.
    "backup/backup": "0",
    "backup/archive": "0",
    # The hints file knows nothing of a disk that was copied by other means, and with --devices there is nothing to find.
    "devices/hints": '"none"',
    # With the host's filters a kit could be invisible; --devices says all there is to say.
    "devices/filter": '["a|.*|"]',
    "devices/global_filter": '["a|.*|"]',
    # Guests' own volume groups inside our volumes are none of the host's business (the default, kept on purpose).
    "devices/scan_lvs": "0",
    # LVM would refuse new clones above the host's threshold; our watermarks are the same on every host.
    "activation/thin_pool_autoextend_threshold": "100",
    # No ghosts of removed volumes, which would keep their names.
    "metadata/record_lvs_history": "0",
    "global/notify_dbus": "0",
    "global/system_id_source": '"none"',
}
_REPORT_TIMEOUT = 60.0
# udev's daemon listens there. Where none does (a container, a rescue shell), LVM has to make the nodes in /dev itself.
_UDEV = Path("/run/udev/control")
_LV_FIELDS = "lv_name,lv_uuid,lv_size,pool_lv,origin,lv_tags,lv_attr,lv_active,lv_device_open,thin_id,segtype"
_VG_FIELDS = "vg_name,vg_uuid,vg_size,vg_free,vg_extent_size,vg_tags,vg_systemid,vg_exported,vg_partial,lv_count,vg_seqno"
_PV_FIELDS = "pv_name,pv_uuid,vg_name,vg_uuid,pv_size,pe_start,pv_mda_size,pv_missing,pv_duplicate,vg_tags"


@dataclass(frozen=True, slots=True)
class LogicalVolume:
    """A logical volume; sizes in bytes. `thin_id` is 0 for what is no thin volume; `pool` and `origin` are names or empty."""

    name: str
    uuid: str
    size: int
    pool: str
    origin: str
    tags: frozenset[str]
    writable: bool
    active: bool
    open: bool
    thin_id: int
    segtype: str

    @property
    def thin(self) -> bool:
        """Whether it is a thin volume."""
        return self.segtype == "thin"

    def tagged(self, key: str) -> str | None:
        """The value of the tag `key=VALUE`; None if there is none."""
        prefix = f"{key}="
        return next((tag.removeprefix(prefix) for tag in self.tags if tag.startswith(prefix)), None)


@dataclass(frozen=True, slots=True)
class VolumeGroup:
    """A volume group; sizes in bytes."""

    name: str
    uuid: str
    size: int
    free: int
    extent: int
    tags: frozenset[str]
    system_id: str
    exported: bool
    partial: bool
    volumes: int
    seqno: int


@dataclass(frozen=True, slots=True)
class PhysicalVolume:
    """A physical volume; sizes in bytes, `pe_start` from the start of the device. `vg` is empty if it is in none."""

    device: Path
    uuid: str
    vg: str
    vg_uuid: str
    size: int
    pe_start: int
    metadata_size: int
    missing: bool
    duplicate: bool
    vg_tags: frozenset[str]


class Lvm:
    """LVM on one kit's devices, and on nothing else."""

    def __init__(self, devices: Sequence[Path], run: Runner = run, config: Mapping[str, str] | None = None) -> None:
        self.devices = tuple(devices)
        self._run = run
        self._config = {**CONFIG, **(config or {})}

    def argv(self, verb: str, *words: str | Path) -> list[str]:
        """The words of one LVM command, as it is run: `lvm VERB ...` is what the command of that name does."""
        settings = " ".join(f"{key}={value}" for key, value in self._config.items())
        return ["lvm", verb, "--devices", ",".join(map(str, self.devices)), "--config", settings, *map(str, words)]

    def line(self, verb: str, *words: str | Path) -> str:
        """The command as a person would type it: without the settings, which change nothing of its effect."""
        return shlex.join([verb, "--devices", ",".join(map(str, self.devices)), *map(str, words)])

    def command(self, verb: str, *words: str | Path, codes: Sequence[int] = (0,), timeout: float | None = None) -> Completed:
        """Run one command to its end; prompts are answered with yes. What changes metadata has no time limit: ending it in
        the middle is what a limit would do harm with. Raises CommandFailed, HostLacks."""
        try:
            return self._run(self.argv(verb, "-y", *words), codes=codes, timeout=timeout, env=environment())
        except HostLacks as error:
            raise HostLacks("lvm2 is not installed", hint="pocketcloud check names the package for this distribution") from error

    def activate(self, vg: str, *names: str) -> None:
        """Make volumes active, with `/dev/VG/NAME` for each; those that are so already stay so. Raises CommandFailed, HostLacks.

        An LVM command that is killed between the two leaves an active volume without its path, where no udev makes that; and for
        a volume that is active `lvchange` does nothing.
        """
        self.command("lvchange", "-K", "-ay", *(f"{vg}/{name}" for name in names))
        if not all(Path("/dev", vg, name).exists() for name in names):
            self.command("vgmknodes", vg)

    def script(self, commands: Iterable[Sequence[str | Path]]) -> Completed:
        """Run several commands in one `lvm` process, each whatever became of those before it; their errors are in `err`.

        One process for many saves what each takes to start. The exit code is the last one's: look at what is there then.
        """
        lines = [shlex.join(self.argv(str(verb), "-y", *words)[1:]) for verb, *words in commands]
        text = "\n".join([*lines, "exit", ""])
        return self._run(["lvm"], stdin=text.encode(), codes=range(256), env=environment())

    # -- reports

    def volumes(self, vg: str) -> tuple[LogicalVolume, ...]:
        """The logical volumes of a VG, hidden ones too, by name. No percentages, for which a pool commits first."""
        rows = self._report("lvs", "lv", "-a", "-o", _LV_FIELDS, vg)
        return tuple(sorted((_logical_volume(row) for row in rows), key=lambda volume: volume.name))

    def groups(self) -> tuple[VolumeGroup, ...]:
        """The volume groups on the devices."""
        return tuple(_volume_group(row) for row in self._report("vgs", "vg", "-o", _VG_FIELDS))

    def physical_volumes(self) -> tuple[PhysicalVolume, ...]:
        """The physical volumes among the devices."""
        return tuple(_physical_volume(row) for row in self._report("pvs", "pv", "-o", _PV_FIELDS))

    def _report(self, verb: str, key: str, *words: str) -> list[Mapping[str, Any]]:
        shape = ("--reportformat", "json", "--units", "b", "--nosuffix", "--binary")
        done = self._run(self.argv(verb, *shape, *words), timeout=_REPORT_TIMEOUT, env=environment())
        return report_rows(done.out, key)


def environment() -> dict[str, str]:
    """What LVM and dmsetup need in their environment here."""
    # LVM complains of every file descriptor it did not open itself.
    quiet = {"LVM_SUPPRESS_FD_WARNINGS": "1"}
    return quiet if _UDEV.exists() else {**quiet, "DM_DISABLE_UDEV": "1"}


def report_rows(text: str, key: str) -> list[Mapping[str, Any]]:
    """The rows `key` of a JSON report of any lvm2: `json` has strings and joined lists, `json_std` numbers and arrays, and
    from 2.03.26 on a log may stand beside the report."""
    content = json.loads(text[text.index("{") :])
    rows: list[Mapping[str, Any]] = []
    for part in content["report"]:
        rows += part.get(key, ())
    return rows


def number(value: object) -> int:
    """A number of a report: 12, "12", "12.00", "" or null (0)."""
    return int(float(str(value))) if value not in (None, "") else 0


def words(value: object) -> frozenset[str]:
    """A list of a report: an array, or joined by commas."""
    if isinstance(value, list):
        return frozenset(map(str, value))
    return frozenset(str(value).split(",")) if value else frozenset()


def flag(value: object, *names: str) -> bool:
    """A binary value of a report: 1, "1", true, or one of its `names` where --binary has no effect."""
    return value is True or str(value) in ("1", *names)


def _bare(name: object) -> str:
    """A name without the brackets that hidden volumes have."""
    return str(name or "").strip("[]")


def _logical_volume(row: Mapping[str, Any]) -> LogicalVolume:
    return LogicalVolume(
        name=_bare(row["lv_name"]),
        uuid=str(row["lv_uuid"]),
        size=number(row["lv_size"]),
        pool=_bare(row["pool_lv"]),
        origin=_bare(row["origin"]),
        tags=words(row["lv_tags"]),
        # lv_permissions knows nothing of inactive volumes.
        writable=str(row["lv_attr"])[1:2] == "w",
        active=flag(row["lv_active"], "active"),
        open=flag(row["lv_device_open"], "open"),
        thin_id=number(row["thin_id"]),
        segtype=str(row["segtype"]),
    )


def _volume_group(row: Mapping[str, Any]) -> VolumeGroup:
    return VolumeGroup(
        name=str(row["vg_name"]),
        uuid=str(row["vg_uuid"]),
        size=number(row["vg_size"]),
        free=number(row["vg_free"]),
        extent=number(row["vg_extent_size"]),
        tags=words(row["vg_tags"]),
        system_id=str(row["vg_systemid"] or ""),
        exported=flag(row["vg_exported"], "exported"),
        partial=flag(row["vg_partial"], "partial"),
        volumes=number(row["lv_count"]),
        seqno=number(row["vg_seqno"]),
    )


def _physical_volume(row: Mapping[str, Any]) -> PhysicalVolume:
    return PhysicalVolume(
        device=Path(str(row["pv_name"])),
        uuid=str(row["pv_uuid"]),
        vg=str(row["vg_name"] or ""),
        vg_uuid=str(row["vg_uuid"] or ""),
        size=number(row["pv_size"]),
        pe_start=number(row["pe_start"]),
        metadata_size=number(row["pv_mda_size"]),
        missing=flag(row["pv_missing"], "missing"),
        duplicate=flag(row["pv_duplicate"], "duplicate"),
        vg_tags=words(row["vg_tags"]),
    )


def complaint(failed: CommandFailed) -> str:
    """What LVM said was wrong, without the warnings it gives on ordinary overcommit, in one line."""
    lines = (failed.completed.err or failed.completed.out).strip().splitlines()
    told = [line.strip() for line in lines if line.strip() and not line.strip().startswith("WARNING:")]
    return "; ".join(told[-3:]) or f"exit code {failed.completed.code}"
