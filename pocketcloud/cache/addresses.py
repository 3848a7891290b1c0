"""How files in the cache are called: by their address without its scheme, so that http and https mean the same file."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from pocketcloud.errors import UsageError

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?|\[[0-9a-f:.]+\](:[0-9]{1,5})?")
_PLAIN_PORTS = {"http": ":80", "https": ":443"}


def key_of(url: str) -> str:
    """The key of a file by its URL: host and path, percent escapes undone, the query if it has one. Raises ValueError for what
    names no file that could be kept: another scheme, a password, a path with `..` or control characters in it."""
    parts = urlsplit(url)
    if parts.scheme not in _PLAIN_PORTS:
        raise ValueError("expected http:// or https://")
    if "@" in parts.netloc:
        raise ValueError("it carries a user's name or password")
    host = parts.netloc.lower().removesuffix(_PLAIN_PORTS[parts.scheme])
    return keyed(host, parts.path, parts.query)


def keyed(host: str, path: str, query: str = "") -> str:
    """The key of a file by its host (with a port, if it is not the usual one) and its path as it stands in a URL."""
    said = unquote(path, errors="strict")  # UnicodeDecodeError is a ValueError
    segments = said.split("/")
    if not _HOST.fullmatch(host):
        raise ValueError("its host's name is none")
    if _CONTROL.search(said + query) or {".", ".."} & set(segments) or not said.startswith("/"):
        raise ValueError("its path leads elsewhere")
    return f"{host}{said}" + (f"?{query}" if query else "")


def masked(url: str) -> str:
    """A URL for people: without the user's name and password that it may carry, and on one line."""
    shown = _CONTROL.sub("?", url)
    try:
        parts = urlsplit(shown)
        if "@" not in parts.netloc:
            return shown
        return urlunsplit(parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2]))
    except ValueError:
        return re.sub(r"//[^/@]*@", "//***@", shown)


def checked(url: str) -> str:
    """A URL from the command line, if it names a file that can be kept; raises UsageError."""
    try:
        key_of(url)
    except ValueError as error:
        raise UsageError(
            f"{masked(url)} cannot be kept in the cache: {error}",
            hint="name a file by http:// or https://; the kit travels, so a password must not be part of it",
        ) from None
    return url


def url_below(url: str, path: str) -> str:
    """The URL of a file below a folder's."""
    return f"{url.rstrip('/')}/{quote(path)}"
