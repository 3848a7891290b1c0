"""Waiting for machines: until one can be logged in to, until all that its `ready:` demands holds.

While a machine is waited for, its domain is watched: one that stopped or was paused is said at once, not when the time is up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from pocketcloud.apply.world import World
from pocketcloud.errors import NoSpace, NotReady, PocketcloudError
from pocketcloud.events import Note, StepProgress
from pocketcloud.guest import Guest, wait_ssh
from pocketcloud.hypervisor import DomainState
from pocketcloud.model.inventory import NO_SPACE
from pocketcloud.model.lab import Ready
from pocketcloud.model.record import CLEAN
from pocketcloud.model.sizes import duration_text
from pocketcloud.readiness import wait_console, wait_tcp, wait_until

# cloud-init writes this last of all; a base without cloud-init has nothing to wait for.
_FIRST_BOOT_DONE = (
    "[ ! -d /var/lib/cloud ] || [ -e /etc/cloud/cloud-init.disabled ] || "
    "until [ -e /var/lib/cloud/instance/boot-finished ]; do sleep 0.5; done"
)
_LOG_LINES = 6
_WATCH_SECONDS = 1.0
# An agent in a guest that was just brought back may have much to do at first; in one that is ready it answers soon, or hangs.
_THAW_SECONDS = 60.0
_THAW_READY_SECONDS = 15.0
_LOGIN_SECONDS = 30.0
# What is not frozen says so and stays as it is.
THAW_ALL = """while read -r _ at kind _; do
case $kind in ext[234]|xfs|btrfs|f2fs|vfat) fsfreeze --unfreeze "$(printf %b "$at")" 2> /dev/null || true ;; esac
done < /proc/mounts"""

Renew = Callable[[Guest, float, threading.Event], None]
"""What is done over the first login to a machine that was woken: by when at the latest, and what ends it."""


class _Watch:
    """The stop event of one wait, set when the command is interrupted or the machine is not running any more."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.reason = ""
        self.paused = ""


@contextmanager
def watched(world: World, machine: str, doing: str = "waited for") -> Iterator[_Watch]:
    """Watch the machine while it is `doing` (a participle, for the error). What waits within gets the stop event and raises
    NotReady once that is set; what became of the machine is added to it."""
    watch, over = _Watch(), threading.Event()

    def look() -> None:
        asked = time.monotonic()
        while not over.wait(0.1):
            if world.stop.is_set():
                watch.stop.set()
                return
            if time.monotonic() - asked >= _WATCH_SECONDS:
                asked = time.monotonic()
                try:
                    domain = world.hypervisor.domain(world.domain(machine))
                except PocketcloudError:  # a daemon that is being restarted tells nothing of the machine
                    continue
                if domain is None or domain.state is not DomainState.RUNNING:
                    state = "gone" if domain is None else str(domain.state)
                    watch.reason = f"{machine} is {state}" + (f" ({domain.reason})" if domain and domain.reason else "")
                    watch.paused = domain.reason if domain and domain.waits else ""
                    watch.stop.set()
                    return

    thread = threading.Thread(target=look, name=f"watch-{machine}", daemon=True)
    thread.start()
    try:
        yield watch
    except NotReady as error:
        if watch.paused:
            raise paused(world, machine, watch.paused) from error
        if watch.reason:
            raise NotReady(
                f"{watch.reason} while it was {doing}{_console_end(world, machine)}", hint=_look_hint(world, machine)
            ) from error
        raise type(error)(error.message + _console_end(world, machine), hint=_look_hint(world, machine)) from error
    finally:
        over.set()
        thread.join()


def paused(world: World, machine: str, reason: str) -> NotReady | NoSpace:
    """The error for a machine that is paused and does not go on."""
    up = f"pocketcloud lab up {world.instance}"
    if reason == NO_SPACE:
        return NoSpace(
            f"{machine} is paused: the kit has no space for what it writes",
            hint=f"make room (pocketcloud kit status shows what holds it), then: {up}",
        )
    return NotReady(
        f"{machine} is paused ({reason}) and does not go on",
        hint=f"`dmesg` tells of a disk in trouble; to start its machines anew: pocketcloud lab down {world.instance}, then {up}",
    )


def _look_hint(world: World, machine: str) -> str:
    return f"look: pocketcloud lab console {world.instance} {machine}; its log: {world.files.console(machine)}"


def _console_end(world: World, machine: str) -> str:
    """The last lines of the console, for an error: they mostly say why."""
    try:
        text = world.files.console(machine).read_bytes()[-4096:].decode(errors="replace")
    except OSError:
        return ""
    lines = ["".join(c for c in line if c.isprintable()) for line in text.splitlines()]
    last = [line for line in lines if line.strip()][-_LOG_LINES:]
    return "\nthe console ends with:" + "".join(f"\n  {line[:160]}" for line in last) if last else "\nthe console says nothing"


def thaw(world: World, machine: str, *, ready: bool = False) -> None:
    """Thaw what was frozen for a state: through the guest's agent; where that does not say that it did, over ssh; and one that
    is `ready` and takes no ssh is believed to be thawed. Raises NotReady otherwise."""
    domain = world.domain(machine)
    until = time.monotonic() + (_THAW_READY_SECONDS if ready else _THAW_SECONDS)
    while not world.hypervisor.thaw(domain):
        if not world.stop.is_set() and time.monotonic() < until:
            world.stop.wait(0.5)
            continue
        needs_ssh = world.machine(machine).definition.needs_ssh
        if not world.stop.is_set() and (_thawed_over_ssh(world, machine) if needs_ssh else ready):
            world.hypervisor.forget_frozen(domain)
            how = "its file systems were thawed over ssh" if needs_ssh else "it is ready and taken as thawed"
            world.emit(Note(f"the guest agent of {machine} does not thaw what was frozen for a state; {how}", warn=True))
            return
        up = f"pocketcloud lab up {world.instance}"
        raise NotReady(
            f"{machine} runs with its file systems frozen: its guest agent does not thaw them",
            hint=f"to try again: {up}; to start it anew: pocketcloud lab down {world.instance} {machine}, then {up}",
        )


def _thawed_over_ssh(world: World, machine: str) -> bool:
    with suppress(PocketcloudError), Guest.connect(world.login(machine), timeout=_LOGIN_SECONDS, stop=world.stop) as guest:
        return guest.run(THAW_ALL, timeout=_LOGIN_SECONDS, stop=world.stop).code == 0
    return False


@contextmanager
def wait_login(world: World, machine: str, step_id: str, *, first: bool) -> Iterator[Guest]:
    """A login to the machine, within the time its `ready:` grants; with `first`, when its first boot is finished."""
    ready = world.machine(machine).definition.ready
    deadline = time.monotonic() + ready.within
    with _login(world, machine, step_id, deadline, first=first) as guest:
        yield guest


@contextmanager
def _login(world: World, machine: str, step_id: str, deadline: float, *, first: bool) -> Iterator[Guest]:
    def say(text: str) -> None:
        world.emit(StepProgress(step_id, -1, text, machine))

    with watched(world, machine) as watch:
        guest = wait_ssh(world.login(machine), deadline=deadline, stop=watch.stop, on_wait=say)
        try:
            if first:
                say("finishing its first boot")
                guest.run(_FIRST_BOOT_DONE, timeout=max(1.0, deadline - time.monotonic()), stop=watch.stop)
        except BaseException:
            guest.close()
            raise
    with guest:
        yield guest


def wait_ready(world: World, machine: str, step_id: str, *, first: bool, renew: Renew | None = None) -> None:
    """Wait until all that the machine's `ready:` demands holds. Raises NotReady with the end of its console. `renew` is for one
    that was woken from memory, done over the first login; what its console said while it started is not demanded again."""
    try:
        _wait_ready(world, machine, step_id, first=first, renew=renew)
    except NotReady as error:
        if renew is None or world.stop.is_set():
            raise
        restoring = world.machine(machine).restoring
        back = (
            f"restore {world.instance}@{restoring.state}" if restoring and restoring.state != CLEAN else f"reset {world.instance}"
        )
        cold = f"it was woken from memory; cold: pocketcloud lab {back} --cold"
        raise type(error)(error.message, hint=f"{error.hint}; {cold}" if error.hint else cold) from error


def _wait_ready(world: World, machine: str, step_id: str, *, first: bool, renew: Renew | None) -> None:
    definition = world.machine(machine).definition
    ready = definition.ready
    deadline = time.monotonic() + ready.within
    login = ready.needs_ssh or ((first or renew is not None) and definition.needs_ssh)
    if renew is not None:
        _check_runs(world, machine)
        ready = replace(ready, console=None)
    if ready.console is not None or ready.tcp is not None:
        with watched(world, machine) as watch:
            _wait_signs(world, machine, ready, deadline, watch.stop)
    if login:
        with _login(world, machine, step_id, deadline, first=first) as guest, watched(world, machine) as watch:
            if renew is not None:
                renew(guest, deadline, watch.stop)
            if ready.command is not None:
                _wait_command(guest, machine, ready.command, deadline, watch.stop)


def _check_runs(world: World, machine: str) -> None:
    domain = world.hypervisor.domain(world.domain(machine))
    if domain is None or domain.state is not DomainState.RUNNING:
        state = "gone" if domain is None else str(domain.state)
        raise NotReady(f"{machine} is {state} after it was woken{_console_end(world, machine)}", hint=_look_hint(world, machine))


def _wait_signs(world: World, machine: str, ready: Ready, deadline: float, stop: threading.Event) -> None:
    if ready.console is not None:
        wait_console(world.files.console(machine), ready.console, deadline, stop)
    if ready.tcp is not None:
        wait_tcp(world.address(machine), ready.tcp, deadline, stop)


def _wait_command(guest: Guest, machine: str, command: str, deadline: float, stop: threading.Event) -> None:
    def succeeds() -> bool:
        return guest.run(command, timeout=max(1.0, deadline - time.monotonic()), stop=stop).code == 0

    wait_until(
        succeeds,
        f"{machine}: `{command}` succeeding (within {duration_text(max(0.0, deadline - time.monotonic()))})",
        deadline,
        stop,
    )
