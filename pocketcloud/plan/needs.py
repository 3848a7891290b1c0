"""What a lab says that it takes as a whole (`needs:` in its file), beside what its machines say each for themselves."""

from __future__ import annotations

from pocketcloud.errors import HostLacks
from pocketcloud.model.inventory import Inventory
from pocketcloud.model.lab import Lab, Outside
from pocketcloud.model.sizes import size_text
from pocketcloud.plan.drafting import Ground


def lacking(lab: Lab, have: Inventory, ground: Ground) -> list[str]:
    """What this host and kit lack of the memory and the space that the lab says it needs, in words for people. Memory counts
    while nothing of it runs, space before it is raised for the first time: later it has its part of both."""
    problems = []
    needs, overhead = lab.needs, ground.profile.machine_overhead * len(lab.machines)
    if needs.memory and not any(domain.active for domain in have.domains.values()):
        wanted, least = needs.memory + overhead, sum(machine.memory for machine in lab.machines.values()) + overhead
        # Where not even its machines fit, that is told with their names.
        if wanted > ground.memory >= least:
            free = size_text(max(ground.memory, 0))
            problems.append(
                f"memory: lab {lab.lab} needs {size_text(wanted)}, QEMU's share counted; this host can give labs {free}"
                f" (profile {ground.profile.profile})"
            )
    if needs.space and have.record is None and needs.space > ground.space:
        free = size_text(ground.space)
        problems.append(f"space: lab {lab.lab} needs {size_text(needs.space)}; kit {ground.kit} has {free} free")
    return problems


def check_outside(lab: Lab, have: Inventory, *, online: bool) -> None:
    """Raise HostLacks for a lab that fetches, while it is made, what only a network has, where there is none."""
    done = have.record.machines if have.record else {}
    new = [name for name, machine in lab.machines.items() if machine.to_provision and name not in done]
    if lab.needs.outside is Outside.NETWORK and new and not online:
        raise HostLacks(
            f"lab {lab.lab} needs a network while it is made ({', '.join(new)}): it fetches what the kit's cache does not keep",
            hint="raise it where there is one; what is raised works without, too (lab up again, reset). There is one: --online",
        )
