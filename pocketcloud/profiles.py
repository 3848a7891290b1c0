"""Profiles: which one suits the host, and what it decides: how a machine is run, its disk settings, the memory for labs.

The values are in `profiles/*.yaml`; the choices here are pure functions over them and the host's facts.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pocketcloud.errors import BadDocument, Fault, HostLacks, NotFound
from pocketcloud.model.base import Arch
from pocketcloud.model.facts import Core, Facts, KvmState
from pocketcloud.model.profile import Acceleration, Profile, ProfileFile, Selector
from pocketcloud.resources import shipped

_BY_MEDIUM = ("media", "disk_speed")


@dataclass(frozen=True, slots=True)
class Shape:
    """How a machine is run: `machine` is QEMU's machine type, `cpu_mode` libvirt's. `reason` says in one line why it is not
    KVM, empty where it is. `cpus` are the host's processors that it has to stay on (`4-7`; empty: any)."""

    acceleration: Acceleration
    machine: str
    cpu_mode: str
    reason: str = ""
    cpus: str = ""


@functools.cache
def available(folder: Path | None = None) -> tuple[Profile, ...]:
    """The profiles in `folder` (left out: those we ship), by name. Raises BadDocument with the faults of the first bad file."""
    return tuple(_completed(name, _files(folder))[0] for name in _files(folder))


def origins(name: str, folder: Path | None = None) -> Mapping[str, str]:
    """By key (`host_memory`, `media.usb`), the name of the profile whose file says it. Raises KeyError for an unknown name."""
    return _completed(name, _files(folder))[1]


@functools.cache
def _files(folder: Path | None) -> Mapping[str, tuple[Path, ProfileFile]]:
    # Reading YAML takes pydantic, which a command line that only wants a type from here should not pay for.
    from pocketcloud.documents import load

    read = [(path, load(path, ProfileFile)) for path in sorted((folder or shipped("profiles")).glob("*.yaml"))]
    for path, file in read:
        if file.profile != path.stem:
            raise BadDocument(str(path), [Fault(0, "profile", f"expected {path.stem}, as the file is named, got {file.profile}")])
    return {file.profile: (path, file) for path, file in read}


def _completed(name: str, files: Mapping[str, tuple[Path, ProfileFile]]) -> tuple[Profile, Mapping[str, str]]:
    """A profile with what it extends, and which of them says each key."""
    path, file = files[name]
    line, ancestor = [file], file.extends
    while ancestor is not None:
        if ancestor not in files or any(ancestor == each.profile for each in line):
            known = ", ".join(other for other in files if other != name)
            raise BadDocument(str(path), [Fault(0, "extends", f"expected another profile ({known}), got {ancestor}")])
        line.append(files[ancestor][1])
        ancestor = line[-1].extends
    values: dict[str, Any] = {}
    said: dict[str, str] = {}
    for key in (field.name for field in fields(Profile)):
        for each in reversed(line):
            value = getattr(each, key)
            if key in _BY_MEDIUM:
                values[key] = {**values.get(key, {}), **(value or {})}
                said |= {f"{key}.{medium}": each.profile for medium in value or ()}
            elif value is not None:
                values[key], said[key] = value, each.profile
    missing = [field.name for field in fields(Profile) if field.default is MISSING and values.get(field.name) in (None, {})]
    if missing:
        raise BadDocument(str(path), [Fault(0, key, "missing here and in what it extends") for key in missing])
    return Profile(**values), said


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
    return is_kind(selector, facts) and selector.acceleration in (None, host_acceleration(facts))


def is_kind(selector: Selector, facts: Facts) -> bool:
    """Whether the host is such a computer, whatever its KVM is worth."""
    return (
        (not selector.arch or facts.arch in selector.arch)
        and (selector.device_tree is None or selector.device_tree == facts.device_tree)
        and (not selector.compatible or _compatible(selector, facts) != "")
    )


def _compatible(selector: Selector, facts: Facts) -> str:
    return next((name for name in facts.compatible for wanted in selector.compatible if fnmatchcase(name, wanted)), "")


def why_chosen(profile: Profile, facts: Facts) -> str:
    """What of the host a profile was chosen by, in words."""
    selects = profile.selects
    reasons = [f"this computer is {facts.machine}"] if selects.arch else []
    if name := _compatible(selects, facts):
        reasons.append(f"its device tree says {name}")
    elif selects.device_tree is not None:
        reasons.append(f"it has {'a' if facts.device_tree else 'no'} device tree")
    if selects.acceleration is not None:
        reasons.append(f"KVM is {facts.kvm.state} here")
    return ", ".join(reasons)


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
            hint="choose another with --profile (pocketcloud profile list); whether a lab would run on such a computer says "
            f"pocketcloud check --profile {profile.profile} --lab LAB",
        )
    machine = profile.machine[arch]
    if profile.acceleration is Acceleration.KVM and arch is facts.arch:
        if facts.kvm.state not in (KvmState.USABLE, KvmState.SLOW):
            raise HostLacks(
                f"profile {profile.profile} needs KVM, which is {facts.kvm.state}: {facts.kvm.evidence}",
                hint="--profile emulated runs without it",
            )
        quick = quickest_cores(facts.cores)
        return Shape(Acceleration.KVM, machine, profile.cpu_mode, cpus=ranges(quick.cpus) if quick else "")
    cpu_mode = profile.cpu_mode if profile.acceleration is Acceleration.EMULATION else "maximum"
    return Shape(Acceleration.EMULATION, machine, cpu_mode, why_emulated(profile, facts, arch))


def why_emulated(profile: Profile, facts: Facts, arch: Arch) -> str:
    """One line for people: why a machine of `arch` is emulated."""
    if facts.arch is not None and arch is not facts.arch:
        return f"emulated: the guest is {arch}, this host is {facts.arch}"
    if host_acceleration(facts) is Acceleration.KVM:
        return f"emulated: profile {profile.profile} says so, although KVM is usable here"
    return f"emulated: KVM is {facts.kvm.state} here: {facts.kvm.evidence}"


def quickest_cores(cores: Sequence[Core]) -> Core | None:
    """Of several kinds of cores, those that a machine is to stay on; None where all are of one kind.

    A virtual processor that was made on one kind does not start on another (KVM_ARM_VCPU_INIT, "Invalid argument";
    terraform-provider-libvirt issue 1140). Those that can do the most together are taken, of equals the last, because
    device trees name the slow ones first.
    """
    if len(cores) < 2:
        return None
    told = all(core.capacity for core in cores)
    return max(enumerate(cores), key=lambda each: (each[1].capacity if told else len(each[1].cpus), each[0]))[1]


def ranges(cpus: Iterable[int]) -> str:
    """Numbers as the kernel and libvirt write them: `0-3,6`."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and parts[-1][-1] == cpu - 1:
            parts[-1][1:] = [cpu]
        else:
            parts.append([cpu])
    return ",".join("-".join(map(str, part)) for part in parts)


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
