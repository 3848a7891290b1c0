"""What thaws a guest's file systems where its agent does not: the shell's words, on a list of mounts, with the tool beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketcloud.apply.readiness import THAW_ALL
from pocketcloud.system import run

MOUNTS = """\
proc /proc proc rw 0 0
/dev/vda1 / ext4 rw,relatime 0 0
tmpfs /run tmpfs rw 0 0
/dev/vdb /srv/my\\040data xfs rw 0 0
/dev/vda15 /boot/efi vfat rw 0 0
"""


@pytest.mark.parametrize("code", [0, 1])
def test_every_file_system_that_can_be_frozen_is_thawed_whether_it_was_frozen_or_not(tmp_path: Path, code: int) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)
    tool = tmp_path / "fsfreeze"
    tool.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/said\nexit {code}\n')
    tool.chmod(0o755)
    words = THAW_ALL.replace("/proc/mounts", str(tmp_path / "mounts"))
    assert words != THAW_ALL
    run(["sh", "-c", f"{words}\n\nexit"], env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert (tmp_path / "said").read_text().splitlines() == [f"--unfreeze {at}" for at in ("/", "/srv/my data", "/boot/efi")]
