"""Labs that come to another computer with their kit: networks and machines are defined for this one, with the subnets that
are free here. Nothing is started but the networks; `lab up` does that, cold."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pocketcloud.apply.effects import effect_of
from pocketcloud.apply.graph import run_graph
from pocketcloud.errors import PocketcloudError
from pocketcloud.hypervisor import DomainState
from pocketcloud.lab.workbench import Workbench
from pocketcloud.model.inventory import Inventory
from pocketcloud.model.names import Name
from pocketcloud.model.record import NetworkRecord, Record
from pocketcloud.plan.drafting import Draft, Ground
from pocketcloud.plan.networks import addressed, settled_networks
from pocketcloud.plan.steps import CommitRecord, DefineMachine, EnsureNetwork, Plan
from pocketcloud.records import instances


@dataclass(frozen=True, slots=True)
class Arrival:
    """What became of one lab: `changes` are what is different here, `trouble` why it could not be defined (empty: it is)."""

    instance: Name
    changes: tuple[str, ...] = ()
    trouble: str = ""


def move_in(bench: Workbench) -> tuple[Arrival, ...]:
    """Define every lab of the kit on this host. A lab that cannot be is told, and keeps nobody else from it."""
    return tuple(_arrive(bench, instance) for instance in instances(bench.kit))


def _arrive(bench: Workbench, instance: Name) -> Arrival:
    try:
        with bench.lock(instance), bench.allocation():
            have = bench.observe(instance)
            if have.record is None:
                return Arrival(instance)
            plan = plan_arrival(instance, have.record, have, bench.ground(have, instance))
            outcome = run_graph(plan, effect_of(bench.world(instance, have.record)), lambda _: None, bench.stop)
            outcome.raise_failure(plan, f"pocketcloud lab up {instance}")
    except PocketcloudError as error:
        return Arrival(instance, trouble=error.message.splitlines()[0])
    archs = sorted({machine.arch for machine in have.record.machines.values()})
    reasons = tuple(reason for arch in archs if (reason := bench.shape(arch).reason))
    return Arrival(instance, (*plan.notes, *reasons))


def plan_arrival(instance: Name, record: Record, have: Inventory, ground: Ground) -> Plan:
    """The plan that defines a lab here. Subnets are kept while they are free here, whatever they were elsewhere; machines of a
    network that moves get the same host part in its new subnet. Raises Refused if no subnet is left."""
    draft = Draft(instance)
    moved = settled_networks(record.lab, instance, record, have, ground, draft, reconfigure=False)
    # In the order of the record, as what left the lab file comes last there.
    networks = {name: moved[name] for name in record.networks if name in moved}
    draft.notes = [_renumbered(name, record.networks[name], known, ground) for name, known in networks.items()]
    draft.notes = [note for note in draft.notes if note]
    settled = replace(record, networks=networks, machines=addressed(record.machines, networks))
    after: tuple[str, ...] = ()
    if settled != record:
        after = (draft.add(CommitRecord(id="commit", reason="subnets that are taken here", record=settled)),)
    nets = [
        draft.add(EnsureNetwork(id=f"network.{name}", reason="defined for this host", after=after, network=name))
        for name in sorted({n for m in settled.machines.values() for n in m.definition.networks} & set(networks))
    ]
    for name in settled.machines:
        domain = have.domains.get(name)
        if domain is None or domain.state is DomainState.OFF:
            last = (*after, *nets)
            draft.add(DefineMachine(id=f"define.{name}", reason="defined for this host", after=last, machine=name))
    return draft.plan(settled)


def _renumbered(name: Name, before: NetworkRecord, now: NetworkRecord, ground: Ground) -> str:
    if before.subnet == now.subnet or before.subnet is None:
        return ""
    holders = [subnet.holder for subnet in ground.taken if subnet.network.overlaps(before.subnet)]
    why = f"the old one is taken here by {', '.join(dict.fromkeys(holders))}" if holders else "the old one is taken here"
    return f"network {name} moves from {before.subnet} to {now.subnet}: {why}"
