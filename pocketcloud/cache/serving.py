"""The server of the cache: answers GET and HEAD from collections alone, as a proxy and by plain paths, and fetches nothing.

A request's address is looked up among the keys of the collections; it never becomes a path of the file system. Content is
checked by its sum before it is sent for the first time. Python's http.server parses the requests; its own handling of files is
not used.
Sources: RFC 9110 (ranges, conditions), RFC 9112, 3.2 (a proxy is asked with the whole address).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler as RequestHandler
from http.server import ThreadingHTTPServer
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from pocketcloud.cache.addresses import keyed, masked
from pocketcloud.cache.store import Store
from pocketcloud.errors import HostLacks, Refused
from pocketcloud.model.cache import Stored
from pocketcloud.subnets import PREFIX

_AT_ONCE = 48
"""More connections than this are turned away: a lab's machines ask a few at a time."""
_IDLE_SECONDS = 60
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class Shelf:
    """What can be asked for: all files of all collections by key, read again when a collection is published."""

    def __init__(self, folder: Path) -> None:
        self._store = Store(folder)
        self._files: Mapping[str, Stored] = {}
        self._as_of: tuple[object, ...] | None = None
        self._lock = threading.Lock()
        self._checked: dict[str, tuple[int, int, int]] = {}
        self._checking: dict[str, threading.Lock] = {}

    def find(self, key: str) -> Stored | None:
        """The file of that key."""
        return self._current().get(key)

    def __len__(self) -> int:
        return len(self._current())

    def _current(self) -> Mapping[str, Stored]:
        with self._lock:
            as_of = tuple(sorted(_seen(self._store.sets)))
            if as_of != self._as_of:
                found: dict[str, Stored] = {}
                for collection in self._store.collections().values():
                    found.update(collection.files)
                self._files, self._as_of = found, as_of
            return self._files

    def open(self, stored: Stored) -> BinaryIO | None:
        """The content, if it is there and whole. It is read through once, and again when its file has changed since."""
        file = self._store.open(stored)
        if file is None:
            return None
        found = _mark(file)
        with self._lock:
            checking = self._checking.setdefault(stored.sha256, threading.Lock())
        with checking:
            if self._checked.get(stored.sha256) == found or self._store.is_whole(stored):
                self._checked[stored.sha256] = found
                return file
        file.close()
        return None


def _seen(sets: Path) -> Iterator[tuple[str, int, int]]:
    """The collections' files; one that is replaced is another file."""
    with contextlib.suppress(OSError), os.scandir(sets) as entries:
        for entry in entries:
            if entry.name.endswith(".json"):
                with contextlib.suppress(FileNotFoundError):
                    found = entry.stat(follow_symlinks=False)
                    yield entry.name, found.st_ino, found.st_mtime_ns


def _mark(file: BinaryIO) -> tuple[int, int, int]:
    found = os.fstat(file.fileno())
    return found.st_ino, found.st_size, found.st_mtime_ns


@dataclass(frozen=True, slots=True)
class _Part:
    """The bytes to be sent, from `start` up to `end`."""

    start: int
    end: int


class _Handler(RequestHandler):
    server: CacheServer
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    server_version = "pocketcloud"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_CONNECT(self) -> None:
        self._refuse(HTTPStatus.NOT_IMPLEMENTED, "the cache has no way out, and cannot look into https: use http:// addresses")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself complains of: bad requests, unknown methods."""
        self._refuse(HTTPStatus(code), explain or message or "")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that http.server gives it
        """Only answers are told of, by `_told`."""

    def _answer(self, *, body: bool) -> None:
        parts = urlsplit(self.path)
        host, path = (parts.netloc.lower().rpartition("@")[2].removesuffix(":80"), parts.path or "/")
        if not parts.scheme and not host:
            host, _, rest = path.lstrip("/").partition("/")
            path = f"/{rest}"
        if parts.scheme not in ("", "http", "https"):
            self._refuse(HTTPStatus.BAD_REQUEST, "expected an http:// address")
            return
        if not host:
            self._send_text(HTTPStatus.OK, f"pocketcloud's cache: {len(self.server.shelf)} files\n", body=body)
            return
        try:
            key = keyed(host, path, parts.query)
        except ValueError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, f"no such address: {error}")
            return
        stored = self.server.shelf.find(key)
        if stored is None:
            self._refuse(HTTPStatus.NOT_FOUND, f"not in the cache: {masked(key)}", body=body)
            return
        file = self.server.shelf.open(stored)
        if file is None:
            told = f"damaged or missing in the cache: {masked(key)}; pocketcloud cache sync fetches it again"
            self._refuse(HTTPStatus.BAD_GATEWAY, told, body=body)
            return
        with file:
            self._send(file, stored, body=body)

    def _send(self, file: BinaryIO, stored: Stored, *, body: bool) -> None:
        tag, changed = f'"{stored.sha256}"', formatdate(_mark(file)[2] // 10**9, usegmt=True)
        if tag in self.headers.get("If-None-Match", "") or (
            not self.headers.get("If-None-Match") and self.headers.get("If-Modified-Since") == changed
        ):
            self._begin(HTTPStatus.NOT_MODIFIED, tag, changed)
            self.end_headers()
            return
        whole = _Part(0, stored.size)
        part: _Part | None = whole
        condition = self.headers.get("If-Range")
        if condition in (None, tag, changed):
            part = _part(self.headers.get("Range", ""), stored.size)
        if part is None:
            self._begin(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, tag, changed)
            self.send_header("Content-Range", f"bytes */{stored.size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._begin(HTTPStatus.OK if part == whole else HTTPStatus.PARTIAL_CONTENT, tag, changed)
        if part != whole:
            self.send_header("Content-Range", f"bytes {part.start}-{part.end - 1}/{stored.size}")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(part.end - part.start))
        self.end_headers()
        if body and part.end > part.start:
            self.wfile.flush()
            sent = self.connection.sendfile(file, part.start, part.end - part.start)
            if sent != part.end - part.start:  # a file cut short while it was sent; the length that was promised is not kept
                self.close_connection = True

    def _begin(self, status: HTTPStatus, tag: str, changed: str) -> None:
        self.send_response(status)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", tag)
        self.send_header("Last-Modified", changed)
        self._told(status)

    def _refuse(self, status: HTTPStatus, text: str, *, body: bool = True) -> None:
        self.close_connection = status is not HTTPStatus.NOT_FOUND or self.close_connection
        self._send_text(status, f"{text}\n", body=body and self.command != "HEAD")

    def _send_text(self, status: HTTPStatus, text: str, *, body: bool) -> None:
        content = text.encode("utf-8", "replace")
        # What a proxy's client shows of a refusal is the reason, not the page.
        reason = status.phrase if status is HTTPStatus.OK else text.split(":")[0].strip() or status.phrase
        self.send_response(status, reason.encode("ascii", "replace").decode())
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if body:
            self.wfile.write(content)
        self._told(status)

    def _told(self, status: HTTPStatus) -> None:
        self.server.say(f"{self.client_address[0]} {int(status)} {masked(getattr(self, 'path', ''))[:300]}")


def _part(wanted: str, size: int) -> _Part | None:
    """The part that a Range header asks for: all of it where it asks for none, or for several; None if there is no such part."""
    match = _RANGE.fullmatch(wanted.replace(" ", ""))
    if match is None or match.group(0) == "bytes=-":
        return _Part(0, size)
    first, last = match.groups()
    if not first:
        return _Part(max(0, size - int(last)), size) if int(last) and size else None
    start, end = int(first), min(size, int(last) + 1) if last else size
    if last and int(last) < int(first):
        return _Part(0, size)  # RFC 9110, 14.1.1: an invalid one is ignored
    return _Part(start, end) if start < size else None


class CacheServer(ThreadingHTTPServer):
    """Listens on one address and answers those of `peers` alone: others reach a bridge's address through the host's other
    networks, and are turned away."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 32

    def __init__(self, address: tuple[str, int], shelf: Shelf, peers: IPv4Network, say: Callable[[str], None]) -> None:
        self.shelf = shelf
        self.peers = peers
        self.say = say
        self._room = threading.BoundedSemaphore(_AT_ONCE)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """As TCPServer's; HTTPServer would ask the name of the address, and wait for a resolver that a laptop does not reach."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 - socketserver's signature
        return IPv4Address(client_address[0]) in self.peers

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except BaseException:
                self._room.release()
                raise
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's signature
        """A client that went away, or a disk that did; neither is worth a traceback."""
        self.say(f"{client_address[0]} went away, or could not be answered")

    @property
    def url(self) -> str:
        """The server's own URL."""
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}"


def listen(folder: Path, address: str, port: int, peers: IPv4Network, say: Callable[[str], None]) -> CacheServer:
    """A server for the cache in `folder` that is bound and not started. Port 0: any. Raises Refused where another program has
    the port, HostLacks where the host has no such address."""
    try:
        return CacheServer((address, port), Shelf(folder), peers, say)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Refused(
                f"the cache cannot be served on {address}: another program has port {port} there",
                hint=f"ss -ltnp 'sport = :{port}' shows it; end it, or choose another port with --port",
            ) from None
        raise HostLacks(
            f"the cache cannot be served on {address}: {error.strerror}", hint="is the lab's network up? pocketcloud lab status"
        ) from None


def peers_of(address: str) -> IPv4Network:
    """Who may ask at an address: the network that it is in."""
    if IPv4Address(address).is_loopback:
        return IPv4Network("127.0.0.0/8")
    return IPv4Network(f"{address}/{PREFIX}", strict=False)


@contextlib.contextmanager
def serving(
    folder: Path, address: str = "127.0.0.1", port: int = 0, say: Callable[[str], None] = lambda _: None
) -> Iterator[str]:
    """Serve the cache in `folder` from threads of this process, for as long as the context lasts; its URL. For builds: nothing
    can be left behind."""
    server = listen(folder, address, port, peers_of(address), say)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="cache", daemon=True)
    thread.start()
    try:
        yield server.url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
