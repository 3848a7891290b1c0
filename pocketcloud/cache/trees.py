"""Package repositories of the RPM family and the installer's trees around them: `repodata` byte for byte, the newest packages of
one architecture, and of a tree all that its `.treeinfo` vouches for.

Everything is fetched by its sum: repomd.xml has those of the lists, the list of packages has those of packages, `.treeinfo` those
of the installer. What vouches for repomd.xml is TLS; packages are signed, which the installer checks.
Sources: createrepo_c's repomd.xml and primary.xml; productmd's treeinfo-1.x.rst; rpm's lib/rpmvercmp.
"""

from __future__ import annotations

import configparser
import lzma
import re
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import total_ordering
from itertools import zip_longest
from pathlib import Path
from xml.etree import ElementTree

from pocketcloud.bases.disk_image import Packing
from pocketcloud.bases.packed import pieces
from pocketcloud.bases.progress import OnProgress
from pocketcloud.cache.addresses import key_of, masked, url_below
from pocketcloud.cache.store import Store
from pocketcloud.disk_space import spare
from pocketcloud.downloads import Patience, fetch
from pocketcloud.downloads.transfer import fetch_small
from pocketcloud.errors import NoSpace, NotFound, Refused
from pocketcloud.model.base import Arch, Download
from pocketcloud.model.cache import Stored
from pocketcloud.model.sizes import GIB, KIB, MIB, size_text

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdError
else:
    from backports.zstd import ZstdError

_REPO = "{http://linux.duke.edu/metadata/repo}"
_COMMON = "{http://linux.duke.edu/metadata/common}"
_AT_ONCE = 4
# Unpacked. The largest distributions' lists have some 300 MiB, and 100,000 packages, of which none says more than 3 MiB.
_LARGEST_LIST = 2 * GIB
_LARGEST_ENTRY = 8 * MIB
_MOST_PACKAGES = 1_000_000
_PACKED = {".gz": Packing.GZ, ".xz": Packing.XZ, ".zst": Packing.ZST}
_PIECE = 64 * KIB
_SHA256 = re.compile("[0-9a-f]{64}")
_PARTS = re.compile(r"[0-9]+|[a-zA-Z]+|~|\^")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file that a list vouches for: `size` in bytes (0: the list does not say)."""

    url: str
    sha256: str
    size: int = 0


class TreeFetch:
    """Fetches trees and repositories into `store` by way of `work`, which is kept when this is interrupted, and gone on from."""

    def __init__(self, title: str, arch: Arch, store: Store, work: Path, known: Mapping[str, Stored], tell: OnProgress) -> None:
        self._title, self._arch, self._store, self._work = title, arch, store, work
        self._known, self._tell = known, tell
        self._found: dict[str, Stored] = {}

    def fetch(self, tree: str, repos: Iterable[str]) -> dict[str, Stored]:
        """The files of the installer's tree (empty: there is none) and of the repositories, by key. Raises NotFound, Refused,
        HostLacks or NoSpace."""
        wanted = list(self._tree(tree)) if tree else []
        for url in dict.fromkeys([tree, *repos] if tree else repos):
            wanted += self._repository(url)
        self._take(wanted, 0.1, 1.0)
        shutil.rmtree(self._work, ignore_errors=True)
        return self._found

    # -- lists

    def _small(self, url: str, what: str) -> bytes:
        """A list that nothing here vouches for, kept as it came."""
        content = fetch_small(url, what, Patience())
        path = self._work / "small"
        path.write_bytes(content)
        self._found[key_of(url)] = self._store.adopt(path)
        return content

    def _tree(self, url: str) -> Iterator[Wanted]:
        self._tell(f"reading the tree {masked(url)}", 0.01)
        text = ""
        for name in (".treeinfo", "treeinfo"):
            try:
                text = self._small(url_below(url, name), f"{self._title}: {name}").decode(errors="replace")
                break
            except NotFound:
                continue
        info = configparser.ConfigParser(interpolation=None, strict=False)
        info.optionxform = str  # type: ignore[assignment,method-assign]  # paths keep their case
        try:
            info.read_string(text)
            sums = dict(info["checksums"])
        except (configparser.Error, KeyError):
            raise NotFound(
                f"{self._title}: {masked(url)} is no installer's tree: it has no .treeinfo with checksums",
                hint="name another tree in the base's definition",
            ) from None
        for path, said in sums.items():
            algorithm, _, digest = said.partition(":")
            if algorithm == "sha256" and _SHA256.fullmatch(digest) and not path.startswith("repodata/"):
                yield self._below(url, path, digest, 0)

    def _below(self, url: str, path: str, sha256: str, size: int) -> Wanted:
        wanted = url_below(url, path)
        try:
            key_of(wanted)
        except ValueError:
            raise Refused(
                f"{self._title}: {masked(url)} names a file {path[:100]!r}, which lies elsewhere", hint="use another mirror"
            ) from None
        return Wanted(wanted, sha256, size)

    def _repository(self, url: str) -> list[Wanted]:
        self._tell(f"reading the repository {masked(url)}", 0.03)
        content = self._small(url_below(url, "repodata/repomd.xml"), f"{self._title}: repomd.xml")
        lists, primary = [], None
        try:
            for data in ElementTree.fromstring(content).iter(f"{_REPO}data"):  # noqa: S314 - expat bounds what entities expand to
                place, checksum = data.find(f"{_REPO}location"), data.find(f"{_REPO}checksum")
                if place is None or checksum is None or checksum.get("type") != "sha256":
                    continue
                digest = (checksum.text or "").strip()
                if not _SHA256.fullmatch(digest):
                    raise ValueError("a sum in it is none")
                wanted = self._below(url, place.get("href", ""), digest, int(data.findtext(f"{_REPO}size") or 0))
                lists.append(wanted)
                primary = wanted if data.get("type") == "primary" else primary
        except (ElementTree.ParseError, ValueError) as error:
            raise Refused(
                f"{self._title}: what {masked(url)} has for repomd.xml is none: {error}", hint="use another mirror"
            ) from None
        if primary is None:
            raise NotFound(f"{self._title}: {masked(url)} has no list of packages with SHA-256 sums", hint="use another mirror")
        self._take(lists, 0.03, 0.1)
        stored = self._found[key_of(primary.url)]
        return [self._below(url, package.place, package.sha256, package.size) for package in self._packages(stored, primary.url)]

    def _packages(self, stored: Stored, name: str) -> list[Package]:
        try:
            with self._store.path(stored.sha256).open("rb", buffering=0) as file:
                kind = _PACKED.get(Path(name).suffix)
                content = pieces(kind, file) if kind else iter(lambda: file.read(_PIECE), b"")
                return newest(packages(Unpacked(content), self._arch))
        except (ElementTree.ParseError, OSError, EOFError, lzma.LZMAError, zlib.error, ZstdError, ValueError) as error:
            raise Refused(
                f"{self._title}: the list of packages {masked(name)} cannot be read: {error}", hint="use another mirror"
            ) from None

    # -- files

    def _take(self, wanted: list[Wanted], begin: float, end: float) -> None:
        """Fetch files, several at once; what is here already is not fetched."""
        missing = []
        for one in dict.fromkeys(wanted):
            stored = self._known.get(key_of(one.url))
            if stored is None or stored.sha256 != one.sha256:
                stored = self._left(one.sha256)
            if stored is not None:
                self._found[key_of(one.url)] = stored
            else:
                missing.append(one)
        size, room = sum(one.size for one in missing), max(0, spare(self._work))
        if size > room:
            raise NoSpace(
                f"{self._title}: {size_text(size)} are to be fetched, {size_text(room)} may be filled in the kit",
                hint="pocketcloud cache prune; remove labs or bases that are not needed",
            )
        with ThreadPoolExecutor(_AT_ONCE, "fetch") as pool:
            jobs = {pool.submit(fetch, Download(url=one.url, sha256=one.sha256), self._work): one for one in missing}
            try:
                for number, job in enumerate(as_completed(jobs), start=1):
                    self._found[key_of(jobs[job].url)] = self._store.adopt(job.result().path)
                    share = begin + (end - begin) * number / len(jobs)
                    self._tell(f"fetched {jobs[job].url.rpartition('/')[2]} ({number} of {len(jobs)})", share)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _left(self, sha256: str) -> Stored | None:
        """A content that is in the store without a collection that names it, as an interrupted sync leaves it. It is read: it may
        not have reached the disk whole."""
        try:
            stored = Stored(sha256, self._store.path(sha256).stat().st_size)
        except OSError:
            return None
        return stored if self._store.is_whole(stored) else None


# -- packages


@total_ordering
@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """A package's version, compared as rpm does."""

    epoch: int
    version: str
    release: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Version) and not self < other and not other < self

    def __hash__(self) -> int:
        return hash(self.epoch)

    def __lt__(self, other: Version) -> bool:
        if self.epoch != other.epoch:
            return self.epoch < other.epoch
        return (compared(self.version, other.version) or compared(self.release, other.release)) < 0


def compared(one: str, other: str) -> int:
    """-1, 0 or 1, as rpm orders two versions: piece by piece, digits as numbers and above letters; `~` is before everything,
    `^` after the end and before all else."""
    for mine, theirs in zip_longest(_PARTS.findall(one), _PARTS.findall(other), fillvalue=""):
        if mine == theirs:
            continue
        if "~" in (mine, theirs):
            return -1 if mine == "~" else 1
        if "^" in (mine, theirs):
            return (1 if mine == "^" else -1) if "" in (mine, theirs) else (-1 if mine == "^" else 1)
        if not mine or not theirs:
            return 1 if mine else -1
        if mine.isdigit() != theirs.isdigit():
            return 1 if mine.isdigit() else -1
        left, right = (mine.lstrip("0"), theirs.lstrip("0")) if mine.isdigit() else (mine, theirs)
        order = (
            ((len(left), left) > (len(right), right)) - ((len(left), left) < (len(right), right))
            if mine.isdigit()
            else (left > right) - (left < right)
        )
        if order:
            return order
    return 0


@dataclass(frozen=True, slots=True)
class Package:
    """A package as a list has it: where it is from the repository's root, and its size in bytes."""

    name: str
    arch: str
    version: Version
    place: str
    sha256: str
    size: int


class Unpacked:
    """A list to be read, out of the pieces that it is unpacked in. Its parser keeps an entry whole: neither one entry nor all may
    be without end, however little they were packed into."""

    def __init__(self, content: Iterator[bytes]) -> None:
        self._content = content
        self._rest = b""
        self._read = self._entry = 0

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes; raises ValueError where there are too many."""
        self._rest = self._rest or next(self._content, b"")
        piece, self._rest = (self._rest, b"") if size < 0 else (self._rest[:size], self._rest[size:])
        self._read += len(piece)
        self._entry += len(piece)
        if self._read > _LARGEST_LIST or self._entry > _LARGEST_ENTRY:
            raise ValueError(
                f"it has more than {size_text(_LARGEST_LIST)}"
                if self._read > _LARGEST_LIST
                else f"one entry has more than {size_text(_LARGEST_ENTRY)}"
            )
        return piece

    def entry_ends(self) -> None:
        """What is read from now on belongs to another entry."""
        self._entry = 0


def packages(file: Unpacked, arch: Arch) -> Iterator[Package]:
    """The packages in a list (primary.xml) that machines of that architecture can install. Raises ParseError, ValueError."""
    top, depth = None, 0
    for event, element in ElementTree.iterparse(file, ("start", "end")):  # noqa: S314 - expat bounds what entities expand to
        depth += 1 if event == "start" else -1
        top = element if top is None else top
        if event == "start" or depth != 1:
            continue
        if element.tag == f"{_COMMON}package" and (package := _package(element, arch)):
            yield package
        top.clear()
        file.entry_ends()


def _package(element: ElementTree.Element, arch: Arch) -> Package | None:
    version, place = element.find(f"{_COMMON}version"), element.find(f"{_COMMON}location")
    checksum, size = element.find(f"{_COMMON}checksum"), element.find(f"{_COMMON}size")
    said = element.findtext(f"{_COMMON}arch") or ""
    if version is None or place is None or checksum is None or said not in (arch, "noarch"):
        return None
    if checksum.get("type") != "sha256" or not _SHA256.fullmatch(checksum.text or ""):
        raise ValueError("packages without SHA-256 sums")
    return Package(
        element.findtext(f"{_COMMON}name") or "",
        said,
        Version(int(version.get("epoch") or 0), version.get("ver", ""), version.get("rel", "")),
        place.get("href", ""),
        checksum.text or "",
        int(size.get("package") or 0) if size is not None else 0,
    )


def newest(found: Iterable[Package]) -> list[Package]:
    """Of each package the newest version. Raises ValueError where there is no end of them."""
    best: dict[tuple[str, str], Package] = {}
    for package in found:
        known = best.get((package.name, package.arch))
        if known is None or known.version < package.version:
            best[package.name, package.arch] = package
        if len(best) > _MOST_PACKAGES:
            raise ValueError(f"it has more than {_MOST_PACKAGES} packages")
    return list(best.values())
