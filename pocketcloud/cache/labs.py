"""What labs ask of the cache: the bases of their machines, and the packages that those name."""

from __future__ import annotations

from collections.abc import Collection as Several
from collections.abc import Mapping

from pocketcloud.bases import definitions
from pocketcloud.cache.syncing import joined
from pocketcloud.model.base import Arch
from pocketcloud.model.cache import Kind, Wish
from pocketcloud.model.lab import Lab
from pocketcloud.model.names import Name


def packages_of(lab: Lab, but: Several[Name] = ()) -> dict[Name, tuple[str, ...]]:
    """The packages that machines of the lab name, all but those `but`, by base."""
    found: dict[Name, tuple[str, ...]] = {}
    for name, machine in lab.machines.items():
        if machine.packages and name not in but:
            found[machine.base] = tuple(dict.fromkeys((*found.get(machine.base, ()), *machine.packages)))
    return found


def wishes_of(lab: Lab, owner: Name, native: Arch, more: tuple[str, ...] = ()) -> tuple[Wish, ...]:
    """What is to be kept for a lab that goes by the name `owner`: those of its bases that can be built (others, imported
    images, are in the kit or nowhere), each with what its machines install and `more`. `native`: the architecture of a lab that
    names none."""
    known = definitions.names()
    named, arch = packages_of(lab), lab.arch_on(native)
    bases = dict.fromkeys(machine.base for machine in lab.machines.values() if machine.base in known)
    return tuple(
        Wish(Kind.BASE, base, arch, tuple(dict.fromkeys((*named.get(base, ()), *more))), labs=(owner,), asked=False)
        for base in bases
    )


def renewed(wishes: tuple[Wish, ...], labs: Mapping[Name, Lab], native: Arch) -> tuple[Wish, ...]:
    """The wishes with what these labs name by now: a lab file that was edited since may ask for more."""
    asking = {owner for wish in wishes for owner in wish.labs}
    for owner, lab in labs.items():
        for wish in wishes_of(lab, owner, native) if owner in asking else ():
            wishes = joined(wishes, wish)
    return wishes
