"""Protected machines: whose disks a plan would take, and who is left alone without a word about them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from pocketcloud.errors import Refused
from pocketcloud.model.inventory import Inventory
from pocketcloud.plan.steps import Plan, RemoveFiles

Allow = Callable[[Sequence[str]], bool]
"""Whether what a command does to others may be done to these protected machines, too."""


def never(_names: Sequence[str]) -> bool:
    """The answer of nobody."""
    return False


def guarded(plan: Plan, have: Inventory) -> tuple[str, ...]:
    """The protected machines whose disks the plan replaces or removes. Those that are protected by what the plan makes of them
    count, too: taking the protection away and using that are two steps."""
    if have.record is None:
        return ()
    before = have.record.machines
    if any(isinstance(step, RemoveFiles) and not step.machine for step in plan.steps):
        return tuple(name for name, machine in before.items() if machine.definition.protected)
    after = plan.record.machines if plan.record else before
    found = []
    for name, machine in before.items():
        then = after.get(name)
        taken = then is None or name in plan.loses or (then.restoring is not None and then.disks != machine.disks)
        if taken and (machine.definition.protected or (then is not None and then.definition.protected)):
            found.append(str(name))
    return tuple(found)


def left_alone(names: Collection[str]) -> list[str]:
    """The notes on protected machines that a plan leaves out."""
    return [f"{name} is protected and left as it is (--protected brings it back, too)" for name in names]


def refused(instance: str, names: Sequence[str], done: str) -> Refused:
    """The error for a command that cannot leave them out; `done` is what would become of them."""
    are = "is" if len(names) == 1 else "are"
    return Refused(
        f"lab {instance}: {', '.join(names)} {are} protected, and would be {done}; nothing was done",
        hint="--protected, if that is meant (-y does not answer for protected machines)",
    )
