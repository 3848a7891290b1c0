"""Downloads: fetched once, verified before use, gone on with; and servers on bad days. Against a real server on loopback."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pocketcloud.downloads import Fetched, Patience, fetch, have, shown
from pocketcloud.downloads.kept import forget, kept, occupied
from pocketcloud.errors import HostLacks, NoSpace, NotFound, PocketcloudError, Refused, UsageError
from pocketcloud.model.base import Download
from pocketcloud.model.sizes import MIB
from tests.small_disk import needs_mount, small_disk
from tests.web import Page, Web, own_certificate, serving

TOP = Path(__file__).resolve().parents[2]
QUICK = Patience(connect=5, silence=5, pause=0.01, attempts=3)
CONTENT = bytes(range(256)) * 16384  # 4 MiB: several pieces


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def _without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def media(tmp_path: Path) -> Path:
    return tmp_path / "media"


def pinned(url: str, content: bytes = CONTENT, **more: str) -> Download:
    return Download(url=url, sha256=sha256(content), **more)


def get(download: Download, media: Path, **how: object) -> Fetched:
    return fetch(download, media, patience=QUICK, **how)  # type: ignore[arg-type]  # the options of fetch


def left(media: Path) -> list[str]:
    """What is in the folder beside verified files and the index."""
    return sorted(path.name for path in media.iterdir() if path.name.startswith("."))


def test_a_file_is_fetched_once_and_found_without_a_network(web: Web, media: Path) -> None:
    url = web.put("/images/disk.qcow2?token=secret", CONTENT)
    said: list[tuple[str, float]] = []
    found = fetch(pinned(url), media, patience=QUICK, tell=lambda text, share: said.append((text, share)))
    assert found == Fetched(media / f"{sha256(CONTENT)[:16]}-disk.qcow2", sha256(CONTENT), len(CONTENT))
    assert found.path.read_bytes() == CONTENT
    assert found.path.stat().st_mode & 0o777 == 0o644
    assert left(media) == []
    assert [share for _, share in said] == sorted(share for _, share in said)
    assert "4 MiB of 4 MiB" in "".join(text for text, _ in said)
    assert said[-1] == ("verifying disk.qcow2", 1.0)
    web.pages.clear()
    assert get(pinned(url), media) == get(pinned(url), media, offline=True) == found
    # From another mirror it is the same file.
    assert have(pinned("https://mirror.invalid/disk.qcow2"), media) == found
    assert len(web.asked) == 1
    assert "secret" not in "".join(text for text, _ in said)


def test_a_file_that_is_not_in_the_folder_and_may_not_be_fetched(web: Web, media: Path) -> None:
    with pytest.raises(HostLacks, match="nothing may be fetched: offline"):
        get(pinned(web.put("/a", CONTENT)), media, offline=True)
    assert web.asked == []


def test_a_file_that_was_changed_in_the_folder_is_fetched_again(web: Web, media: Path) -> None:
    download = pinned(web.put("/disk", CONTENT))
    path = get(download, media).path
    os.utime(path, (1, 1))  # as a copy of the kit has it
    assert get(download, media).path == path
    assert len(web.asked) == 1
    path.write_bytes(CONTENT[:-1] + b"x")
    assert get(download, media).path.read_bytes() == CONTENT
    path.write_bytes(CONTENT[:-1])
    assert get(download, media).path.read_bytes() == CONTENT
    assert len(web.asked) == 3


def test_the_wrong_checksum_is_told_and_nothing_is_kept(web: Web, media: Path) -> None:
    url = web.put("/disk.img", CONTENT)
    with pytest.raises(Refused, match=f"disk.img is not the right file: sha256 {sha256(CONTENT)}"):
        get(Download(url=url, sha256="0" * 64), media)
    assert list(media.iterdir()) == []


def test_what_broke_off_is_gone_on_with(web: Web, media: Path) -> None:
    url = web.put("/disk", CONTENT, etag='"one"', breaks=3 * MIB)
    assert get(pinned(url), media).path.read_bytes() == CONTENT
    assert [headers.get("range") for _, headers in web.asked] == [None, f"bytes={3 * MIB}-"]
    assert web.asked[1][1]["if-range"] == '"one"'


def test_a_file_that_changed_meanwhile_starts_anew(web: Web, media: Path) -> None:
    url = web.put("/disk", b"old" * MIB, etag='"old"', breaks=MIB, times=99)
    with pytest.raises(HostLacks, match="broke off before the end"):
        get(pinned(url), media)
    assert sorted(name.rpartition(".")[2] for name in left(media)) == ["json", "part"]
    web.put("/disk", CONTENT, etag='"new"')
    assert get(pinned(url), media).path.read_bytes() == CONTENT
    assert web.asked[-1][1]["if-range"] == '"old"'
    assert left(media) == []


def test_a_server_that_lies_about_a_change_costs_one_more_fetch(web: Web, media: Path) -> None:
    url = web.put("/disk", b"\1" * len(CONTENT), etag='"same"', breaks=MIB, times=99)
    with pytest.raises(HostLacks):
        get(pinned(url), media)
    web.put("/disk", CONTENT, etag='"same"')
    assert get(pinned(url), media).path.read_bytes() == CONTENT
    assert [headers.get("range") for _, headers in web.asked[-2:]] == [f"bytes={MIB}-", None]


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_a_server_whose_files_cannot_be_told_apart_sends_them_whole(web: Web, media: Path, etag: str) -> None:
    url = web.put("/disk", CONTENT, etag=etag, breaks=MIB)
    assert get(pinned(url), media).path.read_bytes() == CONTENT
    assert ["range" in headers for _, headers in web.asked] == [False, False]


def test_a_server_without_ranges(web: Web, media: Path) -> None:
    url = web.put("/disk", CONTENT, etag='"one"', breaks=MIB, ranges=False)
    assert get(pinned(url), media).path.read_bytes() == CONTENT


def test_all_was_there_but_the_name(web: Web, media: Path) -> None:
    """Killed between the last byte and the verification."""
    url = web.put("/disk", CONTENT, etag='"one"', breaks=MIB, times=99)
    with pytest.raises(HostLacks):
        get(pinned(url), media)
    (part,) = media.glob(".*.part")
    part.write_bytes(CONTENT)
    web.put("/disk", CONTENT, etag='"one"')
    assert get(pinned(url), media).path.read_bytes() == CONTENT
    assert web.asked[-1][1]["range"] == f"bytes={len(CONTENT)}-"


BAD_DAYS: dict[str, tuple[Callable[[Web], Page], type[PocketcloudError], str]] = {
    "a web page": (lambda _: Page(b"<html>", kind="text/html; charset=utf-8"), HostLacks, "web page"),
    "a web page by its content": (lambda _: Page(b"\n <!DOCTYPE HTML><p>log in"), HostLacks, "web page"),
    "nothing": (lambda _: Page(b""), HostLacks, "sent nothing"),
    "half of it, always": (lambda _: Page(CONTENT, breaks=MIB, times=99), HostLacks, "broke off before the end"),
    "more than it says": (lambda _: Page(CONTENT, length=100), Refused, "not the right file"),
    "less than it says": (lambda _: Page(CONTENT, length=len(CONTENT) + 1), HostLacks, "broke off"),
    "no length, and half": (lambda _: Page(CONTENT[:MIB], length=-1), Refused, "not the right file"),
    "a redirect to itself": (lambda _: Page(moved="/disk"), HostLacks, "redirected for ever"),
    "a redirect to a file": (lambda _: Page(moved="file:///etc/passwd"), HostLacks, "redirected to file:///etc/passwd"),
    "a redirect to nonsense": (lambda _: Page(moved="http://[::1"), HostLacks, "redirected to nonsense"),
    "not there": (lambda _: Page(status=404), NotFound, "HTTP 404"),
    "denied": (lambda _: Page(status=403), HostLacks, "denies access"),
    "busy for ever": (lambda _: Page(status=503), HostLacks, "HTTP 503"),
    "nonsense": (lambda _: Page(status=299), HostLacks, "HTTP 299"),
    "more than any disk has": (lambda _: Page(CONTENT, length=1 << 50), NoSpace, "1024 TiB"),
}


@pytest.mark.parametrize("day", BAD_DAYS)
def test_a_server_s_bad_day(web: Web, media: Path, day: str) -> None:
    page, kind, words = BAD_DAYS[day]
    web.pages["/disk"] = page(web)
    with pytest.raises(kind) as caught:
        get(pinned(web.url("/disk")), media)
    assert words in caught.value.message
    assert caught.value.hint
    assert [path for path in media.iterdir() if not path.name.startswith(".")] == []
    assert not [part for part in media.glob(".*.part") if not part.stat().st_size]


def test_a_server_that_is_not_there(web: Web, media: Path) -> None:
    url = web.put("/disk", CONTENT)
    with serving() as gone:
        port = gone.port
    with pytest.raises(HostLacks, match=f"takes no connection at port {port}"):
        get(pinned(url.replace(str(web.port), str(port))), media)
    with pytest.raises(HostLacks, match=r"host\.invalid: there is no such name"):
        get(pinned("http://host.invalid/disk"), media)


def test_a_server_that_falls_silent(web: Web, media: Path) -> None:
    url = web.put("/disk", CONTENT, breaks=MIB, holds=True)
    with pytest.raises(HostLacks, match="does not answer in time"):
        fetch(pinned(url), media, patience=Patience(silence=0.2, pause=0.01, attempts=2))


def test_redirects_are_followed_and_passwords_stay_with_their_host(web: Web, media: Path) -> None:
    with serving() as other:
        end = other.put("/end", CONTENT)
        web.pages["/disk"] = Page(moved="/next", login="Basic bWU6cCB3")
        web.pages["/next"] = Page(moved=end, login="Basic bWU6cCB3")
        url = web.url("/disk").replace("http://", "http://me:p%20w@")
        assert get(pinned(url), media).path.read_bytes() == CONTENT
        assert "authorization" not in other.asked[0][1]


@pytest.mark.parametrize("status", [404, 401, 500])
def test_passwords_are_in_no_message(web: Web, media: Path, status: int) -> None:
    url = web.put("/disk", b"", status=status).replace("http://", "http://me:topsecret@") + "?key=hidden"
    web.pages["/disk?key=hidden"] = Page(status=status)
    said: list[str] = []
    with pytest.raises(PocketcloudError) as caught:
        get(pinned(url), media, tell=lambda text, _share: said.append(text))
    text = f"{caught.value.message} {caught.value.hint} {caught.value.__cause__!r} {said}"
    assert "topsecret" not in text
    assert "hidden" not in text
    assert "topsecret" not in "".join(path.read_text(errors="replace") for path in media.rglob("*") if path.is_file())


def test_what_is_shown_of_an_address() -> None:
    assert shown("https://me:pw@example.com:8443/a?b=c#d") == "https://***@example.com:8443/a?***"
    assert shown("http://example.com/a") == "http://example.com/a"


def test_a_proxy_of_the_environment(web: Web, media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server stands in for the proxy: it is asked for the whole address, with the proxy's password."""
    web.pages["http://mirror.invalid/disk"] = Page(CONTENT)
    monkeypatch.setenv("http_proxy", web.url("").replace("http://", "http://me:pw@"))
    assert get(pinned("http://mirror.invalid/disk"), media).path.read_bytes() == CONTENT
    assert web.asked[0][1]["proxy-authorization"] == "Basic bWU6cHc="
    monkeypatch.setenv("no_proxy", "mirror.invalid")
    with pytest.raises(HostLacks, match="no such name"):
        get(pinned("http://mirror.invalid/other", b""), media)


DOUBTFUL = {
    "without anything that vouches": Download(url="http://example.com/a"),
    "of another kind": Download(url="ftp://example.com/a", sha256="0" * 64),
    "a list of another kind": Download(url="http://example.com/a", sums="file:///a", sha256="0" * 64),
    "without a host": Download(url="http:///a", sha256="0" * 64),
    "with a bad port": Download(url="http://example.com:http/a", sha256="0" * 64),
    "keys for no signature": Download(url="http://example.com/a", sha256="0" * 64, keyring="/k"),
}


@pytest.mark.parametrize("case", DOUBTFUL)
def test_downloads_that_cannot_be_meant(media: Path, case: str) -> None:
    with pytest.raises(UsageError):
        get(DOUBTFUL[case], media)
    assert not media.exists()


def test_a_file_of_this_host_stays_where_it_is(media: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(CONTENT)
    assert get(Download(file=str(path)), media) == Fetched(path, sha256(CONTENT), len(CONTENT))
    with pytest.raises(Refused, match="not the right file"):
        get(Download(file=str(path), sha256="1" * 64), media)
    assert path.read_bytes() == CONTENT
    assert not media.exists()
    with pytest.raises(NotFound, match="no such file"):
        get(Download(file="/nowhere/disk.img"), media)


# -- lists of sums ----------------------------------------------------------------------------------------------------


def test_a_list_over_tls_vouches(media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = own_certificate(tmp_path)
    with serving(certificate) as web:
        url, sums = web.put("/os/disk", CONTENT), web.put("/os/SHA512SUMS", b"")
        web.put("/os/SHA512SUMS", f"{hashlib.sha512(CONTENT).hexdigest()}  disk\n".encode())
        with pytest.raises(HostLacks, match="cannot show that it is who it says"):
            get(Download(url=url, sums=sums), media)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        found = get(Download(url=url, sums=sums), media)
        assert found.path.read_bytes() == CONTENT
        # The list is looked at again, the file is not fetched again; and without the server it is still known.
        assert get(Download(url=url, sums=sums), media) == found
        assert web.paths().count("/os/disk") == 1
    assert get(Download(url=url, sums=sums), media) == found
    assert get(Download(url=url, sums=sums), media, offline=True) == found
    with pytest.raises(HostLacks, match="offline"):
        get(Download(url=url, sums=f"{sums}.other"), media, offline=True)


def test_a_list_without_tls_or_signature_vouches_for_nothing(web: Web, media: Path) -> None:
    url, sums = web.put("/disk", CONTENT), web.put("/SHA256SUMS", f"{sha256(CONTENT)}  disk\n".encode())
    with pytest.raises(Refused, match="without TLS"):
        get(Download(url=url, sums=sums), media)
    # Beside a sum of our own it need not; and then both count.
    assert get(pinned(url, sums=sums), media).sha256 == sha256(CONTENT)
    web.put("/SHA256SUMS", f"{'0' * 64}  disk\n".encode())
    with pytest.raises(Refused, match="not the right file"):
        get(pinned(f"{web.url('')}/disk", sums=sums + "?"), media)


def test_a_newer_file_in_the_list_takes_the_older_s_place(media: Path, tmp_path: Path, web: Web) -> None:
    url, sums = web.put("/disk", b"old"), tmp_path / "SHA256SUMS"
    sums.write_text(f"{sha256(b'old')} *disk\n")
    older = get(Download(url=url, sums=str(sums)), media)
    web.put("/disk", b"new")
    sums.write_text(f"{sha256(b'new')} *disk\n")
    newer = get(Download(url=url, sums=str(sums)), media)
    assert newer.path.read_bytes() == b"new"
    assert not older.path.exists()


# -- two at once, and kills -------------------------------------------------------------------------------------------

FETCH = """
import sys
from pathlib import Path
from pocketcloud.downloads import fetch
from pocketcloud.model.base import Download
print(fetch(Download(url=sys.argv[1], sha256=sys.argv[2]), Path(sys.argv[3]), tell=lambda t, s: print(t, flush=True)).path)
"""


def start(url: str, media: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, url, sha256(CONTENT), media], cwd=TOP, stdout=subprocess.PIPE, text=True
    )


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_fetch_that_was_killed_is_gone_on_with(web: Web, media: Path) -> None:
    url = web.put("/disk", CONTENT, etag='"one"', breaks=2 * MIB, holds=True)
    with start(url, media) as process:
        until(lambda: any(part.stat().st_size == 2 * MIB for part in media.glob(".*.part")))
        process.send_signal(signal.SIGKILL)
    web.put("/disk", CONTENT, etag='"one"')
    assert get(pinned(url), media).path.read_bytes() == CONTENT
    assert web.asked[-1][1]["range"] == f"bytes={2 * MIB}-"
    assert left(media) == []


def test_two_fetches_of_one_file_are_one(web: Web, media: Path) -> None:
    page = Page(CONTENT, etag='"one"', breaks=MIB, holds=True)
    web.pages["/disk"] = page
    url = web.url("/disk")
    with start(url, media) as first:
        until(lambda: bool(web.asked))
        with start(url, media) as second:
            assert second.stdout is not None
            assert "waiting for another command" in second.stdout.readline()
            web.put("/disk", CONTENT, etag='"one"')
            page.released.set()
            assert "disk" in second.communicate(timeout=60)[0]
        assert first.communicate(timeout=60)[0].splitlines()[-1].endswith("-disk")
    assert (first.returncode, second.returncode) == (0, 0)
    assert len(web.asked) == 2  # the one that broke off, and its rest
    assert left(media) == []


def test_many_threads_fetch_one_file_once(web: Web, media: Path) -> None:
    download = pinned(web.put("/disk", CONTENT))
    found: list[Fetched] = []
    threads = [threading.Thread(target=lambda: found.append(get(download, media))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert len(web.asked) == 1


def test_a_damaged_index_is_no_harm(web: Web, media: Path) -> None:
    download = pinned(web.put("/disk", CONTENT))
    get(download, media)
    for index in (media / "index").iterdir():
        index.write_bytes(b"\xff{")
    assert get(download, media).path.read_bytes() == CONTENT
    # Nor is one that points elsewhere.
    (index,) = (media / "index").iterdir()
    index.write_text(index.read_text().replace('"file": "', '"file": "../../'))
    assert get(download, media).path.parent == media


def test_a_signature_alone_asks_the_server_whether_it_is_still_so(web: Web, media: Path) -> None:
    from tests.signers import signers

    with signers() as gnupg:
        gnupg.key("a")
        keys = gnupg.ring(media.with_name("keys.gpg"), "a")
        url = web.put("/disk", b"one", etag='"1"')
        web.put("/disk.sig", gnupg.detached("a", b"one"))
        download = Download(url=url, signature=f"{url}.sig", keyring=str(keys))
        first = get(download, media)
        assert get(download, media) == first
        assert web.paths() == ["/disk.sig", "/disk", "/disk.sig", "/disk"]
        assert web.asked[-1][1]["if-none-match"] == '"1"'
        web.put("/disk", b"two", etag='"2"')
        web.put("/disk.sig", gnupg.detached("a", b"two"))
        assert get(download, media).sha256 == sha256(b"two")
        with pytest.raises(HostLacks):
            get(replace(download, keyring="/other"), media, offline=True)


@needs_mount
def test_the_last_of_a_disk_is_not_filled(web: Web, tmp_path: Path) -> None:
    """32 MiB, of which 4 stay free."""
    url = web.put("/disk", CONTENT * 8, etag='"one"')
    with small_disk(tmp_path / "small", 32 * MIB) as media:
        with pytest.raises(NoSpace, match=r"32 MiB, and 2[0-9.]* MiB may be filled"):
            get(pinned(url, CONTENT * 8), media)
        web.pages["/disk"].length = -1  # it does not say how much it is
        with pytest.raises(NoSpace, match="too little would stay free"):
            get(pinned(url, CONTENT * 8), media)
        (part,) = media.glob(".*.part")
        assert shutil.disk_usage(media).free >= 4 * MIB
        assert part.stat().st_size > 20 * MIB, "it may be gone on with"
        (media / "urgent").write_bytes(b"x" * 2 * MIB)
        with pytest.raises(NoSpace):
            get(pinned(url, CONTENT * 8), media)
        assert left(media) == []


def test_a_disk_that_fails_is_told_with_the_file(web: Web, media: Path, tmp_path: Path) -> None:
    # At its beginning the kernel can read nothing of a process, and says so as a failing disk does.
    with pytest.raises(HostLacks, match="/proc/self/mem cannot be read or written: Input/output error") as caught:
        get(Download(file="/proc/self/mem", sha256="0" * 64), media)
    assert caught.value.hint
    download = pinned(web.put("/disk", CONTENT))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HostLacks, match="file/media cannot be read or written: Not a directory"):
        get(download, tmp_path / "file/media")
    part = media / f".{sha256(download.url.encode())[:16]}.part"
    part.mkdir(parents=True)
    with pytest.raises(HostLacks, match=f"{part} cannot be read or written: Is a directory"):
        get(download, media)


# -- what is kept -----------------------------------------------------------------------------------------------------


def test_what_was_fetched_can_be_forgotten_and_nothing_else(web: Web, media: Path) -> None:
    one, two = web.put("/one.img", CONTENT), web.put("/two.iso", b"2" * 5000)
    get(pinned(one), media)
    get(pinned(two, b"2" * 5000), media)
    (media / "trees").mkdir()
    (media / "mine.iso").write_bytes(b"mine")
    (media / f"{'0' * 16}-link").symlink_to("mine.iso")
    begun, fetching = media / f".{'a' * 16}.part", media / f".{'b' * 16}.part"
    for part in (begun, fetching):
        part.write_bytes(b"half")
        part.with_suffix(".json").write_text("{}")
    with fetching.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        files = kept(media)
        assert {path.name.rpartition("-")[2] for path in files} == {begun.name, "one.img", "two.iso"}
        assert occupied(files) >= len(CONTENT) + 5000
        forget(media, tuple(path for path in files if not path.name.endswith("two.iso")))
    fetching.unlink()
    fetching.with_suffix(".json").unlink()
    assert get(pinned(two, b"2" * 5000), media, offline=True).size == 5000
    with pytest.raises(HostLacks, match="nothing may be fetched"):
        get(Download(url=one, sums=web.url("/nothing")), media, offline=True)
    forget(media, kept(media))
    assert sorted(path.name for path in media.iterdir()) == [f"{'0' * 16}-link", "index", "mine.iso", "trees"]
    assert list((media / "index").iterdir()) == []
    assert kept(media) == ()
