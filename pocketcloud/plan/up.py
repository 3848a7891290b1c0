"""The plan of `lab up`: make what is missing, start what is off, wait until ready, take `clean` of what has none."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from pocketcloud.errors import NotFound
from pocketcloud.model.base import Base
from pocketcloud.model.data_disk import Disk
from pocketcloud.model.inventory import Clone, Domain, DomainState, Inventory
from pocketcloud.model.lab import NATIVE, Lab, Machine
from pocketcloud.model.names import Name, mac_address
from pocketcloud.model.record import RECORD_SCHEMA, ROOT_DISK, MachineRecord, NetworkRecord, Record, Stage
from pocketcloud.model.sizes import Size
from pocketcloud.plan.demands import check_demands
from pocketcloud.plan.drafting import (
    Draft,
    Fate,
    Ground,
    check_known,
    check_native,
    check_processor,
    check_room,
    draw_end_restoring,
    draw_sweep,
    known_record,
    marks,
    next_generation,
    volume_name,
)
from pocketcloud.plan.needs import check_outside, lacking
from pocketcloud.plan.networks import addressed, draw_networks, settled_networks
from pocketcloud.plan.states import check_lost_states, without_expired, without_machines
from pocketcloud.plan.steps import (
    CloneVolumes,
    CommitRecord,
    CreateVolume,
    DefineMachine,
    KillMachine,
    Plan,
    Provision,
    RemoveFiles,
    ResumeMachine,
    ServeCache,
    SetNvram,
    StartMachine,
    Step,
    StopMachine,
    UndefineMachine,
    WaitReady,
    WriteSeed,
)
from pocketcloud.plan.waking import draw_clean, kept_with_clean

# A change of these is made by a restart; of anything else, by making the machine anew.
_RESTARTS = frozenset({"memory", "vcpus", "nested"})
_JUST_NOTED = frozenset({"ready", "protected"})


def plan_up(
    lab: Lab,
    instance: Name,
    have: Inventory,
    ground: Ground,
    *,
    reconfigure: bool = False,
    prune: bool = False,
    onto_new: Collection[Name] = (),
    only: Collection[Name] | None = None,
) -> Plan:
    """Bring the lab up: make what is missing, start what is off, wait until all is ready, take `clean` of what has none.

    Changes of an edited file are made only with `reconfigure`, what left the file goes only with `prune`; both are named in
    the notes otherwise. Machines of `onto_new` are made anew where the kit has a newer base. With `only` the
    others are left as they are. Raises NotFound, Refused or NoSpace,
    with everything that is wrong, before anything is planned.
    """
    draft = Draft(instance)
    record = have.record or Record(RECORD_SCHEMA, instance, lab, ground.now, ground.made_with, 0)
    generation = next_generation(record, have)
    _check_bases(lab, record, have, ground)
    if not reconfigure:
        check_native(lab, record, ground)
    networks = settled_networks(lab, instance, record, have, ground, draft, reconfigure=reconfigure, prune=prune)
    rebridged = {name for name, known in record.networks.items() if name in networks and known.bridged != networks[name].bridged}
    fates = [
        _fate(
            name, machine, record, have, ground, generation, draft, rebridged, reconfigure=reconfigure, onto_new=name in onto_new
        )
        for name, machine in lab.machines.items()
        if only is None or name in only
    ]
    leaving = [name for name in record.machines if name not in lab.machines]
    kept = {name: machine for name, machine in record.machines.items() if name in leaving and not prune}
    draft.notes += [f"{name} is no longer in the file; it is kept until --prune" for name in kept]
    kept |= {name: machine for name, machine in record.machines.items() if only is not None and name not in only}
    made = {fate.name: fate.record for fate in fates} | kept
    networks = _without_unused(networks, lab, made, draft, prune=prune)
    machines = addressed(made, networks)
    fates = [_moved(replace(fate, record=machines[fate.name]), record, networks, have) for fate in fates]
    made_anew = {fate.name for fate in fates if fate.fresh}
    pruned = leaving if prune else []
    draft.loses += pruned
    lost = {*made_anew, *pruned}
    check_lost_states(draft, record, lost)
    kept_states = without_machines(without_expired(draft, record, ground), lost)
    next_record = replace(kept_states, lab=lab, networks=networks, machines=machines)
    clean = next_record.clean.machines if next_record.clean else {}
    check_processor(fates, have, ground)
    check_demands(draft, fates, have, ground)
    check_outside(lab, have, online=ground.online)
    check_room(fates, have, ground, [fate.name for fate in fates if fate.name not in clean], lacking(lab, have, ground))
    _draw_up(draft, fates, next_record, have, ground, generation, pruned)
    return draft.plan(next_record)


def plan_onto_new_base(instance: Name, machines: Sequence[str], have: Inventory, ground: Ground) -> Plan:
    """Make machines (none named: all) anew from the bases that the kit has now, where those are newer than what they stand on,
    and bring the lab up. What is on their disks is lost, and their states with it. Raises as `plan_up`."""
    record = known_record(instance, have, ground.kit)
    check_known(machines, record)
    chosen = [Name(name) for name in machines or record.machines]
    plan = plan_up(record.lab, instance, have, ground, onto_new=chosen)
    kept = [name for name in chosen if name not in plan.loses]
    notes = [f"{name}: there is no newer {record.machines[name].definition.base}; it is left as it is" for name in kept]
    return replace(plan, notes=(*plan.notes, *notes))


def _check_bases(lab: Lab, record: Record, have: Inventory, ground: Ground) -> None:
    missing = sorted({m.base for name, m in lab.machines.items() if name not in record.machines and m.base not in have.bases})
    if missing:
        names = ", ".join(missing)
        asked = "" if lab.arch == NATIVE else f" --arch {ground.arch}"
        known = missing if ground.buildable is None else ground.buildable
        hints = [f"pocketcloud base {f'build {name}{asked}' if name in known else f'import {name} IMAGE'}" for name in missing]
        others = dict.fromkeys(arch for name in missing for arch in ground.other_bases.get(name, ()))
        if others and all(name in ground.other_bases for name in missing):
            hints.append(f"or say `arch: {next(iter(others))}` in the lab file: it has them for that, and emulates it (slowly)")
        raise NotFound(
            f"kit {ground.kit} has no base {names} for {ground.arch}, which the lab needs",
            hint="; ".join(hints),
        )


def _without_unused(
    networks: Mapping[Name, NetworkRecord], lab: Lab, machines: Mapping[Name, MachineRecord], draft: Draft, *, prune: bool
) -> dict[Name, NetworkRecord]:
    """The networks without those that left the file, which go with `prune`, unless a machine that is kept is on them."""
    kept: dict[Name, NetworkRecord] = {}
    for name, network in networks.items():
        if name not in lab.networks:
            used = [machine for machine, made in machines.items() if name in made.definition.networks]
            if prune and not used:
                continue
            why = f"{', '.join(used)} use{'s' * (len(used) == 1)} it" if used else "it is kept until --prune"
            draft.notes.append(f"network {name} is no longer in the file; {why}")
        kept[name] = network
    return kept


def _moved(fate: Fate, record: Record, networks: Mapping[Name, NetworkRecord], have: Inventory) -> Fate:
    """The fate of a machine that is started again because its place on its networks is not the one it started with."""
    known = record.machines.get(fate.name)
    if known is None or fate.restart:
        return fate
    attached = [name for name in fate.record.definition.networks if name in record.networks]
    anew = [name for name in attached if networks[name] != record.networks[name]]
    anew += [name for name in attached if _is_old(fate, name, record.instance, networks[name], have)]
    why = f"network {anew[0]} changed" if anew else "its addresses changed" if fate.record.addresses != known.addresses else ""
    return replace(fate, restart=why, reason=why or fate.reason)


def _is_old(fate: Fate, network: Name, instance: str, wanted: NetworkRecord, have: Inventory) -> bool:
    """Whether a network is not yet what the record says, so that a machine running on it has its old place there."""
    there = have.networks.get(network)
    if there is None:
        return False
    index = list(fate.record.definition.networks).index(network)
    address = there.leases.get(mac_address(instance, fate.name, index))
    moved = address is not None and address != str(fate.record.addresses.get(network))
    elsewhere = bool(wanted.bridge) and there.bridge != wanted.bridge
    return elsewhere or there.subnet != wanted.subnet_text or there.kind is not wanted.kind or moved


def _changes(old: Machine, new: Machine) -> list[str]:
    changed = [f for f in Machine.__dataclass_fields__ if not f.startswith("__") and getattr(old, f) != getattr(new, f)]
    # The order of the networks is that of the interfaces, and mappings are equal in any.
    if "networks" not in changed and list(old.networks) != list(new.networks):
        changed.append("networks")
    return changed


def _fate(
    name: Name,
    wanted: Machine,
    record: Record,
    have: Inventory,
    ground: Ground,
    generation: int,
    draft: Draft,
    rebridged: Collection[Name],
    *,
    reconfigure: bool,
    onto_new: bool,
) -> Fate:
    known = record.machines.get(name)
    if known is None:
        return _from_base(name, wanted, have.bases[wanted.base], record, generation, "the lab file declares it")
    base = have.bases.get(wanted.base)
    changed = _changes(known.definition, wanted)
    # It gets another MAC address with that, and knows its interfaces by those.
    changed += [f"kind of network {n}" for n in wanted.networks if n in rebridged and n in known.definition.networks]
    if known.arch is not ground.arch:
        changed.append("arch")
    elif base and base.name == known.definition.base and base.volume != known.base_volume:
        if onto_new:
            kept = [snapshot for snapshot, state in record.snapshots.items() if name in state.machines]
            lost = ", ".join(["what is on its disks", *(f"its state {snapshot}" for snapshot in kept)])
            draft.notes.append(f"{name} is made anew from the {base.name} built {base.built}; lost: {lost}")
            draft.loses.append(name)
            return _from_base(name, known.definition, base, record, generation, f"onto the newer {base.name}")
        draft.notes.append(
            f"{name}: the kit has a newer {base.name}; the machine stays on the one it was made from"
            f" (lab reset {record.instance} --onto-new-base makes it anew)"
        )
    # One that nobody was to enter has no key that it could be entered with.
    noted = _JUST_NOTED - ({"ready"} if wanted.needs_ssh and not known.definition.needs_ssh else set())
    anew = [field for field in changed if field not in _RESTARTS | noted]
    definition = wanted
    if changed and not reconfigure and set(changed) - noted:
        draft.notes.append(
            f"{name}: {', '.join(changed)} changed in the file; waits for --reconfigure" + (" (makes it anew)" if anew else "")
        )
        definition, changed, anew = replace(known.definition, **{field: getattr(wanted, field) for field in noted}), [], []
    if known.stage is Stage.PROVISIONING:
        return _again(name, definition, known, have, record, generation, "its provisioning was interrupted")
    if anew:
        draft.loses.append(name)
        reason = f"{', '.join(anew)} changed"
        return _again(name, definition, known, have, record, generation, reason, other_arch="arch" in anew)
    keep = replace(known, definition=definition)
    return _kept(name, keep, record, have, generation, draft, restart=[f for f in changed if f in _RESTARTS])


def _again(
    name: Name,
    wanted: Machine,
    known: MachineRecord,
    have: Inventory,
    record: Record,
    generation: int,
    reason: str,
    *,
    other_arch: bool = False,
) -> Fate:
    """A machine made anew: from the base it stood on while that is there and still the one wanted, else from the kit's."""
    base = have.bases.get(wanted.base)
    if wanted.base == known.definition.base and known.base_volume in have.volumes and not other_arch:
        given = _given_disks(known, have) or (base.disks if base else ())
        base = Base(wanted.base, known.arch, known.base_digest, known.base_volume, known.firmware, built="", disks=given)
    if base is None:
        raise NotFound(
            f"{name} has to be made anew ({reason}), but its base {wanted.base} is gone",
            hint=f"pocketcloud base build {wanted.base}",
        )
    return _from_base(name, wanted, base, record, generation, reason)


def _given_disks(known: MachineRecord, have: Inventory) -> tuple[Disk, ...]:
    """The disks that a machine has from its base and not from its lab file."""
    named = {ROOT_DISK, *(disk.name for disk in known.definition.disks)}
    there = ((Name(name), have.volumes.get(volume)) for name, volume in known.disks.items() if name not in named)
    return tuple(Disk(name, Size(volume.size)) for name, volume in there if volume)


def _from_base(name: Name, wanted: Machine, base: Base, record: Record, generation: int, reason: str) -> Fate:
    root = volume_name(record.instance, name, ROOT_DISK, generation)
    volumes: dict[str, tuple[str | None, str, int]] = {ROOT_DISK: (base.volume, root, wanted.disk or 0)}
    named = {disk.name for disk in wanted.disks}
    for disk in (*wanted.disks, *(disk for disk in base.disks if disk.name not in named)):
        volumes[disk.name] = (None, volume_name(record.instance, name, disk.name, generation), disk.size)
    old = record.machines.get(name)
    made = MachineRecord(
        definition=wanted,
        base_volume=base.volume,
        base_digest=base.digest,
        arch=base.arch,
        firmware=base.firmware,
        stage=Stage.NEW,
        disks={disk: volume for disk, (_, volume, _) in volumes.items()},
        addresses=old.addresses if old else {},
    )
    return Fate(name, made, volumes, fresh=True, restart=reason, reason=reason)


def _kept(
    name: Name, known: MachineRecord, record: Record, have: Inventory, generation: int, draft: Draft, *, restart: list[str]
) -> Fate:
    """A machine that stays what it is; its live volumes are mended where an interruption left them sealed or lost."""
    clean = record.clean.machines.get(name) if record.clean else None
    lost = [disk for disk, volume in known.disks.items() if volume not in have.volumes]
    sources = {d: v for d, v in known.disks.items() if d not in lost and have.volumes[v].sealed}
    reason = "its disks were left sealed by an interrupted snapshot" if sources else ""
    nvram = known.restoring.nvram if known.restoring else ""
    if lost:
        if known.stage is Stage.PROVISIONED:
            draft.loses.append(name)
        gone = ", ".join(f"its disk {disk} is gone" for disk in lost)
        if clean is None or any(clean.disks.get(disk) not in have.volumes for disk in lost):
            draft.notes.append(f"{name}: {gone}, and what clean had of it; it is made anew, and taken out of every state")
            return _again(name, known.definition, known, have, record, generation, f"its disk {lost[0]} is gone")
        others = f"; {', '.join(left)} stays as it is" if (left := [d for d in known.disks if d not in lost]) else ""
        draft.notes.append(f"{name}: {gone}, and comes back as it was in clean{others}")
        sources |= {disk: clean.disks[disk] for disk in lost}
        reason, nvram = f"{gone}; back to clean", clean.nvram if ROOT_DISK in lost else nvram
    volumes: dict[str, tuple[str | None, str, int]] = {
        disk: (source, volume_name(record.instance, name, disk, generation), 0) for disk, source in sources.items()
    }
    disks = {**known.disks, **{disk: volume for disk, (_, volume, _) in volumes.items()}}
    why = reason or (f"{', '.join(restart)} changed" if restart else "")
    again = replace(known, disks=disks)
    off = f"it was being brought back to {known.restoring.state}" if known.restoring else "it is off"
    return Fate(name, again, volumes, fresh=False, restart=why, reason=why or off, nvram=nvram)


def _runs_as_wanted(fate: Fate, domain: Domain | None, have: Inventory) -> str:
    """Why the machine has to be started, or started again; empty if it runs as the record says."""
    if domain is None or domain.state is DomainState.OFF:
        return fate.reason
    if fate.restart:
        return fate.restart
    if domain.state is not DomainState.RUNNING and not domain.waits:
        return f"it is {domain.state}{f' ({domain.reason})' if domain.reason else ''}"
    paths = {have.volumes[v].path for v in fate.record.disks.values() if v in have.volumes}
    if not paths <= set(domain.disks.values()):
        return "it runs on old disks: a reset was interrupted"
    if any(not (net := have.networks.get(n)) or not net.active for n in fate.record.definition.networks):
        return "its network was down"
    return ""


def _draw_up(
    draft: Draft, fates: Sequence[Fate], record: Record, have: Inventory, ground: Ground, generation: int, pruned: Sequence[str]
) -> None:
    made = _draw_volumes(draft, fates, record.instance)
    own = {network.subnet for network in record.networks.values() if network.subnet}
    outside = tuple(map(str, sorted({*own, *(taken.network for taken in ground.taken)})))
    for fate in fates:
        if fate.fresh and fate.record.definition.needs_ssh:
            macs = tuple(mac for _, mac in record.macs(fate.name, ground.kit_id))
            outer = outside if fate.record.definition.runs_machines else ()
            seed = WriteSeed(
                id=f"seed.{fate.name}", reason=fate.reason, machine=fate.name, macs=macs, generation=generation, outer=outer
            )
            made.append(draft.add(seed))
    # Nothing shows of a machine that runs on its disks that it was started as something else than the record says by now: so it
    # is off before the record says it.
    early = {fate.name: _draw_stop(draft, fate, have, ()) for fate in fates if fate.restart and not fate.volumes}
    made += [stop for stops in early.values() for stop in stops]
    commit: tuple[str, ...] = ()
    after_up = replace(record, generation=generation)
    if made or pruned or have.record is None or replace(record, generation=have.record.generation) != have.record:
        commit = (
            draft.add(
                CommitRecord(
                    id="commit", reason="what is made belongs to the lab from here on", after=tuple(made), record=after_up
                )
            ),
        )
    stops = early | {fate.name: _draw_stop(draft, fate, have, commit) for fate in fates if fate.name not in early}
    nets = draw_networks(draft, record, have, commit, wholly=True, stops=stops)
    if ground.cache and nets:
        serve = ServeCache(
            id="cache",
            reason="nothing but the cache is used",
            after=tuple(nets.values()),
            networks=tuple(n for n in nets if record.networks[Name(n)].subnet),
        )
        nets = dict.fromkeys(nets, draft.add(serve))
    ready = {fate.name: _draw_machine(draft, fate, have, (*commit, *stops[fate.name]), nets) for fate in fates}
    clean = record.clean.machines if record.clean else {}
    fresh = tuple(fate.name for fate in fates if fate.name not in clean)
    taking = record.taking.machines if record.taking else ()
    back = [fate.name for fate in fates if fate.record.restoring or fate.name in taking]
    last = draw_end_restoring(draft, back, tuple(ready.values()))
    if fresh:
        last = (*last, *draw_clean(draft, record, fresh, generation + 1, ready, ground))
    else:
        kept_with_clean(draft, record, fresh, ground)
    for name in pruned:
        _draw_removal(draft, name, have, commit)
    draw_sweep(draft, after_up, have, ground, last)


def _draw_volumes(draft: Draft, fates: Sequence[Fate], instance: str) -> list[str]:
    """All clones at once, as a store may be quicker with many than with one after the other; the ids of the steps."""
    clones, reasons, made = list[Clone](), list[str](), list[str]()
    for fate in fates:
        for disk, (source, volume, size) in fate.volumes.items():
            marked = marks(instance, fate.name, disk)
            if source is None:
                step = CreateVolume(
                    id=f"volume.{fate.name}.{disk}",
                    reason=fate.reason,
                    machine=fate.name,
                    name=volume,
                    size=size,
                    marks=marked,
                )
                made.append(draft.add(step))
            else:
                clones.append(Clone(source, volume, size, marked))
                reasons.append(f"{fate.name}: {fate.reason}")
    if clones:
        made.append(draft.add(CloneVolumes(id="volumes", reason="; ".join(dict.fromkeys(reasons)), clones=tuple(clones))))
    return made


def _draw_stop(draft: Draft, fate: Fate, have: Inventory, commit: tuple[str, ...]) -> tuple[str, ...]:
    """The stop of a machine that runs and has to be started again: before its networks are changed, so that an interruption
    leaves it off, or on networks that show it to be on old ones."""
    name, domain = fate.name, have.domains.get(fate.name)
    reason = _runs_as_wanted(fate, domain, have)
    if not reason or domain is None or domain.state is DomainState.OFF:
        return ()
    # What runs on the disks of a state that was left is not asked: that state is kept as it was.
    at_once = fate.fresh or fate.record.restoring or domain.state is not DomainState.RUNNING
    stop = KillMachine if at_once else StopMachine
    return (draft.add(stop(id=f"stop.{name}", reason=reason, machine=name, after=commit)),)


def _draw_machine(draft: Draft, fate: Fate, have: Inventory, after: tuple[str, ...], nets: Mapping[str, str]) -> str:
    """The steps of one machine, from what it is to ready; the id of the last."""
    name, domain = fate.name, have.domains.get(fate.name)
    start = _runs_as_wanted(fate, domain, have)
    running = domain is not None and domain.state is not DomainState.OFF
    up = tuple(nets[n] for n in fate.record.definition.networks if n in nets)
    steps: list[Step] = []
    if start or not running:
        reason = start or fate.reason
        if fate.fresh or fate.nvram:
            steps.append(SetNvram(id=f"nvram.{name}", reason=reason, machine=name, source=fate.nvram))
        steps.append(DefineMachine(id=f"define.{name}", reason=reason, machine=name))
        steps.append(StartMachine(id=f"start.{name}", reason=reason, machine=name, after=up))
    elif domain is not None and domain.waits:
        steps.append(ResumeMachine(id=f"resume.{name}", reason=f"it is paused ({domain.reason})", machine=name))
    first = fate.record.stage is not Stage.PROVISIONED
    if first and fate.record.definition.to_provision:
        steps.append(Provision(id=f"provision.{name}", reason="it is new", machine=name))
    steps.append(WaitReady(id=f"ready.{name}", reason="up ends when it is ready", machine=name, first=first))
    steps[0] = replace(steps[0], after=(*after, *steps[0].after, *(() if start or not running else up)))
    return draft.chain(*steps)


def _draw_removal(draft: Draft, name: str, have: Inventory, after: tuple[str, ...]) -> None:
    if name in have.domains:
        after = (
            draft.add(UndefineMachine(id=f"undefine.{name}", reason="it left the file (--prune)", machine=name, after=after)),
        )
    draft.add(RemoveFiles(id=f"files.{name}", reason="it left the file (--prune)", machine=name, after=after))
