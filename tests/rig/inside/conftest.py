"""What is here runs in User-Mode Linux only: it makes volume groups, and mounts them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pocketcloud.kit.attached import Places, attached_kits
from pocketcloud.kit.detach import detach, leaving
from pocketcloud.kit.mounts import mounts
from pocketcloud.model.sizes import MIB
from pocketcloud.storage.devmapper import nodes
from pocketcloud.system import run
from tests.rig.inside.cut import ENDS
from tests.rig.inside.filed import Filed, filed
from tests.rig.inside.made import NOW, SIZE, loops

collect_ignore_glob = [] if os.environ.get("POCKETCLOUD_RIG") == "uml" else ["test_*.py"]
CAMPAIGN = 20


@pytest.fixture(scope="session", autouse=True)
def modules() -> None:
    """No module is loaded when User-Mode Linux starts, and nothing inside loads one by itself."""
    run(["modprobe", "-a", "loop", "ext4", "sd_mod", "dm_thin_pool"])


@pytest.fixture(scope="session", autouse=True)
def enough_kills() -> Iterator[None]:
    """A campaign in which most works were through before they were to be killed shows nothing."""
    yield
    if ENDS.total() >= CAMPAIGN:
        assert ENDS[True] >= ENDS.total() / 2, ENDS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ENDS:
        terminalreporter.write_line(f"{ENDS[True]} kills in {ENDS.total()} works that were to be killed")


@pytest.fixture
def places(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Places]:
    """Where this host keeps its kits; at the end nothing of any is left in the kernel, and files of them take no memory."""
    if "targets" in request.fixturenames:
        request.getfixturevalue("targets")  # what lies on them is detached before they are erased
    places = Places(tmp_path / "default", tmp_path / "run")
    yield places
    for kit in attached_kits(places):
        detach(places, leaving(places, kit.name), now=NOW)
    assert not nodes()
    assert not [there.path for there in mounts() if tmp_path in there.path.parents]
    assert not loops()
    assert not list(places.mounts.glob("*"))
    for image in tmp_path.glob("*.img"):
        image.unlink()


@pytest.fixture
def kit(tmp_path: Path) -> Filed:
    """A detached kit, usb, in a file."""
    return filed(tmp_path, "usb", "pc_usbusb")


@pytest.fixture
def scsi_disk() -> Iterator[Callable[[], Path]]:
    """A function that plugs a disk in, again if it was pulled; its content outlives that."""
    run(["modprobe", "scsi_debug", f"dev_size_mb={SIZE // MIB}", "lbpu=1"])
    host = sorted(Path("/sys/class/scsi_host").iterdir())[-1]

    def plug() -> Path:
        if not list(Path("/sys/block").glob("sd*")):
            (host / "scan").write_text("- - -")
        until = time.monotonic() + 20
        while not (found := list(Path("/dev").glob("sd?"))):
            assert time.monotonic() < until
            time.sleep(0.05)
        return found[0]

    yield plug
    for _ in range(50):
        if run(["rmmod", "scsi_debug"], codes=(0, 1)).code == 0:
            return
        time.sleep(0.1)
    raise AssertionError("something still holds the disk")
