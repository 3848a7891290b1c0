"""The distribution, from os-release (freedesktop's os-release(5): shell-like assignments, values may be quoted)."""

from __future__ import annotations

import shlex
from pathlib import Path

from pocketcloud.host.files import text
from pocketcloud.model.facts import Distribution


def read_distribution(root: Path) -> Distribution:
    """From /etc/os-release, else /usr/lib/os-release; `linux` with an empty version where neither says anything."""
    values = _assignments(text(root, "etc/os-release") or text(root, "usr/lib/os-release"))
    name = values.get("PRETTY_NAME") or values.get("NAME") or "Linux"
    return Distribution(
        id=values.get("ID", "linux"),
        version=values.get("VERSION_ID", ""),
        codename=values.get("VERSION_CODENAME", ""),
        name=name,
        like=tuple(values.get("ID_LIKE", "").split()),
    )


def _assignments(content: str) -> dict[str, str]:
    found = {}
    for line in content.splitlines():
        name, sign, value = line.strip().partition("=")
        if not sign or name.startswith("#"):
            continue
        try:
            found[name] = " ".join(shlex.split(value))
        except ValueError:
            # An unbalanced quote: the line says nothing, the others still do.
            continue
    return found
