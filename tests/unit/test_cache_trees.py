"""Trees and repositories of the RPM family in the cache: made with rpmbuild and createrepo_c, fetched over the loopback."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import re
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pocketcloud.cache.serving import serving
from pocketcloud.cache.store import Store
from pocketcloud.cache.trees import TreeFetch, Version, compared
from pocketcloud.errors import HostLacks, NotFound, Refused
from pocketcloud.model.base import Arch
from pocketcloud.model.cache import CACHE_SCHEMA, Collection, Stored
from pocketcloud.system import run
from tests import web
from tests.rpm_packages import needs_rpm, rpm
from tests.unit.test_disk_image import greedy

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdFile
else:
    from backports.zstd import ZstdFile

ELSEWHERE = b"[checksums]\n../x = sha256:" + b"0" * 64


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree as an installer finds it: its own repository, `.treeinfo`, an image."""
    top = tmp_path_factory.mktemp("tree")
    for name, version, arch in (
        ("a", "1.0", "noarch"),
        ("a", "1.10", "noarch"),
        ("a", "1.9", "noarch"),
        ("b", "2~rc1", "x86_64"),
    ):
        rpm(top, name, version, arch)
    rpm(top, "foreign", "1", "i686")
    subprocess.run(["createrepo_c", "--quiet", top], check=True, capture_output=True)
    image = top / "images/pxeboot/vmlinuz"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"a kernel")
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    (top / ".treeinfo").write_text(
        f"[checksums]\nimages/pxeboot/vmlinuz = sha256:{digest}\n[general]\narch = x86_64\nfamily = Tests\nversion = 1\n"
    )
    return top


@dataclass
class Site:
    """A tree that is served, and a store."""

    store: Store
    web: web.Web

    def publish(self, top: Path) -> str:
        for path in top.rglob("*"):
            if path.is_file():
                self.web.put(f"/os/{path.relative_to(top)}".replace("~", "%7E"), path.read_bytes())
                self.web.put(f"/os/{path.relative_to(top)}", path.read_bytes())
        return self.web.url("/os")

    def fetch(self, tree: str, *repos: str, known: dict[str, Stored] | None = None) -> dict[str, Stored]:
        work = self.store.work("tests")
        work.mkdir(exist_ok=True)
        fetcher = TreeFetch("base tests", Arch.X86_64, self.store, work, known or {}, lambda _text, _part: None)
        return fetcher.fetch(tree, repos)

    def names(self, found: dict[str, Stored]) -> set[str]:
        return {key.rpartition("/")[2] for key in found}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    store = Store(tmp_path / "cache")
    store.make()
    with web.serving() as server:
        yield Site(store, server)


def compress(content: bytes) -> bytes:
    packed = io.BytesIO()
    with ZstdFile(packed, "wb") as file:
        file.write(content)
    return packed.getvalue()


@needs_rpm
def test_the_newest_packages_the_lists_and_the_installer(site: Site, made: Path) -> None:
    url = site.publish(made)
    found = site.fetch(url)
    names = site.names(found)
    assert {name for name in names if name.endswith(".rpm")} == {"a-1.10-1.noarch.rpm", "b-2~rc1-1.x86_64.rpm"}
    assert {".treeinfo", "vmlinuz", "repomd.xml"} <= names
    assert sum("primary.xml" in name for name in names) == 1
    assert all(site.store.is_whole(stored) for stored in found.values())
    assert not site.store.work("tests").exists()
    site.web.asked.clear()
    assert site.fetch(url, known=found) == found
    assert {path.rpartition("/")[2] for path in site.web.paths()} == {".treeinfo", "repomd.xml"}, "what is known is not fetched"


@needs_rpm
def test_an_interrupted_sync_goes_on_with_what_it_has(site: Site, made: Path) -> None:
    url = site.publish(made)
    broken = [page for path, page in site.web.pages.items() if "rc1" in path]
    content = broken[0].body
    for page in broken:
        page.body = b"half"
    with pytest.raises(Refused, match="not the right file"):
        site.fetch(url)
    have = {path.name for path in site.store.objects.glob("*/*")}
    damaged = next(site.store.objects.glob(f"*/{_sha256(made, 'repodata/*filelists.xml.*')}"))
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    for page in broken:
        page.body = content
    site.web.asked.clear()
    found = site.fetch(url)
    assert all(site.store.is_whole(stored) for stored in found.values())
    again = [stored for key, stored in found.items() if any(key.endswith(path) for path in site.web.paths())]
    # Lists that nothing vouches for are always asked for.
    kept = have - {_sha256(made, ".treeinfo"), _sha256(made, "repodata/repomd.xml"), damaged.name}
    assert len(kept) >= 2
    assert not kept & {stored.sha256 for stored in again}
    assert damaged.name in {stored.sha256 for stored in again}


def _sha256(made: Path, pattern: str) -> str:
    return hashlib.sha256(next(made.glob(pattern)).read_bytes()).hexdigest()


@needs_rpm
def test_a_list_packed_with_zstd_is_read_too(site: Site, made: Path, tmp_path: Path) -> None:
    """As Fedora's are since 2024."""
    top = tmp_path / "zst"
    shutil.copytree(made, top)
    packed = next((top / "repodata").glob("*primary.xml.gz"))
    plain = gzip.decompress(packed.read_bytes())
    (packed.with_suffix(".zst")).write_bytes(compress(plain))
    md = (top / "repodata/repomd.xml").read_text()
    md = md.replace(packed.name, packed.with_suffix(".zst").name)
    digest = hashlib.sha256(packed.read_bytes()).hexdigest()
    md = md.replace(f'type="sha256">{digest}', f'type="sha256">{hashlib.sha256(compress(plain)).hexdigest()}')
    (top / "repodata/repomd.xml").write_text(md)
    assert len([name for name in site.names(site.fetch("", site.publish(top))) if name.endswith(".rpm")]) == 2


@needs_rpm
@pytest.mark.skipif(not shutil.which("dnf"), reason="dnf is not installed")
def test_dnf_installs_from_what_was_kept(site: Site, made: Path, tmp_path: Path) -> None:
    url = site.publish(made)
    found = site.fetch("", url)
    site.store.publish("tests", Collection(CACHE_SCHEMA, "tests", "", files=found))
    site.web.pages.clear()
    with serving(site.store.folder) as proxy:
        settings = {"proxy": proxy, "cachedir": tmp_path / "dnf", "reposdir": "/nowhere"}
        options = [f"--setopt={key}={value}" for key, value in settings.items()]
        root = [f"--installroot={tmp_path / 'root'}", "--releasever=1", f"--repofrompath=tests,{url}", "--nogpgcheck"]
        env = {"no_proxy": ""}
        said = run(["dnf", "-qy", *root, *options, "install", "--downloadonly", f"--destdir={tmp_path}", "a"], env=env)
    assert [path.name for path in tmp_path.glob("*.rpm")] == ["a-1.10-1.noarch.rpm"], said.out + said.err


@needs_rpm
@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda pages: pages.pop("/os/.treeinfo"), NotFound, "no .treeinfo"),
        (lambda pages: setattr(pages["/os/.treeinfo"], "body", b"<html>"), HostLacks, "web page"),
        (lambda pages: setattr(pages["/os/.treeinfo"], "body", ELSEWHERE), Refused, "lies elsewhere"),
        (lambda pages: setattr(pages["/os/images/pxeboot/vmlinuz"], "body", b"a kernek"), Refused, "not the right file"),
        (lambda pages: setattr(pages["/os/repodata/repomd.xml"], "body", b"<repomd"), Refused, "repomd.xml"),
        (lambda pages: pages.pop("/os/repodata/repomd.xml"), NotFound, "repomd.xml"),
    ],
)  # fmt: skip
def test_a_broken_tree_is_told(
    site: Site, made: Path, change: Callable[[dict[str, web.Page]], object], kind: type[Exception], words: str
) -> None:
    url = site.publish(made)
    change(site.web.pages)
    with pytest.raises(kind, match=words):
        site.fetch(url)


def listing(site: Site, packed: bytes, ending: str = "") -> str:
    """A repository whose list of packages is the file `packed`, by the name's ending packed or not."""
    place = f"repodata/primary.xml{ending}"
    site.web.put(f"/os/{place}", packed)
    checksum = f'<checksum type="sha256">{hashlib.sha256(packed).hexdigest()}</checksum>'
    data = f'<data type="primary">{checksum}<location href="{place}"/></data>'
    md = f'<repomd xmlns="http://linux.duke.edu/metadata/repo">{data}</repomd>'
    site.web.put("/os/repodata/repomd.xml", md.encode())
    return site.web.url("/os")


NAMED = b'<metadata xmlns="http://linux.duke.edu/metadata/common">'
NINE = 9 << 20


@pytest.mark.parametrize(
    ("packed", "ending"),
    [
        (gzip.compress(NAMED + b" " * NINE, 1), ".gz"),
        (lzma.compress(NAMED + b" " * NINE, preset=0), ".xz"),
        (compress(NAMED + b" " * NINE), ".zst"),
        (NAMED + b"<package>" + b" " * NINE, ""),
    ],
    ids=["gzip", "xz", "zstd", "a package"],
)
def test_a_list_whose_entry_does_not_end_is_refused(site: Site, packed: bytes, ending: str) -> None:
    with pytest.raises(Refused, match="one entry has more than 8 MiB"):
        site.fetch("", listing(site, packed, ending))


def test_what_is_no_package_in_a_list_takes_no_memory(site: Site) -> None:
    url = listing(site, NAMED + b"<a/>" * 200_000 + b"</metadata>")
    tracemalloc.start()
    try:
        assert len(site.fetch("", url)) == 2
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("packed", "ending", "words"),
    [
        (greedy(), ".xz", "Memory usage limit"),
        (gzip.compress(NAMED)[:10] + b"\xff" * 100, ".gz", "while decompressing"),
        (compress(NAMED)[:-1], ".zst", "cannot be read"),
    ],
    ids=["much memory", "damaged", "half"],
)
def test_a_list_that_cannot_be_unpacked_is_refused(site: Site, packed: bytes, ending: str, words: str) -> None:
    with pytest.raises(Refused, match=words):
        site.fetch("", listing(site, packed, ending))


@needs_rpm
@pytest.mark.parametrize("place", ["../../../../etc/passwd", "a/../../b.rpm", "x\n.rpm"])
def test_a_package_that_lies_elsewhere_is_refused(site: Site, made: Path, place: str) -> None:
    url = site.publish(made)
    path = next(path for path in site.web.pages if path.endswith("primary.xml.gz"))
    old = site.web.pages.pop(path).body
    new = gzip.compress(re.sub(rb'location href="[^"]*"', f'location href="{place}"'.encode(), gzip.decompress(old)))
    was, now = (hashlib.sha256(content).hexdigest() for content in (old, new))
    site.web.put(path.replace(was, now), new)
    md = site.web.pages["/os/repodata/repomd.xml"]
    md.body = md.body.replace(was.encode(), now.encode())
    if "\n" in place:  # XML makes a space of it in an attribute
        with pytest.raises(NotFound):
            site.fetch("", url)
        return
    with pytest.raises(Refused, match="lies elsewhere"):
        site.fetch("", url)


def test_versions_are_ordered_as_rpm_does() -> None:
    ordered = ["1~rc1", "1~rc2", "1", "1^git1", "1^git2", "1.0", "1.0.1", "1.9", "1.10", "1.10a", "1.10.1", "2"]
    for index, one in enumerate(ordered):
        assert compared(one, one) == 0
        for other in ordered[index + 1 :]:
            assert (compared(one, other), compared(other, one)) == (-1, 1), (one, other)
    assert Version(1, "1", "1") > Version(0, "9", "1")
    assert Version(0, "1", "2") > Version(0, "1", "1")
    assert compared("1.0", "1_0") == compared("1.05", "1.5") == 0


@needs_rpm
def test_rpm_itself_orders_them_so() -> None:
    import random

    chance = random.Random(5)  # noqa: S311 - for cases, not for keys
    words = ["".join(chance.choices("019ab.~^_", k=chance.randint(1, 7))) for _ in range(2000)]
    pairs = list(zip(words[::2], words[1::2], strict=True))
    script = "".join(f'print(rpm.vercmp("{one}", "{other}") .. " ")' for one, other in pairs)
    said = subprocess.run(["rpm", "--eval", f"%{{lua:{script}}}"], check=True, capture_output=True, text=True).stdout
    assert [int(word) for word in said.split()] == [compared(one, other) for one, other in pairs]
