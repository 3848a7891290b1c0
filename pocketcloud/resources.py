"""Finds the files we ship: bases/, kickstarts/, labs/, profiles/, packages.tsv, usb-bridges.tsv, in a checkout and in a wheel;
and the user's own bases and templates beside them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pocketcloud.errors import NotFound

_PACKAGE = Path(__file__).resolve().parent
# Folders of a user's own files, whose names override ours one by one.
_OWN = {"bases": "POCKETCLOUD_BASES", "kickstarts": "POCKETCLOUD_TEMPLATES"}
IMPORTED = "POCKETCLOUD_IMPORTED_BASES"
"""The variable with the folders of definitions that came with imported labs, a line each: for names that nobody else has."""


def shipped(*parts: str) -> Path:
    """The path of a shipped file or folder, as `shipped("bases", "debian-12.yaml")`; it need not exist."""
    inside = _PACKAGE / "data"
    return (inside if inside.is_dir() else _PACKAGE.parent).joinpath(*parts)


def overlaid(kind: str, environment: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """The folders in which files of a kind ("bases", "kickstarts") are looked for: the user's own first, if the environment
    names one, then ours, then definitions that came with imported labs. Raises NotFound if the user's is no folder."""
    said = environment.get(_OWN[kind], "")
    last = imported(environment) if kind == "bases" else ()
    if not said:
        return shipped(kind), *last
    own = Path(said).absolute()
    if not own.is_dir():
        raise NotFound(f"{_OWN[kind]}: {own} is no folder", hint="give the folder of your own files, or leave it out")
    return own, shipped(kind), *last


def imported(environment: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """The folders of definitions that came with imported labs."""
    return tuple(Path(line) for line in environment.get(IMPORTED, "").splitlines() if line)
