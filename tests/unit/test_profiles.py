"""The shipped profiles, which one a host gets, what it decides, and the memory it leaves to labs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketcloud.errors import BadDocument, HostLacks, NotFound
from pocketcloud.host import read_facts
from pocketcloud.host.cores import named_cores
from pocketcloud.model.base import Arch
from pocketcloud.model.facts import Core, Distribution, Facts, Kvm, KvmState
from pocketcloud.model.profile import Acceleration, Medium
from pocketcloud.model.sizes import GIB, MIB
from pocketcloud.profiles import (
    available,
    choose,
    find,
    is_kind,
    memory_for_labs,
    memory_needed,
    origins,
    quickest_cores,
    ranges,
    shape,
    why_chosen,
)
from pocketcloud.resources import shipped
from tests.host_trees import plant

NAMES = [
    "arm64-board", "arm64-server", "emulated", "pine64", "pinephone", "raspberry-pi-4", "raspberry-pi-5", "rk3588", "rockpro64",
    "x86-laptop",
]  # fmt: skip
BOARDS = ("pine64", "pinephone", "raspberry-pi-4", "raspberry-pi-5", "rk3588", "rockpro64")
A53 = Core("Cortex-A53", "8.0", nests=False, cpus=(0, 1, 2, 3))
A72 = Core("Cortex-A72", "8.0", nests=False, cpus=(4, 5))


def host(
    arch: Arch | None = Arch.X86_64,
    kvm: KvmState = KvmState.USABLE,
    *,
    model: str = "",
    compatible: str = "",
    device_tree: bool | None = None,
    cores: tuple[Core, ...] = (),
    memory: int = 16 * GIB,
    available: int = 12 * GIB,
) -> Facts:
    return Facts(
        arch=arch,
        machine=str(arch or "riscv64"),
        kernel="6.12",
        distribution=Distribution("debian", "13", "trixie", "Debian 13"),
        model=model,
        device_tree=bool(compatible) if device_tree is None else device_tree,
        cpus=4,
        memory=memory,
        memory_available=available,
        kvm=Kvm(kvm, "as the test says"),
        virtualised="",
        systemd=True,
        subnets=(),
        compatible=tuple(compatible.split()),
        cores=cores,
    )


def board(compatible: str) -> Facts:
    return host(Arch.AARCH64, compatible=compatible)


def test_the_shipped_profiles_are_whole() -> None:
    assert [p.profile for p in available()] == NAMES
    for profile in available():
        assert set(profile.media) == set(Medium)
        assert set(profile.disk_speed) == {Medium.INTERNAL, Medium.USB}
        for tuning in profile.media.values():
            assert tuning.cache in ("none", "writeback")
            # libvirt refuses native I/O through the page cache.
            assert tuning.io == "threads" or tuning.cache == "none"
        # Through the page cache a guest's write to a full pool would be taken for done.
        assert all(profile.media[medium].cache == "none" for medium in (Medium.INTERNAL, Medium.USB, Medium.LOOP))
        # A folder may lie on tmpfs or overlayfs, which know no O_DIRECT.
        assert profile.media[Medium.DIR].cache == "writeback"


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (host(), "x86-laptop"),
        (host(device_tree=True), "x86-laptop"),
        (host(kvm=KvmState.SLOW), "emulated"),
        (host(kvm=KvmState.ABSENT), "emulated"),
        (host(kvm=KvmState.DENIED), "emulated"),
        (host(kvm=KvmState.BROKEN), "emulated"),
        (host(Arch.AARCH64, model="GIGABYTE R272-P30-JG"), "arm64-server"),
        (host(Arch.AARCH64, model="Pine64 Mountain Servers"), "arm64-server"),
        (board("raspberrypi,4-model-b brcm,bcm2711"), "raspberry-pi-4"),
        (board("raspberrypi,400 brcm,bcm2711"), "raspberry-pi-4"),
        (board("raspberrypi,5-model-b brcm,bcm2712"), "raspberry-pi-5"),
        (board("raspberrypi,5-model-b brcm,bcm2712 brcm,bcm2711"), "raspberry-pi-5"),
        (board("raspberrypi,3-model-b brcm,bcm2837"), "arm64-board"),
        (board("pine64,pine64 allwinner,sun50i-a64"), "pine64"),
        (board("pine64,pine64-plus allwinner,sun50i-a64"), "pine64"),
        (board("pine64,pine64-lts allwinner,sun50i-r18 allwinner,sun50i-a64"), "pine64"),
        (board("pine64,pinephone-1.0 allwinner,sun50i-a64"), "pinephone"),
        (board("pine64,pinephone-1.2b allwinner,sun50i-a64"), "pinephone"),
        (board("pine64,pinephone-pro rockchip,rk3399"), "arm64-board"),
        (board("pine64,pinebook allwinner,sun50i-a64"), "arm64-board"),
        (board("pine64,pinebook-pro rockchip,rk3399"), "arm64-board"),
        (board("pine64,pine-h64 allwinner,sun50i-h6"), "arm64-board"),
        (board("olimex,a64-olinuxino allwinner,sun50i-a64"), "arm64-board"),
        (board("pine64,rockpro64-v2.1 pine64,rockpro64 rockchip,rk3399"), "rockpro64"),
        (board("pine64,rockpro64 rockchip,rk3399"), "rockpro64"),
        (board("xunlong,orangepi-5 rockchip,rk3588s"), "rk3588"),
        (board("pine64,quartzpro64 rockchip,rk3588"), "rk3588"),
        (board("linux,dummy-virt"), "arm64-board"),
        (host(Arch.AARCH64, KvmState.ABSENT, compatible="pine64,pine64-plus allwinner,sun50i-a64"), "emulated"),
    ],
)
def test_a_host_gets_the_profile_that_is_meant_for_it(facts: Facts, expected: str) -> None:
    assert choose(facts).profile == expected


def test_an_architecture_we_do_not_know_gets_none() -> None:
    with pytest.raises(HostLacks, match="riscv64; pocketcloud runs on: x86_64, aarch64"):
        choose(host(None))
    with pytest.raises(HostLacks, match="no profile is meant for this host"):
        choose(host(), [find("pine64")])


def test_this_host_gets_one() -> None:
    facts = read_facts()
    usable = facts.kvm.state is KvmState.USABLE
    assert choose(facts).acceleration is (Acceleration.KVM if usable else Acceleration.EMULATION)


def test_find_names_what_there_is() -> None:
    assert find("pine64").title
    with pytest.raises(NotFound, match="no profile 'pine'; there are: arm64-board, arm64-server, emulated, pine64, pinephone, "):
        find("pine")


def test_profiles_of_another_folder_are_read_strictly(tmp_path: Path) -> None:
    plant(tmp_path, {"odd.yaml": "profile: odd\ntitle: 1\nprecedense: 3\n"})
    with pytest.raises(BadDocument, match=r"precedense: unknown key; did you mean `precedence`\?"):
        available(tmp_path)


def test_kvm_is_for_guests_of_the_hosts_own_architecture() -> None:
    laptop = find("x86-laptop")
    own = shape(laptop, host(), Arch.X86_64)
    assert (own.acceleration, own.machine, own.cpu_mode, own.reason) == (Acceleration.KVM, "q35", "host-passthrough", "")
    other = shape(laptop, host(), Arch.AARCH64)
    assert (other.acceleration, other.machine, other.cpu_mode) == (Acceleration.EMULATION, "virt", "maximum")
    assert other.reason == "emulated: the guest is aarch64, this host is x86_64"


def test_emulation_says_why() -> None:
    slow = shape(find("emulated"), host(kvm=KvmState.SLOW), Arch.X86_64)
    assert (slow.acceleration, slow.cpu_mode) == (Acceleration.EMULATION, "maximum")
    assert slow.reason == "emulated: KVM is slow here: as the test says"
    chosen = shape(find("emulated"), host(), Arch.X86_64)
    assert chosen.reason == "emulated: profile emulated says so, although KVM is usable here"


def test_a_profile_named_by_hand_is_obeyed_where_it_can_be() -> None:
    laptop = find("x86-laptop")
    assert shape(laptop, host(kvm=KvmState.SLOW), Arch.X86_64).acceleration is Acceleration.KVM
    with pytest.raises(HostLacks, match="profile x86-laptop needs KVM, which is denied: as the test says"):
        shape(laptop, host(kvm=KvmState.DENIED), Arch.X86_64)
    with pytest.raises(HostLacks, match="profile pine64 has no machine type for x86_64: it runs aarch64"):
        shape(find("pine64"), host(Arch.AARCH64), Arch.X86_64)


def test_memory_for_labs_is_what_is_available_less_the_hosts_share() -> None:
    laptop = find("x86-laptop")
    assert memory_for_labs(host(), laptop, 0) == 12 * GIB - laptop.host_memory
    # Running guests that have not touched their memory yet: it still looks available, and is promised.
    assert memory_for_labs(host(available=14 * GIB), laptop, 10 * GIB) == 6 * GIB - laptop.host_memory
    assert memory_for_labs(host(memory=GIB, available=GIB), laptop, 0) == 0
    assert memory_needed(laptop, [512 * MIB, GIB]) == 1536 * MIB + 2 * laptop.machine_overhead


@given(st.integers(0, 64 * GIB), st.integers(0, 64 * GIB), st.integers(0, 64 * GIB))
def test_memory_never_goes_below_nothing_nor_above_what_is_there(memory: int, free: int, running: int) -> None:
    profile = find("emulated")
    facts = host(memory=memory, available=free)
    left = memory_for_labs(facts, profile, running)
    assert left >= 0
    assert left == 0 or left + profile.host_memory <= min(free, memory - running)


# -- what a file says and what it leaves to another ---------------------------------------------------------------------


PARENT = """\
profile: parent
title: all that is needed
precedence: 1
selects: {}
acceleration: kvm
machine: {aarch64: virt}
cpu_mode: host-passthrough
host_memory: 1GiB
machine_overhead: 100MiB
max_vcpus: 8
media: {usb: {cache: none, io: native}, dir: {cache: writeback, io: threads}}
disk_speed: {usb: {sequential: 50, random_reads: 1000}}
"""
CHILD = """\
profile: child
extends: parent
title: a kind of it
precedence: 2
selects: {compatible: ["maker,board-*"]}
max_vcpus: 4
media: {usb: {cache: none, io: native, chunk: 128KiB}}
"""


def test_what_a_profile_leaves_out_is_its_parents_and_it_is_known_whose(tmp_path: Path) -> None:
    plant(tmp_path, {"parent.yaml": PARENT, "child.yaml": CHILD})
    child = find("child", available(tmp_path))
    assert (child.max_vcpus, child.host_memory) == (4, GIB)
    assert child.media[Medium.USB].chunk == 128 << 10
    assert child.media[Medium.DIR].io == "threads"
    said = origins("child", tmp_path)
    assert (said["max_vcpus"], said["media.usb"]) == ("child", "child")
    assert (said["host_memory"], said["media.dir"], said["disk_speed.usb"]) == ("parent", "parent", "parent")


@pytest.mark.parametrize(
    ("parent", "child", "fault"),
    [
        (
            PARENT,
            CHILD.replace("extends: parent", "extends: nobody"),
            r"extends: expected another profile \(parent\), got nobody",
        ),
        (PARENT + "extends: child\n", CHILD, "extends: expected another profile"),
        (PARENT.replace("host_memory: 1GiB\n", ""), CHILD, "host_memory: missing here and in what it extends"),
        (PARENT.replace("profile: parent", "profile: other"), CHILD, "profile: expected parent, as the file is named, got other"),
        (PARENT, CHILD.replace("compatible:", "model:"), "model: unknown key"),
        (
            PARENT,
            CHILD + "board: {memory: [2GiB], cores: {A: 4}, gic: 5, usb: 480, system: 1MiB}\n",
            "gic: expected 2 or 3, got 5",
        ),
        (PARENT, CHILD + "board: {memory: [2GiB, 1GiB], cores: {A: 4}, gic: 2, usb: 480, system: 1MiB}\n", "ascending"),
        (PARENT, CHILD + "disk_speed: {usb: {sequential: 0, random_reads: 5}}\n", "expected numbers above 0"),
    ],
)
def test_a_profile_that_is_not_whole_is_refused(tmp_path: Path, parent: str, child: str, fault: str) -> None:
    plant(tmp_path, {"parent.yaml": parent, "child.yaml": child})
    with pytest.raises(BadDocument, match=fault):
        available(tmp_path)


def test_every_value_of_a_shipped_profile_has_its_reason_beside_it() -> None:
    """A number without a comment above it, or above its group, is a number nobody knows the reason of."""
    for name in NAMES:
        lines = shipped("profiles", f"{name}.yaml").read_text().splitlines()
        for before, line in pairwise(lines):
            if line.startswith(("host_memory", "machine_overhead", "max_vcpus", "cpu_mode")):
                assert before.startswith("#"), f"{name}: {line}"


# -- boards -------------------------------------------------------------------------------------------------------------


def test_boards_have_cores_that_are_known_and_never_nest() -> None:
    for name in BOARDS:
        has = find(name).board
        assert has is not None
        cores = named_cores(has.cores)
        assert all(core.nests is False for core in cores), name
        assert sum(len(core.cpus) for core in cores) == sum(has.cores.values())
        assert find(name).max_vcpus <= (8 if has.gic == 2 else 64)
        # A small machine fits into the smallest of them.
        facts = host(Arch.AARCH64, memory=has.memory[0], available=has.memory[0] - has.system)
        assert memory_for_labs(facts, find(name), 0) >= memory_needed(find(name), (512 * MIB,)), name
    assert [find(name).board for name in NAMES if name not in BOARDS] == [None] * (len(NAMES) - len(BOARDS))


def test_a_host_is_of_a_kind_whatever_its_kvm_is_worth() -> None:
    a64 = "pine64,pine64-plus allwinner,sun50i-a64"
    assert is_kind(find("pine64").selects, host(Arch.AARCH64, KvmState.ABSENT, compatible=a64))
    assert not is_kind(find("pine64").selects, host())
    assert not is_kind(find("pinephone").selects, board(a64))
    assert is_kind(find("emulated").selects, host())


def test_why_a_profile_was_chosen_is_told() -> None:
    rockpro = board("pine64,rockpro64-v2.1 pine64,rockpro64 rockchip,rk3399")
    assert (
        why_chosen(choose(rockpro), rockpro)
        == "this computer is aarch64, its device tree says pine64,rockpro64, KVM is usable here"
    )
    assert why_chosen(choose(host()), host()) == "this computer is x86_64, KVM is usable here"
    server = host(Arch.AARCH64)
    assert why_chosen(choose(server), server) == "this computer is aarch64, it has no device tree, KVM is usable here"


# -- two kinds of cores -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        ((), None),
        ((A53,), None),
        ((A53, A72), A53),
        ((replace(A53, capacity=4 * 381), replace(A72, capacity=2 * 1024)), "4-5"),
        ((replace(A53, capacity=4 * 700), replace(A72, capacity=2 * 1024)), "0-3"),
        ((A53, replace(A72, cpus=(4, 5, 6, 7))), "4-7"),
        # Where the kernel tells it of one kind only, it is told of none.
        ((A53, replace(A72, capacity=2 * 1024)), "0-3"),
    ],
)
def test_machines_stay_on_the_cores_that_can_do_the_most(cores: tuple[Core, ...], expected: Core | str | None) -> None:
    quick = quickest_cores(cores)
    assert (ranges(quick.cpus) if quick and isinstance(expected, str) else quick) == expected


def test_only_machines_on_kvm_are_bound_to_cores() -> None:
    facts = host(Arch.AARCH64, compatible="pine64,rockpro64 rockchip,rk3399", cores=(A53, A72))
    assert shape(choose(facts), facts, Arch.AARCH64).cpus == "0-3"
    assert shape(find("emulated"), facts, Arch.AARCH64).cpus == ""
    assert shape(find("x86-laptop"), host(), Arch.X86_64).cpus == ""


@given(st.sets(st.integers(0, 200)))
def test_ranges_name_each_number_once(numbers: set[int]) -> None:
    told: set[int] = set()
    for part in ranges(numbers).split(",") if numbers else ():
        first, _, last = part.partition("-")
        named = set(range(int(first), int(last or first) + 1))
        assert not told & named
        told |= named
    assert told == numbers
    assert ranges({0, 1, 2, 6}) == "0-2,6"
