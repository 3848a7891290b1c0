"""Wheels made again from what is installed here: whole, the same each time, and what pip takes."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pocketcloud.bases import wheels
from pocketcloud.bases.builder import inputs_digest
from pocketcloud.bases.definitions import find
from pocketcloud.errors import HostLacks
from pocketcloud.model.base import Arch, BootstrapDefinition, Wheels

ALL = Wheels(("pocketcloud",), without=("libvirt_python",))


@pytest.fixture(scope="module")
def made() -> dict[str, bytes]:
    return wheels.carried(ALL)


def test_all_that_is_required_is_there_and_what_is_left_out_is_not(made: dict[str, bytes]) -> None:
    names = {name.split("-")[0].lower() for name in made}
    assert {"pocketcloud", "click", "pydantic", "pydantic_core", "paramiko", "cryptography", "ruamel_yaml"} <= names
    assert "libvirt_python" not in names
    assert "pytest" not in names


def test_ours_has_the_code_and_what_is_shipped_beside_it(made: dict[str, bytes]) -> None:
    (own,) = (content for name, content in made.items() if name.startswith("pocketcloud-"))
    with zipfile.ZipFile(io.BytesIO(own)) as archive:
        inside = set(archive.namelist())
        assert archive.testzip() is None
    assert {"pocketcloud/cli/main.py", "pocketcloud/data/bases/debian-12.yaml", "pocketcloud/data/packages.tsv"} <= inside
    assert not [name for name in inside if "__pycache__" in name]


def test_they_are_the_same_each_time(made: dict[str, bytes]) -> None:
    assert wheels.carried(ALL) == made


def test_pip_installs_them_and_the_command_runs(made: dict[str, bytes], tmp_path: Path) -> None:
    for name, content in made.items():
        (tmp_path / name).write_bytes(content)
    place = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*install, f"--target={place}", *(str(tmp_path / name) for name in made)], check=True)
    # -I: neither this folder nor the environment's packages are found but by what is inserted.
    code = f"import sys; sys.path[:0] = [{str(place)!r}]; from pocketcloud.cli.main import main; main()"
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, "base", "list", "--available", "-o", "json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    assert '"debian-12"' in ran.stdout


def test_what_is_carried_is_part_of_the_key() -> None:
    definition = find("pocketcloud")
    assert isinstance(definition, BootstrapDefinition)
    assert definition.wheels is not None
    parts = dict(wheels.fingerprint(definition.wheels))
    assert len(parts["pocketcloud"]) == 32
    assert "pydantic/__init__.py,sha256=" in parts["pydantic"].decode()
    assert inputs_digest(definition, Arch.X86_64) == inputs_digest(definition, Arch.X86_64)


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    info = tmp_path / "thing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nTag: py3-none-any\n")
    (info / "RECORD").write_text("thing.py,,\nthing-1.0.dist-info/METADATA,,\n")
    sys.path.append(str(tmp_path))
    try:
        with pytest.raises(HostLacks, match=r"thing 1\.0 is not whole here .*thing\.py: No such file") as caught:
            wheels.carried(Wheels(("thing",)))
    finally:
        sys.path.remove(str(tmp_path))
    assert "--force-reinstall" in caught.value.hint


def test_what_is_not_installed_is_told_and_keys_all_the_same() -> None:
    nowhere = Wheels(("no-such-distribution",))
    with pytest.raises(HostLacks, match="has no distribution no-such-distribution"):
        wheels.carried(nowhere)
    assert [name for name, _ in wheels.fingerprint(nowhere)] == ["lacking"]
