"""The command line on a terminal, for the tests that answer what it asks."""

from __future__ import annotations

import os
import sys

import pexpect

from pocketcloud.kit.attached import Places
from tests.contract.stores import TOP


class Asked:
    """A command that runs on a terminal of its own."""

    def __init__(self, places: Places, *words: object) -> None:
        env = os.environ | {
            "POCKETCLOUD_DEFAULT_KIT": str(places.default),
            "POCKETCLOUD_RUN_DIR": str(places.run),
            "PYTHONPATH": str(TOP),
        }
        argv = ["-m", "pocketcloud", *map(str, words)]
        # Wide enough that no line of ours is broken.
        self._child = pexpect.spawn(sys.executable, argv, env=env, encoding="utf-8", timeout=900, dimensions=(50, 500))

    def until(self, pattern: str) -> tuple[str, ...]:
        """Wait until it says what matches; what came before, and the groups of the match."""
        self._child.expect(pattern)
        found = self._child.match
        groups = found.groups() if found and not isinstance(found, (str, type)) else ()
        return (self._child.before or "", *groups)

    def answer(self, text: str) -> None:
        """Type a line."""
        self._child.sendline(text)

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._child.sendintr()

    def ends(self, code: int, *said: str) -> str:
        """Wait for its end: its exit code is `code`, and since the last match it has said all of `said`; what it has said."""
        self._child.expect(pexpect.EOF)
        self._child.close()
        rest = self._child.before or ""
        assert (self._child.exitstatus, self._child.signalstatus) == (code, None), rest
        assert [words for words in said if words not in rest] == [], rest
        assert "Traceback" not in rest
        return rest
