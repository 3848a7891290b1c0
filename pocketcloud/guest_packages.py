"""How a guest installs packages: by the package manager that its system has. The script is the same for a machine of a lab, over
ssh, and for the throw-away guest that customizes a base, from its seed's disc."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

SCRIPT = Path(__file__).with_suffix(".sh")

FOLDER = "/run/pocketcloud-packages"
"""Where it lies in a machine of a lab."""

# A first boot's own services may be at it still. (apt.conf(5) of newer ones has it; older ones take no notice.)
_PATIENCE = 'DPkg::Lock::Timeout "300";\n'


def files(names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """What to write into a machine, paths and contents, before `COMMAND` installs these packages in it. They come from where its
    own sources say, or from the kit's cache beside it where it looks for that by itself (guest_cache.py)."""
    yield f"{FOLDER}/packages.sh", SCRIPT.read_bytes()
    yield f"{FOLDER}/packages", "".join(f"{name}\n" for name in names).encode()
    yield f"{FOLDER}/apt.conf", _PATIENCE.encode()


COMMAND = f"APT_CONFIG={shlex.quote(FOLDER)}/apt.conf sh {shlex.quote(FOLDER)}/packages.sh"
