"""A kit in a folder is copied to another folder: volumes, what they share, records; killed anywhere, it is no kit."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pocketcloud.copies.clone import Copied
from pocketcloud.copies.filling import Contents, Progress, check, contents_of, fill
from pocketcloud.copies.folder import WantedFolder, checked_folder
from pocketcloud.copies.logical import clone_by_volume
from pocketcloud.copies.reading import reading_of
from pocketcloud.errors import NotFound, PocketcloudError, Refused
from pocketcloud.events import Event
from pocketcloud.files import remove_tree
from pocketcloud.kit.attach import attach
from pocketcloud.kit.attached import Places
from pocketcloud.kit.directory import init_directory
from pocketcloud.kit.manifest import kit_at
from pocketcloud.model.kit import Kit
from pocketcloud.model.names import Name
from pocketcloud.model.profile import Medium
from pocketcloud.model.sizes import KIB, MIB
from pocketcloud.storage import Clone, open_storage
from pocketcloud.storage.volume_data import opened
from pocketcloud.system import run
from tests.labkit import until

NOW = "2026-11-22T00:00:00+00:00"
CHUNK = 64 * KIB


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)  # noqa: S311 - keeps no secret


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where QEMU can get to, unlike pytest's own folders."""
    path = Path(tempfile.mkdtemp(prefix="pocketcloud-test-", dir="/var/tmp"))
    path.chmod(0o755)
    yield path
    remove_tree(path)


@pytest.fixture
def places(folder: Path) -> Places:
    return Places(folder / "default", folder / "run", folder / "hosts")


@pytest.fixture
def kit(places: Places, folder: Path) -> Kit:
    """A base, two layers, machines on them that wrote and zeroed something, a state, and files."""
    kit = init_directory(places, folder / "one", "one", now=NOW)
    store = open_storage(kit)

    def fill(path: Path) -> None:
        path.write_bytes(noise(8 * MIB, 1) + bytes(8 * MIB))

    store.create("base.tiny.x86_64.abc", 16 * MIB, fill)
    store.clone("base.tiny.x86_64.abc", "layer.one")
    put(kit, "layer.one", 3 * MIB, noise(MIB, 2))
    store.seal("layer.one")
    store.clone_all([Clone("layer.one", f"lab.demo.m{number}.root.g1", 32 * MIB) for number in range(3)])
    put(kit, "lab.demo.m0.root.g1", 20 * MIB, noise(CHUNK, 3))
    with opened(*store.place("lab.demo.m0.root.g1"), run, writable=True) as data:
        data.zero(2 * MIB, 3 * MIB)
    store.clone("lab.demo.m0.root.g1", "lab.demo.m0.root.g2")
    (kit.path / "labs/demo").mkdir()
    (kit.path / "labs/demo/ssh_config").write_text(f"IdentityFile {kit.path}/keys/id_ed25519\n")
    (kit.path / "media/notes").write_bytes(noise(MIB, 4))
    (kit.path / "media/ram").mkdir()
    (kit.path / "media/ram/demo.m0@clean-g1.ram").write_bytes(noise(MIB, 5))
    (kit.path / "keys/id_ed25519").write_text("secret")
    (kit.path / "keys/id_ed25519").chmod(0o600)
    (kit.path / "copies.json").write_text('{"copies": []}')
    return kit


def put(kit: Kit, name: str, at: int, content: bytes) -> None:
    with opened(*open_storage(kit).place(name), run, writable=True) as data:
        data.write(at, memoryview(content))
        data.flush()


def contents(kit: Kit) -> dict[str, tuple[object, ...]]:
    """Of each volume what it stands on, its seal, its size, and a digest of what a guest sees."""
    found: dict[str, tuple[object, ...]] = {}
    for volume in open_storage(kit).volumes():
        with opened(volume.path, volume.format, run) as data:
            seen = hashlib.blake2b(data.read(0, volume.size)).hexdigest()
        found[volume.name] = (volume.parent, volume.sealed, volume.kept, volume.size, seen)
    return found


def own(kit: Kit) -> Contents:
    with reading_of(kit, run) as reading:
        return contents_of(reading)


def chunks(_medium: Medium) -> int:
    return CHUNK


def copied(kit: Kit, places: Places, *paths: Path, stop: threading.Event | None = None) -> tuple[Copied, ...]:
    told: list[Event] = []
    wanted = [WantedFolder(checked_folder(places, path), Name(path.name)) for path in paths]
    return clone_by_volume(kit, wanted, chunks, places, run, now=NOW, stop=stop or threading.Event(), tell=told.append)


def uses(folder: Path) -> list[str]:
    """The commands that are at work on what lies in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in found if str(folder) in line]


def test_a_copy_has_all_and_shares_what_was_shared(places: Places, kit: Kit, folder: Path) -> None:
    (folder / "two").mkdir()
    (done,) = copied(kit, places, folder / "two")
    assert (done.kit, done.fault, done.device) == ("two", "", folder / "two")
    copy = kit_at(folder / "two")
    assert (copy.id, copy.name, copy.manifest.derived_from) == (done.id, "two", kit.id)
    assert copy.id != kit.id
    assert contents(copy) == contents(kit)
    assert {name: parts for name, parts in own(copy).extents.items() if parts} == {
        name: parts for name, parts in own(kit).extents.items() if parts
    }
    assert done.written == done.verified == own(kit).bytes
    assert (copy.path / "media/notes").read_bytes() == noise(MIB, 4)
    assert (copy.path / "labs/demo/ssh_config").read_text() == f"IdentityFile {copy.path}/keys/id_ed25519\n"
    assert (copy.path / "keys/id_ed25519").stat().st_mode & 0o777 == 0o600
    assert not (copy.path / "copies.json").exists()
    assert not list(copy.path.glob("media/ram/*"))
    assert not list(folder.glob(".*"))
    for volume in open_storage(copy).volumes():
        run(["qemu-img", "check", "-q", volume.path])
    assert attach(places, str(copy.path), rename=None, now=NOW).kit == copy


def test_seals_for_clones_end_with_them_and_others_stay(places: Places, kit: Kit, folder: Path) -> None:
    copied(kit, places, folder / "two")
    store = open_storage(kit_at(folder / "two"))
    store.remove("lab.demo.m0.root.g2")
    store.remove("lab.demo.m1.root.g1", "lab.demo.m2.root.g1")
    there = {volume.name: volume.sealed for volume in store.volumes()}
    assert there == {"base.tiny.x86_64.abc": True, "layer.one": True, "lab.demo.m0.root.g1": False}


def test_a_volume_that_is_written_is_refused(places: Places, kit: Kit, folder: Path) -> None:
    with (
        opened(*open_storage(kit).place("lab.demo.m1.root.g1"), run, writable=True),
        pytest.raises(Refused, match=r"in use: lab\.demo\.m1\.root\.g1"),
    ):
        copied(kit, places, folder / "two")
    assert sorted(path.name for path in folder.iterdir()) == ["one", "run"]


def test_where_a_copy_cannot_be(places: Places, kit: Kit, folder: Path) -> None:
    (folder / "full").mkdir()
    (folder / "full/file").write_text("")
    (folder / "link").symlink_to(folder / "full")
    for path, why in (
        (folder / "full", "is not empty"),
        (folder / "full/file", "is not a folder"),
        (folder / "link", "is not a folder"),
        (folder / "nowhere/two", "is no folder"),
        (kit.path, "there is a kit"),
        (kit.path / "media/two", "lies in another kit"),
    ):
        with pytest.raises(PocketcloudError, match=why):
            checked_folder(places, path)


def test_what_is_not_written_takes_nothing(places: Places, kit: Kit, folder: Path) -> None:
    open_storage(kit).create("lab.demo.m9.root.g1", 1 << 42)
    before = own(kit).bytes
    (done,) = copied(kit, places, folder / "two")
    assert (done.fault, done.written) == ("", before)


@pytest.mark.parametrize("what", ["content", "a seal", "a parent", "one too many"])
def test_what_is_not_as_it_was_written_is_found(places: Places, kit: Kit, folder: Path, what: str) -> None:
    progress = Progress(threading.Event(), lambda: None)
    copy = init_directory(places, folder / "two", "two", now=NOW)
    with reading_of(kit, run) as reading:
        found = contents_of(reading)
        fill(found, copy, 0, progress, run)
        check(found, copy, progress, run)
        store = open_storage(copy)
        match what:
            case "content":
                path, _ = store.place("layer.one")
                content = path.read_bytes()
                at = content.index(noise(MIB, 2)[:512])
                path.chmod(0o644)
                path.write_bytes(content[:at] + b"?" + content[at + 1 :])
                path.chmod(0o444)
            case "a seal":
                store.place("layer.one")[0].chmod(0o1444)
            case "a parent":
                store.remove("lab.demo.m2.root.g1")
                store.clone("base.tiny.x86_64.abc", "lab.demo.m2.root.g1", 32 * MIB)
            case _:
                store.create("lab.demo.m9.root.g1", MIB)
        with pytest.raises(Refused, match=r"not what was written|not as the one|nobody made"):
            check(found, copy, progress, run)


def test_a_stop_leaves_nothing(places: Places, kit: Kit, folder: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(InterruptedError):
        copied(kit, places, folder / "two", stop=stop)
    assert sorted(path.name for path in folder.iterdir()) == ["one", "run"]


@pytest.mark.parametrize("number", range(6))
def test_killed_it_is_no_kit_and_the_same_again_makes_it(places: Places, kit: Kit, folder: Path, number: int) -> None:
    chance = random.Random(f"{os.environ.get('POCKETCLOUD_SEED')}.{number}")  # noqa: S311 - keeps no secret
    child = os.fork()
    if child == 0:
        code = 1
        try:
            copied(kit, places, folder / "two")
            code = 0
        finally:
            os._exit(code)
    timer = threading.Timer(chance.uniform(0.02, 0.8), os.kill, (child, signal.SIGKILL))
    timer.start()
    os.waitpid(child, 0)
    timer.cancel()
    until(lambda: not uses(folder), "all that it had started ends with it")
    for left in folder.glob(".*.partial"):
        assert (left / "UNFINISHED").exists() or (left / "kit.json").exists() or not list(left.iterdir())
        with pytest.raises(Refused, match="unfinished copy"):
            attach(places, str(left), rename=None, now=NOW)
    if (folder / "two").exists():
        remove_tree(folder / "two")
    with pytest.raises(NotFound):
        kit_at(folder / "two")
    (done,) = copied(kit, places, folder / "two")
    assert not done.fault
    assert contents(kit_at(folder / "two")) == contents(kit)
    assert not list(folder.glob(".*"))
