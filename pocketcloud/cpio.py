"""Archives that a Linux kernel unpacks at its start (initramfs): written here, byte for byte, without any tool.

The format is "newc" and its concatenation (Linux, Documentation/driver-api/early-userspace/buffer-format.rst): a kernel takes any
row of archives, compressed or not, with zeros between them, each beginning at a multiple of 4 bytes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

_FOLDER, _FILE = 0o040755, 0o100600


def cpio(entries: Sequence[tuple[str, int, bytes, int]]) -> bytes:
    """An archive: name, mode with its type, content, device number (as makedev has it) of each."""
    made = bytearray()
    for number, (name, mode, content, device) in enumerate((*entries, ("TRAILER!!!", 0, b"", 0)), start=1):
        path = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, os.major(device), os.minor(device), len(path), 0)
        made += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        made += bytes(-len(made) % 4) + content
        made += bytes(-len(made) % 4)
    return bytes(made)


# How an archive, or one that is compressed, begins (Linux, lib/decompress.c; lz4 is its legacy form).
_BEGINNINGS = (
    b"070701",
    b"070702",
    b"\x1f\x8b",
    b"\x1f\x9e",
    b"BZh",
    b"\x5d\x00\x00",
    b"\xfd7zXZ",
    b"\x89LZO",
    b"\x02!L\x18",
    b"\x28\xb5\x2f\xfd",
)


def appendable(initrd: Path) -> bool:
    """Whether a kernel would take what is appended to that file: it begins as a row of archives does."""
    with initrd.open("rb") as file:
        return file.read(8).startswith(_BEGINNINGS)


def append(initrd: Path, target: Path, files: Mapping[str, bytes]) -> None:
    """Write to `target`, which only we read, the `initrd` with `files` laid over its root; `initrd` is left as it is.

    The root folder itself is an entry, of mode 0755: without one it gets the mode of whoever packed, and services in there that
    are not root find nothing any more (lorax, "Fix the permissions of the root directory", pylorax/installer.py).
    """
    entries = [(".", _FOLDER, b"", 0), *((name, _FILE, content, 0) for name, content in files.items())]
    with initrd.open("rb") as source, os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as made:
        shutil.copyfileobj(source, made, 1 << 20)
        made.write(bytes(-made.tell() % 4))
        made.write(cpio(entries))
