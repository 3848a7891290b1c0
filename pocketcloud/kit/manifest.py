"""`kit.json`: what makes a folder a kit. It is written last, so an unfinished kit is visibly none.

Where a kit lies now, is read from where it is mounted: there is no second place that could say otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
from pathlib import Path

from pocketcloud.documents import dump_json, parse_json
from pocketcloud.errors import BadDocument, NotFound, Refused
from pocketcloud.files import write_whole
from pocketcloud.host import kits as host
from pocketcloud.kit.mounts import Mount, mounted_at
from pocketcloud.model.kit import KIT_SCHEMA, Kit, Manifest
from pocketcloud.model.profile import Medium
from pocketcloud.storage.devmapper import node_name
from pocketcloud.storage.thin_volumes import STATE

FILE = "kit.json"


class NewerKit(Refused):
    """The kit is of a schema that this version does not know; nothing of it is touched."""


def read_manifest(path: Path) -> Manifest:
    """The manifest of the kit at `path`. Raises NotFound if there is no kit, Refused if it is damaged, NewerKit if it is
    of a later schema."""
    try:
        text = (path / FILE).read_bytes().decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"{path}: no kit there (it has no {FILE})", hint=f"pocketcloud kit init --dir {path} makes one") from None
    except OSError as error:
        hint = "run as root" if error.errno in (errno.EACCES, errno.EPERM) else "pocketcloud kit repair"
        raise Refused(f"{path}: its {FILE} cannot be read: {error.strerror}", hint=hint) from None
    _check_schema(text, path)
    try:
        return parse_json(text, Manifest, str(path / FILE))
    except BadDocument as error:
        raise Refused(
            f"the kit's manifest is damaged: {error.message.splitlines()[0]}", hint="restore kit.json from a copy"
        ) from error


def _check_schema(text: str, path: Path) -> None:
    """Raise NewerKit for a manifest of a later schema, whatever else is in it: most of that is not known here."""
    with contextlib.suppress(ValueError, RecursionError):
        told = json.loads(text)
        if isinstance(told, dict) and isinstance(schema := told.get("schema"), int) and schema > KIT_SCHEMA:
            name, version = (str(told.get(key, "?"))[:40] for key in ("name", "made_with"))
            raise NewerKit(
                f"kit {name!r} at {path} was made by a newer pocketcloud ({version!r}, schema {schema})",
                hint="install that version or a newer one",
            )


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write `kit.json`, whole."""
    write_whole(path / FILE, dump_json(manifest))


def kit_at(path: Path) -> Kit:
    """The kit whose tree lies at `path`, a folder or the mount point of a state volume. Raises NotFound if there is none, or
    if its disk is gone; Refused as `read_manifest` does."""
    resolved = path.resolve()
    there = mounted_at(resolved)
    vg, devices = ("", ()) if there is None else _carriers(there)
    if vg and not all(host.is_there(kernel) for kernel in devices):
        raise NotFound(
            f"the disk of the kit at {resolved} is gone: it was pulled without `kit detach`",
            hint="plug it in, then: pocketcloud kit attach",
        )
    manifest = read_manifest(resolved)
    if manifest.storage != "lvm":
        return Kit(manifest, resolved, Medium.DIR)
    if not vg:
        raise NotFound(
            f"{resolved} is a copy of the files of kit {manifest.name}, not the kit: its volumes lie on a disk",
            hint="pocketcloud kit attach finds kits on plugged disks",
        )
    return Kit(manifest, resolved, host.medium(devices[0]), vg, tuple(host.node(kernel) for kernel in devices))


def host_mark(root: Path = Path("/")) -> str:
    """What tells this computer from others in a manifest. The machine id itself is not for others to see (machine-id(5)), so
    it is a digest of it; empty where there is none."""
    try:
        text = (root / "etc/machine-id").read_text().strip()
    except OSError:
        return ""
    return hashlib.blake2b(text.encode(), digest_size=8, person=b"pocketcloud").hexdigest() if text else ""


def _carriers(there: Mount) -> tuple[str, tuple[str, ...]]:
    """The volume group whose `state` is mounted there, and the kernel names of what it stands on; empty if it is no such."""
    kernel = (host.BY_NUMBER / there.number).resolve().name
    mapped = host.mapped_name(kernel)
    group = host.group_of(mapped)
    return (group, host.below(kernel)) if mapped == node_name(group, STATE) else ("", ())
