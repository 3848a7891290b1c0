"""Plans of many instances as one: what all of them take together, and what is made for all before any of them is started."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from pocketcloud.errors import NoSpace
from pocketcloud.model.facts import Subnet
from pocketcloud.model.inventory import Clone, Inventory
from pocketcloud.model.names import Name
from pocketcloud.model.profile import Profile
from pocketcloud.model.sizes import size_text
from pocketcloud.plan.drafting import ROOM_PER_MACHINE, Ground
from pocketcloud.plan.steps import (
    CloneVolumes,
    CommitRecord,
    CreateVolume,
    DefineMachine,
    Plan,
    SetNvram,
    StartMachine,
    Step,
    TakeSnapshot,
    WakeMachine,
    WriteSeed,
)

# Nothing of it runs, or is seen by anybody else's guests: it can be done for all copies at once.
_MAKING = (CloneVolumes, CreateVolume, WriteSeed, CommitRecord, SetNvram, DefineMachine)
VOLUMES = "volumes"
"""The id of the step that makes the clones of all copies."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What an instance takes in addition when its plan is carried out: bytes of the host's memory, QEMU's own share counted, and
    of the kit's space; `vcpus` is how many virtual processors are started."""

    memory: int
    space: int
    vcpus: int


def copy_names(prefix: str, count: int) -> tuple[Name, ...]:
    """The names of `count` copies: PREFIX-1 and so on. Raises ValueError where one would be no name."""
    return tuple(Name.parse(f"{prefix}-{number}") for number in range(1, count + 1))


def needs(plan: Plan, have: Inventory, profile: Profile) -> Needs:
    """What carrying out the plan takes in addition to what there is."""
    record = plan.record or have.record
    machines = record.machines if record else {}
    memory = vcpus = starting = saved = 0
    for name in dict.fromkeys(step.machine for step in plan.steps if isinstance(step, (StartMachine, WakeMachine))):
        if (known := machines.get(Name(name))) is not None:
            domain = have.domains.get(name)
            there = domain.memory + profile.machine_overhead if domain is not None and domain.active else 0
            memory += max(0, known.definition.memory + profile.machine_overhead - there)
            starting += not there
            vcpus += known.definition.vcpus
    for step in plan.steps:
        if isinstance(step, TakeSnapshot):
            saved += sum(machines[Name(name)].definition.memory for name in step.machines)
    return Needs(memory, saved + ROOM_PER_MACHINE * starting, vcpus)


def check_together(needed: Mapping[str, Needs], ground: Ground) -> None:
    """Refuse what the host cannot carry all at once, with the figures and how many it can. Each by itself has been found to
    fit."""
    memory, space = [each.memory for each in needed.values()], [each.space for each in needed.values()]
    profile, problems, fits = ground.profile, [], []
    if sum(memory) > ground.memory:
        fits.append(_fitting(memory, ground.memory))
        problems.append(
            f"memory: {_needed_by(memory)} (with {size_text(profile.machine_overhead)} a machine for QEMU); this host can give"
            f" labs {size_text(ground.memory)} (profile {profile.profile} keeps {size_text(profile.host_memory)} for the host):"
            f" {fits[-1]} of {len(memory)} would fit"
        )
    if sum(space) > ground.space:
        fits.append(_fitting(space, ground.space))
        problems.append(
            f"space: {_needed_by(space)}, at the least; kit {ground.kit} has {size_text(ground.space)} free:"
            f" {fits[-1]} of {len(space)} would fit"
        )
    if problems:
        raise NoSpace("\n".join(problems), hint=f"--count {min(fits)}; or stop another lab (pocketcloud lab list)")


def _needed_by(amounts: Sequence[int]) -> str:
    """Who needs how much, in words."""
    some = [amount for amount in amounts if amount]
    yet = " yet to be started" if len(some) < len(amounts) else ""
    each = f", {size_text(some[0])} each" if len(set(some)) == 1 and len(some) > 1 else ""
    if len(some) == 1:
        return f"the copy{yet} needs {size_text(some[0])}"
    return f"the {len(some)} copies{yet} need {size_text(sum(some))}{each}"


def _fitting(amounts: Iterable[int], room: int) -> int:
    """How many of the amounts, in their order, go into `room`."""
    return sum(total <= room for total in accumulate(amounts))


def chosen_subnets(plan: Plan) -> tuple[Subnet, ...]:
    """The subnets that an instance has once the plan is carried out, which the plans after it must leave to it."""
    networks = plan.record.networks if plan.record else {}
    return tuple(
        Subnet(known.range, f"network {name} of lab {plan.instance}") for name, known in networks.items() if known.subnet
    )


def labelled(step_id: str, instance: str) -> str:
    """The id of an instance's step among those of others. What kind of step it is stays in front."""
    return f"{step_id}@{instance}"


def making(plan: Plan) -> tuple[Step, ...]:
    """The steps that make what the plan's machines consist of, none of which comes after one that starts something, or that stops
    it after the commit."""
    found: dict[str, Step] = {}
    # What is stopped before its record is replaced has to be, or the subnets in that would be nobody's for too long.
    first = {before for step in plan.steps if isinstance(step, CommitRecord) for before in step.after}
    for step in plan.steps:
        if (isinstance(step, _MAKING) or step.id in first) and all(before in found for before in step.after):
            found[step.id] = step
    return tuple(found.values())


def made_together(plans: Sequence[Plan], subject: str) -> tuple[Plan, dict[str, tuple[str, Step]]]:
    """One plan that makes what all the plans' machines consist of, the clones in one step; and for each of its steps but that one
    whose it is: the instance, and the step as its own plan has it."""
    steps: list[Step] = []
    owners: dict[str, tuple[str, Step]] = {}
    clones: list[Clone] = []
    for plan in plans:
        mine = making(plan)
        shared = {step.id for step in mine if isinstance(step, CloneVolumes)}
        for step in mine:
            if isinstance(step, CloneVolumes):
                clones += step.clones
                continue
            after = tuple(VOLUMES if before in shared else labelled(before, plan.instance) for before in step.after)
            steps.append(replace(step, id=labelled(step.id, plan.instance), after=after))
            owners[steps[-1].id] = (plan.instance, step)
    if clones:
        steps.insert(0, CloneVolumes(id=VOLUMES, reason="all copies at once", clones=tuple(clones)))
    return Plan(subject, tuple(steps)), owners
