"""The laptop is suspended while a kit is copied: to memory, which freezes all programs and takes the power from the USB ports.

In order: the kit that the first test makes is the master of all.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pocketcloud.kit.attached import Places, find_kit
from pocketcloud.storage import open_storage
from tests.rig.laptop.hands import plug, pull, sleep, take
from tests.rig.laptop.test_station import SIZE, begin, digest, events, fill

WITHIN = 900.0
# Long beside the copy, which takes some ten seconds: a pause that was counted would show.
PAUSE = 45.0
SAME_MOMENT = 0.4
WRITTEN, READ_AGAIN = "written", "read again"


def cli(*words: object, code: int = 0) -> str:
    argv = [sys.executable, "-m", "pocketcloud", *map(str, words)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    said = done.stdout + done.stderr
    print(f"$ {' '.join(argv[2:])}\n{said}", end="")
    assert done.returncode == code
    assert "Traceback" not in said
    return said


def blank(disk: Path) -> None:
    """Forget what an earlier test has made on a disk."""
    parts = sorted(disk.parent.glob(f"{disk.name}?"))
    subprocess.run(["wipefs", "--all", "--force", "--quiet", *parts, disk], check=True)
    subprocess.run(["udevadm", "settle", "--timeout=60"], check=True)


class Clone:
    """`kit clone` at work."""

    def __init__(self, *words: object) -> None:
        argv = [sys.executable, "-m", "pocketcloud", "kit", "clone", *map(str, words), "-y", "--progress", "json"]
        print("$", *argv[2:])
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._events = self._told()
        self.said: list[str] = []

    def _told(self) -> Iterator[dict[str, Any]]:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if line.startswith("{"):
                yield json.loads(line)

    def progress(self, what: str, after: float = 0.0) -> tuple[float, str]:
        """Wait until some of it is written, or read again, later than `after` (its own seconds); when that is, and what is told
        then, which is not the end of it."""
        ours = (one for one in self._events if one["event"] == "StepProgress" and one["text"].startswith(what))
        told = next((one for one in ours if one["fraction"] > 0.15 and one["time"] > after), None)
        assert told, f"it has ended: {''.join(self.said)}"
        assert told["fraction"] < 1, "too late to suspend in the middle"
        print(told)
        return float(told["time"]), str(told["text"])

    def ends(self, code: int) -> str:
        """Wait for its end; all it has said."""
        for told in self._events:
            if told["event"] != "StepProgress":
                print(told)
        with self.process:
            said = "".join(self.said) + (self.process.stdout.read() if self.process.stdout else "")
            assert self.process.wait(WITHIN) == code, said
        assert "Traceback" not in said
        return said


def megabytes_a_second(text: str) -> int:
    found = re.search(r"(\d+) MB/s", text)
    assert found, text
    return int(found[1])


@pytest.fixture(scope="module")
def master() -> Iterator[str]:
    """A kit on a USB disk; the digest of its base."""
    cli("kit", "init", plug("ssd", "xhci", 4, "uas"), "--name", "usb", "-y")
    store = open_storage(find_kit(Places.from_environment(), "usb"))
    store.create("base.one", SIZE, fill)
    found = digest("usb")
    subprocess.run(["lvchange", "-an", store.place("base.one")[0]], check=False)
    yield found
    cli("kit", "detach", "usb")
    pull("ssd")


@pytest.mark.parametrize("during", [WRITTEN, READ_AGAIN])
def test_a_copy_goes_on_when_the_laptop_wakes(master: str, during: str) -> None:
    one, two = plug("one", "xhci", 1, "uas"), plug("two", "xhci", 2, "bot")
    for disk in (one, two):
        blank(disk)
    clone = Clone("usb", one, two, "--name", "copy-one", "--name", "copy-two")
    at, before = clone.progress(during)
    sleep(PAUSE)
    assert clone.process.poll() is None, "it was through before"
    # What was told just before it slept is still to be read.
    _, after = clone.progress(during, at + SAME_MOMENT)
    assert megabytes_a_second(after) * 4 >= megabytes_a_second(before), "the pause is counted"
    clone.ends(0)
    for disk in (one, two):
        cli("kit", "attach", disk)
    assert {digest(name) for name in ("copy-one", "copy-two")} == {master}
    for name in ("one", "two"):
        cli("kit", "detach", f"copy-{name}")
        pull(name)


def test_the_disk_is_pulled_while_the_laptop_sleeps(master: str) -> None:
    """The copy fails plainly and the disk has no kit; plugged in again, the same command goes on with it."""
    disk = plug("one", "xhci", 1, "uas")
    blank(disk)
    clone = Clone("usb", disk, "--name", "copy")
    clone.progress(WRITTEN)
    sleep(5, "one")
    said = clone.ends(8)
    assert "1 of 1 copies are not whole" in said
    assert f"pocketcloud kit clone usb {disk}" in said, "the next command"
    assert [kit["name"] for kit in json.loads(cli("kit", "list", "-o", "json"))] == ["usb"]
    disk = plug("one", "xhci", 3, "uas")
    assert "no kit" in cli("kit", "attach", disk, code=4)
    clone = Clone("usb", disk, "--name", "copy")
    assert "an unfinished copy of this kit" in clone.ends(0)
    cli("kit", "attach", disk)
    assert digest("copy") == master
    cli("kit", "detach", "copy")
    pull("one")


def test_a_station_goes_on_when_the_laptop_wakes(master: str, tmp_path: Path) -> None:
    disk = plug("two", "xhci", 2, "uas")
    blank(disk)
    log = tmp_path / "log"
    with begin("usb", log, 1) as station:
        told = events(station)
        next(one for one in told if one["event"] == "StepProgress" and one["fraction"] > 0.15)
        sleep(PAUSE)
        assert station.poll() is None
        list(told)
        assert station.wait(WITHIN) == 0
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [record["event"] for record in records if record["device"] == str(disk)] == ["seen", "begun", "done"]
    (name,) = (record["copy"] for record in records if record["event"] == "done")
    take("two")
    cli("kit", "attach", plug("two", "xhci", 2, "uas"))
    assert digest(name) == master
    cli("kit", "detach", name)
    pull("two")
