"""What `check` prints: in a pipe a line for each thing, on a terminal folded to its width, and commands never folded."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pocketcloud.check import Check, State
from pocketcloud.check.fixes import Command
from pocketcloud.cli.check_table import print_checks

TOP = Path(__file__).parents[2]
COMMAND = "nft insert rule inet filter forward iifname 'pc-*' accept comment 'a line that is longer than the terminal'"
SENTENCE = "Move the disk to another port, and if that does not help to another cable, and then to another computer altogether"
WHY = "It matters because machines that start together share the disk, the processors and the memory of the computer."
TOLD = "something that takes many words to be told, more than a line of a terminal has"
CHECKS = (
    Check("a", "first", State.OK, "all is well", WHY),
    Check("b", "first", State.NOT_APPLICABLE, "it has none", WHY),
    Check("c", "second", State.WARN, TOLD, WHY, (COMMAND, SENTENCE), (Command(("true",)),)),
)
CODE = (
    "from tests.unit.test_check_table import CHECKS\nfrom pocketcloud.cli.check_table import print_checks\nprint_checks(CHECKS)"
)


def test_a_pipe_gets_a_line_for_each_thing(capsys: pytest.CaptureFixture[str]) -> None:
    print_checks(CHECKS)
    assert capsys.readouterr().out.splitlines() == [
        "first",
        "  ok      a: all is well",
        "  -       b: it has none",
        "second",
        f"  warn    c: {TOLD}",
        f"          why: {WHY}",
        f"          do:  {COMMAND}",
        f"               {SENTENCE}",
        "          or:  pocketcloud check --fix",
    ]


def test_a_terminal_gets_lines_that_fit_and_commands_that_can_be_copied() -> None:
    ours, theirs = pty.openpty()
    env = {**os.environ, "COLUMNS": "70", "PYTHONPATH": str(TOP)}
    said = b""
    with subprocess.Popen([sys.executable, "-c", CODE], stdout=theirs, stdin=subprocess.DEVNULL, env=env) as child:
        os.close(theirs)
        try:
            while part := os.read(ours, 4096):
                said += part
        except OSError:
            pass  # EIO: the other side is closed
        finally:
            os.close(ours)
        assert child.wait(60) == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", said.decode()).replace("\r", "").splitlines()
    assert f"          do:  {COMMAND}" in lines
    assert max(len(line) for line in lines if COMMAND not in line) < 70
    words = " ".join(" ".join(lines).split())
    assert all(text in words for text in (WHY, SENTENCE, TOLD)), "folded, not cut"
