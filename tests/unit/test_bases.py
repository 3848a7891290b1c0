"""The bases room without a build: definitions, digests, images put in by hand, records, what is removed and what stays."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest

from pocketcloud.bases import bootstrap, builder, definitions, importing, records
from pocketcloud.bases.needs import Ground
from pocketcloud.errors import BadDocument, HostLacks, NotFound, Refused, UsageError
from pocketcloud.model.base import Arch, Base, BootstrapDefinition, Download, Firmware
from pocketcloud.model.kit import Kit
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import MIB, Size
from pocketcloud.storage import Storage, open_storage
from tests.bootsector import boot_sector
from tests.built_base import kit_in


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return kit_in(tmp_path / "kit")


@pytest.fixture
def storage(kit: Kit) -> Storage:
    return open_storage(kit)


@pytest.fixture
def debian() -> BootstrapDefinition:
    definition = definitions.find("debian-12")
    assert isinstance(definition, BootstrapDefinition)
    return definition


def image(folder: Path, text: str) -> Path:
    path = folder / f"{text}.img"
    path.write_bytes(boot_sector(text).ljust(MIB, b"\0"))
    return path


def with_esp(folder: Path) -> Path:
    path = folder / "esp.img"
    path.write_bytes(bytes(4 * MIB))
    subprocess.run(["sfdisk", "-q", path], input=b"label: gpt\ntype=uefi\n", check=True)
    return path


def register(kit: Kit, storage: Storage, name: str, arch: Arch, source: Path, firmware: Firmware) -> Base:
    """The base that `base import` makes of an image."""
    wanted = importing.Import(Name(name), arch, Download(file=str(source)), firmware)
    return importing.import_image(kit, storage, wanted, silent).base


def silent(_text: str, _fraction: float) -> None:
    """Progress nobody looks at."""


def test_the_shipped_definitions_are_good(debian: BootstrapDefinition) -> None:
    assert debian in definitions.available()
    assert set(debian.architectures) == set(Arch)


def test_an_unknown_base_is_answered_with_those_there_are() -> None:
    with pytest.raises(NotFound, match="debian-12") as caught:
        definitions.find("debian-1")
    assert "base list --available" in caught.value.hint


def test_a_definition_is_named_as_its_file(tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[2] / "bases/debian-12.yaml").read_text(encoding="utf-8")
    (tmp_path / "other.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(BadDocument, match="other"):
        definitions.find("other", tmp_path)


def test_the_digest_follows_every_input(debian: BootstrapDefinition) -> None:
    digest = builder.inputs_digest(debian, Arch.X86_64)
    assert digest == builder.inputs_digest(definitions.find("debian-12"), Arch.X86_64)
    others = [
        builder.inputs_digest(debian, Arch.AARCH64),
        builder.inputs_digest(dataclasses.replace(debian, packages=(*debian.packages, "nano")), Arch.X86_64),
        builder.inputs_digest(dataclasses.replace(debian, size=Size(debian.size + MIB)), Arch.X86_64),
    ]
    assert len({digest, *others}) == 4
    assert builder.volume_name(debian, Arch.X86_64, digest) == f"base.debian-12.x86_64.{digest[:12]}"


def test_what_lies_beside_the_packages_is_part_of_the_recipe() -> None:
    names = [name for name, _ in bootstrap.parts()]
    assert {"customize.sh", "seal.sh", "assemble.sh"} < set(names)
    assert any(name.startswith("tree/etc/cloud/") for name in names)
    assert names == sorted(names)


def test_the_packages_are_those_of_the_architecture(debian: BootstrapDefinition) -> None:
    wanted = bootstrap.packages(debian, Arch.AARCH64)
    assert {"linux-image-cloud-arm64", "grub-efi-arm64-signed", "shim-signed", "python3"} <= set(wanted)
    assert not [name for name in wanted if "amd64" in name]


def test_the_scripts_of_the_recipe_are_good_shell() -> None:
    scripts = sorted(Path(bootstrap.__file__).with_name("debian").glob("*.sh"))
    assert len(scripts) == 4
    # The values (ROOT_ID and so on) are put before each by the builder.
    subprocess.run(["shellcheck", "-s", "sh", "-e", "SC2154", *scripts], check=True)


def test_an_image_becomes_a_base(kit: Kit, storage: Storage, tmp_path: Path) -> None:
    source = image(tmp_path, "one")
    base = register(kit, storage, "tiny", Arch.X86_64, source, Firmware.BIOS)
    (volume,) = storage.volumes()
    assert (volume.name, volume.sealed, volume.size) == (base.volume, True, MIB)
    assert records.find(kit, "tiny", Arch.X86_64) == base
    assert records.built(kit) == (base,)
    assert content(volume.path, tmp_path) == source.read_bytes()
    assert register(kit, storage, "tiny", Arch.X86_64, source, Firmware.BIOS) == base


def test_a_qcow2_image_becomes_a_base(kit: Kit, storage: Storage, tmp_path: Path) -> None:
    source = image(tmp_path, "one")
    packed = tmp_path / "one.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", source, packed], check=True)
    register(kit, storage, "tiny", Arch.X86_64, packed, Firmware.BIOS)
    (volume,) = storage.volumes()
    assert content(volume.path, tmp_path) == source.read_bytes()


def content(volume: Path, folder: Path) -> bytes:
    raw = folder / "content.raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", volume, raw], check=True)
    return raw.read_bytes()


def test_a_newer_image_takes_the_name_and_the_one_before_is_kept(kit: Kit, storage: Storage, tmp_path: Path) -> None:
    """Nobody made it from a definition, so nobody could make it again."""
    older = [register(kit, storage, "tiny", Arch.X86_64, image(tmp_path, text), Firmware.BIOS) for text in ("one", "two")]
    newer = register(kit, storage, "tiny", Arch.X86_64, image(tmp_path, "three"), Firmware.BIOS)
    assert newer.earlier == (older[1].alone(),)
    assert {volume.name for volume in storage.volumes()} == {newer.volume, older[1].volume}


def test_an_older_base_stays_while_a_lab_stands_on_it(kit: Kit, storage: Storage, tmp_path: Path) -> None:
    older = register(kit, storage, "tiny", Arch.X86_64, image(tmp_path, "one"), Firmware.BIOS)
    storage.clone(older.volume, "lab.demo.web.1")
    newer = register(kit, storage, "tiny", Arch.X86_64, image(tmp_path, "two"), Firmware.BIOS)
    assert {volume.name for volume in storage.volumes()} == {older.volume, newer.volume, "lab.demo.web.1"}


def test_another_base_with_the_same_beginning_is_not_taken_for_an_older_one(kit: Kit, storage: Storage, tmp_path: Path) -> None:
    longer = register(kit, storage, "tiny-2", Arch.X86_64, image(tmp_path, "one"), Firmware.BIOS)
    foreign = register(kit, storage, "tiny", Arch.AARCH64, with_esp(tmp_path), Firmware.EFI)
    base = register(kit, storage, "tiny", Arch.X86_64, image(tmp_path, "three"), Firmware.BIOS)
    assert {volume.name for volume in storage.volumes()} == {longer.volume, foreign.volume, base.volume}


def test_a_base_in_use_is_not_removed(kit: Kit, storage: Storage, tmp_path: Path) -> None:
    base = register(kit, storage, "tiny", Arch.X86_64, image(tmp_path, "one"), Firmware.BIOS)
    storage.clone(base.volume, "lab.demo.web.1")
    with pytest.raises(Refused, match=r"lab\.demo\.web\.1"):
        records.remove(kit, storage, Name("tiny"), Arch.X86_64)
    assert records.find(kit, "tiny", Arch.X86_64) == base
    storage.remove("lab.demo.web.1")
    assert records.remove(kit, storage, Name("tiny"), Arch.X86_64)
    assert storage.volumes() == ()
    assert not records.remove(kit, storage, Name("tiny"), Arch.X86_64)


def test_an_architecture_that_the_definition_leaves_out(kit: Kit, storage: Storage, debian: BootstrapDefinition) -> None:
    only = dataclasses.replace(debian, architectures=(Arch.X86_64,))
    with pytest.raises(UsageError, match="aarch64"):
        builder.build(kit, storage, only, Arch.AARCH64, on_progress=silent)


def test_all_that_a_host_lacks_is_said_at_once(kit: Kit, storage: Storage, debian: BootstrapDefinition, tmp_path: Path) -> None:
    """A host with nothing: not root, no keyring, and a processor that runs neither."""
    root = tmp_path / "host"
    (root / "etc").mkdir(parents=True)
    (root / "etc/os-release").write_text("ID=debian\nVERSION_ID=12\n", encoding="utf-8")
    with pytest.raises(HostLacks) as caught:
        builder.build(
            kit, storage, debian, Arch.AARCH64, on_progress=silent, here=Ground(root, machine="x86_64", privileged=False)
        )
    for word in ("root", "keyring", "do not run"):
        assert word in caught.value.message
    for word in ("sudo", "debian-archive-keyring", "qemu-user-static", "mount -t binfmt_misc"):
        assert word in caught.value.hint
    assert storage.volumes() == ()
    assert list((kit.path / "bases").iterdir()) == []


@pytest.mark.parametrize(
    ("entry", "runs"),
    [("enabled\ninterpreter /x\nflags: PF\n", True), ("enabled\nflags: P\n", False), ("disabled\nflags: PF\n", False)],
)
def test_a_foreign_architecture_needs_its_interpreter_fixed(
    kit: Kit, storage: Storage, debian: BootstrapDefinition, tmp_path: Path, entry: str, *, runs: bool
) -> None:
    root = tmp_path / "host"
    (root / "proc/sys/fs/binfmt_misc").mkdir(parents=True)
    (root / "proc/sys/fs/binfmt_misc/qemu-aarch64").write_text(entry, encoding="utf-8")
    with pytest.raises(HostLacks) as caught:  # there is no keyring either
        builder.build(kit, storage, debian, Arch.AARCH64, on_progress=silent, here=Ground(root, "x86_64", privileged=True))
    assert ("do not run" not in caught.value.message and "flag F" not in caught.value.message) is runs
