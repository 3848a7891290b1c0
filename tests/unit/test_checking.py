"""Checks asked of a real sshd: passed, failed, hanging, stalled, and guests that say anything at all."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pocketcloud.guest import Login
from pocketcloud.keys import new_key
from pocketcloud.lab.checking import CheckResult, Verdict, ask_machine, report, side_by_side
from pocketcloud.model.lab import Check
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import Duration
from tests.sshd import SSHD, Sshd, free_port

pytestmark = pytest.mark.skipif(not SSHD, reason="openssh-server is not installed (packages.tsv: test:sshd)")


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


def check(run: str, *, name: str = "one", points: int = 1, within: float = 30, hint: str = "") -> Check:
    return Check(Name(name), Name("web"), run, points, hint, Duration(within))


def asked(sshd: Sshd, *runs: str, within: float = 30) -> list[CheckResult]:
    checks = [check(run, name=f"c{number}", within=within) for number, run in enumerate(runs)]
    return ask_machine(sshd.login, checks, threading.Event())


def test_what_ends_with_0_passes_and_the_rest_says_why(sshd: Sshd) -> None:
    results = asked(sshd, "true", "echo no such thing >&2; exit 3", "kill -9 $$", "test -d /proc &&\n  cd /proc  # a comment \\")
    assert [r.verdict for r in results] == [Verdict.PASSED, Verdict.FAILED, Verdict.FAILED, Verdict.PASSED]
    assert (results[1].reason, results[1].output) == ("exit code 3", "no such thing")
    assert results[2].reason == "exit code 137", "a check's own end by a signal is not taken for one by its time"


def test_points_are_counted_of_what_passed(sshd: Sshd) -> None:
    checks = [
        check("true", name="a", points=3, hint="not needed"),
        check("false", name="b", points=6, hint="Start it"),
        check("true", name="c", points=0),
    ]
    done = report(ask_machine(sshd.login, checks, threading.Event()))
    assert (done.points, done.of) == (3, 9)
    assert [r.hint for r in done.checks] == ["", "Start it", ""]


def test_a_check_that_hangs_is_ended_with_all_it_started(sshd: Sshd, tmp_path: Path) -> None:
    held = tmp_path / "held"
    started = time.monotonic()
    (hung, after) = asked(sshd, f"exec 9>{held}; (trap '' TERM; echo $$; sleep 600) & sleep 600", "true", within=1)
    assert time.monotonic() - started < 15
    assert (hung.verdict, hung.reason) == (Verdict.FAILED, "did not end within 1 s")
    assert after.verdict is Verdict.PASSED
    deadline = time.monotonic() + 10
    while holders(held) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not holders(held), "something of it is left in the guest"


def holders(path: Path) -> list[str]:
    """The processes that have a file open."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/9"):
        try:
            if link.readlink() == path:
                found.append(link.parts[2])
        except OSError:
            continue
    return found


def test_output_is_bounded_and_fit_for_a_terminal(sshd: Sshd) -> None:
    (flood,) = asked(sshd, "head -c 30000000 /dev/zero | tr '\\0' x; exit 1")
    assert flood.reason == "exit code 1"
    assert len(flood.output) == 2000
    nasty = r"printf '\033]0;owned\007\033[2J\302\233 31m\342\200\256evil\r\nnext \377\376 line\n'; exit 1"
    (garbage,) = asked(sshd, nasty)
    assert "next" in garbage.output
    assert all(c.isprintable() or c == "\n" for c in garbage.output), repr(garbage.output)


def test_a_check_without_end_of_output_is_ended(sshd: Sshd) -> None:
    (endless,) = asked(sshd, "exec yes", within=1)
    assert endless.reason == "did not end within 1 s"
    assert len(endless.output) <= 2000


def test_a_check_gets_nothing_to_read_and_leaves_no_file(sshd: Sshd) -> None:
    (empty,) = asked(sshd, '[ -z "$(cat)" ]')
    assert empty.verdict is Verdict.PASSED


def test_a_check_that_breaks_the_connection_costs_only_itself(sshd: Sshd) -> None:
    # timeout, the login shell, sshd.
    session = "p=$(ps -o ppid= -p $PPID); p=$(ps -o ppid= -p $p); kill -9 $p; sleep 5"
    (broke, after) = asked(sshd, session, "true")
    assert broke.verdict is Verdict.NOT_RUN
    assert after.verdict is Verdict.PASSED


def test_a_guest_that_stalls_holds_nobody_up(sshd: Sshd, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    stop = f"p=$(ps -o ppid= -p $PPID); p=$(ps -o ppid= -p $p); echo $p > {pid}; kill -STOP $p; sleep 1"
    checks = [check(stop, name="a", within=1), *(check("true", name=name, within=1) for name in "bc")]
    started = time.monotonic()
    try:
        results = ask_machine(sshd.login, checks, threading.Event(), stall=2)
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)
    assert time.monotonic() - started < 30
    assert [r.verdict for r in results] == [Verdict.NOT_RUN] * 3
    assert results[2].reason == "the machine does not answer any more"


@pytest.mark.parametrize("wrong", ["nobody there", "another machine"])
def test_a_machine_that_cannot_be_reached_counts_nothing(sshd: Sshd, wrong: str) -> None:
    login = sshd.login_with(host=new_key("other"))
    if wrong == "nobody there":
        login = Login("127.0.0.1", login.host_key, login.private_key, login.user, free_port())
    done = report(ask_machine(login, [check("true", name="a"), check("true", name="b")], threading.Event()))
    assert (done.points, done.of) == (0, 2)
    assert {r.verdict for r in done.checks} == {Verdict.NOT_RUN}
    assert ("refused" if wrong == "nobody there" else "not this machine's") in done.checks[1].reason


def test_interrupted_the_rest_is_not_asked(sshd: Sshd) -> None:
    stop = threading.Event()
    threading.Timer(0.7, stop.set).start()
    started = time.monotonic()
    results = ask_machine(sshd.login, [check("sleep 20", name="a"), check("true", name="b")], stop)
    assert time.monotonic() - started < 10
    assert [r.reason for r in results] == ["interrupted"] * 2


def test_a_ctrl_c_ends_what_is_asked_of_all_machines(sshd: Sshd) -> None:
    stop, ended = threading.Event(), list[str]()

    with socket.create_server(("127.0.0.1", 0)) as silent:
        logins = {Name("busy"): sshd.login, Name("silent"): replace(sshd.login, port=silent.getsockname()[1])}

        def ask(machine: Name) -> list[CheckResult]:
            results = ask_machine(logins[machine], [check("sleep 60", name="a"), check("sleep 60", name="b")], stop)
            ended.append(machine)
            return results

        started = time.monotonic()
        threading.Timer(1.0, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            side_by_side(ask, tuple(logins), stop)
    assert time.monotonic() - started < 20
    assert sorted(ended) == ["busy", "silent"]
