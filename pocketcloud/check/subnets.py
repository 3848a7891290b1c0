"""Networks: whether libvirt's own overlap the host's, and whether labs find room."""

from __future__ import annotations

from collections.abc import Iterator

from pocketcloud.check.judgement import Check, Surroundings
from pocketcloud.model.judgement import State
from pocketcloud.subnets import PREFIX, holders, room, supernet

_GROUP = "subnets"


def judge(here: Surroundings) -> Iterator[Check]:
    """libvirt's networks against the host's, and the room for lab networks."""
    yield _overlaps(here)
    yield _room(here)


def _overlaps(here: Surroundings) -> Check:
    why = "A network that overlaps a route does not start, or takes the way to what the route leads to."
    if here.daemon.facts is None:
        return Check("libvirt-networks", _GROUP, State.UNKNOWN, "libvirt cannot be asked for its networks", why)
    pairs = [
        f"{ours.network} ({ours.holder}) overlaps {theirs.network} ({theirs.holder})"
        for ours in here.daemon.subnets
        for theirs in here.facts.subnets
        if ours.network.overlaps(theirs.network)
    ]
    if pairs:
        remedy = ("virsh net-edit NAME", "virsh net-destroy NAME", "virsh net-start NAME")
        return Check("libvirt-networks", _GROUP, State.WARN, "; ".join(pairs), why, remedy)
    number = len(here.daemon.subnets)
    evidence = f"none of libvirt's {number} subnets overlaps one of the host's {len(here.facts.subnets)}"
    return Check("libvirt-networks", _GROUP, State.OK, evidence, why)


def _room(here: Surroundings) -> Check:
    why = f"Every lab network gets a /{PREFIX} of its own that overlaps nothing."
    taken = (*here.facts.subnets, *here.daemon.subnets)
    within = supernet(here.facts)
    if free := room(within, taken):
        return Check("lab-subnets", _GROUP, State.OK, f"{free} free /{PREFIX} in {within}", why)
    evidence = f"no free /{PREFIX} in {within}: taken by {holders(within, taken)}"
    return Check("lab-subnets", _GROUP, State.FAIL, evidence, why, ("End what routes these networks, a VPN perhaps",))
