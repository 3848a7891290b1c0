"""What is told before an installer is started: all that is missing, at once, and nothing has been fetched or made."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import pytest

from pocketcloud import profiles
from pocketcloud.bases.bootstrap import Bootstrap
from pocketcloud.bases.install.installation import Installation
from pocketcloud.bases.namespace import give
from pocketcloud.bases.needs import Ground
from pocketcloud.bases.recipe import Order
from pocketcloud.cache.supply import KitSupply
from pocketcloud.errors import HostLacks, NoSpace, NotFound, PocketcloudError
from pocketcloud.hypervisor import Hypervisor
from pocketcloud.model.base import Arch, BootstrapDefinition, Builder, CpuLevel, InstallDefinition, Registration, Requirements
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import GIB, TIB, Size
from pocketcloud.storage import Usage
from pocketcloud.storage.qcow2 import Qcow2Directory
from pocketcloud.system import run
from tests.built_base import kit_in
from tests.hands import Hands
from tests.small_base import small_definition
from tests.standin import Tree
from tests.web import serving

TREE = Tree(b"a kernel", b"an initramfs")


@dataclass
class Cramped(Qcow2Directory):
    """A real store, on which only so much is left."""

    def __init__(self, folder: Path, left: int) -> None:
        super().__init__(folder)
        self._left = left

    def usage(self) -> Usage:
        return replace(super().usage(), free=self._left)


@pytest.fixture
def order(tmp_path: Path) -> Order[InstallDefinition]:
    """An order on a host of this test's own: 8 GiB of memory, a processor of the first level, no KVM."""
    root = tmp_path / "root"
    (root / "proc/sys/kernel").mkdir(parents=True)
    (root / "proc/sys/kernel/arch").write_text("x86_64\n")
    (root / "proc/meminfo").write_text(f"MemTotal: {8 * GIB // 1024} kB\nMemAvailable: {7 * GIB // 1024} kB\n")
    (root / "proc/cpuinfo").write_text("processor : 0\nflags : fpu sse sse2\n")
    kit = kit_in(tmp_path / "kit")
    definition = InstallDefinition(
        base=Name("standin"), title="", family="almalinux", version="10", builder=Builder.KICKSTART, template="anaconda.ks.j2",
        architectures=tuple(Arch), tree="ftp://example.com/tree", requires=Requirements(cpu=CpuLevel.V3),
    )  # fmt: skip
    here = Ground(root, "x86_64", privileged=True, profile=profiles.find("emulated"))
    return Order(
        kit, Cramped(kit.path / "volumes", 100 * GIB), definition, Arch.X86_64, "d" * 64, tmp_path, None, here, run,
        lambda _text, _done: None, lambda: cast(Hypervisor, Hands(lambda _: None)),
    )  # fmt: skip


def told(order: Order[InstallDefinition]) -> PocketcloudError:
    with pytest.raises(PocketcloudError) as caught:
        Installation().check(order)
    assert not list((order.kit.path / "media").iterdir())
    return caught.value


def served(order: Order[InstallDefinition], then: Callable[[Order[InstallDefinition]], None]) -> None:
    with serving() as web:
        then(replace(order, definition=replace(order.definition, tree=TREE.serve(web))))


def test_a_host_that_has_everything_is_let_pass(order: Order[InstallDefinition]) -> None:
    served(order, Installation().check)


def test_all_that_is_missing_is_told_at_once(order: Order[InstallDefinition]) -> None:
    (order.here.root / "proc/meminfo").write_text("MemTotal: 2000000 kB\nMemAvailable: 1500000 kB\n")
    poor = replace(
        order,
        storage=Cramped(order.kit.path / "volumes", GIB),
        here=replace(order.here, privileged=False),
        definition=replace(order.definition, tree="ftp://example.com/tree"),
    )
    error = told(poor)
    assert isinstance(error, HostLacks)
    for words in (
        "it takes root",
        "takes 4.3 GiB of memory",
        "1 GiB are free in the kit's store",
        "not an http or https address",
    ):
        assert words in error.message, error.message
    assert "sudo" in error.hint


def test_memory_alone_is_a_matter_of_space(order: Order[InstallDefinition]) -> None:
    def check(asked: Order[InstallDefinition]) -> None:
        with pytest.raises(NoSpace, match="of memory"):
            Installation().check(asked)

    served(replace(order, definition=replace(order.definition, requires=Requirements(memory=Size(TIB)))), check)


def test_a_processor_that_is_too_old_is_told_with_what_it_lacks(order: Order[InstallDefinition]) -> None:
    definition = replace(order.definition, requires=Requirements(cpu=CpuLevel.V4))
    error = told(replace(order, definition=definition))
    assert "x86-64-v4, which QEMU 9.0.0 cannot emulate" in error.message


@pytest.mark.skipif(os.geteuid() != 0, reason="tries a namespace")
def test_the_processor_counts_for_bootstrapped_bases_too(order: Order[InstallDefinition]) -> None:
    wanted = small_definition(requires=Requirements(cpu=CpuLevel.V4))
    order.work.mkdir(exist_ok=True)
    give(order.work)
    here = replace(order.here, root=Path("/"))
    asked = replace(order, definition=wanted, here=here)  # type: ignore[arg-type] # an order of the other kind
    with pytest.raises(HostLacks, match=r"x86-64-v4, which QEMU 9\.0\.0 cannot emulate"):
        Bootstrap().check(cast("Order[BootstrapDefinition]", asked))


def test_offline_a_tree_that_nothing_is_known_of_is_told_before_anything_starts(order: Order[InstallDefinition]) -> None:
    assert "nothing is known of the installer" in told(replace(order, supply=KitSupply(order.kit))).message


def test_without_a_hypervisor_it_is_said(order: Order[InstallDefinition]) -> None:
    def none() -> Hypervisor:
        raise HostLacks("libvirt's daemon does not answer", hint="start it")

    error = told(replace(order, hypervisor=none))
    assert "libvirt's daemon does not answer" in error.message
    assert "start it" in error.hint


def test_an_activation_key_that_is_not_there_is_missing_too(order: Order[InstallDefinition]) -> None:
    registered = replace(order.definition, registration=Registration("/etc/no-such-key"), requires=Requirements())
    error = told(replace(order, definition=registered))
    assert "no-such-key" in error.message
    assert isinstance(error, NotFound | HostLacks)


def test_a_foreign_architecture_is_emulated_without_a_word_about_levels(order: Order[InstallDefinition]) -> None:
    with serving() as web:
        url = TREE.serve(web)
        web.put("/tree/.treeinfo", TREE.treeinfo("aarch64").encode(), kind="text/plain")
        Installation().check(replace(order, arch=Arch.AARCH64, definition=replace(order.definition, tree=url)))
