"""Networks: whether libvirt's own overlap the host's, whether labs find room and keep their fences, stale bridges."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pocketcloud.check.judgement import Check, Surroundings
from pocketcloud.errors import Refused
from pocketcloud.host.bridges import LIKE_LIBVIRTS, read_active, read_bridges
from pocketcloud.host.network import OUTER, read_outer
from pocketcloud.hypervisor.firewall import Fences
from pocketcloud.model.facts import libvirt_holder
from pocketcloud.model.inventory import LibvirtNetwork
from pocketcloud.model.judgement import State
from pocketcloud.model.machine import Mark
from pocketcloud.model.names import Name
from pocketcloud.records import InstanceFiles, read_record
from pocketcloud.specs import is_fenced
from pocketcloud.subnets import LIBVIRT_DEFAULT, PREFIX, below, holders, room, supernet

_GROUP = "networks"
_SHOWN = 5
_LOOKS, _PAUSE = 3, 0.6


def judge(here: Surroundings) -> Iterator[Check]:
    """libvirt's networks against the host's, the room for lab networks and those inside of machines, fences, stale bridges."""
    yield _overlaps(here)
    yield _room(here)
    yield _nested(here)
    yield _fences(here)
    yield _bridges(here)


def _overlaps(here: Surroundings) -> Check:
    why = "A network that overlaps a route does not start, or takes the way to what the route leads to."
    if here.daemon.facts is None:
        evidence = "libvirt cannot be asked for its networks"
        if taken := holders(LIBVIRT_DEFAULT, here.facts.subnets):
            evidence += f"; its own, {LIBVIRT_DEFAULT}, would overlap {taken}"
        return Check("libvirt-networks", _GROUP, State.UNKNOWN, evidence, why)
    labs = {libvirt_holder(network.name): network for network in here.daemon.networks}
    # A lab that is down is moved by its next `up`.
    looked = [ours for ours in here.daemon.subnets if ours.holder not in labs or labs[ours.holder].active]
    pairs = [(ours, theirs) for ours in looked for theirs in here.facts.subnets if ours.network.overlaps(theirs.network)]
    if pairs:
        told = [f"{ours.network} ({ours.holder}) overlaps {theirs.network} ({theirs.holder})" for ours, theirs in pairs]
        evidence = "; ".join(told[:_SHOWN]) + (f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else "")
        holding = dict.fromkeys(ours.holder for ours, _ in pairs)
        # libvirt's own commands would change what the lab's record says of them.
        marks = [labs[holder].mark for holder in holding if holder in labs]
        moved = dict.fromkeys(line for mark in marks for line in (_of("down", mark), _of("up", mark)))
        names = [shlex.quote(holder.rpartition(" ")[2]) for holder in holding if holder not in labs]
        edited = [line for name in names[:_SHOWN] for line in (f"virsh net-edit {name}", f"virsh net-destroy {name}")]
        again = ("Start it again when it has another subnet",) if edited else ()
        return Check("libvirt-networks", _GROUP, State.WARN, evidence, why, (*list(moved)[: 2 * _SHOWN], *edited, *again))
    number = len(here.daemon.subnets)
    evidence = f"none of libvirt's {number} subnets overlaps one of the host's {len(here.facts.subnets)}"
    return Check("libvirt-networks", _GROUP, State.OK, evidence, why)


def _of(verb: str, mark: Mark) -> str:
    return f"pocketcloud lab {verb} {shlex.quote(mark.instance)} --kit {shlex.quote(mark.kit)}"


def _room(here: Surroundings) -> Check:
    why = f"Every lab network gets a /{PREFIX} of its own that overlaps nothing."
    taken = (*here.facts.subnets, *here.daemon.subnets)
    within = supernet(here.facts)
    if free := room(within, taken):
        return Check("lab-subnets", _GROUP, State.OK, f"{free} free /{PREFIX} in {within}", why)
    evidence = f"no free /{PREFIX} in {within}: taken by {holders(within, taken)}"
    return Check("lab-subnets", _GROUP, State.FAIL, evidence, why, ("End what routes these networks, a VPN perhaps",))


def _nested(here: Surroundings) -> Check:
    why = "A machine that has labs of its own routes their networks to itself, whatever else has these numbers out here."
    inside = below(here.facts)
    evidence = (
        f"labs here take {supernet(here.facts)}, labs inside of their machines {inside}, libvirt in there {LIBVIRT_DEFAULT}"
    )
    if bad := read_outer(here.root)[1]:
        lines = ", ".join(map(str, bad[:_SHOWN]))
        remedy = (f"Write one IPv4 network a line into /{OUTER}, as 10.77.0.0/16",)
        return Check("nested-subnets", _GROUP, State.WARN, f"/{OUTER} names no network in line {lines}; {evidence}", why, remedy)
    if taken := holders(inside, here.facts.subnets):
        remedy = ("End what routes it, a VPN perhaps, if machines inside of machines have to reach what is there",)
        return Check("nested-subnets", _GROUP, State.WARN, f"{evidence}; that hides {taken} from them", why, remedy)
    return Check("nested-subnets", _GROUP, State.OK, evidence, why)


def _fences(here: Surroundings) -> Check:
    """Whoever loads rules of his own with `flush ruleset`, as Debian's nftables.service does, takes them down."""
    why = "Machines reach the networks around this host without a fence, which a restart of nftables takes down."
    if here.daemon.facts is None:
        return Check("fences", _GROUP, State.UNKNOWN, "libvirt cannot be asked for its networks", why)
    wanted = tuple(_fenced(here))
    if not wanted:
        return Check("fences", _GROUP, State.OK, "no network that is to have one is up", why)
    if (there := Fences(here.run).seen()) is None:
        evidence = "nftables cannot be asked, which tell only root"
        return Check("fences", _GROUP, State.UNKNOWN, evidence, why, ("sudo pocketcloud check",))
    if lost := [network for network in wanted if network.bridge not in there]:
        evidence = f"gone: those of {', '.join(network.name for network in lost[:_SHOWN])}"
        evidence += f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        remedy = tuple(dict.fromkeys(_of("up", network.mark) for network in lost))
        return Check("fences", _GROUP, State.WARN, evidence, why, remedy)
    return Check("fences", _GROUP, State.OK, f"all {len(wanted)} networks that are to have one have it", why)


def _fenced(here: Surroundings) -> Iterator[LibvirtNetwork]:
    """The networks of the kit's labs that are up and are to have a fence; what a damaged record says of that nobody knows."""
    for network in here.daemon.networks:
        if here.kit is not None and network.active and network.mark.kit_id == here.kit.id:
            part, record = Name(network.mark.part), None
            with suppress(Refused):
                record = read_record(InstanceFiles(here.kit, network.mark.instance))
            if record is not None and part in record.networks and is_fenced(record, part):
                yield network


def _bridges(here: Surroundings) -> Check:
    """By their names, and only those without a port: whose they are is not written on them, so they are left to a person."""
    why = "A bridge that its network left behind keeps its address, and the next network that wants it does not start."
    alike = [bridge.name for bridge in read_bridges(here.root) if LIKE_LIBVIRTS.fullmatch(bridge.name)]
    if read_active(here.root) is None:
        names = ", ".join(alike) or "none"
        evidence = f"bridges that are named as libvirt's: {names}; only root sees which of them its networks have"
        return Check("bridges", _GROUP, State.UNKNOWN if alike else State.OK, evidence, why)
    if stale := _stale(here.root):
        evidence = f"no network of libvirt's has {', '.join(stale)}, and nothing is plugged in there"
        return Check("bridges", _GROUP, State.WARN, evidence, why, tuple(f"ip link delete {name}" for name in stale))
    return Check("bridges", _GROUP, State.OK, f"named as libvirt's: {len(alike)}, none of them left over", why)


def _stale(root: Path) -> tuple[str, ...]:
    """Bridges that no active network has, for as long as we look: one that is just started or stopped has none for a moment."""
    stale: set[str] = set()
    for look in range(_LOOKS):
        bridges = [bridge.name for bridge in read_bridges(root) if LIKE_LIBVIRTS.fullmatch(bridge.name) and not bridge.ports]
        orphans = set(bridges) - {network.bridge for network in read_active(root) or ()}
        stale = stale & orphans if look else orphans
        if not stale:
            break
        if look < _LOOKS - 1:
            time.sleep(_PAUSE)
    return tuple(sorted(stale))
