"""Debian's installer as far as its preseed goes: the root of its own initrd, entered by chroot, where its own
debconf-set-selections and debconf read the file. Nothing of it runs but those; no machine is started."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from pathlib import Path

from tests.debian_packages import unpacked

PACKAGE = "debian-installer-12-netboot-amd64"

# As the installer does at its start: templates into the database, then the file, then what was said is asked for, by another
# debconf, which reads what the first one has stored.
_ENTER = """\
set -e
export DEBIAN_FRONTEND=none
mkdir -p /var/lib/cdebconf /var/log /tmp
debconf-loadtemplate d-i /var/lib/dpkg/info/*.templates
debconf -o d-i /tmp/load
debconf -o d-i /tmp/ask
"""
_LOAD = """\
#!/bin/sh
. /usr/share/debconf/confmodule
debconf-set-selections /tmp/preseed.cfg
"""
_ASK = """\
#!/bin/sh
. /usr/share/debconf/confmodule
for question in $(cat /tmp/questions); do
    db_get "$question"
    printf '%s=%s\\n' "$question" "$RET" >> /tmp/said
done
"""


def root_of(folder: Path) -> Path:
    """The installer's root file system, unpacked in `folder`. Skips the test where it cannot be had."""
    initrd = unpacked(PACKAGE) / "usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64/initrd.gz"
    root = folder / "root"
    root.mkdir()
    with gzip.open(initrd) as file:
        subprocess.run(["cpio", "-idm", "--quiet"], input=file.read(), cwd=root, check=False, stderr=subprocess.DEVNULL)
    (root / "tmp").mkdir(exist_ok=True)
    return root


def answered(root: Path, preseed: str, questions: list[str]) -> dict[str, str]:
    """What the installer takes the file to say to these questions."""
    asked = "".join(f"{q}\n" for q in questions)
    for name, text in (("preseed.cfg", preseed), ("questions", asked), ("load", _LOAD), ("ask", _ASK)):
        (root / "tmp" / name).write_text(text, encoding="utf-8")
        (root / "tmp" / name).chmod(0o755)
    (root / "tmp/said").unlink(missing_ok=True)
    shutil.rmtree(root / "var/lib/cdebconf", ignore_errors=True)
    subprocess.run(["chroot", root, "/bin/sh", "-c", _ENTER], check=True, timeout=300)
    said = (root / "tmp/said").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in said)


def told(root: Path, command: str) -> None:
    """Run a command as the installer runs preseed/early_command."""
    subprocess.run(["chroot", root, "/bin/sh", "-c", command], check=True, timeout=60)
