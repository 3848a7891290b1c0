"""Makes a kit in a folder: qcow2 files in the tree of a kit."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

from pocketcloud import __version__
from pocketcloud.errors import HostLacks, NoSpace, Refused
from pocketcloud.files import sync_folder
from pocketcloud.kit.attached import Places, attached_kits, checked_name, register
from pocketcloud.kit.manifest import FILE, write_manifest
from pocketcloud.model.kit import KIT_SCHEMA, TREE, Kit, Manifest
from pocketcloud.model.names import Name

TREE_MODES = {"keys": 0o700}
# A folder beside the one that it is to become, while `kit clone` makes it.
PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}\.partial")


def name_for(path: Path, default: Path) -> Name:
    """The name a kit at `path` gets if none is given: the folder's, made to fit the rule."""
    if path == default:
        return Name("default")
    text = re.sub(r"[^a-z0-9-]+", "-", path.name.lower()).strip("-")[:31]
    return Name.parse(text) if re.match(r"[a-z]", text) else Name("kit")


def init_directory(places: Places, path: Path, name: str | None, *, now: str) -> Kit:
    """Make a kit in the folder `path` and attach it. The folder is made if it is missing, and must be empty.

    Raises Refused if there is something in it or a kit of the name is attached, HostLacks if QEMU could not reach it.
    """
    path = path.absolute()
    kit_name = checked_name(name) if name is not None else name_for(path, places.default)
    if any(kit.name == kit_name for kit in attached_kits(places)):
        raise Refused(f"a kit named {kit_name} is attached already", hint="choose another with --name")
    if path.exists() and not path.is_dir():
        raise Refused(f"{path} is not a folder", hint="name a folder that is empty or does not exist yet")
    inside = sorted(p.name for p in path.iterdir()) if path.exists() else []
    if FILE in inside:
        raise Refused(f"there is a kit at {path} already", hint=f"pocketcloud kit attach {path}")
    if set(inside) - set(TREE):
        strange = next(iter(sorted(set(inside) - set(TREE))))
        raise Refused(f"{path} is not empty: it has {strange!r}", hint="name a folder that is empty or does not exist yet")
    check_reachable(path)
    try:
        make_tree(path)
    except PermissionError as error:
        raise HostLacks(f"{path}: {error.strerror}", hint="run as root") from None
    except OSError as error:
        raise NoSpace(f"{path} cannot be made: {error.strerror}", hint="choose another place") from None
    write_manifest(path, Manifest(KIT_SCHEMA, str(uuid.uuid4()), kit_name, now, __version__, "qcow2"))
    return register(places, path)


def make_tree(path: Path) -> None:
    """Make the folders of a kit in `path`; those there are success."""
    for folder in TREE:
        (path / folder).mkdir(mode=0o755, parents=True, exist_ok=True)
        (path / folder).chmod(TREE_MODES.get(folder, 0o755))
    path.chmod(0o755)
    sync_folder(path)


def check_reachable(path: Path) -> None:
    """Raise HostLacks if QEMU, which runs as a user of its own, could not reach what lies in `path`."""
    for folder in path.parents:
        if folder.exists() and not folder.stat().st_mode & 0o001:
            raise HostLacks(
                f"QEMU runs as a user of its own and could not reach {path}: others may not enter {folder}",
                hint=f"choose another place, as /var/lib/NAME or /srv/NAME, or: chmod o+x {folder}",
            )
