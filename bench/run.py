"""`make bench`: measures, prints a line for each comparison, writes bench.json. Everything it makes it removes."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Run as a script, the folder above is not on the path by itself.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.bases import base_rows
from bench.guests import LAB, Bench, reset_rows, up_rows
from bench.images import import_rows
from bench.measure import Row, copy_rows, quick_rows, thin_rows
from bench.states import count_rows
from bench.wakes import LAB as FOUR
from bench.wakes import wake_rows
from tests.rig.uml import missing, run_job

_TOP = Path(__file__).resolve().parent.parent


def main() -> int:
    """Run the rows asked for; exit code 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the rows with guests")
    parser.add_argument("--thin-rounds", type=int, default=5, help="rounds of the rows with thin volumes")
    kinds = ("quick", "bases", "thin", "copies", "images", "states", "guests", "wakes")
    parser.add_argument("--only", choices=kinds, help="only these rows")
    parser.add_argument("--output", type=Path, default=_TOP / "bench.json")
    options = parser.parse_args()
    python = sys.executable
    pocketcloud = str(Path(python).with_name("pocketcloud"))
    rows: list[Row] = []
    if options.only in (None, "quick"):
        rows += quick_rows([pocketcloud], python, 41)
        _show(rows)
    if options.only in (None, "bases"):
        print("building bases ...", flush=True)
        new = base_rows(pocketcloud, options.rounds)
        _show(new)
        rows += new
    if options.only in (None, "thin"):
        rows += _thin_rows(options.thin_rounds)
    if options.only in (None, "copies"):
        rows += _copy_rows(options.rounds)
    if options.only in (None, "images"):
        new = import_rows(pocketcloud, options.rounds)
        _show(new)
        rows += new
    if options.only in (None, "states"):
        new = count_rows(options.rounds)
        _show(new)
        rows += new
    if options.only in (None, "guests"):
        rows += _guest_rows(pocketcloud, options.rounds, LAB, up_rows, reset_rows)
    if options.only in (None, "wakes"):
        rows += _guest_rows(pocketcloud, options.rounds, FOUR, wake_rows)
    result = {"when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "rows": [row.as_json() for row in rows]}
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"Written to {options.output.name}.")
    return 0 if all(row.goal is None or row.ratio <= row.goal for row in rows) else 1


def _show(rows: list[Row]) -> None:
    for row in rows:
        print(row.line(), flush=True)


def _thin_rows(rounds: int) -> list[Row]:
    """Clones and resets on LVM, each measured in one boot of User-Mode Linux, without and with udev's daemon."""
    if reason := missing():
        print(f"thin volumes: not measured: {reason}", flush=True)
        return []
    rows: list[Row] = []
    for udev, goals in ((False, (1 / 6, 1 / 3)), (True, (1 / 4, 1 / 2))):
        with tempfile.TemporaryDirectory(prefix="pocketcloud-bench-") as folder:
            print(f"thin volumes in User-Mode Linux, {'with' if udev else 'without'} udev ({rounds} rounds) ...", flush=True)
            job = run_job(f".venv/bin/python -m bench.thin {rounds} /run/rig/seconds.json", Path(folder), timeout=7200, udev=udev)
            if job.code:
                raise RuntimeError(job.log)
            new = thin_rows(
                json.loads((Path(folder) / "seconds.json").read_text()), "with udev" if udev else "without udev", goals
            )
        _show(new)
        rows += new
    return rows


def _copy_rows(rounds: int) -> list[Row]:
    """Copies of a kit to disks of equal speed, in one boot of User-Mode Linux."""
    if reason := missing():
        print(f"copies: not measured: {reason}", flush=True)
        return []
    with tempfile.TemporaryDirectory(prefix="pocketcloud-bench-") as folder:
        print(f"copies in User-Mode Linux ({rounds} rounds) ...", flush=True)
        words = f".venv/bin/python -m bench.copies {rounds} /run/rig/found.json"
        job = run_job(words, Path(folder), timeout=7200, memory="6G")
        if job.code:
            raise RuntimeError(job.log)
        found = json.loads((Path(folder) / "found.json").read_text())
    rows = copy_rows(found["seconds"], found["facts"])
    _show(rows)
    return rows


def _guest_rows(pocketcloud: str, rounds: int, text: str, *measures: Callable[[Bench, int], list[Row]]) -> list[Row]:
    """What `measures` find, in a kit of its own with the base and the lab file `text`."""
    # Not in the checkout: QEMU runs as a user of its own, who may not be able to reach it.
    room = Path(tempfile.mkdtemp(prefix="pocketcloud-bench-", dir="/var/tmp"))
    room.chmod(0o755)
    kit, name = room / "kit", room.name.replace("_", "-").lower()[-31:].strip("-")
    os.environ |= {"POCKETCLOUD_DEFAULT_KIT": str(kit), "POCKETCLOUD_RUN_DIR": str(room / "run")}
    lab = room / "bench.yaml"
    lab.write_text(text)
    bench = Bench(kit, name, (pocketcloud,), lab)
    rows: list[Row] = []
    try:
        bench.run("kit", "init", "--dir", str(kit), "--name", name)
        print("building the base ...", flush=True)
        bench.run("base", "build", "debian-12")
        for measured in measures:
            new = measured(bench, rounds)
            _show(new)
            rows += new
    finally:
        subprocess.run([pocketcloud, "lab", "destroy", "-y", "bench"], capture_output=True, check=False)
        subprocess.run([pocketcloud, "kit", "detach", name], capture_output=True, check=False)
        shutil.rmtree(room, ignore_errors=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
