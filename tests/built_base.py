"""Bases built for tests, kept between runs in the checkout's `.cache` as a kit of their own: keyed by their inputs, as ever.

`python -m tests.built_base NAME ARCH` builds one for those who will want it later.
"""

from __future__ import annotations

import fcntl
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pocketcloud.bases import builder, definitions
from pocketcloud.model.base import Arch
from pocketcloud.model.kit import KIT_SCHEMA, TREE, Kit, Manifest
from pocketcloud.model.names import Name
from pocketcloud.model.profile import Medium
from pocketcloud.storage import Storage, Volume, open_storage

CACHE = Path(__file__).resolve().parents[1] / ".cache/bases"


def kit_in(folder: Path) -> Kit:
    """A directory kit in `folder`, attached nowhere."""
    for name in TREE:
        (folder / name).mkdir(parents=True, exist_ok=True)
    return Kit(Manifest(KIT_SCHEMA, str(uuid.uuid4()), Name("tests"), "", "", "qcow2"), folder, Medium.DIR)


@contextmanager
def built_base(name: str, arch: Arch, folder: Path = CACHE) -> Iterator[tuple[Storage, Volume]]:
    """The base's store and volume, built if it is not there yet. Held against another process of tests."""
    kit = kit_in(folder)
    storage = open_storage(kit)
    said: list[float] = []
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        definition = definitions.find(name)
        made = builder.build(kit, storage, definition, arch, on_progress=lambda _, part: said.append(part))
        assert said == sorted(said), "progress went back"
        assert bool(said) == made.fresh
        assert not said or said[-1] == 1.0
        yield storage, next(volume for volume in storage.volumes() if volume.name == made.base.volume)


if __name__ == "__main__":
    with built_base(sys.argv[1], Arch(sys.argv[2])):
        pass
