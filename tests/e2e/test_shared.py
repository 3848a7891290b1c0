"""A lab given from one kit to another, empty one, and raised there of real Debian guests: its checks are asked, and a real
Ansible reaches its machine by the inventory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketcloud.bases import records
from pocketcloud.model.base import Arch
from pocketcloud.model.names import Name
from tests.built_base import CACHE, built_base, kit_in
from tests.labkit import TOP, LabKit, lab_kit

pytestmark = pytest.mark.slow

ANSIBLE = TOP / ".cache/ansible"
PATIENCE = 1200.0
LAB = """\
lab: course
machines:
  web:
    base: debian-12
    networks: [front]
    provision:
    - {write: /etc/motd, from: files/motd}
    - {run: touch /provisioned}
    ready: {ssh: true, within: 15m}
networks:
  front: {kind: isolated}
checks:
- {name: provisioned, machine: web, run: test -e /provisioned, points: 2}
- {name: as-given, machine: web, run: grep -q long /etc/motd, points: 3}
- {name: not-yet, machine: web, run: "echo not started; exit 4", points: 5, hint: start it}
- {name: hangs, machine: web, run: sleep 600, within: 2s}
"""


@pytest.fixture(scope="module")
def ansible() -> Path:
    """The folder of Ansible's programs, installed as `pyproject.toml` names it into an environment of its own."""
    if not (ANSIBLE / "bin/ansible").exists():
        wanted = tomllib.loads((TOP / "pyproject.toml").read_text())["dependency-groups"]["ansible"]
        subprocess.run([sys.executable, "-m", "venv", str(ANSIBLE)], check=True)
        subprocess.run([ANSIBLE / "bin/pip", "--quiet", "install", *wanted], check=True)
    return ANSIBLE / "bin"


@pytest.fixture(scope="module")
def taker() -> Iterator[LabKit]:
    """An empty kit, but for the base, which is the one that its exported definition builds."""
    with lab_kit(kit_folder="a kit") as kit, built_base("debian-12", Arch.X86_64) as (_, volume):
        shutil.copy(volume.path, kit.path / "volumes")
        base = records.find(kit_in(CACHE), Name("debian-12"), Arch.X86_64)
        assert base is not None
        records.write(kit.kit, base)
        yield kit


def test_a_lab_is_given_to_another_kit_and_used_there(taker: LabKit, ansible: Path) -> None:
    given = taker.folder / "course.tar.gz"
    with lab_kit() as giver:
        path = giver.lab(LAB)
        (giver.folder / "files").mkdir()
        (giver.folder / "files/motd").write_text("a long welcome\n" * 1000)
        giver.cli("lab", "export", path, given).expect(0, "1 definitions of bases")
    taker.cli("lab", "import", given, "-y").expect(0, "as it is known here", "lab up course")
    given.unlink()
    # The base that is there is what the definition builds: nothing is to do.
    taker.cli("base", "build", "debian-12", timeout=PATIENCE).expect(0, "up to date")
    taker.cli("lab", "up", "course", timeout=PATIENCE).expect(0, "lab course is up")

    done = taker.cli("lab", "status", "course", "--checks", "-o", "json", timeout=PATIENCE).expect(0).json()
    checks = done["checks"]
    assert isinstance(checks, list)
    assert [(c["check"], c["verdict"], c["reason"]) for c in checks] == [
        ("provisioned", "passed", ""),
        ("as-given", "passed", ""),
        ("not-yet", "failed", "exit code 4"),
        ("hangs", "failed", "did not end within 2 s"),
    ]
    assert (done["points"], done["of"]) == (5, 11)
    taker.cli("lab", "status", "course", "--checks", timeout=PATIENCE).expect(0, "5 of 11 points", "start it", "not started")

    _use_ansible(taker, ansible)


def _use_ansible(kit: LabKit, ansible: Path) -> None:
    home = kit.folder / "home"
    home.mkdir()
    env = {**kit.env, "HOME": str(home), "ANSIBLE_TIMEOUT": "120", "ANSIBLE_NOCOLOR": "1", "PYTHONWARNINGS": "default"}
    env["PATH"] = f"{ansible}:{os.environ['PATH']}"
    script = kit.folder / "inventory script"
    script.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m pocketcloud lab inventory course --format json\n")
    script.chmod(0o755)
    (kit.folder / "inventory.ini").write_text(kit.cli("lab", "inventory", "course", "--format", "ini").expect(0).out)
    print_it = f"'{sys.executable}' -m pocketcloud lab inventory course"
    sources = (f"<({print_it})", f"'{script}'", f"'{kit.folder}/inventory.ini'")
    found = [_ran(f"ansible-inventory -i {source} --list", env) for source in sources]
    variables = [json.loads(text)["_meta"]["hostvars"]["web"] for text in found]
    assert variables[0] == variables[1] == variables[2]
    assert _ran(f"ansible -i <({print_it}) course -m ping", env).count('"ping": "pong"') == 1
    assert "a long welcome" in _ran(f"ansible -i '{script}' base_debian_12 -m command -a 'head -1 /etc/motd'", env)
    assert not (home / ".ssh/known_hosts").exists(), "the lab's own list of host keys is what counts"


def _ran(line: str, env: dict[str, str]) -> str:
    done = subprocess.run(["bash", "-c", line], env=env, cwd=TOP, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert "WARNING" not in done.stderr or "interpreter" in done.stderr, done.stderr
    return done.stdout
