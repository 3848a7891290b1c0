"""The networks of a plan: which subnets they get, who has which address there, and when they are set up."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from pocketcloud.errors import Refused
from pocketcloud.model.facts import Subnet
from pocketcloud.model.inventory import Inventory
from pocketcloud.model.lab import Lab, LabNetwork, NetworkKind
from pocketcloud.model.names import Name
from pocketcloud.model.record import MachineRecord, NetworkRecord, Record
from pocketcloud.plan.drafting import Draft, Ground
from pocketcloud.plan.steps import EnsureNetwork, RemoveNetwork, SettleFence
from pocketcloud.subnets import choose, holders

_LEFT = "which left the file"


def settled_networks(
    lab: Lab,
    instance: Name,
    record: Record,
    have: Inventory,
    ground: Ground,
    draft: Draft,
    *,
    reconfigure: bool,
    prune: bool = False,
) -> dict[Name, NetworkRecord]:
    """The networks of `lab` with their subnets, and after them those of the record that `lab` does not have. Who is on a subnet,
    or pinned to it, comes before who had it, and that one before who is new, wherever in the file they stand."""
    found: dict[Name, NetworkRecord] = {}
    turns: list[tuple[int, Name, NetworkKind, IPv4Network | None]] = []
    taken = list(ground.taken)
    for name, stay in _left_behind(lab, record, have, reconfigure=reconfigure, prune=prune).items():
        left = record.networks[name]
        clash = overlapped(instance, name, left, lab, ground.taken)
        if clash and stay and not _is_used(name, left, record, have):
            turns.append((1, name, left.kind, None))
            continue
        taken.append(Subnet(left.range, f"network {name} of this lab, {_LEFT}"))
        draft.notes += [clash] if clash and stay else []
    for name, wanted in lab.networks.items():
        known = record.networks.get(name)
        kind, pinned = wanted.kind, wanted.subnet
        if known and known.kind != kind and not reconfigure:
            draft.notes.append(f"network {name}: kind {known.kind} -> {kind} waits for --reconfigure")
            kind = known.kind
        if kind is NetworkKind.BRIDGE:
            found[name] = NetworkRecord(
                kind, bridge=_bridge(instance, name, wanted, known, ground, draft, reconfigure=reconfigure)
            )
            continue
        if pinned and known and known.subnet != pinned and not reconfigure:
            draft.notes.append(f"network {name}: subnet {known.subnet} -> {pinned} waits for --reconfigure")
            pinned = known.subnet
        if known and known.subnet and _is_used(name, known, record, have) and pinned in (None, known.subnet):
            found[name] = NetworkRecord(kind, known.subnet)
            taken.append(Subnet(known.subnet, f"network {name} of this lab"))
            if clash := overlapped(instance, name, known, lab, ground.taken):
                draft.notes.append(clash)
            continue
        turns.append((0 if pinned else 1 if known and known.subnet else 2, name, kind, pinned))
    for _, name, kind, pinned in sorted(turns, key=lambda turn: turn[0]):
        old = known.subnet if (known := record.networks.get(name)) else None
        if pinned:
            subnet = _pinned(instance, name, pinned, taken)
        else:
            subnet = choose(ground.supernet, taken, keep=old, seed=f"{ground.kit}.{instance}.{name}")
            if old and subnet != old:
                draft.notes.append(f"network {name} moves from {old} to {subnet}: the old one is taken here")
        found[name] = NetworkRecord(kind, subnet)
        taken.append(Subnet(subnet, f"network {name} of this lab"))
    others = {name: found.get(name, known) for name, known in record.networks.items() if name not in lab.networks}
    return {name: found[name] for name in lab.networks} | others


def _runs(name: Name, known: NetworkRecord, have: Inventory) -> bool:
    there = have.networks.get(name)
    return there is not None and there.active and there.subnet == known.subnet_text


def _is_used(name: Name, known: NetworkRecord, record: Record, have: Inventory) -> bool:
    """Whether machines run on a network. One that is up without them, as after `kit attach`, is moved under nobody's feet."""
    on_it = [machine for machine, made in record.machines.items() if name in made.definition.networks]
    active = any((domain := have.domains.get(machine)) is not None and domain.active for machine in on_it)
    return active and _runs(name, known, have)


def _left_behind(lab: Lab, record: Record, have: Inventory, *, reconfigure: bool, prune: bool) -> dict[Name, bool]:
    """The networks with subnets that left the file, and are in use all the same: they run, or machines stay on them; whether
    machines do."""
    staying = [m for name, m in record.machines.items() if not (reconfigure if name in lab.machines else prune)]
    left = {name: known for name, known in record.networks.items() if name not in lab.networks and known.subnet}
    stay = {name: any(name in machine.definition.networks for machine in staying) for name in left}
    return {name: stay[name] for name, known in left.items() if stay[name] or _runs(name, known, have)}


def overlapped(instance: Name, name: Name, network: NetworkRecord, lab: Lab, taken: Sequence[Subnet]) -> str:
    """A note, where a network that is up overlaps what came to this host after it, as a WLAN or a VPN does; else empty. It is
    not moved under its machines' feet: that takes a `down`."""
    if network.subnet is None or not (holding := holders(network.subnet, taken)):
        return ""
    wanted = lab.networks.get(name)
    mend = f"pocketcloud lab down {instance}, then lab up, moves it to a free subnet"
    if wanted and wanted.subnet == network.subnet:
        mend = "it is pinned to that subnet: end what takes it, or leave `subnet:` out of the lab file"
    return f"network {name} ({network.subnet}) overlaps {holding}, so that one of the two is not reached from here; {mend}"


def _bridge(
    instance: Name,
    network: Name,
    wanted: LabNetwork,
    known: NetworkRecord | None,
    ground: Ground,
    draft: Draft,
    *,
    reconfigure: bool,
) -> str:
    """The host's bridge that a network is to be. It has to be there: nobody knows what a bridge of that name is to lead to."""
    bridge = wanted.bridge or (known.bridge if known else "")
    if known and known.bridge and known.bridge != bridge and not reconfigure:
        draft.notes.append(f"network {network}: bridge {known.bridge} -> {bridge} waits for --reconfigure")
        bridge = known.bridge
    if bridge not in ground.bridges:
        raise Refused(
            f"lab {instance}: its network {network} is to be the bridge {bridge}, and this host has none of that name"
            f" (it has: {', '.join(ground.bridges) or 'none'}; libvirt's and those of labs do not count)",
            hint=f"name one that is there, or make it: `nmcli connection add type bridge ifname {bridge}` and give it a card as"
            f" port (nmcli connection add type ethernet ifname CARD master {bridge}); without NetworkManager: ip link add"
            f" {bridge} type bridge",
        )
    return bridge


def _pinned(instance: Name, network: Name, subnet: IPv4Network, taken: Sequence[Subnet]) -> IPv4Network:
    if any(subnet.overlaps(other.network) for other in taken):
        holding = holders(subnet, taken)
        free = f"pocketcloud lab down {instance}, then lab up --prune, frees it" if _LEFT in holding else "end what takes it"
        raise Refused(
            f"lab {instance}: its network {network} is pinned to {subnet}, which is taken here by {holding}",
            hint=f"{free}, or leave `subnet:` out of the lab file, so that a free one is chosen",
        )
    return subnet


def addressed(machines: Mapping[Name, MachineRecord], networks: Mapping[Name, NetworkRecord]) -> dict[Name, MachineRecord]:
    """Give every machine its address on each of its networks: the one of the file, else the one it has, else the next free."""
    addresses: dict[Name, dict[Name, IPv4Address]] = {name: {} for name in machines}
    for network, known in networks.items():
        if known.subnet is None:
            continue
        base = int(known.subnet.network_address)
        there = {name: m.definition.networks[network] for name, m in machines.items() if network in m.definition.networks}
        used: dict[int, Name] = {}
        for name, attachment in there.items():
            if attachment.address is not None:
                used.setdefault(attachment.address, name)
        # Whoever has an address keeps it: an addition must not take it away, wherever in the file it stands.
        for name in there:
            before = machines[name].addresses.get(network)
            if before is not None and name not in used.values():
                used.setdefault(int(before) & 0xFF, name)
        free = (part for part in (*range(10, 255), *range(2, 10)) if part not in used)
        parts = {name: part for part, name in used.items()}
        for name in there:
            part = parts.get(name) or next(free, 0)
            if not part:
                raise Refused(
                    f"network {network}: {len(there)} machines; a /24 has room for 253", hint="spread them over networks"
                )
            addresses[name][network] = IPv4Address(base + part)
    return {name: replace(machine, addresses=addresses[name]) for name, machine in machines.items()}


def draw_networks(
    draft: Draft,
    record: Record,
    have: Inventory,
    after: tuple[str, ...],
    *,
    wholly: bool,
    stops: Mapping[Name, tuple[str, ...]] | None = None,
) -> dict[str, str]:
    """Start the networks that machines are on, after the `stops` of those that are started again on them. Running ones are
    brought to what the record says `wholly`, their leases too, which an interruption after a commit may have kept from them; or
    no more than their fences, which is quick."""
    steps: dict[str, str] = {}
    wanted = sorted({n for m in record.machines.values() for n in m.definition.networks} & set(record.networks))
    first = {
        name: (*after, *(s for m, ids in (stops or {}).items() if name in record.machines[m].definition.networks for s in ids))
        for name in {*wanted, *map(Name, have.networks)}
    }
    why = "another network of the lab has its subnet from here on"
    free = tuple(
        draft.add(RemoveNetwork(id=f"free.{name}", reason=why, after=first[name], network=name))
        for name in _in_the_way(wanted, record, have)
    )
    for name in wanted:
        there = have.networks.get(name)
        known = record.networks[name]
        runs = there is not None and there.active and (there.subnet, there.kind) == (known.subnet_text, known.kind)
        if wholly or not runs:
            reason = "its leases are those of the record" if runs else "it is not running"
            steps[name] = draft.add(EnsureNetwork(id=f"network.{name}", reason=reason, after=(*first[name], *free), network=name))
        elif not known.bridged:
            reason = "what is declared, and what this host is on, may have changed"
            steps[name] = draft.add(SettleFence(id=f"fence.{name}", reason=reason, after=first[name], network=name))
    return steps


def _in_the_way(wanted: Collection[Name], record: Record, have: Inventory) -> list[Name]:
    """The networks that are up on a subnet which one of the `wanted` has by now: libvirt would not start that beside them."""
    up = {Name(name): IPv4Network(there.subnet) for name, there in have.networks.items() if there.active and there.subnet}
    known = record.networks
    moved = {name: subnet for name, subnet in up.items() if name not in known or known[name].subnet != subnet}
    subnets = [(name, subnet) for name in wanted if (subnet := known[name].subnet)]
    return sorted(name for name, old in moved.items() if any(old.overlaps(new) for other, new in subnets if other != name))
