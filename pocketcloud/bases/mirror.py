"""Where Debian's packages come from: the user's mirror, the host's own, or the definition's; and how the host's apt gets there.

Reads the host's configuration of apt; changes nothing. Formats: sources.list(5), both of them, and apt.conf(5).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pocketcloud.errors import UsageError
from pocketcloud.host.release import read_distribution
from pocketcloud.model.base import BootstrapDefinition
from pocketcloud.system import Runner, run, which

# What of the host's apt configuration decides whether a mirror is reached: proxies, certificates, clocks and patience.
_CARRIED = ("http", "https", "check-valid-until", "check-date", "max-futuretime", "retries", "forceipv4", "forceipv6")
_SCHEMES = ("http", "https", "file")


@dataclass(frozen=True, slots=True)
class Source:
    """One archive of the host's apt: a URL without a final slash, a suite (`bookworm-updates`) and its components."""

    url: str
    suite: str
    components: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mirror:
    """Where packages come from: the URLs of the archive and of its security updates (empty: none); `origin` for people."""

    archive: str
    security: str
    origin: str


def choose(definition: BootstrapDefinition, explicit: str | None, root: Path = Path("/")) -> Mirror:
    """The user's mirror (`explicit`), else the one of the host at `root` if that is the same distribution, else the definition's.

    Raises UsageError if the user's is not a URL that apt takes.
    """
    return choose_from(definition.family, definition.mirror, definition.security, explicit, root)


def choose_from(family: str, archive: str, security: str, explicit: str | None, root: Path = Path("/")) -> Mirror:
    """As `choose`, of a definition that has these."""
    own = _own(family, root)
    if explicit is not None:
        if urlsplit(explicit).scheme not in _SCHEMES:
            raise UsageError(f"{explicit!r} is not a mirror's address", hint="--mirror https://HOST/debian, or file:/PATH")
        security = own.security if own and own.security else security
        return Mirror(explicit.rstrip("/"), security.rstrip("/"), "as asked")
    if own is not None:
        return Mirror(own.archive, own.security or security, own.origin)
    return Mirror(archive.rstrip("/"), security.rstrip("/"), "the definition's")


def over_http(url: str) -> str:
    """The same address by plain HTTP, where the cache can stand in for it; others are left as they are. What is fetched so must
    be checked by its own signatures or sums."""
    return f"http://{url.removeprefix('https://')}" if url.startswith("https://") else url


def from_cache(definition: BootstrapDefinition, proxy: str) -> tuple[Mirror, str]:
    """The definition's mirror by way of the cache, and the text for an apt.conf that leads there. The cache is of its day, and
    its lists may have expired since: they count all the same."""
    mirror = Mirror(over_http(definition.mirror).rstrip("/"), over_http(definition.security).rstrip("/"), "the kit's cache")
    options = {"http::Proxy": proxy, "Check-Valid-Until": "false", "Retries": "0"}
    return mirror, "".join(f'Acquire::{name} "{value}";\n' for name, value in options.items())


def _own(family: str, root: Path) -> Mirror | None:
    """The mirror of the host, if it is of that distribution and a mirror of the distribution itself is among its sources.

    Others (of vendors, of teams) use the same suite names, so an archive counts if its updates suite is there too, or if it is
    called as the distribution.
    """
    distribution = read_distribution(root)
    if distribution.id != family:
        return None
    known = sources(root)
    with_updates = {source.url for source in known if source.suite.endswith("-updates")}
    archives = [
        source.url
        for source in known
        if "main" in source.components
        and not source.suite.endswith("-security")
        and (source.url in with_updates or source.url.rsplit("/", 1)[-1] == family)
    ]
    if not archives:
        return None
    security = [source.url for source in known if "main" in source.components and source.suite.endswith("-security")]
    return Mirror(archives[0], security[0] if security else "", "this host's own")


def sources(root: Path = Path("/")) -> tuple[Source, ...]:
    """The binary package sources of the apt of the host at `root` that can be read over the network or from a folder."""
    folder = root / "etc/apt"
    found: list[Source] = []
    for path in [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*.list"))]:
        found += _one_line(_text(path))
    for path in sorted((folder / "sources.list.d").glob("*.sources")):
        found += _deb822(_text(path))
    return tuple(source for source in found if urlsplit(source.url).scheme in _SCHEMES)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _one_line(text: str) -> Iterator[Source]:
    """`deb [option=value ...] URL SUITE COMPONENT...`."""
    for line in text.splitlines():
        kind, rest = (*line.partition("#")[0].split(None, 1), "", "")[:2]
        if rest.startswith("["):
            rest = rest.partition("]")[2]
        words = rest.split()
        if kind == "deb" and len(words) >= 2:
            yield Source(words[0].rstrip("/"), words[1], tuple(words[2:]))


def _deb822(text: str) -> Iterator[Source]:
    """Paragraphs of `Field: value`, with continuation lines; a paragraph can be switched off with `Enabled: no`."""
    for fields in _paragraphs(text):
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        for url in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield Source(url.rstrip("/"), suite, tuple(fields.get("components", "").split()))


def _paragraphs(text: str) -> Iterator[dict[str, str]]:
    fields: dict[str, str] = {}
    name = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if fields:
                yield fields
            fields, name = {}, ""
        elif line[0].isspace():
            if name:
                fields[name] += f" {line.strip()}"
        else:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()


def apt_options(run: Runner = run) -> str:
    """The host's apt configuration for reaching mirrors, as text for an apt.conf; empty where the host has no apt.

    It may hold a proxy's password: keep it out of command lines and logs.
    """
    if which("apt-config") is None:
        return ""
    return carried(run(["apt-config", "dump"]).out.splitlines())


def carried(lines: Iterable[str]) -> str:
    """Those lines of `apt-config dump` that decide whether a mirror is reached."""
    wanted = []
    for line in lines:
        path = line.split(" ", 1)[0].rstrip(":").split("::")
        if len(path) >= 2 and path[0] == "Acquire" and path[1].lower() in _CARRIED and not line.endswith('"";'):
            wanted.append(line)
    return "".join(f"{line}\n" for line in wanted)
