"""The bases that a kit has: `bases/NAME/ARCH.json` each, beside the sealed volume in the store."""

from __future__ import annotations

from contextlib import suppress

from pocketcloud.documents import dump_json, parse_json
from pocketcloud.errors import BadDocument, Refused
from pocketcloud.files import sync_folder, write_whole
from pocketcloud.model.base import Arch, Base
from pocketcloud.model.kit import Kit
from pocketcloud.model.names import Name
from pocketcloud.storage import Storage


def built(kit: Kit) -> tuple[Base, ...]:
    """The kit's bases, by name and architecture. Raises Refused if a record is damaged."""
    return tuple(_read(kit, path.parent.name, path.stem) for path in sorted((kit.path / "bases").glob("*/*.json")))


def find(kit: Kit, name: str, arch: Arch) -> Base | None:
    """The base of that name and architecture; None if the kit has none."""
    return _read(kit, name, arch) if (kit.path / "bases" / name / f"{arch}.json").exists() else None


def _read(kit: Kit, name: str, arch: str) -> Base:
    path = kit.path / "bases" / name / f"{arch}.json"
    try:
        return parse_json(path.read_bytes().decode(errors="replace"), Base, str(path))
    except BadDocument as error:
        raise Refused(
            f"the record of base {name} ({arch}) is damaged: {error.message.splitlines()[0]}",
            hint=f"remove {path}, then: pocketcloud base build {name}",
        ) from error


def write(kit: Kit, base: Base) -> None:
    """Put the base's record into the kit, whole."""
    folder = kit.path / "bases" / base.name
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    write_whole(folder / f"{base.arch}.json", dump_json(base))


def users(storage: Storage, volume: str) -> tuple[str, ...]:
    """The names of the volumes that stand on a base's."""
    return tuple(other.name for other in storage.volumes() if other.parent == volume)


def remove(kit: Kit, storage: Storage, name: Name, arch: Arch) -> bool:
    """Remove a base; whether there was one. Raises Refused, before anything is touched, while volumes of labs stand on it."""
    base = find(kit, name, arch)
    if base is None:
        return False
    standing = users(storage, base.volume)
    if standing:
        labs = sorted({volume.split(".")[1] for volume in standing if volume.startswith("lab.")})
        raise Refused(
            f"base {name} ({arch}) is in use: {', '.join(standing)} stand on it",
            hint="; ".join(f"pocketcloud lab destroy {lab}" for lab in labs) or "remove those volumes first",
        )
    path = kit.path / "bases" / name / f"{arch}.json"
    path.unlink(missing_ok=True)
    storage.remove(base.volume)
    sync_folder(path.parent)
    with suppress(OSError):
        path.parent.rmdir()  # stays while another architecture's record is in it
    return True
