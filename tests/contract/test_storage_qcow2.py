"""What only the qcow2 driver has to hold, beside the contract that test_storage.py proves for every driver."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pocketcloud.errors import NotFound
from pocketcloud.storage.qcow2 import Qcow2Directory
from pocketcloud.storage.qcow2_header import NotQcow2, read_header
from pocketcloud.system import run
from tests.contract.stores import Qcow2Bench, Watched, content, filled, names, volume_of, write

MIB = 1 << 20
TOP = Path(__file__).resolve().parents[2]


def test_the_folder_can_be_moved_and_copied(tmp_path: Path) -> None:
    here, there, copy = tmp_path / "here", tmp_path / "there, with spaces", tmp_path / "copy"
    here.mkdir()
    store = Qcow2Directory(here)
    store.create("base", MIB, filled(1))
    store.clone("base", "disk")
    write(store, "disk", 2, at=8192)
    before = content(store, "disk")
    shutil.copytree(here, copy)
    here.rename(there)
    for folder in (there, copy):
        moved = Qcow2Directory(folder)
        assert content(moved, "disk") == before
        assert volume_of(moved, "base")[1]
        run(["qemu-img", "check", "-q", folder / "disk.qcow2"])
    run(["qemu-img", "compare", "-q", there / "disk.qcow2", copy / "disk.qcow2"])


def test_other_files_in_the_folder_are_no_volumes(tmp_path: Path) -> None:
    (tmp_path / "empty.qcow2").touch()
    (tmp_path / "text.qcow2").write_text("QFI, or not")
    (tmp_path / "notes.txt").write_text("mine")
    store = Qcow2Directory(tmp_path)
    store.create("disk", MIB)
    assert names(store) == ["disk"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_headers_are_read_as_qemu_img_reads_them(tmp_path: Path) -> None:
    picks = random.Random(7)  # noqa: S311 - no secret
    for number in range(6):
        size = picks.randrange(1, 1 << 32) * 512
        compat = picks.choice(["0.10", "1.1"])
        backing = ["-F", "qcow2", "-b", f"{number - 1}.qcow2"] if number else []
        path = tmp_path / f"{number}.qcow2"
        run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"compat={compat}", *backing, path, str(size)])
        header = read_header(path)
        assert header.size == size
        assert header.backing == (f"{number - 1}.qcow2" if number else None)
        assert header.version == (2 if compat == "0.10" else 3)
        for cut in (0, 10, 31, 32):
            (tmp_path / "cut").write_bytes(path.read_bytes()[:cut])
            if cut < 32 or number:
                with pytest.raises(NotQcow2):
                    read_header(tmp_path / "cut")


FULL = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from pocketcloud.errors import NoSpace
from pocketcloud.storage.qcow2 import Qcow2Directory
folder = Path(sys.argv[2])
store = Qcow2Directory(folder)
store.create("base", 64 << 20, lambda path: None)
def much(path):
    with path.open("r+b") as image:
        for _ in range(64):
            image.write(b"x" * (1 << 20))
def nearly(path):
    with path.open("r+b") as image:
        image.write(b"x" * (2500 << 10))
refused = 0
for name, fill in (("much", much), ("nearly", nearly)):
    try:
        store.create(name, 64 << 20, fill)
    except NoSpace as error:
        assert name in error.message and error.hint, error.message
        refused += 1
try:
    for number in range(40):
        store.clone("base" if not number else f"c{number - 1}", f"c{number}")
except NoSpace:
    refused += 1
    assert not next(v for v in store.volumes() if v.name == f"c{number - 1}").sealed
assert not list(folder.glob(".*")), list(folder.glob(".*"))
print("refused", refused)
"""


def test_a_full_store_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    """On a small tmpfs in a mount namespace of its own, where nobody else sees it."""
    mount = f'mount -t tmpfs -o size=4m tmpfs {tmp_path} && exec "$0" "$@"'
    rights = [] if os.geteuid() == 0 else ["--map-root-user"]
    argv = ["unshare", *rights, "--mount", "sh", "-c", mount, sys.executable, "-c", FULL, str(TOP), str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "refused 3", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_gone_says_so(tmp_path: Path) -> None:
    store = Qcow2Directory(tmp_path / "gone")
    for verb in (store.volumes, store.usage, lambda: store.create("disk", MIB)):
        with pytest.raises(NotFound, match="gone"):
            verb()


def test_a_clone_costs_one_process_and_a_look_none(tmp_path: Path) -> None:
    bench = Qcow2Bench(tmp_path)
    bench.store().create("base", MIB, filled(1))
    bench.store().create("live", MIB)
    for source in ("base", "live"):
        watched = Watched()
        bench.store(watched).clone(source, f"of-{source}")
        assert [command[0] for command in watched.commands] == ["qemu-img"]
    watched = Watched()
    looking = bench.store(watched)
    looking.volumes()
    looking.usage()
    looking.place("base")
    looking.explain("clone", "new", source="base")
    assert watched.commands == []


def test_volumes_can_be_read_by_qemus_user(tmp_path: Path) -> None:
    store = Qcow2Directory(tmp_path)
    made = store.create("base", MIB, filled(1))
    assert made.path.stat().st_mode & 0o777 == 0o444
    clone = store.clone("base", "disk")
    assert clone.path.stat().st_mode & 0o777 == 0o644
    store.clone("disk", "above")
    store.remove("above")
    assert clone.path.stat().st_mode & 0o777 == 0o644
