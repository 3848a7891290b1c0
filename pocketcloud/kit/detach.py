"""Takes a kit out of this host's libvirt, so that nothing here points into it any more."""

from __future__ import annotations

from pocketcloud.errors import Refused
from pocketcloud.hypervisor import DomainState, Hypervisor
from pocketcloud.model.kit import Kit


def withdraw(kit: Kit, hypervisor: Hypervisor) -> tuple[int, int]:
    """Undefine the kit's domains and networks; how many of each. Raises Refused while a machine of the kit runs.

    Nothing is lost: the next `lab up` after attaching defines them again from the kit.
    """
    domains = hypervisor.domains(kit.id)
    running = [domain for domain in domains if domain.state is not DomainState.OFF]
    if running:
        labs = sorted({domain.mark.instance for domain in running})
        raise Refused(
            f"kit {kit.name} is in use: {', '.join(domain.name for domain in running)} run",
            hint="; ".join(f"pocketcloud lab down {lab}" for lab in labs),
        )
    networks = hypervisor.networks(kit.id)
    for domain in domains:
        hypervisor.undefine(domain.name)
    for network in networks:
        hypervisor.remove_network(network.name)
    return len(domains), len(networks)
