"""On other systems than Linux: one clear line for whatever needs the host, and help all the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_cli import LEAVES

TOP = Path(__file__).resolve().parent.parent.parent
# A Python as it is on the other system: what it calls itself, without the modules and functions that it does not have.
ELSEWHERE = """
import importlib.abc, json, os, sys
import click  # it looks at the platform by itself, and asks Windows for its console
UNIX = {"fcntl", "pwd", "grp", "termios", "resource", "pty", "tty"}
GONE = {"darwin": {"libvirt", "pyudev"}, "win32": {"libvirt", "pyudev", *UNIX}}
platform = os.environ["PLATFORM"]

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in GONE[platform]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
for name in GONE[platform]:
    sys.modules.pop(name, None)
sys.platform = platform
if platform == "win32":
    for name in ("geteuid", "getuid", "statvfs", "uname", "O_DIRECT"):
        delattr(os, name)
"""
ALL = (
    ELSEWHERE
    + """
from pocketcloud.cli.main import run
print(json.dumps([run(words) for words in json.loads(os.environ["LINES"])]))
"""
)
ONE = (
    ELSEWHERE
    + """
from pocketcloud.cli.main import main
main()
"""
)
SAID = {"darwin": "this is macOS", "win32": "this is Windows"}


def elsewhere(platform: str, code: str, *arguments: str, lines: object = ()) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("POCKETCLOUD_")}
    env |= {"PLATFORM": platform, "LINES": json.dumps(lines), "PYTHONPATH": str(TOP)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=env, capture_output=True, text=True, check=False, timeout=120
    )  # fmt: skip


@pytest.mark.parametrize("platform", SAID)
def test_every_command_says_in_a_line_that_this_is_no_linux(platform: str) -> None:
    lines = [[*path, "x"] for path in LEAVES] + [
        ["check", "--no-measure", "-o", "json"],
        ["lab", "exec", "m", "--", "ls", "--help"],
    ]
    done = elsewhere(platform, ALL, lines=lines)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [3] * len(lines), "and nothing else on stdout"
    told = done.stderr.splitlines()
    assert len(told) == len(lines)
    assert set(told) == {f"error: pocketcloud runs on Linux, with QEMU and libvirt; {SAID[platform]}"}


@pytest.mark.parametrize("platform", SAID)
@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["--version"], ["check", "--help"], ["lab", "up", "-h"], ["kit", "--help"]]
)
def test_help_and_version_are_the_same_everywhere(platform: str, arguments: list[str]) -> None:
    done = elsewhere(platform, ONE, *arguments)
    assert done.returncode == 0, done.stderr
    assert "pocketcloud" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("platform", SAID)
def test_check_ends_with_3(platform: str) -> None:
    done = elsewhere(platform, ONE, "check")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.count("\n") == 1
