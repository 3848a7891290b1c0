"""Boots User-Mode Linux to run a shell script with real device-mapper, dm-thin, lvm2 and loop devices, as root, in seconds.

The host's files are there, read-only; everything written stays inside and is gone afterwards, but for the job's own folder.
Processes and memory are the host's, so a job can do no more than the user who started it could, and cannot see the host's disks.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
_INIT = Path(__file__).with_name("uml-init")
KERNEL = "linux.uml"


class RigFailed(Exception):
    """User-Mode Linux did not run the job to its end; carries what its kernel and the job said."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job that ended: its exit code and all it said."""

    code: int
    log: str


def missing() -> str:
    """Why User-Mode Linux cannot run here, empty if it can."""
    if shutil.which(KERNEL) is None:
        return f"{KERNEL} is not installed (Debian and Ubuntu have it in user-mode-linux; other distributions do not ship it)"
    if os.geteuid() != 0:
        return "User-Mode Linux is root inside only if it is started by root"
    return ""


def run_job(
    script: str,
    folder: Path,
    *,
    timeout: float,
    disks: Sequence[Path] = (),
    memory: str = "1536M",
    udev: bool = False,
    env: Mapping[str, str] | None = None,
) -> Job:
    """Boot, run `script` with sh in the checkout, halt. `folder` takes the job's files: what it writes to /run/rig lies there.

    `disks` are files that the job has as /dev/ubda, /dev/ubdb ...; `timeout` is in seconds. Raises RigFailed.
    """
    exports = "".join(f"export {name}='{value}'\n" for name, value in (env or {}).items())
    (folder / "job").write_text(f"cd '{TOP}' || exit 99\n{exports}{script}\n")
    for old in ("log", "code"):
        (folder / old).unlink(missing_ok=True)
    argv = [
        KERNEL,
        f"mem={memory}",
        "root=/dev/root",
        "rootfstype=hostfs",
        "rootflags=/",
        "ro",
        "quiet",
        "con=null",
        "con0=null,fd:1",
        f"init={_INIT}",
        f"rig={folder}",
        f"top={TOP}",
        *(["rig_udev=1"] if udev else []),
        *(f"ubd{number}={path}" for number, path in enumerate(disks)),
    ]
    # The kernel's memory is a file in TMPDIR; its processes are one process group, which ends with it.
    kernel = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = kernel.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        said = f"(not done after {timeout:.0f} s)"
    finally:
        _end(kernel)
    log = (folder / "log").read_text(errors="replace") if (folder / "log").exists() else ""
    if not (folder / "code").exists():
        raise RigFailed(f"User-Mode Linux did not finish its job\n{said[-3000:]}\n--- the job said\n{log[-6000:]}")
    return Job(int((folder / "code").read_text()), log)


def _end(kernel: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(kernel.pid, signal.SIGKILL)
    kernel.wait()


def main(words: Sequence[str]) -> int:
    """`scripts/uml [--udev] [--memory SIZE] COMMAND`."""
    parser = argparse.ArgumentParser(prog="scripts/uml", description="Run a command in User-Mode Linux.")
    parser.add_argument("--udev", action="store_true", help="with udev's daemon")
    parser.add_argument("--memory", default="1536M", help="as the kernel's mem= takes it")
    parser.add_argument("command", nargs="+")
    asked = parser.parse_args(words)
    if reason := missing():
        print(reason, file=sys.stderr)
        return 3
    # Ended by `timeout` or a closed terminal, it must not leave its kernel behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="pocketcloud-uml-") as folder:
        job = run_job(" ".join(asked.command), Path(folder), timeout=6 * 3600, udev=asked.udev, memory=asked.memory)
    print(job.log, end="")
    return job.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
