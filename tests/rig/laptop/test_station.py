"""A station with real USB disks, behind UAS and usb-storage: plugs are pulled in the middle, and put back elsewhere."""

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


def begin(master: str, log: Path, count: int) -> subprocess.Popen[str]:
    words = ["kit", "station", "--master", master, "-y", "--count", str(count), "--log", str(log), "--progress", "json"]
    argv = [sys.executable, "-m", "pocketcloud", *words]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def furnished(name: str) -> str:
    """Give a kit a base; the digest of that."""
    store = open_storage(find_kit(Places.from_environment(), name))
    store.create("base.one", SIZE, fill)
    found = digest(name)
    subprocess.run(["lvchange", "-an", store.place("base.one")[0]], check=False)
    return found


def test_one_disk_is_pulled_while_it_is_written_and_put_back(tmp_path: Path) -> None:
    cli("kit", "init", "--file", tmp_path / "usb.img", "--size", "6GiB", "--name", "usb")
    before = furnished("usb")
    log = tmp_path / "log"
    plug("one", "xhci", 1, "uas")
    device = plug("two", "xhci", 2, "bot")
    with begin("usb", log, 2) as station:
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
    print(*records, sep="\n")
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


def test_the_master_is_pulled_and_put_back(tmp_path: Path) -> None:
    cli("kit", "init", plug("ssd", "xhci", 4, "uas"), "--name", "usb", "-y")
    before = furnished("usb")
    blank = plug("one", "xhci", 1, "uas")
    subprocess.run(["blkdiscard", "--force", blank], check=True)
    log = tmp_path / "log"
    with begin("usb", log, 1) as station:
        told = events(station)
        next(one for one in told if one["event"] == "StepProgress" and one["fraction"] > 0.15)
        pull("ssd")
        list(told)
        assert station.wait(WITHIN) == 5
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [record["event"] for record in records if record["device"] == str(blank)] == ["seen", "begun"]
    (kind,) = {record["kind"] for record in records if record["event"] == "seen" and record["device"] != str(blank)}
    assert kind == "foreign", "the master's own disk"
    cli("kit", "detach")

    master = plug("ssd", "xhci", 2, "uas")
    cli("kit", "attach", master)
    with begin("usb", log, 1) as station:
        list(events(station))
        assert station.wait(WITHIN) == 0
    records = [json.loads(line) for line in log.read_text().splitlines()][len(records) :]
    assert [record["kind"] for record in records if record["event"] == "seen"].count("unfinished") == 1
    take("one")
    cli("kit", "attach", plug("one", "xhci", 1, "uas"))
    assert digest("usb-01") == before
    for name in ("usb-01", "usb"):
        cli("kit", "detach", name)
    subprocess.run(["blkdiscard", "--force", master], check=True)  # the next test begins with a blank one
    for disk in ("one", "ssd"):
        pull(disk)


def _until_switched_off() -> None:
    until = time.monotonic() + 60
    while list(Path("/sys/block").glob("sd*")):
        assert time.monotonic() < until, "the disks are not switched off"
        time.sleep(0.2)
