"""Machines inside machines: whether this host's KVM gives its machines a KVM of their own, how quick that is, and whether
libvirt knows. Where it cannot be, what works in its place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pocketcloud.check.fixes import Action, Command, NewFile, lines
from pocketcloud.check.judgement import Check, Surroundings
from pocketcloud.host.nesting import KvmModule, read_arm_mode, read_module
from pocketcloud.host.packages import Family, family
from pocketcloud.model.base import Arch
from pocketcloud.model.facts import Core, Facts, KvmState
from pocketcloud.model.judgement import State
from pocketcloud.model.profile import Acceleration
from pocketcloud.plan.demands import Lack
from pocketcloud.profiles import Shape

_GROUP = "nesting"
WHY = "Labs of hypervisors (OpenStack, oVirt, labs within labs) need a KVM inside their machines; without it these only emulate."
_INSTEAD = "machines of one level run on KVM, machines inside them on emulation, ten to thirty times slower"
_FLAGS = {"kvm_intel": "vmx", "kvm_amd": "svm"}
# The first Linux that lets guests enter EL2 (merge 7f3225fe8bc2, May 2025).
_ARM_KERNEL = (6, 16)
_FILE = Path("/etc/modprobe.d/pocketcloud-nesting.conf")


class Seen(Protocol):
    """What is looked at: the host's facts, and where its files lie."""

    @property
    def facts(self) -> Facts:
        """The facts."""
        ...

    @property
    def root(self) -> Path:
        """The root of its files."""
        ...


@dataclass(frozen=True, slots=True)
class Host:
    """A host, outside of `check`."""

    facts: Facts
    root: Path


def judge(here: Surroundings) -> Iterator[Check]:
    """Whether KVM nests, with what help of the processor, and what libvirt offers of it."""
    nesting = judged(here)
    yield nesting
    yield _speed(here, nesting.state)
    yield _offered(here, nesting.state)


def lacking(here: Seen, shape: Shape) -> Lack | None:
    """Why a machine that is run so gets no KVM for machines of its own, and what to do about it; None: it gets one."""
    if shape.acceleration is Acceleration.EMULATION:
        if here.facts.kvm.state is KvmState.USABLE:
            return Lack("its machines are emulated, although KVM is usable", "")
        return Lack(f"its machines are emulated, as KVM is {here.facts.kvm.state}", "pocketcloud check says what KVM lacks")
    if here.facts.arch is Arch.AARCH64:
        # QEMU's `virt` has a switch for it (virtualization=on), libvirt's XML has none: formatdomain, "CPU model and topology".
        return Lack("libvirt has no words for machines on ARM that run machines", "")
    found = judged(here)
    if found.state is State.OK or (found.state is State.UNKNOWN and here.facts.kvm.nested_state):
        return None
    return Lack(found.evidence, "pocketcloud check --fix" if found.fix else "; ".join(found.remedy))


def judged(here: Seen) -> Check:
    """Whether KVM nests."""
    kvm, arch = here.facts.kvm, here.facts.arch
    if kvm.state is not KvmState.USABLE or arch is None:
        evidence = "KVM is not usable here, so there is none to be passed on; machines inside machines are emulated twice over"
        return Check("nesting", _GROUP, State.NOT_APPLICABLE, evidence, WHY)
    return _on_arm(here) if arch is Arch.AARCH64 else _on_x86(here)


# -- x86


def _on_x86(here: Seen) -> Check:
    module = read_module(here.root)
    if module is None or module.nested is None:
        read = f"{module.name}: its parameter `nested` cannot be read" if module else "neither kvm_intel nor kvm_amd is loaded"
        return Check("nesting", _GROUP, State.UNKNOWN, read, WHY)
    evidence = f"/sys/module/{module.name}/parameters/nested is {'on' if module.nested else 'off'}"
    if module.nested:
        return Check("nesting", _GROUP, State.OK, evidence + _below(here), WHY)
    if module.built_in:
        remedy = f"Add {module.name}.nested=1 to the kernel's command line and start the computer again: KVM is built in"
        return Check("nesting", _GROUP, State.WARN, evidence, WHY, (remedy,))
    fix = _switch_on(module)
    if module.users:
        first = "Stop all virtual machines first: the module is in use"
        return Check("nesting", _GROUP, State.WARN, evidence, WHY, (first, *lines(fix)))
    return Check("nesting", _GROUP, State.WARN, evidence, WHY, lines(fix), fix)


def _switch_on(module: KvmModule) -> tuple[Action, ...]:
    reload = (Command(("modprobe", "-r", module.name)), Command(("modprobe", module.name)))
    why = "machines inside of machines get KVM"
    undo = f"modprobe -r {module.name} && modprobe {module.name}"
    return (NewFile(_FILE, (f"options {module.name} nested=1",), why, undo), *reload)


def _below(here: Seen) -> str:
    return "; this computer is itself a guest, so that is one level less than on its host" if here.facts.virtualised else ""


# -- ARM


def _on_arm(here: Seen) -> Check:
    cores, kernel = here.facts.cores, here.facts.kernel
    if here.facts.kvm.arm_el2:
        return Check("nesting", _GROUP, State.OK, f"KVM lets guests enter EL2 (KVM_CAP_ARM_EL2){_below(here)}", WHY)
    never = [core for core in cores if core.nests is False]
    if never:
        evidence = f"{_named(never)}: machines inside machines take FEAT_NV2, from Armv8.4 on. What works here: {_INSTEAD}"
        return Check("nesting", _GROUP, State.NOT_APPLICABLE, evidence, WHY)
    told = _named(cores) or "cores of an unknown kind"
    mode = read_arm_mode(here.root)
    evidence = f"KVM does not let guests enter EL2; {told}, Linux {kernel}, kvm-arm.mode={mode or 'not set'}"
    if _number(kernel) < _ARM_KERNEL:
        oldest = ".".join(map(str, _ARM_KERNEL))
        return Check("nesting", _GROUP, State.WARN, evidence, WHY, (f"Use Linux {oldest} or newer", *_arm_mode(here)))
    if mode != "nested":
        return Check("nesting", _GROUP, State.WARN, evidence, WHY, _arm_mode(here))
    lacks = f"{evidence}: the processor, or the hypervisor below this computer, lacks FEAT_NV2. What works here: {_INSTEAD}"
    return Check("nesting", _GROUP, State.NOT_APPLICABLE, lacks, WHY)


def _named(cores: tuple[Core, ...] | list[Core]) -> str:
    return ", ".join(f"{core.name} (Armv{core.version})" if core.version else core.name for core in cores)


def _number(kernel: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"[0-9]{1,9}", kernel)[:2])


def _arm_mode(here: Seen) -> tuple[str, ...]:
    word = "kvm-arm.mode=nested"
    match family(here.facts.distribution):
        case Family.FEDORA | Family.EL:
            return (f"grubby --update-kernel=ALL --args={word}", "reboot")
        case Family.DEBIAN | Family.UBUNTU:
            return (f"Add {word} to GRUB_CMDLINE_LINUX in /etc/default/grub", "update-grub", "reboot")
        case _:
            return (f"Add {word} to the kernel's command line and start the computer again",)


# -- how quick, and what libvirt says


def _speed(here: Surroundings, nesting: State) -> Check:
    why = "Without these each exit of a nested machine is worked out by the host's kernel, and everything in it takes longer."
    module = read_module(here.root)
    if nesting is not State.OK or module is None:
        return Check("nesting-speed", _GROUP, State.NOT_APPLICABLE, "nothing nests here, or not on x86", why)
    off = [name for name, on in module.helpers.items() if not on]
    told = ", ".join(f"{name} {'on' if on else 'off'}" for name, on in module.helpers.items()) or "nothing told"
    if not off:
        return Check("nesting-speed", _GROUP, State.OK, f"{module.name}: {told}", why)
    below = "Ask for them in the hypervisor below this computer" if here.facts.virtualised else "Older processors lack them"
    remedy = f"{below}; `modinfo {module.name}` tells its parameters, and /etc/modprobe.d what sets them"
    return Check("nesting-speed", _GROUP, State.WARN, f"{module.name}: {told}", why, (remedy,))


def _offered(here: Surroundings, nesting: State) -> Check:
    why = "libvirt decides what processor a machine sees: a nested machine needs its virtualisation flag there."
    module, features = read_module(here.root), here.daemon.cpu_features
    if nesting is not State.OK or module is None:
        return Check("nesting-libvirt", _GROUP, State.NOT_APPLICABLE, "nothing nests here, or not on x86", why)
    if features is None:
        return Check("nesting-libvirt", _GROUP, State.UNKNOWN, "libvirt could not be asked for its domain capabilities", why)
    flag = _FLAGS[module.name]
    if flag in features:
        return Check("nesting-libvirt", _GROUP, State.OK, f"its domain capabilities give machines the flag {flag}", why)
    evidence = f"its domain capabilities (host-model) give machines no flag {flag}, although KVM nests"
    restart = "systemctl restart libvirtd" if here.facts.systemd else "Restart libvirtd"
    remedy = (restart, f"If it stays so: virsh domcapabilities --virttype kvm | grep -w {flag}")
    return Check("nesting-libvirt", _GROUP, State.WARN, evidence, why, remedy)
