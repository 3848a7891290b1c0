"""packages.tsv: the one home of package names, read alike by scripts/packages (before there is a Python) and host/packages.py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pocketcloud.host.packages import Family, capabilities, packages
from pocketcloud.model.facts import Distribution

TOP = Path(__file__).resolve().parents[2]
TABLE = TOP / "packages.tsv"
COLUMNS = ["capability", "needed-for", "debian", "ubuntu", "fedora", "el"]
# What dpkg and rpm allow, with our own @architecture behind it.
PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*(@(x86_64|aarch64))?")
ONE_OF_EACH = {
    Family.DEBIAN: Distribution(id="debian", version="12", codename="bookworm", name="Debian"),
    Family.UBUNTU: Distribution(id="ubuntu", version="24.04", codename="noble", name="Ubuntu", like=("debian",)),
    Family.FEDORA: Distribution(id="fedora", version="42", codename="", name="Fedora"),
    Family.EL: Distribution(id="rocky", version="9.5", codename="", name="Rocky", like=("rhel", "centos", "fedora")),
}


def rows() -> list[list[str]]:
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines if line and not line.startswith("#")]


def from_shell(*args: str) -> list[list[str]]:
    """What scripts/packages says: capability, reason, packages."""
    said = subprocess.run([TOP / "scripts/packages", *args], capture_output=True, text=True, check=True)
    return [line.split("\t") for line in said.stdout.splitlines()]


def test_the_table_is_whole() -> None:
    header, *body = rows()
    assert header == COLUMNS
    for row in body:
        assert len(row) == len(COLUMNS), row
        assert all(row), row
        for cell in row[2:]:
            assert cell == "-" or all(PACKAGE.fullmatch(name) for name in cell.split(" ")), cell


def test_capabilities_are_named_once() -> None:
    names = [row[0] for row in rows()[1:]]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("family", list(Family))
def test_shell_and_python_read_the_same(family: Family, machine: str) -> None:
    names = list(capabilities())
    by_shell = {row[0]: tuple(row[2].split()) for row in from_shell("--slow", family, machine)}
    for name in names:
        assert packages(ONE_OF_EACH[family], machine, [name]) == by_shell.get(name, ()), name
    assert set(by_shell) <= set(names)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("family", list(Family))
def test_every_host_gets_what_a_lab_needs(family: Family, machine: str) -> None:
    there = {row[0] for row in from_shell(family, machine)}
    assert {"python", "python-build", "qemu", "qemu-img", "firmware", "libvirt", "dnsmasq", "ssh-client"} <= there


def test_scopes_grow() -> None:
    demo, test, slow = ({row[0] for row in from_shell(*scope, "debian", "x86_64")} for scope in ((), ("--test",), ("--slow",)))
    assert demo < test < slow
    assert not any(name.startswith("test:") for name in demo)
    assert not any(name.startswith("test:slow-") for name in test)


def test_an_unknown_column_is_refused() -> None:
    said = subprocess.run([TOP / "scripts/packages", "plan9"], capture_output=True, text=True, check=False)
    assert said.returncode == 3
    assert "plan9" in said.stderr
    assert not said.stdout


@pytest.mark.skipif(not shutil.which("apt-cache"), reason="asks apt whether it knows the names; this host has no apt")
def test_this_distribution_knows_the_names() -> None:
    column = subprocess.run(
        [TOP / "scripts/packages", "--distribution"], capture_output=True, text=True, check=True
    ).stdout.strip()
    wanted = {name for row in from_shell("--slow", column) for name in row[2].split()}
    if not any(Path("/var/lib/apt/lists").glob("*_Packages*")):
        pytest.skip("this host has no package lists (apt-get update fetches them)")
    said = subprocess.run(
        ["apt-cache", "policy", *sorted(wanted)], capture_output=True, text=True, check=True, env=os.environ | {"LC_ALL": "C"}
    )
    known = set(re.findall(r"^(\S+):\n.*\n  Candidate: (?!\(none\))", said.stdout, re.MULTILINE))
    assert not wanted - known
