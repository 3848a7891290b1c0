"""The storage room: volumes of a kit. What every driver promises stands here; tests/contract proves it for each.

A volume is either *sealed* (read-only, other volumes may be clones of it) or *live* (writable, nothing depends on it).
Differences between drivers are data (`Volume.path`, `Volume.format`); there are no capability flags. Guests' memory,
firmware variables and seeds are not volumes: storage never hears of QEMU.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pocketcloud.model.inventory import Clone, Marks, Volume
from pocketcloud.model.kit import Kit
from pocketcloud.system import Runner, run

__all__ = ["Clone", "Filler", "Image", "Marks", "Storage", "Usage", "Volume", "open_storage"]

_PERCENT = re.compile(r"\((\d+\.\d+)/100%\)")

Filler = Callable[[Path], None]
"""Writes a new volume's whole content, as a raw image, to the path of a file or block device of the volume's size."""


@dataclass(frozen=True, slots=True)
class Image:
    """A disk image of this host that a new volume gets its content from, in whatever form the store keeps it.

    `format` is QEMU's name of it; it has been looked at: it names no other file. `tell` gets the fraction done.
    """

    path: Path
    format: str
    tell: Callable[[float], None] = lambda _done: None

    def convert(self, target: Path, form: str, run: Runner = run) -> None:
        """Copy it to `target`, which exists, is as large at least and reads as zeros, in QEMU's format `form`."""

        def line(text: str) -> None:
            if match := _PERCENT.search(text):
                self.tell(float(match[1]) / 100)

        # Formats are named, never guessed; out of order (-W) is quicker where the target is no spinning disk.
        argv: list[str | Path] = ["qemu-img", "convert", "-p", "-n", "-W", "--target-is-zero", "-f", self.format, "-O", form]
        run([*argv, "--", self.path, target], on_line=line)


@dataclass(frozen=True, slots=True)
class Usage:
    """The store's space in bytes; `metadata_*` are 0 where the store has no metadata space of its own."""

    size: int
    used: int
    free: int
    metadata_size: int = 0
    metadata_used: int = 0


class Storage(Protocol):
    """The store of one kit. Every verb is atomic: after a crash at any point its effect is there whole or not at all.

    Names follow the store's grammar (names joined by dots); the driver does not read meaning into them. All verbs raise
    NoSpace when the store is full and NotFound for a named volume that should exist and does not.
    """

    def create(self, name: str, size: int, fill: Filler | Image | None = None, marks: Marks | None = None) -> Volume:
        """Make a volume of `size` bytes, which a store may round up. With `fill` it is sealed, and published only when filled
        whole; without, it is live and reads as zeros. An Image is copied in one pass, a smaller one than `size` to its
        beginning. Refused if the name exists."""
        ...

    def clone(self, source: str, name: str, size: int | None = None) -> Volume:
        """Make a live volume with the content of `source`, at least as large (`size`), sharing what is not changed.

        Seals `source`, if it is still live: nothing may write to what others stand on. It is live again when the last of
        its clones is gone (one made with `fill` stays sealed). Refused if `source` is open for writing, or if the name
        exists, unless `prepare` made it for this."""
        ...

    def clone_all(self, clones: Sequence[Clone], *, reserve: bool = False) -> None:
        """Make many clones in as few commands as the store allows. Each is atomic, not all of them together: after an error
        some may be there. With `reserve` the store gives what it keeps back for the way out of being full, which is for
        `reset` and its like: what it makes is soon outweighed by what it removes."""
        ...

    def prepare(self, clones: Sequence[Clone]) -> None:
        """Make clones in advance, to be published by `clone_all` when they are wanted: until then they are *spare*, which
        keeps nobody from removing what they stand on, and they go with it. A store where a clone costs next to nothing
        need not do anything. Refused on a store that is nearly full."""
        ...

    def activate(self, *names: str) -> None:
        """Make volumes ready to be opened at their paths. A live volume is not to be opened before; sealed ones need it only
        where somebody wants to read them by themselves. Done already is success."""
        ...

    def replace(self, name: str, source: str, size: int | None = None) -> Volume:
        """Give the live volume `name` the content of a fresh clone of `source`, in one step: it has the old content or the
        new. Made anew if it is absent. Refused while it is open or other volumes stand on it."""
        ...

    def seal(self, name: str) -> Volume:
        """Seal a live volume for good, as if it had been made with `fill`. Sealed already is success. Refused while it is open
        for writing."""
        ...

    def grow(self, name: str, size: int) -> Volume:
        """Enlarge a live volume to `size` bytes. Already that size: no effect. Smaller: refused."""
        ...

    def remove(self, *names: str) -> None:
        """Remove volumes; absent is success. Refused while one is open, or others that are not among `names` stand on it:
        then none is removed. What interrupted verbs have left half made goes too, also if no name is given."""
        ...

    def volumes(self) -> tuple[Volume, ...]:
        """All whole volumes of the store, by name, spare ones too."""
        ...

    def place(self, name: str) -> tuple[Path, str]:
        """Where a volume of that name is or would be, and its format; asks nothing of the store."""
        ...

    def explain(self, verb: str, name: str, *, source: str = "", size: int = 0) -> tuple[str, ...]:
        """The commands, a line of shell each, that `verb` (`create`, `clone`, `grow`, `remove`, `activate`) would run: for
        --dry-run, and for those who want to do it by hand."""
        ...

    def usage(self) -> Usage:
        """The space of the store."""
        ...


def open_storage(kit: Kit) -> Storage:
    """The driver for the kit's store. Raises HostLacks where this version has none for it."""
    from pocketcloud.errors import HostLacks
    from pocketcloud.storage.qcow2 import Qcow2Directory

    if kit.manifest.storage == "qcow2":
        return Qcow2Directory(kit.path / "volumes")
    if kit.manifest.storage == "lvm":
        from pocketcloud.storage.lvm_thin import ThinPool

        return ThinPool(kit.vg, kit.devices, kit.path / "volumes")
    raise HostLacks(
        f"kit {kit.name}: this version of pocketcloud has no driver for its storage {kit.manifest.storage!r}",
        hint="install a newer pocketcloud",
    )
