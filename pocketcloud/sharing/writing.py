"""Bundles written to disk: whole, or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pocketcloud.errors import NotFound, Refused
from pocketcloud.files import remove_tree, sync_folder, write_whole

_ASIDE = ".aside"


def write_file(target: Path, content: bytes) -> None:
    """Write an archive; replaces one that is there. Raises NotFound without its folder, Refused where it cannot be written."""
    with _explained(target):
        _want_parent(target)
        if target.exists() and not target.is_file():
            raise Refused(f"{target} is no file", hint="give another name")
        write_whole(target, content)


def write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Make the folder `target` with these files; one that is there must be empty, or hold just these. Raises Refused, NotFound,
    NoSpace; nothing is left half."""
    target = target.absolute()
    with _explained(target):
        _want_parent(target)
        if target.is_dir() and not target.is_symlink() and any(target.iterdir()):
            if holds_just(target, files):
                return
            raise Refused(f"{target} is not empty", hint="give the name of a folder that does not exist yet")
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise Refused(
                f"{target} is no folder", hint="give the name of a folder that does not exist yet, or one that ends in .tar.gz"
            )
        aside = target.with_name(f".{target.name[:40]}.{secrets.token_hex(6)}{_ASIDE}")
        try:
            for path, content in files.items():
                (aside / path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                write_whole(aside / path, content)
            os.rename(aside, target)  # noqa: PTH104 - Path.rename does the same; an empty folder is replaced
            sync_folder(target.parent)
        finally:
            remove_tree(aside)


def _want_parent(target: Path) -> None:
    if not target.absolute().parent.is_dir():
        raise NotFound(f"there is no folder {target.parent}", hint=f"mkdir -p {target.parent}")


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "run the command as root" if isinstance(error, PermissionError) else "give another name"
        raise Refused(f"{target} cannot be written: {error.strerror}", hint=hint) from None


def holds_just(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Whether a folder has these files and nothing else."""
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    return there.keys() == files.keys() and all(
        there[name].is_file() and there[name].read_bytes() == files[name] for name in files
    )


def sweep_aside(folder: Path) -> None:
    """Remove what an interrupted command was writing in `folder`. Nobody else may be writing there."""
    for path in folder.glob(f".*{_ASIDE}") if folder.is_dir() else ():
        remove_tree(path)
