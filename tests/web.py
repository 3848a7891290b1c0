"""A web server for tests, on a loopback port: serves what it is told, with ranges, and misbehaves as it is told."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


@dataclass
class Page:
    """What is at a path. `etag` and `modified` are the validators (empty: none is sent).

    `breaks`: at this byte of the content the connection ends, the first `times` times. `holds`: it waits there instead
    until `released` is set. `length`: announced in place of the real one (-1: none is). `moved`: where it is redirected to.
    """

    body: bytes = b""
    kind: str = "application/octet-stream"
    etag: str = ""
    modified: str = ""
    status: int = 200
    moved: str = ""
    breaks: int = -1
    times: int = 1
    holds: bool = False
    length: int | None = None
    ranges: bool = True
    login: str = ""
    released: threading.Event = field(default_factory=threading.Event)


@dataclass
class Web:
    """A running server: its pages by path, and what was asked of it: path and headers in small letters."""

    port: int
    scheme: str
    pages: dict[str, Page] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def url(self, path: str) -> str:
        """The URL of a path."""
        return f"{self.scheme}://127.0.0.1:{self.port}{path}"

    def put(self, path: str, body: bytes, **how: object) -> str:
        """Serve `body` at a path; returns its URL."""
        self.pages[path] = Page(body, **how)  # type: ignore[arg-type]  # the fields of Page
        return self.url(path)

    def paths(self) -> list[str]:
        """The paths that were asked for."""
        return [path for path, _ in self.asked]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: Web

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.web.asked.append((self.path, headers))
        # What comes through a proxy names the whole address.
        path = self.path.removeprefix(f"http://127.0.0.1:{self.web.port}")
        page = self.web.pages.get(path, Page(b"gone", status=404))
        self.close_connection = True
        if page.login and headers.get("authorization") != page.login:
            page = Page(b"who?", status=401)
        if page.moved:
            self._head(page.status if page.status != 200 else 302, {"Location": page.moved, "Content-Length": "0"})
        elif page.etag and headers.get("if-none-match") == page.etag:
            self._head(304, {})
        else:
            self._content(page, headers)

    def _content(self, page: Page, headers: dict[str, str]) -> None:
        first, status, extra = 0, page.status, {"Content-Type": page.kind}
        extra |= {name: value for name, value in (("ETag", page.etag), ("Last-Modified", page.modified)) if value}
        asked = headers.get("range", "")
        fits = headers.get("if-range", "") in ("", page.etag, page.modified)
        if asked and page.ranges and fits and status == 200:
            first, status = int(asked.removeprefix("bytes=").rstrip("-")), 206
            extra["Content-Range"] = f"bytes {first}-{len(page.body) - 1}/{len(page.body)}"
            if first >= len(page.body):
                self._head(416, {"Content-Range": f"bytes */{len(page.body)}", "Content-Length": "0"})
                return
        body = page.body[first:]
        if page.length != -1:
            extra["Content-Length"] = str(len(body) if page.length is None else page.length)
        self._head(status, extra)
        if page.breaks >= 0 and (page.times > 0 or page.holds):
            page.times -= 1
            self.wfile.write(body[: max(0, page.breaks - first)])
            self.wfile.flush()
            if page.holds:
                page.released.wait(60)
            return
        self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Connection": "close"} | headers).items():
            self.send_header(name, value)
        self.end_headers()

    def handle(self) -> None:
        with suppress(ConnectionError, ssl.SSLError):  # a client that leaves in the middle is what some tests are about
            super().handle()

    def log_message(self, *_words: object) -> None:
        """Nothing: what was asked is kept as data."""


@contextmanager
def serving(certificate: Path | None = None) -> Iterator[Web]:
    """A server; with `certificate`, a file that `own_certificate` made, it speaks TLS."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    web = Web(server.server_port, "http" if certificate is None else "https")
    handler.web = web  # type: ignore[attr-defined]  # the class is this server's own
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield web
    finally:
        for page in web.pages.values():
            page.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


def own_certificate(folder: Path) -> Path:
    """A key and a certificate of our own for 127.0.0.1, in one file, valid for a day."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "certificate.pem"
    path.write_bytes(private + built.public_bytes(serialization.Encoding.PEM))
    return path
