"""Profiles: which one suits the host, and what it decides: how a machine is run, its disk settings, the memory for labs.

The values are in `profiles/*.yaml`; the choices here are pure functions over them and the host's facts.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.errors import HostLacks, NotFound
from pocketcloud.model.base import Arch
from pocketcloud.model.facts import Facts, KvmState
from pocketcloud.model.profile import Acceleration, Profile, Selector
from pocketcloud.resources import shipped


@dataclass(frozen=True, slots=True)
class Shape:
    """How a machine is run: `machine` is QEMU's machine type, `cpu_mode` libvirt's. `reason` says in one line why it is not
    KVM, empty where it is."""

    acceleration: Acceleration
    machine: str
    cpu_mode: str
    reason: str = ""


@functools.cache
def available(folder: Path | None = None) -> tuple[Profile, ...]:
    """The profiles in `folder` (left out: those we ship), by name. Raises BadDocument with the faults of the first bad file."""
    # Reading YAML takes pydantic, which a command line that only wants a type from here should not pay for.
    from pocketcloud.documents import load

    files = sorted((folder or shipped("profiles")).glob("*.yaml"))
    return tuple(sorted((load(path, Profile) for path in files), key=lambda profile: profile.profile))


def find(name: str, profiles: Sequence[Profile] | None = None) -> Profile:
    """The profile of that name. Raises NotFound, naming those there are."""
    known = available() if profiles is None else profiles
    for profile in known:
        if profile.profile == name:
            return profile
    raise NotFound(
        f"no profile {name!r}; there are: {', '.join(profile.profile for profile in known)}",
        hint="pocketcloud profile list shows them, with the one chosen for this host",
    )


def host_acceleration(facts: Facts) -> Acceleration:
    """What guests of the host's own architecture can be run by: KVM only where its timed loop proved it usable."""
    return Acceleration.KVM if facts.kvm.state is KvmState.USABLE else Acceleration.EMULATION


def matches(selector: Selector, facts: Facts) -> bool:
    """Whether a profile with this selector is meant for the host."""
    return (
        (not selector.arch or facts.arch in selector.arch)
        and (selector.acceleration is None or selector.acceleration is host_acceleration(facts))
        and (selector.device_tree is None or selector.device_tree == facts.device_tree)
        and (not selector.model or (facts.device_tree and selector.model.lower() in facts.model.lower()))
    )


def choose(facts: Facts, profiles: Sequence[Profile] | None = None) -> Profile:
    """The profile for the host: of those that match, the one of the highest precedence, then the first by name. Raises
    HostLacks on a host that none is meant for."""
    if facts.arch is None:
        known = ", ".join(Arch)
        raise HostLacks(f"this computer's architecture is {facts.machine}; pocketcloud runs on: {known}")
    fitting = [p for p in (available() if profiles is None else profiles) if matches(p.selects, facts)]
    if not fitting:
        raise HostLacks(
            f"no profile is meant for this host ({facts.machine}, KVM {facts.kvm.state})",
            hint="name one with --profile; pocketcloud profile list shows them",
        )
    return min(fitting, key=lambda profile: (-profile.precedence, profile.profile))


def shape(profile: Profile, facts: Facts, arch: Arch) -> Shape:
    """How a machine of architecture `arch` is run on this host under this profile.

    KVM runs only guests of the host's own architecture; others are emulated, whatever the profile says. A profile with KVM
    that was named by hand is obeyed where KVM is merely slow. Raises HostLacks where KVM cannot be opened at all, and where
    the profile has no machine type for `arch`.
    """
    if arch not in profile.machine:
        raise HostLacks(
            f"profile {profile.profile} has no machine type for {arch}: it runs {', '.join(profile.machine)}",
            hint="choose another with --profile; pocketcloud profile list shows them",
        )
    machine = profile.machine[arch]
    if profile.acceleration is Acceleration.KVM and arch is facts.arch:
        if facts.kvm.state not in (KvmState.USABLE, KvmState.SLOW):
            raise HostLacks(
                f"profile {profile.profile} needs KVM, which is {facts.kvm.state}: {facts.kvm.evidence}",
                hint="--profile emulated runs without it",
            )
        return Shape(Acceleration.KVM, machine, profile.cpu_mode)
    cpu_mode = profile.cpu_mode if profile.acceleration is Acceleration.EMULATION else "maximum"
    return Shape(Acceleration.EMULATION, machine, cpu_mode, why_emulated(profile, facts, arch))


def why_emulated(profile: Profile, facts: Facts, arch: Arch) -> str:
    """One line for people: why a machine of `arch` is emulated."""
    if facts.arch is not None and arch is not facts.arch:
        return f"emulated: the guest is {arch}, this host is {facts.arch}"
    if host_acceleration(facts) is Acceleration.KVM:
        return f"emulated: profile {profile.profile} says so, although KVM is usable here"
    return f"emulated: KVM is {facts.kvm.state} here: {facts.kvm.evidence}"


# -- memory -----------------------------------------------------------------------------------------------------------


def memory_needed(profile: Profile, machines: Iterable[int]) -> int:
    """Bytes that machines with these memories (bytes each) take from the host, QEMU's own share counted."""
    return sum(memory + profile.machine_overhead for memory in machines)


def memory_for_labs(facts: Facts, profile: Profile, running: int) -> int:
    """Bytes that machines yet to be started may take, QEMU's own share counted (`memory_needed`); never below 0.

    `running` is what the machines that run now were promised (`memory_needed` of them). Two bounds hold. What is available
    now, less what the profile keeps for the host. And what the computer has, less that and the promises: guests do not touch
    all their memory at once, so what looks available may be promised already.
    """
    now = facts.memory_available - profile.host_memory
    promised = facts.memory - profile.host_memory - running
    return max(0, min(now, promised))
