"""The kit's folder: space, and whether QEMU, which is not root, can reach it."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from pocketcloud.check.judgement import Check, Surroundings
from pocketcloud.host.accounts import qemu_account
from pocketcloud.model.judgement import State
from pocketcloud.model.sizes import GIB, size_text

_GROUP = "space"
# A Debian base takes about 1 GiB while it is built and afterwards; a two-machine lab with its memory kept, about as much.
_TOO_LITTLE = 2 * GIB
_TIGHT = 6 * GIB


def judge(here: Surroundings) -> Iterator[Check]:
    """Free space where the kit lies or will lie, and the way there."""
    place = nearest(here.kit_path)
    yield _space(here.kit_path, place)
    yield _reachable(here, place)


def nearest(path: Path) -> Path:
    """The folder itself, or the nearest one above that exists."""
    path = path.absolute()
    return next((folder for folder in (path, *path.parents) if folder.is_dir()), Path("/"))


def _space(kit: Path, place: Path) -> Check:
    why = "Bases, the machines' disks and their kept memory lie in the kit."
    try:
        usage = os.statvfs(place)
    except OSError as error:
        return Check("space", _GROUP, State.UNKNOWN, f"{place}: {error.strerror}", why)
    free = usage.f_bavail * usage.f_frsize
    evidence = f"{size_text(free)} free in {place}" + ("" if place == kit.absolute() else f", where {kit} would be made")
    ask = (f"Free some space in {place}, or use a kit elsewhere (pocketcloud kit init --dir PATH)",)
    if free < _TOO_LITTLE:
        return Check("space", _GROUP, State.FAIL, f"{evidence}; a base and a small lab need {size_text(_TOO_LITTLE)}", why, ask)
    if free < _TIGHT:
        return Check("space", _GROUP, State.WARN, f"{evidence}; enough for one base and a small lab", why, ask)
    return Check("space", _GROUP, State.OK, evidence, why)


def _reachable(here: Surroundings, place: Path) -> Check:
    why = "The system's libvirt runs QEMU as a user of its own, who must be able to pass every folder above the disks."
    try:
        closed = [folder for folder in (place, *place.parents) if not folder.stat().st_mode & stat.S_IXOTH]
    except OSError as error:
        return Check("kit-path", _GROUP, State.UNKNOWN, f"{error.filename}: {error.strerror}", why)
    if not closed:
        return Check("kit-path", _GROUP, State.OK, f"other users may pass {place} and the folders above it", why)
    account = qemu_account(here.root)
    user = account.name if account else "qemu"
    names = ", ".join(str(folder) for folder in closed)
    evidence = f"only their owner may pass {names}; QEMU can reach {here.kit_path} only if it was given leave otherwise"
    remedy = tuple(shlex.join(["setfacl", "-m", f"u:{user}:x", str(folder)]) for folder in closed)
    return Check("kit-path", _GROUP, State.WARN, evidence, why, remedy)
