"""Kits in folders: made, attached, found; damaged and strange ones refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest

from pocketcloud.errors import HostLacks, NotFound, Refused, UsageError
from pocketcloud.kit.attached import Places, attached_kits, find_kit, forget, register
from pocketcloud.kit.directory import init_directory, name_for
from pocketcloud.kit.manifest import kit_at, read_manifest
from pocketcloud.model.kit import TREE, Kit

NOW = "2024-01-01T00:00:00+00:00"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that QEMU could reach, which pytest's is not."""
    made = Path(mkdtemp(prefix="pocketcloud-test-", dir="/var/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def places(folder: Path) -> Places:
    return Places(folder / "default", folder / "run")


def make(places: Places, path: Path, name: str | None = None) -> Kit:
    return init_directory(places, path, name, now=NOW)


def test_a_kit_is_a_tree_with_a_manifest(places: Places, folder: Path) -> None:
    kit = make(places, folder / "My Kit (1)")
    assert kit.name == "my-kit-1"
    assert sorted(path.name for path in kit.path.iterdir()) == sorted([*TREE, "kit.json"])
    assert (kit.path / "keys").stat().st_mode & 0o777 == 0o700
    assert kit_at(kit.path) == kit
    assert attached_kits(places) == (kit,)
    assert find_kit(places, None) == find_kit(places, "my-kit-1") == kit


@pytest.mark.parametrize(
    "name", ["a b", "with 'quotes' \"both\"", "two\nlines", "end ", " begin", "漢字", "a,b=c", "%s{}", "x" * 200]
)
def test_folders_of_any_name(places: Places, folder: Path, name: str) -> None:
    kit = make(places, folder / name, "k")
    assert attached_kits(places) == (kit,)
    assert kit.path == folder / name


@pytest.mark.parametrize(
    ("name", "kit"), [("Überraschung", "berraschung"), ("--", "kit"), ("2go", "kit"), ("x" * 99, "x" * 31), ("漢", "kit")]
)
def test_a_name_is_made_from_the_folder_s(name: str, kit: str) -> None:
    assert name_for(Path("/srv") / name, Path("/var/lib/pocketcloud")) == kit
    assert name_for(Path("/var/lib/pocketcloud"), Path("/var/lib/pocketcloud")) == "default"


@pytest.mark.parametrize("name", ["", "A", "a b", "../x", "a" * 32, "a\n", "ж"])
def test_strange_kit_names_are_refused_and_nothing_is_made(places: Places, folder: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is not a name"):
        make(places, folder / "kit", name)
    assert not (folder / "kit").exists()


def test_a_folder_with_something_in_it_is_left_alone(places: Places, folder: Path) -> None:
    (folder / "photos" / "keys").mkdir(parents=True)
    (folder / "photos" / "a.jpg").touch()
    with pytest.raises(Refused, match=r"is not empty: it has 'a\.jpg'"):
        make(places, folder / "photos")
    (folder / "file").touch()
    with pytest.raises(Refused, match="is not a folder"):
        make(places, folder / "file")
    assert sorted(path.name for path in (folder / "photos").iterdir()) == ["a.jpg", "keys"]


def test_an_interrupted_init_is_completed(places: Places, folder: Path) -> None:
    (folder / "kit" / "labs").mkdir(parents=True)
    with pytest.raises(NotFound, match="no kit there"):
        kit_at(folder / "kit")
    assert make(places, folder / "kit").path == folder / "kit"
    with pytest.raises(Refused, match="there is a kit at"):
        make(places, folder / "kit", "other")


def test_a_folder_that_qemu_cannot_reach_is_refused(places: Places, folder: Path) -> None:
    (folder / "home").mkdir(mode=0o700)
    with pytest.raises(HostLacks, match="others may not enter") as refused:
        make(places, folder / "home" / "kit")
    assert f"chmod o+x {folder / 'home'}" in refused.value.hint


def test_names_and_ids_are_unique_among_attached_kits(places: Places, folder: Path) -> None:
    one = make(places, folder / "one", "usb")
    with pytest.raises(Refused, match="a kit named usb is attached already"):
        make(places, folder / "two", "usb")
    shutil.copytree(one.path, folder / "copy")
    with pytest.raises(Refused, match="is a copy of usb"):
        register(places, folder / "copy")
    assert register(places, folder / "one" / ".." / "one") == one
    assert forget(places, one.name, one.path)
    assert register(places, folder / "copy").id == one.id


def test_several_kits_have_to_be_told_apart(places: Places, folder: Path) -> None:
    kits = [make(places, folder / name) for name in ("b", "a")]
    assert [kit.name for kit in attached_kits(places)] == ["a", "b"]
    with pytest.raises(UsageError, match="several kits are attached: a, b"):
        find_kit(places, None)
    with pytest.raises(NotFound, match="no kit 'c' is attached; attached: a, b"):
        find_kit(places, "c")
    assert find_kit(places, "b") == kits[0]


def test_a_kit_that_is_unplugged_is_not_there(places: Places, folder: Path) -> None:
    kit = make(places, folder / "usb")
    kit.path.rename(folder / "elsewhere")
    assert attached_kits(places) == ()
    with pytest.raises(NotFound, match="there is no kit here"):
        find_kit(places, None)


def test_the_default_kit_is_attached_by_being_there(places: Places) -> None:
    kit = make(places, places.default)
    assert kit.name == "default"
    assert not forget(places, kit.name, kit.path)
    assert attached_kits(places) == (kit,)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b"[]", "damaged"),
        (b'{"name": "x"}', "damaged"),
        (b"[" * 5000, "damaged"),
        (None, "made by a newer pocketcloud"),
    ],
)
def test_a_manifest_that_is_damaged_or_too_new(places: Places, folder: Path, content: bytes | None, words: str) -> None:
    kit = make(places, folder / "kit")
    manifest = kit.path / "kit.json"
    if content is None:
        content = json.dumps(json.loads(manifest.read_text()) | {"schema": 2}).encode()
    manifest.write_bytes(content)
    with pytest.raises(Refused, match=words) as refused:
        read_manifest(kit.path)
    assert refused.value.hint
    assert manifest.read_bytes() == content


def test_places_come_from_the_environment() -> None:
    usual = Places()
    assert usual.locks == Path("/run/pocketcloud/locks")
    assert usual.entries == Path("/run/pocketcloud/kits")
