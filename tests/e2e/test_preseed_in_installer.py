"""What Debian's own installer makes of our preseed: read by its debconf-set-selections, out of its own initrd."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import pytest

from pocketcloud.bases import definitions
from pocketcloud.model.base import Arch, InstallDefinition
from tests.answer_files import hostile, hostile_site, read_preseed, script_in, text_of
from tests.rig import debian_installer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="chroot takes root"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the installer's programs are x86-64's"),
    pytest.mark.skipif(shutil.which("cpio") is None, reason="no cpio here"),
]
# Not values of their own: debconf keeps no text for notes, and passwords not under their question.
UNASKED = ("finish-install/reboot_in_progress", "passwd/root-password-crypted")


def test_the_installer_reads_what_we_wrote(tmp_path: Path) -> None:
    definition = definitions.find("debian-12-installer")
    assert isinstance(definition, InstallDefinition)
    definition = hostile(definition)
    answer = text_of(definition, Arch.X86_64, hostile_site(definition, Arch.X86_64))
    ours = {question: value for question, (_, _, value) in read_preseed(answer.text).items() if question not in UNASKED}
    root = debian_installer.root_of(tmp_path)
    assert debian_installer.answered(root, answer.text, list(ours)) == ours

    debian_installer.told(root, ours["preseed/early_command"])
    assert (root / "pocketcloud.sh").read_text(encoding="utf-8") == script_in(definition, answer)
    hook = root / "usr/lib/finish-install.d/94zpocketcloud"
    assert hook.stat().st_mode & 0o111
    # The installer runs them in this order: after its logs are saved, before the disk is unmounted (95umount comes later).
    names = sorted([path.name for path in hook.parent.iterdir()] + ["95umount", "94random-seed"])
    after = names[names.index(hook.name) + 1 :]
    assert "94save-logs" not in after
    assert "94random-seed" not in after
    assert after[0] == "95umount"
