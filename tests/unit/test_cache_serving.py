"""The cache's server on the loopback, asked by curl-like clients and by hostile ones."""

from __future__ import annotations

import hashlib
import http.client
import socket
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pocketcloud.cache.serving import listen, serving
from pocketcloud.cache.store import Store
from pocketcloud.errors import HostLacks, Refused
from pocketcloud.model.cache import CACHE_SCHEMA, Collection, Stored

CONTENT = bytes(range(256)) * 40


@dataclass
class Served:
    """A store that is being served."""

    store: Store
    url: str
    said: list[str]

    def ask(self, address: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
        """Ask as a proxy's client does if `address` is a whole one; names of headers with `_` for `-`."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=10)
        connection.request(method, address, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer, body

    def raw(self, request: bytes) -> bytes:
        """Send bytes, and return all that comes back."""
        parts = urlsplit(self.url)
        with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))


def put(store: Store, content: bytes) -> Stored:
    path = store.folder / "work/new"
    path.write_bytes(content)
    return store.adopt(path)


def publish(store: Store, name: str = "one", **files: Stored) -> None:
    keyed = {f"h.example/{path.replace('__', '/')}": stored for path, stored in files.items()}
    store.publish(name, Collection(CACHE_SCHEMA, "tests", "", files=keyed))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    store = Store(tmp_path / "cache")
    store.make()
    publish(store, pool__a=put(store, CONTENT), empty=put(store, b""))
    said: list[str] = []
    with serving(store.folder, say=said.append) as url:
        yield Served(store, url, said)


def test_as_a_proxy_and_by_its_own_path(served: Served) -> None:
    for address in ("http://h.example/pool/a", "http://H.example:80/pool/%61", "/h.example/pool/a", "https://h.example/pool/a"):
        answer, body = served.ask(address)
        assert (answer.status, body) == (200, CONTENT), address
    answer, body = served.ask("/h.example/pool/a", "HEAD")
    assert (answer.status, body, answer.headers["Content-Length"]) == (200, b"", str(len(CONTENT)))
    assert served.ask("/")[1].startswith(b"pocketcloud's cache: 2 files")
    assert served.ask("/h.example/empty")[1] == b""
    assert any("200 http://h.example/pool/a" in line for line in served.said)


def test_urllib_gets_it_through_the_proxy(served: Served) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": served.url}))
    with opener.open("http://h.example/pool/a", timeout=10) as answer:
        assert answer.read() == CONTENT


@pytest.mark.parametrize(
    ("wanted", "status", "part"),
    [
        ("bytes=0-9", 206, CONTENT[:10]),
        ("bytes=100-", 206, CONTENT[100:]),
        ("bytes=-5", 206, CONTENT[-5:]),
        ("bytes=-99999999", 200, CONTENT),
        ("bytes=5-99999999", 206, CONTENT[5:]),
        (f"bytes={len(CONTENT)}-", 416, b""),
        ("bytes=-0", 416, b""),
        ("bytes=9-5", 200, CONTENT),
        ("bytes=0-1,5-6", 200, CONTENT),
        ("bytes=-", 200, CONTENT),
        ("lines=1-2", 200, CONTENT),
    ],
)
def test_ranges(served: Served, wanted: str, status: int, part: bytes) -> None:
    answer, body = served.ask("/h.example/pool/a", Range=wanted)
    assert (answer.status, body) == (status, part)
    if status == 206:
        assert answer.headers["Content-Range"].endswith(f"/{len(CONTENT)}")


def test_a_range_of_what_has_changed_meanwhile_is_the_whole(served: Served) -> None:
    first, _ = served.ask("/h.example/pool/a")
    for validator in (first.headers["ETag"], first.headers["Last-Modified"]):
        assert served.ask("/h.example/pool/a", Range="bytes=5-", If_Range=validator)[0].status == 206
    answer, body = served.ask("/h.example/pool/a", Range="bytes=5-", If_Range='"another"')
    assert (answer.status, body) == (200, CONTENT)
    assert served.ask("/h.example/pool/a", If_None_Match=first.headers["ETag"])[0].status == 304
    assert served.ask("/h.example/pool/a", If_Modified_Since=first.headers["Last-Modified"])[0].status == 304


def test_a_collection_published_meanwhile_is_served(served: Served) -> None:
    assert served.ask("/h.example/late")[0].status == 404
    publish(served.store, "two", late=put(served.store, b"late"))
    assert served.ask("/h.example/late")[1] == b"late"
    served.store.withdraw("two")
    assert served.ask("/h.example/late")[0].status == 404


def test_what_was_damaged_is_not_sent_and_told(served: Served) -> None:
    assert served.ask("/h.example/pool/a")[0].status == 200
    path = served.store.path(hashlib.sha256(CONTENT).hexdigest())
    path.write_bytes(b"x" + CONTENT[1:])
    answer, body = served.ask("/h.example/pool/a")
    assert answer.status == 502
    assert b"damaged" in body
    assert b"pocketcloud cache sync" in body
    path.unlink()
    assert served.ask("/h.example/pool/a")[0].status == 502


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/h.example/../../etc/passwd",
        "/h.example/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/etc/passwd",
        "/h.example/pool/a/",
        "/h.example//pool/a",
        "/h.example/pool",
        "file:///etc/passwd",
        "ftp://h.example/pool/a",
        "/h.example/pool/a%00",
        "http://user:pw@h.example/absent",
        "/wishes.json",
        "/objects",
        "/h.example/" + "a/" * 20000,
    ],
)
def test_hostile_addresses_reach_nothing(served: Served, path: str) -> None:
    answer, body = served.ask(path)
    assert answer.status in (400, 404), path
    assert b"root:" not in body
    assert b"pw" not in body
    assert not any("pw@" in line for line in served.said)


def test_nothing_is_changed_and_no_tunnel_is_dug(served: Served) -> None:
    before = sorted(str(path) for path in served.store.folder.rglob("*"))
    for method in ("PUT", "POST", "DELETE", "PATCH", "PROPFIND"):
        assert served.ask("/h.example/pool/a", method)[0].status == 501
    assert b" 501 " in served.raw(b"CONNECT h.example:443 HTTP/1.1\r\nHost: h.example\r\n\r\n").splitlines()[0]
    assert sorted(str(path) for path in served.store.folder.rglob("*")) == before


@pytest.mark.parametrize(
    "request_", [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"", b"A" * 70000, b"\r\n" * 9]
)
def test_what_is_no_request_does_not_hurt(served: Served, request_: bytes) -> None:
    served.raw(request_)
    assert served.ask("/h.example/pool/a")[1] == CONTENT


def test_headers_without_end_are_cut_off(served: Served) -> None:
    said = served.raw(b"GET /h.example/pool/a HTTP/1.1\r\n" + b"X: y\r\n" * 1000 + b"\r\n")
    assert b" 431 " in said.splitlines()[0]


def test_a_client_that_goes_away_holds_nobody_up(served: Served) -> None:
    parts = urlsplit(served.url)
    idle = [socket.create_connection((parts.hostname, parts.port)) for _ in range(10)]
    assert served.ask("/h.example/pool/a")[0].status == 200
    for connection in idle:
        connection.close()


def test_others_than_the_bridge_s_are_turned_away(tmp_path: Path) -> None:
    with listen(tmp_path, "127.0.0.1", 0, IPv4Network("10.77.1.0/24"), lambda _: None) as server:
        assert not server.verify_request(None, ("192.0.2.7", 1))
        assert server.verify_request(None, ("10.77.1.9", 1))


def test_a_port_in_use_and_an_address_that_is_not_here(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(Refused, match=f"another program has port {port}") as caught:
            listen(tmp_path, "127.0.0.1", port, IPv4Network("127.0.0.0/8"), lambda _: None)
        assert "--port" in caught.value.hint
    with pytest.raises(HostLacks, match=r"192\.0\.2\.200"):
        listen(tmp_path, "192.0.2.200", 0, IPv4Network("192.0.2.0/24"), lambda _: None)
