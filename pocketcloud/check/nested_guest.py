"""The proof that machines inside machines get KVM: a tiny Linux guest with this host's processor looks for its own /dev/kvm, and
runs a loop in a guest of its own.

Its kernel and KVM modules are this host's, its first process is a list of system calls (init_program.py), its loop is that of
host/kvm_probe.py. QEMU is started without libvirt: what is to be shown is the processor's and KVM's doing, and libvirt would hand
the kernel's file over to QEMU's user for the while. That labs' machines start through it is what the trial (trial.py) proves.
"""

from __future__ import annotations

import errno
import gzip
import lzma
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pocketcloud.check.init_program import At, InitProgram, results
from pocketcloud.cpio import cpio
from pocketcloud.host import kvm_probe as kvm
from pocketcloud.model.base import Arch
from pocketcloud.system import CommandFailed, Runner, which

# Debian's kernel with its modules unpacked takes about 100 MiB.
_MEMORY_MIB = 256
_CONSOLES = {Arch.X86_64: "ttyS0", Arch.AARCH64: "ttyAMA0"}
_MACHINES = {Arch.X86_64: "q35", Arch.AARCH64: "virt,gic-version=max"}
# What a kernel does at its start that this guest has no use for; errors are told, and end it at once.
_KERNEL_WORDS = "loglevel=4 panic=-1 mitigations=off cryptomgr.notests edd=off nokaslr rcupdate.rcu_expedited=1"

_O_RDWR = 2
_AT_FDCWD = -100
_READ_WRITE, _SHARED_FIXED = 3, 0x11
_MONOTONIC = 1
# reboot(2): two magic numbers, then what to do; QEMU is told to end instead.
_RESTART = (0xFEE1DEAD, 0x28121969, 0x01234567)
# finit_module(2), since Linux 5.17: the kernel decompresses the file.
_COMPRESSED = 4

# Places in the program's memory: the inner guest's memory, what it shares with KVM, structures.
_GUEST, _SHARED, _STRUCTURES = 0, 0x1_0000, 0x2_0000
_BEFORE, _AFTER = At(_STRUCTURES + 0xF00), At(_STRUCTURES + 0xF20)


@dataclass(frozen=True, slots=True)
class Module:
    """A module as the guest gets it; `compressed`: the guest's kernel has to unpack it."""

    name: str
    content: bytes
    compressed: bool


def read_module(file: Path, folder: Path, run: Runner) -> Module:
    """A module's file, unpacked if that can be done here; `folder` is for what is made on the way. Raises OSError for one that
    cannot be read or unpacked.

    Kernels since 5.17 can unpack modules by themselves, those that were told so when they were built.
    """
    name, _, packed = file.name.partition(".ko")
    try:
        content, compressed = _unpacked(file, packed, folder / f"{name}.ko", run)
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, CommandFailed) as failure:
        raise OSError(errno.EBADMSG, f"cannot be unpacked ({failure})", str(file)) from failure
    return Module(name, content, compressed=compressed)


def _unpacked(file: Path, packed: str, aside: Path, run: Runner) -> tuple[bytes, bool]:
    """What is in it, and whether it is still packed."""
    match packed:
        case ".xz":
            return lzma.decompress(file.read_bytes()), False
        case ".gz":
            return gzip.decompress(file.read_bytes()), False
        case ".zst" if which("zstd"):
            run(["zstd", "-q", "-d", "-f", file, "-o", aside], timeout=60)
            return aside.read_bytes(), False
        case _:
            return file.read_bytes(), packed != ""


def proof(arch: Arch, modules: Sequence[Module]) -> InitProgram:
    """What the guest's first process does to find its KVM; what it does in the end is left open."""
    program = InitProgram(arch)
    program.call("mount", "devtmpfs", "/dev", "devtmpfs", 0, 0)
    for number, module in enumerate(modules):
        file = program.call("openat", _AT_FDCWD, f"/{module.name}.ko", 0)
        program.call("finit_module", file, "", _COMPRESSED if module.compressed else 0, label=f"mod{number}")
    device = program.call("openat", _AT_FDCWD, "/dev/kvm", _O_RDWR, label="open")
    program.call("ioctl", device, kvm.GET_API_VERSION, 0, label="version")
    vm = program.call("ioctl", device, kvm.CREATE_VM, 0, label="vm")
    region = At(_STRUCTURES)
    # struct kvm_userspace_memory_region: u32 slot, u32 flags, u64 guest_phys_addr, u64 memory_size, u64 userspace_addr
    program.fill(region, struct.pack("<IIQQQ", 0, 0, 0, kvm.GUEST_MEMORY, At(_GUEST).address))
    program.call("ioctl", vm, kvm.SET_USER_MEMORY_REGION, region.address, label="memory")
    if arch is Arch.X86_64:
        program.call("ioctl", vm, kvm.SET_TSS_ADDR, 0xFFFB_D000, label="tss")
    vcpu = program.call("ioctl", vm, kvm.CREATE_VCPU, 0, label="vcpu")
    size = program.call("ioctl", device, kvm.GET_VCPU_MMAP_SIZE, 0, label="size")
    program.call("mmap", At(_SHARED).address, size, _READ_WRITE, _SHARED_FIXED, vcpu, 0, label="mmap")
    (_enter_x86 if arch is Arch.X86_64 else _enter_arm)(program, vm, vcpu)
    program.call("clock_gettime", _MONOTONIC, _BEFORE.address)
    program.call("ioctl", vcpu, kvm.RUN, 0, label="run")
    program.call("clock_gettime", _MONOTONIC, _AFTER.address)
    for name, place in (("before", _BEFORE), ("after", _AFTER)):
        program.move(place, label=name)
        program.move(At(place.offset + 8), label=f"{name}_n")
    program.move(At(_SHARED + 8), label="exit")  # struct kvm_run: u32 exit_reason at 8
    if arch is Arch.X86_64:
        general = At(_STRUCTURES + 0x400)
        program.call("ioctl", vcpu, kvm.GET_REGS, general.address)
        program.move(general, label="value")  # rax is the first
    else:
        program.move(At(_SHARED + 40), label="value")  # struct kvm_run, mmio: u64 phys_addr at 32, u8 data[8] at 40
    return program


def init_program(arch: Arch, modules: Sequence[Module]) -> bytes:
    """The guest's first process, as an ELF file: it ends by ending the guest."""
    program = proof(arch, modules)
    program.call("reboot", *_RESTART, 0)
    program.call("exit", 0)
    return program.elf()


def _enter_x86(program: InitProgram, _vm: At, vcpu: At) -> None:
    """As kvm_probe.py does it, in protected mode: real mode is emulated on some processors."""
    special, general = _STRUCTURES + 0x100, At(_STRUCTURES + 0x400)
    program.call("ioctl", vcpu, kvm.GET_SREGS, At(special).address, label="gsregs")
    for offset, value in kvm.protected_mode():
        program.move(value, to=At(special + offset))
    program.call("ioctl", vcpu, kvm.SET_SREGS, At(special).address, label="ssregs")
    program.fill(general, struct.pack("<18Q", *[0] * 16, kvm.CODE, 2))
    program.call("ioctl", vcpu, kvm.SET_REGS, general.address, label="regs")
    program.fill(At(_GUEST + kvm.CODE), kvm.FLAT_CODE)


def _enter_arm(program: InitProgram, vm: At, vcpu: At) -> None:
    init, register, value = At(_STRUCTURES + 0x100), At(_STRUCTURES + 0x200), At(_STRUCTURES + 0x300)
    program.call("ioctl", vm, kvm.ARM_PREFERRED_TARGET, init.address, label="target")
    program.call("ioctl", vcpu, kvm.ARM_VCPU_INIT, init.address, label="init")
    program.fill(value, struct.pack("<Q", kvm.CODE))
    program.fill(register, struct.pack("<QQ", kvm.ARM_REG_PC, value.address))
    program.call("ioctl", vcpu, kvm.SET_ONE_REG, register.address, label="regs")
    program.fill(At(_GUEST + kvm.CODE), kvm.ARM_CODE)


def initramfs(arch: Arch, modules: Sequence[Module]) -> bytes:
    """The guest's files: its first process, the modules, and the device nodes for a kernel without devtmpfs."""
    folder, node, program, file = 0o040755, 0o020600, 0o100755, 0o100644
    return cpio(
        [
            ("dev", folder, b"", 0),
            ("dev/console", node, b"", os.makedev(5, 1)),
            ("dev/kvm", node, b"", os.makedev(10, 232)),
            ("init", program, init_program(arch, modules), 0),
            *((f"{module.name}.ko", file, module.content, 0) for module in modules),
        ]
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """What the guest told: results by label, its console, and how QEMU ended (empty: by itself, as it should)."""

    told: dict[str, int]
    console: str
    ended: str


def ask(
    emulator: Path,
    arch: Arch,
    kernel: Path,
    modules: Sequence[Module],
    processor: Sequence[str],
    *,
    folder: Path,
    within: float,
    run: Runner,
) -> Answer:
    """Start the guest in `folder` and wait until it has ended, `within` seconds at most. `processor` are QEMU's words for the
    accelerator and the processor; to the machine's own settings it may add with -machine."""
    archive, console = folder / "initramfs", folder / "console"
    archive.write_bytes(initramfs(arch, modules))
    words: list[str | Path] = [
        emulator, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-machine", _MACHINES[arch], *processor, "-smp", "1", "-m", str(_MEMORY_MIB), "-serial", f"file:{console}",
        "-kernel", kernel, "-initrd", archive, "-append", f"console={_CONSOLES[arch]} {_KERNEL_WORDS}",
    ]  # fmt: skip
    # If we are killed, nobody is left to end QEMU but coreutils' timeout.
    guarded = ["timeout", "--kill-after=5", f"{within + 10:.0f}", *words] if which("timeout") else words
    ended = ""
    try:
        run(guarded, timeout=within)
    except CommandFailed as failed:
        ended = (failed.completed.err.strip() or failed.message).splitlines()[-1]
    said = console.read_text(encoding="utf-8", errors="replace") if console.exists() else ""
    return Answer(results(said), said, ended)


class Verdict(StrEnum):
    """What an answer comes to."""

    RUNS = "runs"
    RUNS_NOT = "does not run"
    PACKED = "the guest cannot unpack its modules"
    UNTOLD = "untold"


def verdict(answer: Answer, modules: Sequence[Module], arch: Arch) -> tuple[Verdict, str]:
    """What the guest's answer says of nesting, and in which words."""
    told = answer.told
    loaded = {f"mod{number}": module for number, module in enumerate(modules)}
    for label, module in loaded.items():
        if told.get(label, 0) < 0 and told[label] != -errno.EEXIST:
            return _not_loaded(module, -told[label], answer.console)
    if "open" not in told:
        return Verdict.UNTOLD, f"the guest said nothing of KVM; {answer.ended or _last_line(answer.console)}"
    if told["open"] < 0:
        return Verdict.RUNS_NOT, f"the guest has no /dev/kvm of its own: {os.strerror(-told['open'])}"
    for label, result in told.items():
        if result < 0 and label not in (*loaded, "tss"):
            return Verdict.RUNS_NOT, f"the guest has a /dev/kvm, but its step `{label}` failed: {os.strerror(-result)}"
    if "value" not in told:
        return Verdict.RUNS_NOT, f"the guest has a /dev/kvm, and stopped while it ran a guest of its own; {answer.ended}"
    leaves = kvm.EXIT_HLT if arch is Arch.X86_64 else kvm.EXIT_MMIO
    reason, value = told["exit"] & 0xFFFF_FFFF, told["value"] & 0xFFFF_FFFF
    if (reason, value) != (leaves, kvm.MAGIC):
        wrong = f"its guest left with KVM's exit reason {reason} and {value:#x}, not with {leaves} and {kvm.MAGIC:#x}"
        return Verdict.RUNS_NOT, f"the guest has a /dev/kvm, but {wrong}"
    milliseconds = (told["after"] - told["before"]) * 1e3 + (told["after_n"] - told["before_n"]) / 1e6
    loop = f"a loop of {kvm.INSTRUCTIONS} instructions took {milliseconds:.3g} ms in a guest of its own"
    return Verdict.RUNS, f"the guest opened its own /dev/kvm, and {loop}"


def _not_loaded(module: Module, code: int, console: str) -> tuple[Verdict, str]:
    if module.compressed:
        return Verdict.PACKED, f"the guest's kernel cannot unpack its module {module.name}: {os.strerror(code)}"
    said = [line.partition("] ")[2] for line in console.splitlines() if "kvm: " in line or "kvm_" in line]
    because = f" ({said[-1]})" if said and said[-1] else ""
    return Verdict.RUNS_NOT, f"the guest's kernel does not load its {module.name}: {os.strerror(code)}{because}"


def _last_line(console: str) -> str:
    lines = console.strip().splitlines()
    return f"its console ends with: {lines[-1]}" if lines else "its console is empty"
