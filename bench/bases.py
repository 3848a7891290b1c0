"""Bases: what building one again costs, and what one holds against what its files need."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.measure import Row, command, seconds
from pocketcloud.bases import builder, definitions
from pocketcloud.kit.attached import Places, find_kit
from pocketcloud.model.base import Arch, Base
from pocketcloud.model.sizes import MIB
from pocketcloud.storage import open_storage
from pocketcloud.system import Completed, run

_ARCH = Arch(os.uname().machine)


def base_rows(pocketcloud: str, rounds: int) -> list[Row]:
    """In a kit of their own, which is removed. The base has a `post:` step, as those that people work on have."""
    room = Path(tempfile.mkdtemp(prefix="pocketcloud-bench-", dir="/var/tmp"))
    room.chmod(0o755)
    os.environ |= {"POCKETCLOUD_DEFAULT_KIT": str(room / "kit"), "POCKETCLOUD_RUN_DIR": str(room / "run")}
    try:
        command(pocketcloud, "kit", "init", "--dir", str(room / "kit"), "--name", "bench-bases")
        whole, _ = _build("true", room)
        changed, argvs = zip(*(_build(f"echo {number}", room) for number in range(rounds)), strict=True)
        if any("mmdebstrap" in argv and "--version" not in argv for each in argvs for argv in each):
            raise RuntimeError("a changed post step installed packages again")
        command(pocketcloud, "base", "build", "debian-12")
        nothing = tuple(seconds(lambda: command(pocketcloud, "base", "build", "debian-12")) for _ in range(rounds))
        stored, files = _sizes(room)
        return [
            Row("base build, nothing changed", nothing, (0.5,), 1.0, "half a second"),
            Row("base build, another post step (installs nothing)", changed, (whole,), None, "the whole build"),
            Row("the sealed base", (stored / MIB,), (files / MIB,), 1.1, "du of its files, 4 KiB blocks", "MiB"),
        ]
    finally:
        subprocess.run([pocketcloud, "kit", "detach", "bench-bases"], capture_output=True, check=False)
        shutil.rmtree(room, ignore_errors=True)


def _build(step: str, room: Path) -> tuple[float, list[tuple[str, ...]]]:
    """The seconds that a build with this step takes, and the commands that it ran."""
    ran: list[tuple[str, ...]] = []

    def watched(argv, **options):  # type: ignore[no-untyped-def] # as Runner
        ran.append(tuple(str(word) for word in argv))
        return run(argv, **options)

    return seconds(lambda: _built(room, step, watched)), ran


def _built(room: Path, step: str, runner: Callable[..., Completed] = run) -> Base:
    kit = find_kit(Places(room / "kit", room / "run"), None)
    definition = dataclasses.replace(definitions.find("debian-12"), post=(step,))
    return builder.build(kit, open_storage(kit), definition, _ARCH, run=runner, on_progress=lambda _text, _part: None).base


def _sizes(room: Path) -> tuple[int, int]:
    """What the volume occupies, and what its files take when they lie in a folder: copied out by debugfs and mtools."""
    volume = next((room / "kit/volumes").glob("base.debian-12.*.qcow2"))
    raw, out = room / "disk.raw", room / "out"
    (out / "esp").mkdir(parents=True)
    command("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(volume), str(raw))
    table = json.loads(subprocess.run(["sfdisk", "--json", raw], capture_output=True, check=True).stdout)["partitiontable"]
    esp, root = (part["start"] * 512 for part in table["partitions"])
    command("mcopy", "-s", "-i", f"{raw}@@{esp}", "::", str(out / "esp"))
    command("debugfs", "-R", f"rdump / {out}", f"{raw}?offset={root}")
    # Links that share their blocks are files of their own in the copy; a base has none to speak of.
    files = subprocess.run(["du", "-s", "--block-size=1", out], capture_output=True, text=True, check=True).stdout
    return volume.stat().st_blocks * 512, int(files.split()[0])
