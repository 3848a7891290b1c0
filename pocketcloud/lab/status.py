"""What there is: the kit's labs, and the machines of one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from pocketcloud.errors import Refused
from pocketcloud.host.network import own_address
from pocketcloud.hypervisor import Domain, DomainState, Hypervisor
from pocketcloud.hypervisor.firewall import Fences
from pocketcloud.lab.workbench import Workbench
from pocketcloud.model.inventory import Inventory
from pocketcloud.model.kit import Kit
from pocketcloud.model.lab import NetworkKind
from pocketcloud.model.names import Name
from pocketcloud.model.record import MachineRecord, NetworkRecord, Record, Stage
from pocketcloud.observe import Sight, taken_subnets
from pocketcloud.plan.drafting import known_record
from pocketcloud.plan.networks import overlapped
from pocketcloud.records import InstanceFiles, instances, read_record
from pocketcloud.specs import is_fenced
from pocketcloud.system import run


@dataclass(frozen=True, slots=True)
class MachineStatus:
    """One machine: `state` for people, `disk` the bytes its live disks occupy by themselves (None: the store does not tell),
    `clean` whether reset knows it, `screen` where its graphical console is (empty: it is off)."""

    machine: str
    state: str
    address: str
    base: str
    memory: int
    vcpus: int
    disk: int | None
    clean: bool
    networks: dict[str, str]
    screen: str = ""


@dataclass(frozen=True, slots=True)
class LabStatus:
    """One instance: its state in a word, its machines, its networks' subnets, and what is left over or damaged."""

    instance: str
    lab: str
    state: str
    machines: tuple[MachineStatus, ...]
    networks: dict[str, str]
    created: str
    notes: tuple[str, ...]


def lab_status(bench: Workbench, instance: Name, *, sight: Sight | None = None) -> LabStatus:
    """The state of one instance; as of `sight`, or else as it is now. Raises NotFound."""
    sight = sight or bench.look()
    have = bench.observe(instance, sight=sight)
    record = known_record(instance, have, bench.kit.name)
    clean = record.clean.machines if record.clean else {}
    machines = []
    for name, machine in record.machines.items():
        domain = have.domains.get(name)
        addresses = {str(network): str(address) for network, address in machine.addresses.items()}
        told = [have.volumes[v].used for v in machine.disks.values() if v in have.volumes]
        first = next((addresses[n] for n in machine.definition.networks if n in addresses), "")
        definition = machine.definition
        machines.append(
            MachineStatus(
                str(name),
                _state(domain, machine),
                first,
                str(definition.base),
                definition.memory,
                definition.vcpus,
                None if None in told else sum(used for used in told if used is not None),
                name in clean,
                addresses,
                domain.screen if domain else "",
            )
        )
    notes = tuple(f"{name} runs but is not in the record" for name in have.domains if name not in record.machines)
    waiting = [str(name) for name in record.machines if (domain := have.domains.get(name)) is not None and domain.waits]
    notes += network_notes(bench, record, have, sight)
    if waiting:
        notes += (f"{', '.join(waiting)}: paused, and can go on: pocketcloud lab up {instance}",)
    networks = {str(name): network.subnet_text or f"bridge {network.bridge}" for name, network in record.networks.items()}
    return LabStatus(str(instance), str(record.lab.lab), _summary(machines), tuple(machines), networks, record.created, notes)


def network_notes(bench: Workbench, record: Record, have: Inventory, sight: Sight) -> tuple[str, ...]:
    """What to know of the networks that are up: what they clash with by now, which have lost their fence, and what others need to
    reach routed ones."""
    taken = taken_subnets(bench.facts.subnets, sight, have)
    up = {name: network for name, network in record.networks.items() if (there := have.networks.get(name)) and there.active}
    clashes = [overlapped(record.instance, name, network, record.lab, taken) for name, network in up.items()]
    bridges = {name: have.networks[name].bridge for name in up}
    return (*filter(None, clashes), *_lost_fences(record, bridges), *routed_notes(up))


def _lost_fences(record: Record, bridges: Mapping[Name, str]) -> tuple[str, ...]:
    """Whoever loads rules of his own with `flush ruleset`, as Debian's nftables.service does, takes our table down, too."""
    wanted = [name for name in bridges if is_fenced(record, name)]
    if not wanted or (there := Fences().seen()) is None:
        return ()
    return tuple(
        f"network {name} has lost its fence, as to a restart of nftables, and its machines reach what this host does;"
        f" pocketcloud lab up {record.instance} puts it up again"
        for name in wanted
        if bridges[name] not in there
    )


def routed_notes(networks: Mapping[Name, NetworkRecord]) -> tuple[str, ...]:
    """How others get to the networks that are routed. Theirs is the return route, too: without it no answer comes back."""
    routed = {name: network.subnet for name, network in networks.items() if network.kind is NetworkKind.ROUTED}
    via = own_address(run) if routed else ""
    return tuple(
        f"network {name} is routed: whom its machines are to reach, or who is to reach them, needs a route"
        f" (ip route add {subnet} via {via or 'ADDRESS-OF-THIS-HOST'})"
        for name, subnet in routed.items()
    )


def _state(domain: Domain | None, machine: MachineRecord) -> str:
    if domain is None or domain.state is DomainState.OFF:
        return "off"
    if domain.state is not DomainState.RUNNING:
        return f"{domain.state} ({domain.reason})" if domain.reason else str(domain.state)
    if machine.stage is not Stage.PROVISIONED:
        return f"running, {'being provisioned' if machine.stage is Stage.PROVISIONING else 'new'}"
    return f"running, on its way back to {machine.restoring.state}" if machine.restoring else "running"


def _summary(machines: list[MachineStatus]) -> str:
    running = sum(machine.state == "running" for machine in machines)
    if running == len(machines) and all(machine.clean for machine in machines):
        return "up"
    if all(machine.state == "off" for machine in machines):
        return "down"
    return f"partly up ({running} of {len(machines)} running)"


@dataclass(frozen=True, slots=True)
class LabLine:
    """An instance in a list; `running` is None where libvirt could not be asked."""

    instance: str
    lab: str
    machines: int
    running: int | None
    title: str
    note: str = ""


def lab_lines(kit: Kit, hypervisor: Hypervisor | None) -> tuple[LabLine, ...]:
    """All instances of the kit, half ones too."""
    domains = hypervisor.domains(kit.id) if hypervisor else ()
    names = dict.fromkeys([*instances(kit), *sorted({d.mark.instance for d in domains})])
    lines = []
    for name in names:
        running = sum(d.mark.instance == name and d.active for d in domains) if hypervisor else None
        record, note = None, "half there: `lab up` completes it, `lab destroy` removes it"
        with suppress(Refused):
            record = read_record(InstanceFiles(kit, name))
        if record is None:
            lines.append(LabLine(str(name), "?", 0, running, "", note))
        else:
            lines.append(LabLine(str(name), str(record.lab.lab), len(record.machines), running, record.lab.title))
    return tuple(lines)
