"""What the cache says that it lacks, for builds and for people; and when a computer counts as one without a network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pocketcloud.bases import bootstrap, builder, definitions
from pocketcloud.bases.mirror import from_cache
from pocketcloud.cache.addresses import key_of
from pocketcloud.cache.store import Store, folder_of, id_of
from pocketcloud.cache.supply import KitSupply, archive_of, not_kept, repositories_of, state_of
from pocketcloud.cache.syncing import checked_reference, image_key, joined, prune
from pocketcloud.errors import NotFound, UsageError
from pocketcloud.host.network import has_way_out
from pocketcloud.model.base import (
    Arch,
    BootstrapDefinition,
    Builder,
    ImageDefinition,
    InstallDefinition,
    LayerDefinition,
    Registration,
)
from pocketcloud.model.cache import CACHE_SCHEMA, Collection, Kind, Stored, Wish
from pocketcloud.model.kit import Kit
from pocketcloud.model.names import Name
from pocketcloud.storage import open_storage
from tests.built_base import kit_in

WISH = Wish(Kind.BASE, "debian-12", Arch.X86_64)
POOL = "mirrors.kernel.org/debian/pool"


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return kit_in(tmp_path / "kit")


@pytest.fixture
def debian() -> BootstrapDefinition:
    found = definitions.find("debian-12")
    assert isinstance(found, BootstrapDefinition)
    return found


def put(store: Store, content: bytes) -> Stored:
    store.make()
    (store.folder / "work/new").write_bytes(content)
    return store.adopt(store.folder / "work/new")


def fill(kit: Kit, names: tuple[str, ...]) -> Collection:
    """A collection with a file for each package."""
    store = Store(folder_of(kit))
    files = {f"{POOL}/{name}_1_amd64.deb": put(store, name.encode()) for name in names}
    made = Collection(CACHE_SCHEMA, "tests", "2024-01-01T00:00:00+00:00", names, files)
    store.publish(id_of(WISH), made)
    return made


def test_all_that_is_missing_is_told_before_anything_is_begun(kit: Kit, debian: BootstrapDefinition) -> None:
    supply = KitSupply(kit)
    assert supply.lacking(debian, Arch.X86_64) == ("all of base debian-12 (x86_64): it was never synced",)
    names = bootstrap.packages(debian, Arch.X86_64)
    made = fill(kit, tuple(name for name in names if name not in ("curl", "less")))
    store = Store(folder_of(kit))
    store.path(made.files[f"{POOL}/dbus_1_amd64.deb"].sha256).unlink()
    store.path(made.files[f"{POOL}/udev_1_amd64.deb"].sha256).write_bytes(b"uuuu")
    lacking = ("the package curl", "the package less", f"{POOL}/udev_1_amd64.deb (damaged)", f"{POOL}/dbus_1_amd64.deb (missing)")
    assert supply.lacking(debian, Arch.X86_64) == lacking
    with pytest.raises(NotFound) as caught:
        builder.build(kit, open_storage(kit), debian, Arch.X86_64, supply=supply, on_progress=lambda _text, _part: None)
    assert all(line in caught.value.message for line in lacking)
    assert "pocketcloud cache add debian-12" in caught.value.hint
    assert not list((kit.path / "media").glob(".work*"))
    fill(kit, names)
    assert supply.lacking(debian, Arch.X86_64) == ()
    assert supply.lacking(replace(debian, packages=(*debian.packages, "nano")), Arch.X86_64) == ("the package nano",)
    assert supply.lacking(debian, Arch.AARCH64) == ("all of base debian-12 (aarch64): it was never synced",)


def test_the_state_is_told_without_reading_contents(kit: Kit, debian: BootstrapDefinition) -> None:
    assert state_of(kit, WISH) == "never synced"
    made = fill(kit, bootstrap.packages(debian, Arch.X86_64))
    assert state_of(kit, WISH) == ""
    assert state_of(kit, replace(WISH, packages=("nginx",))) == "lacks nginx"
    Store(folder_of(kit)).path(made.files[f"{POOL}/dbus_1_amd64.deb"].sha256).unlink()
    assert "1 of" in state_of(kit, WISH)


def test_builds_from_the_cache_go_by_its_proxy(debian: BootstrapDefinition) -> None:
    mirror, options = from_cache(replace(debian, mirror="https://deb.example/debian/"), "http://127.0.0.1:3143")
    assert mirror.archive == "http://deb.example/debian"
    assert 'Acquire::http::Proxy "http://127.0.0.1:3143";' in options
    assert "Check-Valid-Until" in options


def test_what_ubuntus_installer_fetches_is_kept_by_the_definitions_addresses() -> None:
    ubuntu = definitions.find("ubuntu-2404")
    assert not_kept(ubuntu) == ""
    plain, ports = archive_of(ubuntu, Arch.X86_64), archive_of(ubuntu, Arch.AARCH64, ("nginx",))
    assert plain is not None
    assert ports is not None
    assert (plain.mirror, plain.security, plain.suite, plain.there) == (
        "http://archive.ubuntu.com/ubuntu", "http://security.ubuntu.com/ubuntu", "noble", ()
    )  # fmt: skip
    assert ports.mirror == ports.security == "http://ports.ubuntu.com/ubuntu-ports"
    assert "universe" in plain.components
    assert {"linux-generic", "shim-signed", "cloud-init", "grub-efi-amd64-signed", "grub-pc-bin"} <= set(plain.packages)
    assert {"linux-generic", "shim-signed", "cloud-init", "grub-efi-arm64-signed"} <= set(ports.packages)
    assert ports.extra == ("nginx",)


def test_packages_on_a_cloud_image_are_kept_where_its_definition_says(kit: Kit) -> None:
    image = definitions.find("debian-12-cloud")
    assert isinstance(image, ImageDefinition)
    assert archive_of(image, Arch.X86_64) is None, "without packages nothing of an archive is wanted"
    added = replace(image, packages=("nano",))
    archive = archive_of(added, Arch.X86_64, ("nginx",))
    assert archive is not None
    assert (archive.mirror, archive.packages, archive.extra, archive.there) == (image.tree, ("nano",), ("nginx",), ())
    lacking = KitSupply(kit).lacking(added, Arch.X86_64)
    assert lacking[-1] == "all of base debian-12-cloud (x86_64): it was never synced"
    silent = replace(added, tree="", suite="")
    assert "`tree:` and `suite:`" in not_kept(silent)
    assert "its packages (nano)" in KitSupply(kit).lacking(silent, Arch.X86_64)[0]
    assert "nginx" in not_kept(replace(silent, packages=()), ("nginx",))
    assert not_kept(replace(silent, packages=())) == ""


def test_packages_on_a_cloud_image_of_rpms_come_from_its_repositories(kit: Kit) -> None:
    image = definitions.find("rocky-9-cloud")
    assert isinstance(image, ImageDefinition)
    assert repositories_of(image, Arch.X86_64) == ("", ())
    tree, repos = repositories_of(image, Arch.AARCH64, ("nginx",))
    assert (tree, len(repos)) == ("", 2)
    assert all("/aarch64/os/" in url for url in repos)
    added = replace(image, packages=("nginx", "nano"))
    store = Store(folder_of(kit))
    files = {key_of(f"{url}Packages/n/{name}"): put(store, b"x") for url in repositories_of(added, Arch.X86_64)[1]
             for name in ("nginx-1.2-3.el9.x86_64.rpm", "repodata/repomd.xml")}  # fmt: skip
    store.publish(id_of(Wish(Kind.BASE, image.base, Arch.X86_64)), Collection(CACHE_SCHEMA, "", "", files=files))
    lacking = KitSupply(kit).lacking(added, Arch.X86_64)
    assert [line for line in lacking if "package" in line] == ["the package nano"]
    assert "`repos:`" in not_kept(replace(added, repos={}))


def test_where_packages_of_a_cloud_image_are_kept_makes_no_other_base() -> None:
    image = definitions.find("debian-12-cloud")
    assert isinstance(image, ImageDefinition)
    plain = replace(image, tree="", suite="", keyring="", repos={})
    assert builder.inputs_digest(image, Arch.X86_64) == builder.inputs_digest(plain, Arch.X86_64)
    assert builder.inputs_digest(image, Arch.X86_64) != builder.inputs_digest(replace(image, packages=("nano",)), Arch.X86_64)


def test_what_debians_installer_fetches_is_kept_by_the_definitions_addresses(kit: Kit) -> None:
    preseed = definitions.find("debian-12-installer")
    assert isinstance(preseed, InstallDefinition)
    assert not_kept(preseed) == ""
    archive = archive_of(preseed, Arch.AARCH64, ("nginx",))
    assert archive is not None
    assert (archive.mirror, archive.suite, archive.extra) == (preseed.tree, "bookworm", ("nginx",))
    assert archive.security == preseed.repos[Name("security")]
    assert {"linux-image-arm64", "grub-efi-arm64"} <= set(archive.installer)
    assert {"cloud-init", "systemd-resolved", *preseed.packages} <= set(archive.packages)
    supply, store = KitSupply(kit), Store(folder_of(kit))
    assert supply.lacking(preseed, Arch.X86_64) == ("all of base debian-12-installer (x86_64): it was never synced",)
    store.make()
    wish = Wish(Kind.BASE, preseed.base, Arch.X86_64)
    store.publish(id_of(wish), Collection(CACHE_SCHEMA, "", ""))
    lacking = supply.lacking(preseed, Arch.X86_64)
    assert {"the package linux-image-amd64", "the package vim-tiny", "the packages that the installer is made of"} <= set(lacking)
    assert any(
        line.startswith("of the installer http") and line.endswith("/netboot/debian-installer/amd64/linux") for line in lacking
    )
    assert state_of(kit, wish).startswith("lacks ")


def test_a_kickstarts_trees_and_repositories_are_kept(kit: Kit) -> None:
    preseed = InstallDefinition(
        base=Name("x"),
        title="",
        family="fedora",
        version="44",
        architectures=(Arch.X86_64,),
        builder=Builder.KICKSTART,
        template="x",
    )
    kickstart = replace(preseed, tree="https://h.example/{arch}/os/", repos={Name("extra"): "https://h.example/x/"})
    assert repositories_of(kickstart, Arch.X86_64) == ("https://h.example/x86_64/os/", ("https://h.example/x/",))
    wish = Wish(Kind.BASE, "x", Arch.X86_64)
    store = Store(folder_of(kit))
    store.publish(id_of(wish), Collection(CACHE_SCHEMA, "", "", files={"h.example/x86_64/os/a": put(store, b"a")}))
    supply = KitSupply(kit)
    assert supply.lacking(kickstart, Arch.X86_64) == ("all of https://h.example/x/",)
    assert "registered" in supply.lacking(replace(kickstart, registration=Registration("/etc/key")), Arch.X86_64)[0]
    found = supply.kept("http://h.example/x86_64/os/a")
    assert found is not None
    assert found.read_bytes() == b"a"
    assert [supply.kept(url) for url in ("https://h.example/x86_64/os/b", "ftp://h.example/x86_64/os/a")] == [None, None]
    found.write_bytes(b"b")
    assert supply.kept("http://h.example/x86_64/os/a") is None, "damaged"


def test_a_wish_is_added_to_the_one_that_is_there() -> None:
    for_lab = replace(WISH, packages=("nano",), labs=(Name("demo"),), asked=False)
    assert joined((for_lab,), replace(WISH, packages=("vim",))) == (replace(for_lab, packages=("nano", "vim"), asked=True),)
    other = Wish(Kind.IMAGE, "nginx", Arch.X86_64)
    assert joined((WISH,), other) == (WISH, other)


def test_prune_leaves_what_is_needed(kit: Kit) -> None:
    store = Store(folder_of(kit))
    kept, gone = Wish(Kind.FILE, "http://h.example/a", Arch.X86_64), Wish(Kind.FILE, "http://h.example/b", Arch.X86_64)
    store.wish(kept, gone)
    for wish in (kept, gone):
        store.publish(id_of(wish), Collection(CACHE_SCHEMA, "", "", files={wish.name: put(store, wish.name.encode() * 9000)}))
    stale = put(store, b"replaced by a newer one" * 9000)
    (store.work(id_of(gone))).mkdir()
    assert prune(store, (kept,)) > 2 * len(b"http://h.example/b" * 9000)
    assert store.wishes() == (kept,)
    assert list(store.collections()) == [id_of(kept)]
    assert not store.path(stale.sha256).exists()
    assert store.missing(store.collections()[id_of(kept)]) == ()
    assert list((store.folder / "work").iterdir()) == []


def test_references_of_container_images() -> None:
    assert checked_reference("docker://docker.io/library/nginx:1.27") == "docker.io/library/nginx:1.27"
    assert image_key("quay.io/podman/hello:latest") == "images/quay.io/podman/hello:latest.tar"
    assert image_key("quay.io/podman/hello:latest", Arch.AARCH64) == "images/aarch64/quay.io/podman/hello:latest.tar"
    for bad in ("--all", "a b", "http://h/x", "../x", "x;y", "docker-daemon:x y", ""):
        with pytest.raises(UsageError):
            checked_reference(bad)


ROUTES = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
DEFAULT = "eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
LOCAL = "eth0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
NONE = "0" * 32
REJECTED = f"{NONE} 00 {NONE} 00 {NONE} ffffffff 00000001 00000000 00200200       lo\n"
SIX = f"{NONE} 00 {NONE} 00 fe80{'0' * 27}1 00000400 00000003 00000000 00000003     eth0\n"


@pytest.mark.parametrize(
    ("four", "six", "way"),
    [
        (ROUTES + DEFAULT + LOCAL, REJECTED, True),
        (ROUTES + LOCAL, REJECTED, False),
        (ROUTES + LOCAL, SIX + REJECTED, True),
        (ROUTES, "", False),
        ("", "", False),
        (ROUTES + DEFAULT.replace("eth0", "lo"), "", False),
        (ROUTES + DEFAULT.replace("0003", "0002"), "", False),
    ],
)
def test_a_way_out_is_a_default_route(tmp_path: Path, four: str, six: str, way: bool) -> None:
    net = tmp_path / "proc/net"
    net.mkdir(parents=True)
    (net / "route").write_text(four)
    (net / "ipv6_route").write_text(six)
    assert has_way_out(tmp_path) is way


def test_a_layer_finds_its_packages_where_it_or_its_base_was_synced(kit: Kit, debian: BootstrapDefinition) -> None:
    store = Store(folder_of(kit))
    layer = LayerDefinition(
        base=Name("web"), title="", family="debian", version="12", architectures=(Arch.X86_64,), builder=Builder.LAYER,
        packages=("nginx",), from_=Name("debian-12"),
    )  # fmt: skip
    supply = KitSupply(kit)
    assert supply.lacking(replace(layer, packages=()), Arch.X86_64) == ()
    assert supply.lacking(layer, Arch.X86_64) == ("all of base web (x86_64): it was never synced",)
    fill(kit, bootstrap.packages(debian, Arch.X86_64))
    assert supply.lacking(layer, Arch.X86_64) == ("the package nginx",)
    own = Wish(Kind.BASE, "web", Arch.X86_64)
    stored = put(store, b"nginx")
    store.publish(id_of(own), Collection(CACHE_SCHEMA, "", "", files={f"{POOL}/nginx_1_amd64.deb": stored}))
    assert supply.lacking(layer, Arch.X86_64) == ()
    store.path(stored.sha256).write_bytes(b"n????")
    assert supply.lacking(layer, Arch.X86_64) == (f"{POOL}/nginx_1_amd64.deb (damaged)",)
    cloud = replace(layer, from_=Name("debian-12-cloud"))
    assert supply.lacking(cloud, Arch.X86_64) == (f"{POOL}/nginx_1_amd64.deb (damaged)",)
    on_fedora = replace(layer, from_=Name("fedora-44"))
    assert supply.lacking(on_fedora, Arch.X86_64)[0] == "the package nginx"
    rpm = {"h.example/os/Packages/nginx-1.2-3.fc44.x86_64.rpm": put(store, b"rpm")}
    store.publish(id_of(own), Collection(CACHE_SCHEMA, "", "", files=rpm))
    assert supply.lacking(on_fedora, Arch.X86_64) == ()
