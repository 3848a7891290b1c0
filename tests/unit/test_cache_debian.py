"""What of a Debian archive comes into the cache: real apt, in its namespace, against a small archive on the loopback."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pocketcloud.bases import definitions
from pocketcloud.bases.answer_values import autoinstall_packages
from pocketcloud.bases.install import ubuntu
from pocketcloud.bases.mirror import Mirror
from pocketcloud.cache.addresses import key_of
from pocketcloud.cache.debian import Archive, fetch, lacking
from pocketcloud.cache.serving import serving
from pocketcloud.cache.store import Store, id_of
from pocketcloud.cache.syncing import Means, sync
from pocketcloud.errors import HostLacks, NoSpace, NotFound, PocketcloudError, Refused
from pocketcloud.model.base import Arch, InstallDefinition
from pocketcloud.model.cache import CACHE_SCHEMA, Collection, Kind, Stored, Wish
from pocketcloud.system import run
from tests import web
from tests.debian_archive import IMAGES, NETBOOT, Deb, make_archive
from tests.signers import Signers, signers
from tests.standin.discs import disc

OWN = "http://deb.example/debian"
DEBS = (
    Deb("base-files", {"Essential": "yes", "Priority": "required", "Pre-Depends": "mawk"}),
    Deb("mawk", {"Priority": "required"}),
    Deb("gawk"),
    Deb("apt", {"Priority": "important"}),
    Deb("hello", {"Depends": "libhello1 (>= 1)", "Recommends": "hello-doc"}),
    Deb("libhello1", version="1.0~rc+1"),
    Deb("hello-doc"),
    Deb("web", {"Recommends": "web-doc"}),
    Deb("web-doc"),
    Deb("never-asked"),
)
ARCHIVE = Archive("base tests (x86_64)", Arch.X86_64, "stable", "", OWN, "", ("hello",))


@dataclass
class Site:
    """An archive that is served, a store, and who signs."""

    folder: Path
    store: Store
    web: web.Web
    signers: Signers
    archive: Archive

    def publish(
        self, *debs: Deb, udebs: tuple[Deb, ...] = (), updates: tuple[Deb, ...] = (), universe: tuple[Deb, ...] = ()
    ) -> None:
        """Make the archive anew, and serve it."""
        top = self.folder / "archive"
        shutil.rmtree(top, ignore_errors=True)
        make_archive(top, debs, self.signers, udebs=udebs, updates=updates, universe=universe)
        self.web.pages.clear()
        for path in top.rglob("*"):
            if path.is_file():
                # As apt asks for it.
                place = str(path.relative_to(top)).replace("~", "%7e").replace("+", "%2b")
                self.web.put(f"/debian/{place}", path.read_bytes())

    def fetch(
        self, archive: Archive | None = None, known: dict[str, Stored] | None = None, options: str = ""
    ) -> dict[str, Stored]:
        """Fetch into the store."""
        work = self.store.work("tests")
        work.mkdir(exist_ok=True)
        origin = Mirror(self.web.url("/debian"), "", "tests")
        told: list[float] = []
        found = fetch(
            archive or self.archive, origin, options, self.store, work, known or {}, run, lambda _, part: told.append(part)
        )
        assert told == sorted(told)
        assert not work.exists()
        return found

    def asked(self, ending: str = ".deb") -> list[str]:
        """The files that were fetched, by name, and forget them."""
        names = sorted(path.rpartition("/")[2] for path in self.web.paths() if path.endswith(ending))
        self.web.asked.clear()
        return names


@pytest.fixture(scope="module")
def keys() -> Iterator[Signers]:
    with signers() as made:
        made.key("tests")
        made.key("stranger")
        yield made


@pytest.fixture
def site(keys: Signers) -> Iterator[Site]:
    # Not below a folder of mode 0700: the namespace's users read the keyring.
    folder = Path(tempfile.mkdtemp(prefix="pocketcloud-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        store = Store(folder / "cache")
        store.make()
        ring = keys.ring(folder / "keys.gpg", "tests")
        ring.chmod(0o644)
        with web.serving() as server:
            made = Site(folder, store, server, keys, replace(ARCHIVE, keyring=str(ring)))
            made.publish(*DEBS)
            yield made
    finally:
        shutil.rmtree(folder)


def debs(found: Mapping[str, Stored]) -> set[str]:
    return {key.rpartition("/")[2].partition("_")[0] for key in found if key.endswith(".deb")}


def test_exactly_what_is_needed_comes_under_the_definition_s_addresses(site: Site) -> None:
    found = site.fetch()
    assert debs(found) == {"base-files", "mawk", "apt", "hello", "libhello1"}
    assert all(key.startswith("deb.example/debian/") for key in found)
    assert "deb.example/debian/pool/libhello1/libhello1_1.0~rc+1_amd64.deb" in found
    lists = {key.removeprefix("deb.example/debian/dists/") for key in found if "/dists/" in key}
    index = found["deb.example/debian/dists/stable/main/binary-amd64/Packages.xz"]
    # The other suite is empty, as Debian's own are when they are new.
    assert {"stable/InRelease", "stable-updates/InRelease", f"stable/main/binary-amd64/by-hash/SHA256/{index.sha256}"} <= lists
    signed = (site.folder / "archive/dists/stable/InRelease").read_bytes()
    assert site.store.path(found["deb.example/debian/dists/stable/InRelease"].sha256).read_bytes() == signed
    assert all(site.store.is_whole(stored) for stored in found.values())
    assert {path.stat().st_uid for path in site.store.objects.rglob("*")} == {0}


def test_packages_for_machines_come_with_what_they_recommend(site: Site) -> None:
    wanted = replace(site.archive, extra=("web",))
    found = site.fetch(wanted)
    assert {"web", "web-doc"} <= debs(found)
    assert lacking(wanted, found) == ()
    assert lacking(replace(wanted, packages=("hello", "nano"), extra=("web", "gawk")), found) == (
        "the package nano",
        "the package gawk",
    )


def test_what_is_added_to_a_system_comes_without_the_rest_of_one(site: Site) -> None:
    """As to a cloud image, of which nothing is known."""
    site.publish(*DEBS, Deb("other-web", {"Conflicts": "web"}))
    added = replace(site.archive, there=("other-web",), extra=("web",))
    assert debs(site.fetch(added)) == {"hello", "libhello1", "hello-doc", "web", "web-doc", "other-web"}
    added = replace(site.archive, there=(), extra=("web",))
    assert debs(site.fetch(added)) == {"hello", "libhello1", "hello-doc", "web", "web-doc"}


def test_of_a_system_that_is_there_the_newer_packages_come_too(site: Site) -> None:
    site.publish(*DEBS, updates=(Deb("mawk", version="2"),), universe=(Deb("far"),))
    there = replace(
        site.archive, there=("mawk", "gawk", "gone-since"), packages=("hello", "far"), components=("main", "universe")
    )
    found = site.fetch(there)
    assert debs(found) == {"mawk", "gawk", "hello", "libhello1", "hello-doc", "far"}
    assert not any("mawk_1_" in key for key in found)
    assert lacking(there, found) == ()
    assert f"{key_of(OWN)}/dists/stable/universe/binary-amd64/Packages.xz" in found
    with pytest.raises(NotFound, match="far"):
        site.fetch(replace(there, components=("main",)))


UBUNTU = """\
base: own-ubuntu
title: An Ubuntu by its installer
family: ubuntu
version: "24.04"
builder: autoinstall
architectures: [x86_64]
template: ubuntu.user-data.j2
suite: stable
tree: {tree}
keyring: {keyring}
media:
  x86_64: {{file: {disc}, sha256: {sha256}}}
"""


def test_what_ubuntus_installer_fetches_follows_from_its_disc(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disc with its list of packages, and an archive with newer ones."""
    image = disc(
        site.folder / "live.iso", "Ubuntu-Server", {ubuntu.MANIFEST_PATH: b"mawk\t1\nlibhello1:amd64\t1\nsnap:core\t5\nold\t1\n"}
    )
    folder = site.folder / "bases"
    folder.mkdir()
    sha256 = hashlib.sha256(image.read_bytes()).hexdigest()
    said = UBUNTU.format(tree=OWN, keyring=site.archive.keyring, disc=image, sha256=sha256)
    (folder / "own-ubuntu.yaml").write_text(said)
    monkeypatch.setenv("POCKETCLOUD_BASES", str(folder))
    definition = definitions.find("own-ubuntu")
    assert isinstance(definition, InstallDefinition)
    taken = {*autoinstall_packages(definition, Arch.X86_64), *ubuntu.installs(Arch.X86_64)}
    site.publish(
        *DEBS,
        *(Deb(name) for name in taken if name != "linux-generic"),
        universe=(Deb("linux-generic", {"Depends": "linux-image"}), Deb("linux-image")),
    )
    means = Means(site.store, site.folder / "media", site.web.url("/debian"), lambda: "2024-01-01T00:00:00+00:00")
    means.media.mkdir()
    wish = Wish(Kind.BASE, definition.base, Arch.X86_64)
    told: list[float] = []
    collection = sync(means, wish, lambda _text, part: told.append(part))
    assert told == sorted(told)
    assert debs(collection.files) == {*taken, "linux-image", "mawk", "libhello1"}
    for name, content in {"no list": {"/casper/vmlinuz": b"x"}, "none": {ubuntu.MANIFEST_PATH: b""}}.items():
        image = disc(site.folder / "live.iso", "Ubuntu-Server", content)
        (folder / "own-ubuntu.yaml").write_text(said.replace(sha256, hashlib.sha256(image.read_bytes()).hexdigest()))
        with pytest.raises(Refused, match=r"cannot be told"):
            sync(means, wish, lambda _text, _part: None)
        assert site.store.collection(id_of(wish)) == collection, name


def test_only_what_is_new_is_fetched_again(site: Site) -> None:
    found = site.fetch()
    site.asked()
    assert site.fetch(known=found) == found
    assert site.asked() == []
    site.publish(*DEBS[:4], replace(DEBS[4], version="2"), *DEBS[5:])
    newer = site.fetch(known=found)
    assert site.asked() == ["hello_2_amd64.deb"]
    assert "deb.example/debian/pool/hello/hello_2_amd64.deb" in newer


def test_an_interrupted_fetch_goes_on(site: Site) -> None:
    broken = site.web.pages.pop("/debian/pool/libhello1/libhello1_1.0%7erc%2b1_amd64.deb")
    with pytest.raises(HostLacks, match="404") as caught:
        site.fetch()
    assert "to go on: pocketcloud cache sync" in caught.value.hint
    assert site.store.work("tests").exists()
    site.asked()
    site.web.pages["/debian/pool/libhello1/libhello1_1.0%7erc%2b1_amd64.deb"] = broken
    assert debs(site.fetch()) == {"base-files", "mawk", "apt", "hello", "libhello1"}
    assert site.asked() == ["libhello1_1.0%7erc%2b1_amd64.deb"], "what was there is not fetched again"


UDEBS = (
    Deb("partman"),
    Deb("ext4-modules-6.1.0-9-di", {"Kernel-Version": "6.1.0-9-amd64"}),
    Deb("ext4-modules-6.1.0-10-di", {"Kernel-Version": "6.1.0-10-amd64"}),
    # One may be called as a package is.
    Deb("hello", version="7"),
)
IMPORTANT = Deb("tasksel", {"Priority": "important"})


def test_all_that_an_installer_fetches_comes_with_it(site: Site) -> None:
    """Its own packages but for the older kernel's, its kernel, and of what it installs also what the suite had before its
    updates: it installs that first."""
    kernels = Deb("kernel"), Deb("kernel", version="2")
    site.publish(*DEBS, IMPORTANT, kernels[0], udebs=UDEBS, updates=(kernels[1],))
    wanted = replace(site.archive, installer=("kernel",))
    found = site.fetch(wanted)
    names = {key.rpartition("/")[2] for key in found}
    assert {name for name in names if name.endswith(".udeb")} == {
        "partman_1_amd64.udeb", "ext4-modules-6.1.0-10-di_1_amd64.udeb", "hello_7_amd64.udeb"
    }  # fmt: skip
    assert {"kernel_1_amd64.deb", "kernel_2_amd64.deb", "tasksel_1_amd64.deb", "hello_1_amd64.deb"} <= names
    dists = {key.removeprefix("deb.example/debian/dists/stable/"): stored for key, stored in found.items()}
    for path in ("Release", "Release.gpg", "main/binary-amd64/Release", f"{IMAGES}/SHA256SUMS", f"{IMAGES}/{NETBOOT}/linux"):
        at_mirror = (site.folder / "archive/dists/stable" / path).read_bytes()
        assert site.store.path(dists[path].sha256).read_bytes() == at_mirror, path
    listed = dists["main/debian-installer/binary-amd64/Packages.xz"]
    assert dists[f"main/debian-installer/binary-amd64/by-hash/SHA256/{listed.sha256}"] == listed
    assert lacking(wanted, found) == ()
    linux = f"deb.example/debian/dists/stable/{IMAGES}/{NETBOOT}/linux"
    fewer = [key for key in found if key != linux and not key.endswith(".udeb") and "/kernel_" not in key]
    assert lacking(wanted, fewer) == (
        "the package kernel",
        f"of the installer http://{linux}",
        "the packages that the installer is made of",
    )
    # And only what is new is fetched again.
    site.web.asked.clear()
    assert site.fetch(wanted, known=found) == found
    asked = set(site.web.paths())
    assert not [path for path in asked if path.endswith(("deb", "linux", "initrd.gz", "SHA256SUMS"))]
    assert "/debian/dists/stable/Release" in asked


def test_an_archive_in_the_middle_of_an_update_is_not_taken(site: Site) -> None:
    """Its Release and its InRelease are not of one day: the installer reads one, apt the other."""
    site.publish(*DEBS, IMPORTANT, udebs=UDEBS)
    page = site.web.pages["/debian/dists/stable/Release"]
    page.body = page.body.replace(b"main/binary-amd64/Release", b"main/binary-arm64/Release")
    with pytest.raises(PocketcloudError, match="of different days") as caught:
        site.fetch(replace(site.archive, installer=("tasksel",)))
    assert "try again later" in caught.value.hint


def test_an_archive_without_an_installer_is_told(site: Site) -> None:
    site.publish(*DEBS, IMPORTANT)
    with pytest.raises(NotFound, match="no installer for amd64"):
        site.fetch(replace(site.archive, installer=("tasksel",)))


def test_an_initramfs_that_is_not_what_the_list_says_is_refused(site: Site) -> None:
    site.publish(*DEBS, IMPORTANT, udebs=UDEBS)
    site.web.pages[f"/debian/dists/stable/{IMAGES}/{NETBOOT}/initrd.gz"].body = b"An initramfs"
    with pytest.raises(PocketcloudError, match="Hash Sum mismatch"):
        site.fetch(replace(site.archive, installer=("tasksel",)))


def test_an_archive_signed_by_a_stranger_is_refused(site: Site) -> None:
    text = (site.folder / "archive/dists/stable/InRelease").read_bytes()
    body = text.partition(b"\n\n")[2].partition(b"-----BEGIN PGP SIGNATURE")[0]
    site.web.put("/debian/dists/stable/InRelease", site.signers.clearsigned("stranger", body))
    with pytest.raises(HostLacks, match="was not fetched") as caught:
        site.fetch()
    assert "keyring" in caught.value.hint
    assert not list(site.store.objects.rglob("*.deb"))


def test_keys_that_are_not_here_are_told_before_anything_is_fetched(site: Site) -> None:
    site.web.asked.clear()
    with pytest.raises(HostLacks, match=r"there is no /nowhere/ubuntu\.gpg here"):
        site.fetch(replace(site.archive, keyring="/nowhere/ubuntu.gpg"))
    assert site.web.paths() == []


def test_a_package_that_is_not_what_the_index_says_is_refused(site: Site) -> None:
    page = site.web.pages["/debian/pool/hello/hello_1_amd64.deb"]
    page.body = page.body[:-1] + b"x"
    with pytest.raises(PocketcloudError, match="Hash Sum mismatch"):
        site.fetch()
    page.body = b"<!DOCTYPE html><html>Log in to the hotel's network</html>"
    with pytest.raises(PocketcloudError, match="was not fetched"):
        site.fetch()


def test_an_unknown_package_and_a_mirror_that_is_gone_are_told(site: Site) -> None:
    with pytest.raises(NotFound, match="Unable to locate package nosuch") as caught:
        site.fetch(replace(site.archive, packages=("nosuch",)))
    assert "nosuch" in caught.value.hint
    site.web.pages.clear()
    with pytest.raises(HostLacks, match="does not have a Release file"):
        site.fetch()


def test_a_password_in_the_mirror_s_address_is_not_told(site: Site) -> None:
    site.web.pages.clear()
    origin = Mirror(site.web.url("/debian").replace("//", "//me:topsecret@"), "", "tests")
    work = site.store.work("tests")
    work.mkdir()
    argvs: list[str] = []

    def watched(argv, **rest):  # type: ignore[no-untyped-def]
        argvs.append(" ".join(map(str, argv)))
        return run(argv, **rest)

    with pytest.raises(PocketcloudError) as caught:
        fetch(site.archive, origin, "", site.store, work, {}, watched, lambda _text, _part: None)
    assert "topsecret" not in caught.value.message + caught.value.hint + "".join(argvs)
    assert argvs


def test_an_installer_comes_from_a_mirror_with_a_password_that_no_command_line_has(site: Site) -> None:
    site.publish(*DEBS, IMPORTANT, udebs=UDEBS)
    for page in site.web.pages.values():
        page.login = f"Basic {b64encode(b'me:topsecret').decode()}"
    origin = Mirror(site.web.url("/debian").replace("//", "//me:topsecret@"), "", "tests")
    work = site.store.work("tests")
    work.mkdir()
    argvs: list[str] = []

    def watched(argv, **rest):  # type: ignore[no-untyped-def]
        argvs.append(" ".join(map(str, argv)))
        return run(argv, **rest)

    wanted = replace(site.archive, installer=("tasksel",))
    found = fetch(wanted, origin, "", site.store, work, {}, watched, lambda _text, _part: None)
    assert lacking(wanted, found) == ()
    assert "topsecret" not in "".join((*argvs, *found))


def test_no_room_is_told_before_anything_is_fetched(site: Site, tmp_path: Path) -> None:
    """A file system of 8 MiB, as a full kit would be."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=0755", "none", small], check=True)
    try:
        store = Store(small / "cache")
        store.make()
        cramped = replace_store(site, store)
        with pytest.raises(NoSpace, match="are free in the kit") as caught:
            cramped.fetch()
        assert "cache prune" in caught.value.hint
        assert site.asked() == []
    finally:
        subprocess.run(["umount", small], check=True)


def replace_store(site: Site, store: Store) -> Site:
    return Site(site.folder, store, site.web, site.signers, site.archive)


def test_apt_installs_from_what_was_kept(site: Site) -> None:
    """By the distribution's own signature, through the cache as its proxy; and fails by name on what is not there."""
    found = site.fetch()
    site.store.publish("tests", Collection(CACHE_SCHEMA, "tests", "", files=found))
    site.web.pages.clear()
    top = site.folder / "client"
    for name in ("etc", "state/lists/partial", "cache/archives/partial"):
        (top / name).mkdir(parents=True)
    (top / "state/status").touch()
    (top / "etc/sources.list").write_text(f"deb [signed-by={site.archive.keyring}] {OWN} stable main\n")
    with serving(site.store.folder) as proxy:
        (top / "apt.conf").write_text(
            f'Dir::Etc "{top}/etc"; Dir::State "{top}/state"; Dir::State::status "{top}/state/status"; Dir::Cache "{top}/cache";'
            f'Acquire::Languages "none"; APT::Architecture "amd64"; Acquire::http::Proxy "{proxy}"; Acquire::Retries "0";'
        )
        env = {"APT_CONFIG": str(top / "apt.conf"), "no_proxy": ""}
        run(["apt-get", "-q", "--error-on=any", "update"], env=env)
        run(["apt-get", "-qy", "--no-install-recommends", "--download-only", "install", "hello"], env=env)
        assert {path.name.partition("_")[0] for path in (top / "cache/archives").glob("*.deb")} >= {"hello", "libhello1"}
        with pytest.raises(PocketcloudError, match="not in the cache"):
            run(["apt-get", "-qy", "--download-only", "install", "web"], env=env)
    assert key_of(f"{OWN}/dists/stable/InRelease") in found
