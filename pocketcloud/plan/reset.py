"""The plan of `lab reset`: back to `clean`, the new disks first and the old ones last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pocketcloud.errors import Refused
from pocketcloud.model.inventory import Clone, Inventory
from pocketcloud.model.names import Name
from pocketcloud.model.record import NetworkRecord, Record, SnapshotPart, Stage
from pocketcloud.plan.demands import check_demands
from pocketcloud.plan.drafting import (
    Draft,
    Fate,
    Ground,
    check_known,
    check_native,
    check_processor,
    check_room,
    draw_sweep,
    known_record,
    marks,
    next_generation,
    spare_of,
    volume_name,
)
from pocketcloud.plan.networks import addressed, draw_networks, settled_networks
from pocketcloud.plan.steps import (
    CloneVolumes,
    CommitRecord,
    DefineMachine,
    KillMachine,
    Plan,
    SetNvram,
    StartMachine,
    Step,
    WaitReady,
)


def plan_reset(instance: Name, machines: Sequence[str], have: Inventory, ground: Ground) -> Plan:
    """Bring machines (none named: all) back to `clean` with a cold boot: new disks first, then the record, then the start,
    the old disks last. Raises NotFound and Refused."""
    record = known_record(instance, have, ground.kit)
    check_known(machines, record)
    check_native(record.lab, record, ground)
    draft = Draft(instance)
    parts = record.clean.machines if record.clean else {}
    missing = [name for name in machines or record.machines if name not in parts]
    if missing and (machines or not parts):
        raise Refused(f"lab {instance} has no clean state of {', '.join(missing)} yet", hint=f"pocketcloud lab up {instance}")
    draft.notes += [f"{name} has no clean state yet and is left alone: pocketcloud lab up {instance}" for name in missing]
    chosen = [Name(name) for name in machines or record.machines if name in parts]
    return _draw_reset(draft, record, {name: parts[name] for name in chosen}, have, ground)


def _draw_reset(draft: Draft, record: Record, parts: Mapping[Name, SnapshotPart], have: Inventory, ground: Ground) -> Plan:
    generation = next_generation(record, have)
    clones: list[Clone] = []
    fates: list[Fate] = []
    for name, part in parts.items():
        lost = [volume for volume in part.disks.values() if volume not in have.volumes]
        if lost:
            raise Refused(
                f"the clean state of {name} is damaged: volume {lost[0]} is gone",
                hint=f"pocketcloud lab destroy {record.instance}, then up",
            )
        disks = {
            disk: spare_of(source, have) or volume_name(record.instance, name, disk, generation)
            for disk, source in part.disks.items()
        }
        clones += [Clone(part.disks[disk], volume, marks=marks(record.instance, name, disk)) for disk, volume in disks.items()]
        machine = replace(record.machines[name], disks=disks, stage=Stage.PROVISIONED)
        fates.append(Fate(name, machine, {}, fresh=False, restart="back to clean", reason="back to clean"))
    check_processor(fates, have, ground)
    check_demands(draft, fates, have, ground)
    check_room(fates, have, ground)
    # With the reserve: a reset soon frees more than it takes, and must work on a store that is full.
    made = draft.add(CloneVolumes(id="volumes", reason="back to clean", clones=tuple(clones), reserve=True))
    networks = _kept_networks(draft, record, have, ground)
    record = replace(
        record, networks=networks, generation=generation, machines={**record.machines, **{f.name: f.record for f in fates}}
    )
    record = replace(record, machines=addressed(record.machines, networks))
    commit = (
        draft.add(CommitRecord(id="commit", reason="the lab is its clean state from here on", after=(made,), record=record)),
    )
    nets = draw_networks(draft, record, have, commit, leases=False)
    ready = []
    for fate in fates:
        name, part = fate.name, parts[fate.name]
        up = tuple(nets[n] for n in fate.record.definition.networks if n in nets)
        chain: list[Step] = [KillMachine(id=f"stop.{name}", reason="back to clean", machine=name, after=commit)]
        if part.nvram:
            chain.append(SetNvram(id=f"nvram.{name}", reason="back to clean", machine=name, source=part.nvram))
        chain.append(DefineMachine(id=f"define.{name}", reason="its disks are new", machine=name))
        chain.append(StartMachine(id=f"start.{name}", reason="back to clean", machine=name, after=up))
        chain.append(WaitReady(id=f"ready.{name}", reason="reset ends when it is ready", machine=name))
        ready.append(draft.chain(*chain))
    draw_sweep(draft, record, have, ground, tuple(ready))
    return draft.plan(record)


def _kept_networks(draft: Draft, record: Record, have: Inventory, ground: Ground) -> dict[Name, NetworkRecord]:
    wanted = replace(
        record.lab,
        networks={
            n: replace(record.lab.networks[n], kind=k.kind) for n, k in record.networks.items() if n in record.lab.networks
        },
    )
    return settled_networks(wanted, record.instance, record, have, ground, draft, reconfigure=False)
