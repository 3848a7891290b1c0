"""Proofs that take guests (`check --deep`): that a lab's machine starts here, and that one finds a KVM of its own.

The first goes through libvirt, as labs do: what fails on other people's computers is QEMU as libvirt's user, on /dev/kvm, under
AppArmor or SELinux, and its console's log. The second starts QEMU itself (see nested_guest.py). Both have a deadline, and leave
neither a machine nor a file; what another run of this left, because it was killed, goes with the next.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from pocketcloud.check import nesting
from pocketcloud.check.judgement import Check, Surroundings
from pocketcloud.check.nested_guest import Answer, Module, Verdict, ask, read_module, verdict
from pocketcloud.check.trial import LINE, NAME, Trial, sweep_folders, sweep_machines, trial_folder, trial_spec, try_machine
from pocketcloud.errors import PocketcloudError
from pocketcloud.host.kernels import Kernel, module_files, read_kernels
from pocketcloud.host.kvm import virtualisation_flag
from pocketcloud.hypervisor import DomainState
from pocketcloud.model.base import Arch
from pocketcloud.model.facts import KvmState
from pocketcloud.model.judgement import State
from pocketcloud.model.profile import Acceleration
from pocketcloud.profiles import shape

_GROUP = "deep"
BOOT_SECONDS = 90.0
NESTED_SECONDS = 240.0
"""Deadlines. A PC needs seconds; ARM's firmware 10 under emulation, and a kernel under nested KVM on an emulated processor, the
slowest that was tried, 55 to 110."""

_MODULES = {"vmx": "kvm_intel", "svm": "kvm_amd"}
_ACCELERATORS = {Acceleration.KVM: "KVM", Acceleration.EMULATION: "emulation"}
# libvirt keeps a log of QEMU for each machine, of those too that are gone.
_QEMU_LOGS = "var/log/libvirt/qemu"
_LOGS = (f"tail /{_QEMU_LOGS}/{NAME}.*.log", "dmesg | grep -i -e denied -e kvm")
_AS_ROOT = "sudo pocketcloud check --deep"


def judge(here: Surroundings) -> Iterator[Check]:
    """Whether a machine starts, and whether a machine in it could."""
    sweep_folders()
    yield _boot(here)
    yield _nested(here)


# -- a machine, as labs have them -------------------------------------------------------------------------------------


def _boot(here: Surroundings) -> Check:
    why = "A lab's machine starts in the same way: libvirt, QEMU under its user, and what guards them."
    arch, profile = here.facts.arch, here.profile
    if arch is None or profile is None or arch not in profile.machine:
        return Check("deep-boot", _GROUP, State.NOT_APPLICABLE, f"no machine is known for {here.facts.machine}", why)
    try:
        shaped = shape(profile, here.facts, arch)
        if here.daemon.failure is not None:
            raise here.daemon.failure
        hypervisor = here.hypervisor()  # it has answered before
        sweep_machines(hypervisor)
    except PocketcloudError as failure:
        remedy = ("The check `libvirt` says what to do",)
        return Check("deep-boot", _GROUP, State.UNKNOWN, f"no machine could be asked for: {_first(failure)}", why, remedy)
    try:
        with trial_folder() as folder:
            spec = trial_spec(folder, arch, shaped)
            trial = try_machine(hypervisor, spec, within=BOOT_SECONDS)
    except OSError as failure:
        return Check("deep-boot", _GROUP, State.UNKNOWN, f"its disk could not be written: {failure}", why)
    except PocketcloudError as failure:
        return Check("deep-boot", _GROUP, State.FAIL, _first(failure), why, (*_hint(failure), *_LOGS))
    check = booted(trial, f"a {spec.machine} machine under {_ACCELERATORS[spec.acceleration]}, started through libvirt", why)
    if check.state is State.OK:
        with contextlib.suppress(OSError):
            (here.root / _QEMU_LOGS / f"{spec.name}.log").unlink()
    return check


def booted(run: Trial, how: str, why: str) -> Check:
    """The judgement over a machine on trial."""
    took = f"{run.seconds:.1f} s"
    if run.state is DomainState.OFF and run.said is None:
        evidence = f"{how}, switched itself off after {took}; what it said only root may read"
        return Check("deep-boot", _GROUP, State.OK, evidence, why)
    if run.state is DomainState.OFF and run.said and LINE in run.said:
        return Check("deep-boot", _GROUP, State.OK, f'{how}, said "{LINE}" and switched itself off after {took}', why)
    ended = {
        DomainState.RUNNING: f"did not switch itself off within {took}",
        DomainState.OFF: f"was off after {took} without a word",
        DomainState.CRASHED: f"ended after {took}, because QEMU did",
        DomainState.PAUSED: f"was paused after {took}",
    }[run.state]
    last = f"; the last it said: {_last(run.said)}" if run.said else ""
    return Check("deep-boot", _GROUP, State.FAIL, f"{how}, {ended}{last}", why, _LOGS)


# -- a machine that has machines --------------------------------------------------------------------------------------


class _Cannot(Exception):
    """Why the guest cannot be made here, with the remedy."""

    def __init__(self, reason: str, *remedy: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


def _nested(here: Surroundings) -> Check:
    why = "A setting says that KVM nests; this shows whether a machine in a machine really runs."
    arch, kvm = here.facts.arch, here.facts.kvm
    if kvm.state is KvmState.DENIED:
        return Check("deep-nesting", _GROUP, State.UNKNOWN, kvm.evidence, why, (_AS_ROOT,))
    if kvm.state is not KvmState.USABLE or arch is None:
        evidence = f"KVM is {kvm.state} here, so there is none to be passed on"
        return Check("deep-nesting", _GROUP, State.NOT_APPLICABLE, evidence, why)
    setting = next(nesting.judge(here))
    if arch is Arch.AARCH64 and not kvm.arm_el2:
        return Check("deep-nesting", _GROUP, State.NOT_APPLICABLE, setting.evidence, why)
    words = ("-accel", "kvm", "-cpu", "host", *(("-machine", "virtualization=on") if arch is Arch.AARCH64 else ()))
    try:
        with trial_folder() as folder:
            emulator, kernel, modules = _made_of(here, arch, folder)
            began = time.monotonic()
            answer = ask(emulator, arch, kernel.image, modules, words, folder=folder, within=NESTED_SECONDS, run=here.run)
            seconds = time.monotonic() - began
    except _Cannot as cannot:
        return Check("deep-nesting", _GROUP, State.UNKNOWN, cannot.reason, why, cannot.remedy)
    except (OSError, PocketcloudError) as failure:
        return Check("deep-nesting", _GROUP, State.UNKNOWN, f"the guest could not be started: {failure}", why)
    how = f"{emulator.name} with the processor passed through, Linux {kernel.release}, {seconds:.1f} s"
    return _judged(answer, modules, arch, how, why, setting.remedy)


def _judged(answer: Answer, modules: tuple[Module, ...], arch: Arch, how: str, why: str, setting: tuple[str, ...]) -> Check:
    found, words = verdict(answer, modules, arch)
    evidence = f"{how}: {words}"
    match found:
        case Verdict.RUNS:
            return Check("deep-nesting", _GROUP, State.OK, evidence, why)
        case Verdict.RUNS_NOT:
            remedy = setting or ("The check `nesting` finds nothing wrong: dmesg | grep -i kvm, and update kernel and firmware",)
            return Check("deep-nesting", _GROUP, State.WARN, evidence, why, remedy)
        case Verdict.PACKED:
            return Check("deep-nesting", _GROUP, State.UNKNOWN, evidence, why, ("Install zstd, which unpacks such modules",))
        case Verdict.UNTOLD:
            return Check("deep-nesting", _GROUP, State.UNKNOWN, evidence, why, ("dmesg | grep -i kvm",))


def _made_of(here: Surroundings, arch: Arch, folder: Path) -> tuple[Path, Kernel, tuple[Module, ...]]:
    """The emulator, a kernel that can be read, and its modules. Raises _Cannot."""
    emulator = here.find(f"qemu-system-{arch}")
    # EL has one emulator, outside of PATH, under a name without the architecture.
    if emulator is None and (only := here.root / "usr/libexec/qemu-kvm").is_file():
        emulator = only
    if emulator is None:
        raise _Cannot(f"qemu-system-{arch} is not installed", *here.install("qemu"))
    wanted = _MODULES.get(virtualisation_flag(here.root), "kvm") if arch is Arch.X86_64 else "kvm"
    reasons = []
    for kernel in read_kernels(here.root, here.facts.kernel):
        files = module_files(here.root, kernel.release, wanted)
        if files is None:
            reasons.append(_Cannot(f"Linux {kernel.release} has no module {wanted} here", *_other_kernel(here)))
        elif not kernel.readable:
            reasons.append(_Cannot(f"only root may read {kernel.image}", _AS_ROOT))
        else:
            try:
                return emulator, kernel, tuple(read_module(file, folder, here.run) for file in files)
            except (OSError, PocketcloudError) as failure:
                reasons.append(_Cannot(f"a module of Linux {kernel.release} cannot be read: {failure}", *_other_kernel(here)))
    if reasons:
        raise reasons[0]
    places = "/boot or /usr/lib/modules"
    raise _Cannot(f"there is no kernel with its modules in {places} for a guest to start from", *_other_kernel(here))


def _other_kernel(here: Surroundings) -> tuple[str, ...]:
    if here.facts.virtualised in ("docker", "podman", "lxc", "lxc-libvirt", "systemd-nspawn", "container-other"):
        return ("Run it on the computer itself: containers have no kernel of their own",)
    return (
        "Install the distribution's kernel package with its modules, or run it on the computer itself if this is a container",
    )


def _first(failure: PocketcloudError) -> str:
    return failure.message.splitlines()[0]


def _last(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else "nothing"


def _hint(failure: PocketcloudError) -> tuple[str, ...]:
    return (f"Try this: {failure.hint}",) if failure.hint else ()
