"""Discs with folders in them, as installers have them."""

from __future__ import annotations

from pathlib import Path

import pycdlib


def disc(path: Path, label: str, files: dict[str, bytes]) -> Path:
    """Write a disc that holds `files`, by their paths; beside it lie files of its making."""
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, rock_ridge="1.09", vol_ident=label)
    made = set[str]()
    for number, (name, content) in enumerate(files.items()):
        plain = ""
        for parent in reversed(Path(name).parents[:-1]):
            plain += f"/D{abs(hash(parent.name)) % 100000}"
            if str(parent) not in made:
                made.add(str(parent))
                iso.add_directory(plain, rr_name=parent.name)
        source = path.parent / f"file{number}"
        source.write_bytes(content)
        iso.add_file(str(source), f"{plain}/F{number}.;1", rr_name=Path(name).name)
    iso.write(str(path))
    iso.close()
    return path
