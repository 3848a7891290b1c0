"""The plans of `lab down` and `lab destroy`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from pocketcloud.errors import NotFound
from pocketcloud.model.inventory import DomainState, Inventory
from pocketcloud.model.names import Name
from pocketcloud.plan.drafting import Draft, known_record, leftovers
from pocketcloud.plan.steps import (
    CommitRecord,
    KillMachine,
    Plan,
    RemoveFiles,
    RemoveNetwork,
    RemoveVolumes,
    StopMachine,
    UndefineMachine,
)


def plan_down(instance: Name, machines: Sequence[str], have: Inventory, kit: str, *, within: float) -> Plan:
    """Stop machines (none named: all, and the lab's networks); each has `within` seconds to power off by itself."""
    record = known_record(instance, have, kit)
    for name in machines:
        if name not in record.machines and name not in have.domains:
            raise NotFound(f"lab {instance} has no machine {name}", hint=f"it has: {', '.join(record.machines)}")
    draft = Draft(instance)
    stops = []
    left, after = record.settled(machines or list(record.machines)), tuple[str, ...]()
    if left != record:
        # Whoever is switched off on purpose is not brought up by the state that was being taken.
        after = (draft.add(CommitRecord(id="commit", reason="they are to be off", record=left)),)
    for name in dict.fromkeys(machines) or sorted(have.domains):
        domain = have.domains.get(name)
        if domain and domain.active:
            kind = StopMachine if domain.state is DomainState.RUNNING else KillMachine
            step = kind(id=f"stop.{name}", reason="down", machine=name, after=after)
            stops.append(draft.add(replace(step, within=within) if isinstance(step, StopMachine) else step))
    if not machines:
        _draw_network_removals(draft, have.networks, "down", (*after, *stops))
    return draft.plan(left if after else None)


def _draw_network_removals(draft: Draft, networks: Iterable[str], reason: str, after: tuple[str, ...]) -> list[str]:
    return [draft.add(RemoveNetwork(id=f"network.{n}", reason=reason, after=after, network=n)) for n in sorted(networks)]


def plan_destroy(instance: Name, have: Inventory) -> Plan:
    """Remove all of an instance: what carries its mark, whatever its file or its record say; the record last."""
    draft = Draft(instance)
    gone = [draft.add(UndefineMachine(id=f"undefine.{name}", reason="destroy", machine=name)) for name in sorted(have.domains)]
    gone += _draw_network_removals(draft, have.networks, "destroy", tuple(gone))
    previous = tuple(gone)
    if volumes := leftovers(None, have):
        previous = (draft.add(RemoveVolumes(id="remove", reason="destroy", after=previous, names=tuple(volumes))),)
    draft.add(RemoveFiles(id="files", reason="destroy", after=previous))
    return draft.plan()
