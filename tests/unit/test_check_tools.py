"""Checks of programs, of libvirt's daemons, and of LVM."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketcloud.check import State, failed
from pocketcloud.model.base import Arch
from tests.computers import TOOLS, Computer
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
        ("debian-12", "git", "apt-get install -y git"),
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


def test_a_debian_without_lists_of_packages_fetches_them_first(laptop: Computer) -> None:
    laptop.tools.remove("ssh")
    lists = plant(laptop.root, {"var/lib/apt/lists/partial/": "", "var/lib/apt/lists/lock": ""}) / "var/lib/apt/lists"
    check = laptop.checks()["ssh"]
    assert check.remedy == ("apt-get update", "apt-get install -y openssh-client")
    assert [action.line for action in check.fix] == list(check.remedy)
    (lists / "example.com_debian_dists_trixie_main_binary-amd64_Packages.lz4").touch()
    assert laptop.checks()["ssh"].remedy == ("apt-get install -y openssh-client",)


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


def test_kits_on_disks_need_lvm_and_labs_do_without(laptop: Computer) -> None:
    checks = laptop.checks()
    assert checks["lvm2"].evidence == "lvm2 2.03.16"
    assert checks["lvm-devices-file"].evidence == "not used (use_devicesfile 1, no file)"
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
    assert checks["lvm-scan"].state is State.NOT_APPLICABLE
    assert not failed(checks.values())


@pytest.mark.parametrize(
    ("tool", "says", "state", "evidence"),
    [
        (
            "qemu-system-x86_64",
            "QEMU emulator version 4.2.1 (Debian 1:4.2-3ubuntu6)\n",
            State.FAIL,
            "5.1 is the first with a balloon",
        ),
        ("qemu-system-x86_64", "QEMU emulator version 5.1.0\n", State.OK, "QEMU emulator version 5.1.0"),
        ("qemu-img", "qemu-img version 4.2.1\n", State.FAIL, "5.0 is the first with `convert --target-is-zero`"),
        ("dnsmasq", "Dnsmasq version 2.66\n", State.FAIL, "2.67 is the first that libvirt takes"),
        ("dnsmasq", "Dnsmasq version 2.67test3\n", State.OK, "2.67test3"),
        ("mmdebstrap", "mmdebstrap 0.7.3\n", State.WARN, "0.7.4 is the first with unshare mode for root"),
        ("sfdisk", "sfdisk from util-linux 2.31.1\n", State.WARN, "2.33 is the first"),
        ("mke2fs", "mke2fs 1.42.9 (28-Dec-2013)\n", State.WARN, "1.43 is the first"),
        ("mke2fs", "Segmentation fault\n", State.UNKNOWN, "it tells no version"),
        ("mke2fs", f"mke2fs {'9' * 5000}.1\n", State.OK, "mke2fs 999"),
    ],
)
def test_a_tool_that_is_too_old_says_what_it_lacks(laptop: Computer, tool: str, says: str, state: State, evidence: str) -> None:
    laptop.run.says[tool] = says
    check = laptop.checks()["qemu" if tool.startswith("qemu-system") else tool]
    assert check.state is state
    assert evidence in check.evidence
    assert bool(check.remedy) == (state in (State.FAIL, State.WARN))


def test_old_thin_tools_cannot_look_into_a_pool(laptop: Computer) -> None:
    laptop.run.says["thin_check"] = "0.6.3\n"
    check = laptop.checks()["thin-tools"]
    assert (check.state, "0.7.0 is the oldest" in check.evidence) == (State.WARN, True)
    laptop.run.says["thin_check"] = "thin_check 1.0.12\n"
    assert laptop.checks()["thin-tools"].evidence == "thin-provisioning-tools 1.0.12"


def test_seeds_need_no_tool_of_the_hosts(laptop: Computer) -> None:
    check = laptop.checks()["cloud-init"]
    assert check.state is State.OK
    assert "pycdlib" in check.evidence


def test_lvms_settings_are_explained_one_by_one(laptop: Computer) -> None:
    listed = "VERSION=1.1.2\nIDTYPE=sys_wwid IDNAME=naa.5 DEVNAME=/dev/sda2 PVID=x\nIDTYPE=devname IDNAME=/dev/sdc PVID=y\n"
    plant(laptop.root, {"etc/lvm/devices/system.devices": listed})
    checks = laptop.checks()
    assert checks["lvm-devices-file"].evidence.startswith("used, with 2 devices; kits need not be among them")
    assert "that is about removed linear volumes" in checks["lvm-discards"].evidence
    assert "autoextend is off" in checks["lvm-autoextend"].evidence
    assert checks["lvm-scan"].state is State.OK
    laptop.run.says["lvmconfig"] = "issue_discards=1\nthin_pool_autoextend_threshold=80\nscan_lvs=1\n"
    checks = laptop.checks()
    assert checks["lvm-devices-file"].state is State.UNKNOWN
    assert "issue_discards is 1" in checks["lvm-discards"].evidence
    assert "from 80 % on" in checks["lvm-autoextend"].evidence
    assert checks["lvm-scan"].state is State.WARN
    assert "scan_lvs = 0" in checks["lvm-scan"].remedy[0]
