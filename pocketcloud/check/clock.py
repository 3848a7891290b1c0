"""The clock, which machines take over from the host."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

from pocketcloud.check.fixes import Command, lines
from pocketcloud.check.judgement import Check, Surroundings
from pocketcloud.host.clock import Clock, read_clock
from pocketcloud.model.judgement import State

_GROUP = "clock"
_WHY = "Machines start with the host's time: with a wrong one certificates and package lists are not valid yet, or no more."
# Files may come from a computer whose clock is a little ahead.
_DOUBT = 3600.0


def judge(here: Surroundings) -> Iterator[Check]:
    """Whether the clock can be right, and is kept so."""
    can_set = here.find("timedatectl") is not None
    yield judged(read_clock(here.root), time.time(), virtualised=bool(here.facts.virtualised), can_set=can_set)


def judged(clock: Clock, now: float, *, virtualised: bool, can_set: bool) -> Check:
    """The judgement over a clock that says `now` (seconds since 1970)."""
    keepers = " and ".join(clock.keepers)
    local = "; its hardware clock runs in local time, as another system on this computer may want" if clock.local else ""
    if now < clock.newest - _DOUBT:
        evidence = f"it is {_date(now)} by this clock, and {clock.newest_name} was written on {_date(clock.newest)}{local}"
        return Check("clock", _GROUP, State.WARN, evidence, _WHY, ("date -s 'YYYY-MM-DD HH:MM'", "hwclock --systohc"))
    if clock.synchronised:
        return Check("clock", _GROUP, State.OK, f"synchronised{f' by {keepers}' if keepers else ''}{local}", _WHY)
    if keepers:
        evidence = f"not synchronised at present; {keepers} will see to that with a network{local}"
        return Check("clock", _GROUP, State.OK, evidence, _WHY)
    if virtualised:
        evidence = f"nothing sets it in here; this computer is a guest, and its hypervisor gave it the time{local}"
        return Check("clock", _GROUP, State.OK, evidence, _WHY)
    evidence = f"it runs by itself, and nothing is set up to set it{local}"
    if clock.installed and can_set:
        fix = (Command(("timedatectl", "set-ntp", "true")),)
        return Check("clock", _GROUP, State.WARN, evidence, _WHY, lines(fix), fix)
    return Check("clock", _GROUP, State.WARN, evidence, _WHY, ("Install chrony or systemd-timesyncd",))


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()
