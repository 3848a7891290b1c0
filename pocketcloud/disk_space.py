"""How much of a file system may be filled with what is fetched and unpacked: not its last bytes, which running machines need."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pocketcloud.model.sizes import MIB

_RESERVE = 256 * MIB
_SHARE = 8


def spare(place: Path | int) -> int:
    """The bytes that may still be written to the file system of a path or an open file; less than none: others have gone beyond.
    256 MiB of it stay free, an eighth of a small one. Raises OSError."""
    found = os.statvfs(place)
    if not found.f_blocks:
        return sys.maxsize  # it does not say
    return found.f_bavail * found.f_frsize - _kept(found)


def reserve(place: Path | int) -> int:
    """The bytes of that file system that are to stay free. Raises OSError."""
    return _kept(os.statvfs(place))


def _kept(found: os.statvfs_result) -> int:
    return min(_RESERVE, found.f_blocks * found.f_frsize // _SHARE)
