"""What Debian's installer is made of, beside what it installs: its packages (udebs), its kernel and initramfs, and the files it
finds them by.

It reads Release with a signature beside it, where apt reads InRelease; that both say the same is looked at here.
Sources: net-retriever, choose-mirror, anna and base-installer of Debian 12 and 13, read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from pocketcloud.bases.install import debian
from pocketcloud.model.base import Arch

COMPONENT = "main/debian-installer"
"""Where the installer's packages are, as a source's component."""
_FIELD = re.compile(r"(Package|Kernel-Version): (\S+)")
_SIGNED = ("Release", "Release.gpg")


def udebs(lines: Iterable[str]) -> Iterator[str]:
    """The names of the packages in a list of them that an installer of today may load: all but modules of older kernels. Lists
    keep those of the kernels before, for installers that are out in the world."""
    found: dict[str, tuple[int, ...]] = {}
    name = ""
    for line in lines:
        if match := _FIELD.match(line):
            if match[1] == "Package":
                name = match[2]
                found[name] = ()
            else:
                found[name] = tuple(int(number) for number in re.findall("[0-9]+", match[2]))
    newest = max(found.values(), default=())
    return (name for name, kernel in found.items() if kernel in ((), newest))


def needed(arch: Arch) -> tuple[str, ...]:
    """The files below the suite's folder without which the installer does not begin."""
    images = debian.IMAGES.format(arch=arch.debian)
    folder = f"{images}/{debian.NETBOOT.format(arch=arch.debian)}"
    lists = f"{COMPONENT}/binary-{arch.debian}/Packages.xz"
    return (*_SIGNED, lists, f"{images}/{debian.SUMS}", *(f"{folder}/{name}" for name in debian.STARTED))


def is_text(path: str) -> bool:
    """Whether it is a file that is read here."""
    return path in _SIGNED or path.endswith(debian.SUMS)


def fetch(signed: bytes, arch: Arch, fetched: Callable[[str, str], bytes]) -> None:
    """Have the installer's files fetched that the suite's InRelease `signed` vouches for. `fetched` takes a path below the
    suite's folder and its SHA-256 (empty where none is known), and gives the content of texts. Raises ValueError with what is
    wrong."""
    named = debian.sums_in(signed)
    images = debian.IMAGES.format(arch=arch.debian)
    if f"{images}/{debian.SUMS}" not in named:
        raise ValueError(f"the archive has no installer for {arch.debian}")
    if debian.sums_in(fetched("Release", "")) != named:
        raise ValueError("its Release and its InRelease are of different days")
    fetched("Release.gpg", "")
    # The installer asks there for what architecture a mirror has.
    described = f"main/binary-{arch.debian}/Release"
    if described in named:
        fetched(described, named[described])
    sums = debian.image_sums(fetched(f"{images}/{debian.SUMS}", named[f"{images}/{debian.SUMS}"]))
    for name in debian.STARTED:
        path = f"{debian.NETBOOT.format(arch=arch.debian)}/{name}"
        if path not in sums:
            raise ValueError(f"the archive has no network installer for {arch.debian}")
        fetched(f"{images}/{path}", sums[path])
