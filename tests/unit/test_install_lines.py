"""What a guest prints, as lines: drawing, hostile output, and files that virtlogd turns over."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pocketcloud.bases.install.lines import LONGEST, Lines
from pocketcloud.bases.install.tail import Tail


def lines(*pieces: bytes) -> list[str]:
    reader = Lines()
    found = [line for piece in pieces for line in reader.feed(piece)]
    return [*found, reader.rest] if reader.rest.strip() else found


def test_a_console_that_draws_is_read_as_lines() -> None:
    screen = b"\x1b[2J\x1b[1;1HDetecting disks\x1b[0m  ... 2%\r... 95%\r\n"
    status = b"\x1b[24;1H\x1b[7m[ (1*installer) 2 shell ]\x1b[27m\x1b[2;1HNext"
    assert lines(screen + status) == ["Detecting disks  ... 2%", "... 95%", "[ (1*installer) 2 shell ]", "Next"]
    assert lines(b"\x1b[1m\x1b[31mError\x1b[0m: no\n") == ["Error: no"]
    assert lines(b"\x1b]0;a title\x07kept\n\x1b(Bplain\x1b=\n") == ["kept", "plain"]


def test_pieces_are_put_together() -> None:
    whole = "Größe \x1b[31mrot\x1b[0m ende\r\nnext\n".encode()
    for cut in range(1, len(whole)):
        assert lines(whole[:cut], whole[cut:]) == ["Größe rot ende", "next"], cut
    assert lines(*(bytes([byte]) for byte in whole)) == ["Größe rot ende", "next"]


def test_a_question_without_a_line_end_is_there() -> None:
    reader = Lines()
    assert reader.feed(b"one\nPrompt: '?' for help, default=1> ") == ["one"]
    assert reader.rest == "Prompt: '?' for help, default=1> "


def test_megabytes_without_a_line_end_are_cut() -> None:
    reader = Lines()
    found = [line for _ in range(40) for line in reader.feed(b"x" * (1 << 17))]
    assert sum(map(len, found)) + len(reader.rest) == 40 << 17
    assert max(map(len, found)) <= LONGEST
    assert len(reader.rest) <= LONGEST


def test_an_escape_sequence_that_never_ends_is_let_go() -> None:
    assert "".join(lines(b"\x1b[" + b"1;" * 5000, b"\nafter\n")).endswith("after")
    assert lines(b"\x1b]0;" + b"t" * 5000, b"\nafter\n")[-1] == "after"


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_nothing_that_moves_a_cursor_comes_through(pieces: list[bytes]) -> None:
    for line in lines(*pieces):
        assert line.isprintable()
        assert len(line) <= LONGEST


def test_random_megabytes_are_read_to_their_end() -> None:
    noise = random.Random(5).randbytes(3 << 20)  # noqa: S311 - nothing secret
    found = lines(*(noise[at : at + 65536] for at in range(0, len(noise), 65536)), b"\r\nthe end\n")
    assert found[-1] == "the end"


def test_a_log_is_followed_over_its_turning(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    tail = Tail(log)
    assert tail.read() == b""
    log.write_bytes(b"one")
    assert tail.read() == b"one"
    assert tail.read() == b""
    with log.open("ab") as more:
        more.write(b"two")
    log.rename(tmp_path / "console.log.0")
    log.write_bytes(b"three")
    assert tail.read() + tail.read() == b"twothree"
    log.write_bytes(b"4")
    assert tail.read() == b"4"
    log.write_bytes(b"y" * (1 << 20))
    assert len(tail.read()) < 1 << 20, "a piece is bounded"


def test_a_log_that_is_a_link_or_a_pipe_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/hostname")
    assert Tail(tmp_path / "link").read() == b""
