"""Check on hosts whose files and tools say nonsense, or nothing: no traceback, no group that ends early."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pocketcloud.check import Check, State
from pocketcloud.errors import HostLacks
from pocketcloud.host import read_facts
from tests.computers import SAYS, USABLE, Computer, Libvirt, Tools
from tests.host_trees import arm_board, plant, x86_laptop
from tests.unit.test_check_networks import bridge, planted, status

# Besides what each computer under test has: whatever else is read where it is there.
MORE = {
    "proc/swaps": "Filename Type Size Used Priority\n/dev/zram0 partition 8388604 1048576 100\n/dev/sda2 partition 9999 1 -2\n",
    "sys/block/zram0/mm_stat": "1073741824 209715200 220200960 0 0 0 0 0 0\n",
    "sys/kernel/mm/ksm/pages_sharing": "7\n",
    "etc/sysctl.d/90-x.conf": "net.ipv4.ip_forward=1\n",
    "etc/libvirt/network.conf": 'firewall_backend = "nftables"\n',
    "etc/libvirt/qemu.conf": 'stdio_handler = "logd"\n',
    "etc/ufw/ufw.conf": "ENABLED=yes\n",
    "etc/adjtime": "0.0 0 0.0\n0\nLOCAL\n",
    "etc/systemd/logind.conf": "[Login]\nHandleLidSwitch=ignore\n",
    "etc/systemd/logind.conf.d/x.conf": "[Login]\nIdleAction=suspend\n",
    "etc/lvm/devices/system.devices": "IDTYPE=devname IDNAME=/dev/sdc\n",
    "sys/class/power_supply/BAT0/type": "Battery\n",
    "sys/class/power_supply/AC/type": "Mains\n",
    "sys/class/power_supply/AC/online": "1\n",
    "sys/module/kvm/parameters/enable_virt_at_load": "Y\n",
    "sys/module/kvm_intel/refcnt": "0\n",
    "sys/hypervisor/type": "\n",
    "proc/net/ip_tables_names": "filter\n",
    "proc/net/route": "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\neth0\t0000A8C0\t0\t1\t0\t0\t0\t00FFFFFF\n",
    "proc/cmdline": "quiet\n",
    **status("default", "virbr0"),
}
NUMBER = b"9" * 5000
NONSENSE = {
    "empty": b"",
    "binary": bytes(range(256)) * 8,
    "a number that is none": NUMBER + b"\n",
    "many numbers": b" ".join([b"99999999999999999999"] * 40) + b"\n",
    "below nothing": b"-1 -1 -1 -1 -1 -1\n",
    "words": b"unknown (null) = : [] {} <x name='\n" * 3,
    "large": b"x y=z: 1\n" * 50_000,
}

# The file as it is, but for its numbers.
SAME_SHAPE = {"huge numbers": NUMBER, "odd digits": "\N{SUPERSCRIPT TWO}".encode(), "no numbers": b"-", "small numbers": b"0"}


def broken(path: Path, harm: str) -> None:
    """Do the harm to one file."""
    content = path.read_bytes()
    path.unlink()
    if harm in SAME_SHAPE:
        path.write_bytes(re.sub(rb"\d+", SAME_SHAPE[harm], content))
    elif harm == "a folder":
        path.mkdir()
    elif harm == "a loop":
        path.symlink_to(path.name)
    elif harm != "absent":
        path.write_bytes(NONSENSE[harm])


HARMS = ("absent", "a folder", "a loop", *NONSENSE, *SAME_SHAPE)


def whole(root: Path, kind: str) -> Computer:
    files = x86_laptop("debian-13") if kind == "laptop" else arm_board("Pine64+", "pine64,pine64-plus", memory_mib=2048)
    computer = Computer(root, files)
    plant(root, MORE)
    planted(root, {**bridge("virbr0", "vnet0"), **bridge("docker0")})
    return computer


def files(root: Path) -> list[str]:
    """The files of a computer, without those of disks (tests of their own) and without links to them."""
    found = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    return sorted(str(path.relative_to(root)) for path in found if "/block/sd" not in str(path) and path.name != "kvm")


def judged(computer: Computer) -> dict[str, Check]:
    """All its checks, from its facts on; what each must have, however odd the host is."""
    kvm = computer.facts.kvm
    computer.facts = dataclasses.replace(read_facts(computer.root, run=computer.run), kvm=kvm)
    checks = computer.checks()
    assert [check.evidence for name, check in checks.items() if name.endswith("-unfinished")] == []
    for check in checks.values():
        assert check.evidence
        assert check.why.endswith(".")
        assert bool(check.remedy) <= (check.state in (State.WARN, State.FAIL, State.UNKNOWN)), check
        assert len(check.evidence) < 1100, check.id
        assert check.evidence.isprintable(), check.id
        json.dumps(check.told)
    return checks


@pytest.mark.sampled(5)
@pytest.mark.parametrize("kind", ["laptop", "board"])
@pytest.mark.parametrize("harm", HARMS)
def test_no_single_file_ends_a_group(tmp_path: Path, kind: str, harm: str) -> None:
    """Each file in turn: a copy is kept aside and put back."""
    computer = whole(tmp_path / "root", kind)
    before = set(judged(computer))
    for name in files(computer.root):
        path, aside = computer.root / name, tmp_path / "aside"
        shutil.copy2(path, aside)
        broken(path, harm)
        assert set(judged(computer)) - before <= {"disks"}, name
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        shutil.copy2(aside, path)
    assert set(judged(computer)) == before


@settings(
    max_examples=40,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_nonsense_in_several_files_and_tools_at_once(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    computer = whole(tmp_path_factory.mktemp("host"), data.draw(st.sampled_from(["laptop", "board"])))
    try:
        names = files(computer.root)
        for name in data.draw(st.lists(st.sampled_from(names), max_size=8, unique=True)):
            harm = data.draw(st.sampled_from(HARMS) | st.binary(max_size=200))
            if isinstance(harm, bytes):
                (computer.root / name).write_bytes(harm)
            else:
                broken(computer.root / name, harm)
        for tool in data.draw(st.lists(st.sampled_from(sorted(SAYS)), max_size=4, unique=True)):
            computer.run.says[tool] = data.draw(
                st.text(max_size=60) | st.sampled_from(["[]", "{}", "null", '{"nftables": 1}', "9" * 5000])
            )
        computer.tools -= set(data.draw(st.lists(st.sampled_from(sorted(computer.tools)), max_size=6)))
        answers: list[Libvirt | HostLacks] = [Libvirt(), Libvirt(""), Libvirt("x.y"), HostLacks("it does not answer")]
        computer.libvirt = data.draw(st.sampled_from(answers))
        judged(computer)
    finally:
        shutil.rmtree(computer.root)


@pytest.mark.parametrize("folder", ["proc", "sys", "etc", "run", "dev", "usr", "sys/class", "sys/class/block", "etc/systemd"])
@pytest.mark.parametrize(
    "put", [lambda _: None, lambda path: path.write_text("x"), lambda path: path.mkdir()], ids=["gone", "file", "empty"]
)
def test_a_container_that_lacks_whole_trees(tmp_path: Path, folder: str, put: Callable[[Path], None]) -> None:
    computer = whole(tmp_path, "laptop")
    shutil.rmtree(tmp_path / folder)
    put(tmp_path / folder)
    judged(computer)


def test_a_host_of_which_nothing_is_known(tmp_path: Path) -> None:
    """No file at all, no tool, no libvirt."""
    computer = whole(tmp_path / "other", "laptop")
    computer.root = tmp_path / "empty"
    computer.root.mkdir()
    computer.tools, computer.run = set(), Tools()
    computer.libvirt = HostLacks("not installed")
    computer.facts = dataclasses.replace(computer.facts, kvm=USABLE)
    checks = judged(computer)
    assert checks["memory"].state in (State.UNKNOWN, State.NOT_APPLICABLE)
    assert checks["libvirt"].state is State.FAIL
    assert checks["disks"].state is State.UNKNOWN


def test_names_that_are_no_utf8_are_shown_as_far_as_they_go(tmp_path: Path) -> None:
    computer = whole(tmp_path, "laptop")
    (tmp_path / "sys/class/dmi/id/product_version").write_bytes(b"Think\xff\xfePad\n")
    assert "Think" in judged(computer)["architecture"].evidence
