"""What there is of an instance: its record, its volumes in the store, its domains and networks in libvirt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from pocketcloud.hypervisor import Domain, Hypervisor, LibvirtNetwork
from pocketcloud.model.base import Base
from pocketcloud.model.facts import Subnet, libvirt_holder
from pocketcloud.model.inventory import Inventory, Volume
from pocketcloud.model.kit import Kit
from pocketcloud.plan.drafting import belongs_to
from pocketcloud.records import InstanceFiles, read_record
from pocketcloud.storage import Storage


@dataclass
class Sight:
    """One look at the store and at libvirt, which serves for as many instances of the kit as are asked about. Each thing is
    looked at when it is first asked for; libvirt that cannot be reached raises HostLacks then."""

    kit: Kit
    storage: Storage
    hypervisor: Hypervisor

    @cached_property
    def domains(self) -> tuple[Domain, ...]:
        """Our domains, of all kits."""
        return self.hypervisor.domains()

    @cached_property
    def networks(self) -> tuple[LibvirtNetwork, ...]:
        """The kit's networks."""
        return self.hypervisor.networks(self.kit.id)

    @cached_property
    def subnets(self) -> tuple[Subnet, ...]:
        """The subnets of all libvirt networks, whoever's."""
        return self.hypervisor.subnets()

    @cached_property
    def volumes(self) -> tuple[Volume, ...]:
        """The kit's volumes."""
        return self.storage.volumes()

    @cached_property
    def free(self) -> int:
        """The bytes that the store has left."""
        return self.storage.usage().free


def observe(files: InstanceFiles, sight: Sight, bases: Mapping[str, Base], *, trust_record: bool = True) -> Inventory:
    """The inventory of one instance. `bases` are those of the kit for the lab's architecture, by name.

    With `trust_record` False a record is not read, so that a lab with a damaged one can still be removed. Volumes of bases
    are in it too: machines stand on them. Raises Refused for a damaged record.
    """
    mine = (files.kit.id, files.instance)
    domains = {d.mark.part: d for d in sight.domains if (d.mark.kit_id, d.mark.instance) == mine}
    networks = {n.mark.part: n for n in sight.networks if (n.mark.kit_id, n.mark.instance) == mine}
    volumes = {v.name: v for v in sight.volumes if belongs_to(v.name, files.instance) or v.name.startswith("base.")}
    return Inventory(read_record(files) if trust_record else None, domains, networks, volumes, bases)


def taken_subnets(here: tuple[Subnet, ...], sight: Sight, have: Inventory) -> tuple[Subnet, ...]:
    """The subnets that a lab's networks must not overlap: the host's (`here`, which are without those of libvirt's bridges) and
    those of libvirt's networks but this instance's own. Others may have come to the very subnet that is this instance's."""
    own = {libvirt_holder(network.name) for network in have.networks.values()}
    return (*here, *(subnet for subnet in sight.subnets if subnet.holder not in own))
