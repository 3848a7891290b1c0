"""Finds the files we ship: bases/, kickstarts/, labs/, profiles/, packages.tsv, usb-bridges.tsv, in a checkout and in a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def shipped(*parts: str) -> Path:
    """The path of a shipped file or folder, as `shipped("bases", "debian-12.yaml")`; it need not exist."""
    inside = _PACKAGE / "data"
    return (inside if inside.is_dir() else _PACKAGE.parent).joinpath(*parts)
