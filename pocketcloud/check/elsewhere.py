"""Judging a computer that is not at hand, by what its profile says that all of its kind have. What only the computer itself can
tell (its KVM, its tools) is said to be unknown, and this host's own is left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pocketcloud.check import arm, lab
from pocketcloud.check.judgement import Check, Surroundings
from pocketcloud.check.nesting import WHY as NESTING_WHY
from pocketcloud.host.cores import named_cores
from pocketcloud.model.facts import Facts
from pocketcloud.model.judgement import State
from pocketcloud.model.lab import Lab
from pocketcloud.model.profile import Acceleration, Board, Profile
from pocketcloud.model.sizes import GIB, MIB, size_text
from pocketcloud.profiles import memory_for_labs, memory_needed

_KVM_WHY = "Without KVM guests run on emulation, ten to thirty times slower."
_MEMORY_WHY = "A lab that needs more than the host can give is refused before anything starts."
_SMALL, _LARGE = 512 * MIB, 2 * GIB
# Mbit/s from which a port is USB 3.
_USB3 = 5000


def judge(here: Surroundings) -> Iterator[Check]:
    """The computer that the profile named by hand is for."""
    profile = here.named
    if profile is None:
        return
    yield _architecture(here, profile)
    yield _kvm(profile)
    board = profile.board
    if board is not None:
        kinds = named_cores(board.cores)
        yield arm.cores(kinds, kinds[-1] if len(kinds) > 1 else None)
        yield arm.gic(board.gic, f"profile {profile.profile}", works=False)
        yield _nesting(board)
        yield _memory(here.facts, profile, board)
    else:
        evidence = f"computers that profile {profile.profile} is for have no memory in common"
        yield Check(
            "memory", "memory", State.UNKNOWN, evidence, _MEMORY_WHY, ("Name a board's profile: pocketcloud profile list",)
        )
    if here.lab is not None:
        yield _lab(here.lab, here.facts, profile)
    if board is not None:
        yield _usb(profile, board)


def left_out(_here: Surroundings) -> Iterator[Check]:
    """What of this host is not looked at."""
    evidence = "libvirt, tools, LVM's settings, subnets, sleep and free space are this computer's own: not looked at"
    why = "They say nothing of another computer."
    yield Check("not-judged", "elsewhere", State.NOT_APPLICABLE, evidence, why)


def _a(profile: Profile) -> str:
    return f"{'an' if profile.profile[0] in 'aeio' else 'a'} {profile.profile}"


def _with(facts: Facts, board: Board, memory: int) -> Facts:
    return replace(facts, memory=memory, memory_available=max(0, memory - board.system))


def _sizes(board: Board) -> str:
    sizes = [size_text(size) for size in board.memory]
    return f"{', '.join(sizes[:-1])} or {sizes[-1]}" if len(sizes) > 1 else sizes[0]


def description(profile: Profile) -> str:
    """What such a computer has, in a few words; empty where that is not fixed."""
    if (board := profile.board) is None:
        return ""
    named = ", ".join(f"{count} {name}" if len(board.cores) > 1 else name for name, count in board.cores.items())
    return f"{_sizes(board)}, {sum(board.cores.values())} cores ({named})"


def _architecture(here: Surroundings, profile: Profile) -> Check:
    why = "The profile decides how machines are shaped for this kind of host."
    own = f"{here.facts.machine}{f', {here.facts.model}' if here.facts.model else ''}"
    has = f": {about}" if (about := description(profile)) else ""
    evidence = f"judged as {_a(profile)}{has}; not as this computer ({own})"
    return Check("architecture", "kvm", State.OK, evidence, why)


def _kvm(profile: Profile) -> Check:
    evidence = f"whether KVM works on {_a(profile)} cannot be judged from here"
    return Check("kvm", "kvm", State.UNKNOWN, evidence, _KVM_WHY, ("Run pocketcloud check there",))


def _nesting(board: Board) -> Check:
    kinds = named_cores(board.cores)
    if never := [core for core in kinds if core.nests is False]:
        names = ", ".join(f"{core.name} (Armv{core.version})" for core in never)
        evidence = f"never: {names}; machines inside machines take FEAT_NV2, from Armv8.4 on"
        return Check("nesting", "nesting", State.NOT_APPLICABLE, evidence, NESTING_WHY)
    return Check(
        "nesting", "nesting", State.UNKNOWN, f"{', '.join(board.cores)}: not known", NESTING_WHY, ("Run pocketcloud check there",)
    )


def _memory(facts: Facts, profile: Profile, board: Board) -> Check:
    free = {size: memory_for_labs(_with(facts, board, size), profile, 0) for size in board.memory}
    evidence = (
        f"{'; '.join(f'of {size_text(size)} labs get {_machines(left, profile)}' for size, left in free.items())}"
        f" ({size_text(board.system)} taken by its system, {size_text(profile.host_memory)} kept for it, "
        f"{size_text(profile.machine_overhead)} for each machine's QEMU)"
    )
    state = State.OK if max(free.values()) >= memory_needed(profile, (_SMALL, _SMALL)) else State.WARN
    return Check("memory", "memory", state, evidence, _MEMORY_WHY)


def _machines(free: int, profile: Profile) -> str:
    small, large = (free // memory_needed(profile, (size,)) for size in (_SMALL, _LARGE))
    return f"{size_text(free)}: {small} machine{'s' * (small != 1)} of 512 MiB, or {large} of 2 GiB"


def _usb(profile: Profile, board: Board) -> Check:
    why = "The slowest hop between disk and computer sets the pace."
    if board.usb >= _USB3:
        return Check("usb-ports", "storage", State.OK, f"{_a(profile)} has USB 3 ({board.usb} Mbit/s)", why)
    evidence = f"{_a(profile)} has USB 2 only ({board.usb} Mbit/s): some 40 MB/s at best, whatever a disk does here"
    return Check("usb-ports", "storage", State.WARN, evidence, why, ("Keep to few machines at a time there",))


def _lab(wanted: Lab, facts: Facts, profile: Profile) -> Check:
    name, needs, board = f"lab:{wanted.lab}", lab.wanted(wanted, profile), profile.board
    too_much = lab.vcpus(wanted, profile)
    if board is None:
        state = State.FAIL if too_much else State.UNKNOWN
        evidence = "; ".join((f"{needs}; what such a computer has is not fixed", *too_much))
        return Check(name, "lab", state, evidence, lab.WHY, lab.remedy(memory=False) if too_much else ())
    enough = [size for size in board.memory if lab.fits(wanted, _with(facts, board, size), profile)]
    if not enough or too_much:
        most = memory_for_labs(_with(facts, board, board.memory[-1]), profile, 0)
        evidence = "; ".join((f"{needs}; {_a(profile)} can give labs {size_text(most)} at most", *too_much))
        return Check(name, "lab", State.FAIL, evidence, lab.WHY, lab.remedy(memory=not enough))
    least = f" with {size_text(enough[0])}" if len(board.memory) > 1 else ""
    more = " or more" if len(enough) > 1 else ""
    return Check(name, "lab", State.OK, f"{needs}; {_a(profile)}{least}{more} can give that", lab.WHY)


def summary(checks: Sequence[Check], facts: Facts, profile: Profile) -> str:
    """The whole in a sentence or two."""
    bad = [check.id for check in checks if check.state is State.FAIL]
    if bad:
        return f"No: {', '.join(bad)} would not do on {_a(profile)}."
    if (board := profile.board) is None:
        kind = f"Computers that profile {profile.profile} is for"
        return f"{kind} differ too much to be judged from here: run pocketcloud check there."
    most = board.memory[-1]
    free = memory_for_labs(_with(facts, board, most), profile, 0)
    speed = "on KVM, if its own pocketcloud check finds it usable" if profile.acceleration is Acceleration.KVM else "on emulation"
    return (
        f"{_a(profile).capitalize()} ({description(profile)}) would run labs {speed}, without KVM inside their machines;"
        f" of {size_text(most)} labs get {_machines(free, profile)}."
    )
