"""Many disks are asked about in one question: by what tells each of those apart that are not empty."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pocketcloud.errors import Refused, UsageError
from pocketcloud.kit.disk import Chosen, confirm_all
from pocketcloud.model.disk import BlockDevice, BlockDevices
from pocketcloud.model.sizes import GIB

DISKS = [
    BlockDevice("sdb", Path("/dev/sdb"), "disk", 60 * GIB, serial="AAA1", signatures=("ext4",), signature="ext4"),
    BlockDevice("sdc", Path("/dev/sdc"), "disk", 60 * GIB, serial="BBB2", partition_table="gpt"),
    BlockDevice("sdd", Path("/dev/sdd"), "disk", 60 * GIB, serial="CCC3"),
    # Two cheap bridges with one serial: told apart by where they are plugged in.
    BlockDevice("sde", Path("/dev/sde"), "disk", 60 * GIB, serial="0123", signatures=("vfat",), port="pci-usb-0:1"),
    BlockDevice("sdf", Path("/dev/sdf"), "disk", 60 * GIB, serial="0123", signatures=("vfat",), port="pci-usb-0:2"),
]


def chosen(*names: str) -> list[Chosen]:
    devices = BlockDevices(tuple(DISKS))
    return [Chosen(devices, disk, ()) for disk in DISKS if disk.name in names]


class Asked:
    """Somebody at a terminal, who types `answer`."""

    def __init__(self, answer: str = "") -> None:
        self.answer = answer
        self.questions: list[str] = []

    def serials(self, question: str) -> str:
        self.questions.append(question)
        return self.answer

    def yes(self) -> None:
        self.questions.append("yes?")


def test_empty_disks_need_a_yes_and_no_serial() -> None:
    asked = Asked()
    confirm_all(chosen("sdd"), [], asked.serials, asked.yes)
    assert asked.questions == ["yes?"]


@pytest.mark.parametrize("answer", ["AAA1 BBB2", "bbb2   aaa1", "BBB2 AAA1"])
def test_one_question_names_all_that_are_not_empty(answer: str) -> None:
    asked = Asked(answer)
    confirm_all(chosen("sdb", "sdc", "sdd"), [], asked.serials, asked.yes)
    (question,) = asked.questions
    assert "these 2 disks" in question
    assert "AAA1 BBB2" in question
    assert "CCC3" not in question


@pytest.mark.parametrize("answer", ["", "AAA1", "yes", "AAA1 BBB2 CCC3", "AAA1 AAA1", "AAA1BBB2"])
def test_anything_else_changes_nothing(answer: str) -> None:
    asked = Asked(answer)
    with pytest.raises(Refused, match="nothing was changed"):
        confirm_all(chosen("sdb", "sdc", "sdd"), [], asked.serials, asked.yes)


def test_serials_that_are_given_answer_the_question() -> None:
    asked = Asked()
    confirm_all(chosen("sdb", "sdc", "sdd"), ["bbb2", "AAA1"], None, asked.yes)
    assert asked.questions == []


def test_those_that_are_missing_are_named() -> None:
    asked = Asked("AAA1 BBB2")
    for given, ask in ((["AAA1"], asked.serials), ([], None)):
        with pytest.raises(UsageError, match="not empty") as told:
            confirm_all(chosen("sdb", "sdc", "sdd"), given, ask, asked.yes)
        assert "--erase-serial 'AAA1' --erase-serial 'BBB2'" in told.value.hint
    assert asked.questions == []


def test_the_serial_of_another_disk_is_refused_even_if_all_are_empty() -> None:
    with pytest.raises(Refused, match="--erase-serial AAA1 is none of the disks"):
        confirm_all(chosen("sdd"), ["AAA1"], None, Asked().yes)


def test_disks_of_one_serial_are_told_apart_by_their_ports() -> None:
    asked = Asked("0123@pci-usb-0:1 0123@pci-usb-0:2")
    confirm_all(chosen("sde", "sdf"), [], asked.serials, asked.yes)
    assert "0123@pci-usb-0:1 0123@pci-usb-0:2" in asked.questions[0]
    with pytest.raises(Refused):
        confirm_all(chosen("sde", "sdf"), ["0123"], None, asked.yes)


def test_an_unfinished_copy_is_gone_on_with_after_a_yes() -> None:
    asked = Asked()
    begun = [replace(one, unfinished=Path("/dev/sdc1")) for one in chosen("sdc")]
    confirm_all(begun, [], asked.serials, asked.yes)
    assert asked.questions == ["yes?"]
