"""Memory that labs can have, what beside it counts and what does not, and processors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pocketcloud.check.fixes import Action, Command, NewFile, lines
from pocketcloud.check.judgement import Check, Surroundings
from pocketcloud.host.memory import read_commit_left, read_huge_pages, read_ksm, read_swaps
from pocketcloud.model.judgement import State
from pocketcloud.model.sizes import MIB, size_text
from pocketcloud.profiles import memory_for_labs, memory_needed

_GROUP = "memory"
_WHY = "A lab that needs more than the host can give is refused before anything starts."
_SMALLEST = 256 * MIB
_DEMO = (512 * MIB, 512 * MIB)
_KSM_SWITCH = "/sys/kernel/mm/ksm/run"
_KSM_FILE = Path("/etc/tmpfiles.d/pocketcloud-ksm.conf")


def judge(here: Surroundings) -> Iterator[Check]:
    """Whether a small machine fits and the demo's two do, swap, KSM, processors."""
    memory = _memory(here)
    yield memory
    yield _swap(here)
    yield _ksm(here, tight=memory.state in (State.WARN, State.FAIL))
    yield _cpus(here)


def _memory(here: Surroundings) -> Check:
    facts, profile = here.facts, here.profile
    if profile is None:
        return Check("memory", _GROUP, State.NOT_APPLICABLE, "no profile is meant for this host", _WHY)
    if not facts.memory or not facts.memory_available:
        return Check("memory", _GROUP, State.UNKNOWN, "/proc/meminfo does not say MemTotal and MemAvailable", _WHY)
    # What running machines were promised is not counted here: their memory is mostly gone from MemAvailable already.
    free = memory_for_labs(facts, profile, 0)
    demo = memory_needed(profile, _DEMO)
    kept = f"{size_text(profile.host_memory)} kept for the host"
    huge, left = read_huge_pages(here.root), read_commit_left(here.root)
    if huge:
        kept += f", {size_text(huge)} set aside as huge pages, which labs do not use"
    ask: tuple[str, ...] = ("End programs that use much memory, or the machines that run (pocketcloud lab down)",)
    if left is not None and left < free:
        free, kept = left, f"{kept}; the kernel promises no more than that (vm.overcommit_memory is 2)"
        ask = (*ask, "sysctl -w vm.overcommit_memory=0")
    available = f"{size_text(facts.memory_available)} available of {size_text(facts.memory)}"
    evidence = f"{size_text(free)} for labs: {available}, {kept}"
    if free < memory_needed(profile, (_SMALLEST,)):
        return Check("memory", _GROUP, State.FAIL, f"{evidence}; too little for any machine", _WHY, ask)
    if free < demo:
        short = f"{evidence}; the demo's two machines need {size_text(demo)}"
        return Check("memory", _GROUP, State.WARN, short, _WHY, ask)
    return Check("memory", _GROUP, State.OK, evidence, _WHY)


def _swap(here: Surroundings) -> Check:
    why = "A machine whose memory is swapped out waits for the disk at each step; so swap is no memory for labs."
    swaps = read_swaps(here.root)
    if not swaps:
        return Check("swap", _GROUP, State.OK, "none", why)
    told = [
        f"{size_text(swap.size)} on {swap.name}" + (f" (compressed memory, {size_text(swap.taken)} taken)" if swap.zram else "")
        for swap in swaps
    ]
    evidence = f"{', '.join(told)}: not counted for labs"
    if any(swap.zram for swap in swaps):
        evidence += ", and zram is a part of the memory, not an addition to it"
    used = sum(swap.used for swap in swaps if not swap.zram)
    if here.facts.memory and used > here.facts.memory // 4:
        evidence += f"; {size_text(used)} of memory is swapped out to disks now"
        return Check("swap", _GROUP, State.WARN, evidence, why, ("End programs that use much memory",))
    return Check("swap", _GROUP, State.OK, evidence, why)


def _ksm(here: Surroundings, *, tight: bool) -> Check:
    """QEMU offers guests' memory for it (-machine mem-merge, on by default). It takes processor time, and lets machines guess
    by timing what others have in memory: hence only where memory is short, and for labs, whose machines belong together."""
    why = "Machines of one base have pages in common: KSM keeps each of them once, for some processor time."
    ksm = read_ksm(here.root)
    if ksm is None:
        return Check("ksm", _GROUP, State.NOT_APPLICABLE, "this kernel has no KSM", why)
    if ksm.on:
        return Check("ksm", _GROUP, State.OK, f"on; it saves {size_text(ksm.saves)} now", why)
    if ksm.tuned:
        return Check("ksm", _GROUP, State.OK, "off now; ksmtuned switches it on when memory gets short", why)
    if not tight:
        return Check("ksm", _GROUP, State.OK, f"off; for more machines than fit: echo 1 > {_KSM_SWITCH}", why)
    fix = _switch_on(here)
    return Check("ksm", _GROUP, State.WARN, "off, and memory is short", why, lines(fix), fix)


def _switch_on(here: Surroundings) -> tuple[Action, ...]:
    if not here.facts.systemd:
        return (Command(("sh", "-c", f"echo 1 > {_KSM_SWITCH}")),)
    undo = f"echo 0 > {_KSM_SWITCH}"
    file = NewFile(_KSM_FILE, (f"w {_KSM_SWITCH} - - - - 1",), "KSM is on after each start", undo, folder=True)
    return (file, Command(("systemd-tmpfiles", "--create", str(_KSM_FILE))))


def _cpus(here: Surroundings) -> Check:
    why = "Machines that start together share the processors; with one, everything waits for everything."
    number = here.facts.cpus
    if number == 1:
        remedy = ("Start machines one after the other, or use another computer",)
        return Check("cpus", _GROUP, State.WARN, "one processor is online", why, remedy)
    return Check("cpus", _GROUP, State.OK, f"{number} processors are online", why)
