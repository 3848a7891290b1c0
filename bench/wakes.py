"""`lab reset` of four guests, warm and cold, against starting the very same guests by virsh."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bench.guests import Bench
from bench.measure import Row, command, interleaved, seconds

MACHINES = ("one", "two", "three", "four")
LAB = "\n".join(
    [
        "lab: bench",
        "reset: warm",
        "machines:",
        *(f"  {name}: {{base: debian-12, memory: 384MiB, networks: [net]}}" for name in MACHINES),
        "networks:",
        "  net: {kind: nat}",
        "",
    ]
)


@dataclass(frozen=True, slots=True)
class Wakes:
    """The lab of four, and what is measured of it."""

    bench: Bench

    def _domains(self) -> Sequence[str]:
        return [f"{self.bench.name}.bench.{machine}" for machine in MACHINES]

    def reset(self, *options: str) -> float:
        """`lab reset`, which keeps what they leave for undo, and ends when ssh has answered in every machine."""
        return seconds(lambda: self.bench.run("lab", "reset", "-y", *options, "bench"))

    def _start(self) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda domain: command("virsh", "-q", "start", "--force-boot", domain), self._domains()))
        self.bench.wait_all(first=False, machines=MACHINES)

    def _destroy(self) -> None:
        for domain in self._domains():
            subprocess.run(["virsh", "-q", "destroy", domain], capture_output=True, check=False)

    def started_anew(self) -> float:
        """`virsh destroy` and `virsh start` of all at once, until ssh."""

        def work() -> None:
            self._destroy()
            self._start()

        return seconds(work)

    def started(self) -> float:
        """`virsh start` of all at once, which were off, until ssh."""
        self._destroy()
        return seconds(self._start)


def wake_rows(bench: Bench, rounds: int) -> list[Row]:
    """Warm resets against `virsh destroy` and `start`; cold ones against `virsh start`."""
    bench.run("lab", "up", str(bench.lab))
    wakes = Wakes(bench)
    warm, anew, cold, by_hand = interleaved(
        rounds,
        wakes.reset,
        wakes.started_anew,
        lambda: wakes.reset("--cold"),
        wakes.started,
        names=("warm lab reset", "virsh destroy and start", "cold lab reset", "virsh start"),
    )
    return [
        Row("warm reset of four machines, until ssh", warm, anew, 1 / 8, "virsh destroy and parallel virsh start, until ssh"),
        Row("cold reset of four machines, until ssh", cold, by_hand, 1.2, "parallel virsh start of the same, until ssh"),
    ]
