"""A lab and the kit's cache: what it would miss, checked before anything starts, and the server while its networks are there."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pocketcloud.cache.labs import packages_of
from pocketcloud.cache.process import Place, Servers
from pocketcloud.cache.store import Store, folder_of
from pocketcloud.cache.supply import state_of
from pocketcloud.errors import NotFound
from pocketcloud.model.base import Base
from pocketcloud.model.cache import PORT, Kind, Wish
from pocketcloud.model.kit import Kit
from pocketcloud.model.lab import Lab
from pocketcloud.model.machine import NetworkSpec
from pocketcloud.model.names import Name


def has_cache(kit: Kit) -> bool:
    """Whether the kit's cache has anything in it."""
    return any(Store(folder_of(kit)).sets.glob("*.json"))


@dataclass(frozen=True, slots=True)
class ServedLab:
    """An instance whose machines use the kit's cache: an apply.world.LabCache."""

    servers: Servers
    kit: Kit
    instance: str
    port: int = PORT

    def serve(self, networks: Sequence[NetworkSpec]) -> None:
        """See LabCache.serve."""
        self.servers.ensure(self.instance, self._places(networks), self.port)

    def explain(self, networks: Sequence[NetworkSpec]) -> list[str]:
        """See LabCache.explain."""
        binds = " ".join(f"--bind {place.address}" for place in self._places(networks))
        return [f"pocketcloud cache serve --kit {shlex.quote(self.kit.name)} --port {self.port} {binds} &"]

    def _places(self, networks: Sequence[NetworkSpec]) -> list[Place]:
        return [Place(str(network.subnet.network_address + 1), network.bridge) for network in networks if network.subnet]


def check_offline(kit: Kit, lab: Lab, instance: Name, bases: Mapping[str, Base], made: Collection[Name] = ()) -> None:
    """Raise NotFound with all that a lab lacks where nothing can be fetched: bases, and what the cache is to keep for it. A base
    that is built needs nothing of the cache but the packages that its machines are to find there; those that are `made` have
    theirs."""
    lines = [
        f"base {name} is not in the kit" for name in dict.fromkeys(m.base for m in lab.machines.values()) if name not in bases
    ]
    for wish in Store(folder_of(kit)).wishes():
        if not {instance, lab.lab} & set(wish.labs):
            continue
        built = wish.kind is Kind.BASE and wish.name in bases
        if (not built or wish.packages) and (state := state_of(kit, wish)):
            lines.append(f"{wish.title}: {state}")
    for name, packages in packages_of(lab, made).items():
        if name in bases and (state := state_of(kit, Wish(Kind.BASE, name, bases[name].arch, packages))):
            lines.append(f"packages for machines of base {name} ({', '.join(packages)}): {state}")
    if lines:
        raise NotFound(
            "\n".join([f"lab {instance} cannot be raised offline:", *(f"  {line}" for line in lines)]),
            hint=f"with a network: pocketcloud cache add --lab {lab.lab}, pocketcloud cache sync, and pocketcloud base build;"
            " if there is one now: --online",
        )
