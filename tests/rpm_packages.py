"""Packages of the RPM family, made by rpmbuild."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

needs_rpm = pytest.mark.skipif(
    platform.machine() != "x86_64" or not all(map(shutil.which, ("rpmbuild", "createrepo_c", "rpm"))),
    reason="rpm and createrepo-c are not installed, or make no packages for x86_64 here",
)
SPEC = """\
Name: {name}
Version: {version}
Release: 1
Summary: for tests
License: none
{buildarch}%description
for tests
%files
"""


def rpm(folder: Path, name: str, version: str, arch: str = "noarch") -> None:
    """Make an empty package in `Packages` of a folder."""
    (folder / "spec").write_text(
        SPEC.format(name=name, version=version, buildarch="BuildArch: noarch\n" if arch == "noarch" else "")
    )
    defines = [f"--define={key} {value}" for key, value in (("_topdir", folder / "build"), ("_rpmdir", folder / "Packages"))]
    subprocess.run(["rpmbuild", "-bb", "--quiet", "--target", arch, *defines, folder / "spec"], check=True, capture_output=True)
    shutil.rmtree(folder / "build")
    (folder / "spec").unlink()
