"""What holds for every plan and every lab that is up, said once for the tests of the plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pocketcloud.model.inventory import Clone, DomainState, Inventory
from pocketcloud.model.lab import Lab
from pocketcloud.model.names import Name
from pocketcloud.model.record import Record, Stage
from pocketcloud.plan.steps import (
    CloneVolumes,
    CommitRecord,
    CreateVolume,
    DefineMachine,
    EnsureNetwork,
    KillMachine,
    Plan,
    PrepareVolumes,
    Provision,
    RemoveFiles,
    RemoveVolumes,
    SettleFence,
    StartMachine,
    Step,
    StopMachine,
    TakeSnapshot,
    WaitReady,
    WakeMachine,
    WriteSeed,
)
from pocketcloud.plan.up import plan_up
from tests.simulation import INSTANCE, Host, base, ground, lab, machine

LAB = lab(("front",), a=machine("front", provision="touch x", disks=["data"]), b=machine("front"))
"""Two machines on one network, one of them with a disk more and something to provision."""


def ids(plan: Plan, *kinds: type[Step]) -> list[str]:
    """The ids of the plan's steps, of these kinds or all."""
    return [step.id for step in plan.steps if not kinds or isinstance(step, kinds)]


def cloned(plan: Plan) -> list[Clone]:
    """All clones that the plan makes."""
    return [clone for step in plan.steps if isinstance(step, CloneVolumes) for clone in step.clones]


def removed(plan: Plan) -> list[str]:
    """All volumes that the plan removes."""
    return [name for step in plan.steps if isinstance(step, RemoveVolumes) for name in step.names]


def before(plan: Plan) -> dict[str, set[str]]:
    """For each step all that must be done before it, directly or not. Fails unless every `after` stands earlier in the plan."""
    found: dict[str, set[str]] = {}
    for step in plan.steps:
        assert step.id not in found, f"two steps are called {step.id}"
        assert step.reason, f"{step.id} has no reason"
        missing = set(step.after) - set(found)
        assert not missing, f"{step.id} comes after {missing}, which do not stand before it"
        found[step.id] = set(step.after).union(*(found[other] for other in step.after))
    return found


def _taken_after_removal(plan: Plan, have: Inventory, earlier: dict[str, set[str]]) -> set[str]:
    """The snapshots that have to wait for what an interrupted one left: nothing is cloned from the same disks before."""
    live = {volume for machine in have.record.machines.values() for volume in machine.disks.values()} if have.record else set()
    found = set()
    for step in plan.steps:
        if isinstance(step, RemoveVolumes) and (waits := [t for t in ids(plan, TakeSnapshot) if step.id in earlier[t]]):
            assert {have.volumes[name].parent for name in step.names} <= live, f"{step.id} removes more than loose clones"
            found |= {*waits}
    return found


def check_plan(plan: Plan, have: Inventory) -> None:
    """Assert the order that safety rests on: new before old, one commit point, removals last and only of what nobody needs."""
    earlier = before(plan)
    made = set(ids(plan, CloneVolumes, CreateVolume, WriteSeed))
    commits = ids(plan, CommitRecord)
    assert len(commits) <= 1
    if made:
        assert commits, "something is made and no record says so"
    for commit in commits:
        assert made <= earlier[commit], "the record is committed before all that it names is made"
        for step in plan.steps:
            if (
                isinstance(step, (StopMachine, KillMachine))
                and step.id in earlier[commit]
                and keeps_disks(plan, have, step.machine)
            ):
                # What is started as something else on the same disks is off before the record says so.
                assert have.domains[step.machine].active
            elif isinstance(step, KillMachine) and step.id in set().union(*(earlier[made_first] for made_first in made)):
                # What a state is made from may be open, as after an interrupted reset: then it is closed first.
                assert have.domains[step.machine].active
            elif isinstance(
                step,
                (
                    EnsureNetwork,
                    SettleFence,
                    DefineMachine,
                    StartMachine,
                    WakeMachine,
                    StopMachine,
                    KillMachine,
                    Provision,
                    WaitReady,
                ),
            ):
                assert commit in earlier[step.id], f"{step.id} may come before the commit"
    if plan.record:
        for step in plan.steps:
            if isinstance(step, (StartMachine, WakeMachine, WaitReady)):
                attached = plan.record.machines[Name(step.machine)].definition.networks
                networks = {f"{kind}.{name}" for name in attached for kind in ("network", "fence")}
                assert networks & set(ids(plan, EnsureNetwork, SettleFence)) <= earlier[step.id], (
                    f"{step.id} may come before its networks"
                )
    up = set(ids(plan, WaitReady, TakeSnapshot))
    up -= _taken_after_removal(plan, have, earlier)
    for removal in ids(plan, RemoveVolumes, PrepareVolumes):
        assert up <= earlier[removal], f"{removal} may come before the lab is usable again"
    gone = set(removed(plan))
    record = plan.record or (None if ids(plan, RemoveFiles) else have.record)
    needed = needed_volumes(record, have, plan)
    assert not gone & needed, f"{gone & needed} would be removed and are needed"
    assert all(name.startswith(f"lab.{INSTANCE}.") for name in gone)


def keeps_disks(plan: Plan, have: Inventory, name: str) -> bool:
    """Whether the plan leaves a machine its disks."""
    assert plan.record is not None
    assert have.record is not None
    return plan.record.machines[Name(name)].disks == have.record.machines[Name(name)].disks


def needed_volumes(record: Record | None, have: Inventory, plan: Plan | None = None) -> set[str]:
    """The volumes that a record names and all that those stand on, or will stand on once the plan has made its own."""
    parents = {name: volume.parent for name, volume in have.volumes.items()}
    if plan:
        parents |= {clone.name: clone.source for clone in cloned(plan)}
    needed: set[str] = set()
    for name in record.named_volumes() if record else ():
        current: str | None = name
        while current and current not in needed:
            needed.add(current)
            current = parents.get(current)
    return needed


def check_up(host: Host, lab: Lab) -> None:
    """Assert that the lab is up as its file says, with `clean` taken and nothing left over, and that `up` finds nothing to do."""
    have, record = host.inventory(), host.record
    assert record is not None
    assert record.lab == lab
    assert set(record.machines) == set(lab.machines) == set(have.domains)
    assert record.clean is not None
    assert set(record.clean.machines) == set(lab.machines)
    for name, made in record.machines.items():
        _check_machine(host, have, name, lab)
        assert made.definition == lab.machines[name]
        assert set(made.addresses) == {name for name in made.definition.networks if not record.networks[name].bridged}
    for network, known in record.networks.items():
        addresses = [machine.addresses[network] for machine in record.machines.values() if network in machine.addresses]
        assert len(addresses) == len(set(addresses))
        assert known.bridged or all(address in known.range for address in addresses)
    assert set(record.networks) == set(lab.networks)
    assert set(have.networks) <= set(record.networks)
    ours = {name for name in have.volumes if name.startswith("lab.")}
    spares = {name for name in ours if have.volumes[name].spare}
    assert ours - spares <= needed_volumes(record, have), "leftovers"
    clean = {volume for part in record.clean.machines.values() for volume in part.disks.values()}
    assert all(have.volumes[name].parent in clean for name in spares), "spares of nothing"
    again = plan_up(lab, INSTANCE, have, ground())
    assert ids(again) == ids(again, EnsureNetwork, WaitReady), "up would do something to a lab that is up"


def _check_machine(host: Host, have: Inventory, name: Name, lab: Lab) -> None:
    assert host.record is not None
    known, domain = host.record.machines[name], have.domains[name]
    assert domain.state is DomainState.RUNNING
    assert known.stage is Stage.PROVISIONED
    assert {have.volumes[volume].path for volume in known.disks.values()} == set(domain.disks.values())
    assert not any(have.volumes[volume].sealed for volume in known.disks.values())
    clean = host.record.clean
    assert clean is not None
    assert all(have.volumes[volume].sealed for volume in clean.machines[name].disks.values())
    kept = host.volumes[clean.machines[name].disks["root"]].content
    assert kept[0].startswith(f"{lab.machines[name].base}.")
    assert kept.count("provisioned") == lab.machines[name].to_provision, "provisioned exactly once"


def raise_lab(lab: Lab, host: Host, *, reconfigure: bool = False, prune: bool = False) -> Plan:
    """Plan `up`, check the plan, apply it whole, check the lab."""
    plan = plan_up(lab, INSTANCE, host.inventory(), ground(), reconfigure=reconfigure, prune=prune)
    check_plan(plan, host.inventory())
    host.apply(plan)
    return plan


def texts(lines: Sequence[str]) -> str:
    """Notes as one text to look into."""
    return "\n".join(lines)


def fresh_host() -> Host:
    """A host that has the bases, and no lab."""
    return Host.with_bases(base("tiny"), base("other"))


def up_host(wanted: Lab = LAB) -> Host:
    """A host on which that lab is up."""
    host = fresh_host()
    raise_lab(wanted, host)
    check_up(host, wanted)
    return host


def planned(host: Host, wanted: Lab = LAB, *taken: str, reconfigure: bool = False, prune: bool = False) -> Plan:
    """The checked plan of `up` there."""
    have = host.inventory()
    made = plan_up(wanted, INSTANCE, have, ground(*taken), reconfigure=reconfigure, prune=prune)
    check_plan(made, have)
    return made


def edited(**changes: object) -> Lab:
    """LAB with its machine `a` changed."""
    return replace(LAB, machines={**LAB.machines, Name("a"): replace(LAB.machines[Name("a")], **changes)})  # type: ignore[arg-type] # field names of Machine
