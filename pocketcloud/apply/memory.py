"""Memory that is kept with a state: described when it is taken, judged when it is to be used, woken from, or said why not.

A woken guest believes that no time has passed, and draws the random numbers that it drew before. So its clock is set, its kernel
is told by the generation id (libvirt changes it at every restore), and gets randomness of the host's: not all know that device.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pocketcloud.apply.world import World
from pocketcloud.errors import PocketcloudError
from pocketcloud.events import Note, StepProgress
from pocketcloud.guest import Guest
from pocketcloud.memory_fit import bound_to, why_not
from pocketcloud.model.record import Memory
from pocketcloud.model.sizes import size_text

_CHUNK = 1 << 20
_SEED = 512
_LOGIN_SECONDS = 30.0
# What is written to /dev/urandom is only mixed in; the kernel draws from it when it is counted as entropy (RNDADDENTROPY) and the
# generator is told to begin anew (RNDRESEEDCRNG, Linux 4.14), which no command of a shell can do: random(4), linux/random.h.
_PYTHON = """
import fcntl, struct, sys
seed = sys.stdin.buffer.read()
with open("/dev/urandom", "wb") as device:
    fcntl.ioctl(device, 0x40085203, struct.pack("ii", 8 * len(seed), len(seed)) + seed)
    fcntl.ioctl(device, 0x5207)
"""
_PERL = """
local $/; my $seed = <STDIN>;
open(my $device, ">", "/dev/urandom") or die;
ioctl($device, 0x40085203, pack("ii", 8 * length $seed, length $seed) . $seed) or die;
ioctl($device, 0x5207, 0) or die;
"""
_RESEED = (
    f"if command -v python3; then exec python3 -c {shlex.quote(_PYTHON)}; fi >&2; "
    f"if command -v perl; then exec perl -e {shlex.quote(_PERL)}; fi >&2; exec cat > /dev/urandom"
)


def kept(world: World, machine: str, path: Path) -> Memory:
    """The description of a machine's memory, which was just saved to `path`. It is not flushed to the disk: after a power cut its
    sum tells."""
    return Memory(path.name, path.stat().st_size, _sum(path), _bound(world, machine))


def why_cold(world: World, machine: str, memory: Memory, *, whole: bool = True) -> str:
    """Why the machine cannot be woken from this memory here and now; empty: it can. With `whole` its file is read, too."""
    if why := why_not(memory, _bound(world, machine)):
        return why
    path = world.files.memory_file(memory.file)
    try:
        size = path.stat().st_size
        if size != memory.size:
            return f"its file is damaged: it has {size_text(size)}, had {size_text(memory.size)}"
        if whole and _sum(path) != memory.sha256:
            return "its file is damaged: its content is not what was saved"
    except FileNotFoundError:
        return "its file is gone"
    except OSError as error:
        return f"its file cannot be read: {error.strerror}"
    return ""


def wake(world: World, machine: str, memory: Memory, step_id: str) -> bool:
    """Bring the machine, which is off, back from memory on the disks that the record has by now. False if that could not be,
    which is said: then it is off still."""

    def say(text: str) -> None:
        world.emit(StepProgress(step_id, -1, text, machine))

    say("reading its memory")
    why = why_cold(world, machine, memory)
    domain = world.domain(machine)
    if not why:
        say("waking")
        world.storage.activate(*world.machine(machine).disks.values())
        try:
            world.hypervisor.restore(world.spec(machine), world.files.memory_file(memory.file))
        except PocketcloudError as error:
            why = error.message.splitlines()[0]
            world.hypervisor.kill(domain)
    if why:
        world.emit(Note(f"{machine} starts cold, its memory is not used: {why}", warn=True))
        return False
    with suppress(PocketcloudError):  # what an agent cannot do is no reason to fail: whether the machine is ready is asked next
        world.hypervisor.thaw(domain)
    set_clock(world, machine)
    return True


def set_clock(world: World, machine: str) -> None:
    """Set the clock of a machine that was woken, by its agent where it has one, and remember that it was woken."""
    set_there = world.woken[machine] = _set_by_agent(world, machine)
    if not set_there and not world.machine(machine).definition.needs_ssh:
        world.emit(Note(f"{machine} has no guest agent to set its clock; it goes on at the time of its memory"))


def catch_up(world: World, machine: str) -> None:
    """Set the clock of a machine that stood still while a state was taken: by its agent, else over ssh."""
    if _set_by_agent(world, machine) or not world.machine(machine).definition.needs_ssh:
        return
    with suppress(PocketcloudError), Guest.connect(world.login(machine), timeout=_LOGIN_SECONDS, stop=world.stop) as guest:
        if guest.run(_date(), timeout=_LOGIN_SECONDS, stop=world.stop).code == 0:
            return
    world.emit(Note(f"the clock of {machine} could not be set; it is behind by as long as its state took", warn=True))


def _set_by_agent(world: World, machine: str) -> bool:
    with suppress(PocketcloudError):
        return world.hypervisor.set_clock(world.domain(machine), time.time())
    return False


def _date() -> str:
    return f"date -u -s @{int(time.time())}"


def renew(world: World, machine: str, guest: Guest, deadline: float, stop: threading.Event) -> None:
    """Give a woken machine, by this login, randomness of its own, and the time if it had no agent to set its clock. Raises
    NotReady where that takes longer than to `deadline`, a value of time.monotonic(), or until `stop` is set."""

    def run(command: str, stdin: bytes | None = None) -> bool:
        return guest.run(command, stdin=stdin, timeout=max(1.0, deadline - time.monotonic()), stop=stop).code == 0

    if not run(_RESEED, os.urandom(_SEED)):
        world.emit(Note(f"{machine} could not be given randomness of its own; it may draw what it drew before", warn=True))
    if not world.woken[machine] and not run(_date()):
        world.emit(Note(f"the clock of {machine} could not be set; it goes on at the time of its memory", warn=True))


def _bound(world: World, machine: str) -> Mapping[str, str]:
    made = world.machine(machine)
    domain = None
    with suppress(PocketcloudError):  # somebody else's domain of that name is told where it is in the way
        domain = world.hypervisor.domain(world.domain(machine))
    return bound_to(world.spec(machine), made.addresses, world.known.networks, domain, world.here())


def _sum(path: Path) -> str:
    # Python's own reading takes pieces of 256 KiB; on a disk over USB larger ones are quicker.
    digest, buffer = hashlib.sha256(), bytearray(_CHUNK)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(memoryview(buffer)[:size])
    return digest.hexdigest()
