"""An installation into a store: the volume is there whole and sealed, or not at all. Hands (tests/hands.py) are the guest.

On the host it goes into a folder of images, in User-Mode Linux (tests/rig), where no guest can run, into a thin pool.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from pocketcloud import profiles
from pocketcloud.bases.install.installation import Installation
from pocketcloud.bases.install.watching import PORT
from pocketcloud.bases.needs import Ground
from pocketcloud.bases.recipe import Order
from pocketcloud.errors import PartlyDone
from pocketcloud.hypervisor import Hypervisor
from pocketcloud.model.base import Arch, Builder, Download, InstallDefinition
from pocketcloud.model.machine import MachineSpec
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import Size
from pocketcloud.system import run
from tests.built_base import kit_in
from tests.contract.stores import UNIT, Bench, bench_in, content
from tests.hands import Hands, says, writes
from tests.standin.discs import disc

Install = Callable[[Callable[[MachineSpec], None]], Hands]

SIZE = 4 * UNIT
VOLUME = "base.standin.x86_64.0123456789ab"
BUILD = "0123456789ab"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = bench_in(tmp_path)
    yield made
    made.close()


@pytest.fixture
def install(tmp_path: Path, bench: Bench) -> Install:
    """A function that installs with these hands; returns them."""
    kit = kit_in(tmp_path / "kit")
    image = disc(tmp_path / "live.iso", "LIVE", {"casper/vmlinuz": b"kernel", "casper/initrd": b"initrd"})
    definition = InstallDefinition(
        base=Name("standin"), title="", family="ubuntu", version="24.04", suite="noble", builder=Builder.AUTOINSTALL,
        template="ubuntu.user-data.j2", architectures=tuple(Arch), size=Size(SIZE), tree="http://example.com/ubuntu",
        media={Arch.X86_64: Download(file=str(image))},
    )  # fmt: skip

    def go(act: Callable[[MachineSpec], None]) -> Hands:
        hands = Hands(act)
        work = tmp_path / f"work-{time.monotonic_ns()}"
        work.mkdir()
        here = Ground(Path("/"), "x86_64", privileged=True, profile=profiles.find("emulated"))
        order = Order(
            kit, bench.store(), definition, Arch.X86_64, "d" * 64, work, None, here, run, lambda _text, _done: None,
            lambda: cast(Hypervisor, hands),  # as far as it is asked
        )  # fmt: skip
        Installation().make(order, VOLUME)
        return hands

    return go


def well(spec: MachineSpec) -> None:
    writes(spec, UNIT, b"\7" * 4096)
    says(spec, PORT, f"OK {BUILD}")


def test_what_was_installed_is_a_sealed_volume(bench: Bench, install: Install) -> None:
    hands = install(well)
    (volume,) = bench.store().volumes()
    assert (volume.name, volume.sealed, volume.size) == (VOLUME, True, SIZE)
    assert content(bench.store(), VOLUME)[UNIT : UNIT + 4096] == b"\7" * 4096
    assert bench.leftovers() == []
    assert (hands.machines, hands.nets) == ({}, {}), "they go with it"


def test_of_an_installation_that_failed_there_is_no_volume(bench: Bench, install: Install, tmp_path: Path) -> None:
    def badly(spec: MachineSpec) -> None:
        writes(spec, UNIT, b"\7" * 4096)
        spec.serial_log.write_bytes(b"the reason\n")
        says(spec, PORT, "FAIL packages")

    with pytest.raises(PartlyDone, match="'packages' failed\n  the reason\n"):
        install(badly)
    assert bench.store().volumes() == ()
    assert bench.leftovers() == []
    (kept,) = (tmp_path / "kit/media/logs").iterdir()
    assert (kept / "console.log").read_text() == "the reason\n"
    install(well)
    assert [volume.name for volume in bench.store().volumes()] == [VOLUME]


@pytest.mark.parametrize("open_still", [False, True], ids=["closed", "open"])
def test_a_killed_installation_is_swept_when_its_machine_has_let_go(bench: Bench, install: Install, *, open_still: bool) -> None:
    """The machine may outlive its maker by a moment, with the volume open: no other verb fails for that."""
    read, written = os.pipe()
    child = os.fork()
    if child == 0:

        def killed(spec: MachineSpec) -> None:
            os.write(written, str(spec.disks[0].path).encode())
            time.sleep(1)  # the parent opens it meanwhile
            os.kill(os.getpid(), signal.SIGKILL)

        try:
            install(killed)
        finally:
            os._exit(1)
    path = os.read(read, 4096).decode()
    held = os.open(path, os.O_RDWR) if open_still else -1
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    bench.store().create("other", UNIT)
    assert [volume.name for volume in bench.store().volumes()] == ["other"], "the half-made one is nobody's"
    if open_still:
        os.close(held)
    install(well)
    assert sorted(volume.name for volume in bench.store().volumes()) == [VOLUME, "other"]
    assert bench.leftovers() == []
