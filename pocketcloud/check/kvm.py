"""How machines are run here: the architecture, KVM, and what libvirt offers of it. Without KVM labs still run, slowly."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from pocketcloud.check.fixes import Command, NewFile, lines
from pocketcloud.check.judgement import Check, Surroundings
from pocketcloud.host.accounts import may_use, qemu_account
from pocketcloud.host.files import line
from pocketcloud.host.kvm import virtualisation_flag
from pocketcloud.model.base import Arch
from pocketcloud.model.facts import Facts, KvmState
from pocketcloud.model.judgement import State

_GROUP = "kvm"
_WHY = "Without KVM guests run on emulation, ten to thirty times slower, and machines inside machines are out of reach."
# Kernel modules of other hypervisors.
_OTHERS = {"vboxdrv": "VirtualBox", "vmmon": "VMware Workstation"}
_32_BIT = ("armv6l", "armv7l", "armv8l", "i586", "i686")
_LOADED = Path("/etc/modules-load.d/pocketcloud-kvm.conf")
_MODULES = {"vmx": "kvm_intel", "svm": "kvm_amd"}
# Hypervisors as systemd-detect-virt calls them -> their name, and how they pass virtualisation on (from their manuals).
_BELOW = {
    "kvm": ("QEMU/KVM", " (libvirt: <cpu mode='host-passthrough'/>; Proxmox: CPU type host)"),
    "qemu": ("QEMU/KVM", " (libvirt: <cpu mode='host-passthrough'/>; Proxmox: CPU type host)"),
    "vmware": ("VMware", ' ("Expose hardware assisted virtualization to the guest OS", vhv.enable)'),
    "oracle": ("VirtualBox", " (VBoxManage modifyvm NAME --nested-hw-virt on)"),
    "microsoft": ("Hyper-V", " (Set-VMProcessor -VMName NAME -ExposeVirtualizationExtensions $true)"),
    "xen": ("Xen", " (nestedhvm=1)"),
    "google": ("Google Compute Engine", " (--enable-nested-virtualization, on Intel machines)"),
    "amazon": ("Amazon EC2", " (bare-metal instances, *.metal, need no nesting)"),
    "apple": ("Apple's virtualisation", " (from M3 and macOS 15 on)"),
}


def judge(here: Surroundings) -> Iterator[Check]:
    """The architecture with its profile, KVM, whether QEMU's user may open it, libvirt's view of it, other hypervisors."""
    yield _architecture(here)
    yield _kvm(here)
    yield _opened(here)
    yield _offered(here)
    yield _alone(here)


def _architecture(here: Surroundings) -> Check:
    why = "The profile decides how machines are shaped for this kind of host."
    facts, profile = here.facts, here.profile
    model = f" ({facts.model})" if facts.model else ""
    if facts.arch is None or profile is None:
        evidence = f"{facts.machine}{model}: no profile is meant for it; pocketcloud knows {', '.join(Arch)}"
        remedy = ("Use a 64-bit system: this is a 32-bit one",) if facts.machine in _32_BIT else ("Use another computer",)
        return Check("architecture", _GROUP, State.FAIL, evidence, why, remedy)
    return Check("architecture", _GROUP, State.OK, f"{facts.machine}{model}: profile {profile.profile}, {profile.title}", why)


def _kvm(here: Surroundings) -> Check:
    kvm = here.facts.kvm
    if kvm.state is KvmState.USABLE:
        return Check("kvm", _GROUP, State.OK, kvm.evidence, _WHY)
    evidence = f"{kvm.state}, so labs run on emulation: {kvm.evidence}"
    module = _MODULES.get(virtualisation_flag(here.root), "")
    if kvm.state is KvmState.ABSENT and module:
        fix = (Command(("modprobe", module)), NewFile(_LOADED, (module,), "KVM is there after each start"))
        return Check("kvm", _GROUP, State.WARN, evidence, _WHY, lines(fix), fix)
    return Check("kvm", _GROUP, State.WARN, evidence, _WHY, _remedy(here, kvm.state))


def _remedy(here: Surroundings, state: KvmState) -> tuple[str, ...]:
    facts = here.facts
    match state:
        case KvmState.DENIED:
            return ("usermod -aG kvm USER", "Log in again after that, or run pocketcloud as root")
        case KvmState.ABSENT | KvmState.SLOW:
            return (_beyond_commands(facts),)
        case KvmState.BROKEN:
            return ("dmesg | grep -i kvm", "Update the kernel, or the firmware of the board, by what the kernel says there")
        case KvmState.USABLE:
            return ()


def _beyond_commands(facts: Facts) -> str:
    """What to do about KVM where no command on this host helps."""
    if facts.virtualised:
        name, how = _BELOW.get(facts.virtualised, (facts.virtualised, ""))
        below = "a hypervisor that does not tell its name" if name == "unknown" else name
        return f"This computer is a guest of {below}: have nested virtualisation switched on there{how}, or use another computer"
    if facts.arch is Arch.AARCH64:
        return "Start the board with firmware and a 64-bit kernel that enter Linux at EL2 (mainline U-Boot and kernel do)"
    if facts.machine.startswith("arm"):
        return "Use a 64-bit system: a 32-bit kernel has no KVM on this processor"
    return "Switch on virtualisation (Intel VT-x, AMD SVM) in the computer's firmware setup, then power it off and on"


def _opened(here: Surroundings) -> Check:
    """QEMU's user on the device. udev sets the mode; where none runs it stays root's alone. libvirt 9.0 then finds what it
    learned about QEMU void, because that was learned as root, and asks QEMU anew, seconds long, for every machine."""
    why = "libvirt runs QEMU as a user of its own, and compares what that user may open with what it knows of QEMU."
    device = here.root / "dev/kvm"
    if here.facts.kvm.state not in (KvmState.USABLE, KvmState.SLOW):
        return Check("kvm-access", _GROUP, State.NOT_APPLICABLE, "there is no KVM here that could be opened", why)
    account = qemu_account(here.root)
    try:
        found = device.stat()
    except OSError as error:
        return Check("kvm-access", _GROUP, State.UNKNOWN, f"{device}: {error.strerror}", why)
    mode = f"{device} has mode {stat.filemode(found.st_mode)}, uid {found.st_uid}, gid {found.st_gid}"
    if account is None:
        return Check("kvm-access", _GROUP, State.UNKNOWN, f"{mode}; libvirt's packages made no user for QEMU here", why)
    if may_use(account, found):
        return Check("kvm-access", _GROUP, State.OK, f"{mode}: {account.name} may open it", why)
    state = State.FAIL if here.facts.kvm.state is KvmState.USABLE else State.WARN
    words = ("chgrp", "kvm", "/dev/kvm"), ("chmod", "0660", "/dev/kvm"), ("usermod", "-aG", "kvm", account.name)
    fix = tuple(Command(each) for each in words)
    return Check("kvm-access", _GROUP, state, f"{mode}: {account.name} may not open it", why, lines(fix), fix)


def _offered(here: Surroundings) -> Check:
    why = "libvirt starts the machines, so what it does not offer cannot be used."
    arch, facts = here.facts.arch, here.daemon.facts
    if here.facts.kvm.state is not KvmState.USABLE or arch is None:
        return Check("kvm-libvirt", _GROUP, State.NOT_APPLICABLE, "KVM is not usable here", why)
    if facts is None:
        return Check("kvm-libvirt", _GROUP, State.UNKNOWN, "libvirt cannot be asked", why)
    if arch in facts.kvm:
        return Check("kvm-libvirt", _GROUP, State.OK, f"libvirt at {facts.uri} offers KVM for {arch}", why)
    evidence = f"KVM is usable, but libvirt at {facts.uri} does not offer it for {arch}"
    # The daemon looks for /dev/kvm when it starts, and keeps its answer as long as the emulator does not change.
    restart = "systemctl restart libvirtd" if here.facts.systemd else "Restart libvirtd"
    return Check("kvm-libvirt", _GROUP, State.FAIL, evidence, why, (restart,))


def _alone(here: Surroundings) -> Check:
    """Since Linux 6.12 KVM takes the processor's virtualisation when its module is loaded, unless told otherwise; before, when
    the first machine starts (kernel-parameters.txt, kvm.enable_virt_at_load)."""
    why = "The processor's virtualisation belongs to one hypervisor at a time: machines of the other do not start, or crash."
    modules = {name: told for name, told in _OTHERS.items() if (here.root / "sys/module" / name).is_dir()}
    if not modules:
        return Check("other-hypervisors", _GROUP, State.OK, f"none of {', '.join(_OTHERS)} is loaded", why)
    names = ", ".join(f"{told} ({name})" for name, told in modules.items())
    at_load = line(here.root, "sys/module/kvm/parameters/enable_virt_at_load")
    takes = {"Y": "; KVM holds the processor from its loading on", "N": "; KVM takes the processor with the first machine"}
    remedy = (f"Stop the machines of {' and '.join(modules.values())} while labs run", f"modprobe -r {' '.join(modules)}")
    return Check("other-hypervisors", _GROUP, State.WARN, f"{names} is loaded{takes.get(at_load, '')}", why, remedy)
