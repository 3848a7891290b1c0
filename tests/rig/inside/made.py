"""Kits for the tests in User-Mode Linux, made by the plain commands on small loop devices or disks."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pocketcloud.errors import PocketcloudError
from pocketcloud.kit.aside import aside
from pocketcloud.kit.evidence import read_pool
from pocketcloud.kit.identity import KIT, KIT_NAME, SCHEMA
from pocketcloud.kit.manifest import read_manifest, write_manifest
from pocketcloud.model.kit import KIT_SCHEMA, TREE, Manifest
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import MIB
from pocketcloud.storage.devmapper import nodes_of
from pocketcloud.storage.lvm import Lvm
from pocketcloud.storage.lvm_layout import Layout, format_commands
from pocketcloud.storage.lvm_thin import ThinPool
from pocketcloud.storage.thin_volumes import CONTENT, STATE
from pocketcloud.system import Runner, run
from tests.contract.stores import Watched

SIZE = 512 * MIB
LAYOUT = Layout(state=32 * MIB, pool=320 * MIB, metadata=8 * MIB, chunk=64 * 1024, content=32 * MIB, ballast=16 * MIB)
# Seconds after which a command is killed: commands take from a twentieth to half of one here.
_MIDDLE = (0.005, 0.3)
# How the process ends that is to be killed, where it was not.
_DONE, _REACHED, _BROKEN = 0, 3, 1
NOW = "2026-11-21T00:00:00+00:00"


@dataclass(frozen=True, slots=True)
class Made:
    """A kit that is not attached: its device, its volume group, and its id."""

    device: Path
    vg: str
    id: str

    @property
    def lvm(self) -> Lvm:
        return Lvm([self.device])

    @property
    def state(self) -> Path:
        return Path("/dev", self.vg, STATE)

    def activate(self, *volumes: str) -> None:
        self.lvm.command("lvchange", "-K", "-ay", *(f"{self.vg}/{volume}" for volume in volumes))

    def deactivate(self) -> None:
        self.lvm.command("vgchange", "-an", self.vg)
        assert not nodes_of(self.vg)

    def manifest(self) -> Manifest:
        """What its state volume says, which is activated for that if it is not."""
        inactive = not self.state.exists()
        if inactive:
            self.activate(STATE)
        with aside(self.state, run) as folder:
            manifest = read_manifest(folder)
        if inactive:
            self.lvm.command("lvchange", "-an", f"{self.vg}/{STATE}")
        return manifest

    def check_metadata(self) -> None:
        """thin_check finds nothing wrong in the pool, which is inactive, and no metadata snapshot is held."""
        assert not nodes_of(self.vg)
        metadata = read_pool(self.lvm, self.vg, run)
        assert not metadata.check.code, metadata.check.said
        assert not metadata.held

    def store(self, folder: Path) -> ThinPool:
        return ThinPool(self.vg, [self.device], folder)


def loop(file: Path, size: int = 0) -> Path:
    """A loop device on a file, which is made of `size` bytes if that is given."""
    run(["modprobe", "-a", "loop", "dm_thin_pool"])
    if size:
        with file.open("xb") as made:
            made.truncate(size)
    return Path(run(["losetup", "--find", "--show", file]).out.strip())


def unloop(device: Path) -> None:
    run(["losetup", "--detach", device])


def make_kit(device: Path, name: str, vg: str, *, stop_after: int = 99) -> Made:
    """A kit on `device`, detached. With `stop_after` only that many of the commands of its layout are run."""
    kit = Made(device, vg, str(uuid.uuid4()))
    tags = (f"{KIT}={kit.id}", f"{KIT_NAME}={name}", f"{SCHEMA}={KIT_SCHEMA}")
    commands = format_commands(device, vg, LAYOUT, tags)
    for verb, *words in commands[:stop_after]:
        kit.lvm.command(verb, *words)
    if stop_after >= len(commands):
        run(["mkfs.ext4", "-q", "-L", "pc-state", kit.state])
        run(["mkfs.ext4", "-q", "-L", "pc-content", Path("/dev", vg, CONTENT)])
        with aside(kit.state, run) as folder:
            for part in TREE:
                (folder / part).mkdir()
            write_manifest(folder, Manifest(KIT_SCHEMA, kit.id, Name(name), NOW, "0", "lvm", sector_size=512))
    if nodes_of(vg):
        kit.deactivate()
    return kit


def copied(device: Path, file: Path) -> Path:
    """A byte copy of a loop device's file, on a loop device of its own."""
    run(["sync"])
    run(["cp", "--sparse=always", backing(device), file])
    return loop(file)


def backing(device: Path) -> Path:
    """The file under a loop device."""
    return Path((Path("/sys/block") / device.name / "loop/backing_file").read_text().strip())


class Kill(StrEnum):
    """What is killed at a command, and when."""

    BEFORE = "the process, before the command"
    AFTER = "the process, when the command is done"
    CHILD = "the command, in its middle"
    BOTH = "both, in the middle of the command"


def killed(work: Callable[[Runner], object], at: int, kill: Kill) -> bool:
    """Whether `work`, in a process of its own, came to its command number `at`, where the kill was; else it is done. A command
    that is killed may make it fail, with an error of ours; when that is, after how much of its work, is by the seed."""
    chance = random.Random(f"{os.environ.get('POCKETCLOUD_SEED')}.{at}.{kill}")  # noqa: S311 - keeps no secret
    middle = chance.uniform(*_MIDDLE) if kill in (Kill.CHILD, Kill.BOTH) else None
    watched = Watched(at, after=kill in (Kill.AFTER, Kill.BOTH), child=middle)
    child = os.fork()
    if child == 0:
        code = _BROKEN
        try:
            work(watched)
            code = _REACHED if len(watched.commands) >= at else _DONE
        except PocketcloudError as error:
            code = _REACHED if kill is Kill.CHILD and len(watched.commands) >= at else _BROKEN
            print(error)
        except BaseException:  # noqa: BLE001 - a child of a fork must not go on in pytest
            traceback.print_exc()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) in (_DONE, _REACHED)
    return os.WEXITSTATUS(status) == _REACHED


def under_every_kill(check: Callable[[int, Kill], bool]) -> int:
    """Check each kind of kill at each command, until there is no such command; how many there were."""
    count, at = 0, 0
    while True:
        at += 1
        hits = sum(check(at, kill) for kill in Kill)
        if not hits:
            print(f"{count} kills")
            return count
        count += hits


def loops(file: Path | None = None) -> list[str]:
    """The loop devices that stand on a file; on any, if none is named."""
    found = Path("/sys/block").glob("loop*/loop/backing_file")
    return [path.parent.parent.name for path in found if file is None or path.read_text().strip() == str(file)]


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
