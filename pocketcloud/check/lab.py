"""Whether a lab that was named would fit: its machines' memory and processors against the host's, under the profile."""

from __future__ import annotations

from collections.abc import Iterator

from pocketcloud.check.judgement import Check, Surroundings
from pocketcloud.model.facts import Facts
from pocketcloud.model.judgement import State
from pocketcloud.model.lab import Lab
from pocketcloud.model.profile import Profile
from pocketcloud.model.sizes import size_text
from pocketcloud.profiles import memory_for_labs, memory_needed

WHY = "A lab that needs more than the host can give is refused before anything starts."


def judge(here: Surroundings) -> Iterator[Check]:
    """Only where a lab was named."""
    if here.lab is None:
        return
    name = f"lab:{here.lab.lab}"
    if here.profile is None or not here.facts.memory_available:
        yield Check(name, "lab", State.UNKNOWN, "what this computer can give labs is not known", WHY)
        return
    too_much = vcpus(here.lab, here.profile)
    needed, free = lab_memory(here.lab, here.profile), memory_for_labs(here.facts, here.profile, 0)
    evidence = f"{wanted(here.lab, here.profile)}; this computer can give labs {size_text(free)}"
    if too_much or needed > free:
        yield Check(name, "lab", State.FAIL, "; ".join((evidence, *too_much)), WHY, remedy(memory=needed > free))
    else:
        yield Check(name, "lab", State.OK, evidence, WHY)


def lab_memory(lab: Lab, profile: Profile) -> int:
    """Bytes that all its machines take, QEMU's share counted."""
    return memory_needed(profile, (machine.memory for machine in lab.machines.values()))


def fits(lab: Lab, facts: Facts, profile: Profile) -> bool:
    """Whether the memory of its machines is there."""
    return lab_memory(lab, profile) <= memory_for_labs(facts, profile, 0)


def wanted(lab: Lab, profile: Profile) -> str:
    """What it needs, in words."""
    count = len(lab.machines)
    return (
        f"its {count} machine{'s need' if count != 1 else ' needs'} {size_text(lab_memory(lab, profile))}, QEMU's share counted"
    )


def vcpus(lab: Lab, profile: Profile) -> tuple[str, ...]:
    """The machines that ask for more processors than the profile allows, in words."""
    return tuple(
        f"{name}: {machine.vcpus} vcpus; profile {profile.profile} allows {profile.max_vcpus}"
        for name, machine in lab.machines.items()
        if machine.vcpus > profile.max_vcpus
    )


def remedy(*, memory: bool) -> tuple[str, ...]:
    """What to do about one that does not fit."""
    return ("Give its machines less memory, or take some out",) if memory else ("Give its machines fewer vcpus",)
