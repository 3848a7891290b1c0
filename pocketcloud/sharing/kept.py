"""Labs that were imported into a kit: `definitions/labs/NAME/` holds each as `lab export` writes it, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from pocketcloud.errors import Refused
from pocketcloud.model.kit import Kit
from pocketcloud.model.names import Name
from pocketcloud.sharing.bundle import LAB_FILE, Bundle, contents
from pocketcloud.sharing.writing import holds_just, sweep_aside, write_folder

_PLACE = Path("definitions", "labs")


def lab_file(kit_path: Path, name: str) -> Path:
    """Where the definition of an imported lab is, if there is one."""
    return kit_path / _PLACE / name / LAB_FILE


def imported_labs(kit_path: Path) -> tuple[Name, ...]:
    """The names of the imported labs of a kit."""
    return tuple(Name(path.parent.name) for path in sorted((kit_path / _PLACE).glob(f"[a-z]*/{LAB_FILE}")))


def base_folders(kit_path: Path) -> tuple[Path, ...]:
    """The folders of definitions that came with imported labs."""
    try:
        return tuple(path for path in sorted((kit_path / _PLACE).glob("[a-z]*/bases")) if path.is_dir())
    except OSError:  # of a disk that does not answer; what is wanted of it will tell
        return ()


def keep(kit: Kit, name: Name, bundle: Bundle) -> bool:
    """Keep a lab under a name; whether it is new there. The caller holds the kit's imports. Raises Refused if another one has the
    name, NoSpace; nothing is left half."""
    place, files = kit.path / _PLACE, contents(bundle)
    place.mkdir(mode=0o755, parents=True, exist_ok=True)
    sweep_aside(place)
    if (place / name).exists():
        if holds_just(place / name, files):
            return False
        raise Refused(
            f"kit {kit.name} has another lab imported as {name}",
            hint=f"--as OTHER keeps both; rm -r {place / name} gives that one up (machines of it stay)",
        )
    write_folder(place / name, files)
    return True
