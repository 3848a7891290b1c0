"""The bases that a kit has: `bases/NAME/ARCH.json` each, beside the sealed volumes in the store.

A record names the current base, and within it those kept for going back: replacing it is the one commit point of a refresh and
of a rollback.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from pocketcloud.documents import dump_json, parse_json
from pocketcloud.errors import BadDocument, Fault, Refused
from pocketcloud.files import sync_folder, write_whole
from pocketcloud.model.base import BASE_SCHEMA, Arch, Base
from pocketcloud.model.kit import Kit
from pocketcloud.model.names import Name
from pocketcloud.storage import Storage


def built(kit: Kit) -> tuple[Base, ...]:
    """The kit's bases, by name and architecture. Raises Refused if a record is damaged."""
    return tuple(_read(kit, path.parent.name, path.stem) for path in sorted((kit.path / "bases").glob("*/*.json")))


def find(kit: Kit, name: str, arch: Arch) -> Base | None:
    """The base of that name and architecture; None if the kit has none."""
    return _read(kit, name, arch) if _path(kit, name, arch).exists() else None


def _read(kit: Kit, name: str, arch: str) -> Base:
    path = _path(kit, name, arch)
    try:
        base = parse_json(path.read_bytes().decode(errors="replace"), Base, str(path))
        if base.schema > BASE_SCHEMA:
            raise BadDocument(str(path), [Fault(0, "schema", f"{base.schema}; this pocketcloud knows {BASE_SCHEMA}")])
        return base
    except BadDocument as error:
        raise Refused(
            f"the record of base {name} ({arch}) is damaged: {error.message.splitlines()[0]}",
            hint=f"made by a newer pocketcloud? Else remove {path}, then: pocketcloud base build {name} --arch {arch}",
        ) from error


def write(kit: Kit, base: Base) -> None:
    """Put the base's record into the kit, whole."""
    folder = kit.path / "bases" / base.name
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    write_whole(_path(kit, base.name, base.arch), dump_json(base))


def users(storage: Storage, volume: str) -> tuple[str, ...]:
    """The names of the volumes that stand on a base's; spare ones do not keep it from going."""
    return tuple(other.name for other in storage.volumes() if other.parent == volume and not other.spare)


def users_of(storage: Storage, volumes: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Who stands on these volumes: the labs, and the bases that are layers on them."""
    standing = [v.name.split(".") for v in storage.volumes() if v.parent in volumes and v.name not in volumes and not v.spare]
    labs = sorted({words[1] for words in standing if words[0] == "lab" and len(words) > 1})
    layers = sorted({words[1] for words in standing if words[0] == "base" and len(words) > 1})
    return tuple(labs), tuple(layers)


def remove(kit: Kit, storage: Storage, name: Name, arch: Arch) -> bool:
    """Remove a base, with those it took the name from; whether there was one. Raises Refused, before anything is touched, while
    labs or layers stand on any of them."""
    base = find(kit, name, arch)
    if base is None:
        return False
    standing = [user for volume in base.volumes for user in users(storage, volume)]
    if standing:
        labs, layers = users_of(storage, base.volumes)
        steps = [f"pocketcloud lab destroy {lab}" for lab in labs]
        steps += [f"pocketcloud base remove {layer} --arch {arch}" for layer in layers]
        raise Refused(
            f"base {name} ({arch}) is in use: {', '.join(standing)} stand on it",
            hint="; ".join(steps) or "remove those volumes first",
        )
    path = _path(kit, name, arch)
    # The store has the last word (a volume may be open): as long as it refuses, the base is there.
    storage.remove(*base.volumes)
    path.unlink(missing_ok=True)
    sync_folder(path.parent)
    proof_log(kit, name, arch).unlink(missing_ok=True)
    with suppress(OSError):
        path.parent.rmdir()  # stays while another architecture's record is in it
    return True


def proof_log(kit: Kit, name: str, arch: Arch) -> Path:
    """Where the console of the last machine that was to prove a base, and did not, is kept."""
    return kit.path / "bases" / name / f"{arch}.proof.log"


def _path(kit: Kit, name: str, arch: str) -> Path:
    return kit.path / "bases" / name / f"{arch}.json"
