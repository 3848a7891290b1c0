"""What there is of an instance: its record, its volumes in the store, its domains and networks in libvirt."""

from __future__ import annotations

from collections.abc import Mapping

from pocketcloud.hypervisor import Hypervisor
from pocketcloud.model.base import Base
from pocketcloud.model.facts import Subnet, libvirt_holder
from pocketcloud.model.inventory import Inventory
from pocketcloud.plan.drafting import belongs_to
from pocketcloud.records import InstanceFiles, read_record
from pocketcloud.storage import Storage


def observe(
    files: InstanceFiles,
    storage: Storage,
    hypervisor: Hypervisor,
    bases: Mapping[str, Base],
    *,
    trust_record: bool = True,
) -> Inventory:
    """The inventory of one instance. `bases` are those of the kit for the lab's architecture, by name.

    With `trust_record` False a record is not read, so that a lab with a damaged one can still be removed. Volumes of bases
    are in it too: machines stand on them. Raises Refused for a damaged record, HostLacks without libvirt.
    """
    kit = files.kit
    domains = {d.mark.part: d for d in hypervisor.domains(kit.id) if d.mark.instance == files.instance}
    networks = {n.mark.part: n for n in hypervisor.networks(kit.id) if n.mark.instance == files.instance}
    volumes = {v.name: v for v in storage.volumes() if belongs_to(v.name, files.instance) or v.name.startswith("base.")}
    return Inventory(read_record(files) if trust_record else None, domains, networks, volumes, bases)


def taken_subnets(here: tuple[Subnet, ...], hypervisor: Hypervisor, have: Inventory) -> tuple[Subnet, ...]:
    """The subnets that a lab's networks must not overlap: the host's (`here`, which are without those of libvirt's bridges) and
    those of libvirt's networks but this instance's own. Others may have come to the very subnet that is this instance's."""
    own = {libvirt_holder(network.name) for network in have.networks.values()}
    return (*here, *(subnet for subnet in hypervisor.subnets() if subnet.holder not in own))
