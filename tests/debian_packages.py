"""Packages of Debian unpacked in the checkout's `.cache`, never installed: a test must not change what the host does."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

CACHE = Path(__file__).resolve().parents[1] / ".cache/packages"


def unpacked(package: str) -> Path:
    """The folder with the package's files; fetched through the host's own apt once. Skips the test where there is no apt, or
    where apt does not know the package."""
    folder = CACHE / package
    if folder.is_dir():
        return folder
    if any(shutil.which(tool) is None for tool in ("apt-get", "apt-cache", "dpkg")):
        pytest.skip(f"the package {package} of Debian cannot be fetched without apt")
    known = subprocess.run(["apt-cache", "show", package], capture_output=True, check=False)
    if known.returncode:
        pytest.skip(f"apt knows no package {package}")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        root = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
        subprocess.run(["apt-get", "-qq", *root, "download", package], cwd=name, check=True, capture_output=True)
        (archive,) = Path(name).glob("*.deb")
        subprocess.run(["dpkg", "-x", archive, f"{name}/files"], check=True)
        Path(name, "files").rename(folder)
    return folder
