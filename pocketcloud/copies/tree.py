"""The files of a kit beside its volumes: records, keys, media, carried into the tree of another kit."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from pocketcloud.copies.ledger import FILE as LEDGER
from pocketcloud.copies.shipped import FOLDER as SHIPPED
from pocketcloud.files import is_unfinished
from pocketcloud.kit.detach import BACKUPS
from pocketcloud.kit.device import CONTENT_FOLDER
from pocketcloud.kit.manifest import FILE as MANIFEST
from pocketcloud.model.kit import Kit
from pocketcloud.records import InstanceFiles, drop_memories, instances
from pocketcloud.system import Runner

# What is only the kit's that is copied: what it is, its volumes and copies of LVM's metadata of them, the copies it has made and
# what it keeps of those in its pool.
_OWN = {MANIFEST, LEDGER, BACKUPS, SHIPPED, "volumes", "lost+found"}
# Saved memory goes on with the disks of this very kit only.
_MEMORY = "ram"


def files_of(kit: Kit) -> tuple[list[Path], list[Path]]:
    """What is copied of a kit's tree: entries of its top, and of its folder for what is large."""
    top = [path for path in sorted(kit.path.iterdir()) if path.name not in {*_OWN, CONTENT_FOLDER}]
    media = [path for path in sorted((kit.path / CONTENT_FOLDER).glob("*")) if path.name not in {*_OWN, _MEMORY}]
    return [path for path in top if not is_unfinished(path)], media


def size_of(kit: Kit, run: Runner) -> tuple[int, int]:
    """The bytes that these take: of the top's entries, and of the folder's."""
    return tuple(_size(paths, run) for paths in files_of(kit))  # type: ignore[return-value] # they are two


def _size(paths: list[Path], run: Runner) -> int:
    if not paths:
        return 0
    told = run(["du", "--summarize", "--total", "--block-size=1", "--", *paths], codes=(0, 1)).out.split()
    return int(told[-2]) if len(told) > 1 and told[-2].isdecimal() else 0


def copy_files(kit: Kit, into: Kit, final: Path, run: Runner) -> None:
    """Carry a kit's files into the tree of another, which is going to lie in `final`. Saved memory stays behind, and records do
    not name it: what would start from it starts cold. Raises CommandFailed, NoSpace, OSError."""
    top, media = files_of(kit)
    for paths, folder in ((top, into.path), (media, into.path / CONTENT_FOLDER)):
        if paths:
            run(["cp", "--archive", f"--target-directory={folder}", "--", *paths])
    drop_memories(into)
    for instance in instances(into):
        _move_paths(InstanceFiles(into, instance).ssh_config, kit.path, final)


def _move_paths(file: Path, before: Path, after: Path) -> None:
    """What ssh reads names files by whole paths."""
    if file.is_file():
        text = file.read_text(errors="surrogateescape")
        file.write_text(text.replace(f"{before}/", f"{after}/"), errors="surrogateescape")


def digests(kit: Kit) -> dict[str, bytes]:
    """What each file of a kit's tree is known by; volumes are none of them."""
    found = {}
    for folder, folders, names in os.walk(kit.path):
        folders[:] = [name for name in folders if Path(folder, name) not in (kit.path / "volumes", kit.path / "lost+found")]
        for path in (Path(folder, name) for name in names):
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as file:
                    found[str(path.relative_to(kit.path))] = hashlib.file_digest(file, "blake2b").digest()
    return found


def forget_cached(folder: Path) -> None:
    """Have the files below a folder on the disk, and none of it in memory: what is read then is what the disk has."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(handle)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)
