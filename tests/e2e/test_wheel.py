"""The wheel: built as `make dist` builds it, installed elsewhere, and asked for what it carries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    out = tmp_path_factory.mktemp("dist")
    # As `make dist` does it; the sdist is left out to save time.
    built = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", out, TOP],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command `pocketcloud` of a new virtual environment that has the wheel, and our dependencies but not our checkout.

    The dependencies are lent from the environment the tests run in, by a folder of links: fetching them again would prove
    nothing about the wheel.
    """
    place = tmp_path_factory.mktemp("elsewhere with a space")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place / "venv"], check=True)
    python = place / "venv/bin/python"
    lent = place / "lent"
    lent.mkdir()
    for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(folder).iterdir():
            if "pocketcloud" not in entry.name and entry.suffix != ".pth":
                (lent / entry.name).symlink_to(entry)
    said = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True
    )
    (Path(said.stdout.strip()) / "lent.pth").write_text(f"{lent}\n", encoding="utf-8")
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", wheel],
        check=True,
        cwd=place,
    )
    return place / "venv/bin/pocketcloud"


def ask(command: Path, *args: str) -> str:
    """What the installed command answers, far away from the checkout."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    said = subprocess.run([command, *args], cwd=command.parents[2], env=environment, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    return said.stdout


def names(folder: str) -> set[str]:
    """The shipped files of a folder, as their names in the tool."""
    return {path.stem for path in (TOP / folder).glob("*.yaml")}


def test_the_wheel_carries_all_that_is_shipped(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    for folder in ("bases", "kickstarts", "labs", "profiles"):
        shipped = {f"pocketcloud/data/{path.relative_to(TOP).as_posix()}" for path in (TOP / folder).rglob("*") if path.is_file()}
        assert shipped, f"{folder}/ is empty"
        assert shipped <= inside
    templates = {path.relative_to(TOP).as_posix() for path in (TOP / "pocketcloud").rglob("*.j2")}
    assert templates, "there is no template beside the code"
    assert templates <= inside
    assert {"pocketcloud/data/packages.tsv", "pocketcloud/data/usb-bridges.tsv"} <= set(inside)
    assert "pocketcloud/py.typed" in inside
    assert not [name for name in inside if name.startswith(("tests/", "scripts/", "bench/"))]
    assert any(name.endswith("/licenses/LICENSE") for name in inside)


def test_it_is_the_installed_one(installed: Path) -> None:
    python = installed.parent / "python"
    said = subprocess.run(
        [python, "-c", "import pocketcloud; print(pocketcloud.__file__)"], cwd="/", capture_output=True, text=True, check=True
    )
    assert Path(said.stdout.strip()).is_relative_to(installed.parents[1])


def test_version(installed: Path) -> None:
    assert ask(installed, "--version").strip()


def test_profiles_are_inside(installed: Path) -> None:
    answer = ask(installed, "profile", "list", "-o", "json")
    assert json.loads(answer)
    assert all(name in answer for name in names("profiles"))


def test_bases_are_inside(installed: Path) -> None:
    answer = ask(installed, "base", "list", "--available", "-o", "json")
    assert json.loads(answer)
    assert all(name in answer for name in names("bases"))


def test_labs_are_inside(installed: Path) -> None:
    answer = ask(installed, "lab", "list", "-o", "json")
    assert all(name in answer for name in names("labs"))


def test_the_schema_is_printed(installed: Path) -> None:
    schema = json.loads(ask(installed, "lab", "schema"))
    assert {"lab", "machines", "networks"} <= set(schema["properties"])
