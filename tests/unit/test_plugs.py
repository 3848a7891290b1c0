"""Which disks are plugged in, which ports are meant, and what may be switched off: from trees as sysfs has them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pocketcloud.cli.kit_station import _allowed, _recording
from pocketcloud.errors import Refused
from pocketcloud.host.plugs import Plug, Watch, plugged_disks, usb_path
from pocketcloud.host.unplugging import switch_off
from pocketcloud.model.disk import BlockDevice
from pocketcloud.model.usb import UsbHop, UsbPath
from pocketcloud.system import Completed

DISK = BlockDevice("sdb", Path("/dev/sdb"), "disk", 1 << 30, port="pci-0000:00:14.0-usb-0:1.3:1.0-scsi-0:0:0:0")
ON_USB = replace(DISK, usb=UsbPath("uas", (UsbHop("2-1.3"), UsbHop("2-1"), UsbHop("usb2"))))


def disk(root: Path, name: str, below: str, *, sequence: str = "7", sectors: str = "2048") -> Path:
    place = root / "sys/devices/pci0/usb2" / below / "host6/target/6:0:0:0/block" / name
    place.mkdir(parents=True)
    (place / "size").write_text(sectors + "\n")
    (place / "diskseq").write_text(sequence + "\n")
    (place / "device").mkdir()
    (root / "sys/block").mkdir(parents=True, exist_ok=True)
    (root / "sys/block" / name).symlink_to(place)
    return place


def usb(root: Path, below: str) -> None:
    folder = root / "sys/devices/pci0/usb2" / below
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "idVendor").write_text("152d\n")
    devices = root / "sys/bus/usb/devices"
    devices.mkdir(parents=True, exist_ok=True)
    (devices / Path(below).name).symlink_to(folder)


def quiet(*_words: object, **_more: object) -> Completed:
    return Completed((), 0, "", "")


def test_disks_with_a_medium_are_plugged_in_and_each_plug_is_another(tmp_path: Path) -> None:
    disk(tmp_path, "sda", "2-1/2-1:1.0")
    disk(tmp_path, "sdb", "2-2/2-2:1.0", sectors="0")
    disk(tmp_path, "loop0", "2-3/2-3:1.0")
    assert plugged_disks(tmp_path) == {Plug("sda", 7, 2048 * 512)}
    (tmp_path / "sys/block/sda/diskseq").write_text("8")
    assert plugged_disks(tmp_path) == {Plug("sda", 8, 2048 * 512)}


def test_a_disk_is_switched_off_with_its_adapter(tmp_path: Path) -> None:
    usb(tmp_path, "2-1")
    place = disk(tmp_path, "sda", "2-1/2-1:1.0")
    link = tmp_path / "sys/block/sda"
    path = usb_path("sda", tmp_path)
    assert path is not None
    assert path.disk.name == "2-1"
    link_target = link.resolve()
    assert switch_off("sda", quiet, tmp_path)
    assert (place / "device/delete").read_text() == "1"
    # The disk is still in this tree, so that its adapter seems to have one.
    assert not (link_target.parents[5] / "remove").exists()
    assert not switch_off("sdz", quiet, tmp_path)


def test_ports_are_named_by_udev_or_the_kernel() -> None:
    assert _allowed(ON_USB, ())
    assert not _allowed(DISK, ())
    assert _allowed(ON_USB, ("2-1.*",))
    assert not _allowed(ON_USB, ("2-2.*", "3-1"))
    assert _allowed(DISK, ("pci-0000:00:14.0-usb-0:1.3:*",))
    assert not _allowed(replace(DISK, port=""), ("",))


def test_a_log_gets_a_line_each_and_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for number in range(2):
        with _recording(path) as record:
            record({"event": "done", "number": number})
            assert [json.loads(line)["number"] for line in path.read_text().splitlines()] == list(range(number + 1))
    with pytest.raises(Refused, match="cannot be written"), _recording(tmp_path / "none/log"):
        pass


def test_a_full_disk_for_the_log_ends_no_copies(capsys: pytest.CaptureFixture[str]) -> None:
    with _recording(Path("/dev/full")) as record:
        for number in range(3):
            record({"event": "done", "number": number})
    told = capsys.readouterr().err
    assert told.count("WARNING: /dev/full cannot be written: No space left on device; nothing more is recorded") == 1


def test_waiting_ends_by_itself() -> None:
    Watch().wait(0.05)
