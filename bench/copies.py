"""What copies of a kit cost, against the bare writing and reading of what it holds, and against tools that copy disks.

Runs inside User-Mode Linux (tests/rig): rounds, and the file that takes what it finds as JSON. The targets are disks of equal
speed, about 50 MB/s: RAM disks behind dm-delay, as User-Mode Linux would else measure its one processor.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from pocketcloud.copies.pieces import Piece, cut, unit_of
from pocketcloud.copies.pouring import Checked, Digests, Outlet, check, pour
from pocketcloud.copies.shipped import Sums, sums_of
from pocketcloud.copies.source import Source, source_of
from pocketcloud.copies.target import Drawn, MetadataImages, draw, layout_of_copy, own_manifest, put_image, state_image
from pocketcloud.copies.unfinished import Unfinished
from pocketcloud.kit.attached import Places
from pocketcloud.kit.device import init_file, plan_file, put_down
from pocketcloud.model.kit import Kit
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import GIB, KIB, MIB
from pocketcloud.storage import Clone, Storage, open_storage
from pocketcloud.storage.lvm import Lvm, environment
from pocketcloud.system import run

NOW = "2026-01-01T00:00:00+00:00"
TARGETS, SIZE = 4, 2 * GIB + 64 * MIB
DELAY = 80  # ms for each request of 4 MiB: about 50 MB/s
BASE, MACHINES = 512 * MIB, 8
_READ, _WRITTEN = 2, 6


@contextmanager
def disks() -> Iterator[list[Path]]:
    """Disks of equal speed."""
    run(["modprobe", "-a", "loop", "dm_thin_pool", "dm_delay", "ext4"])
    run(["modprobe", "brd", f"rd_nr={TARGETS}", f"rd_size={SIZE // KIB}"])
    names = [f"bench{number}" for number in range(TARGETS)]
    for number, name in enumerate(names):
        run(["dmsetup", "create", name], stdin=f"0 {SIZE // 512} delay /dev/ram{number} 0 {DELAY}\n".encode(), env=environment())
    try:
        yield [Path("/dev/mapper", name) for name in names]
    finally:
        for name in names:
            run(["dmsetup", "remove", "--retry", name], env=environment())


def furnished(places: Places, file: Path) -> Kit:
    """A kit in a file with a base and machines that share it."""
    kit = init_file(plan_file(places, file, SIZE, "bench", 64 * KIB, run), file, places, run, now=NOW)
    storage = open_storage(kit)

    def fill(path: Path) -> None:
        with path.open("r+b") as target:
            for _ in range(BASE // MIB):
                target.write(os.urandom(MIB))

    storage.create("base.one", 2 * BASE, fill)
    storage.clone_all([Clone("base.one", f"lab.{number}") for number in range(MACHINES)])
    return kit


def timed(work: Callable[[], object]) -> float:
    """Seconds, with all that was written on the disks."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class Copies:
    """Our own copy, without what asks and chooses: `write` and `verify` can be timed apart."""

    def __init__(self, source: Source, devices: list[Path], held: ExitStack) -> None:
        self.source = source
        self.pieces: list[Piece] = list(cut(source.runs, source.pool.chunk))
        self.unit = unit_of(source.pool.chunk)
        self.outlets: list[Outlet] = []
        self.more: list[tuple[list[Piece], list[int], list[bytes]]] = []
        self.digests: Digests = ()
        self.drawn: list[Drawn] = []
        for number, device in enumerate(devices):
            layout = layout_of_copy(source, SIZE, run)
            note = Unfinished(source.kit.id, source.pool.digest(), str(uuid.uuid4()), Name(f"copy-{number}"), layout)
            drawn = draw(source, note, SIZE)
            handle = os.open(device, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
            held.callback(os.close, handle)
            self.drawn.append(drawn)
            self.outlets.append(Outlet(str(device), handle, drawn.aims))

    def write(self) -> None:
        """Write all, to all."""
        with MetadataImages(run) as images, ThreadPoolExecutor(len(self.outlets)) as threads:
            metadata = [images.begin(drawn.pool, drawn.note.layout.metadata) for drawn in self.drawn]
            self.digests = pour(self.source.handle, self.pieces, self.outlets, unit=self.unit, stop=threading.Event())
            sums = sums_of((piece.begin // self.unit, told) for piece, told in zip(self.pieces, self.digests, strict=True))
            self.more = list(threads.map(partial(self._put, sums), self.drawn, self.outlets, metadata))

    def _put(
        self, sums: Sums, drawn: Drawn, outlet: Outlet, metadata: Future[Path]
    ) -> tuple[list[Piece], list[int], list[bytes]]:
        """Write the pool's map and the kit's files to one disk."""
        if outlet.fault:
            raise RuntimeError(outlet.fault)
        places, layout = drawn.group.places, drawn.note.layout
        first = put_image(metadata.result(), outlet.handle, places.metadata, unit=self.unit, holes=False)
        with state_image(self.source, layout.state, sums, own_manifest(self.source, drawn, NOW), run) as image:
            second = put_image(image, outlet.handle, places.state, unit=self.unit, holes=True)
        both = first + second
        os.fdatasync(outlet.handle)
        return list(both.pieces), list(both.aims), list(both.digests)

    def written(self) -> int:
        """Bytes that went to one disk."""
        return self.outlets[0].written + sum(piece.length for piece in self.more[0][0])

    def verify(self) -> int:
        """Read one disk again; the bytes."""
        outlet, (pieces, aims, digests) = self.outlets[0], self.more[0]
        checked = Checked()
        what = [*self.pieces, *pieces], [*outlet.aims, *aims], [*self.digests, *digests]
        check(outlet.handle, *what, checked, unit=self.unit, stop=threading.Event())
        if checked.wrong or checked.fault:
            raise RuntimeError(checked.fault or "what was written is not there")
        return checked.read


def sectors(device: Path, what: int) -> int:
    """How many sectors were read from, or written to, a device since it is there (Documentation/block/stat.rst)."""
    number = device.stat().st_rdev
    return int(Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat").read_text().split()[what])


def detach(kit: Kit) -> None:
    """Put the kit down, as `kit detach` does."""
    put_down(Lvm(kit.devices, run), kit.vg, kit.path, run)
    for device in kit.devices:
        run(["losetup", "--detach", device])


def peers(storage: Storage, file: Path, disk: Path) -> dict[str, Callable[[], object]]:
    """What others do with the same source and target."""
    paths = [storage.place(volume.name)[0] for volume in storage.volumes()]
    found: dict[str, Callable[[], object]] = {
        "dd": lambda: run(["dd", f"if={file}", f"of={disk}", "bs=4M", "conv=fsync", "status=none"], timeout=3600),
    }

    def convert() -> None:
        storage.activate(*(volume.name for volume in storage.volumes()))
        for path in paths:
            run(["qemu-img", "convert", "-n", "-t", "none", "-f", "raw", "-O", "raw", path, disk], timeout=3600)

    found["qemu-img"] = convert
    if shutil.which("bmaptool"):
        found["bmaptool"] = lambda: [
            run(["bmaptool", "create", "-o", "/run/kit.bmap", file]),
            run(["bmaptool", "copy", "--bmap", "/run/kit.bmap", file, disk], timeout=3600),
        ]
    return found


def raw_writes(targets: Sequence[Path], blocks: int) -> None:
    """Write so many blocks of 4 MiB to each, to all at once. What that takes for all and not for one is the bed's, not ours."""
    words = ["dd", "if=/dev/zero", "bs=4M", f"count={blocks}", "oflag=direct", "conv=fsync", "status=none"]
    with ThreadPoolExecutor(len(targets)) as pool:
        list(pool.map(lambda target: run([*words, f"of={target}"], timeout=3600), targets))


def main(rounds: int, output: Path) -> None:
    """Measure, and write what was found."""
    seconds: dict[str, list[float]] = {}
    facts: dict[str, int] = {}
    folder = Path(tempfile.mkdtemp(prefix="pocketcloud-bench-"))
    file = folder / "kit.img"
    with disks() as targets:
        kit = furnished(Places(folder / "default", Path("/run/pocketcloud")), file)
        for _ in range(rounds):
            for count in (1, 2, TARGETS):
                with ExitStack() as held, source_of(kit, run, now=NOW) as source:
                    copies = Copies(source, targets[:count], held)
                    before = sectors(Path(f"/proc/self/fd/{source.handle}"), _READ)
                    seconds.setdefault(f"copy to {count}", []).append(timed(copies.write))
                    read = (sectors(Path(f"/proc/self/fd/{source.handle}"), _READ) - before) * 512
                    facts |= {f"read for {count}": read, "unique": source.bytes, "written": copies.written()}
                    if count == 1:
                        seconds.setdefault("verify", []).append(timed(copies.verify))
            blocks = -(-facts["written"] // (4 * MIB))
            seconds.setdefault("raw write", []).append(timed(partial(raw_writes, targets[:1], blocks)))
            seconds.setdefault("raw write to all", []).append(timed(partial(raw_writes, targets, blocks)))
            look = ["dd", f"if={targets[0]}", "of=/dev/null", "bs=4M", f"count={blocks}", "iflag=direct", "status=none"]
            seconds.setdefault("raw read", []).append(timed(partial(run, look)))
        for name, work in peers(open_storage(kit), file, targets[0]).items():
            before = sectors(targets[0], _WRITTEN)
            seconds[name] = [timed(work)]
            facts[f"{name} wrote"] = (sectors(targets[0], _WRITTEN) - before) * 512
        detach(kit)
        output.write_text(json.dumps({"seconds": seconds, "facts": facts}))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
