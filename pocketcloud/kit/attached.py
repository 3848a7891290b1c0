"""Which kits are attached here. Entries in the run folder, which a reboot empties, are the only registry; the default kit
is attached by being there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.errors import NotFound, PocketcloudError, Refused, UsageError
from pocketcloud.files import write_whole
from pocketcloud.hosts_file import ETC_HOSTS
from pocketcloud.kit.manifest import kit_at
from pocketcloud.model.kit import Kit
from pocketcloud.model.names import Name

DEFAULT_KIT = Path("/var/lib/pocketcloud")
RUN_FOLDER = Path("/run/pocketcloud")
# The name under which the default kit counts where it cannot be read.
_DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Places:
    """Where this host keeps the default kit, what is true until the next boot, and names."""

    default: Path = DEFAULT_KIT
    run: Path = RUN_FOLDER
    hosts: Path = ETC_HOSTS

    @classmethod
    def from_environment(cls) -> Places:
        """The usual places, or those of POCKETCLOUD_DEFAULT_KIT, POCKETCLOUD_RUN_DIR and POCKETCLOUD_HOSTS_FILE."""
        return cls(
            Path(os.environ.get("POCKETCLOUD_DEFAULT_KIT") or DEFAULT_KIT),
            Path(os.environ.get("POCKETCLOUD_RUN_DIR") or RUN_FOLDER),
            Path(os.environ.get("POCKETCLOUD_HOSTS_FILE") or ETC_HOSTS),
        )

    @property
    def locks(self) -> Path:
        """The folder of the locks."""
        return self.run / "locks"

    @property
    def mounts(self) -> Path:
        """The folder in which the kits on disks are mounted."""
        return self.run / "mounts"

    @property
    def entries(self) -> Path:
        """The folder of the attached kits' entries."""
        return self.run / "kits"


def attached_kits(places: Places) -> tuple[Kit, ...]:
    """All attached kits by name, the default one among them. Entries whose kit is gone (an unplugged disk) are left out, and
    kits that cannot be read: one must not keep people from their others."""
    return _attached(places)[0]


def unreadable_kits(places: Places) -> dict[str, PocketcloudError]:
    """Why attached kits cannot be read (damaged, of a newer pocketcloud), by the names they were attached under."""
    return _attached(places)[1]


def _attached(places: Places) -> tuple[tuple[Kit, ...], dict[str, PocketcloudError]]:
    paths = {name: path for name in registered_names(places) if (path := registered_path(places, name)) is not None}
    kits: dict[Path, Kit] = {}
    unreadable: dict[str, PocketcloudError] = {}
    for name, path in {**paths, _DEFAULT: places.default}.items():
        try:
            kit = kit_at(path)
            kits.setdefault(kit.path, kit)
        except NotFound:
            pass
        except Refused as error:
            unreadable[name] = error
    return tuple(sorted(kits.values(), key=lambda kit: kit.name)), unreadable


def find_kit(places: Places, name: str | None) -> Kit:
    """The kit of that name; without a name the only one there is. Raises NotFound, UsageError if there are several, and
    Refused if it is one that cannot be read."""
    kits, unreadable = _attached(places)
    if name in unreadable:
        raise unreadable[name or ""]
    if name is None:
        if len(unreadable) == 1 and not kits:
            raise next(iter(unreadable.values()))
        if len(kits) + len(unreadable) > 1:
            names = ", ".join([*(kit.name for kit in kits), *(f"{one} (cannot be read)" for one in unreadable)])
            raise UsageError(f"several kits are attached: {names}", hint="say which: --kit NAME, or POCKETCLOUD_KIT")
        if kits:
            return kits[0]
        raise NotFound("there is no kit here", hint="pocketcloud kit init makes one; pocketcloud kit attach PATH attaches one")
    for kit in kits:
        if kit.name == name:
            return kit
    have = ", ".join(kit.name for kit in kits) or "none"
    raise NotFound(f"no kit {name!r} is attached; attached: {have}", hint="pocketcloud kit attach PATH")


def register(places: Places, path: Path) -> Kit:
    """Count the kit whose tree lies at `path` among the attached; it being so already is success.

    Raises NotFound if no kit is there, Refused if another attached kit has its name, or if it is a copy of one.
    """
    kit = kit_at(path)
    for other in attached_kits(places):
        if other.path == kit.path:
            return kit
        if other.id == kit.id:
            raise Refused(
                f"the kit at {kit.path} is a copy of {other.name}, attached from {other.path}: both have the id {kit.id}",
                hint=f"pocketcloud kit detach {other.name} first",
            )
        if other.name == kit.name:
            raise Refused(
                f"a kit named {kit.name} is attached already, from {other.path}",
                hint=f"pocketcloud kit detach {other.name} first",
            )
    places.entries.mkdir(mode=0o755, parents=True, exist_ok=True)
    write_whole(_entry(places, kit.name), f"{kit.path}\n")
    return kit


def registered_path(places: Places, name: str) -> Path | None:
    """Where the kit of that name was attached, whether it is there still or not; None if it has no entry. Whatever somebody typed
    for a name is no path of ours."""
    if name not in registered_names(places):
        return None
    try:
        return Path(_entry(places, name).read_text().removesuffix("\n"))
    except FileNotFoundError:
        return None


def registered_names(places: Places) -> tuple[str, ...]:
    """The names of the kits that have entries, whether they are there still or not."""
    try:
        return tuple(sorted(entry.stem for entry in places.entries.iterdir() if entry.suffix == ".path"))
    except FileNotFoundError:
        return ()


def forget(places: Places, name: str, path: Path) -> bool:
    """Drop the entry of the kit `name` at `path`; whether it is attached no more (the default kit always is)."""
    _entry(places, name).unlink(missing_ok=True)
    return path != places.default.resolve()


def _entry(places: Places, name: str) -> Path:
    return places.entries / f"{name}.path"


def checked_name(text: str) -> Name:
    """A kit's name from the command line; raises UsageError."""
    try:
        return Name.parse(text)
    except ValueError as error:
        raise UsageError(str(error), hint="choose another, as --name usb-2") from None
