"""Rounds, medians and rows: what a measurement is made of."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison: seconds (or what `unit` says) of each round for us and for the peer, and the ratio of their medians against
    a goal."""

    name: str
    us: tuple[float, ...]
    peer: tuple[float, ...]
    goal: float | None
    peer_name: str
    unit: str = "s"

    @property
    def ratio(self) -> float:
        """Our median over the peer's."""
        return statistics.median(self.us) / statistics.median(self.peer)

    def as_json(self) -> dict[str, object]:
        """For bench.json."""
        return {
            "name": self.name,
            "peer": self.peer_name,
            "ratio": round(self.ratio, 3),
            "goal": self.goal,
            "met": self.goal is None or self.ratio <= self.goal,
            "seconds" if self.unit == "s" else self.unit: {
                "us": [round(s, 3) for s in self.us],
                "peer": [round(s, 3) for s in self.peer],
            },
        }

    def line(self) -> str:
        """For people."""
        us, peer = statistics.median(self.us), statistics.median(self.peer)
        goal = f"goal {self.goal}: {'met' if self.ratio <= self.goal else 'MISSED'}" if self.goal else "no goal"
        medians = f"medians {us:.3f} {self.unit} against {peer:.3f} {self.unit} ({self.peer_name}), {len(self.us)} rounds"
        return f"{self.name}: ratio {self.ratio:.2f} ({goal}); {medians}"


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def interleaved(rounds: int, *works: Callable[[], float], names: Sequence[str] = ()) -> list[tuple[float, ...]]:
    """Let each of `works`, which answer with seconds, run in turn, `rounds` times; the order turns from round to round.

    With `names`, one for each of them, every measurement is printed as it is taken, for rounds that last minutes.
    """
    taken: list[list[float]] = [[] for _ in works]
    for number in range(rounds):
        order = list(range(len(works)))
        for index in order[number % len(works) :] + order[: number % len(works)]:
            taken[index].append(works[index]())
            if names:
                print(f"  round {number + 1} of {rounds}, {names[index]}: {taken[index][-1]:.1f} s", flush=True)
    return [tuple(times) for times in taken]


def command(*argv: str) -> None:
    """Run a command silently; raises on failure with what it said."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: exit code {done.returncode}\n{done.stderr[-2000:]}")


def quick_rows(pocketcloud: Sequence[str], python: str, rounds: int) -> list[Row]:
    """What the command line costs before it does anything."""
    help_, click, bare = interleaved(
        rounds,
        lambda: seconds(lambda: command(*pocketcloud, "--help")),
        lambda: seconds(lambda: command(python, "-I", "-c", "import click")),
        lambda: seconds(lambda: command(python, "-I", "-c", "pass")),
    )
    return [
        Row("pocketcloud --help", help_, click, 1.25, "python -I -c 'import click'"),
        Row("pocketcloud --help, against a bare interpreter", help_, bare, None, "python -I -c pass"),
    ]


def thin_rows(seconds: Mapping[str, Sequence[float]], where: str, goals: tuple[float, float]) -> list[Row]:
    """What bench/thin.py measured; `goals` are those of a reset with spares and without, against the better of the peers."""
    taken = {name: tuple(values) for name, values in seconds.items()}
    better = min(("proxmox", "incus"), key=lambda peer: statistics.median(taken[f"reset: {peer}"]))
    peer, bare = taken[f"reset: {better}"], taken["reset: bare device-mapper"]
    with_spares, without = taken["reset with spares: ours"], taken["reset without spares: ours"]
    name = f"reset of 20 disks, {where}"
    return [
        Row(f"clone of one disk, {where}", taken["clone: ours"], taken["clone: lvcreate -s"], None, "lvcreate -s -ay"),
        Row(f"{name}, spares", with_spares, peer, goals[0], f"{better}'s sequence, on 5 and scaled"),
        Row(f"{name}, no spares left", without, peer, goals[1], f"{better}'s sequence, on 5 and scaled"),
        Row(
            f"{name}, spares, against a plain loop", with_spares, taken["reset: plain loop"], None, "lvremove, lvcreate -s, each"
        ),
        Row(f"{name}, spares, against the kernel alone", with_spares, bare, None, "messages and table swaps by ioctl"),
        Row(
            f"{name}, spares: the work left for later",
            taken["reset with spares: ours, later"],
            peer,
            None,
            f"{better}'s sequence, on 5 and scaled",
        ),
        Row(f"{name}, no spares: the work left for later", taken["reset without spares: ours, later"], peer, None, f"{better}'s"),
    ]


def copy_rows(seconds: Mapping[str, Sequence[float]], facts: Mapping[str, int]) -> list[Row]:
    """What bench/copies.py measured."""
    taken = {name: tuple(values) for name, values in seconds.items()}
    ours, written, unique = taken["copy to 1"], float(facts["written"]), float(facts["unique"])
    rows = [
        Row("copy of a kit", ours, taken["raw write"], 1.2, "dd of as many bytes, straight to the disk"),
        Row("copy of a kit to 2 disks", taken["copy to 2"], ours, 1.25, "to one"),
        Row("copy of a kit to 4 disks", taken["copy to 4"], ours, 1.25, "to one"),
        Row("copy of a kit to 4 disks", taken["copy to 4"], taken["raw write to all"], None, "four of these dd at once"),
        Row("verification of a copy", taken["verify"], taken["raw read"], 1.05, "dd of as many bytes, straight from the disk"),
        Row("bytes read of the kit for 4 copies", (float(facts["read for 4"]),), (unique,), 1.0, "what is unique", unit="bytes"),
        Row("bytes written to a copy", (written,), (unique,), None, "what is unique", unit="bytes"),
    ]
    for peer, name in (
        ("dd", "dd bs=4M conv=fsync"),
        ("bmaptool", "bmaptool create, copy"),
        ("qemu-img", "qemu-img convert each volume"),
    ):
        if peer in taken:
            rows.append(Row("copy of a kit", ours, taken[peer], None, name))
            rows.append(Row("bytes written to a copy", (written,), (float(facts[f"{peer} wrote"]),), None, name, unit="bytes"))
        else:
            print(f"copies by {name}: not measured, it is not installed", flush=True)
    return rows
