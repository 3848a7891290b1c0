"""The shipped profiles, which one a host gets, what it decides, and the memory it leaves to labs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketcloud.errors import BadDocument, HostLacks, NotFound
from pocketcloud.host import read_facts
from pocketcloud.model.base import Arch
from pocketcloud.model.facts import Distribution, Facts, Kvm, KvmState
from pocketcloud.model.profile import Acceleration, Medium
from pocketcloud.model.sizes import GIB, MIB
from pocketcloud.profiles import available, choose, find, memory_for_labs, memory_needed, shape
from tests.host_trees import plant


def host(
    arch: Arch | None = Arch.X86_64,
    kvm: KvmState = KvmState.USABLE,
    *,
    model: str = "",
    device_tree: bool = False,
    memory: int = 16 * GIB,
    available: int = 12 * GIB,
) -> Facts:
    return Facts(
        arch=arch,
        machine=str(arch or "riscv64"),
        kernel="6.12",
        distribution=Distribution("debian", "13", "trixie", "Debian 13"),
        model=model,
        device_tree=device_tree,
        cpus=4,
        memory=memory,
        memory_available=available,
        kvm=Kvm(kvm, "as the test says"),
        virtualised="",
        systemd=True,
        subnets=(),
    )


def test_the_shipped_profiles_are_whole() -> None:
    assert [p.profile for p in available()] == ["arm64-board", "arm64-server", "emulated", "pine64", "x86-laptop"]
    for profile in available():
        assert set(profile.media) == set(Medium)
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
        (host(Arch.AARCH64, model="Raspberry Pi 4 Model B Rev 1.4", device_tree=True), "arm64-board"),
        (host(Arch.AARCH64, model="Pine64+", device_tree=True), "pine64"),
        (host(Arch.AARCH64, model="Pine H64 model A", device_tree=True), "pine64"),
        (host(Arch.AARCH64, model="Pine Mountain Servers"), "arm64-server"),
        (host(Arch.AARCH64, KvmState.ABSENT, model="Pine64+", device_tree=True), "emulated"),
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
    with pytest.raises(NotFound, match="no profile 'pine'; there are: arm64-board, arm64-server, emulated, pine64, x86-laptop"):
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
