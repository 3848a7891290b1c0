"""The kit's folder: space, and whether QEMU, which is not root, can reach it."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from pocketcloud.check.judgement import Check, Surroundings
from pocketcloud.errors import NotFound, PocketcloudError
from pocketcloud.host.accounts import qemu_account
from pocketcloud.model.judgement import State
from pocketcloud.model.sizes import GIB, size_text
from pocketcloud.storage import open_storage

_GROUP = "space"
# A Debian base takes about 1 GiB while it is built and afterwards; a two-machine lab with its memory kept, about as much.
_TOO_LITTLE = 2 * GIB
_TIGHT = 6 * GIB


def judge(here: Surroundings) -> Iterator[Check]:
    """Free space where the kit lies or will lie, and the way there."""
    yield _space(here)
    yield _reachable(here, nearest(here.kit_path))


def nearest(path: Path) -> Path:
    """The folder itself, or the nearest one above that exists."""
    path = path.absolute()
    return next((folder for folder in (path, *path.parents) if folder.is_dir()), Path("/"))


def free_space(here: Surroundings) -> tuple[int, str]:
    """The bytes that the machines' disks may still take, and where that is, in words. Raises PocketcloudError."""
    if here.kit is not None and here.kit.vg:
        # What is mounted there is a small volume with its records; the disks are volumes of its pool.
        return open_storage(here.kit).usage().free, f"the pool of kit {here.kit.name}"
    place = nearest(here.kit_path)
    try:
        usage = os.statvfs(place)
    except OSError as error:
        raise NotFound(f"{place}: {error.strerror}") from None
    return usage.f_bavail * usage.f_frsize, str(place)


def _space(here: Surroundings) -> Check:
    why = "Bases, the machines' disks and their kept memory lie in the kit."
    try:
        free, place = free_space(here)
    except PocketcloudError as error:
        return Check("space", _GROUP, State.UNKNOWN, error.message.splitlines()[0], why)
    made = here.kit is not None or place == str(here.kit_path.absolute())
    evidence = f"{size_text(free)} free in {place}" + ("" if made else f", where {here.kit_path} would be made")
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
