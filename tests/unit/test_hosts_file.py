"""The marked blocks of /etc/hosts: what is ours changes, and nothing else does. Never this machine's own file."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketcloud.errors import HostLacks, Refused
from pocketcloud.hosts_file import HostLine, change, has_block, with_block

TOP = Path(__file__).resolve().parents[2]
WEB = HostLine("10.77.3.10", ("web.demo.internal", "web.demo"))
DB = HostLine("10.77.3.11", ("db.demo.internal", "db.demo"))
BLOCK = b"# BEGIN pocketcloud k.demo\n10.77.3.10\tweb.demo.internal web.demo\n# END pocketcloud k.demo\n"
OTHERS = b"127.0.0.1 localhost\r\n# \xff theirs\n::1 localhost\n"

lines = st.lists(
    st.sampled_from([b"127.0.0.1 a", b"# BEGIN pocketcloud other", b"# END pocketcloud k.demo", b"", b"\xff\t", b"x\r"])
)


@given(lines, lines, st.booleans())
def test_others_lines_stay_as_they_are_wherever_the_block_stands(before: list[bytes], after: list[bytes], end: bool) -> None:
    head = b"".join(line + b"\n" for line in before)
    tail = b"\n".join(after) + (b"\n" if end and after else b"")
    written = with_block(head + tail, "k.demo", [WEB])
    assert written.replace(BLOCK, b"").removesuffix(b"\n") == (head + tail).removesuffix(b"\n")
    assert written.count(BLOCK) == 1
    assert with_block(written, "k.demo", [WEB]) == written
    # Where it stands, it stays; what is in it is exchanged.
    placed = head + BLOCK + tail
    moved = with_block(placed, "k.demo", [DB])
    assert moved == head + BLOCK.replace(b"10.77.3.10\tweb.demo.internal web.demo", DB.text.encode()) + tail
    assert with_block(moved, "k.demo", []) == head + tail


def test_a_file_without_a_last_line_end_gets_one_before_the_block() -> None:
    assert with_block(b"127.0.0.1 localhost", "k.demo", [WEB]) == b"127.0.0.1 localhost\n" + BLOCK
    assert with_block(b"127.0.0.1 localhost", "k.demo", []) == b"127.0.0.1 localhost"
    assert with_block(b"", "k.demo", [WEB]) == BLOCK
    assert with_block(BLOCK + OTHERS + BLOCK, "k.demo", [DB]).count(b"BEGIN") == 1
    assert b"k.demo-2" in with_block(BLOCK.replace(b"k.demo", b"k.demo-2"), "k.demo", [])


@pytest.mark.parametrize(
    "rest", [b"", b"192.0.2.1 theirs\n", b"# BEGIN pocketcloud other\n# END pocketcloud other\n# END pocketcloud k.demo\n"]
)
def test_a_block_without_its_end_is_left_alone(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "hosts"
    damaged = OTHERS + BLOCK.replace(b"# END pocketcloud k.demo\n", rest)
    path.write_bytes(damaged)
    with pytest.raises(Refused, match=r"hosts: the lines that begin in line 4 with `# BEGIN pocketcloud k\.demo` have no end"):
        change(path, "k.demo", [WEB])
    assert path.read_bytes() == damaged


def test_mode_and_owner_stay_and_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "static").mkdir()
    real, path = tmp_path / "static/hosts", tmp_path / "hosts"
    real.write_bytes(OTHERS)
    real.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(real, 12, 34)
    known = real.stat()
    path.symlink_to("static/hosts")
    assert change(path, "k.demo", [WEB])
    assert has_block(path, "k.demo")
    assert not has_block(path, "k.demo-2")
    assert path.is_symlink()
    assert real.read_bytes() == OTHERS + BLOCK
    now = real.stat()
    assert (stat.S_IMODE(now.st_mode), now.st_uid, now.st_gid) == (0o640, known.st_uid, known.st_gid)
    assert not change(path, "k.demo", [WEB]), "nothing was to be done"
    assert real.stat().st_ino == now.st_ino
    assert change(path, "k.demo", [])
    assert real.read_bytes() == OTHERS
    assert [entry.name for entry in (tmp_path / "static").iterdir()] == ["hosts"]


def test_where_there_is_no_file_it_is_made_for_everybody_to_read(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    assert not has_block(path, "k.demo")
    assert not change(path, "k.demo", [])
    assert not path.exists()
    assert change(path, "k.demo", [WEB])
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_links_in_a_circle_are_told(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.symlink_to("hosts")
    with pytest.raises(HostLacks, match="cannot be changed") as told:
        change(path, "k.demo", [WEB])
    assert "lab hosts LAB prints the lines" in str(told.value.hint)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a mount namespace")
def test_a_file_that_is_a_mount_of_its_own_and_one_that_cannot_be_written(tmp_path: Path) -> None:
    """As in containers, where nothing can be renamed over it; and on a system that is read-only."""
    (tmp_path / "etc").mkdir()
    path, inner = tmp_path / "etc/hosts", tmp_path / "inner"
    path.write_bytes(b"the one below\n")
    inner.write_bytes(OTHERS * 50)
    code = (
        "import sys; from pathlib import Path; from pocketcloud.hosts_file import HostLine, change\n"
        "line = HostLine('10.77.3.10', ('web.demo.internal', 'web.demo'))\n"
        "print(change(Path(sys.argv[1]), 'k.demo', [line] * int(sys.argv[2])))"
    )
    python = f"{sys.executable} -c \"$0\" '{path}'"
    mount = f"mount --bind '{inner}' '{path}'"
    script = (
        f"{mount} && {python} 1 && cp '{path}' '{tmp_path}/seen' && {python} 0 && mount -o remount,bind,ro '{path}' && {python} 1"
    )
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, code],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "True\nTrue\n", done.stderr
    assert (tmp_path / "seen").read_bytes() == OTHERS * 50 + BLOCK
    assert inner.read_bytes() == OTHERS * 50
    assert "HostLacks" in done.stderr
    assert "Read-only file system" in done.stderr
    assert path.read_bytes() == b"the one below\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["hosts"]
