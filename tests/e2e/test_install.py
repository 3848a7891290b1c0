"""Installers on real machines, by the real command line: a stand-in for Anaconda, and Debian's own, from mirrors on loopback.

The stand-in (tests/standin) does what our kickstart says and runs its scripts; Debian's installer gets as far as it can without
a mirror: an early command of the tests reports. Both under emulation, each boot half a minute and more.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pocketcloud.bases import records
from pocketcloud.bases.install.machine import KIT_ID
from pocketcloud.hypervisor import open_hypervisor
from pocketcloud.model.base import Arch
from pocketcloud.model.names import Name
from tests.labkit import LabKit, Ran, lab_kit, until
from tests.rpm_packages import needs_rpm, rpm
from tests.signers import signers
from tests.standin import Tree, missing, tree
from tests.standin.debian_installer import debian_installer
from tests.standin.debian_installer import missing as no_debian_installer
from tests.web import Web, serving

WITHIN = 600.0
# One boot of all of them in `make test`, beside the one that succeeds.
SAMPLED = pytest.mark.sampled(12)
ANACONDA = pytest.mark.skipif(bool(missing()), reason=missing())
DEBIAN = pytest.mark.skipif(bool(no_debian_installer()), reason=no_debian_installer())


@dataclass
class Works:
    """A kit, a mirror, and definitions and templates of our own."""

    kit: LabKit
    web: Web
    env: dict[str, str] = field(default_factory=dict)
    base: str = field(default_factory=lambda: f"standin-{secrets.token_hex(3)}")

    def define(self, **said: object) -> None:
        """Write a definition; what is not said is that of a small machine and a small disk."""
        values = {
            "base": self.base, "title": f"{self.base} of a test", "family": "test", "version": "10", "architectures": ["x86_64"],
            "size": "8GiB",
        } | said  # fmt: skip
        folder = self.kit.folder / "bases"
        folder.mkdir(exist_ok=True)
        (folder / f"{self.base}.yaml").write_text(json.dumps(values))
        self.env["POCKETCLOUD_BASES"] = str(folder)

    def anaconda(self, url: str, *packages: str, **said: object) -> None:
        """Define a base that is installed from a tree by kickstart."""
        values: dict[str, object] = {"builder": "kickstart", "template": "anaconda.ks.j2", "tree": url, "packages": packages}
        self.define(**(values | {"requires": {"memory": "512MiB"}} | said))

    def build(self, *words: str, timeout: float = WITHIN) -> Ran:
        return self.kit.cli(
            "base",
            "build",
            self.base,
            *([] if "--offline" in words else ["--online"]),
            "--kit",
            self.kit.kit.name,
            *words,
            env=self.env,
            timeout=timeout,
        )

    def start(self) -> subprocess.Popen[str]:
        self.kit.env |= self.env
        return self.kit.start("base", "build", self.base, "--online", "--kit", self.kit.kit.name)

    def says(self, text: str) -> bool:
        """Whether an installer that runs has said that."""
        return any(text in log.read_text(errors="replace") for log in self.kit.path.glob("media/.work*/machine/console.log"))

    @property
    def logs(self) -> list[Path]:
        return sorted(self.kit.path.glob("media/logs/*"))

    def ours(self) -> list[str]:
        """Throw-away machines and networks of this kit's builds."""
        hypervisor = open_hypervisor()
        found = [domain.name for domain in hypervisor.domains(KIT_ID)] + [each.name for each in hypervisor.networks(KIT_ID)]
        return [name for name in found if self.base in name]

    def running(self) -> bool:
        """Whether one of them runs."""
        return any(domain.active for domain in open_hypervisor().domains(KIT_ID) if self.base in domain.name)

    def nothing_half_made(self) -> None:
        """No volume but the kit's own base, no work folder, no machine or network of ours."""
        assert {volume.name.split(".")[1] for volume in self.kit.storage.volumes()} == {"tiny"}
        assert not list((self.kit.path / "volumes").glob(".*"))
        assert not list((self.kit.path / "media").glob(".work*"))
        assert not self.ours()


@pytest.fixture
def works() -> Iterator[Works]:
    with lab_kit() as kit, serving() as web:
        yield Works(kit, web)


@pytest.fixture(scope="module")
def standin() -> Tree:
    return tree()


# -- the stand-in for Anaconda ----------------------------------------------------------------------------------------


@ANACONDA
def test_a_base_comes_from_a_kickstart(works: Works, standin: Tree) -> None:
    """Whole: the tree, the answer, the machine, the marker, the volume, the record; and nothing to do the second time."""
    url = standin.serve(works.web)
    works.anaconda(url, "nano", "less")
    said = works.build().expect(0, "is built in")
    assert "Stand-in 10 from" in said.err
    # Plain progress leaves out what is quick: one stage of the installer's own is enough.
    assert any(stage in said.err for stage in ("installing ", "in the new system: ", "its kernel starts")), said.err
    base = records.find(works.kit.kit, Name(works.base), Arch.X86_64)
    assert base is not None
    volume = next(volume for volume in works.kit.storage.volumes() if volume.name == base.volume)
    assert volume.sealed
    raw = works.kit.folder / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", volume.path, raw], check=True)
    table = json.loads(subprocess.run(["sfdisk", "-J", raw], capture_output=True, check=True).stdout)["partitiontable"]
    assert table["label"] == "gpt"
    sizes = [part["size"] * 512 >> 20 for part in table["partitions"]]
    assert sizes[:3] == [1, 512, 1024]
    assert sizes[3] >= 6000, "the last one has the rest"
    root = f"{raw}?offset={table['partitions'][3]['start'] * 512}"
    installed = _inside(root, "/root/packages").split()
    assert {"nano", "less", "qemu-guest-agent", "cloud-init"} <= set(installed)
    assert "grub2-install --target=i386-pc /dev/vda" in _inside(root, "/root/called")
    assert "NoCloud" in _inside(root, "/etc/cloud/cloud.cfg.d/90-pocketcloud.cfg")
    assert works.build().expect(0).out.startswith(f"Base {works.base} (x86_64) is up to date")
    assert not works.ours()
    assert works.logs == []
    assert not list((works.kit.path / "media").glob(".work*"))


def _inside(image: str, path: str) -> str:
    """A file of an ext file system, without mounting it."""
    return subprocess.run(["debugfs", "-R", f"cat {path}", image], capture_output=True, text=True, check=True).stdout


def _case(how: str, code: int) -> object:
    """Deadlines are waited for in `make test-slow` only."""
    return pytest.param(how, marks=pytest.mark.slow) if code == 7 else how


@ANACONDA
@needs_rpm
@SAMPLED
def test_an_installer_without_a_network_is_led_to_the_kits_cache(standin: Tree, tmp_path: Path) -> None:
    """A tree with a package in it is synced, its mirror is gone, and the installer finds all of it beside its machine."""
    standin.lay_out(tmp_path)
    rpm(tmp_path, "extra", "1")
    subprocess.run(["createrepo_c", "--quiet", tmp_path], check=True, capture_output=True)
    package = "Packages/noarch/extra-1-1.noarch.rpm"
    with lab_kit() as kit:
        with serving() as web:
            works = Works(kit, web)
            for path in tmp_path.rglob("*"):
                if path.is_file():
                    web.put(f"/tree/{path.relative_to(tmp_path)}", path.read_bytes())
            works.anaconda(web.url("/tree"), "extra-1-1.noarch")
            works.build("--offline").expect(4, "never synced", f"pocketcloud cache add {works.base}")
            kit.env |= works.env
            kit.cli("cache", "add", works.base).expect(0)
            kit.cli("cache", "sync").expect(0, "complete")
        works.build("--offline").expect(0, "is built in")
        base = records.find(kit.kit, Name(works.base), Arch.X86_64)
        assert base is not None
        path, form = kit.storage.place(base.volume)
        raw = kit.folder / "disk.raw"
        subprocess.run(["qemu-img", "convert", "-f", form, "-O", "raw", path, raw], check=True)
        table = json.loads(subprocess.run(["sfdisk", "-J", raw], capture_output=True, check=True).stdout)["partitiontable"]
        fetched = _inside(f"{raw}?offset={table['partitions'][3]['start'] * 512}", "/root/fetched")
        names = (".treeinfo", "repodata/repomd.xml", package)
        assert fetched.split() == [
            word for name in names for word in (hashlib.sha256((tmp_path / name).read_bytes()).hexdigest(), name)
        ]
        assert not works.ours()


FAILURES = {
    "missing": (8, "packaging: Missed: NoSuchPackage: standin-missing"),
    "breaks": (8, "dnf: cannot"),
    "reboots": (8, "the installer rebooted"),
    "panics": (8, "Kernel panic"),
    "leaves": (8, "had reported success"),
    "lingers": (8, "rebooted after it had reported success"),
    "remembers": (6, "requires: {memory"),
    "fills": (6, "larger `size:`"),
    "waits": (7, "nothing new came from it"),
    "loops": (7, "nothing new came from it"),
}


@ANACONDA
@SAMPLED
@pytest.mark.parametrize("how", [_case(how, code) for how, (code, _) in FAILURES.items()])
def test_an_installation_that_fails_is_explained_and_leaves_nothing(works: Works, standin: Tree, how: str) -> None:
    url = standin.serve(works.web)
    works.anaconda(url, f"standin-{how}")
    code, words = FAILURES[how]
    # Long enough for a slow computer's firmware, which says nothing; no shorter for the others than it is by itself.
    patience = ["--idle", "150s"] if code == 7 else []
    said = works.build(*patience).expect(code, f"base {works.base} (x86_64) was not built", words, "media/logs/")
    assert "\x1b" not in said.err
    works.nothing_half_made()
    (kept,) = works.logs
    assert "Starting automated install" in (kept / "console.log").read_text()
    assert kept.stat().st_mode & 0o077 == 0


@ANACONDA
@pytest.mark.slow
def test_hostile_output_neither_hangs_it_nor_reaches_the_terminal(works: Works, standin: Tree) -> None:
    url = standin.serve(works.web)
    works.anaconda(url, "standin-floods")
    said = works.build().expect(0, "is built in")
    assert all(character.isprintable() or character in "\n\r" for character in said.err)


@ANACONDA
@pytest.mark.slow
def test_a_kill_leaves_what_the_next_build_removes(works: Works, standin: Tree) -> None:
    """In the middle of an installation: the machine ends with its maker, and the next build sweeps the rest and succeeds."""
    url = standin.serve(works.web)
    works.anaconda(url)
    process = works.start()
    until(lambda: works.says("Starting automated install"), "the installer is at work")
    process.send_signal(signal.SIGKILL)
    works.kit.finish(process)
    assert works.ours(), "its definition and its network are left"
    hypervisor = open_hypervisor()
    until(
        lambda: not any(domain.active for domain in hypervisor.domains(KIT_ID) if "install-standin" in domain.name), "it is off"
    )
    works.build().expect(0, "is built in")
    assert not works.ours()
    assert not list((works.kit.path / "volumes").glob(".*"))


@ANACONDA
@pytest.mark.slow
def test_two_builds_of_one_base_at_once_build_it_once(works: Works, standin: Tree) -> None:
    url = standin.serve(works.web)
    works.anaconda(url)
    both = [works.start() for _ in range(2)]
    said = sorted(works.kit.finish(process, WITHIN).expect(0).out for process in both)
    assert ["is built in" in each for each in said] == [True, False] or ["is built in" in each for each in said] == [False, True]
    assert any("is up to date" in each for each in said)


@ANACONDA
@pytest.mark.slow
def test_ctrl_c_leaves_nothing(works: Works, standin: Tree) -> None:
    url = standin.serve(works.web)
    works.anaconda(url)
    process = works.start()
    until(works.running, "it runs")
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    works.kit.finish(process).expect(130)
    works.nothing_half_made()


# -- Debian's installer -----------------------------------------------------------------------------------------------

_REPORT = """\
d-i debian-installer/locale string en_US.UTF-8
d-i preseed/early_command string modprobe virtio_console; sleep 2; COMMAND
"""
_PORT = "/dev/virtio-ports/org.pocketcloud.install.0"
EARLY = {
    "success": ("echo {{ ok | sh }} > PORT; sync; poweroff -f", 0, "is built in"),
    "failure": ("echo FAIL partitions > PORT; sleep 1000", 8, "its step 'partitions' failed"),
    "silence": ("sleep 100000", 7, "nothing new came from it"),
    "reboots": ("reboot -f", 8, "the installer rebooted"),
    "panics": ("echo c > /proc/sysrq-trigger", 8, "Kernel panic"),
}


@DEBIAN
@SAMPLED
@pytest.mark.parametrize("how", [_case(how, code) for how, (_, code, _) in EARLY.items()])
def test_debians_installer_takes_its_answer_and_reports(works: Works, how: str) -> None:
    """Its kernel comes from a mirror whose release file is signed, its preseed out of its initramfs."""
    command, code, words = EARLY[how]
    templates = works.kit.folder / "templates"
    templates.mkdir()
    (templates / "reports.preseed.j2").write_text(_REPORT.replace("COMMAND", command.replace("PORT", _PORT)))
    works.env["POCKETCLOUD_TEMPLATES"] = str(templates)
    with signers() as keys:
        keys.key("archive")
        mirror = debian_installer().serve(works.web, keys, "archive")
        works.define(
            family="debian", version="12", suite="bookworm", builder="preseed", template="reports.preseed.j2",
            tree=mirror, keyring=str(keys.ring(works.kit.folder / "archive.gpg", "archive")),
        )  # fmt: skip
        patience = ["--idle", "150s"] if code == 7 else []
        said = works.build("--mirror", mirror, *patience)
    said.expect(code, words)
    if code:
        works.nothing_half_made()
        assert "Linux version" in (works.logs[0] / "console.log").read_text()
    else:
        assert records.find(works.kit.kit, Name(works.base), Arch.X86_64)
    assert not works.ours()
