"""What keeps a computer awake, and stands back: real programs, and one in the place of systemd-inhibit, which needs systemd."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pocketcloud.host.rest import awake, stand_back
from pocketcloud.system import echoing, run
from tests.labkit import until

INHIBIT = """#!/bin/sh
echo "$@" >{folder}/asked
echo $$ >{folder}/pid
trap "" TERM
{then}
"""


def in_place_of_it(monkeypatch: pytest.MonkeyPatch, folder: Path, then: str) -> None:
    tool = folder / "systemd-inhibit"
    tool.write_text(INHIBIT.format(folder=folder, then=then))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def gone(folder: Path) -> bool:
    try:
        return Path(f"/proc/{(folder / 'pid').read_text().strip()}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_what_echoes_runs_until_the_end() -> None:
    with echoing(["cat"], 10) as fault:
        assert fault == ""


@pytest.mark.parametrize(
    ("script", "fault"), [("echo no bus >&2; exit 1", "no bus"), ("exec sleep 60", "it does not answer"), ("true", "it does not")]
)
def test_what_does_not_echo_is_told(script: str, fault: str) -> None:
    begun = time.monotonic()
    with echoing(["sh", "-c", script], 0.5) as told:
        assert fault in told
    assert time.monotonic() - begun < 20


def test_awake_holds_the_lock_as_long_as_it_is_entered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    in_place_of_it(monkeypatch, tmp_path, "cat")
    with awake("copying kit usb") as fault:
        assert fault == ""
        assert not gone(tmp_path)
    assert gone(tmp_path)
    assert (tmp_path / "asked").read_text() == "--what=sleep:idle --who=pocketcloud --why=copying kit usb --mode=block cat\n"


def test_where_it_cannot_be_had_the_work_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    in_place_of_it(monkeypatch, tmp_path, "echo Failed to connect to bus >&2; exit 1")
    with awake("why") as fault:
        assert fault == "Failed to connect to bus"


def test_the_lock_goes_when_its_holder_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    in_place_of_it(monkeypatch, tmp_path, "cat")
    script = "import time\nfrom pocketcloud.host.rest import awake\nwith awake('x'):\n print(flush=True)\n time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert not gone(tmp_path)
        holder.send_signal(signal.SIGKILL)
    until(lambda: gone(tmp_path), "the lock is gone", within=10)


def test_threads_made_afterwards_stand_back_too() -> None:
    told: list[str] = []

    def ask() -> None:
        told.append(run(["ionice", "--pid", str(threading.get_native_id())]).out.strip())

    def begin() -> None:
        assert stand_back(run) == ""
        ask()
        inner = threading.Thread(target=ask)
        inner.start()
        inner.join()
        told.append(run(["ionice"]).out.strip())

    outer = threading.Thread(target=begin)
    outer.start()
    outer.join()
    assert told == ["best-effort: prio 7"] * 3
