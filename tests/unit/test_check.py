"""The judgements: on computers that are not this one, from trees and stand-ins, and on this one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from pocketcloud.check import Check, State, failed, run_checks, summary
from pocketcloud.check.fixes import carry_out
from pocketcloud.errors import HostLacks, Refused
from pocketcloud.host import read_facts
from pocketcloud.hypervisor import Hypervisor, HypervisorFacts
from pocketcloud.model.base import Arch
from pocketcloud.model.disk import BlockDevice, Measured
from pocketcloud.model.facts import Facts, Kvm, KvmState, Subnet
from pocketcloud.model.sizes import GIB, MIB
from pocketcloud.profiles import find as find_profile
from pocketcloud.system import Completed, run
from tests.host_trees import OS_RELEASE, arm_board, pine64, plant, x86_laptop
from tests.recorded import Recorded

TOOLS = (
    "qemu-system-x86_64", "qemu-system-aarch64", "qemu-img", "dnsmasq", "nft", "ip", "ssh", "virsh", "mmdebstrap", "sfdisk",
    "mke2fs", "mkfs.vfat", "mcopy", "libvirtd", "lvm", "lvmconfig", "modprobe",
    "thin_check", "thin_dump", "thin_ls", "thin_repair",
)  # fmt: skip
USABLE = Kvm(KvmState.USABLE, "2 ns an instruction", 2.0)


# What lsblk says of the disks below.
LSBLK = {
    "blockdevices": [
        {"name": "sda", "kname": "sda", "path": "/dev/sda", "type": "disk", "tran": "sata", "model": "Inside", "serial": "S1"},
        {"name": "sdb", "kname": "sdb", "path": "/dev/sdb", "type": "disk", "tran": "usb", "model": "Pocket", "serial": "S2"},
    ]
}
LVM_VERSION = "  LVM version:     2.03.16(2) (2022-05-18)\n  Library version: 1.02.185 (2022-05-18)\n"
QUICK = Measured(sequential=412e6, random_reads=9800, p50=0.0001, p99=0.0004)
LIMPING = Measured(sequential=30e6, random_reads=700, p50=0.0014, p99=0.02, failed=3)
USB = "sys/devices/pci0000:00/0000:00:14.0/usb2/2-1"


def disk(place: str, *, rotational: int = 0) -> dict[str, str]:
    """A disk of 256 GiB in sysfs."""
    queue = {
        "rotational": str(rotational),
        "logical_block_size": "512",
        "physical_block_size": "512",
        "discard_max_bytes": str(4 * GIB),
        "write_cache": "write back",
    }
    return {f"{place}/size": str(256 * GIB // 512), f"{place}/dev": "8:0", **{f"{place}/queue/{k}": v for k, v in queue.items()}}


def plug(root: Path) -> None:
    """A SATA disk, and a USB 3 disk in a USB 2 port, behind a bridge that says it rotates."""
    inside = "sys/devices/pci0000:00/0000:00:17.0/ata1/host0/block/sda"
    outside = f"{USB}/2-1:1.0/host6/block/sdb"
    plant(
        root,
        {
            **disk(inside),
            **disk(outside, rotational=1),
            f"{USB}/idVendor": "152d",
            f"{USB}/idProduct": "0578",
            f"{USB}/speed": "480",
            f"{USB}/version": " 2.10",
            f"{USB}/2-1:1.0/bInterfaceNumber": "00",
        },
    )
    (root / "sys/bus/uas").mkdir(parents=True)
    (root / USB / "2-1:1.0/driver").symlink_to(root / "sys/bus/uas")
    (root / "sys/class/block").mkdir(parents=True)
    for name, place in (("sda", inside), ("sdb", outside)):
        (root / "sys/class/block" / name).symlink_to(root / place)


def _said(words: tuple[str, ...]) -> str:
    """Every tool says its version; `ip -j` has no addresses to tell."""
    if words[0] in ("lsblk", "wipefs"):
        return json.dumps(LSBLK if words[0] == "lsblk" else {})
    if words[0] == "lvm":
        return LVM_VERSION
    if words[0] == "lvmconfig":
        return "issue_discards=0\nthin_pool_autoextend_threshold=100\nscan_lvs=0\nuse_devicesfile=1\n"
    return "[]" if words[0] == "ip" else f"{Path(words[0]).name} 1.2.3\nmore\n"


says_its_name = Recorded(_said)


class Libvirt:
    """As much of a hypervisor as checks ask: its facts and its networks' subnets."""

    def __init__(self, version: str = "9.0.0", kvm: tuple[Arch, ...] = tuple(Arch), subnets: tuple[Subnet, ...] = ()) -> None:
        self.version, self.kvm, self.taken = version, kvm, subnets
        self.features = frozenset({"vmx", "svm"})

    def facts(self) -> HypervisorFacts:
        return HypervisorFacts("qemu:///system", self.version, "7.2.22", tuple(Arch), self.kvm)

    def cpu_features(self, _arch: Arch) -> frozenset[str]:
        return self.features

    def subnets(self) -> tuple[Subnet, ...]:
        return self.taken


class Computer:
    """A computer under test; everything is in order until a test changes it."""

    def __init__(self, root: Path, files: Mapping[str, str]) -> None:
        self.root = root
        arch = "x86_64" if "x86_64" in files["proc/sys/kernel/arch"] else "aarch64"
        descriptor = {
            "interface-types": ["uefi"],
            "targets": [{"architecture": arch}],
            "mapping": {"device": "flash", "executable": {"filename": "/usr/share/fw/CODE.fd"}},
        }
        plant(root, files)
        plant(
            root,
            {
                "usr/share/qemu/firmware/60-edk2.json": json.dumps(descriptor),
                "usr/share/fw/CODE.fd": "",
                "etc/passwd": "libvirt-qemu:x:64055:107::/var/lib/libvirt:/bin/false\n",
                "etc/group": "kvm:x:107:\n",
                "dev/kvm": "",
            },
        )
        (root / "dev/kvm").chmod(0o666)
        plug(root)
        self.measured: dict[str, Measured | HostLacks | None] = {"sda": QUICK, "sdb": QUICK}
        self.devices: tuple[Path, ...] = ()
        self.facts: Facts = dataclasses.replace(read_facts(root, run=says_its_name), kvm=USABLE)
        self.tools = set(TOOLS)
        self.libvirt: Libvirt | HostLacks = Libvirt()

    def connect(self) -> Hypervisor:
        if isinstance(self.libvirt, HostLacks):
            raise self.libvirt
        return self.libvirt  # type: ignore[return-value]  # a stand-in: the part of the protocol that checks use

    def measure(self, device: BlockDevice) -> Measured | None:
        found = self.measured[device.name]
        if isinstance(found, HostLacks):
            raise found
        return found

    def checks(self) -> dict[str, Check]:
        found = run_checks(
            self.facts,
            kit_path=Path("/var/lib/pocketcloud"),
            run=says_its_name,
            hypervisor=self.connect,
            root=self.root,
            find=lambda tool: Path("/usr/bin") / tool if tool in self.tools else None,
            devices=self.devices,
            measure=self.measure,
        )
        by_id = {check.id: check for check in found}
        assert len(by_id) == len(found), "ids are unique"
        return by_id

    def change(self, **changes: object) -> None:
        self.facts = dataclasses.replace(self.facts, **changes)  # type: ignore[arg-type]  # names are checked at run time


@pytest.fixture
def laptop(tmp_path: Path) -> Computer:
    return Computer(tmp_path, x86_laptop("debian-13"))


def test_a_computer_in_order_has_nothing_to_remedy(laptop: Computer) -> None:
    # The space is this machine's own.
    laptop.devices = (Path("/dev/sda"),)
    checks = {name: check for name, check in laptop.checks().items() if check.group not in ("space", "power")}
    assert {name: check.state for name, check in checks.items() if check.state is not State.OK} == {}
    assert not failed(checks.values())
    for check in checks.values():
        assert check.evidence
        assert check.why.endswith(".")
        assert check.remedy == ()
    assert checks["qemu"].evidence == "/usr/bin/qemu-system-x86_64: qemu-system-x86_64 1.2.3"
    assert checks["architecture"].evidence.startswith("x86_64 (LENOVO ThinkPad X1 Carbon Gen 9): profile x86-laptop")


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


@pytest.mark.parametrize("state", [KvmState.SLOW, KvmState.ABSENT, KvmState.DENIED, KvmState.BROKEN])
def test_without_kvm_labs_run_on_emulation_which_is_a_warning_with_the_reason(laptop: Computer, state: KvmState) -> None:
    laptop.change(kvm=Kvm(state, "1700 ns an instruction"))
    checks = laptop.checks()
    assert checks["kvm"].state is State.WARN
    assert checks["kvm"].evidence == f"{state}, so labs run on emulation: 1700 ns an instruction"
    assert checks["kvm"].remedy
    assert checks["kvm-libvirt"].state is State.NOT_APPLICABLE
    assert "profile emulated" in checks["architecture"].evidence
    assert not failed(check for check in checks.values() if check.group != "space")


LOADED = "echo {} > /etc/modules-load.d/pocketcloud-kvm.conf"


@pytest.mark.parametrize(
    ("flags", "virtualised", "expected"),
    [
        ("vmx", "", ("modprobe kvm_intel", LOADED.format("kvm_intel"))),
        ("svm", "", ("modprobe kvm_amd", LOADED.format("kvm_amd"))),
        ("", "", "firmware setup"),
        ("hypervisor", "vmware", "guest of VMware: have nested virtualisation switched on"),
        ("hypervisor", "unknown", "guest of a hypervisor that does not tell its name"),
    ],
)
def test_absent_kvm_has_the_remedy_of_its_cause(
    tmp_path: Path, flags: str, virtualised: str, expected: str | tuple[str, ...]
) -> None:
    computer = Computer(tmp_path, x86_laptop("debian-13", flags=flags))
    computer.change(kvm=Kvm(KvmState.ABSENT, "there is no /dev/kvm"), virtualised=virtualised)
    remedy = computer.checks()["kvm"].remedy
    if isinstance(expected, tuple):
        assert remedy == expected
    else:
        assert expected in remedy[0]


def test_a_board_that_did_not_start_at_el2_is_told(tmp_path: Path) -> None:
    computer = Computer(tmp_path, arm_board("Pine64+", "pine64,pine64-plus", memory_mib=2048))
    computer.change(kvm=Kvm(KvmState.ABSENT, "there is no /dev/kvm"))
    assert "EL2" in computer.checks()["kvm"].remedy[0]


def test_kvm_that_only_root_may_open_is_of_no_use_to_libvirt(laptop: Computer) -> None:
    (laptop.root / "dev/kvm").chmod(0o600)
    check = laptop.checks()["kvm-access"]
    assert check.state is State.FAIL
    assert "libvirt-qemu may not open it" in check.evidence
    assert check.remedy[:2] == ("chgrp kvm /dev/kvm", "chmod 0660 /dev/kvm")
    laptop.change(kvm=Kvm(KvmState.SLOW, "slow"))
    assert laptop.checks()["kvm-access"].state is State.WARN
    (laptop.root / "etc/passwd").unlink()
    assert laptop.checks()["kvm-access"].state is State.UNKNOWN


def test_libvirt_that_does_not_offer_kvm_fails(laptop: Computer) -> None:
    laptop.libvirt = Libvirt(kvm=(Arch.AARCH64,))
    check = laptop.checks()["kvm-libvirt"]
    assert (check.state, check.remedy) == (State.FAIL, ("systemctl restart libvirtd",))


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


def test_memory_is_judged_against_the_demo_and_the_smallest_machine(laptop: Computer) -> None:
    states = {}
    for mib in (16384, 2600, 1700, 100):
        laptop.change(memory=16 * GIB, memory_available=mib * MIB)
        states[mib] = laptop.checks()["memory"].state
    assert states == {16384: State.OK, 2600: State.WARN, 1700: State.FAIL, 100: State.FAIL}
    laptop.change(memory=0, memory_available=0)
    assert laptop.checks()["memory"].state is State.UNKNOWN


def test_each_disk_is_judged_by_topic(laptop: Computer) -> None:
    checks = {name: check for name, check in laptop.checks().items() if check.group == "storage"}
    odd = {name: check.state for name, check in checks.items() if check.state is not State.OK}
    assert odd == {"usb:sdb": State.WARN}
    assert {"medium:sda", "speed:sda", "trim:sda", "write-cache:sda", "medium:sdb", "speed:sdb"} <= set(checks)
    assert checks["medium:sdb"].evidence.startswith("/dev/sdb (Pocket, 256 GiB, usb): SSD: yes (by the time of its reads")
    assert "480 Mbit/s, driver uas, 152d:0578" in checks["usb:sdb"].evidence
    assert checks["usb:sdb"].remedy[0].startswith("Plug it into a USB 3 port")
    laptop.devices = (Path("/dev/sdb"),)
    assert {name.partition(":")[2] for name, check in laptop.checks().items() if check.group == "storage"} == {"sdb"}


def test_a_disk_that_fails_stops_labs_only_where_it_was_asked_for(laptop: Computer) -> None:
    laptop.measured["sdb"] = LIMPING
    assert laptop.checks()["speed:sdb"].state is State.WARN
    assert not failed(laptop.checks().values())
    laptop.devices = (Path("/dev/sdb"),)
    assert laptop.checks()["speed:sdb"].state is State.FAIL
    assert failed(laptop.checks().values())


def test_what_is_not_measured_says_why(laptop: Computer) -> None:
    laptop.measured["sdb"] = HostLacks("/dev/sdb may not be read by this user", hint="do it as root")
    checks = laptop.checks()
    assert checks["speed:sdb"].state is State.UNKNOWN
    assert "may not be read by this user" in checks["speed:sdb"].evidence
    assert checks["medium:sdb"].state is State.UNKNOWN
    assert checks["medium:sda"].state is State.OK, "it says of itself that it is one"
    laptop.devices = (Path("/dev/sdz"),)
    assert laptop.checks()["disks"].evidence == "/dev/sdz: no such disk"


def test_no_more_than_four_disks_are_measured_unasked(laptop: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**LSBLK["blockdevices"][0], "name": f"sd{a}", "kname": f"sd{a}", "path": f"/dev/sd{a}"} for a in "abcdef"]
    monkeypatch.setitem(LSBLK, "blockdevices", rows)
    for letter in "cdef":
        place = f"sys/devices/pci0000:00/0000:00:17.0/ata1/host0/block/sd{letter}"
        plant(laptop.root, disk(place))
        (laptop.root / "sys/class/block" / f"sd{letter}").symlink_to(laptop.root / place)
    laptop.measured |= dict.fromkeys(("sdc", "sdd"), QUICK)
    checks = laptop.checks()
    assert checks["speed:sdd"].state is State.OK
    assert checks["speed:sde"].state is State.UNKNOWN
    assert "--device /dev/sde" in checks["speed:sde"].evidence


def test_disks_that_cannot_be_listed_are_no_traceback(laptop: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.LSBLK", "Segmentation fault")
    check = laptop.checks()["disks"]
    assert check.state is State.UNKNOWN
    assert "lsblk gives no list of disks" in check.evidence


def test_a_fault_in_one_group_leaves_the_others(laptop: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    before = laptop.checks()
    monkeypatch.setattr("pocketcloud.check.memory.memory_for_labs", lambda *_: 1 // 0)
    after = laptop.checks()
    assert after["memory-unfinished"].state is State.UNKNOWN
    assert "ZeroDivisionError" in after["memory-unfinished"].evidence
    assert set(before) - {"memory"} == set(after) - {"memory-unfinished"}


def test_the_whole_is_said_in_a_sentence(laptop: Computer) -> None:
    checks = tuple(laptop.checks().values())
    profile = find_profile("x86-laptop")
    assert summary(checks, laptop.facts, profile) == (
        "LENOVO ThinkPad X1 Carbon Gen 9 can run labs on KVM, with KVM inside their machines: up to 16 machines of 512 MiB, or 4"
        " of 2 GiB (profile x86-laptop); 1 warning."
    )
    assert not failed(checks)
    assert failed(checks, strict=True), "the disk in the USB 2 port"
    laptop.change(kvm=Kvm(KvmState.SLOW, "1700 ns an instruction"))
    said = summary(laptop.checks().values(), laptop.facts, find_profile("emulated"))
    assert "on emulation, ten to thirty times slower than with KVM, without KVM inside" in said
    laptop.tools -= {"qemu-img"}
    assert summary(laptop.checks().values(), laptop.facts, profile).endswith("(qemu-img): labs cannot run here yet.")


@pytest.mark.parametrize(
    ("files", "state", "evidence"),
    [
        ({}, State.WARN, "closing the lid: suspend, on mains: suspend"),
        ({"etc/systemd/logind.conf": "[Login]\n#HandleLidSwitch=ignore\n"}, State.WARN, "closing the lid: suspend"),
        ({"etc/systemd/logind.conf": "[Login]\nHandleLidSwitch=ignore\n"}, State.OK, "closing the lid: ignore, on mains: ignore"),
        ({"usr/lib/systemd/logind.conf.d/a.conf": "[Login]\nHandleLidSwitch = lock\n"}, State.OK, "closing the lid: lock"),
        (
            {
                "usr/lib/systemd/logind.conf.d/a.conf": "HandleLidSwitch=ignore\n",
                "etc/systemd/logind.conf.d/a.conf": "HandleLidSwitch=hibernate\n",
                "etc/systemd/logind.conf": "HandleLidSwitch=lock\n",
            },
            State.WARN,
            "closing the lid: hibernate",
        ),
        ({"etc/systemd/logind.conf": "HandleLidSwitchExternalPower=ignore\n"}, State.WARN, "suspend, on mains: ignore"),
    ],
)
def test_a_lid_that_takes_the_lab_to_sleep(laptop: Computer, files: Mapping[str, str], state: State, evidence: str) -> None:
    plant(laptop.root, {"sys/class/power_supply/BAT0/type": "Battery", **files})
    check = laptop.checks()["lid"]
    assert check.state is state
    assert evidence in check.evidence
    assert bool(check.remedy) == (state is State.WARN)


def test_what_is_said_of_the_lid_cures_it(laptop: Computer) -> None:
    plant(laptop.root, {"sys/class/power_supply/BAT0/type": "Battery"})
    check = laptop.checks()["lid"]
    run(["sh", "-ec", check.remedy[0].replace("/etc", f"{laptop.root}/etc")])
    assert laptop.checks()["lid"].state is State.OK
    made = laptop.root / "etc/systemd/logind.conf.d/pocketcloud.conf"
    made.unlink()
    done: list[tuple[str, ...]] = []

    def recorded(argv: Sequence[str | Path], **_: object) -> Completed:
        done.append(tuple(map(str, argv)))
        return Completed(tuple(map(str, argv)), 0, "", "")

    carry_out(check.fix, recorded, laptop.root)
    assert laptop.checks()["lid"].state is State.OK
    assert done == [("systemctl", "kill", "-s", "HUP", "systemd-logind")]
    assert "rm /etc/systemd/logind.conf.d/pocketcloud.conf && systemctl kill" in made.read_text()
    carry_out(check.fix, recorded, laptop.root)
    made.write_text("[Login]\n")
    with pytest.raises(Refused, match="was not written by pocketcloud"):
        carry_out(check.fix, recorded, laptop.root)
    assert made.read_text() == "[Login]\n"


def test_a_battery_counts_only_if_it_is_the_computers(laptop: Computer) -> None:
    supplies = "sys/class/power_supply"
    plant(laptop.root, {f"{supplies}/mouse/type": "Battery", f"{supplies}/mouse/scope": "Device"})
    assert laptop.checks()["battery"].state is State.NOT_APPLICABLE
    plant(laptop.root, {f"{supplies}/BAT0/type": "Battery", f"{supplies}/AC/type": "Mains", f"{supplies}/AC/online": "0"})
    assert laptop.checks()["battery"].state is State.WARN
    plant(laptop.root, {f"{supplies}/AC/online": "1"})
    assert laptop.checks()["battery"].state is State.OK


def test_kits_on_disks_need_lvm_and_labs_do_without(laptop: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = laptop.checks()
    assert checks["lvm2"].evidence == "lvm2 2.03.16"
    assert "the devices file is 1" in checks["lvm-settings"].evidence
    monkeypatch.setattr(f"{__name__}.LVM_VERSION", "  LVM version:     2.03.11(2) (2021-01-08)\n")
    assert laptop.checks()["lvm2"].state is State.WARN
    assert "2.03.12 is the oldest" in laptop.checks()["lvm2"].evidence
    monkeypatch.setattr(f"{__name__}.LVM_VERSION", "Killed\n")
    assert laptop.checks()["lvm2"].state is State.UNKNOWN
    laptop.tools -= {"lvm", "lvmconfig", "thin_check", "modprobe"}
    checks = laptop.checks()
    assert checks["lvm2"].remedy == ("apt-get install -y lvm2",)
    assert checks["thin-tools"].remedy == ("apt-get install -y thin-provisioning-tools",)
    assert checks["dm-thin"].state is State.UNKNOWN
    assert checks["lvm-settings"].state is State.NOT_APPLICABLE
    assert not failed(checks.values())


def test_an_architecture_without_a_profile_fails(laptop: Computer) -> None:
    laptop.change(arch=None, machine="riscv64")
    checks = laptop.checks()
    assert checks["architecture"].state is State.FAIL
    assert {checks[name].state for name in ("memory", "qemu", "firmware")} == {State.NOT_APPLICABLE}


def test_a_profile_named_by_hand_is_the_one_judged(laptop: Computer) -> None:
    found = run_checks(
        laptop.facts,
        kit_path=Path("/"),
        run=says_its_name,
        hypervisor=laptop.connect,
        profile=find_profile("emulated"),
        root=laptop.root,
    )
    assert "profile emulated" in next(check for check in found if check.id == "architecture").evidence


def test_libvirts_networks_are_held_against_the_hosts(laptop: Computer) -> None:
    home = Subnet(IPv4Network("192.168.0.0/16"), "route via wlan0")
    default = Subnet(IPv4Network("192.168.122.0/24"), "libvirt network default")
    laptop.change(subnets=(home,))
    laptop.libvirt = Libvirt(subnets=(default,))
    check = laptop.checks()["libvirt-networks"]
    assert check.state is State.WARN
    pair = "192.168.122.0/24 (libvirt network default) overlaps 192.168.0.0/16 (route via wlan0)"
    assert check.evidence == pair
    assert check.remedy


def test_a_host_without_room_for_labs_fails(laptop: Computer) -> None:
    ranges = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15")
    laptop.change(subnets=tuple(Subnet(IPv4Network(net), "route via tun0") for net in ranges))
    check = laptop.checks()["lab-subnets"]
    assert check.state is State.FAIL
    assert "10.0.0.0/8 (route via tun0)" in check.evidence


def test_a_folder_that_others_may_not_pass_is_named_with_its_remedy(laptop: Computer, tmp_path: Path) -> None:
    home = tmp_path / "home of a user"
    home.mkdir(mode=0o700)
    found = run_checks(laptop.facts, kit_path=home / "kit", run=says_its_name, hypervisor=laptop.connect, root=laptop.root)
    check = next(check for check in found if check.id == "kit-path")
    assert check.state is State.WARN
    assert f"setfacl -m u:libvirt-qemu:x '{home}'" in check.remedy
    space = next(check for check in found if check.id == "space")
    assert f"free in {home}, where {home / 'kit'} would be made" in space.evidence


def test_a_pine64_is_in_order_too(tmp_path: Path) -> None:
    checks = Computer(tmp_path, pine64()).checks()
    odd = {c.id: c.state for c in checks.values() if c.group not in ("space", "storage", "power") and c.state is not State.OK}
    assert odd == dict.fromkeys(("nesting", "nesting-speed", "nesting-libvirt"), State.NOT_APPLICABLE)
    assert "profile pine64" in checks["architecture"].evidence


def test_this_host() -> None:
    """Real tools and real files; libvirt has tests of its own."""

    def unreachable() -> Hypervisor:
        raise HostLacks("not asked in this test")

    found = run_checks(read_facts(), kit_path=Path("/var/lib/pocketcloud"), run=run, hypervisor=unreachable)
    by_id = {check.id: check for check in found}
    assert by_id["architecture"].state is State.OK
    assert by_id["memory"].state in (State.OK, State.WARN, State.FAIL)
    assert by_id["qemu-img"].state is State.FAIL or "qemu-img version" in by_id["qemu-img"].evidence
