"""Install trees of Fedora and Enterprise Linux: what `.treeinfo` says of a tree's installer, each file with its checksum. Pure.

Format: productmd's documentation, "Treeinfo file format 1.x". In some trees the file has no dot.
"""

from __future__ import annotations

import configparser
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from pocketcloud.model.base import Arch

NAMES = (".treeinfo", "treeinfo")
_SUM = re.compile(r"sha256:([0-9a-fA-F]{64})")


@dataclass(frozen=True, slots=True)
class Image:
    """A file of a tree: its path in it, and its SHA-256 (hex)."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class TreeInfo:
    """A tree's installer, and whose it is: `family` and `version` for people."""

    family: str
    version: str
    kernel: Image
    initrd: Image


class NoTree(ValueError):
    """It does not say what is asked; the text says why, for people."""


def read_treeinfo(text: str, arch: Arch) -> TreeInfo:
    """What a `.treeinfo` says of the installer for `arch`. Raises NoTree."""
    parser = configparser.RawConfigParser(strict=False, empty_lines_in_values=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # paths are keys here, and keep their capitals
    try:
        parser.read_string(text)
    except configparser.Error:
        raise NoTree("it is not a .treeinfo") from None
    said = parser.get("general", "arch", fallback="") or parser.get("tree", "arch", fallback="")
    if not said:
        raise NoTree("it is not a .treeinfo: it names no architecture")
    if said != arch:
        raise NoTree(f"it is a tree for {said[:40]!r}, not for {arch}")
    return TreeInfo(
        family=parser.get("general", "family", fallback="")[:60],
        version=parser.get("general", "version", fallback="")[:60],
        kernel=_image(parser, arch, "kernel"),
        initrd=_image(parser, arch, "initrd"),
    )


def _image(parser: configparser.RawConfigParser, arch: Arch, kind: str) -> Image:
    path = parser.get(f"images-{arch}", kind, fallback="")
    if not path:
        raise NoTree(f"it names no {kind} for {arch}: a tree without an installer")
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "//" in path or not path.isprintable() or set(path) & set("?#\\%:"):
        raise NoTree(f"it names a {kind} outside of the tree: {path[:80]!r}")
    match = _SUM.fullmatch(parser.get("checksums", path, fallback=""))
    if match is None:
        raise NoTree(f"it has no SHA-256 sum for {path}")
    return Image(path, match[1].lower())
