"""Checks of libvirt's daemons: do they answer, which run, do they come back, who may ask them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketcloud.check import State, failed
from pocketcloud.errors import HostLacks
from pocketcloud.hypervisor.complaints import DENIED_HINT
from tests.computers import LIBVIRTD, Computer, Libvirt
from tests.host_trees import plant, x86_laptop


@pytest.fixture
def laptop(tmp_path: Path) -> Computer:
    return Computer(tmp_path, x86_laptop("debian-13"))


def gone(computer: Computer, *names: str) -> None:
    """Take away what says that daemons run and are started: files of these names, or processes; those named, else all."""
    for path, content in LIBVIRTD.items():
        if not names or content.strip() in names or Path(path).name in names:
            (computer.root / path).unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("distribution", "systemd", "start"),
    [
        ("debian-13", True, ("systemctl enable --now libvirtd",)),
        ("debian-13", False, ("virtlogd -d", "libvirtd -d")),
        ("fedora-44", True, ("systemctl enable --now virtqemud.socket virtnetworkd.socket virtlogd.socket",)),
        ("centos-9", False, ("virtlogd -d", "virtnetworkd -d", "virtqemud -d")),
    ],
)
def test_libvirt_that_does_not_answer_is_started_or_installed(
    tmp_path: Path, distribution: str, systemd: bool, start: tuple[str, ...]
) -> None:
    computer = Computer(tmp_path, x86_laptop(distribution))
    computer.change(systemd=systemd)
    if distribution != "debian-13":
        computer.tools = (computer.tools - {"libvirtd"}) | {"virtqemud"}
    gone(computer)
    computer.libvirt = HostLacks("cannot connect to qemu:///system", hint="is the daemon running?")
    checks = computer.checks()
    assert (checks["libvirt"].state, checks["libvirt"].evidence) == (State.FAIL, "cannot connect to qemu:///system")
    assert checks["libvirt"].remedy == (*start, "Is the daemon running?")
    assert checks["kvm-libvirt"].state is State.UNKNOWN
    assert checks["libvirt-networks"].state is State.UNKNOWN
    assert checks["lab-subnets"].state is State.OK
    computer.tools -= {"libvirtd", "virtqemud"}
    missing = computer.checks()["libvirt"]
    assert missing.evidence.startswith("neither libvirtd nor virtqemud is installed")
    assert missing.remedy[0].split()[1:3] == ["install", "-y"]
    assert missing.remedy[1:] == start


def test_a_libvirt_too_old_to_be_told_the_firmware_fails(laptop: Computer) -> None:
    laptop.libvirt = Libvirt("8.0.0")
    assert laptop.checks()["libvirt"].state is State.FAIL
    laptop.libvirt = Libvirt("8.6.0")
    assert laptop.checks()["libvirt"].state is State.OK


def test_without_systemd_only_what_does_not_run_is_started(laptop: Computer) -> None:
    laptop.change(systemd=False)
    laptop.libvirt = HostLacks("cannot connect to qemu:///system", hint="virtlogd -d && libvirtd -d")
    gone(laptop, "libvirtd", "libvirt-sock")
    assert [action.line for action in laptop.checks()["libvirt"].fix] == ["libvirtd -d"]
    gone(laptop, "virtlogd")
    assert [action.line for action in laptop.checks()["libvirt"].fix] == ["virtlogd -d", "libvirtd -d"]


def test_a_user_who_is_not_let_in_is_sent_to_root_not_to_the_daemon(laptop: Computer) -> None:
    laptop.libvirt = HostLacks("libvirt (qemu:///system) does not let this user in: polkit", hint=DENIED_HINT)
    checks = laptop.checks()
    assert (checks["libvirt"].state, checks["libvirt"].fix) == (State.UNKNOWN, ())
    assert checks["libvirt"].remedy == ("Run this check as root: labs are root's too",)
    assert (checks["libvirt-access"].state, checks["libvirt-access"].remedy) == (State.UNKNOWN, ("sudo pocketcloud check",))
    assert not failed(check for check in checks.values() if check.group == "services")


MODULAR = {
    "proc/900/comm": "virtqemud\n",
    "proc/901/comm": "virtlogd\n",
    "proc/902/comm": "virtproxyd\n",
    "run/libvirt/virtqemud-sock": "",
    "run/libvirt/virtnetworkd-sock": "",
    "etc/systemd/system/sockets.target.wants/virtqemud.socket": "",
    "etc/systemd/system/sockets.target.wants/virtnetworkd.socket": "",
}


@pytest.fixture
def fedora(tmp_path: Path) -> Computer:
    computer = Computer(tmp_path, x86_laptop("fedora-44"))
    gone(computer, "libvirtd", "virtlogd", "libvirtd.service")
    computer.tools = (computer.tools - {"libvirtd"}) | {"virtqemud", "virtnetworkd"}
    plant(computer.root, MODULAR)
    return computer


def test_either_form_of_libvirt_is_told(laptop: Computer) -> None:
    checks = laptop.checks()
    assert checks["libvirt-form"].evidence == "one daemon for all (monolithic): libvirtd runs, virtlogd runs"
    assert checks["libvirt-boot"].evidence == "enabled: libvirtd.service"


def test_modular_daemons_may_wait_behind_their_sockets(fedora: Computer) -> None:
    checks = fedora.checks()
    told = "one daemon per task (modular): virtlogd runs, virtnetworkd starts when it is asked, virtproxyd runs, virtqemud runs"
    assert (checks["libvirt-form"].state, checks["libvirt-form"].evidence) == (State.OK, told)
    assert checks["libvirt-boot"].evidence == "enabled: virtnetworkd.socket, virtqemud.socket"


def test_half_of_the_modular_daemons_is_not_enough(fedora: Computer) -> None:
    (fedora.root / "run/libvirt/virtnetworkd-sock").unlink()
    (fedora.root / "etc/systemd/system/sockets.target.wants/virtnetworkd.socket").unlink()
    checks = fedora.checks()
    form, boot = checks["libvirt-form"], checks["libvirt-boot"]
    assert (form.state, form.remedy) == (State.FAIL, ("systemctl enable --now virtnetworkd.socket",))
    assert "virtnetworkd neither runs nor is listened for" in form.evidence
    assert (boot.state, boot.evidence) == (State.WARN, "not enabled: virtnetworkd")
    fedora.change(systemd=False)
    assert fedora.checks()["libvirt-form"].remedy == ("virtnetworkd -d",)


def test_both_forms_at_once_are_one_too_many(laptop: Computer) -> None:
    plant(laptop.root, {"proc/903/comm": "virtqemud\n"})
    check = laptop.checks()["libvirt-form"]
    assert check.state is State.WARN
    assert check.remedy[0].startswith("systemctl disable --now libvirtd.service")


def test_machines_need_the_daemon_that_keeps_their_console(laptop: Computer) -> None:
    gone(laptop, "virtlogd")
    check = laptop.checks()["libvirt-form"]
    assert (check.state, check.remedy) == (State.FAIL, ("systemctl enable --now virtlogd.socket",))
    plant(laptop.root, {"etc/libvirt/qemu.conf": '#stdio_handler = "logd"\nstdio_handler = "file"\n'})
    assert laptop.checks()["libvirt-form"].state is State.OK


def test_a_daemon_that_does_not_come_back_is_enabled(laptop: Computer) -> None:
    gone(laptop, "libvirtd.service")
    check = laptop.checks()["libvirt-boot"]
    assert (check.state, check.remedy) == (State.WARN, ("systemctl enable --now libvirtd",))
    laptop.change(systemd=False)
    check = laptop.checks()["libvirt-boot"]
    assert check.state is State.NOT_APPLICABLE
    assert check.evidence.endswith("virtlogd -d; libvirtd -d")


def test_the_group_is_explained_and_joined_by_nobody(laptop: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(laptop.root, {"etc/group": "libvirt:x:106:ada,\nkvm:x:107:\n", "usr/share/polkit-1/rules.d/60-libvirt.rules": ""})
    monkeypatch.setenv("SUDO_USER", "grace")
    check = laptop.checks()["libvirt-access"]
    assert (check.state, check.fix) == (State.OK, ())
    assert "in the group libvirt: ada (let in by polkit); for virsh without sudo: usermod -aG libvirt grace" in check.evidence
    monkeypatch.setenv("SUDO_USER", "ada")
    assert "usermod" not in laptop.checks()["libvirt-access"].evidence
