"""Hosts that do not answer: a daemon that takes connections and says nothing, a file that never ends, a call that hangs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pocketcloud.check import State, run_checks
from pocketcloud.check.waiting import Asked, Late, within
from pocketcloud.errors import HostLacks
from pocketcloud.host import read_facts
from pocketcloud.hypervisor import Hypervisor, open_hypervisor
from pocketcloud.system import Completed, run
from tests.host_trees import plant, x86_laptop


@pytest.fixture
def silent_daemon(tmp_path: Path) -> Iterator[str]:
    """The URI of a libvirt that takes connections and never says a word."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "sock"))
        listening.listen()
        yield f"qemu+unix:///system?socket={tmp_path / 'sock'}"


def unreachable() -> Hypervisor:
    raise HostLacks("not asked in this test")


def without_tools(argv: Sequence[str | Path], **_: object) -> Completed:
    raise HostLacks(f"{argv[0]} is not installed")


def test_a_daemon_that_never_answers_is_unknown_in_bounded_time(silent_daemon: str) -> None:
    begun = time.monotonic()
    found = run_checks(
        read_facts(),
        kit_path=Path("/var/lib/pocketcloud"),
        run=run,
        hypervisor=lambda: open_hypervisor(silent_daemon),
        patience=1.0,
    )
    assert time.monotonic() - begun < 40, "once for all groups, not once for each"
    checks = {check.id: check for check in found}
    assert checks["libvirt"].state is State.UNKNOWN
    assert "did not answer within 1 s" in checks["libvirt"].evidence
    assert "estart libvirtd" in checks["libvirt"].remedy[0]
    assert checks["libvirt-networks"].state is State.UNKNOWN
    assert {"memory", "qemu-img", "lab-subnets"} <= set(checks)


def test_the_command_itself_ends(silent_daemon: str) -> None:
    """The thread that waits for libvirt does not keep the program."""
    code = "import sys; from pocketcloud.check.waiting import Asked; from pocketcloud.hypervisor import open_hypervisor\n"
    code += "try: Asked(open_hypervisor).answer(1)\nexcept TimeoutError: print('late')"
    done = subprocess.run(
        [".venv/bin/python", "-c", code], env=os.environ | {"LIBVIRT_DEFAULT_URI": silent_daemon}, capture_output=True,
        text=True, timeout=60, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout == "late\n"


def test_a_group_that_does_not_end_leaves_the_others(tmp_path: Path) -> None:
    """A file that is a FIFO: who opens it waits for somebody to write."""
    plant(tmp_path, x86_laptop("debian-13"))
    facts = read_facts(tmp_path, run=run)
    (tmp_path / "sys/module/kvm_intel/parameters/nested").unlink()
    os.mkfifo(tmp_path / "sys/module/kvm_intel/parameters/nested")
    found = run_checks(facts, kit_path=tmp_path, run=without_tools, hypervisor=unreachable, root=tmp_path, longest=2.0)
    checks = {check.id: check for check in found}
    assert checks["nesting-unfinished"].state is State.UNKNOWN
    assert "did not come within 2 s" in checks["nesting-unfinished"].evidence
    assert {"kvm", "memory", "qemu-img", "lab-subnets"} <= set(checks)
    assert [name for name in checks if name.endswith("-unfinished")] == ["nesting-unfinished"]


def test_a_command_is_ended_with_the_time_that_is_up(tmp_path: Path) -> None:
    with pytest.raises(Late), within(0.5):
        run(["sh", "-c", "echo $$ >pid; exec sleep 60"], cwd=tmp_path)
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_a_time_limit_leaves_things_as_they_were() -> None:
    handler, (left, interval) = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    rang = []
    signal.signal(signal.SIGALRM, lambda *_: rang.append(time.monotonic()))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with within(30):
            time.sleep(0.1)
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 0.45
        with pytest.raises(ZeroDivisionError), within(30):
            _ = 1 // 0
        # An alarm of somebody else's that was due meanwhile comes right after.
        with within(30):
            time.sleep(0.6)
        until = time.monotonic() + 10
        while not rang and time.monotonic() < until:
            time.sleep(0.01)
        assert len(rang) == 1
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, left, interval)


def test_in_another_thread_there_is_no_limit() -> None:
    done = []

    def work() -> None:
        with within(0.01):
            time.sleep(0.1)
        done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


def test_a_question_is_answered_once_for_all_or_raises_what_it_raised() -> None:
    asked = Asked(lambda: 7)
    assert (asked.answer(20), asked.answer(20)) == (7, 7)
    failing = Asked(unreachable)
    for _ in range(2):
        with pytest.raises(HostLacks, match="not asked"):
            failing.answer(20)
    with pytest.raises(TimeoutError):
        Asked(lambda: time.sleep(2)).answer(0.1)
