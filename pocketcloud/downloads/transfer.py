"""A file over HTTP: whole, or as far as it came, to be continued. Knows nothing of checksums or of where files are kept.

What is at a URL may change while it is fetched: a rest is asked for under the condition that it is of the same file (If-Range,
RFC 9110, 13.1.5). Proxies are the environment's, certificates are checked against the system's.
"""

from __future__ import annotations

import errno
import os
import re
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import SplitResult, unquote, urljoin, urlsplit, urlunsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)

from pocketcloud import __version__
from pocketcloud.disk_space import spare
from pocketcloud.errors import HostLacks, NoSpace, NotFound, PocketcloudError, Refused, UsageError
from pocketcloud.model.sizes import GIB, KIB, MIB, size_text

Told = Callable[[int, int], None]
"""Gets the bytes that are there, and those of the whole file (0: the server does not say)."""

_PIECE = MIB
_REDIRECTS = 10
_MOVED = (301, 302, 303, 307, 308)
_LATER = (408, 429, 500, 502, 503, 504)
_PAGE = ("text/html", "application/xhtml+xml")
_PAGE_BEGINS = re.compile(rb"\s*(<!doctype html|<html)", re.I)
_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")
_ROOM = "remove what is not needed, then run again"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What writing ends in where there is no room."""
_OFFLINE = "is this computer online? Proxies are taken from http_proxy, https_proxy and no_proxy"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, in seconds: for a connection, for the next bytes, and before another attempt (then twice as long, and
    so on), of which there are `attempts` without any progress."""

    connect: float = 20.0
    silence: float = 60.0
    pause: float = 1.0
    attempts: int = 4


@dataclass(frozen=True, slots=True)
class Validators:
    """What a server says a file can be known by: its ETag and the time it was changed, each as it says it or empty."""

    etag: str = ""
    modified: str = ""

    @property
    def condition(self) -> str:
        """What a rest can be asked for with; a weak ETag does not vouch for single bytes."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


class _Broken(Exception):
    """The transfer ended early; another attempt may go on. `reason` is for people."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def shown(url: str) -> str:
    """A URL for people and logs: without a password, and without a query, which may be one."""
    parts = _split(url)
    host = parts.netloc.rpartition("@")
    return urlunsplit((parts.scheme, f"***@{host[2]}" if host[1] else host[2], parts.path, "***" if parts.query else "", ""))


def check_url(url: str, what: str) -> None:
    """Raise UsageError unless it is a URL that can be fetched."""
    parts = _split(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(
            f"{what}: {shown(url)!r} is not an http or https address", hint="a file of this host is named by `file:`"
        )


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - read for its check
    except ValueError:
        raise UsageError("an address cannot be read: its host or port is malformed") from None
    return parts


def fetch_small(url: str, what: str, patience: Patience, most: int = 4 * MIB, *, encrypted: bool = False) -> bytes:
    """The whole content at a URL, at most `most` bytes; `encrypted`: only if no step on the way is without TLS."""
    for attempt in _attempts(patience, what):
        with attempt, _answer(url, {}, what, patience, encrypted=encrypted) as answer:
            _found(answer, url, what)
            content = b"".join(_pieces(answer, most, what))
            _not_a_page(answer, content, what)
            return content
    raise AssertionError("the last attempt raises")


def fetch_file(
    url: str,
    into: BinaryIO,
    validators: Validators,
    what: str,
    patience: Patience,
    tell: Told,
    note: Callable[[Validators], None],
) -> Validators:
    """Put the content at a URL into the open file `into`, going on after what is in it already, which was fetched when the
    server said `validators`; empty ones: nothing is known of it, and it is fetched anew.

    `note` gets what the server says, before the first byte is written. Returns that. Raises NotFound, HostLacks, NoSpace or
    Refused; what came by then stays in the file, to go on with.
    """
    for attempt in _attempts(patience, what, lambda: into.seek(0, os.SEEK_END)):
        with attempt:
            have = into.seek(0, os.SEEK_END)
            headers = {"Range": f"bytes={have}-", "If-Range": validators.condition} if have and validators.condition else {}
            with _answer(url, headers, what, patience) as answer:
                whole = _place(answer, into, url, what)
                validators = Validators(answer.headers.get("etag", ""), answer.headers.get("last-modified", ""))
                note(validators)
                _receive(answer, into, whole, what, tell)
            return validators
    raise AssertionError("the last attempt raises")


def changed(url: str, validators: Validators, what: str, patience: Patience) -> bool:
    """Whether the server has something else at a URL than what it said `validators` of; True where it cannot be known."""
    asked = {"If-None-Match": validators.etag, "If-Modified-Since": "" if validators.etag else validators.modified}
    headers = {name: value for name, value in asked.items() if value}
    if not headers:
        return True
    for attempt in _attempts(patience, what):
        with attempt, _answer(url, headers, what, patience) as answer:
            if answer.status == 304:
                return False
            _found(answer, url, what)
            return True
    raise AssertionError("the last attempt raises")


# -- one attempt ------------------------------------------------------------------------------------------------------


def _attempts(patience: Patience, what: str, reached: Callable[[], int] = lambda: 0) -> Iterator[_Attempt]:
    """Attempts until one does not break; those that brought something do not count."""
    left, before = patience.attempts, reached()
    while True:
        attempt = _Attempt()
        yield attempt
        now = reached()
        left, before = (patience.attempts if now > before else left) - 1, now
        if left <= 0:
            raise HostLacks(f"{what} cannot be fetched: {attempt.reason}", hint=_OFFLINE)
        time.sleep(patience.pause * 2 ** (patience.attempts - left - 1))


class _Attempt:
    """Takes what broke an attempt, so that there may be another."""

    def __init__(self) -> None:
        self.reason = ""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if isinstance(error, _Broken):
            self.reason = error.reason
            return True
        return False


@contextmanager
def _answer(
    url: str, headers: dict[str, str], what: str, patience: Patience, *, encrypted: bool = False
) -> Iterator[urllib3.BaseHTTPResponse]:
    """The answer to a GET, redirects followed; raises _Broken for what another attempt may cure."""
    given = url
    for _ in range(_REDIRECTS + 1):
        check_url(url, what)
        if encrypted and urlsplit(url).scheme != "https":
            raise Refused(
                f"{what} comes without TLS from {shown(url)}, and nothing else vouches for it",
                hint="give its sha256, or a signature and the keys that may sign",
            )
        with _network_errors(url):
            pool, bare, login = _pool(url, patience, trusted=_same_host(given, url))
            answer = pool.request(
                "GET", bare, headers=login | headers, retries=False, redirect=False, preload_content=False, decode_content=False
            )
        try:
            moved = answer.headers.get("location") if answer.status in _MOVED else None
            if moved is None:
                with _network_errors(url):
                    yield answer
                return
            url = _next(url, moved, what)
        finally:
            answer.close()
            pool.clear()
    raise HostLacks(f"{what} cannot be fetched: {shown(given)} is redirected for ever", hint="is the address right?")


def _next(url: str, moved: str, what: str) -> str:
    try:
        target = urljoin(url, moved)
    except ValueError:
        target = ""
    if urlsplit(target).scheme not in ("http", "https"):
        raise HostLacks(
            f"{what} cannot be fetched: {shown(url)} is redirected to {shown(target) or 'nonsense'}, which is not fetched",
            hint="is the address right?",
        )
    return target


def _pool(url: str, patience: Patience, *, trusted: bool) -> tuple[urllib3.PoolManager, str, dict[str, str]]:
    """Connections for a URL, the URL without user and password, and the headers that carry those: only to the host that they
    were given for."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    login = urllib3.make_headers(basic_auth=unquote(user)) if at and trusted else {}
    own = {"User-Agent": f"pocketcloud/{__version__}", "Accept-Encoding": "identity"}
    timeout = urllib3.Timeout(connect=patience.connect, read=patience.silence)
    bare = urlunsplit((parts.scheme, host, parts.path or "/", parts.query, ""))
    proxy = urllib.request.getproxies_environment().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass_environment(parts.hostname or ""):  # type: ignore[attr-defined]  # typeshed has it for macOS
        return urllib3.PoolManager(timeout=timeout), bare, own | login
    return _proxied(proxy, timeout), bare, own | login


def _proxied(proxy: str, timeout: urllib3.Timeout) -> urllib3.PoolManager:
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    user, at, host = parts.netloc.rpartition("@")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise HostLacks("the proxy in the environment is not an http or https address", hint="look at http_proxy and https_proxy")
    headers = urllib3.make_headers(proxy_basic_auth=unquote(user)) if at else {}
    return urllib3.ProxyManager(f"{parts.scheme}://{host}", proxy_headers=headers, timeout=timeout)


def _same_host(one: str, other: str) -> bool:
    first, second = urlsplit(one), urlsplit(other)
    return (first.scheme, first.hostname, first.port) == (second.scheme, second.hostname, second.port)


@contextmanager
def _network_errors(url: str) -> Iterator[None]:
    """Say in words what the network did; the library's own texts hold addresses, and so passwords."""
    parts = urlsplit(url)
    try:
        yield
    except SSLError as error:
        if isinstance(error.args[0], ssl.SSLCertVerificationError):
            raise HostLacks(
                f"{parts.hostname} cannot show that it is who it says: {error.args[0].verify_message}",
                hint="is this computer's clock right, and are its certificates (ca-certificates) up to date?",
            ) from None
        raise _Broken(f"{parts.hostname} and this computer do not agree on TLS") from None
    except NameResolutionError:
        raise _Broken(f"{parts.hostname}: there is no such name") from None
    except ProxyError:
        raise _Broken(f"the proxy that leads to {parts.hostname} does not answer as it should") from None
    except NewConnectionError:
        raise _Broken(f"{parts.hostname} takes no connection at port {parts.port or parts.scheme}") from None
    except (ConnectTimeoutError, ReadTimeoutError):
        raise _Broken(f"{parts.hostname} does not answer in time") from None
    except LocationParseError:
        raise UsageError(f"{shown(url)!r} is not an address") from None
    except HTTPError:
        raise _Broken(f"{parts.hostname} broke off before the end") from None


# -- what an answer means ---------------------------------------------------------------------------------------------


def _found(answer: urllib3.BaseHTTPResponse, url: str, what: str) -> None:
    """Raise unless the answer has the content."""
    if answer.status in (200, 206):
        return
    place = shown(url)
    if answer.status in (404, 410):
        raise NotFound(f"{what} is not at {place} (HTTP {answer.status})", hint="is the address right? Mirrors drop old versions")
    if answer.status in (401, 403, 407):
        raise HostLacks(f"{what}: {place} denies access (HTTP {answer.status})", hint="does it take a user and a password?")
    if answer.status in _LATER:
        raise _Broken(f"{urlsplit(url).hostname} answers with HTTP {answer.status}")
    raise HostLacks(f"{what} cannot be fetched: {place} answers with HTTP {answer.status}", hint="is the address right?")


def _place(answer: urllib3.BaseHTTPResponse, into: BinaryIO, url: str, what: str) -> int:
    """Put the file to where the answer's content goes, and return the size of the whole (0: not said)."""
    have = into.seek(0, os.SEEK_END)
    match = _RANGE.fullmatch(answer.headers.get("content-range", "").strip())
    if answer.status in (206, 416):
        whole = int(match[2]) if match and match[2] != "*" else 0
        goes_on = answer.status == 206 and match is not None and match[1] is not None and int(match[1]) == have
        if goes_on or (answer.status == 416 and whole and whole == have):
            return whole
        into.truncate(0)
        raise _Broken(f"{urlsplit(url).hostname} has something else than what was begun")
    _found(answer, url, what)
    into.seek(0)
    into.truncate(0)
    length = answer.headers.get("content-length", "")
    return int(length) if length.isdecimal() else 0


def _receive(answer: urllib3.BaseHTTPResponse, into: BinaryIO, whole: int, what: str, tell: Told) -> None:
    have = into.tell()
    if answer.status == 416:
        return
    room = max(0, spare(into.fileno()))
    if whole - have > room:
        raise NoSpace(
            f"{what} has {size_text(whole)}, and {size_text(room)} may be filled where it goes", hint="remove what is not needed"
        )
    first = True
    for piece in _pieces(answer, whole - have if whole else 64 * GIB, what):
        if first and not have:
            _not_a_page(answer, piece, what)
        first = False
        if len(piece) > spare(into.fileno()):
            raise NoSpace(f"{what} does not fit where it goes: too little would stay free", hint=_ROOM)
        try:
            into.write(piece)
        except OSError as error:
            if error.errno in FULL:
                raise NoSpace(f"{what} does not fit where it goes", hint=_ROOM) from error
            raise
        have += len(piece)
        tell(have, whole)
    if not have:
        raise _Broken("the server sent nothing")


def _pieces(answer: urllib3.BaseHTTPResponse, most: int, what: str) -> Iterator[bytes]:
    """The content in pieces; raises PocketcloudError if it is more than it may be."""
    got = 0
    for piece in answer.stream(_PIECE, decode_content=False):
        got += len(piece)
        if got > most:
            raise _too_much(what, most)
        yield piece


def _too_much(what: str, most: int) -> PocketcloudError:
    return Refused(f"{what} does not end after {size_text(most)}: that is not what was meant", hint="is the address right?")


def _not_a_page(answer: urllib3.BaseHTTPResponse, begin: bytes, what: str) -> None:
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in _PAGE or _PAGE_BEGINS.match(begin[: 4 * KIB]):
        raise HostLacks(
            f"{what}: the server sent a web page (HTML) in its place",
            hint="is the address right, and does a network's login page stand between?",
        )
