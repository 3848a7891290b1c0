"""A disk's way over USB: read from descriptors and folders, and judged hop by hop."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketcloud.host.usb import read_path
from pocketcloud.model.judgement import Remark, State
from pocketcloud.model.usb import Twin, UsbHop, UsbPath
from pocketcloud.usb_path import judge_path, known_bridges
from tests.host_trees import plant

DISK = UsbHop("2-1", 5000, version="3.20", id="04e8:4001")
ROOT = UsbHop("usb2", 5000, version="3.10", id="1d6b:0003", self_powered=True, power=0)
PATH = UsbPath("uas", (DISK, ROOT), offers_uas=True)
# The same in a slow port, as kernels tell it that know what the disk could do.
SLOW = replace(DISK, name="1-1", speed=480, able=10000, version="2.10")
ROOT_2 = UsbHop("usb1", 480, version="2.00", id="1d6b:0002", self_powered=True, power=0)
HUB = UsbHop("1-1", 480, version="2.10", id="05e3:0610", product="USB2.1 Hub", self_powered=True, power=0)
BEHIND = replace(SLOW, name="1-1.2")
BOT = replace(PATH, driver="usb-storage")


def odd(path: UsbPath) -> list[Remark]:
    return [remark for remark in judge_path(path) if remark.state is not State.OK]


def test_a_disk_that_is_not_on_usb_has_no_way() -> None:
    assert list(judge_path(None)) == []


def test_a_quick_disk_by_uas_is_praised_in_a_line() -> None:
    (remark,) = judge_path(PATH)
    assert (remark.state, remark.text, remark.remedy) == (State.OK, "USB: 5000 Mbit/s, driver uas, 04e8:4001", ())
    quicker = list(judge_path(replace(PATH, hops=(replace(DISK, able=10000), ROOT))))
    assert [remark.state for remark in quicker] == [State.OK, State.OK]
    assert quicker[1].text == "the disk could do 10000 Mbit/s, its port or its cable does 5000"
    hub = replace(HUB, name="2-1", speed=5000)
    (*_, behind) = judge_path(replace(PATH, hops=(replace(DISK, name="2-1.1", speed=10000, able=10000), hub, ROOT)))
    assert behind.text == "the disk could do 10000 Mbit/s, hub 2-1 (USB2.1 Hub) does 5000"


@pytest.mark.parametrize(
    ("hops", "words", "remedy"),
    [
        ((replace(SLOW, twin=Twin.NONE), ROOT_2), "the disk can do USB 3, but its port is USB 2", "USB 3 port (blue"),
        ((replace(SLOW, twin=Twin.FREE), ROOT_2), "its cable has no USB 3 wires (as charging cables do not)", "try the cable"),
        ((replace(SLOW, able=0, twin=Twin.NONE), ROOT_2), "can probably do USB 3 (it says 2.10), but its port", "USB 3 port"),
        ((SLOW, ROOT_2), "its port, hub or cable is USB 2", "USB 3 port"),
        ((replace(SLOW, able=480), ROOT_2), "this is USB 2: some 40 MB/s at best", "Use a USB 3 disk"),
        ((replace(SLOW, able=0, version="2.00"), ROOT_2), "this is USB 2: some 40 MB/s at best", "Use a USB 3 disk"),
        ((BEHIND, replace(HUB, version="2.00"), ROOT_2), "hub 1-1 (USB2.1 Hub) is USB 2", "into the computer itself"),
        ((BEHIND, replace(HUB, twin=Twin.NONE), ROOT_2), "hub 1-1 (USB2.1 Hub) is plugged into a USB 2 port", "Plug the hub"),
        ((BEHIND, replace(HUB, twin=Twin.FREE), ROOT_2), "its cable or plug is the slow one", "Push the hub's plug in"),
        ((replace(BEHIND, twin=Twin.FREE), replace(HUB, twin=Twin.USED), ROOT_2), "its cable has no USB 3 wires", "the cable"),
        # On a Raspberry Pi 4 the USB 2 wires of all sockets, blue and black, come together in one hub on the board.
        ((replace(BEHIND, twin=Twin.NONE), replace(HUB, id="2109:3431", twin=Twin.FREE), ROOT_2), "port, hub or cable", "blue"),
        # The hub next to the computer decides, whatever comes behind it.
        (
            (BEHIND, replace(HUB, name="1-1.1", version="2.00"), replace(HUB, twin=Twin.NONE), ROOT_2),
            "hub 1-1 (USB2.1 Hub) is plugged into a USB 2 port",
            "Plug the hub",
        ),
    ],
)
def test_the_slow_hop_is_named(hops: tuple[UsbHop, ...], words: str, remedy: str) -> None:
    (remark,) = odd(replace(PATH, hops=hops))
    assert remark.state is State.WARN
    assert words in remark.text
    assert remedy in remark.remedy[0]


def test_every_hub_between_is_told() -> None:
    told = next(judge_path(replace(PATH, hops=(BEHIND, replace(HUB, name="1-1.1"), HUB, ROOT_2)))).text
    assert "by hub 1-1.1 (USB2.1 Hub, 480 Mbit/s) and hub 1-1 (USB2.1 Hub, 480 Mbit/s)" in told


@pytest.mark.parametrize(
    ("hops", "words"),
    [
        ((replace(DISK, power=896), ROOT), ""),
        ((replace(DISK, power=8), replace(ROOT, name="2-1", self_powered=False), ROOT), "asks for 8 mA, and hub 2-1"),
        ((DISK, replace(ROOT, name="2-1", self_powered=False), ROOT), "it draws its power from its port, and hub 2-1"),
        ((replace(DISK, self_powered=True), replace(ROOT, name="2-1", self_powered=False), ROOT), ""),
        ((DISK, replace(ROOT, name="2-1", self_powered=False, power=None), ROOT), ""),
        ((replace(DISK, power=1000), ROOT), "asks for 1000 mA, its port gives 900 mA"),
    ],
)
def test_power_that_a_port_does_not_give_is_missed(hops: tuple[UsbHop, ...], words: str) -> None:
    said = [remark.text for remark in odd(replace(PATH, hops=hops))]
    assert len(said) == bool(words)
    assert all(words in text for text in said)


@pytest.mark.parametrize(
    ("change", "reason", "remedy"),
    [
        ({"offers_uas": False}, "its bridge does not offer UAS", "Use an enclosure that speaks UAS"),
        ({"offers_uas": None}, "whether its bridge offers UAS is not known", "Use an enclosure that speaks UAS"),
        ({"quirks": "u"}, "switched off for it by hand (usb-storage.quirks=04e8:4001:u)", "take usb-storage.quirks off"),
        ({"quirks": "f"}, "Linux chose not to use it", "dmesg | grep -i -e uas -e streams"),
        ({"has_uas": False}, "this kernel has no module uas", "package of all modules"),
        ({}, "Linux chose not to use it", "dmesg"),
        ({"hops": (replace(SLOW, id="174c:55aa"), ROOT_2)}, "whose UAS is broken (ASM1051)", "there it can be told"),
    ],
)
def test_why_a_disk_runs_without_uas(change: dict[str, object], reason: str, remedy: str) -> None:
    path = replace(BOT, **change)  # type: ignore[arg-type]  # named as the fields
    (remark,) = (remark for remark in odd(path) if "one command at a time" in remark.text)
    assert reason in remark.text
    assert remedy in remark.remedy[0]


def test_an_unknown_speed_or_driver_is_told_as_such() -> None:
    (remark,) = judge_path(UsbPath("", (UsbHop("2-1", id="04e8:4001"),)))
    assert (remark.state, remark.text) == (State.UNKNOWN, "USB: unknown speed, driver unknown, 04e8:4001")


def test_a_disk_that_may_be_suspended_is_warned_of() -> None:
    (remark,) = odd(replace(PATH, autosuspend=True))
    assert "some enclosures then drop off" in remark.text


def test_bridges_that_are_known_for_trouble_are_named() -> None:
    watched = replace(PATH, hops=(replace(DISK, id="152d:0578"), ROOT))
    (remark,) = odd(watched)
    assert "JMicron JMS578" in remark.text
    assert "usb-storage.quirks=152d:0578:u" in remark.remedy[0]
    steadied = odd(replace(watched, driver="usb-storage", quirks="u"))
    assert [remark.remedy for remark in steadied] == [()], "the quirk is what it needs"
    handled = odd(replace(watched, driver="usb-storage", hops=(replace(DISK, id="357d:7788"), ROOT)))
    assert ["Linux does not use this bridge's UAS" in remark.text for remark in handled] == [True]
    assert all("known for trouble" not in remark.text for remark in judge_path(PATH))


def test_the_table_of_bridges_is_whole() -> None:
    bridges = known_bridges()
    assert list(bridges) == sorted(bridges), "in the order of their ids"
    for identity, bridge in bridges.items():
        assert re.fullmatch("[0-9a-f]{4}:[0-9a-f]{4}", identity)
        assert all((bridge.name, bridge.trouble, bridge.source))


# -- read

# Recorded: QEMU's usb-uas and usb-storage. Written after the tables of the specifications: an enclosure that has both.
UAS = bytes.fromhex(
    "1201000300000009F446030000000102030109025600010105C000090400000408066200070501020004000630"
    "0F000000042401000705820200040006300F0400000424020007058302000400"
)
BOTH = bytes.fromhex("1201100200000040 2d15780500010102 0301 0902550001010080fa 0904000002080650 00 0904000104080662 00")
ONLY_BOT = bytes.fromhex("120110020000004 02d157805000101020301 0902200001010080fa 090400000208065000".replace(" ", ""))
# Of a disk that can do 10 Gbit/s: USB 2 extension, SuperSpeed, SuperSpeedPlus with one speed in each direction.
BOS = bytes.fromhex("050f2a0003 07100202000000 0a100300 0e00 010a0a00 14100a00 01000000 0011 0000 30400a00 b0400a00")


def usb_disk(root: Path) -> Path:
    """The folder of a disk in a root hub's first port."""
    device = "sys/devices/pci0000:00/0000:00:14.0/usb1/1-1"
    plant(
        root,
        {
            f"{device}/idVendor": "152d\n",
            f"{device}/idProduct": "0578\n",
            f"{device}/speed": "480\n",
            f"{device}/version": " 2.10\n",
            f"{device}/bMaxPower": "500mA\n",
            f"{device}/bmAttributes": "80\n",
            f"{device}/serial": "DD5641988\n",
            f"{device}/power/control": "auto\n",
            f"{device}/1-1:1.0/bInterfaceNumber": "00\n",
            f"{device}/1-1:1.0/host6/target6:0:0/6:0:0:0/block/sdb/size": "1\n",
            "sys/devices/pci0000:00/0000:00:14.0/usb1/idVendor": "1d6b\n",
            "sys/devices/pci0000:00/0000:00:14.0/usb1/speed": "480\n",
            "sys/bus/usb/drivers/usb-storage/": "",
        },
    )
    (root / device / "1-1:1.0/driver").symlink_to(root / "sys/bus/usb/drivers/usb-storage")
    return root / device / "1-1:1.0/host6/target6:0:0/6:0:0:0/block/sdb"


def read(place: Path, root: Path) -> UsbPath:
    found = read_path(place, root)
    assert found is not None
    return found


def test_a_disk_and_its_hops_are_read(tmp_path: Path) -> None:
    place = usb_disk(tmp_path)
    found = read(place, tmp_path)
    assert (found.driver, found.speed, found.id, found.autosuspend, found.offers_uas) == (
        "usb-storage",
        480,
        "152d:0578",
        True,
        None,
    )
    assert [hop.name for hop in found.hops] == ["1-1", "usb1"]
    assert (found.disk.power, found.disk.self_powered, found.disk.serial) == (500, False, "DD5641988")
    assert read_path(tmp_path / "sys/devices/virtual/block/loop0", tmp_path) is None


@pytest.mark.parametrize(
    ("descriptors", "expected"), [(UAS, True), (BOTH, True), (ONLY_BOT, False), (b"", None), (b"\0" * 9, None), (BOTH[:20], None)]
)
def test_whether_uas_is_offered_stands_in_the_descriptors(tmp_path: Path, descriptors: bytes, expected: bool | None) -> None:
    place = usb_disk(tmp_path)
    (place.parents[5] / "descriptors").write_bytes(descriptors)
    assert read(place, tmp_path).offers_uas is expected


@pytest.mark.parametrize(
    ("bos", "able"),
    [
        (BOS, 10000),
        (BOS[:22], 5000),
        (BOS[:12], 0),
        (b"", 0),
        # Only USB 2's, as a USB 2 device with power management has it.
        (bytes.fromhex("050f0c0001 07100202000000"), 0),
    ],
)
def test_what_a_device_could_do_stands_in_its_object_store(tmp_path: Path, bos: bytes, able: int) -> None:
    place = usb_disk(tmp_path)
    (place.parents[5] / "bos_descriptors").write_bytes(bos)
    assert read(place, tmp_path).disk.able == able


@given(descriptors=st.binary(max_size=80))
def test_rubbish_for_descriptors_is_read_without_a_fault(tmp_path_factory: pytest.TempPathFactory, descriptors: bytes) -> None:
    root = tmp_path_factory.mktemp("usb")
    place = usb_disk(root)
    for name in ("descriptors", "bos_descriptors"):
        (place.parents[5] / name).write_bytes(descriptors)
    for name in ("speed", "bMaxPower", "bmAttributes", "version"):
        (place.parents[5] / name).write_bytes(descriptors)
    assert list(judge_path(read(place, root)))


def test_the_sockets_other_half_is_looked_for(tmp_path: Path) -> None:
    place = usb_disk(tmp_path)
    device, ports = place.parents[5], place.parents[6] / "1-0:1.0"
    assert read(place, tmp_path).disk.twin is Twin.UNKNOWN
    (ports / "usb1-port1").mkdir(parents=True)
    (device / "port").symlink_to("../1-0:1.0/usb1-port1")
    assert read(place, tmp_path).disk.twin is Twin.NONE
    twin = tmp_path / "sys/devices/pci0000:00/0000:00:14.0/usb2/2-0:1.0/usb2-port1"
    twin.mkdir(parents=True)
    (ports / "usb1-port1/peer").symlink_to(twin)
    assert read(place, tmp_path).disk.twin is Twin.FREE
    (twin / "device").mkdir()
    assert read(place, tmp_path).disk.twin is Twin.USED


@pytest.mark.parametrize(
    ("parameter", "quirks"),
    [
        ("152d:0578:u", "u"),
        ("174c:55aa:f,152D:578:ut", "ut"),
        ("152d:0579:u", ""),
        ("", ""),
        ("rubbish", ""),
        ("152d:0578", ""),
    ],
)
def test_quirks_given_by_hand_are_read(tmp_path: Path, parameter: str, quirks: str) -> None:
    place = usb_disk(tmp_path)
    plant(tmp_path, {"sys/module/usb_storage/parameters/quirks": f"{parameter}\n"})
    assert read(place, tmp_path).quirks == quirks


def test_a_kernel_without_uas_is_known_by_its_lists(tmp_path: Path) -> None:
    place = usb_disk(tmp_path)
    assert read(place, tmp_path).has_uas, "nothing is known of its modules"
    lists = "lib/modules/6.1.0/modules"
    plant(tmp_path, {"proc/sys/kernel/osrelease": "6.1.0\n", f"{lists}.dep": "kernel/drivers/usb/storage/usb-storage.ko:\n"})
    assert not read(place, tmp_path).has_uas
    plant(tmp_path, {f"{lists}.builtin": "kernel/drivers/usb/storage/uas.ko\n"})
    assert read(place, tmp_path).has_uas
    plant(tmp_path, {f"{lists}.builtin": "", "sys/module/uas/": ""})
    assert read(place, tmp_path).has_uas


@pytest.mark.parametrize(
    ("files", "sleeps"),
    [
        ({}, True),
        ({"usb": "on"}, False),
        ({"delay": "-1000"}, False),
        ({"driver": "0"}, False),
        ({"disk": "on"}, False),
        ({"disk": "auto", "driver": "1"}, True),
    ],
)
def test_a_disk_sleeps_only_if_all_let_it(tmp_path: Path, files: dict[str, str], sleeps: bool) -> None:
    place = usb_disk(tmp_path)
    places = {
        "usb": place.parents[5] / "power/control",
        "delay": place.parents[5] / "power/autosuspend_delay_ms",
        "driver": place.parents[4] / "supports_autosuspend",
        "disk": place / "device/power/control",
    }
    for name, value in files.items():
        places[name].parent.mkdir(parents=True, exist_ok=True)
        places[name].write_text(f"{value}\n")
    assert read(place, tmp_path).autosuspend is sleeps
