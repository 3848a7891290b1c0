"""The part of a Debian archive that a base is made from, fetched by apt: indexes as the archive signed them, and exactly the
packages that apt would install.

apt does what it is good at: it finds mirrors and proxies, checks signatures and sums, resolves what is needed, goes on with half
a file. It runs as bootstraps do, in a namespace apart, on folders of its own. The indexes are kept byte for byte, so that whoever
installs from the cache checks the distribution's own signature.
Sources: apt-get(8), apt.conf(5), apt-patterns(7); `KeepCompressedAs` is in apt's doc/acquire-additional-files.md; by-hash is in
the page DebianRepository/Format of Debian's wiki.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from pocketcloud.bases.mirror import Mirror
from pocketcloud.bases.namespace import WORK, confined, give
from pocketcloud.bases.progress import OnProgress, cause
from pocketcloud.cache import installer
from pocketcloud.cache.addresses import key_of, masked, url_below
from pocketcloud.cache.store import Store
from pocketcloud.errors import HostLacks, NoSpace, NotFound, PartlyDone, PocketcloudError
from pocketcloud.model.base import Arch
from pocketcloud.model.cache import Stored
from pocketcloud.model.sizes import MIB, size_text
from pocketcloud.system import CommandFailed, Runner

_URI = re.compile(r"'([^']+)' (\S+) (\d+)(?: (\S+))?")
_GET = re.compile(r"Get:\d+ \S+ \S+ \S+ (\S+)")
_ABSENT = re.compile(r"E: (?:Unable to locate package|Package) '?([a-z0-9][a-z0-9+.:-]*)")
_MARGIN = 64 * MIB
_HELPER = "/usr/lib/apt/apt-helper"
_FOLDERS = ("etc", "state/lists/partial", "archives/partial", "scratch")
_ALL, _DEBS, _SUITE, _UDEBS = "all.list", "sources.list", "suite.list", "udebs.list"
"""Files of sources: all there are; those of packages for the disk, of all suites and of the one that gives it its name; those of
packages for the installer."""


@dataclass(frozen=True, slots=True)
class Archive:
    """What is wanted of a Debian archive: `mirror` and `security` (may be empty) are the URLs under which it is kept; `packages`
    those of the base, `extra` those that machines of it may install later, with what they recommend. `installer`: what Debian's
    installer puts onto a disk of itself, while it knows the suite only and not its updates; where there are any, what it is made
    of itself is wanted too. `there`: the system that they are added to is there already, with the packages of these names (those
    that are known), whose newer versions are wanted too; None: there is none yet."""

    title: str
    arch: Arch
    suite: str
    keyring: str
    mirror: str
    security: str
    packages: tuple[str, ...]
    extra: tuple[str, ...] = ()
    installer: tuple[str, ...] = ()
    components: tuple[str, ...] = ("main",)
    there: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class _Package:
    uri: str
    file: str
    size: int


def wanted(archive: Archive) -> tuple[str, ...]:
    """The packages that are asked for by name."""
    return tuple(dict.fromkeys((*archive.packages, *archive.installer, *archive.extra)))


def lacking(archive: Archive, files: Iterable[str]) -> tuple[str, ...]:
    """What none of the cached files is, for people: packages, and parts of the installer. With a package everything it needs is
    in the cache too, as apt resolved it so."""
    keys = set(files)
    there = {key.rpartition("/")[2].partition("_")[0] for key in keys if key.endswith(".deb")}
    absent = [f"the package {name}" for name in wanted(archive) if name.partition(":")[0] not in there]
    if archive.installer:
        urls = [url_below(archive.mirror, f"dists/{archive.suite}/{path}") for path in installer.needed(archive.arch)]
        absent += [f"of the installer {masked(url)}" for url in urls if key_of(url) not in keys]
        if not any(key.endswith(".udeb") for key in keys):
            absent.append("the packages that the installer is made of")
    return tuple(absent)


def fetch(
    archive: Archive,
    origin: Mirror,
    options: str,
    store: Store,
    work: Path,
    known: Mapping[str, Stored],
    run: Runner,
    tell: OnProgress,
) -> dict[str, Stored]:
    """Fetch what is wanted from `origin`; the files by key. `options` is text for an apt.conf, `known` what the cache has.
    `work` is kept when this is interrupted, and goes on from. Raises HostLacks, NotFound, NoSpace or PartlyDone.
    """
    if archive.keyring and not Path(archive.keyring).is_file():
        raise HostLacks(
            f"{archive.title} was not fetched: there is no {archive.keyring} here, which its packages are checked with",
            hint="install the distribution's package of it (debian-archive-keyring, ubuntu-keyring), or put the file there",
        )
    _lay_out(archive, origin, options, work)
    apt = _Apt(archive, work, run)
    tell("reading package lists", 0.01)
    apt.do(["update"], sources=_ALL)
    indexes = tuple(apt.indexes(origin))
    for _, path in indexes:
        _unpack(path)
    if archive.there:
        known_names = _names(path for uri, path in indexes if uri.endswith("/Packages.xz"))
        archive = replace(archive, there=tuple(name for name in archive.there if name in known_names))
    tell("finding what is needed", 0.1)
    rounds = tuple(_rounds(archive))
    packages = {package.file: package for asked, sources in rounds for package in apt.needed(asked, sources)}
    udebs = list(_udebs(archive, indexes)) if archive.installer else []
    packages |= {package.file: package for package in apt.needed(udebs, _UDEBS)} if udebs else {}
    places = _Places(archive, origin)
    linked = _link_known(packages.values(), places, known, store, work)
    absent = sum(package.size for package in packages.values() if package.file not in linked)
    _check_room(archive, absent, work)
    got = _Counter(len(packages) - len(linked), tell)
    for asked, sources in rounds:
        apt.do(["--download-only", *asked], got.line, sources)
    if udebs:
        apt.do(udebs, got.line, _UDEBS)
    tell("taking it into the store", 0.95)
    found = _installer(archive, origin, apt, indexes, places, known, store) if archive.installer else {}
    for uri, path in (*indexes, *((package.uri, work / "archives" / package.file) for package in packages.values())):
        stored = store.adopt(path)
        for key in places.keys(uri):
            found[key] = stored
            if (folder := key.rpartition("/")[0]).find("/binary-") > 0 and "/dists/" in key:
                found[f"{folder}/by-hash/SHA256/{stored.sha256}"] = stored
    shutil.rmtree(work, ignore_errors=True)
    return found


def _rounds(archive: Archive) -> Iterator[tuple[list[str], str]]:
    """What apt is asked to install, and from which sources, one after the other, as mmdebstrap does: what is essential by itself
    first, as alternatives can come out differently when there is more to choose from. An installer begins with the suite alone,
    and takes what is important with what is required; what is newer elsewhere comes later, in its place."""
    if archive.there is not None:
        # Apart: what is added may take the place of what is there. Some installers and machines take what is recommended, too.
        added = [*archive.packages, *archive.extra]
        for names, recommended in ((archive.there, "false"), (added, "false"), (added, "true")):
            if names:
                yield ["-o", f"APT::Install-Recommends={recommended}", "install", *names], _DEBS
        return
    plain = ["-o", "APT::Install-Recommends=false", "install", "?essential"]
    least = [*plain, "?priority(required)", *(["?priority(important)"] if archive.installer else []), "apt", *archive.installer]
    if archive.installer:
        yield plain, _SUITE
        yield least, _SUITE
    yield plain, _DEBS
    whole = [*least, *archive.packages]
    yield whole, _DEBS
    if archive.extra:
        yield [*whole, *archive.extra], _DEBS
        yield ["-o", "APT::Install-Recommends=true", *whole[2:], *archive.extra], _DEBS


def _names(lists: Iterable[Path]) -> set[str]:
    """The names of all packages in packed lists."""
    found = set()
    for path in lists:
        with lzma.open(path, "rt", encoding="utf-8") as file:
            found |= {line.removeprefix("Package:").strip() for line in file if line.startswith("Package:")}
    return found


def _udebs(archive: Archive, indexes: Iterable[tuple[str, Path]]) -> Iterator[str]:
    """What apt-get is asked for to get the packages that the installer is made of. Raises NotFound."""
    paths = [path for uri, path in indexes if f"/{installer.COMPONENT}/" in uri]
    if not paths:
        raise NotFound(f"{archive.title}: the archive has no installer for {archive.arch.debian}", hint="use another mirror")
    yield "download"
    for path in paths:
        with lzma.open(path, "rt", encoding="utf-8") as file:
            yield from installer.udebs(file)


def _installer(
    archive: Archive,
    origin: Mirror,
    apt: _Apt,
    indexes: Iterable[tuple[str, Path]],
    places: _Places,
    known: Mapping[str, Stored],
    store: Store,
) -> dict[str, Stored]:
    """The files of the installer that are no packages: its kernel and its initramfs among them. Raises PartlyDone."""
    top = f"{_fetchable(origin.archive)}/dists/{archive.suite}"
    signed = next(path for uri, path in indexes if uri == f"{top}/InRelease")

    def fetched(path: str, sha256: str) -> bytes:
        uri = f"{top}/{path}"
        (key,) = places.keys(uri)
        stored = known.get(key)
        if stored is None or stored.sha256 != sha256:
            stored = store.adopt(apt.file(uri, sha256))
        found[key] = stored
        # An initramfs would be much to look into, and nobody does.
        return store.path(stored.sha256).read_bytes() if installer.is_text(path) else b""

    found: dict[str, Stored] = {}
    try:
        installer.fetch(signed.read_bytes(), archive.arch, fetched)
    except ValueError as wrong:
        raise PartlyDone(
            f"{archive.title}: {wrong}",
            hint="the mirror may be in the middle of an update: try again later, or name another --mirror",
        ) from None
    return found


class _Places:
    """From where apt fetches to where it is kept."""

    def __init__(self, archive: Archive, origin: Mirror) -> None:
        pairs = [(origin.archive, archive.mirror)]
        if origin.security and archive.security:
            pairs.append((origin.security, archive.security))
        self._pairs = [(f"{_fetchable(there).rstrip('/')}/", own) for there, own in pairs]

    def keys(self, uri: str) -> list[str]:
        """The keys of a file that apt names so."""
        # The longest address that fits: an archive may lie below another.
        fitting = [(there, own) for there, own in self._pairs if uri.startswith(there)]
        longest = max((len(there) for there, _ in fitting), default=0)
        # What comes is escaped already.
        return [key_of(f"{own.rstrip('/')}/{uri.removeprefix(there)}") for there, own in fitting if len(there) == longest]


def _fetchable(url: str) -> str:
    """apt reads archives in folders in place; it copies them where it is asked for that."""
    return f"copy:{url.removeprefix('file:')}" if url.startswith("file:") else url


def _lay_out(archive: Archive, origin: Mirror, options: str, work: Path) -> None:
    """Make the folders, and what apt is told; packages that an interruption left stay, indexes are fetched anew. Addresses may
    carry passwords: they go into files that only its root reads."""
    shutil.rmtree(work / "state", ignore_errors=True)
    for name in _FOLDERS:
        (work / name).mkdir(parents=True, exist_ok=True)
    for path in (work, *(work / part for name in _FOLDERS for part in (*Path(name).parents, Path(name)) if part != Path())):
        if path.stat().st_uid == os.geteuid():  # apt gives some to a user of its own
            path.chmod(0o755)
            give(path)
    signed = f"[signed-by={archive.keyring}]"
    main = _fetchable(origin.archive)
    parts = " ".join(archive.components)
    lines = [f"deb {signed} {main} {suite} {parts}\n" for suite in (archive.suite, f"{archive.suite}-updates")]
    if origin.security and archive.security:
        lines.append(f"deb {signed} {_fetchable(origin.security)} {archive.suite}-security {parts}\n")
    udebs = [f"deb {signed} {main} {archive.suite} {installer.COMPONENT}\n"] if archive.installer else []
    sources = {_ALL: [*lines, *udebs], _DEBS: lines, _SUITE: lines[:1], _UDEBS: udebs}
    conf = f"""\
Dir "{WORK}";
Dir::Etc "{WORK}/etc";
Dir::State "{WORK}/state";
Dir::State::status "{WORK}/state/status";
Dir::Cache "{WORK}";
Dir::Cache::archives "{WORK}/archives";
Dir::Log "{WORK}/scratch";
APT::Architecture "{archive.arch.debian}";
APT::Architectures {{ "{archive.arch.debian}"; }};
APT::Get::Assume-Yes "true";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::GzipIndexes "true";
Acquire::IndexTargets::deb::Packages::KeepCompressedAs "xz";
Acquire::PDiffs "false";
Acquire::Retries "3";
{options}"""
    lists = {f"etc/{name}": "".join(each) for name, each in sources.items()}
    for name, text in {**lists, "etc/auth.conf": _logins(origin), "apt.conf": conf, "state/status": ""}.items():
        path = work / name
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_text(text, encoding="utf-8")
        give(path)
    for name in sources:
        (work / "etc" / name).chmod(0o644)


def _logins(origin: Mirror) -> str:
    """Users and passwords in the mirrors' addresses as apt_auth.conf(5) has them, for files that are named on a command line."""
    text = ""
    for url in (origin.archive, origin.security):
        parts = urlsplit(url)
        if parts.username:
            place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
            text += f"machine {place} login {unquote(parts.username)} password {unquote(parts.password or '')}\n"
    return text


class _Apt:
    """apt-get on the folders in `work`, in the namespace."""

    def __init__(self, archive: Archive, work: Path, run: Runner) -> None:
        self._archive, self._work, self._run = archive, work, run

    def do(self, arguments: list[str], on_line: Callable[[str], None] | None = None, sources: str = _DEBS) -> str:
        """Run it; its failure is explained by its own lines. What it downloads without installing it lands among the others."""
        return self._tool(["apt-get", "-q", "-o", f"Dir::Etc::sourcelist={WORK}/etc/{sources}", *arguments], on_line)

    def file(self, uri: str, sha256: str) -> Path:
        """Fetch a file of that sum (empty: of any)."""
        path = self._work / "archives" / "file"
        path.unlink(missing_ok=True)
        parts = urlsplit(uri)
        plain = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        self._tool([_HELPER, "download-file", plain, f"{WORK}/archives/{path.name}", *([f"SHA256:{sha256}"] if sha256 else [])])
        return path

    def _tool(self, argv: list[str], on_line: Callable[[str], None] | None = None) -> str:
        env = {
            "APT_CONFIG": f"{WORK}/apt.conf",
            "HOME": f"{WORK}/scratch",
            "TMPDIR": f"{WORK}/scratch",
            "DEBIAN_FRONTEND": "noninteractive",
        }
        try:
            return self._run(confined(self._work, ["env", "-C", f"{WORK}/archives", *argv]), env=env, on_line=on_line).out
        except CommandFailed as error:
            raise self._explained(error) from None

    def needed(self, asked: list[str], sources: str) -> Iterator[_Package]:
        """What would have to be fetched for that, if nothing were here."""
        none = ["-o", f"Dir::Cache::archives={WORK}/scratch", "-o", "Acquire::ForceHash=SHA256", "--print-uris", "-q"]
        for line in self.do([*none, *asked], sources=sources).splitlines():
            if match := _URI.fullmatch(line.strip()):
                name = match[2]
                if "/" in name or name.startswith("."):
                    raise PartlyDone(
                        f"apt names a package's file {name!r}", hint="nothing is taken from that mirror; use another"
                    )
                yield _Package(match[1], name, int(match[3]))

    def indexes(self, origin: Mirror) -> Iterator[tuple[str, Path]]:
        """The indexes that apt has, with their URIs: each suite's signed list, and its lists of packages (a suite that is empty
        has none, as apt knows from the signed list)."""
        for path in sorted((self._work / "state/lists").glob("*_InRelease")):
            suite = path.name.removesuffix("_InRelease").rpartition("_")[2]
            mirror = origin.security if suite.endswith("-security") else origin.archive
            yield url_below(_fetchable(mirror), f"dists/{suite}/InRelease"), path
        for line in self.do(["--format", "$(FILENAME)|$(URI)", "indextargets"], sources=_ALL).splitlines():
            name, uri = line.split("|")
            path = self._work / "state/lists" / Path(name).name
            if not path.name.endswith("_Packages.xz"):
                raise PartlyDone(
                    f"{self._archive.title}: the archive has no lists of packages packed with xz, as Debian's own has",
                    hint="another mirror may: pocketcloud cache sync --mirror URL",
                )
            yield f"{uri}.xz", path

    def _explained(self, error: CommandFailed) -> PocketcloudError:
        title, output = self._archive.title, error.completed.out + error.completed.err
        why = cause(output)
        text = f"{title} was not fetched: apt-get failed\n" + "\n".join(f"  {_without_passwords(line)}" for line in why.lines)
        again = "what was fetched is kept; to go on: pocketcloud cache sync"
        if why.full:
            return NoSpace(text, hint="pocketcloud cache prune; remove labs or bases that are not needed")
        if why.trust:
            return HostLacks(
                text, hint=f"is {self._archive.keyring} up to date? Upgrade the keyring's package, or name another --mirror"
            )
        if absent := dict.fromkeys(_ABSENT.findall(output)):
            return NotFound(text, hint=f"is it spelt right, and in {self._archive.suite}? {', '.join(absent)}")
        if why.network:
            return HostLacks(text, hint=f"is the mirror reachable? --mirror names another one; {again}")
        return PartlyDone(text, hint=again)


def _unpack(index: Path) -> None:
    """Put an index beside itself unpacked, which apt prefers: it looks up packages by their place in it, and would unpack a
    packed one from its beginning for each (20 times slower, measured)."""
    if index.suffix == ".xz":
        with lzma.open(index) as packed, index.with_suffix("").open("wb") as plain:
            shutil.copyfileobj(packed, plain, MIB)


def _without_passwords(line: str) -> str:
    return re.sub(r"\w+://\S+", lambda match: masked(match[0]), line)


@dataclass(slots=True)
class _Counter:
    """Tells how far the downloads are, from the lines that apt prints."""

    expected: int
    tell: OnProgress
    done: int = 0

    def line(self, text: str) -> None:
        if match := _GET.match(text):
            self.done += 1
            share = min(1.0, self.done / max(1, self.expected))
            self.tell(f"fetching {match[1]} ({self.done} of {self.expected})", 0.12 + 0.83 * share)


def _link_known(packages: Iterable[_Package], places: _Places, known: Mapping[str, Stored], store: Store, work: Path) -> set[str]:
    """Put what the cache has already where apt looks for it; the names of those files, and of those that were fetched before an
    interruption."""
    linked = set()
    for package in packages:
        target = work / "archives" / package.file
        with suppress(FileNotFoundError):
            if target.stat().st_size == package.size:
                linked.add(package.file)
                continue
            target.unlink()
        for key in places.keys(package.uri):
            if (stored := known.get(key)) and stored.size == package.size:
                os.link(store.path(stored.sha256), target)
                linked.add(package.file)
                break
    return linked


def _check_room(archive: Archive, size: int, work: Path) -> None:
    free = shutil.disk_usage(work).free
    if size + _MARGIN > free:
        raise NoSpace(
            f"{archive.title}: {size_text(size)} are to be fetched, {size_text(free)} are free in the kit",
            hint="pocketcloud cache prune; remove labs or bases that are not needed",
        )
