"""`lab status --checks`: what a lab file asks its machines, asked over ssh and counted in points.

Machines are asked side by side, the checks of one after each other. Guests are their users', who may be root there: whatever
they say is bounded in time and size, and fit for a terminal. Nothing is written into them.
"""

from __future__ import annotations

import math
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from enum import StrEnum

from pocketcloud.errors import NotReady, PocketcloudError
from pocketcloud.guest import Guest, Login, WaitInterrupted
from pocketcloud.hypervisor import DomainState
from pocketcloud.lab.logins import login_of
from pocketcloud.lab.workbench import Workbench
from pocketcloud.model.inventory import Inventory
from pocketcloud.model.lab import Check
from pocketcloud.model.names import Name
from pocketcloud.model.record import Record
from pocketcloud.plan.drafting import known_record

# An emulated guest has been seen to need 15 s for a key exchange.
_CONNECT_SECONDS = 60.0
# The guest ends a check by itself when its time is up; so much later it is taken for one that does not.
_GRACE_SECONDS = 10.0
# An sshd that takes a command and never says so holds nobody up for longer than this and the check's own time.
_STALL_SECONDS = 75.0
_LAST_CHARACTERS = 2000
_AT_ONCE = 32

# `timeout` ends all that a check has started, not only its shell; by KILL, as a child may ignore TERM. $1: seconds, $2: the
# command line.
_BOUNDED = 'if command -v timeout >/dev/null 2>&1; then exec timeout -s KILL "$1" sh -c "$2"; fi; exec sh -c "$2"'


class Verdict(StrEnum):
    """What came of a check."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_RUN = "not run"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check: `points` it is worth, which count if it passed; why it did not (`reason`), the check's own `hint`, and the last
    of what it said, in characters that are fit for a terminal; the `seconds` it took."""

    check: str
    machine: str
    verdict: Verdict
    points: int
    reason: str = ""
    hint: str = ""
    output: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """All checks of a lab in the order of its file; `points` is the sum of those that passed, `of` that of all."""

    checks: tuple[CheckResult, ...]
    points: int
    of: int


def run_checks(bench: Workbench, instance: Name, checks: Sequence[Check] | None = None) -> Report:
    """Ask the machines of an instance; `checks` left out: those of its record. Raises NotFound if there is no such instance; what
    keeps one check from being asked is that check's reason."""
    have = bench.observe(instance)
    record = known_record(instance, have, bench.kit.name)
    asked = record.lab.checks if checks is None else checks
    by_machine: dict[Name, list[Check]] = {}
    for check in asked:
        by_machine.setdefault(check.machine, []).append(check)
    found: dict[Name, CheckResult] = {}

    def ask(machine: Name) -> list[CheckResult]:
        return _asked(bench, machine, by_machine[machine], have, record)

    for results in side_by_side(ask, tuple(by_machine), bench.stop):
        found |= {Name(result.check): result for result in results}
    return report(found[check.name] for check in asked)


def side_by_side(
    ask: Callable[[Name], list[CheckResult]], machines: Sequence[Name], stop: threading.Event
) -> list[list[CheckResult]]:
    """What asking each machine comes to, in their order. A Ctrl-C sets `stop`, and goes on up when those who ask have noticed."""
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as threads:
        futures = [threads.submit(ask, machine) for machine in machines]
        try:
            while not all(future.done() for future in futures):
                # A bounded wait, because only between waits does Python see a Ctrl-C.
                wait(futures, timeout=0.5)
        except BaseException:
            # Here, as leaving the pool waits for all that it works on.
            stop.set()
            raise
    return [future.result() for future in futures]


def report(results: Iterable[CheckResult]) -> Report:
    """The results with their sums."""
    every = tuple(results)
    passed = sum(result.points for result in every if result.verdict is Verdict.PASSED)
    return Report(every, passed, sum(result.points for result in every))


def _asked(bench: Workbench, machine: Name, checks: Sequence[Check], have: Inventory, record: Record) -> list[CheckResult]:
    domain = have.domains.get(machine)
    if machine not in record.machines:
        return not_run(checks, f"{machine} is not in the lab as it was raised; pocketcloud lab up makes it")
    if domain is None or domain.state is not DomainState.RUNNING:
        return not_run(checks, f"{machine} is {domain.state if domain else 'off'}")
    try:
        login = login_of(bench.files(record.instance), record, machine)
    except PocketcloudError as error:
        return not_run(checks, error.message)
    if login is None:
        return not_run(checks, f"{machine} is on no network")
    return ask_machine(login, checks, bench.stop)


def ask_machine(
    login: Login,
    checks: Sequence[Check],
    stop: threading.Event,
    *,
    connect: float = _CONNECT_SECONDS,
    stall: float = _STALL_SECONDS,
) -> list[CheckResult]:
    """Ask one machine, one check after the other. It has `connect` seconds to let us in, and `stall` more than each check's own
    to carry it out; one that does not is asked no further. A check that breaks the connection costs only itself."""
    results: list[CheckResult] = []
    guest: Guest | None = None
    try:
        for check in checks:
            if stop.is_set():
                return results + not_run(checks[len(results) :], "interrupted")
            started = time.monotonic()
            try:
                guest = guest or Guest.connect(login, timeout=connect, stop=stop)
            except PocketcloudError as error:
                return results + not_run(checks[len(results) :], error.message)
            try:
                results.append(_one(guest, check, stop, stall))
            except WaitInterrupted:
                return results + not_run(checks[len(results) :], "interrupted")
            except PocketcloudError as error:
                results += not_run([check], error.message)
                guest.close()
                guest = None
                if time.monotonic() - started >= check.within + stall:
                    return results + not_run(checks[len(results) :], "the machine does not answer any more")
        return results
    finally:
        if guest is not None:
            guest.close()


def _one(guest: Guest, check: Check, stop: threading.Event, stall: float) -> CheckResult:
    seconds = math.ceil(check.within)
    command = shlex.join(["sh", "-c", _BOUNDED, "sh", str(seconds), check.run])
    said = bytearray()

    def keep(piece: bytes, _is_error: bool) -> None:
        said.extend(piece)
        del said[: -4 * _LAST_CHARACTERS]

    started = time.monotonic()
    watchdog = threading.Timer(check.within + stall, guest.close)
    watchdog.daemon = True
    watchdog.start()
    try:
        code = guest.run(command, timeout=seconds + _GRACE_SECONDS, on_output=keep, stop=stop).code
    except WaitInterrupted:
        raise
    except NotReady:
        code = None
    finally:
        watchdog.cancel()
    took = time.monotonic() - started
    reason = _reason(code, took, seconds)
    verdict = Verdict.FAILED if reason else Verdict.PASSED
    # A character may have been cut in two at the beginning of what was kept.
    shown = _shown(bytes(said).decode(errors="replace").strip(), lines=True)[-_LAST_CHARACTERS:]
    return CheckResult(
        check.name, check.machine, verdict, check.points, reason, check.hint if reason else "", shown, round(took, 3)
    )


def _reason(code: int | None, took: float, seconds: int) -> str:
    """Why a check did not pass; empty if it did. `timeout` says 137, or 124; a check may say so, too."""
    if code == 0:
        return ""
    if code is None or (code in (124, 137) and took >= seconds):
        return f"did not end within {seconds} s"
    return f"exit code {code}" if code >= 0 else "its shell was ended by a signal"


def not_run(checks: Iterable[Check], reason: str) -> list[CheckResult]:
    """These checks, none of which could be asked."""
    return [CheckResult(c.name, c.machine, Verdict.NOT_RUN, c.points, _shown(reason, lines=False)) for c in checks]


def _shown(text: str, *, lines: bool) -> str:
    """What a guest said, without what a terminal would obey."""
    kept: Callable[[str], bool] = (lambda c: c.isprintable() or c == "\n") if lines else str.isprintable
    return "".join(c if kept(c) else " " if c.isspace() else "?" for c in text)
