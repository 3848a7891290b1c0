"""Small files of the kernel and of the distribution, read under a root that a test can choose. Absence is an empty text."""

from __future__ import annotations

import re
from pathlib import Path

# More digits are no count of anything here, and from 4300 on int() refuses them.
_NUMBER = re.compile(r"[0-9]{1,18}")


def text(root: Path, name: str) -> str:
    """The text of `root`/`name`; empty if it is absent or cannot be read."""
    try:
        return (root / name).read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def line(root: Path, name: str) -> str:
    """The first line of `root`/`name`, without blanks around it and without the zero byte that ends device tree texts."""
    return text(root, name).replace("\0", " ").strip().partition("\n")[0].strip()


def number(said: str) -> int | None:
    """The number that a text is, without sign; None for anything else, other alphabets' digits and endless ones too."""
    return int(said) if _NUMBER.fullmatch(said) else None
