"""The facts of computers that are not this one, from trees of the files they have, and of this one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pocketcloud.errors import HostLacks
from pocketcloud.host import read_facts
from pocketcloud.host.accounts import may_use, qemu_account
from pocketcloud.host.release import read_distribution
from pocketcloud.model.base import Arch
from pocketcloud.model.facts import KvmState
from pocketcloud.model.sizes import GIB, MIB
from pocketcloud.system import Completed, run
from tests.host_trees import OS_RELEASE, arm_board, arm_server, pine64, plant, raspberry_pi, x86_laptop
from tests.recorded import Recorded


def nothing_there(words: tuple[str, ...]) -> Completed:
    raise HostLacks(f"{words[0]} is not installed")


# A Runner on a host where nothing is installed.
no_tools = Recorded(nothing_there)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("debian-12", ("debian", "12", "bookworm", "Debian GNU/Linux 12 (bookworm)", ())),
        ("debian-13", ("debian", "13", "trixie", "Debian GNU/Linux 13 (trixie)", ())),
        ("ubuntu-2404", ("ubuntu", "24.04", "noble", "Ubuntu 24.04.3 LTS", ("debian",))),
        ("fedora-44", ("fedora", "44", "", "Fedora Linux 44 (Workstation Edition)", ())),
        ("centos-9", ("centos", "9", "", "CentOS Stream 9", ("rhel", "fedora"))),
        ("centos-10", ("centos", "10", "", "CentOS Stream 10 (Coughlan)", ("rhel", "fedora"))),
    ],
)
def test_the_distribution_is_read_from_os_release(tmp_path: Path, name: str, expected: tuple[object, ...]) -> None:
    found = read_distribution(plant(tmp_path, {"etc/os-release": OS_RELEASE[name]}))
    assert (found.id, found.version, found.codename, found.name, found.like) == expected


def test_os_release_is_also_looked_for_below_usr_and_may_be_absent_or_broken(tmp_path: Path) -> None:
    assert read_distribution(tmp_path).id == "linux"
    plant(tmp_path, {"usr/lib/os-release": OS_RELEASE["fedora-44"]})
    assert read_distribution(tmp_path).id == "fedora"
    plant(tmp_path, {"etc/os-release": '# comment\nNAME="never closed\nID=debian\n\nnonsense\n'})
    assert read_distribution(tmp_path).id == "debian"


@pytest.mark.parametrize("distribution", ["debian-12", "debian-13", "ubuntu-2404", "fedora-44", "centos-9", "centos-10"])
def test_a_laptop(tmp_path: Path, distribution: str) -> None:
    facts = read_facts(plant(tmp_path, x86_laptop(distribution)), run=no_tools)
    assert (facts.arch, facts.machine, facts.kernel) == (Arch.X86_64, "x86_64", "6.12.48-amd64")
    assert (facts.model, facts.device_tree) == ("LENOVO ThinkPad X1 Carbon Gen 9", False)
    assert (facts.cpus, facts.memory, facts.memory_available) == (8, 16 * GIB, 12 * GIB)
    assert (facts.virtualised, facts.systemd) == ("", True)
    assert facts.kvm.state is KvmState.ABSENT
    assert "vmx" in facts.kvm.evidence
    assert facts.subnets == ()


def test_a_pine64(tmp_path: Path) -> None:
    facts = read_facts(plant(tmp_path, pine64()), run=no_tools)
    assert (facts.arch, facts.model, facts.device_tree) == (Arch.AARCH64, "Pine64+", True)
    assert (facts.cpus, facts.memory) == (4, 2048 * MIB)
    assert (facts.virtualised, facts.systemd) == ("", False)


def test_a_raspberry_pi(tmp_path: Path) -> None:
    facts = read_facts(plant(tmp_path, raspberry_pi()), run=no_tools)
    assert facts.model == "Raspberry Pi 4 Model B Rev 1.4"
    assert facts.device_tree


def test_an_arm_server_has_dmi_names_and_no_device_tree(tmp_path: Path) -> None:
    facts = read_facts(plant(tmp_path, arm_server()), run=no_tools)
    assert (facts.arch, facts.model, facts.device_tree, facts.cpus) == (Arch.AARCH64, "GIGABYTE R272-P30-JG", False, 80)
    assert facts.virtualised == ""


def test_an_empty_device_tree_of_a_pc_counts_for_none(tmp_path: Path) -> None:
    plant(tmp_path, {**x86_laptop("fedora-44"), "proc/device-tree/name": "\0"})
    assert not read_facts(tmp_path, run=no_tools).device_tree


def test_an_unknown_architecture_and_fields_nobody_filled_in(tmp_path: Path) -> None:
    files = {
        **x86_laptop("debian-12"),
        "proc/sys/kernel/arch": "riscv64\n",
        "sys/class/dmi/id/sys_vendor": "To Be Filled By O.E.M.\n",
        "sys/class/dmi/id/product_name": "Default string\n",
    }
    facts = read_facts(plant(tmp_path, files), run=no_tools)
    assert (facts.arch, facts.machine, facts.model) == (None, "riscv64", "")


@pytest.mark.parametrize(
    ("vendor", "product", "flags", "expected"),
    [
        ("QEMU", "Standard PC (Q35 + ICH9, 2009)", "hypervisor", "qemu"),
        ("VMware, Inc.", "VMware Virtual Platform", "hypervisor", "vmware"),
        ("innotek GmbH", "VirtualBox", "hypervisor", "oracle"),
        ("Microsoft Corporation", "Virtual Machine", "hypervisor", "microsoft"),
        ("Microsoft Corporation", "Surface Laptop 4", "vmx", ""),
        ("Amazon EC2", "m5.metal", "vmx", ""),
        ("Amazon EC2", "m5.large", "hypervisor", "amazon"),
        ("Nobody", "knows", "hypervisor svm", "unknown"),
    ],
)
def test_the_hypervisor_below_is_named(tmp_path: Path, vendor: str, product: str, flags: str, expected: str) -> None:
    files = x86_laptop("debian-12", flags=flags)
    files |= {"sys/class/dmi/id/sys_vendor": f"{vendor}\n", "sys/class/dmi/id/product_name": f"{product}\n"}
    assert read_facts(plant(tmp_path, files), run=no_tools).virtualised == expected


def test_the_hypervisor_below_an_arm_guest(tmp_path: Path) -> None:
    board = arm_board("linux,dummy-virt", "linux,dummy-virt", memory_mib=1024)
    assert read_facts(plant(tmp_path / "a", board), run=no_tools).virtualised == "qemu"
    metal = {"sys/class/dmi/id/sys_vendor": "Amazon EC2\n", "sys/class/dmi/id/product_name": "c7g.metal\n"}
    assert read_facts(plant(tmp_path / "b", {**arm_server(), **metal}), run=no_tools).virtualised == ""
    guest = {**metal, "sys/class/dmi/id/product_name": "c7g.large\n"}
    assert read_facts(plant(tmp_path / "c", {**arm_server(), **guest}), run=no_tools).virtualised == "amazon"


def test_an_empty_root_gives_facts_and_no_error(tmp_path: Path) -> None:
    facts = read_facts(tmp_path, run=no_tools)
    assert (facts.memory, facts.memory_available, facts.cpus, facts.subnets) == (0, 0, 1, ())
    assert facts.machine == os.uname().machine


def test_this_host() -> None:
    facts = read_facts(run=run)
    assert facts.machine == os.uname().machine
    assert facts.kernel == os.uname().release
    assert 0 < facts.memory_available <= facts.memory
    assert facts.cpus == os.cpu_count()
    assert facts.distribution.name
    assert facts.systemd == Path("/run/systemd/system").is_dir()


def test_the_user_of_qemu_and_what_it_may_open(tmp_path: Path) -> None:
    assert qemu_account(tmp_path) is None
    plant(
        tmp_path,
        {
            "etc/passwd": "root:x:0:0::/root:/bin/sh\nlibvirt-qemu:x:64055:107::/var/lib/libvirt:/bin/false\nbroken\n",
            "etc/group": "root:x:0:\nkvm:x:107:\ndisk:x:6:someone,libvirt-qemu\nother:x:9:someone\n",
        },
    )
    account = qemu_account(tmp_path)
    assert account is not None
    assert (account.name, account.uid, account.gids) == ("libvirt-qemu", 64055, frozenset({107, 6}))

    def mode(bits: int, uid: int, gid: int) -> os.stat_result:
        return os.stat_result((bits, 0, 0, 1, uid, gid, 0, 0, 0, 0))

    assert may_use(account, mode(0o20660, 0, 107))
    assert may_use(account, mode(0o20666, 0, 0))
    assert may_use(account, mode(0o20600, 64055, 0))
    assert not may_use(account, mode(0o20600, 0, 0))
    assert not may_use(account, mode(0o20640, 0, 107))
    # The kernel takes the first class that fits: a group that may not is not helped by what others may.
    assert not may_use(account, mode(0o20606, 0, 107))
