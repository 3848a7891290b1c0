"""Checks of programs, of libvirt's daemons, and of LVM."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketcloud.check import State, failed
from pocketcloud.errors import HostLacks
from pocketcloud.model.base import Arch
from tests.computers import TOOLS, Computer, Libvirt
from tests.host_trees import OS_RELEASE, plant, x86_laptop


@pytest.fixture
def laptop(tmp_path: Path) -> Computer:
    return Computer(tmp_path, x86_laptop("debian-13"))


@pytest.mark.parametrize(
    ("distribution", "tool", "remedy"),
    [
        ("debian-12", "qemu-img", "apt-get install -y qemu-utils"),
        ("debian-13", "mmdebstrap", "apt-get install -y mmdebstrap uidmap gpg"),
        ("ubuntu-2404", "ssh", "apt-get install -y openssh-client"),
        ("mint", "mcopy", "apt-get install -y mtools"),
        ("fedora-44", "ssh", "dnf install -y openssh-clients"),
        ("centos-9", "dnsmasq", "dnf install -y dnsmasq"),
        ("centos-10", "qemu-img", "dnf install -y qemu-img"),
    ],
)
def test_a_missing_tool_is_named_with_the_package_of_the_distribution(
    tmp_path: Path, distribution: str, tool: str, remedy: str
) -> None:
    computer = Computer(tmp_path, x86_laptop(distribution))
    computer.tools.remove(tool)
    check = computer.checks()[tool]
    assert check.evidence == f"{tool} is not installed"
    assert check.remedy == (remedy,)


def test_what_only_builds_bases_is_no_failure_what_runs_labs_is(laptop: Computer) -> None:
    laptop.tools -= {"mmdebstrap", "sfdisk", "mke2fs", "mcopy", "ssh"}
    assert not failed(check for check in laptop.checks().values() if check.group != "space")
    for tool in ("qemu-img", "dnsmasq", "qemu-system-x86_64", "nft"):
        laptop.tools = set(TOOLS) - {tool}
        assert failed(check for check in laptop.checks().values() if check.group == "tools"), tool


def test_an_unknown_distribution_gets_words_and_no_command(tmp_path: Path) -> None:
    computer = Computer(tmp_path, {**x86_laptop("debian-13"), "etc/os-release": OS_RELEASE["arch"]})
    computer.tools.remove("qemu-img")
    remedy = "Install what brings qemu-img (no package names are known for Arch Linux)"
    assert computer.checks()["qemu-img"].remedy == (remedy,)


def test_el_has_one_emulator_in_a_place_of_its_own(tmp_path: Path) -> None:
    computer = Computer(tmp_path, x86_laptop("centos-10"))
    computer.tools.remove("qemu-system-x86_64")
    missing = computer.checks()["qemu"]
    assert (missing.state, missing.remedy) == (State.FAIL, ("dnf install -y qemu-kvm",))
    plant(tmp_path, {"usr/libexec/qemu-kvm": ""})
    assert computer.checks()["qemu"].state is State.OK


def test_firmware_counts_only_for_the_architecture_and_if_its_file_is_there(laptop: Computer) -> None:
    (laptop.root / "usr/share/fw/CODE.fd").unlink()
    check = laptop.checks()["firmware"]
    assert (check.state, check.remedy) == (State.FAIL, ("apt-get install -y ovmf",))
    plant(laptop.root, {"usr/share/fw/CODE.fd": "", "usr/share/qemu/firmware/50-broken.json": "{"})
    assert laptop.checks()["firmware"].evidence == "UEFI firmware for x86_64: 60-edk2"
    laptop.change(arch=Arch.AARCH64, machine="aarch64")
    other = laptop.checks()["firmware"]
    assert (other.state, other.remedy) == (State.FAIL, ("apt-get install -y qemu-efi-aarch64",))


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
    computer.libvirt = HostLacks("cannot connect to qemu:///system", hint="is the daemon running?")
    checks = computer.checks()
    assert (checks["libvirt"].state, checks["libvirt"].evidence) == (State.FAIL, "cannot connect to qemu:///system")
    assert checks["libvirt"].remedy == (*start, "Is the daemon running?")
    assert checks["kvm-libvirt"].state is State.UNKNOWN
    assert checks["libvirt-networks"].state is State.UNKNOWN
    assert checks["lab-subnets"].state is State.OK
    computer.tools.remove("libvirtd")
    missing = computer.checks()["libvirt"]
    assert missing.evidence.startswith("neither libvirtd nor virtqemud is installed")
    assert missing.remedy[0].split()[1:3] == ["install", "-y"]
    assert missing.remedy[1:] == start


def test_a_libvirt_too_old_to_be_told_the_firmware_fails(laptop: Computer) -> None:
    laptop.libvirt = Libvirt("8.0.0")
    assert laptop.checks()["libvirt"].state is State.FAIL
    laptop.libvirt = Libvirt("8.6.0")
    assert laptop.checks()["libvirt"].state is State.OK


def test_kits_on_disks_need_lvm_and_labs_do_without(laptop: Computer) -> None:
    checks = laptop.checks()
    assert checks["lvm2"].evidence == "lvm2 2.03.16"
    assert "the devices file is 1" in checks["lvm-settings"].evidence
    laptop.run.says["lvm"] = "  LVM version:     2.03.11(2) (2021-01-08)\n"
    assert laptop.checks()["lvm2"].state is State.WARN
    assert "2.03.12 is the oldest" in laptop.checks()["lvm2"].evidence
    laptop.run.says["lvm"] = "Killed\n"
    assert laptop.checks()["lvm2"].state is State.UNKNOWN
    laptop.tools -= {"lvm", "lvmconfig", "thin_check", "modprobe"}
    checks = laptop.checks()
    assert checks["lvm2"].remedy == ("apt-get install -y lvm2",)
    assert checks["thin-tools"].remedy == ("apt-get install -y thin-provisioning-tools",)
    assert checks["dm-thin"].state is State.UNKNOWN
    assert checks["lvm-settings"].state is State.NOT_APPLICABLE
    assert not failed(checks.values())
