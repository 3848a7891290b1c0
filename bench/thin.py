"""What clones and resets of thin volumes cost, against plain LVM, what other tools do, and the bare device-mapper.

Runs inside User-Mode Linux (tests/rig): rounds, and the file that takes its seconds as JSON. bench/run.py starts it there, with
and without udev's daemon, and makes rows of what it finds.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.bare import BareReset
from pocketcloud.model.sizes import MIB
from pocketcloud.storage import Clone
from pocketcloud.storage.lvm import environment
from pocketcloud.storage.lvm_layout import Layout
from pocketcloud.storage.lvm_thin import ThinPool
from tests.contract.stores import make_pool

MACHINES = 20
# The peers take a second and more for each: they do it for some, and their seconds are scaled.
PEER_MACHINES = 5
DEVICE, VG = Path("/dev/ram0"), "pc_bench"
LAYOUT = Layout(16 * MIB, 640 * MIB, 16 * MIB, 64 * 1024, 32 * MIB, 16 * MIB)
PEER_VG, PEER_DEVICE = "peer", Path("/dev/ram1")


def lvm(*words: str) -> None:
    """One LVM command as an administrator, or another tool, would run it: with the host's own settings."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env=ENV)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.returncode}\n{done.stderr}")


ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", **environment()}


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class Peers:
    """A pool of its own with some disks and their clean snapshots, for those we are compared with."""

    def __init__(self) -> None:
        make_pool(PEER_DEVICE, PEER_VG, LAYOUT)
        lvm("lvcreate", "-V", "64m", "--thinpool", "pool", "-n", "base", PEER_VG)
        for n in range(PEER_MACHINES):
            lvm("lvcreate", "-s", "-kn", "-n", f"clean{n}", f"{PEER_VG}/base")
            lvm("lvcreate", "-s", "-kn", "-n", f"vm{n}", f"{PEER_VG}/clean{n}")
            lvm("lvchange", "-an", f"{PEER_VG}/clean{n}")
        self.generation = 0

    def one(self) -> None:
        """A clone, usable, by one command."""
        self.generation += 1
        lvm("lvcreate", "-s", "-kn", "-ay", "-n", f"one{self.generation}", f"{PEER_VG}/clean0")

    def undo_one(self) -> None:
        lvm("lvremove", "-f", f"{PEER_VG}/one{self.generation}")

    def plain(self) -> None:
        """What a script does: remove, snapshot; one after the other."""
        for n in range(PEER_MACHINES):
            lvm("lvremove", "-f", f"{PEER_VG}/vm{n}")
            lvm("lvcreate", "-s", "-kn", "-ay", "-n", f"vm{n}", f"{PEER_VG}/clean{n}")

    def proxmox(self) -> None:
        """Proxmox VE's rollback of a thin volume (LvmThinPlugin.pm): lvremove, lvcreate, lvchange."""
        for n in range(PEER_MACHINES):
            lvm("lvremove", "-f", f"{PEER_VG}/vm{n}")
            lvm("lvcreate", "-kn", "-n", f"vm{n}", "-s", f"{PEER_VG}/clean{n}")
            lvm("lvchange", "-ay", "-K", f"{PEER_VG}/vm{n}")

    def incus(self) -> None:
        """Incus's restore of a thin volume (driver_lvm_volumes.go): lvrename, lvcreate, lvremove."""
        for n in range(PEER_MACHINES):
            lvm("lvrename", PEER_VG, f"vm{n}", f"vm{n}.tmp")
            lvm("lvcreate", "-kn", "-n", f"vm{n}", "-s", f"{PEER_VG}/clean{n}")
            lvm("lvremove", "-f", f"{PEER_VG}/vm{n}.tmp")


class Ours:
    """The same with our driver."""

    def __init__(self) -> None:
        make_pool(DEVICE, VG, LAYOUT)
        self.folder = Path(tempfile.mkdtemp())
        self.store = ThinPool(VG, [DEVICE], self.folder)
        self.store.create("base", 64 * MIB, lambda _path: None)
        self.generation = 0
        self.store.clone_all([Clone("base", f"clean{n}") for n in range(MACHINES)])
        self.live = self._names()
        self.store.clone_all(self._clones(self.live))
        self.store.activate(*self.live)

    def _names(self) -> list[str]:
        self.generation += 1
        return [f"vm{n}.g{self.generation}" for n in range(MACHINES)]

    def _clones(self, names: list[str]) -> list[Clone]:
        return [Clone(f"clean{n}", name) for n, name in enumerate(names)]

    def one(self) -> None:
        self.generation += 1
        self.store.clone_all([Clone("clean0", f"one.g{self.generation}")])
        self.store.activate(f"one.g{self.generation}")

    def undo_one(self) -> None:
        self.store.remove(f"one.g{self.generation}")

    def reset(self, *, spares: bool) -> tuple[float, float]:
        """Seconds until the last disk is usable, and of what is left for later."""
        names = self._names()
        if spares:
            self.store.prepare(self._clones(names))
        old, self.live = self.live, names

        def usable() -> None:
            self.store.clone_all(self._clones(names), reserve=True)
            self.store.activate(*names)

        first = timed(usable)
        following = self._names()

        def later() -> None:
            self.store.remove(*old)
            if spares:
                self.store.prepare(self._clones(following))

        after = timed(later)
        if spares:
            # The next round makes its own.
            lvm("lvremove", "-f", *(f"{VG}/v.{name}" for name in following))
        return first, after


def main(rounds: int, output: Path) -> None:
    """All of it, in turn, `rounds` times."""
    peers, ours, bare = Peers(), Ours(), BareReset(Path("/dev/ram2"), MACHINES)
    seconds: dict[str, list[float]] = {}

    def note(name: str, taken: float) -> None:
        seconds.setdefault(name, []).append(taken)
        print(f"  {name}: {taken:.2f} s", flush=True)

    for _ in range(rounds):
        note("clone: ours", timed(ours.one))
        ours.undo_one()
        note("clone: lvcreate -s", timed(peers.one))
        peers.undo_one()
        first, later = ours.reset(spares=True)
        note("reset with spares: ours", first)
        note("reset with spares: ours, later", later)
        first, later = ours.reset(spares=False)
        note("reset without spares: ours", first)
        note("reset without spares: ours, later", later)
        note("reset: plain loop", timed(peers.plain) * MACHINES / PEER_MACHINES)
        note("reset: proxmox", timed(peers.proxmox) * MACHINES / PEER_MACHINES)
        note("reset: incus", timed(peers.incus) * MACHINES / PEER_MACHINES)
        note("reset: bare device-mapper", timed(bare.swap))
        note("reset: bare device-mapper, later", timed(bare.drop))
        output.write_text(json.dumps(seconds))
    for name, taken in seconds.items():
        print(f"{name}: {statistics.median(taken):.2f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
