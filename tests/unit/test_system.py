"""The one door to other programs: real ones, that end, hang, say much or little."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pocketcloud.system import CommandFailed, run
from tests.labkit import until


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ended(folder: Path) -> None:
    """What the command started and wrote down there is gone; it hears of its end a moment later than the command."""
    until(lambda: not alive(int((folder / "pid").read_text())), "what the command started has ended", within=10)


def test_lines_come_as_they_are_said_and_the_last_needs_no_end() -> None:
    lines: list[str] = []
    done = run(["sh", "-c", "echo one; echo two >&2; printf 'thr\\303\\244e'"], on_line=lines.append, timeout=20)
    assert lines == ["one", "two", "thräe"]
    assert done.out == "one\ntwo\nthräe"
    assert run(["true"], on_line=lines.append).out == ""
    assert len(lines) == 3


@pytest.mark.parametrize("listening", [True, False])
@pytest.mark.parametrize(
    "script", ["sleep 60 & echo $! >pid; wait", "echo $$ >pid; exec sleep 60", "echo $$ >pid; echo x; exec sleep 60"]
)
def test_what_does_not_end_in_time_is_ended_with_all_that_it_started(tmp_path: Path, script: str, listening: bool) -> None:
    begun = time.monotonic()
    with pytest.raises(CommandFailed, match="not done after 1 s"):
        run(["sh", "-c", script], timeout=1.0, cwd=tmp_path, on_line=(lambda _: None) if listening else None)
    assert time.monotonic() - begun < 20
    ended(tmp_path)


def test_what_does_not_listen_to_being_ended_is_killed(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match=r"not done after 1 s$"):
        run(["sh", "-c", "trap '' TERM; echo $$ >pid; while :; do sleep 1; done"], timeout=1.0, cwd=tmp_path)
    ended(tmp_path)


def test_a_command_that_closes_its_output_and_stays_is_ended_too(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="not done after 1 s"):
        run(["sh", "-c", "echo $$ >pid; exec >&- 2>&-; sleep 60"], timeout=1.0, cwd=tmp_path, on_line=lambda _: None)
    ended(tmp_path)


def test_no_handle_is_left_open() -> None:
    def handles() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = handles()
    for _ in range(3):
        run(["cat"], stdin=b"x" * 100000)
        run(["echo", "x"], on_line=lambda _: None)
        with pytest.raises(CommandFailed):
            run(["sleep", "60"], timeout=0.1)
    assert handles() == before


def test_a_line_that_is_written_over_counts_as_one() -> None:
    lines: list[str] = []
    run(["printf", r"1%%\r2%%\rdone\r\nlast"], on_line=lines.append)
    assert lines == ["1%", "2%", "done", "last"]


def test_a_command_that_says_without_end_does_not_fill_our_memory() -> None:
    longest = 0

    def heard(line: str) -> None:
        nonlocal longest
        longest = max(longest, len(line))

    done = run(["sh", "-c", "head -c 20000000 /dev/zero | tr '\\0' x; yes | head -c 20000000; echo the end"], on_line=heard)
    assert done.out.endswith("the end\n")
    assert len(done.out) < 5_000_000
    assert longest < 200_000
