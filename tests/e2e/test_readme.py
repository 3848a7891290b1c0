"""The README, followed literally: its commands are extracted and run, `make demo` among them, against real guests.

The demo's kit and everything else it makes goes to folders of this test's own, so that nobody's own demo is touched.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_ITSELF = "make test"


def readme_commands() -> list[str]:
    """The README's commands in order, without comments, without the one that runs this test."""
    text = (TOP / "README.md").read_text()
    lines = [line.split("  #")[0].strip() for block in _BLOCK.findall(text) for line in block.splitlines()]
    return [line for line in lines if line and line != _ITSELF]


@dataclass(frozen=True, slots=True)
class Stranger:
    """Somebody who follows the README, in places of their own."""

    room: Path
    kit: str
    env: dict[str, str]

    def run(self, command: str, timeout: float = 1200) -> subprocess.CompletedProcess[str]:
        """Run one line as typed into a shell in the checkout; its output is shown as it would be."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=TOP,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        print(f"$ {command}\n{done.stdout}", flush=True)
        return done


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    # QEMU runs as a user of its own, who cannot enter pytest's folders.
    room = Path(tempfile.mkdtemp(prefix="pocketcloud-readme-", dir="/var/tmp"))
    room.chmod(0o755)
    kit = f"readme-{secrets.token_hex(4)}"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("POCKETCLOUD_", "MAKE", "MFLAGS"))} | {
        "POCKETCLOUD_DEMO_DIR": str(room / "demo"),
        "POCKETCLOUD_DEMO_KIT": kit,
        "POCKETCLOUD_DEFAULT_KIT": str(room / "default"),
        "POCKETCLOUD_RUN_DIR": str(room / "run"),
    }
    someone = Stranger(room, kit, env)
    try:
        yield someone
    finally:
        if (room / "demo" / "kit.json").exists():
            someone.run("scripts/demo --clean")
        shutil.rmtree(room, ignore_errors=True)


def _virsh(*words: str) -> str:
    return subprocess.run(["virsh", "-q", "-c", "qemu:///system", *words], capture_output=True, text=True, check=True).stdout


def test_readme_has_the_commands_that_matter() -> None:
    commands = readme_commands()
    assert commands[0] == "make demo"
    assert commands[-1] == "make demo-clean"
    assert any("lab reset" in command for command in commands)


def test_readme_followed_literally(stranger: Stranger) -> None:
    commands = readme_commands()
    demo = stranger.run(commands[0])
    assert demo.returncode == 0, demo.stdout[-4000:]
    # The lab worked, was broken, was reset, and worked again: the script's own assertions, and what it says of them.
    assert demo.stdout.count("client got: it works") == 2
    assert re.search(r"client (gets nothing any more|still got: (?!it works))", demo.stdout)
    assert "make demo-clean" in demo.stdout
    # Both guests' agents froze their file systems for `clean`; a machine without one is told of.
    assert "guest agent" not in demo.stdout
    status = json.loads(stranger.run(".venv/bin/pocketcloud lab status -o json demo 2>/dev/null").stdout)
    assert [(m["machine"], m["state"], m["clean"]) for m in status["machines"]] == [
        ("web", "running", True),
        ("client", "running", True),
    ]
    assert f"{stranger.kit}.demo.web" in _virsh("list", "--name")
    for command in commands[1:]:
        done = stranger.run(command)
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}"
        if "curl" in command:
            assert done.stdout.strip() == "it works"
    assert stranger.kit not in _virsh("list", "--all", "--name")
    assert stranger.kit not in _virsh("net-list", "--all", "--name")
    assert not (stranger.room / "demo").exists()
