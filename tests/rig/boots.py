"""What User-Mode Linux runs for the tests: which files in which boot, and boots that run beside other tests.

Boots that are wanted lie in a folder, one JSON file each. A worker is a process that takes one after the other, until all are
taken: `python -m tests.rig.boots FOLDER`. There may be several, each boot keeps one processor busy.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.rig.uml import TOP, Job, RigFailed, run_job

WITHIN = 1400.0
SLOWLY = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class Boot:
    """What one boot runs: some files' tests, all of them or those of `make test`, perhaps with udev's daemon beside them,
    and with as much memory."""

    files: tuple[str, ...]
    slow: bool = False
    sampled: bool = False
    udev: bool = False
    memory: str = "1536M"

    def __str__(self) -> str:
        return " ".join([*(Path(file).stem.removeprefix("test_") for file in self.files), *(["with udev"] if self.udev else [])])

    def run(self, folder: Path) -> Job:
        """Boot and run the tests. Raises RigFailed."""
        return run_job(
            # One that fails may leave what all others then stumble over; the first is what the log has to end with.
            pytest_command(" ".join(["-x"] * self.sampled + ["-m 'not slow'"] * (not self.slow)), self.files),
            folder,
            timeout=WITHIN if self.sampled else SLOWLY,
            udev=self.udev,
            memory=self.memory,
            env={"POCKETCLOUD_SEED": os.environ.get("POCKETCLOUD_SEED", "0"), "POCKETCLOUD_SAMPLE": "1" if self.sampled else ""},
        )


def pytest_command(which: str, files: Sequence[str]) -> str:
    """The command line that runs these files' tests inside."""
    # What passed is shown too: it tells how many kills there were.
    names = " ".join(f"'{file}'" for file in files)
    return f".venv/bin/python -m pytest -p no:cacheprovider -q -rsP --timeout={SLOWLY:.0f} --durations=5 {which} {names}"


@dataclass
class Boots:
    """The boots that are wanted, in `folder`, and the workers that this process has started."""

    folder: Path
    wanted: tuple[Boot, ...]

    def __post_init__(self) -> None:
        self._workers: list[subprocess.Popen[bytes]] = []
        for number, boot in enumerate(self.wanted):
            (self.folder / f"{number:02}.wanted").write_text(json.dumps(asdict(boot)))

    def start_worker(self) -> None:
        """Have one more process take boots."""
        command = [sys.executable, "-m", "tests.rig.boots", str(self.folder)]
        self._workers.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=TOP))

    def outcome(self, boot: Boot) -> Job:
        """What came of the boot; waits for it. Raises RigFailed."""
        done = self.folder / f"{self.wanted.index(boot):02}.done"
        while not done.exists():
            if all(worker.poll() is not None for worker in self._workers) and not done.exists():
                raise RigFailed(f"all workers ended before {boot} was done")
            time.sleep(0.5)
        told = json.loads(done.read_text())
        if told["failure"]:
            raise RigFailed(told["failure"])
        return Job(told["code"], told["log"])

    def end(self) -> None:
        """End the workers, with the boots they are at."""
        for worker in self._workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM)
            worker.wait()


def work(folder: Path) -> None:
    """Run the boots that nobody has taken yet, in their order."""
    for wanted in sorted(folder.glob("*.wanted")):
        place = wanted.with_suffix("")
        try:
            place.mkdir()  # whoever makes it has taken it
        except FileExistsError:
            continue
        told = json.loads(wanted.read_text())
        boot = Boot(**{**told, "files": tuple(told["files"])})
        outcome: dict[str, object] = {"code": 0, "log": "", "failure": ""}
        try:
            job = boot.run(place)
            outcome |= {"code": job.code, "log": job.log}
        except RigFailed as failure:
            outcome["failure"] = str(failure)
        written = wanted.with_suffix(".part")
        written.write_text(json.dumps(outcome))
        written.rename(wanted.with_suffix(".done"))


if __name__ == "__main__":
    # Ended together with the tests, it must not leave its kernel behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with contextlib.suppress(KeyboardInterrupt):
        work(Path(sys.argv[1]))
