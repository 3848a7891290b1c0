"""Locks between commands, with real processes."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pocketcloud.errors import Busy
from pocketcloud.locks import held

HOLDER = """
import sys
from pathlib import Path
from pocketcloud.locks import held
with held(Path(sys.argv[1]), "demo", "pocketcloud lab up demo", wait=True):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_without_waiting_the_holder_is_named(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(Busy) as busy, held(tmp_path, "demo", "mine", wait=False):
            pass
        assert busy.value.exit_code == 5
        assert f"`pocketcloud lab up demo` (process {process.pid})" in busy.value.message
        assert "--no-wait" in busy.value.hint
        with held(tmp_path, "other", "mine", wait=False):
            pass
        process.communicate("")


def test_waiting_is_said_once_and_ends_with_the_holder(tmp_path: Path) -> None:
    said: list[str] = []
    waiting, got = threading.Event(), threading.Event()

    def wait() -> None:
        def on_wait(text: str) -> None:
            said.append(text)
            waiting.set()

        with held(tmp_path, "demo", "mine", wait=True, on_wait=on_wait):
            got.set()

    with holder(tmp_path) as process:
        thread = threading.Thread(target=wait)
        thread.start()
        assert waiting.wait(20)
        assert not got.is_set()
        process.kill()
        thread.join(20)
    assert got.is_set(), "a killed holder holds no more"
    assert said == [f"`pocketcloud lab up demo` (process {process.pid})"]


def test_a_lock_is_free_after_an_error_and_remembers_only_the_last_holder(tmp_path: Path) -> None:
    for what in ("a very long command line " * 30, "short"):
        with pytest.raises(ZeroDivisionError), held(tmp_path, "demo", what, wait=False):
            raise ZeroDivisionError
    assert (tmp_path / "demo.lock").read_text().startswith("`short` (process ")
    assert "very long" not in (tmp_path / "demo.lock").read_text()
