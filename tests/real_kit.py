"""A kit with a real base in it: what labs of real guests are raised from in tests."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

from pocketcloud.bases import records
from pocketcloud.model.base import Arch
from tests.built_base import CACHE, built_base, kit_in
from tests.labkit import LabKit, lab_kit


@contextlib.contextmanager
def real_kit(name: str = "debian-12", arch: Arch = Arch.X86_64) -> Iterator[LabKit]:
    """A kit of its own, of which nothing is left afterwards; the base is that of the checkout's cache, built if it is missing."""
    with lab_kit() as kit:
        with built_base(name, arch) as (_, volume):
            base = next(base for base in records.built(kit_in(CACHE)) if base.volume == volume.name)
            path, _ = kit.storage.place(volume.name)
            try:
                os.link(volume.path, path)  # sealed: nobody writes to either
            except OSError:
                shutil.copy2(volume.path, path)
        records.write(kit.kit, base)
        yield kit
