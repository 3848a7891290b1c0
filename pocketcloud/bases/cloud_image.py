"""The builder `cloud-image`: a distribution's ready image, fetched and verified, looked at, and put into the store as it is.

What the definition adds (`packages`, `patches`, `post`) is done in a throw-away guest, on the volume while it is being made.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pocketcloud import downloads
from pocketcloud.bases import customize, disk_image, freshness
from pocketcloud.bases.disk_image import Disk
from pocketcloud.bases.install.preflight import check_guest
from pocketcloud.bases.packed import Share, unpacked
from pocketcloud.bases.recipe import Measured, Order
from pocketcloud.downloads import Fetched
from pocketcloud.errors import HostLacks, NoSpace
from pocketcloud.host.packages import install_command
from pocketcloud.host.release import read_distribution
from pocketcloud.model.base import UNKNOWN, Arch, Firmware, ImageDefinition
from pocketcloud.model.sizes import size_text
from pocketcloud.storage import Image, Storage
from pocketcloud.system import which

RECIPE = 1
"""The version of what this module does to an image: raised when a base would come out differently."""

_FETCHED, _UNPACKED = 0.6, 0.7
_STORED = 0.8
"""How far a build is when the image is here, when it is unpacked, and, if a guest is to change it, when it is stored."""


class CloudImage:
    """See Recipe."""

    def inputs(self, definition: ImageDefinition, arch: Arch) -> Iterator[tuple[str, bytes]]:  # noqa: ARG002 - the same for all
        """See Recipe.inputs."""
        yield "recipe", str(RECIPE).encode()
        if customize.wanted(definition):
            yield from customize.parts()

    def firmware(self, definition: ImageDefinition, arch: Arch) -> Firmware:  # noqa: ARG002 - the same for all
        """See Recipe.firmware."""
        return definition.firmware

    def check(self, order: Order[ImageDefinition]) -> None:
        """See Recipe.check."""
        lacking = list(_lacking(order))
        if lacking:
            hints = dict.fromkeys(hint for _, hint in lacking if hint)
            raise HostLacks(
                f"base {order.definition.base} ({order.arch}) cannot be built here: " + "; ".join(text for text, _ in lacking),
                hint="; ".join(hints),
            )
        if customize.wanted(order.definition):
            customize.check(order)
        elif order.definition.requires.cpu:
            check_guest(order, 0)  # no guest is started yet, but machines of it will be

    def make(self, order: Order[ImageDefinition], volume: str) -> str:
        """See Recipe.make."""
        definition = order.definition
        packages = UNKNOWN if order.offline else freshness.ask(definition, order.arch)
        order.measured(Measured(packages=packages))
        fetched = downloads.fetch(
            definition.images[order.arch], order.kit.path / "media", offline=order.offline, run=order.run,
            tell=lambda text, share: order.tell(text, share * _FETCHED),
        )  # fmt: skip
        disk = opened(fetched.path, order.work, lambda share: order.tell("unpacking", _FETCHED + share * (_UNPACKED - _FETCHED)))
        disk_image.fits(disk, order.arch, definition.firmware)
        check_room(disk, order.storage)
        size = max(disk.size, definition.size)
        if not customize.wanted(definition):
            told = _stored(order, 1.0)
            order.storage.create(volume, size, Image(disk.path, disk.format, told))
            return said_of(fetched, disk)

        def fill(target: Path) -> None:
            Image(disk.path, disk.format, _stored(order, _STORED)).convert(target, "raw", order.run)
            used = customize.customize(order, target, "raw", definition.firmware, _STORED)
            order.measured(Measured(used, packages))

        order.storage.create(volume, size, fill)
        return f"{said_of(fetched, disk)}, customized in a guest (recipe {customize.RECIPE})"


def _stored(order: Order[ImageDefinition], end: float) -> Share:
    return lambda share: order.tell("storing the image", _UNPACKED + share * (end - _UNPACKED))


def opened(path: Path, work: Path, tell: Share) -> Disk:
    """The disk in a verified file, unpacked into the folder `work` if it is packed, and looked at."""
    image, form = unpacked(path, work, tell)
    return disk_image.look(image, form)


def check_room(disk: Disk, storage: Storage) -> None:
    """Raise NoSpace if the store cannot take the disk's content."""
    free = storage.usage().free
    if disk.needs > free:
        raise NoSpace(
            f"the image takes {size_text(disk.needs)} in the kit's store, where {size_text(free)} are free",
            hint="remove labs or bases that are not needed, or move the kit to a larger disk",
        )


def said_of(fetched: Fetched, disk: Disk) -> str:
    """What a base was made from, for its record."""
    signed = f", signed by {fetched.signer}" if fetched.signer else ""
    return f"an image ({disk.format}, sha256 {fetched.sha256}{signed})"


def _lacking(order: Order[ImageDefinition]) -> Iterator[tuple[str, str]]:
    distribution = read_distribution(order.here.root)
    for tool, row in (
        ("qemu-img", "qemu-img"),
        *((("gpgv", "signatures"),) if order.definition.images[order.arch].keyring else ()),
    ):
        if which(tool) is None:
            yield f"{tool} is not installed", install_command(distribution, order.here.machine, [row])
