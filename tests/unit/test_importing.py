"""Images that become bases: by `base import` and by the builder `cloud-image`, as far as no guest is needed."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketcloud import guest_packages
from pocketcloud.bases import builder, customize, records
from pocketcloud.bases.cloud_image import check_room
from pocketcloud.bases.disk_image import Disk, Format
from pocketcloud.bases.importing import Import, import_image
from pocketcloud.cache.supply import KitSupply
from pocketcloud.documents import parse_yaml
from pocketcloud.errors import HostLacks, NoSpace, NotFound, PocketcloudError, Refused, UsageError
from pocketcloud.model.base import Arch, Download, Firmware, ImageDefinition
from pocketcloud.model.kit import Kit
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import MIB
from pocketcloud.storage import Storage, open_storage
from tests.built_base import kit_in
from tests.signers import Signers, signers
from tests.web import Web, serving

TOP = Path(__file__).resolve().parents[2]
SIZE = 8 * MIB


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return kit_in(tmp_path / "kit")


@pytest.fixture
def storage(kit: Kit) -> Storage:
    return open_storage(kit)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A disk with an EFI system partition, and something in it."""
    return disk(tmp_path / "box.raw", "type=uefi")


@pytest.fixture(scope="module")
def gnupg() -> Iterator[Signers]:
    with signers() as home:
        home.key("vendor")
        home.key("stranger")
        yield home


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as server:
        yield server


def disk(path: Path, partition: str) -> Path:
    path.touch()
    os.truncate(path, SIZE)
    subprocess.run(["sfdisk", "-q", path], input=f"label: gpt\n{partition}\n".encode(), check=True)
    with path.open("r+b") as file:
        file.seek(2 * MIB)
        file.write(path.name.encode() * 1000)
    return path


def quiet(_text: str, _share: float) -> None:
    """Progress nobody looks at."""


def content(storage: Storage, folder: Path) -> bytes:
    (volume,) = storage.volumes()
    target = folder / "content"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", volume.path, target], check=True)
    return target.read_bytes()


def remains(kit: Kit) -> list[str]:
    """What is in the kit, but for its empty tree and its downloads."""
    folders = ("bases", "volumes")
    left = [path for folder in folders for path in (kit.path / folder).rglob("*")]
    return sorted(str(path.relative_to(kit.path)) for path in [*left, *(kit.path / "media").glob(".*")])


# -- import -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["raw", "qcow2", "vmdk", "vdi", "vhdx"])
def test_a_disk_of_any_format_becomes_a_base(kit: Kit, storage: Storage, raw: Path, tmp_path: Path, form: str) -> None:
    path = tmp_path / f"appliance.{form}"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", form, raw, path], check=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    told: list[float] = []
    wanted = Import(Name("box"), Arch.X86_64, Download(file=str(path), sha256=digest), title="A box")
    built = import_image(kit, storage, wanted, lambda _text, share: told.append(share))
    assert built.fresh
    base = built.base
    assert (base.firmware, base.digest, base.title) == (Firmware.EFI, digest, "A box")
    assert base.made_with == f"import of an image ({form}, sha256 {digest})"
    assert content(storage, tmp_path) == raw.read_bytes()
    assert storage.volumes()[0].sealed
    assert told == sorted(told)
    assert told[-1] == 1.0
    again = import_image(kit, storage, wanted, quiet)
    assert (again.base, again.fresh) == (base, False)
    noted = import_image(kit, storage, dataclasses.replace(wanted, firmware=Firmware.BIOS), quiet).base
    assert (noted.firmware, noted.volume) == (Firmware.BIOS, base.volume)
    assert records.built(kit) == (noted,)


def test_a_packed_disk_in_an_archive(kit: Kit, storage: Storage, raw: Path, tmp_path: Path) -> None:
    (tmp_path / "box.img.gz").write_bytes(gzip.compress(raw.read_bytes()))
    archive = tmp_path / "box.ova"
    subprocess.run(["tar", "-cf", archive, "-C", tmp_path, "box.img.gz"], check=True)
    import_image(kit, storage, Import(Name("box"), Arch.AARCH64, Download(file=str(archive))), quiet)
    assert content(storage, tmp_path) == raw.read_bytes()
    assert not [name for name in remains(kit) if "work" in name]


def test_signatures_of_what_is_imported(kit: Kit, storage: Storage, raw: Path, tmp_path: Path, gnupg: Signers) -> None:
    keys, signature = gnupg.ring(tmp_path / "keys", "vendor"), tmp_path / "box.sig"
    image = Download(file=str(raw), signature=str(signature), keyring=str(keys))
    wanted = Import(Name("box"), Arch.X86_64, image)
    for who, what, words in (("stranger", raw.read_bytes(), "not among those"), ("vendor", b"else", "not of this content")):
        signature.write_bytes(gnupg.detached(who, what))
        with pytest.raises(Refused, match=words):
            import_image(kit, storage, wanted, quiet)
    assert remains(kit) == []
    signature.write_bytes(gnupg.detached("vendor", raw.read_bytes()))
    assert ", signed by " in import_image(kit, storage, wanted, quiet).base.made_with


def test_what_is_not_imported_leaves_nothing(kit: Kit, storage: Storage, raw: Path, tmp_path: Path) -> None:
    overlay, bad, old = tmp_path / "overlay", tmp_path / "bad.gz", disk(tmp_path / "old.raw", "type=linux")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", raw, overlay], check=True)
    bad.write_bytes(gzip.compress(raw.read_bytes())[:-100])
    cases: list[tuple[Path, str, Arch, type[PocketcloudError]]] = [
        (raw, "0" * 64, Arch.X86_64, Refused),
        (overlay, "", Arch.X86_64, Refused),
        (bad, "", Arch.X86_64, Refused),
        (tmp_path / "none", "", Arch.X86_64, NotFound),
        (old, "", Arch.AARCH64, Refused),
    ]
    for path, sha256, arch, kind in cases:
        with pytest.raises(kind):
            import_image(kit, storage, Import(Name("box"), arch, Download(file=str(path), sha256=sha256)), quiet)
    assert remains(kit) == []


def test_an_image_that_the_store_cannot_take(storage: Storage) -> None:
    with pytest.raises(NoSpace, match="takes 1048576 TiB in the kit"):
        check_room(Disk(Path("/x"), Format.RAW, SIZE, 1 << 60, Firmware.EFI), storage)


def cli(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"POCKETCLOUD_DEFAULT_KIT": str(folder / "default"), "POCKETCLOUD_RUN_DIR": str(folder / "run")}
    argv = [sys.executable, "-m", "pocketcloud", "base", *map(str, words)]
    return subprocess.run(argv, env=env, cwd=TOP, capture_output=True, text=True, check=False)


@pytest.fixture
def room() -> Iterator[Path]:
    """A folder that QEMU's user can reach, as kits have to be."""
    with tempfile.TemporaryDirectory(prefix="pocketcloud-import-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_the_command(raw: Path, room: Path) -> None:
    done = cli(room, "import", "box", raw, "--firmware", "bios", "--title", "A box")
    assert "Base box (x86_64) is imported" in done.stdout, done.stderr
    assert "started by bios" in done.stdout
    assert "nothing to do" in cli(room, "import", "box", raw, "--firmware", "bios", "--title", "A box").stdout
    (shown,) = json.loads(cli(room, "list", "-o", "json").stdout)
    assert (shown["base"]["name"], shown["base"]["title"]) == ("box", "A box")
    other = raw.with_name("other.raw")
    other.write_bytes(raw.read_bytes()[:-1] + b"?")
    again = cli(room, "import", "box", other, "--firmware", "bios")
    assert "is kept: pocketcloud base rollback box" in again.stdout, again.stderr
    assert cli(room, "rollback", "box", "-y").returncode == 0
    assert json.loads(cli(room, "list", "-o", "json").stdout)[0]["base"]["title"] == "A box"
    for words, code, said in (
        (("import", "box", raw, "--sha256", "00"), 2, "expected 64 hexadecimal digits"),
        (("import", "box", raw, "--signature", "x"), 2, "--keyring"),
        (("import", "box", raw, "--sha256", "0" * 64), 5, "not the right file"),
        (("import", "box", room), 4, "no such file"),
        (("import", "box", raw, "--arch", "aarch64", "--firmware", "bios"), 5, "no BIOS"),
    ):
        answer = cli(room, *words)
        assert answer.returncode == code, answer.stderr
        assert said in answer.stderr
        assert "Traceback" not in answer.stderr


# -- cloud-image ------------------------------------------------------------------------------------------------------


def defined(image: str, *, size: str = "16MiB", more: str = "") -> ImageDefinition:
    text = "base: cloud\ntitle: A cloud\nfamily: debian\nversion: '12'\nbuilder: cloud-image\narchitectures: [x86_64]\n"
    return parse_yaml(f"{text}size: {size}\nimages:\n  x86_64: {{{image}}}\n{more}", ImageDefinition, "cloud.yaml")


def build(kit: Kit, definition: ImageDefinition, *, offline: bool = False, force: bool = False) -> builder.Built:
    supply = KitSupply(kit) if offline else None
    return builder.build(kit, open_storage(kit), definition, Arch.X86_64, on_progress=quiet, supply=supply, force=force)


def test_a_signed_image_from_a_server(kit: Kit, storage: Storage, raw: Path, tmp_path: Path, web: Web, gnupg: Signers) -> None:
    keys, packed = gnupg.ring(tmp_path / "keys", "vendor"), gzip.compress(raw.read_bytes())
    url = web.put("/cloud.img.gz", packed, etag='"1"')
    sums = f"SHA256 (cloud.img.gz) = {hashlib.sha256(packed).hexdigest()}\n".encode()
    web.put("/CHECKSUM", gnupg.clearsigned("vendor", sums))
    definition = defined(f"url: '{url}', sums: '{web.url('/CHECKSUM')}', keyring: {keys}")
    built = build(kit, definition)
    assert (built.fresh, built.base.firmware) == (True, Firmware.EFI)
    assert content(storage, tmp_path) == raw.read_bytes().ljust(16 * MIB, b"\0")
    # Nothing changed: nobody is asked. Forced: the list is; and with no network the image is here.
    asked = len(web.asked)
    assert not build(kit, definition).fresh
    assert len(web.asked) == asked
    assert build(kit, definition, force=True).fresh
    assert web.paths().count("/cloud.img.gz") == 1
    assert build(kit, definition, force=True, offline=True).fresh


def test_an_image_that_is_not_here_offline(kit: Kit, web: Web) -> None:
    definition = defined(f"url: '{web.put('/a', b'x')}', sha256: '{'0' * 64}'")
    with pytest.raises(NotFound, match="cannot be built offline"):
        build(kit, definition, offline=True)
    assert web.asked == []


def test_images_that_do_not_become_a_base(kit: Kit, raw: Path, tmp_path: Path, web: Web) -> None:
    old = disk(tmp_path / "old.raw", "type=linux").read_bytes()
    page = b"<!doctype html><title>Log in</title>"
    for body, image, kind, words in (
        (raw.read_bytes(), f"sha256: '{'0' * 64}'", Refused, "not the right file"),
        (old, f"sha256: {hashlib.sha256(old).hexdigest()}", Refused, "no EFI system partition"),
        (page, f"sha256: {hashlib.sha256(page).hexdigest()}", HostLacks, "web page"),
        (old, f"sums: '{web.url('/SUMS')}'", Refused, "without TLS"),
    ):
        url = web.put("/image", body)
        definition = defined(f"url: '{url}', {image}")
        with pytest.raises(kind, match=words):
            build(kit, definition)
        assert remains(kit) == []
    sha256 = hashlib.sha256(old).hexdigest()
    assert build(kit, defined(f"file: {tmp_path / 'old.raw'}, sha256: {sha256}", more="firmware: bios\n")).fresh


# -- what a guest is given --------------------------------------------------------------------------------------------


def test_the_digest_follows_what_is_done_in_a_guest() -> None:
    plain, with_step = defined("file: /x"), defined("file: /x", more="post: [echo]\n")
    assert not customize.wanted(plain)
    assert customize.wanted(with_step)
    assert builder.inputs_digest(plain, Arch.X86_64) != builder.inputs_digest(with_step, Arch.X86_64)
    assert {"guest/customize.sh", "guest/seal.sh"} < dict(customize.parts()).keys()


def test_what_a_definition_says_stays_data() -> None:
    """Steps and patches are files of their own; in the user-data there is nothing of the definition."""
    post = 'echo "$(id)" \'it\'"\\"s\n%pre\n#cloud-config\n'
    definition = dataclasses.replace(
        defined("file: /x"), packages=("vim", "libc6:arm64"), post=(post, "true"), patches=("--- a",)
    )
    files = customize.seed_files(definition, Arch.X86_64, "0123")
    assert files["post-001"] == f"{post}\n".encode()
    assert files["packages"] == b"vim\nlibc6:arm64\n"
    assert set(files) >= {"build", "patch-001", "post-002", "customize.sh", "seal.sh", "meta-data"}
    assert files["user-data"] == customize.seed_files(defined("file: /x"), Arch.X86_64, "4567")["user-data"]
    json.loads(files["user-data"].partition(b"\n")[2])


@pytest.mark.parametrize("name", ["-y", "a b", "$(id)", "a;b", "", "../a", "a\nb", "--allow-downgrades"])
def test_packages_that_no_package_manager_knows(kit: Kit, raw: Path, name: str) -> None:
    definition = dataclasses.replace(defined(f"file: {raw}"), packages=(name,))
    with pytest.raises(UsageError, match="no package is called"):
        build(kit, definition)


def test_progress_goes_one_way(kit: Kit, raw: Path) -> None:
    said: list[float] = []
    sha256 = hashlib.sha256(raw.read_bytes()).hexdigest()
    definition = defined(f"file: {raw}, sha256: {sha256}")
    builder.build(kit, open_storage(kit), definition, Arch.X86_64, on_progress=lambda _text, share: said.append(share))
    assert said == sorted(said)
    assert said[-1] == 1.0


def test_packages_need_a_network(kit: Kit, raw: Path) -> None:
    with pytest.raises(NotFound, match=r"its packages \(vim\): its definition does not say where"):
        build(kit, dataclasses.replace(defined(f"file: {raw}"), packages=("vim",)), offline=True)


def test_the_scripts_for_guests_are_good_shell() -> None:
    scripts = [*sorted(Path(customize.__file__).with_name("guest").glob("*.sh")), guest_packages.SCRIPT]
    assert [script.name for script in scripts] == ["customize.sh", "seal.sh", "guest_packages.sh"]
    subprocess.run(["shellcheck", "-s", "sh", *scripts], check=True)
