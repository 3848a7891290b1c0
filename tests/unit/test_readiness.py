"""readiness.py: real sockets, and logs as firmware and systemd write them."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from pocketcloud.errors import NotReady, UsageError
from pocketcloud.readiness import WaitInterrupted, console_has, tcp_open, wait_console, wait_tcp
from tests.sshd import free_port


def later(seconds: float, action: object) -> threading.Timer:
    assert callable(action)
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def test_a_port_is_open_or_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert tcp_open("127.0.0.1", port, 5)
    assert not tcp_open("127.0.0.1", port, 5)


def test_a_port_that_opens_late_is_waited_for() -> None:
    port = free_port()
    servers: list[socket.socket] = []
    timer = later(0.4, lambda: servers.append(socket.create_server(("127.0.0.1", port))))
    try:
        wait_tcp("127.0.0.1", port, time.monotonic() + 30, threading.Event())
        assert servers
    finally:
        timer.join()
        for server in servers:
            server.close()


def test_a_port_that_stays_shut_is_not_ready() -> None:
    port = free_port()
    with pytest.raises(NotReady, match=f"port {port}"):
        wait_tcp("127.0.0.1", port, time.monotonic() + 0.4, threading.Event())


def test_stop_ends_the_waiting(tmp_path: Path) -> None:
    stop = threading.Event()
    timer = later(0.3, stop.set)
    started = time.monotonic()
    with pytest.raises(WaitInterrupted) as caught:
        wait_console(tmp_path / "log", "x", time.monotonic() + 60, stop)
    timer.join()
    assert time.monotonic() - started < 3
    assert caught.value.exit_code == 130


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (b"one\r\nDemo is ready\r\n", r"^Demo is ready$"),
        (b"unfinished login: ", r"login: $"),
        (
            b"[\x1b[0;32m  OK  \x1b[0m] Reached target \x1b[0;1;39mMulti-User System\x1b[0m.\r\n",
            r"^\[  OK  \] .* Multi-User System\.$",
        ),
        (b"\x1b[2J\x1b[01;01H\x1b[=3h\x1b[2J\x1b[01;01HBdsDxe: loading\r\n", r"^BdsDxe: loading$"),
        (b"\x1b]0;a title\x07prompt\x1b(B$ ", r"^prompt\$ $"),
        (b"\xff\xfe\x00ready\x00\n", r"ready$"),
        (b"progress 1\rprogress 2\r", r"^progress 1$"),
    ],
)
def test_lines_are_seen_as_people_see_them(tmp_path: Path, content: bytes, pattern: str) -> None:
    (tmp_path / "log").write_bytes(content)
    assert console_has(tmp_path / "log", pattern)


def test_a_pattern_stays_in_its_line(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"one\ntwo\n")
    assert not console_has(tmp_path / "log", r"one\s*two")
    assert not console_has(tmp_path / "none", r"")


def test_a_pattern_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="regular expression"):
        console_has(tmp_path / "log", "(")


def test_a_log_that_grows_in_pieces_is_followed(tmp_path: Path) -> None:
    """The line arrives in two halves, the first of them with an escape sequence that is cut in two."""
    log = tmp_path / "log"
    pieces = [b"boot\r\n[\x1b[0;3", b"2mOK\x1b[0m] rea", b"dy\r\n"]

    def write() -> None:
        for piece in pieces:
            time.sleep(0.4)
            with log.open("ab") as file:
                file.write(piece)

    thread = threading.Thread(target=write)
    thread.start()
    wait_console(log, r"^\[OK\] ready$", time.monotonic() + 30, threading.Event())
    thread.join()


def test_a_log_that_starts_anew_is_read_anew(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"a long line of an earlier boot\n" * 50)
    timer = later(0.5, lambda: log.write_bytes(b"ready\n"))
    wait_console(log, r"^ready$", time.monotonic() + 30, threading.Event())
    timer.join()
