"""Images that are in the way: what is read of them is bounded, and their damage is told."""

from __future__ import annotations

import os
import subprocess
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from pocketcloud.bases.image import look
from pocketcloud.bases.namespace import give
from pocketcloud.errors import NoSpace, Refused
from pocketcloud.model.sizes import GIB, KIB, MIB
from pocketcloud.system import Completed, run
from tests.small_base import SEALED, small_image
from tests.small_disk import small_disk

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes a namespace")


class Watching:
    """Runs commands, and knows how much the one said that said most. None may take long."""

    def __init__(self) -> None:
        self.most = 0

    def __call__(
        self,
        argv: Sequence[str | Path],
        *,
        stdin: bytes | None = None,
        codes: Sequence[int] = (0,),
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        done = run(argv, stdin=stdin, codes=codes, timeout=timeout or 20, env=env, cwd=cwd, on_line=on_line)
        self.most = max(self.most, len(done.out))
        return done


def image(folder: Path, files: Mapping[str, str], *, xfs: bool = False) -> str:
    """An image in `folder`, which becomes one of the namespace's root; what lies in its make/tree is in it too."""
    folder.chmod(0o711)
    give(folder)
    (folder / "make").mkdir(exist_ok=True)
    raw = small_image(folder / "make", files, xfs=xfs)
    raw.rename(folder / raw.name)
    give(folder / raw.name)
    return raw.name


def _lines(commands: Sequence[str]) -> bytes:
    """The commands as xfs_db reads them; the last one has to end, too."""
    return "".join(f"{command}\n" for command in commands).encode()


def xfs_db(folder: Path, *commands: str) -> str:
    """What xfs_db says of the XFS that the image in `folder` was made with."""
    said = subprocess.run(["xfs_db", "-r", folder / "make/xfs.img"], input=_lines(commands), capture_output=True, check=True)
    return said.stdout.decode()


def change(folder: Path, *commands: str) -> None:
    """Change the XFS of the image in `folder` as xfs_db's expert mode does, checksums and all."""
    part, raw = folder / "make/xfs.img", folder / "small.raw"
    subprocess.run(
        ["xfs_db", "-x", part],
        input=_lines(commands),
        stdout=subprocess.DEVNULL,
        check=True,
    )
    subprocess.run(["dd", f"if={part}", f"of={raw}", "bs=1M", "seek=3", "conv=notrunc,sparse", "status=none"], check=True)


def test_of_a_file_that_is_one_hole_only_the_beginning_is_read(tmp_path: Path) -> None:
    hole = tmp_path / "make/tree/etc/machine-info"
    hole.parent.mkdir(parents=True)
    hole.touch()
    os.truncate(hole, GIB)
    watching = Watching()
    found = look(tmp_path, image(tmp_path, SEALED), watching)
    assert found.tree["/etc/machine-info"].size == GIB
    assert found.text("/etc/machine-info") == "\0" * (256 * KIB)
    assert found.text("/etc/shadow") == SEALED["/etc/shadow"]
    assert watching.most == 256 * KIB


def test_of_a_file_in_many_pieces_only_the_beginning_is_read(tmp_path: Path) -> None:
    text = "".join(f"{number:07}\n" for number in range(11 * 32 * KIB))  # 2.75 MiB
    name = image(tmp_path, {**SEALED, "/etc/machine-info": text}, xfs=True)
    start = int(xfs_db(tmp_path, "path /etc/machine-info", "bmap").partition("startblock ")[2].split()[0])
    pieces = [
        f"write u3.bmx[{number}].{field} {value}"
        for number in range(11)
        for field, value in (("startoff", number * 64), ("startblock", start + number * 64), ("blockcount", 64))
    ]
    change(tmp_path, "path /etc/machine-info", "write core.nextents 11", *pieces)
    found = look(tmp_path, name, run)
    tracemalloc.start()
    try:
        assert found.text("/etc/machine-info") == text[: 256 * KIB]
        assert tracemalloc.get_traced_memory()[1] < 2 * MIB
    finally:
        tracemalloc.stop()


def test_a_damaged_xfs_is_told(tmp_path: Path) -> None:
    image(tmp_path, SEALED, xfs=True)
    part = (tmp_path / "make/xfs.img").rename(tmp_path / "part")
    give(part)
    passwd, etc = (_inode(part, path) for path in ("/etc/passwd", "/etc"))
    damages = {
        "a superblock of zeros": (4, bytes(508)),
        "no root folder": (56, b"\xff" * 8),
        "no size of blocks": (4, bytes(4)),
        "no groups": (84, bytes(4)),
        "a file's inode of zeros": (passwd, bytes(512)),
        "a file's inode of ones": (passwd, b"\xff" * 512),
        "a folder's inode of zeros": (etc, bytes(512)),
        "a folder's entries": (etc + 176, b"\xff" * 100),
        "where the file lies": (passwd + 176, b"\x00" + b"\x7f" * 15),
    }
    said = {name: _told(part, at, damage) for name, (at, damage) in damages.items()}
    assert [name for name, words in said.items() if words and "XFS on partition 0 cannot be looked through: " not in words] == []
    assert sum(bool(words) for words in said.values()) >= 6
    assert look(tmp_path, "part", run).text("/etc/passwd") == SEALED["/etc/passwd"]


def _told(part: Path, at: int, damage: bytes) -> str:
    """What is said of the file system with that damage; empty if it is read all the same."""
    with part.open("r+b") as file:
        file.seek(at)
        whole = file.read(len(damage))
        os.pwrite(file.fileno(), damage, at)
    try:
        look(part.parent, part.name, run).text("/etc/passwd")
    except Refused as error:
        return f"{error.message}, {error.hint}" if error.hint else "no hint"
    else:
        return ""
    finally:
        with part.open("r+b") as file:
            os.pwrite(file.fileno(), whole, at)
        part.with_name(f"{part.name}.0").unlink()


def test_a_copy_of_an_xfs_that_has_no_room_is_not_begun(tmp_path: Path) -> None:
    raw = tmp_path / image(tmp_path, {**SEALED, "/usr/large": "x" * 12 * MIB}, xfs=True)
    with small_disk(tmp_path / "small", 24 * MIB) as work:
        work.chmod(0o711)
        give(work)
        subprocess.run(["cp", "--sparse=always", "--preserve=ownership", raw, work], check=True)
        with pytest.raises(NoSpace, match=r"XFS on partition 2 cannot be looked through: a copy of 1[0-9.]* MiB") as caught:
            look(work, raw.name, run)
        assert "pocketcloud kit status" in caught.value.hint
        assert [path.name for path in work.iterdir()] == [raw.name]


def _inode(part: Path, path: str) -> int:
    """Where the inode of a file lies."""
    said = subprocess.run(["xfs_db", "-r", part], input=_lines([f"path {path}", "addr"]), capture_output=True, check=True).stdout
    return int(said.partition(b"byte offset ")[2].partition(b",")[0])
