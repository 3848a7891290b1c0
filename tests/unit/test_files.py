"""Files that are whole or not there."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pocketcloud.errors import NoSpace
from pocketcloud.files import copy_whole, is_unfinished, remove_tree, write_whole


def test_content_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "a"
    old = os.umask(0o077)
    try:
        write_whole(path, "ж", 0o644)
        assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == ("ж".encode(), 0o644)
        write_whole(path, b"secret", 0o600)
        assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"secret", 0o600)
    finally:
        os.umask(old)
    assert list(tmp_path.iterdir()) == [path]


def test_a_secret_is_never_readable_by_others_not_even_aside(tmp_path: Path) -> None:
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom pocketcloud import files\n"
        "os.umask(0)\n"
        "def stop(handle):\n"
        "    (aside,) = Path(sys.argv[1]).iterdir()\n"
        "    print(oct(aside.stat().st_mode & 0o777), files.is_unfinished(aside))\n"
        "    sys.stdout.flush()\n"
        "    os._exit(9)\n"
        "os.fsync = stop\n"
        "files.write_whole(Path(sys.argv[1], 'key'), b'secret', 0o600)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (9, "0o600 True\n")
    assert not (tmp_path / "key").exists()
    assert all(is_unfinished(path) for path in tmp_path.iterdir())


def test_a_failure_leaves_the_old_content_and_nothing_beside(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.mkdir()
    (target / "in").touch()
    with pytest.raises(OSError):  # noqa: PT011 - which one depends on the file system
        write_whole(target, b"x")
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "no" / "a", b"x")


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A file system of 64 KiB with a file of ours in it."""
    if os.geteuid() != 0:
        pytest.skip("mounting takes root")
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", mount], check=True)
    (mount / "a").write_text("old")
    return mount


def test_a_full_file_system_is_told_and_keeps_the_old_content(full: Path, tmp_path: Path) -> None:
    try:
        with pytest.raises(NoSpace, match="no space left") as refused:
            write_whole(full / "a", b"x" * 1_000_000)
        assert refused.value.hint
        (tmp_path / "big").write_bytes(b"y" * 1_000_000)
        with pytest.raises(NoSpace):
            copy_whole(tmp_path / "big", full / "a")
        assert [path.name for path in full.iterdir()] == ["a"]
        assert (full / "a").read_text() == "old"
    finally:
        subprocess.run(["umount", full], check=True)


def test_copies_keep_content_and_holes(tmp_path: Path) -> None:
    source = tmp_path / "vars.fd"
    with source.open("wb") as file:
        file.write(b"head")
        file.seek(32 << 20)
        file.write(b"tail")
        file.truncate(64 << 20)
    copy_whole(source, tmp_path / "copy.fd", 0o600)
    copy = tmp_path / "copy.fd"
    assert copy.read_bytes() == source.read_bytes()
    assert copy.stat().st_blocks * 512 < 1 << 20
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    (tmp_path / "empty").touch()
    copy_whole(tmp_path / "empty", copy)
    assert copy.read_bytes() == b""


def test_removing_what_is_not_there_is_success(tmp_path: Path) -> None:
    remove_tree(tmp_path / "no")
    (tmp_path / "a" / "b").mkdir(parents=True)
    remove_tree(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
