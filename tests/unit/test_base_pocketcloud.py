"""The steps of the base `pocketcloud`, run as they stand in its definition, with their places in a folder of the test's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pocketcloud.bases import wheels
from pocketcloud.bases.definitions import find


def wheel(folder: Path, name: str, version: str, tag: str = "py3-none-any", needs: str = "", says: str = "") -> None:
    """A distribution as pip takes it; `says`: what its command of that name prints."""
    info = f"{name}-{version}.dist-info"
    required = f"Requires-Dist: {needs}\n" if needs else ""
    contents = {
        f"{name}.py": f"def main():\n    print({says!r})\n".encode(),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{required}".encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    if says:
        contents[f"{info}/entry_points.txt"] = f"[console_scripts]\n{name} = {name}:main\n".encode()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}-{version}-{tag}.whl").write_bytes(wheels._packed(contents, info))


def test_nobody_else_is_installed_under_our_name(tmp_path: Path) -> None:
    """Where Python is another here, what is carried does not suffice, and an index is asked."""
    index, carried, bin_ = tmp_path / "index", tmp_path / "wheels", tmp_path / "bin"
    bin_.mkdir()
    wheel(carried, "pocketcloud", "0.5", needs="compiled>=1", says="ours")
    wheel(carried, "compiled", "1.2.0", tag="cp399-cp399-linux_x86_64")
    wheel(index / "pocketcloud", "pocketcloud", "99.0", says="somebody else's")
    for version in ("1.2.0", "7.0"):
        wheel(index / "compiled", "compiled", version)
    for folder in index.iterdir():
        links = "".join(f'<a href="{path.name}">{path.name}</a>' for path in folder.glob("*.whl"))
        (folder / "index.html").write_text(f"<!DOCTYPE html><html><body>{links}</body></html>")
    step = find("pocketcloud").post[0]
    for real, ours in (("/opt/pocketcloud", "env"), ("/usr/local/bin", "bin"), ("/var/tmp/wheels", "wheels")):
        assert real in step
        step = step.replace(real, str(tmp_path / ours))
    env = {"PATH": f"{bin_}:{Path(sys.executable).parent}:{os.environ['PATH']}", "PIP_INDEX_URL": index.as_uri()}
    ran = subprocess.run(["sh", "-eu", "-c", step], capture_output=True, text=True, env=env, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (0, "ours"), ran.stderr
    listed = subprocess.run([tmp_path / "env/bin/pip", "list", "--format=freeze"], capture_output=True, text=True, check=True)
    assert {"pocketcloud==0.5", "compiled==1.2.0"} <= set(listed.stdout.split())


@pytest.mark.parametrize(
    ("code", "readable", "does"),
    [(2, True, "init"), (0, True, "attach"), (8, True, "attach"), (4, True, "attach"), (2, False, "attach")],
)
def test_a_kit_is_made_only_on_a_disk_with_nothing_on_it(tmp_path: Path, code: int, does: str, *, readable: bool) -> None:
    """blkid says nothing where two signatures are at odds (8), and may say that it found nothing (2) where reading fails."""
    match = re.search(r"(?s)<<'END'\n(#!/bin/sh\ndisk=.*?)END\n", find("pocketcloud").post[2])
    assert match is not None
    disk = tmp_path / "disk"
    if readable:
        disk.write_bytes(bytes(8192))
    else:
        disk.mkdir()
    for name, does_it in (("udevadm", "true"), ("blkid", f"exit {code}"), ("pocketcloud", 'echo "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does_it}\n")
        (tmp_path / name).chmod(0o755)
    script = match[1].replace("/dev/disk/by-id/virtio-kit", str(disk))
    ran = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=True
    )
    assert ran.stdout.split()[:2] == ["kit", does]
