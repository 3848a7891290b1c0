"""What takes long and needs nobody is begun early, beside the tests that come before it."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from pocketcloud.model.base import Arch

BEGUN = pytest.StashKey[subprocess.Popen[bytes]]()
"""The process that builds the base debian-12, where this run has begun one."""


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin to build the base that test_base_debian_12 looks at: it keeps one processor busy for most of a minute."""
    wanted = any(item.path.name == "test_base_debian_12.py" for item in session.items)
    if wanted and not session.config.option.collectonly:
        command = [sys.executable, "-m", "tests.built_base", "debian-12", str(Arch.X86_64)]
        session.config.stash[BEGUN] = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=session.config.rootpath)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave no process behind, however the run ended: a build that is told to end takes its files away."""
    if (begun := config.stash.get(BEGUN, None)) is not None and begun.poll() is None:
        begun.send_signal(signal.SIGINT)
        begun.wait()
