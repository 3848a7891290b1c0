"""Where a throw-away guest gets packages from: the world, or the kit's cache beside it and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pocketcloud.bases.install.machine import GuestNetwork, networked
from pocketcloud.bases.recipe import Supply
from pocketcloud.hypervisor import Hypervisor
from pocketcloud.model.facts import Facts
from pocketcloud.model.lab import NetworkKind
from pocketcloud.model.names import Name


@dataclass(frozen=True, slots=True)
class WayOut:
    """A guest's network, and the URL of the proxy that it has to use there; empty: it needs none."""

    network: GuestNetwork
    proxy: str


@contextmanager
def way_out(supply: Supply | None, hypervisor: Hypervisor, facts: Facts, purpose: Name) -> Iterator[WayOut]:
    """A network for the guest of that purpose, while the context lasts: with a supply one on which there is nobody but the host,
    who serves the supply there. Raises what the hypervisor room and the supply raise."""
    kind = NetworkKind.NAT if supply is None else NetworkKind.ISOLATED
    with networked(hypervisor, facts, purpose, kind) as network:
        if supply is None:
            yield WayOut(network, "")
            return
        with supply.serve(str(network.host)) as proxy:
            yield WayOut(network, proxy)
