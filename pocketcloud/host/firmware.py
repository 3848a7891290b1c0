"""The UEFI firmware that the host has for machines, by the descriptors that its packages bring.

Source of the format and of the folders' order: QEMU's docs/interop/firmware.json.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from pocketcloud.model.base import Arch

FOLDERS = ("etc/qemu/firmware", "usr/share/qemu/firmware")
SECURE = frozenset({"secure-boot", "enrolled-keys"})
"""The features of firmware that starts signed programs alone, with the keys in it that most systems are signed by."""


def described(root: Path, arch: Arch, features: Collection[str] = ()) -> tuple[str, ...]:
    """The names of the descriptors of UEFI firmware for `arch` whose file is there (Debian 12 describes one for aarch64 that its
    package does not hold) and that has all of these features. One in /etc stands in for its namesake."""
    files = {file.name: file for folder in reversed(FOLDERS) for file in (root / folder).glob("*.json")}
    return tuple(file.stem for _, file in sorted(files.items()) if _fits(file, arch, root, frozenset(features)))


def _fits(descriptor: Path, arch: Arch, root: Path, features: frozenset[str]) -> bool:
    try:
        said = json.loads(descriptor.read_text(encoding="utf-8"))
        uefi = "uefi" in said["interface-types"]
        targets = {target["architecture"] for target in said["targets"]}
        mapping = said["mapping"]
        file = mapping["executable"]["filename"] if mapping["device"] == "flash" else mapping["filename"]
        has = frozenset(said.get("features", ()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return uefi and arch in targets and features <= has and (root / str(file).lstrip("/")).is_file()
