"""What holds for the whole test run."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Let Ctrl-C mean something to the commands under test: in the background of a shell SIGINT is ignored, and children,
    Python among them, leave it so."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
