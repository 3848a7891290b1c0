"""Small files of the kernel and of the distribution, read under a root that a test can choose. Absence is an empty text."""

from __future__ import annotations

from pathlib import Path


def text(root: Path, name: str) -> str:
    """The text of `root`/`name`; empty if it is absent or cannot be read."""
    try:
        return (root / name).read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def line(root: Path, name: str) -> str:
    """The first line of `root`/`name`, without blanks around it and without the zero byte that ends device tree texts."""
    return text(root, name).replace("\0", " ").strip().partition("\n")[0].strip()
