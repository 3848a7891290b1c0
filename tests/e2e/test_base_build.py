"""Builds that do not come to their end: what they say, and that nothing of them is left."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pocketcloud.bases import builder, definitions
from pocketcloud.errors import HostLacks
from pocketcloud.model.base import Arch
from pocketcloud.model.kit import Kit
from pocketcloud.storage import open_storage
from tests.built_base import kit_in
from tests.sshd import free_port

TOP = Path(__file__).resolve().parents[2]
BUILD = """
import sys
from pathlib import Path
from pocketcloud.bases import builder, definitions
from pocketcloud.model.base import Arch
from pocketcloud.storage import open_storage
from tests.built_base import kit_in
kit = kit_in(Path(sys.argv[1]))
builder.build(kit, open_storage(kit), definitions.find("debian-12"), Arch.X86_64, on_progress=lambda text, part: None)
"""


def remains(kit: Kit) -> list[str]:
    """What is in the kit beside its empty tree."""
    return sorted(
        str(path.relative_to(kit.path)) for folder in ("bases", "media", "volumes") for path in (kit.path / folder).rglob("*")
    )


def test_a_mirror_that_does_not_answer_is_named(tmp_path: Path) -> None:
    kit = kit_in(tmp_path)
    mirror = f"http://127.0.0.1:{free_port()}/debian"
    with pytest.raises(HostLacks) as caught:
        builder.build(
            kit,
            open_storage(kit),
            definitions.find("debian-12"),
            Arch.X86_64,
            mirror=mirror,
            on_progress=lambda _text, _fraction: None,
        )
    assert mirror in caught.value.message
    assert "--mirror" in caught.value.hint
    assert remains(kit) == []


def test_ctrl_c_leaves_nothing_and_a_kill_is_swept(tmp_path: Path) -> None:
    kit = kit_in(tmp_path)
    work = kit.path / "media/.work-debian-12-x86_64"
    left = work / "left by the first"
    for ending in (signal.SIGKILL, signal.SIGINT):
        # The second build finds what the first one left: an archive half unpacked, owned by users nobody is.
        with subprocess.Popen([sys.executable, "-c", BUILD, kit.path], cwd=TOP, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 180
            while left.exists() or not (work / "root/var/lib/dpkg/info").exists():
                assert process.poll() is None, process.stderr.read() if process.stderr else ""
                assert time.monotonic() < deadline, "it did not begin to unpack"
                time.sleep(0.05)
            process.send_signal(ending)
            process.communicate(timeout=60)
        assert work.exists() is (ending is signal.SIGKILL)
        if work.exists():
            left.touch()
    assert remains(kit) == []
