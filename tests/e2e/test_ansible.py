"""The inventory of `lab inventory`, in each of its forms, used by a real Ansible against a real sshd."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketcloud.keys import new_key, write_private
from pocketcloud.lab.ansible import Format, Host, inventory
from pocketcloud.model.names import Name
from tests.sshd import SSHD, Sshd

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not SSHD, reason="openssh-server is not installed (packages.tsv: test:sshd)")]

TOP = Path(__file__).resolve().parents[2]
ANSIBLE = TOP / ".cache/ansible"


@pytest.fixture(scope="module")
def ansible() -> Path:
    """The folder of Ansible's programs, installed as `pyproject.toml` names it into an environment of its own."""
    if not (ANSIBLE / "bin/ansible").exists():
        shutil.rmtree(ANSIBLE, ignore_errors=True)
        wanted = tomllib.loads((TOP / "pyproject.toml").read_text())["dependency-groups"]["ansible"]
        subprocess.run([sys.executable, "-m", "venv", str(ANSIBLE)], check=True)
        subprocess.run([ANSIBLE / "bin/pip", "--quiet", "install", *wanted], check=True)
    return ANSIBLE / "bin"


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    with Sshd(tmp_path / "sshd") as server:
        yield server


def used(sshd: Sshd, ansible: Path, folder: Path, form: Format, host_key: str) -> subprocess.CompletedProcess[str]:
    """`ansible -m ping` and a command through an inventory of that form, in a folder with blanks in its path."""
    kit = folder / "my kit 100%"
    kit.mkdir()
    write_private(kit / "id_ed25519", sshd.client)
    (kit / "known_hosts").write_text(f"[127.0.0.1]:{sshd.port} {host_key}\n")
    hosts = [Host(Name("web"), Name("debian-12"), "127.0.0.1")]
    text = inventory(Name("demo-2"), hosts, kit / "id_ed25519", kit / "known_hosts", form)
    file = kit / "inventory"
    if form is Format.JSON:
        file.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n")
        file.chmod(0o755)
    else:
        file.write_text(text)
    # What is handed over by a pipe can be read once only.
    source = f"<(cat '{file}')" if form is Format.YAML else f"'{file}'"
    # Machines of labs have sshd at port 22, where this host may have its own.
    port = f"-e ansible_port={sshd.port} -e ansible_python_interpreter='{sys.executable}'"
    line = f"ansible -i {source} {port} demo_2 -m ping && ansible -i {source} {port} base_debian_12 -m command -a 'echo it works'"
    env = {"HOME": str(folder), "PATH": f"{ansible}:{os.environ['PATH']}", "ANSIBLE_NOCOLOR": "1", "LC_ALL": "C.UTF-8"}
    return subprocess.run(["bash", "-c", line], env=env, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("form", Format)
def test_ansible_reaches_machines_by_the_inventory(sshd: Sshd, ansible: Path, tmp_path: Path, form: Format) -> None:
    done = used(sshd, ansible, tmp_path, form, sshd.host.bare)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"ping": "pong"' in done.stdout
    assert "it works" in done.stdout
    assert "WARNING" not in done.stderr, done.stderr
    assert not (tmp_path / ".ssh/known_hosts").exists(), "the lab's own list of host keys is what counts"


def test_ansible_lets_no_other_machine_in(sshd: Sshd, ansible: Path, tmp_path: Path) -> None:
    done = used(sshd, ansible, tmp_path, Format.YAML, new_key("other").bare)
    assert done.returncode != 0
    assert "UNREACHABLE" in done.stdout
    assert "Host key verification failed" in done.stdout
