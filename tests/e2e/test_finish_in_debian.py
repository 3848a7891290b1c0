"""What our preseed runs at the end of an installation, really run in a Debian: a folder of packages, in the namespace that bases
are bootstrapped in. Of the installer itself, of the disk and of GRUB there is nothing here."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest

from pocketcloud.bases import answers, definitions
from pocketcloud.bases.mirror import apt_options, choose
from pocketcloud.bases.namespace import WORK, confined, give
from pocketcloud.model.base import Arch, BootstrapDefinition, InstallDefinition
from pocketcloud.system import run
from tests.answer_files import public_site, read_preseed, script_in

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="the namespace takes root"),
    pytest.mark.skipif(shutil.which("mmdebstrap") is None, reason="no mmdebstrap here"),
]
# What debian-installer has put there beside the packages that it is asked for.
SYSTEM = "systemd-sysv,udev,dbus,ifupdown,e2fsprogs,netbase,patch"
TRACES = """\
set -eu
echo seven > "$1/etc/machine-id"
echo installer > "$1/etc/hostname"
echo 'Acquire::http::Proxy "http://10.0.0.1:3142";' > "$1/etc/apt/apt.conf"
mkdir -p "$1/var/log/installer" "$1/var/lib/cloud/seed" "$1/root/.ssh"
echo hush > "$1/var/log/installer/preseed"
echo key > "$1/root/.ssh/authorized_keys"
ln -sf /bin/true "$1/usr/sbin/update-grub"
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a Debian in which the script has run to its end."""
    work = tmp_path_factory.mktemp("finish")
    bootstrapped, installed = definitions.find("debian-12"), definitions.find("debian-12-installer")
    assert isinstance(bootstrapped, BootstrapDefinition)
    assert isinstance(installed, InstallDefinition)
    patch = "--- a/etc/issue\n+++ b/etc/issue\n@@ -1,2 +1,2 @@\n-Debian GNU/Linux 12 \\n \\l\n+Mine \\n \\l\n \n"
    installed = dataclasses.replace(installed, patches=(patch,), post=('echo "it\'s done" > /etc/mine\ntest "$(id -u)" = 0',))
    templates = work / "templates"
    templates.mkdir()
    # A folder has no partitions.
    (templates / "partitions.sh.j2").write_text("", encoding="utf-8")
    answer = answers.render(installed, Arch.AARCH64, public_site(installed, Arch.AARCH64), templates)
    packages = read_preseed(answer.text)["pkgsel/include"][2].split()
    mirror = choose(bootstrapped, None)
    signed = f"[signed-by={bootstrapped.keyring}]"
    for name, text in {
        "script.sh": script_in(installed, answer),
        "traces.sh": TRACES,
        "apt.conf": apt_options(),
        "sources.list": f"deb {signed} {mirror.archive} {bootstrapped.suite} main\n",
    }.items():
        (work / name).write_text(text, encoding="utf-8")
    (work / "tmp").mkdir()
    for path in (work, *work.rglob("*")):
        give(path)
    work.chmod(0o711)
    argv = [
        "mmdebstrap", "--mode=unshare", "--format=directory", "--variant=minbase", "--skip=cleanup",
        f"--keyring={bootstrapped.keyring}",
        f"--aptopt={WORK}/apt.conf", f"--include={SYSTEM},{','.join(packages)}",
        f"--customize-hook=sh {WORK}/traces.sh \"$1\"",
        f"--customize-hook=chroot \"$1\" sh -s < {WORK}/script.sh || {{ cat \"$1/var/tmp/pocketcloud.log\"; exit 1; }}",
        bootstrapped.suite, f"{WORK}/root", f"{WORK}/sources.list",
    ]  # fmt: skip
    run(confined(work, argv), env={name: str(WORK / "tmp") for name in ("HOME", "TMPDIR")}, timeout=1200)
    return work / "root"


def test_the_requirements_are_met(finished: Path) -> None:
    assert (finished / "etc/issue").read_text() == "Mine \\n \\l\n\n"
    assert (finished / "etc/mine").read_text() == "it's done\n"


def test_nothing_of_the_installation_is_left(finished: Path) -> None:
    assert (finished / "etc/machine-id").read_bytes() == b""
    for gone in ("etc/hostname", "etc/apt/apt.conf", "root/.ssh", "var/lib/cloud", "etc/apt/sources.list"):
        assert not (finished / gone).exists(), gone
    for empty in ("var/log/installer", "var/tmp", "var/lib/apt/lists/partial", "var/cache/apt/archives/partial"):
        assert list((finished / empty).iterdir()) == [], empty
    assert not list((finished / "etc/ssh").glob("ssh_host_*"))
    logs = [path for path in (finished / "var/log").rglob("*") if path.is_file() and not path.is_symlink()]
    assert {path.name for path in logs} <= {"btmp", "wtmp", "lastlog", "faillog"}
    assert all(path.stat().st_size == 0 for path in logs)


def test_the_services_of_a_lab_machine_are_on(finished: Path) -> None:
    units = finished / "etc/systemd/system"
    for unit in ("ssh.service", "systemd-networkd.service", "fstrim.timer", "pocketcloud-online.service"):
        # Links to absolute paths, which lead nowhere from out here.
        assert [link for link in units.rglob("*") if link.name == unit and link.parent.suffix == ".wants"], unit
    for masked in ("apt-daily.timer", "networking.service", "systemd-networkd-wait-online.service"):
        assert (units / masked).readlink() == Path("/dev/null"), masked
    assert "datasource_list: [NoCloud, None]" in (finished / "etc/cloud/cloud.cfg.d/90-pocketcloud.cfg").read_text()
    assert (finished / "etc/resolv.conf").readlink() == Path("../run/systemd/resolve/stub-resolv.conf")
    sources = (finished / "etc/apt/sources.list.d/debian.sources").read_text()
    assert sources.count("URIs: http://mirrors.kernel.org/debian\n") == 1
    assert "Suites: bookworm-security" in sources
