"""A station with real USB disks, one behind UAS and one behind usb-storage, which is pulled and put back elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pocketcloud.kit.attached import Places, find_kit
from pocketcloud.model.sizes import MIB
from pocketcloud.storage import open_storage
from tests.rig.laptop.hands import plug, pull, take

SIZE = 160 * MIB
WITHIN = 900.0


def cli(*words: object) -> str:
    argv = [sys.executable, "-m", "pocketcloud", *map(str, words)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    print(f"$ {' '.join(argv[2:])}\n{done.stdout}{done.stderr}", end="")
    assert done.returncode == 0
    return done.stdout


def digest(name: str) -> str:
    store = open_storage(find_kit(Places.from_environment(), name))
    store.activate("base.one")
    with store.place("base.one")[0].open("rb") as volume:
        return hashlib.file_digest(volume, "blake2b").hexdigest()


def fill(path: Path) -> None:
    with path.open("r+b") as file:
        for _ in range(SIZE // MIB):
            file.write(os.urandom(MIB))


def events(station: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """What it tells, until it ends."""
    assert station.stderr is not None
    for line in station.stderr:
        if line.startswith("{"):
            told = json.loads(line)
            if told["event"] != "StepProgress":
                print(line, end="")
            yield told
        else:
            print(line, end="")


def test_one_disk_is_pulled_while_it_is_written_and_put_back(tmp_path: Path) -> None:
    cli("kit", "init", "--file", tmp_path / "usb.img", "--size", "6GiB", "--name", "usb")
    open_storage(find_kit(Places.from_environment(), "usb")).create("base.one", SIZE, fill)
    before = digest("usb")
    open_storage(find_kit(Places.from_environment(), "usb"))
    subprocess.run(["lvchange", "-an", *map(str, _bases())], check=False)
    log = tmp_path / "log"
    plug("one", "xhci", 1, "uas")
    device = plug("two", "xhci", 2, "bot")
    argv = [sys.executable, "-m", "pocketcloud", "kit", "station", "--master", "usb", "-y", "--count", "2", "--log", str(log)]
    with subprocess.Popen([*argv, "--progress", "json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as station:
        told = events(station)
        begun = next(one for one in told if one["event"] == "StepStarted" and one["title"].endswith(str(device)))
        next(one for one in told if one["event"] == "StepProgress" and one["id"] == begun["id"] and one["fraction"] > 0.15)
        pull("two")
        next(one for one in told if one["event"] == "StepFailed" and one["id"] == begun["id"])
        plug("two", "xhci", 3, "bot")
        list(told)
        said = station.stdout.read() if station.stdout else ""
        assert station.wait(WITHIN) == 0, said
    print(said)
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert sorted(record["copy"] for record in records if record["event"] == "done") == ["usb-01", "usb-02"]
    assert [record["copy"] for record in records if record["event"] == "failed"] == [begun["id"].split(": ")[1]]
    again = [record["kind"] for record in records if record["event"] == "seen" and record["port"].endswith("3:1.0-scsi-0:0:0:0")]
    assert again == ["unfinished"]
    _until_switched_off()

    for disk, port in (("one", 1), ("two", 3)):
        take(disk)
        device = plug(disk, "xhci", port, "uas")
        cli("kit", "attach", device)
    assert {digest(name) for name in ("usb", "usb-01", "usb-02")} == {before}
    for name in ("usb-01", "usb-02", "usb"):
        cli("kit", "detach", name)
    for disk in ("one", "two"):
        pull(disk)


def _bases() -> list[Path]:
    store = open_storage(find_kit(Places.from_environment(), "usb"))
    return [store.place(volume.name)[0] for volume in store.volumes()]


def _until_switched_off() -> None:
    until = time.monotonic() + 60
    while list(Path("/sys/block").glob("sd*")):
        assert time.monotonic() < until, "the disks are not switched off"
        time.sleep(0.2)
