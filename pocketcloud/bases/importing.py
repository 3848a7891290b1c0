"""`base import`: any disk image becomes a base of the kit, an appliance for example. It is taken as it is, sealed or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pocketcloud import downloads
from pocketcloud.bases import disk_image
from pocketcloud.bases.builder import Built, adopt, work_folder
from pocketcloud.bases.cloud_image import check_room, opened, said_of
from pocketcloud.bases.progress import OnProgress
from pocketcloud.model.base import Arch, Base, Download, Firmware
from pocketcloud.model.kit import Kit
from pocketcloud.model.names import Name
from pocketcloud.storage import Image, Storage
from pocketcloud.system import Runner, run

_FETCHED, _UNPACKED = 0.3, 0.6


@dataclass(frozen=True, slots=True)
class Import:
    """What is to be imported: the image, verified by what it says (a file of this host need not say anything), under which name,
    for which machines; `firmware` is what it can be started by where that is None."""

    name: Name
    arch: Arch
    image: Download
    firmware: Firmware | None = None
    title: str = ""


def _utc_now() -> datetime:
    return datetime.now(UTC)


def import_image(
    kit: Kit,
    storage: Storage,
    wanted: Import,
    tell: OnProgress,
    *,
    run: Runner = run,
    clock: Callable[[], datetime] = _utc_now,
) -> Built:
    """Put the image into the store as a base; its digest is that of the file. The same file again: no effect.

    The caller holds the lock of this base. Raises Refused for what is not the right file, is hostile, broken or no disk image;
    NotFound, HostLacks, NoSpace. Nothing half-made is left then, and the file is never changed.
    """
    fetched = downloads.fetch(wanted.image, kit.path / "media", run=run, tell=lambda text, share: tell(text, share * _FETCHED))
    with work_folder(kit, wanted.name, wanted.arch) as work:
        disk = opened(fetched.path, work, lambda share: tell("unpacking", _FETCHED + share * (_UNPACKED - _FETCHED)))
        firmware = disk_image.fits(disk, wanted.arch, wanted.firmware)
        place = wanted.image.file or wanted.image.url
        title = wanted.title or f"imported from {Path(place).name if wanted.image.file else downloads.shown(place)}"
        made_with = f"import of {said_of(fetched, disk)}"
        base = Base(wanted.name, wanted.arch, fetched.sha256, "", firmware, "", made_with, title)

        def make(volume: str) -> None:
            check_room(disk, storage)
            told = _UNPACKED
            storage.create(
                volume, disk.size, Image(disk.path, disk.format, lambda share: tell("storing", told + share * (1 - told)))
            )

        built = adopt(kit, storage, base, make, clock)
    tell("done", 1.0)
    return built
