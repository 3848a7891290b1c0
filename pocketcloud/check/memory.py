"""Memory that labs can have."""

from __future__ import annotations

from collections.abc import Iterator

from pocketcloud.check.judgement import Check, Surroundings
from pocketcloud.model.judgement import State
from pocketcloud.model.sizes import MIB, size_text
from pocketcloud.profiles import memory_for_labs, memory_needed

_WHY = "A lab that needs more than the host can give is refused before anything starts."
_SMALLEST = 256 * MIB
_DEMO = (512 * MIB, 512 * MIB)


def judge(here: Surroundings) -> Iterator[Check]:
    """Whether a small machine fits at all, and whether the two machines of the demo do."""
    facts, profile = here.facts, here.profile
    if profile is None:
        yield Check("memory", "memory", State.NOT_APPLICABLE, "no profile is meant for this host", _WHY)
        return
    if not facts.memory or not facts.memory_available:
        yield Check("memory", "memory", State.UNKNOWN, "/proc/meminfo does not say MemTotal and MemAvailable", _WHY)
        return
    # What running machines were promised is not counted here: their memory is mostly gone from MemAvailable already.
    free = memory_for_labs(facts, profile, 0)
    demo = memory_needed(profile, _DEMO)
    evidence = (
        f"{size_text(free)} for labs: {size_text(facts.memory_available)} available of {size_text(facts.memory)}, "
        f"{size_text(profile.host_memory)} kept for the host"
    )
    ask = ("End programs that use much memory, or the machines that run (pocketcloud lab down)",)
    if free < memory_needed(profile, (_SMALLEST,)):
        yield Check("memory", "memory", State.FAIL, f"{evidence}; too little for any machine", _WHY, ask)
    elif free < demo:
        short = f"{evidence}; the demo's two machines need {size_text(demo)}"
        yield Check("memory", "memory", State.WARN, short, _WHY, ask)
    else:
        yield Check("memory", "memory", State.OK, evidence, _WHY)
