"""Kits in sparse files: the loop device through which a file is a disk."""

from __future__ import annotations

import time
from pathlib import Path

from pocketcloud.errors import HostLacks, Refused
from pocketcloud.host import kits as host
from pocketcloud.system import CommandFailed, Runner

# Whatever lies below: a kit in a file has the same sectors everywhere.
SECTOR = 512
_LET_GO = 50


def command(file: Path, *, direct: bool = True) -> tuple[str, ...]:
    """The command that puts a loop device before a file. Past the page cache, so that nothing is kept twice in memory."""
    options = ["--direct-io=on"] if direct else []
    return ("losetup", "--find", "--show", *options, "--sector-size", str(SECTOR), "--nooverlap", str(file))


def put_before(file: Path, run: Runner) -> tuple[Path, bool]:
    """The loop device of a file, and whether it was made now."""
    there = host.loops_of(file)
    if there:
        return host.node(there[0]), False
    run(["modprobe", "loop"], codes=range(256))
    try:
        # Some file systems (tmpfs) cannot be read past the page cache; losetup says no more than that it did not go.
        done = run(command(file), codes=(0, 1))
        if done.code:
            done = run(command(file, direct=False))
    except CommandFailed as failed:
        said = (failed.completed.err or failed.completed.out).strip()
        raise HostLacks(f"{file} cannot be used as a disk: {said}", hint="is the kernel's module `loop` there?") from failed
    return Path(done.out.strip()), True


def take_away(device: Path, file: Path, run: Runner) -> None:
    """Detach a loop device, if it is that file's still; absent is success. Raises Refused if something keeps it open."""
    kernel = device.name
    if kernel not in host.loops_of(file):
        return
    # Where something stands on it, the kernel would take it away later, under whoever uses it again until then.
    if users := host.above(kernel):
        names = ", ".join(host.mapped_name(user) or user for user in users)
        raise Refused(f"{device}, the loop device of {file}, carries {names}", hint=f"end what uses it: lsblk {device} shows it")
    run(["losetup", "--detach", device])
    # An open loop device is detached when its last user lets go of it, and losetup says nothing.
    for _ in range(_LET_GO):
        if kernel not in host.loops_of(file):
            return
        time.sleep(0.1)
    raise Refused(f"{device}, the loop device of {file}, is still open", hint="end what uses it: fuser -v " + str(device))
