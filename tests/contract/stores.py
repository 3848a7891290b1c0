"""Stores for the contract: how each driver's is made empty, watched, and looked into for what should not be there.

Outside of User-Mode Linux that is the qcow2 driver, inside (POCKETCLOUD_RIG=uml) the thin one on a RAM disk.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pocketcloud.kit.evidence import read_pool
from pocketcloud.model.sizes import MIB
from pocketcloud.storage import Filler, Storage
from pocketcloud.storage.devmapper import nodes_of
from pocketcloud.storage.lvm import Lvm
from pocketcloud.storage.lvm_layout import Layout, format_commands
from pocketcloud.storage.lvm_thin import ThinPool
from pocketcloud.storage.qcow2 import Qcow2Directory
from pocketcloud.storage.thin_volumes import BALLAST, CONTENT, POOL, STATE
from pocketcloud.system import Completed, Runner, run

TOP = Path(__file__).resolve().parents[2]
# A volume's size that every store can have exactly: LVM counts in extents.
UNIT = 4 * MIB
IN_RIG = os.environ.get("POCKETCLOUD_RIG") == "uml"


class Watched:
    """A Runner that runs, and remembers what; at its `dies_at`-th command (from 1) its process dies, before or after it.

    With `child` it is the command that is killed, after so many seconds, in the middle of its work if it takes that long; then
    with `after` its process too.
    """

    def __init__(self, dies_at: int = 0, *, after: bool = False, child: float | None = None) -> None:
        self.commands: list[tuple[str, ...]] = []
        self._dies_at = dies_at
        self._after = after
        self._child = child

    def __call__(
        self,
        argv: Sequence[str | Path],
        *,
        stdin: bytes | None = None,
        codes: Sequence[int] = (0,),
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        self.commands.append(tuple(str(word) for word in argv))
        fatal = len(self.commands) == self._dies_at
        if fatal and not self._after and self._child is None:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            if fatal and self._child is not None:
                argv = ["timeout", "--signal", "KILL", f"{self._child:.3f}", *argv]
            return run(argv, stdin=stdin, codes=codes, timeout=timeout, env=env, cwd=cwd, on_line=on_line)
        finally:
            if fatal and (self._after or self._child is None):
                os.kill(os.getpid(), signal.SIGKILL)


class Bench(Protocol):
    """A store to be tried."""

    def store(self, runner: Runner = run) -> Storage:
        """The store, empty at first; each call opens it anew."""
        ...

    def leftovers(self) -> list[str]:
        """What lies in the store that is no volume."""
        ...

    def check(self) -> None:
        """The format's own tool finds nothing wrong in the store, in which nothing is in use."""
        ...

    def arguments(self) -> list[str]:
        """What `opened` needs to open the same store in another process."""
        ...

    def close(self) -> None:
        """Remove all of it."""
        ...


class Qcow2Bench:
    """A store of the qcow2 driver in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "volumes"
        self.folder.mkdir(exist_ok=True)

    def store(self, runner: Runner = run) -> Storage:
        return Qcow2Directory(self.folder, runner)

    def leftovers(self) -> list[str]:
        volumes = {volume.path.name for volume in self.store().volumes()}
        return sorted(path.name for path in self.folder.iterdir() if path.name not in volumes)

    def check(self) -> None:
        for volume in self.store().volumes():
            run(["qemu-img", "check", "-q", volume.path])

    def arguments(self) -> list[str]:
        return ["qcow2", str(self.folder)]

    def close(self) -> None:
        pass


class ThinBench:
    """A store of the thin driver; the pool is made once, on a RAM disk, and emptied after each test."""

    VG = "pc_contract"
    DEVICE = Path("/dev/ram0")
    OWN = frozenset({POOL, STATE, CONTENT, BALLAST, f"{POOL}_tdata", f"{POOL}_tmeta", "lvol0_pmspare"})

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "volumes"
        self.folder.mkdir(exist_ok=True)
        if not self.DEVICE.exists():
            make_pool(self.DEVICE, self.VG, Layout(16 * MIB, 640 * MIB, 16 * MIB, 64 * 1024, 32 * MIB, 16 * MIB))

    def store(self, runner: Runner = run) -> Storage:
        return ThinPool(self.VG, [self.DEVICE], self.folder, runner)

    def leftovers(self) -> list[str]:
        rows = Lvm([self.DEVICE]).volumes(self.VG)
        volumes = {volume.path.name for volume in self.store().volumes()}
        loose = [row.name for row in rows if row.name not in self.OWN | volumes]
        return loose + [node.name for node in nodes_of(self.VG) if node.suspended] + [p.name for p in self.folder.iterdir()]

    def check(self) -> None:
        lvm = Lvm([self.DEVICE])
        lvm.command("vgchange", "-an", self.VG)
        metadata = read_pool(lvm, self.VG, run)
        assert (metadata.check.code, metadata.held) == (0, False), metadata.check.said
        lvm.command("lvchange", "-ay", f"{self.VG}/{POOL}")

    def arguments(self) -> list[str]:
        return ["thin", str(self.folder)]

    def close(self) -> None:
        rows = [row.name for row in Lvm([self.DEVICE]).volumes(self.VG) if row.name not in self.OWN]
        for node in nodes_of(self.VG):
            if node.suspended:
                run(["dmsetup", "resume", node.name])
        if rows:
            Lvm([self.DEVICE]).command("lvremove", "-f", *(f"{self.VG}/{row}" for row in rows))


def make_pool(device: Path, vg: str, layout: Layout, size: int = 1024 * MIB) -> None:
    """A RAM disk with a pool on it."""
    run(["modprobe", "-a", "dm_thin_pool", "loop"])
    run(["modprobe", "brd", "rd_nr=4", f"rd_size={size // 1024}"])
    lvm = Lvm([device])
    for verb, *words in format_commands(device, vg, layout, ("pc:test",)):
        lvm.command(verb, *words)


def opened(kind: str, folder: str, runner: Runner = run) -> Storage:
    """The store of a bench, in another process."""
    if kind == "qcow2":
        return Qcow2Directory(Path(folder), runner)
    return ThinPool(ThinBench.VG, [ThinBench.DEVICE], Path(folder), runner)


def bench_in(folder: Path) -> Bench:
    """The bench to be tried here."""
    return ThinBench(folder) if IN_RIG else Qcow2Bench(folder)


def filled(byte: int, at: int = 0, length: int = 4096) -> Filler:
    """A filler that writes `length` times `byte` at an offset."""

    def fill(path: Path) -> None:
        with path.open("r+b") as image:
            image.seek(at)
            image.write(bytes([byte]) * length)

    return fill


def write(store: Storage, name: str, byte: int, at: int = 0) -> None:
    """Write 4 KiB as a guest would, through QEMU."""
    path, image_format = store.place(name)
    store.activate(name)
    run(["qemu-io", "-f", image_format, "-c", f"write -q -P {byte} {at} 4096", path])


def content(store: Storage, name: str) -> bytes:
    """All that a guest would read."""
    path, image_format = store.place(name)
    store.activate(name)
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        run(["qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", path, raw])
        return raw.read_bytes()


def names(store: Storage) -> list[str]:
    return [volume.name for volume in store.volumes()]


def volume_of(store: Storage, name: str) -> tuple[int, bool, str | None]:
    """Size, sealed, parent."""
    (found,) = (volume for volume in store.volumes() if volume.name == name)
    return found.size, found.sealed, found.parent


@contextlib.contextmanager
def held(store: Storage, name: str, *, readonly: bool = False) -> Iterator[None]:
    """A real QEMU that has the volume open."""
    path, image_format = store.place(name)
    store.activate(name)
    argv = ["qemu-io", *(["-r"] if readonly else []), "-f", image_format, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"length\n")
        process.stdin.flush()
        process.stdout.readline()  # it answers only when the image is open
        yield
        process.stdin.close()
        process.wait()
