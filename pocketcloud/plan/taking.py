"""A state whose taking was interrupted: the machines that ran then are brought up again, before it is taken, or told as taken."""

from __future__ import annotations

from dataclasses import replace

from pocketcloud.model.inventory import Inventory
from pocketcloud.model.names import Name
from pocketcloud.model.record import Record
from pocketcloud.plan.drafting import Ground, known_record
from pocketcloud.plan.steps import Plan
from pocketcloud.plan.up import plan_up


def plan_taking_again(instance: Name, have: Inventory, ground: Ground) -> Plan | None:
    """The plan that brings up what an interrupted snapshot has left off or frozen; None where none has. What was off before stays
    so. Raises as `plan_up`."""
    record = known_record(instance, have, ground.kit)
    names = [name for name in record.taking.machines if name in record.lab.machines] if record.taking else []
    if record.taking is None or not names:
        return None
    plan = plan_up(record.lab, instance, have, ground, only=names)
    note = f"taking the state {record.taking.state} was interrupted; what ran then is brought up first: {', '.join(names)}"
    return replace(plan, notes=(note, *plan.notes))


def was_taken(record: Record | None, state: str, *, protected: bool, ram: bool) -> bool:
    """Whether the snapshot that was interrupted is this one, and had been taken by then."""
    if record is None or record.taking is None or record.taking.state != state or Name(state) not in record.snapshots:
        return False
    taken = record.snapshots[Name(state)]
    return taken.protected is protected and (not ram or any(part.memory for part in taken.machines.values()))
