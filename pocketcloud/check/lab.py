"""Whether a lab that was named would fit: what it and its machines need against what the host can give, under the profile."""

from __future__ import annotations

from collections.abc import Iterator

from pocketcloud.check import nesting
from pocketcloud.check.judgement import Check, Surroundings
from pocketcloud.check.space import free_space
from pocketcloud.errors import PocketcloudError
from pocketcloud.host.network import has_way_out
from pocketcloud.model.facts import Facts
from pocketcloud.model.judgement import State
from pocketcloud.model.lab import Lab, Outside
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
    yield from _needs(here, here.lab, name)


def _needs(here: Surroundings, lab: Lab, name: str) -> Iterator[Check]:
    """What the lab says that it needs beside memory; nothing of what it does not mention."""
    if lab.needs.space:
        yield _space(here, lab, f"{name}:space")
    if lab.needs.outside in (Outside.CACHE, Outside.NETWORK):
        yield _outside(here, lab, f"{name}:outside")
    if lab.nesting:
        found = next(nesting.judge(here))
        why = "It runs machines inside its machines, with the host's help."
        state = State.OK if found.state is State.OK else State.FAIL
        ask = () if found.state is State.OK else (*found.remedy, "or `nested: emulate` in the lab file, which is slow")
        yield Check(f"{name}:nesting", "lab", state, found.evidence, why, ask)


def _space(here: Surroundings, lab: Lab, name: str) -> Check:
    why = "Its machines' disks grow to that while it is made and used."
    needed = lab.needs.space or 0
    try:
        free, place = free_space(here)
    except PocketcloudError as error:
        return Check(name, "lab", State.UNKNOWN, error.message.splitlines()[0], why)
    evidence = f"it needs {size_text(needed)} when it is raised; {size_text(free)} free in {place}"
    if needed > free:
        return Check(name, "lab", State.FAIL, evidence, why, ("Remove labs or bases that are not needed, or use a larger kit",))
    return Check(name, "lab", State.OK, evidence, why)


def _outside(here: Surroundings, lab: Lab, name: str) -> Check:
    why = "It installs or fetches something while it is made."
    if has_way_out(here.root):
        return Check(name, "lab", State.OK, "what it fetches comes by the default route", why)
    if lab.needs.outside is Outside.NETWORK:
        evidence = "no default route, and it fetches what the kit's cache does not keep"
        return Check(name, "lab", State.FAIL, evidence, why, ("Raise it where there is a network; after that it needs none",))
    ask = (f"Where there is a network: pocketcloud cache add --lab {lab.lab}, and pocketcloud cache sync",)
    return Check(name, "lab", State.WARN, "no default route: it is raised from what the kit's cache has", why, ask)


def lab_memory(lab: Lab, profile: Profile) -> int:
    """Bytes that all its machines take, or that it says it needs, QEMU's share counted."""
    said = max(0, lab.memory - sum(machine.memory for machine in lab.machines.values()))
    return said + memory_needed(profile, (machine.memory for machine in lab.machines.values()))


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
