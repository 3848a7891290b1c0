"""The kernels that this host could start a guest with: their images, and the files of their modules.

Places: /boot/vmlinuz-RELEASE on most distributions (Ubuntu's only root may read), /usr/lib/modules/RELEASE/vmlinuz on Fedora, EL
and Arch, /boot/Image-RELEASE on some ARM systems. modules.dep and modules.builtin: depmod(8), modules.builtin is of kbuild.rst.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.host.files import text

_PREFIXES = ("vmlinuz-", "Image-")
_MODULES = ("lib/modules", "usr/lib/modules")


@dataclass(frozen=True, slots=True)
class Kernel:
    """An image and its release, as `uname -r` would say it; whether this user may read the image."""

    image: Path
    release: str
    readable: bool


def read_kernels(root: Path, running: str) -> tuple[Kernel, ...]:
    """Kernels whose modules are here too, each release once: the `running` one first, then the newest file first."""
    found: dict[str, Path] = {}
    for image in _images(root):
        release = image.parent.name if image.name == "vmlinuz" else image.name.partition("-")[2]
        if any((root / folder / release).is_dir() for folder in _MODULES) and not (
            release in found and _readable(found[release])
        ):
            found[release] = image
    newest = sorted(found.items(), key=lambda item: (item[0] != running, -_age(item[1])))
    return tuple(Kernel(image, release, _readable(image)) for release, image in newest)


def _images(root: Path) -> list[Path]:
    try:
        boot = [path for prefix in _PREFIXES for path in sorted((root / "boot").glob(f"{prefix}*"))]
        return [path for path in (*boot, *sorted(root.glob("usr/lib/modules/*/vmlinuz"))) if path.is_file()]
    except OSError:
        return []


def _readable(image: Path) -> bool:
    return os.access(image, os.R_OK, effective_ids=True)


def _age(image: Path) -> float:
    try:
        return image.stat().st_mtime
    except OSError:
        return 0.0


def module_files(root: Path, release: str, module: str) -> tuple[Path, ...] | None:
    """The files to be loaded for a kernel's module, in their order; empty if it is part of the kernel, None if there is none."""
    folder = next((root / place / release for place in _MODULES if (root / place / release).is_dir()), None)
    if folder is None:
        return None
    if module in {_name(line) for line in text(folder, "modules.builtin").split()}:
        return ()
    for entry in text(folder, "modules.dep").splitlines():
        file, _, needs = entry.partition(":")
        if _name(file) == module:
            # Those it needs stand in the reverse order of their loading.
            return tuple(folder / each for each in (*reversed(needs.split()), file))
    return None


def _name(file: str) -> str:
    """The module's name: the kernel takes - and _ for the same, and files may be compressed."""
    return Path(file).name.partition(".ko")[0].replace("-", "_")
