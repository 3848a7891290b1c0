"""Checks: judgements over the host, each with its evidence and its remedy. They change nothing, and start guests only if asked.

A group is a module with a `judge` function that yields its checks; a new group is a new module and a line in `_GROUPS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from pocketcloud.check import (
    arm,
    clock,
    disks,
    elsewhere,
    firewall,
    kvm,
    lab,
    lvm,
    memory,
    nesting,
    networks,
    power,
    services,
    space,
    tools,
)
from pocketcloud.check import deep as guests
from pocketcloud.check.judgement import PATIENCE, Check, Surroundings
from pocketcloud.check.waiting import Late, within
from pocketcloud.hypervisor import Hypervisor
from pocketcloud.model.disk import BlockDevice, Measured
from pocketcloud.model.facts import Facts
from pocketcloud.model.judgement import State
from pocketcloud.model.kit import Kit
from pocketcloud.model.lab import Lab
from pocketcloud.model.profile import Acceleration, Profile
from pocketcloud.model.sizes import GIB, MIB
from pocketcloud.profiles import is_kind, memory_for_labs, memory_needed
from pocketcloud.system import Runner, which

__all__ = ["Check", "State", "failed", "run_checks", "summary"]

_ROOT = Path("/")
# Seconds for a check to come, when each of its own limits has failed. A disk that is measured twice needs the most.
_LONGEST = 150.0
# Characters of an evidence.
_LONGEST_TEXT = 1000
_GROUPS: tuple[Callable[[Surroundings], Iterator[Check]], ...] = (
    kvm.judge,
    arm.judge,
    nesting.judge,
    disks.judge,
    memory.judge,
    lab.judge,
    power.judge,
    clock.judge,
    space.judge,
    services.judge,
    tools.judge,
    lvm.judge,
    networks.judge,
    firewall.judge,
)
# Of a computer that is not at hand. The disks are those here: kits are carried.
_ELSEWHERE = (elsewhere.judge, disks.judge, elsewhere.left_out)


def run_checks(
    facts: Facts,
    *,
    kit_path: Path,
    run: Runner,
    hypervisor: Callable[[], Hypervisor],
    profile: Profile | None = None,
    root: Path = _ROOT,
    find: Callable[[str], Path | None] = which,
    devices: tuple[Path, ...] = (),
    measure: Callable[[BlockDevice], Measured | None] | None = None,
    lab: Lab | None = None,
    patience: float = PATIENCE,
    longest: float = _LONGEST,
    deep: bool = False,
    kit: Kit | None = None,
) -> tuple[Check, ...]:
    """All checks of this host, in the order of their groups.

    `kit_path` is the kit's folder, which need not exist yet, `kit` the attached kit there (None: none); `hypervisor` connects to
    libvirt (called once; its errors become judgements); `profile` is the one named by hand, else it is chosen. Files of the host
    are read under `root`. `devices` are the disks to be judged (none: all that could carry a kit), `measure` reads one for some
    seconds (None: none is measured). With a profile that is meant for another kind of computer than this, that one is judged.
    `lab` is one that is to fit. libvirt may take `patience` seconds to answer, and any check `longest`; what does not come
    becomes `unknown`. With `deep` guests are started on this computer, which takes seconds, some minutes at most.
    """
    here = Surroundings(facts, kit_path, run, hypervisor, root, find, profile, devices, measure, lab, patience, kit)
    groups = _GROUPS if profile is None or is_kind(profile.selects, facts) else _ELSEWHERE
    limits = [(judge, longest) for judge in groups] + ([(guests.judge, longest + guests.NESTED_SECONDS)] if deep else [])
    return tuple(check for judge, limit in limits for check in _finished(judge, here, limit))


def _finished(judge: Callable[[Surroundings], Iterator[Check]], here: Surroundings, longest: float) -> Iterator[Check]:
    """What a group finds; a fault in it is told, so is that it does not end, and leaves the other groups' answers."""
    found = iter(judge(here))
    try:
        while True:
            with within(longest):
                check = next(found, None)
            if check is None:
                return
            yield replace(check, evidence=_readable(check.evidence))
    except Late:
        group = judge.__module__.rpartition(".")[2]
        why = "Something on this host does not answer, and what these checks would have said is not known."
        evidence = f"the next of these checks did not come within {longest:.0f} s"
        yield Check(f"{group}-unfinished", group, State.UNKNOWN, evidence, why, ("dmesg | tail -n 20",))
    except Exception as error:  # noqa: BLE001 - hosts hold what nobody thought of, and one answer less is better than none
        group = judge.__module__.rpartition(".")[2]
        evidence = f"these checks ended with {type(error).__name__}: {error}"
        why = "What they would have said is not known; this is a fault of pocketcloud worth reporting."
        yield Check(f"{group}-unfinished", group, State.UNKNOWN, _readable(evidence), why)


def _readable(evidence: str) -> str:
    """Evidence as a line for people: firmware, files and tools put anything into names, control characters of terminals too."""
    shown = "".join(character if character.isprintable() else "?" for character in evidence)
    return shown if len(shown) <= _LONGEST_TEXT else f"{shown[:_LONGEST_TEXT]}..."


def summary(checks: Iterable[Check], facts: Facts, profile: Profile | None) -> str:
    """The whole in a sentence or two: what this computer can carry, or how much stands in the way."""
    found = tuple(checks)
    if profile is not None and not is_kind(profile.selects, facts):
        return elsewhere.summary(found, facts, profile)
    bad = [check.id for check in found if check.state is State.FAIL]
    warned = sum(check.state is State.WARN for check in found)
    if bad or profile is None:
        return f"{len(bad)} of {len(found)} checks failed ({', '.join(bad)}): labs cannot run here yet."
    states = {check.id: check.state for check in found}
    free = memory_for_labs(facts, profile, 0)
    small, large = (free // memory_needed(profile, (size,)) for size in (512 * MIB, 2 * GIB))
    speed = "on KVM" if profile.acceleration is Acceleration.KVM else "on emulation, ten to thirty times slower than with KVM"
    inside = "with" if states.get("nesting") is State.OK else "without"
    return (
        f"{facts.model or 'This computer'} can run labs {speed}, {inside} KVM inside their machines: up to {small} machines of"
        f" 512 MiB, or {large} of 2 GiB (profile {profile.profile}); {warned or 'no'} warning{'s' * (warned != 1)}."
    )


def failed(checks: Iterable[Check], *, strict: bool = False) -> bool:
    """Whether labs cannot run here, or with `strict` not as well as they could: the command then ends with exit code 3."""
    return any(check.state is State.FAIL or (strict and check.state is State.WARN) for check in checks)
