"""The base debian-12 for aarch64: built on any host, and started on an emulated aarch64 machine."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pocketcloud.model.base import Arch
from pocketcloud.model.sizes import GIB
from pocketcloud.storage import Volume
from tests.built_base import built_base
from tests.emulated import emulated

BINFMT = Path("/proc/sys/fs/binfmt_misc")
ENTRY = BINFMT / "qemu-aarch64"


def do(*argv: str) -> None:
    subprocess.run(argv, check=True)


@pytest.fixture(scope="module")
def foreign_programs() -> Iterator[None]:
    """Programs for aarch64 run on this host. Where they do not yet (no systemd), that is set up, and taken back afterwards."""
    with ExitStack() as undo:
        if platform.machine() != Arch.AARCH64 and not ENTRY.exists():
            missing = [tool for tool in ("update-binfmts", "qemu-aarch64-static") if shutil.which(tool) is None]
            assert not missing, f"not installed: {missing}; `make test-slow` installs qemu-user-static and binfmt-support"
            if not (BINFMT / "register").exists():
                do("mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT))
                undo.callback(do, "umount", str(BINFMT))
            do("update-binfmts", "--enable", "qemu-aarch64")
            undo.callback(do, "update-binfmts", "--disable", "qemu-aarch64")
        yield


@pytest.fixture(scope="module")
def base(request: pytest.FixtureRequest) -> Iterator[Volume]:
    request.getfixturevalue("foreign_programs")
    with built_base("debian-12", Arch.AARCH64) as (_, volume):
        yield volume


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_it_answers_ssh(base: Volume, tmp_path: Path) -> None:
    with emulated(base.path, tmp_path, Arch.AARCH64, 12 * GIB, secure=False, within=600) as machine:
        print(f"ssh after {machine.seconds:.1f} s")
        assert machine.said("uname -m").strip() == "aarch64"
        assert machine.said("cloud-init status --wait").strip(".\n").endswith("done")
        print(machine.said("systemd-analyze"))
        assert machine.said("systemctl --failed --quiet --no-legend") == ""
        assert "console=ttyAMA0" in machine.said("cat /proc/cmdline")
        assert int(machine.said("df --output=size -B1 / | tail -1")) > 11 * GIB
