"""What a base's sources have now, for all builders: whether there is anything newer than what the base was made from.

It is a hint for people: nothing is installed by it, so what vouches for these small files is left to the build.
Sources: createrepo_c's repomd.xml (Fedora, Enterprise Linux); Debian's and Ubuntu's InRelease files; lists of sums of images.
"""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

from pocketcloud.bases import newest
from pocketcloud.bases.mirror import choose_from
from pocketcloud.downloads import Patience
from pocketcloud.downloads.sums import NoSum, sum_of
from pocketcloud.downloads.transfer import fetch_small
from pocketcloud.errors import PocketcloudError
from pocketcloud.model.base import (
    UNKNOWN,
    Arch,
    BootstrapDefinition,
    Builder,
    Definition,
    Download,
    ImageDefinition,
    InstallDefinition,
    Newest,
    spelled,
)
from pocketcloud.model.names import Name

_PATIENCE = Patience(connect=5.0, silence=10.0, attempts=1)
_LARGEST = 16 << 20
_REPO = "{http://linux.duke.edu/metadata/repo}"
_SHA256 = re.compile("[0-9a-f]{64}")


def ask(definition: Definition, arch: Arch, mirror: str | None = None) -> Newest:
    """What the sources of the base have now; `mirror` as the build was told. UNKNOWN where that cannot be told: no network, or
    sources that do not say (a registration, an image with nothing but a signature)."""
    try:
        match definition:
            case BootstrapDefinition():
                return newest.ask(definition, arch, mirror)
            case InstallDefinition(builder=Builder.KICKSTART):
                return _repositories(definition, arch, mirror)
            case InstallDefinition():
                return newest.read(list(_releases(definition, arch, mirror)), arch)
            case ImageDefinition() if arch in definition.images:
                return _image(definition.images[arch])
    except (PocketcloudError, OSError, NoSum):
        pass
    return UNKNOWN


def _image(image: Download) -> Newest:
    if image.sha256:
        return Newest(image.sha256)  # it is what it is, whatever there is besides
    if not image.sums:
        return UNKNOWN
    text = Path(image.sums).read_bytes() if image.sums.startswith("/") else _small(image.sums)
    return Newest(sum_of(text.decode(errors="replace"), image.url or image.file, image.sums).hexadecimal)


def _releases(definition: InstallDefinition, arch: Arch, mirror: str | None) -> Iterator[str]:
    """The InRelease files that the installed system's packages come by."""
    ports = definition.repos.get(Name("ports"), "") if arch is not Arch.X86_64 else ""
    archive = spelled(ports or definition.tree, definition.family, arch)
    security = spelled(ports or definition.repos.get(Name("security"), ""), definition.family, arch)
    native = arch == platform.machine()
    found = choose_from(definition.family if native else "", archive, security, mirror)
    places = [(found.archive, definition.suite), (found.archive, f"{definition.suite}-updates")]
    places += [(found.security, f"{definition.suite}-security")] if found.security else []
    for place, suite in places:
        yield _small(f"{place.rstrip('/')}/dists/{suite}/InRelease").decode(errors="replace")


def _repositories(definition: InstallDefinition, arch: Arch, mirror: str | None) -> Newest:
    """By the sums of the lists of packages; a repository that is made anew with the same packages has the same."""
    urls = [mirror or definition.tree, *(definition.repos[name] for name in sorted(definition.repos))]
    sums, dates = [], []
    for url in filter(None, urls):
        content = _small(f"{spelled(url, definition.family, arch).rstrip('/')}/repodata/repomd.xml")
        found = _primary(content)
        if found is None:
            return UNKNOWN
        sums.append(found[0])
        dates.append(found[1])
    if not sums:
        return UNKNOWN
    date = datetime.fromtimestamp(max(dates), UTC).isoformat(timespec="seconds") if max(dates) else ""
    return Newest(hashlib.sha256("\n".join(sums).encode()).hexdigest(), date)


def _primary(content: bytes) -> tuple[str, int] | None:
    """The sum of a repository's list of packages, unpacked where that is said, and its time."""
    try:
        top = ElementTree.fromstring(content)  # noqa: S314 - expat bounds what entities expand to
        data = next(data for data in top.iter(f"{_REPO}data") if data.get("type") == "primary")
        said = data.findtext(f"{_REPO}open-checksum") or data.findtext(f"{_REPO}checksum") or ""
        when = int(float(data.findtext(f"{_REPO}timestamp") or 0))
    except (ElementTree.ParseError, StopIteration, ValueError, OverflowError):
        return None
    return (said.strip(), when) if _SHA256.fullmatch(said.strip()) and 0 <= when < 1 << 33 else None


def _small(url: str) -> bytes:
    return fetch_small(url, url, _PATIENCE, _LARGEST)
