"""A folder that becomes a copy of a kit: made aside under a hidden name, and given its own when it was read again.

Killed before, what is there is `.NAME.RANDOM.partial` beside it, which says what it is and is never attached; the same command
again removes it.
"""

from __future__ import annotations

import fcntl
import glob
import os
import secrets
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.errors import NoSpace, Refused
from pocketcloud.files import remove_tree, sync_folder
from pocketcloud.kit.attached import Places, attached_kits
from pocketcloud.kit.directory import PARTIAL, check_reachable, make_tree
from pocketcloud.kit.manifest import FILE, write_manifest
from pocketcloud.model.kit import Manifest
from pocketcloud.model.names import Name

# In an unfinished copy, for who finds it.
_NOTE = "UNFINISHED"
_TEXT = (
    "An unfinished copy of a kit of pocketcloud: `pocketcloud kit clone` was interrupted, or is at work.\n"
    "The same command again removes it and makes it anew. It may be removed by hand, too.\n"
)


@dataclass(frozen=True, slots=True)
class WantedFolder:
    """A folder that is to become the kit `name`."""

    path: Path
    name: Name


def checked_folder(places: Places, path: Path) -> Path:
    """A folder for a copy, by its whole path. Raises Refused where there is something or no place for it, HostLacks if QEMU could
    not reach it."""
    whole = path.parent.resolve() / path.name if path.name not in ("", "..") else path.resolve()
    free = "name a folder that is empty or does not exist yet"
    if os.path.lexists(whole) and (whole.is_symlink() or not whole.is_dir()):
        raise Refused(f"{whole} is not a folder", hint=free)
    if not whole.parent.is_dir():
        raise Refused(f"{whole.parent} is no folder", hint=f"mkdir -p {shlex.quote(str(whole.parent))}")
    inside = sorted(entry.name for entry in whole.iterdir()) if whole.is_dir() else []
    if FILE in inside:
        raise Refused(f"there is a kit at {whole} already", hint=free)
    if inside:
        raise Refused(f"{whole} is not empty: it has {inside[0]!r}", hint=free)
    if os.path.ismount(whole):
        raise Refused(f"a file system is mounted on {whole}", hint=f"name a folder in it: {whole / 'kit'}")
    around = [folder for folder in whole.parents if (folder / FILE).exists()]
    around += [kit.path for kit in attached_kits(places) if whole.is_relative_to(kit.path)]
    if around:
        raise Refused(f"{whole} lies in another kit, {around[0]}", hint="choose a place outside of it")
    check_reachable(whole)
    return whole


@contextmanager
def begun(path: Path) -> Iterator[Path]:
    """The folder in which a kit that is going to be `path` is made: with a kit's tree, and gone afterwards unless it was
    `finished`. What earlier runs left beside it goes first. Raises NoSpace."""
    _sweep(path)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        aside.mkdir(mode=0o755)
    except OSError as error:
        raise NoSpace(f"{path} cannot be made: {error.strerror}", hint="choose another place") from error
    handle = os.open(aside, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        (aside / _NOTE).write_text(_TEXT)
        make_tree(aside)
        yield aside
    finally:
        remove_tree(aside)
        os.close(handle)


def finished(aside: Path, path: Path, manifest: Manifest) -> None:
    """Make a kit of what was made aside, and give it its place. Raises Refused if something is there by now."""
    write_manifest(aside, manifest)
    (aside / _NOTE).unlink()
    sync_folder(aside)
    try:
        aside.rename(path)  # over an empty folder, and over nothing else
    except OSError as error:
        raise Refused(f"{path} cannot take the copy: {error.strerror}", hint="is there something by now? Run again") from error
    sync_folder(path.parent)


def _sweep(path: Path) -> None:
    """Remove what interrupted runs left of the same folder."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        ours = PARTIAL.fullmatch(left.name) and left.is_dir() and not left.is_symlink()
        if not ours or not ((left / _NOTE).exists() or (left / FILE).exists() or not any(left.iterdir())):
            continue
        handle = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_tree(left)
        finally:
            os.close(handle)
