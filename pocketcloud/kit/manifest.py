"""`kit.json`: what makes a folder a kit. It is written last, so an unfinished kit is visibly none."""

from __future__ import annotations

from pathlib import Path

from pocketcloud.documents import dump_json, parse_json
from pocketcloud.errors import BadDocument, NotFound, Refused
from pocketcloud.files import write_whole
from pocketcloud.model.kit import KIT_SCHEMA, Kit, Manifest
from pocketcloud.model.profile import Medium

FILE = "kit.json"


def read_manifest(path: Path) -> Manifest:
    """The manifest of the kit at `path`. Raises NotFound if there is no kit, Refused if it is damaged or too new."""
    try:
        text = (path / FILE).read_bytes().decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"{path}: no kit there (it has no {FILE})", hint=f"pocketcloud kit init --dir {path} makes one") from None
    except OSError as error:
        raise Refused(f"{path}: its {FILE} cannot be read: {error.strerror}", hint="run as root") from None
    try:
        manifest = parse_json(text, Manifest, str(path / FILE))
    except BadDocument as error:
        raise Refused(
            f"the kit's manifest is damaged: {error.message.splitlines()[0]}", hint="restore kit.json from a copy"
        ) from error
    if manifest.schema > KIT_SCHEMA:
        raise Refused(
            f"kit {manifest.name} at {path} was made by a newer pocketcloud ({manifest.made_with}, schema {manifest.schema})",
            hint="install that version or a newer one",
        )
    return manifest


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write `kit.json`, whole."""
    write_whole(path / FILE, dump_json(manifest))


def kit_at(path: Path) -> Kit:
    """The kit in the folder `path`."""
    resolved = path.resolve()
    return Kit(read_manifest(resolved), resolved, Medium.DIR)
