"""Where installers come from: trees, Debian's mirrors, discs; and mirrors that send pages, halves and nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pycdlib
import pytest

from pocketcloud.bases.install import medium
from pocketcloud.bases.install.treeinfo import NoTree, read_treeinfo
from pocketcloud.bases.needs import Ground
from pocketcloud.bases.recipe import Order
from pocketcloud.cache.store import Store, folder_of
from pocketcloud.cache.supply import KitSupply
from pocketcloud.downloads import Patience
from pocketcloud.errors import HostLacks, NotFound, PocketcloudError, Refused, UsageError
from pocketcloud.hypervisor import Hypervisor
from pocketcloud.iso import extract, iso_image, volume_label
from pocketcloud.model.base import Arch, Builder, Download, InstallDefinition
from pocketcloud.model.cache import CACHE_SCHEMA, Collection
from pocketcloud.model.names import Name
from pocketcloud.storage import open_storage
from pocketcloud.system import run
from tests.built_base import kit_in
from tests.signers import Signers, signers
from tests.sshd import free_port
from tests.standin import Tree
from tests.standin.debian_installer import IMAGES, NETBOOT, SUITE, DebianInstaller
from tests.standin.discs import disc
from tests.web import Page, Web, serving

HASTY = Patience(connect=5, silence=5, pause=0.01, attempts=2)
TREE = Tree(b"a kernel" * 1000, b"an initramfs" * 1000)
Ordered = Callable[..., Order[InstallDefinition]]


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as web:
        yield web


@pytest.fixture(scope="module")
def keys() -> Iterator[Signers]:
    with signers() as keys:
        keys.key("archive")
        keys.key("stranger")
        yield keys


@pytest.fixture
def ordered(tmp_path: Path) -> Ordered:
    """A function that makes an order; its arguments are the definition's fields."""
    kit = kit_in(tmp_path / "kit")
    work = tmp_path / "work"
    work.mkdir()

    def make(
        *, offline: bool = False, mirror: str | None = None, arch: Arch = Arch.X86_64, **said: object
    ) -> Order[InstallDefinition]:
        values: dict[str, object] = {
            "base": Name("standin"), "title": "", "family": "test", "version": "12", "builder": Builder.KICKSTART,
            "architectures": tuple(Arch), "template": "anaconda.ks.j2",
        }  # fmt: skip
        definition = InstallDefinition(**(values | said))  # type: ignore[arg-type]  # the fields of the definition
        here = Ground(tmp_path / "root", "x86_64", privileged=True)
        return Order(
            kit,
            open_storage(kit),
            definition,
            arch,
            "d" * 64,
            work,
            mirror,
            here,
            run,
            lambda _text, _done: None,
            _none,
            KitSupply(kit) if offline else None,
        )

    return make


def _none() -> Hypervisor:
    raise AssertionError("no hypervisor is asked for")


def quietly(_text: str, _done: float) -> None:
    """Progress nobody looks at."""


def got(order: Order[InstallDefinition]) -> tuple[bytes, bytes]:
    found = medium.get(order, medium.find(order, HASTY), quietly, HASTY)
    return found.kernel.read_bytes(), found.initrd.read_bytes()


def refused(order: Order[InstallDefinition], kind: type[PocketcloudError], words: str) -> None:
    with pytest.raises(kind) as caught:
        got(order)
    assert words in f"{caught.value.message} {caught.value.hint}"
    assert not list(order.kit.path.glob("media/*-vmlinuz"))


# -- trees ------------------------------------------------------------------------------------------------------------


def test_a_tree_says_where_its_installer_is() -> None:
    info = read_treeinfo(TREE.treeinfo(), Arch.X86_64)
    assert (info.family, info.version) == ("Stand-in", "10")
    assert info.kernel.sha256 == hashlib.sha256(TREE.kernel).hexdigest()


FEDORA = """
[checksums]
images/pxeboot/initrd.img = sha256:{0}
images/pxeboot/vmlinuz = sha256:{0}
[general]
; WARNING.0 = This section provides compatibility with pre-productmd treeinfos.
arch = x86_64
family = Fedora
name = Fedora 44
platforms = x86_64,xen
version = 44
[header]
type = productmd.treeinfo
[images-x86_64]
boot.iso = images/boot.iso
initrd = images/pxeboot/initrd.img
kernel = images/pxeboot/vmlinuz
[images-xen]
initrd = images/pxeboot/initrd.img
kernel = images/pxeboot/vmlinuz
[variant-Everything]
repository = .
""".format("0" * 64)


def test_a_tree_as_fedora_writes_it_is_read() -> None:
    assert read_treeinfo(FEDORA, Arch.X86_64).kernel.path == "images/pxeboot/vmlinuz"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<html><body>Please log in</body></html>", "not a .treeinfo"),
        ("", "names no architecture"),
        (TREE.treeinfo("aarch64"), "a tree for 'aarch64'"),
        (TREE.treeinfo().replace("kernel =", "other ="), "names no kernel"),
        (TREE.treeinfo().replace("images/pxeboot/vmlinuz = sha256:", "images/pxeboot/vmlinuz = md5:"), "no SHA-256 sum"),
        (TREE.treeinfo().replace("kernel = images", "kernel = ../../images"), "outside of the tree"),
        (TREE.treeinfo().replace("kernel = images", "kernel = /images"), "outside of the tree"),
        (TREE.treeinfo().replace("kernel = images", "kernel = http://example.com/images"), "outside of the tree"),
        ("\0" * 4000, "not a .treeinfo"),
    ],
    ids=["page", "empty", "other architecture", "no kernel", "no sum", "above", "absolute", "elsewhere", "zeros"],
)
def test_what_is_no_tree_is_refused(text: str, words: str) -> None:
    with pytest.raises(NoTree, match=words):
        read_treeinfo(text, Arch.X86_64)


def test_a_trees_installer_is_fetched_once_and_kept(web: Web, ordered: Ordered) -> None:
    order = ordered(tree=TREE.serve(web))
    assert got(order) == (TREE.kernel, TREE.initrd)
    web.asked.clear()
    assert got(order) == (TREE.kernel, TREE.initrd)
    assert web.paths() == ["/tree/.treeinfo"]
    web.asked.clear()
    assert got(replace(order, supply=KitSupply(order.kit))) == (TREE.kernel, TREE.initrd)
    assert web.asked == []


def test_a_treeinfo_without_its_dot_does_too(web: Web, ordered: Ordered) -> None:
    url = TREE.serve(web)
    web.pages["/tree/treeinfo"] = web.pages.pop("/tree/.treeinfo")
    assert got(ordered(tree=url)) == (TREE.kernel, TREE.initrd)


def test_a_mirror_that_is_gone_is_made_up_for_by_what_is_here(web: Web, ordered: Ordered) -> None:
    order = ordered(tree=TREE.serve(web))
    got(order)
    web.pages["/tree/.treeinfo"] = Page(status=503)
    assert got(order) == (TREE.kernel, TREE.initrd)


def test_the_users_mirror_comes_first(web: Web, ordered: Ordered) -> None:
    assert got(ordered(tree="http://invalid.invalid/os", mirror=TREE.serve(web))) == (TREE.kernel, TREE.initrd)


def test_a_folder_without_a_treeinfo_is_no_tree(web: Web, ordered: Ordered) -> None:
    refused(ordered(tree=web.url("/empty")), NotFound, "it has no .treeinfo")


def test_a_page_in_place_of_a_treeinfo_is_refused(web: Web, ordered: Ordered) -> None:
    url = TREE.serve(web)
    web.put("/tree/.treeinfo", b"<!DOCTYPE html><html>Welcome to the hotel</html>", kind="text/html")
    refused(ordered(tree=url), HostLacks, "page")
    web.put("/tree/.treeinfo", b"Welcome to the hotel", kind="text/plain")
    refused(ordered(tree=url), Refused, "not a .treeinfo")
    web.put("/tree/.treeinfo", TREE.treeinfo().encode(), kind="text/plain")
    assert got(ordered(tree=url)) == (TREE.kernel, TREE.initrd)


def test_a_page_in_place_of_a_kernel_is_refused(web: Web, ordered: Ordered) -> None:
    url = TREE.serve(web)
    web.put("/tree/images/pxeboot/vmlinuz", b"<!DOCTYPE html><html>Welcome</html>", kind="text/html")
    refused(ordered(tree=url), HostLacks, "page")


def test_another_kernel_than_the_trees_is_refused(web: Web, ordered: Ordered) -> None:
    url = TREE.serve(web)
    web.put("/tree/images/pxeboot/vmlinuz", TREE.kernel[:-1] + b"!")
    refused(ordered(tree=url), Refused, "vmlinuz")


def test_half_a_kernel_is_gone_on_with(web: Web, ordered: Ordered) -> None:
    order = ordered(tree=TREE.serve(web))
    web.put("/tree/images/pxeboot/vmlinuz", TREE.kernel, etag='"1"', breaks=4000, times=99)
    with pytest.raises(PocketcloudError):
        got(order)
    web.pages["/tree/images/pxeboot/vmlinuz"].times = 0
    web.pages["/tree/images/pxeboot/vmlinuz"].breaks = -1
    assert got(order) == (TREE.kernel, TREE.initrd)


def test_a_mirror_that_does_not_answer_is_named(ordered: Ordered) -> None:
    port = free_port()
    refused(ordered(tree=f"http://127.0.0.1:{port}/tree"), HostLacks, str(port))


def test_a_password_in_an_address_is_not_told(ordered: Ordered) -> None:
    order = ordered(tree=f"http://me:s3cret@127.0.0.1:{free_port()}/tree")
    with pytest.raises(PocketcloudError) as caught:
        got(order)
    assert "s3cret" not in caught.value.message + caught.value.hint


def test_offline_nothing_is_asked_and_what_is_missing_is_said(web: Web, ordered: Ordered) -> None:
    refused(ordered(tree=TREE.serve(web), offline=True), HostLacks, "offline")
    assert web.asked == []


def test_a_definition_without_a_place_is_refused(ordered: Ordered) -> None:
    refused(ordered(), UsageError, "names no disc")
    refused(ordered(builder=Builder.AUTOINSTALL, tree="http://invalid.invalid"), UsageError, "media")


# -- Debian's mirrors -------------------------------------------------------------------------------------------------

DEBIAN = DebianInstaller(b"linux" * 500, b"initrd" * 500)


@pytest.fixture
def debian(web: Web, keys: Signers, ordered: Ordered, tmp_path: Path) -> Ordered:
    keyring = keys.ring(tmp_path / "archive.gpg", "archive")
    (tmp_path / "root").symlink_to("/")

    def make(signer: str = "archive", **said: object) -> Order[InstallDefinition]:
        url = DEBIAN.serve(web, keys, signer)
        what = {"family": "debian", "suite": SUITE, "builder": Builder.PRESEED, "keyring": str(keyring), "tree": url}
        return ordered(mirror=url, **(what | said))

    return make


def test_debians_installer_is_vouched_for_by_the_release_file(debian: Ordered) -> None:
    assert got(debian()) == (DEBIAN.kernel, DEBIAN.initrd)


def test_offline_debians_installer_comes_from_the_cache_whatever_the_mirror_was(web: Web, debian: Ordered) -> None:
    order = debian(offline=True, tree="http://deb.example/debian/")
    refused(order, HostLacks, "nothing is known of the installer")
    store = Store(folder_of(order.kit))
    store.make()
    files = {}
    for path in (f"{IMAGES}/SHA256SUMS", *(f"{IMAGES}/{NETBOOT}/{name}" for name in ("linux", "initrd.gz"))):
        (store.folder / "work/new").write_bytes(web.pages[path].body)
        files[f"deb.example{path}"] = store.adopt(store.folder / "work/new")
    store.publish("tests", Collection(CACHE_SCHEMA, "", "", files=files))
    assert got(order) == (DEBIAN.kernel, DEBIAN.initrd)
    assert medium.archive_of(order).archive == "http://deb.example/debian"
    assert web.asked == []


def test_a_release_file_signed_by_a_stranger_is_refused(debian: Ordered) -> None:
    refused(debian("stranger"), Refused, "not among those that may sign")


def test_sums_that_the_release_file_does_not_name_are_refused(web: Web, debian: Ordered) -> None:
    order = debian()
    web.put(f"{IMAGES}/SHA256SUMS", b"0" * 64 + b"  ./netboot/mini.iso\n", kind="text/plain")
    refused(order, Refused, "middle of an update")


def test_another_kernel_than_the_sums_say_is_refused(web: Web, debian: Ordered) -> None:
    order = debian()
    web.put(f"{IMAGES}/{NETBOOT}/linux", b"another")
    refused(order, Refused, "linux")


def test_a_mirror_without_an_installer_is_made_up_for_by_the_hosts_package(web: Web, debian: Ordered, tmp_path: Path) -> None:
    order = debian()
    for path in [path for path in web.pages if "installer-amd64" in path]:
        del web.pages[path]
    refused(order, NotFound, "SHA256SUMS")
    (tmp_path / "root").unlink()
    folder = tmp_path / "root/usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64"
    folder.mkdir(parents=True)
    (folder / "linux").write_bytes(b"packaged linux")
    (folder / "initrd.gz").write_bytes(b"packaged initrd")
    keyring = tmp_path / "root" / order.definition.keyring.lstrip("/")
    keyring.parent.mkdir(parents=True)
    keyring.write_bytes(Path(order.definition.keyring).read_bytes())
    assert got(order) == (b"packaged linux", b"packaged initrd")
    refused(replace(order, arch=Arch.AARCH64), NotFound, "arm64")


# -- discs ------------------------------------------------------------------------------------------------------------


def test_ubuntus_kernel_is_taken_from_its_disc(tmp_path: Path, ordered: Ordered) -> None:
    image = disc(tmp_path / "live.iso", "Ubuntu-Server 24.04", {"casper/vmlinuz": b"K" * 5000, "casper/initrd": b"I" * 5000})
    order = ordered(builder=Builder.AUTOINSTALL, media={Arch.X86_64: Download(file=str(image))})
    found = medium.get(order, medium.find(order), quietly)
    assert (found.kernel.read_bytes(), found.initrd.read_bytes()) == (b"K" * 5000, b"I" * 5000)
    assert (found.disc, found.label) == (image, "Ubuntu-Server 24.04")


def test_anacondas_kernel_is_where_its_discs_treeinfo_says(tmp_path: Path, ordered: Ordered) -> None:
    files = {
        ".treeinfo": TREE.treeinfo().encode(),
        "images/pxeboot/vmlinuz": TREE.kernel,
        "images/pxeboot/initrd.img": TREE.initrd,
    }
    image = disc(tmp_path / "boot.iso", "RHEL-9-BaseOS-x86_64", files)
    order = ordered(media={Arch.X86_64: Download(file=str(image))})
    assert got(order) == (TREE.kernel, TREE.initrd)


def test_what_is_no_disc_of_this_installer_is_refused(tmp_path: Path, ordered: Ordered) -> None:
    (tmp_path / "page.iso").write_bytes(b"<html>not found</html>" * 4000)
    (tmp_path / "empty.iso").write_bytes(b"")
    (tmp_path / "other.iso").write_bytes(iso_image("OTHER", {"readme": b"no installer"}))
    for name in ("page", "empty", "other"):
        media = {Arch.X86_64: Download(file=str(tmp_path / f"{name}.iso"))}
        refused(ordered(media=media), Refused, "disc")
        refused(ordered(media=media, builder=Builder.AUTOINSTALL), Refused, "disc")


def test_a_small_disc_of_ours_can_be_read_back(tmp_path: Path) -> None:
    (tmp_path / "seed.iso").write_bytes(iso_image("OEMDRV", {"ks.cfg": b"text\n", "user-data": b"#cloud-config\n"}))
    assert volume_label(tmp_path / "seed.iso") == "OEMDRV"
    extract(tmp_path / "seed.iso", "/ks.cfg", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"text\n"
    with pytest.raises(KeyError):
        extract(tmp_path / "seed.iso", "/none", tmp_path / "out")


def test_a_disc_that_ends_early_or_leads_nowhere_is_told(tmp_path: Path) -> None:
    image, out = tmp_path / "disc.iso", tmp_path / "out"
    image.write_bytes(iso_image("DISC", {"vmlinuz": b"k" * 500_000}))
    os.truncate(image, 200_000)
    with pytest.raises(ValueError, match="ends in the middle of /vmlinuz"):
        extract(image, "/vmlinuz", out)
    made = pycdlib.PyCdlib()
    made.new(rock_ridge="1.09")
    made.add_symlink("/LINK.;1", "vmlinuz", "elsewhere")
    made.write(str(image))
    made.close()
    with pytest.raises(ValueError, match="it is damaged"):
        extract(image, "/vmlinuz", out)
