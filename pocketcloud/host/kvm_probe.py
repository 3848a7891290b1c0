"""A timed loop in a guest of one vCPU, made through KVM's ioctls. A program of its own: `python -I kvm_probe.py /dev/kvm`.

It prints one JSON object and knows nothing of the rest: kvm.py starts it with a time limit and judges the figures, so that
a hung ioctl cannot hang the tool. Only the standard library, because it is started by its path, outside the package.

A loop, because answering proves nothing: there are hosts whose /dev/kvm answers and computes right while every instruction
is emulated. In each of the modes that a kernel passes through on its way up, because some processors and hypervisors run
only some of them by themselves.

Outside facts: the ioctls' numbers and structures are those of Linux's Documentation/virt/kvm/api.rst. Through ctypes, because
Python's fcntl.ioctl does not take an argument as large as the address that KVM_SET_TSS_ADDR wants.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import platform
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

LOOPS = 100_000
INSTRUCTIONS = 2 * LOOPS
# A result this slow is looked at again: a busy host may have taken the processor away in the middle of the loop.
_SUSPICIOUS_SECONDS = 0.01
# This slow twice, it is no busy host: a KVM that emulates takes 80 ms and more. In between it is worth some more looks.
_EMULATED_SECONDS = 0.07
_LOOKS = 6
MAGIC = 0x600D
API_VERSION = 12

GET_API_VERSION = 0xAE00
CREATE_VM = 0xAE01
_CHECK_EXTENSION = 0xAE03
GET_VCPU_MMAP_SIZE = 0xAE04
CREATE_VCPU = 0xAE41
_CREATE_DEVICE = 0xC00CAEE0
SET_TSS_ADDR = 0xAE47
RUN = 0xAE80
SET_USER_MEMORY_REGION = 0x4020AE46
SET_REGS = 0x4090AE82
GET_REGS = 0x8090AE81
SET_SREGS = 0x4138AE84
GET_SREGS = 0x8138AE83
SET_ONE_REG = 0x4010AEAC
ARM_VCPU_INIT = 0x4020AEAE
ARM_PREFERRED_TARGET = 0x8020AEAF

# Capabilities that tell of nesting: the size of a nested guest's state (x86), guests that enter EL2 (arm64, Linux 6.16).
_CAP_NESTED_STATE = 157
_CAP_ARM_EL2 = 240

EXIT_HLT = 5
EXIT_MMIO = 6
GUEST_MEMORY = 0x10000
CODE = 0x1000
_TABLES = 0x2000  # of long mode: three pages, which map the first 2 MiB onto themselves
_ARM_MMIO = 0x1000_0000
_ARM_VGICS = (5, 7)  # KVM_DEV_TYPE_ARM_VGIC_V2, _V3
_DEVICE_TEST = 1
# KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | (offset of pc in struct kvm_regs, in 32-bit words)
ARM_REG_PC = 0x6030_0000_0010_0040

# mov ecx, LOOPS; l: dec ecx; jnz l; mov eax, ecx; add eax, MAGIC; hlt. 16-bit code with 32-bit operands.
_REAL_CODE = b"".join(
    (
        b"\x66\xb9" + struct.pack("<I", LOOPS),
        b"\x66\x49",
        b"\x75\xfc",
        b"\x66\x89\xc8",
        b"\x66\x05" + struct.pack("<I", MAGIC),
        b"\xf4",
    )
)
# The same in an encoding that 32-bit and 64-bit code share.
FLAT_CODE = b"".join(
    (
        b"\xb9" + struct.pack("<I", LOOPS),
        b"\xff\xc9",
        b"\x75\xfc",
        b"\x89\xc8",
        b"\x05" + struct.pack("<I", MAGIC),
        b"\xf4",
    )
)
ARM_CODE = struct.pack(
    "<8I",
    0xD2800000 | (LOOPS & 0xFFFF) << 5,  # movz x0, #(LOOPS & 0xffff)
    0xF2A00000 | (LOOPS >> 16) << 5,  # movk x0, #(LOOPS >> 16), lsl #16
    0xF1000400,  # l: subs x0, x0, #1
    0x54FFFFE1,  # b.ne l
    0xD2A00001 | (_ARM_MMIO >> 16) << 5,  # movz x1, #(_ARM_MMIO >> 16), lsl #16
    0xD2800002 | MAGIC << 5,  # movz x2, #MAGIC
    0x8B000042,  # add x2, x2, x0
    0xB9000022,  # str w2, [x1], where no memory is: leaves the guest
)


class Failed(Exception):
    """KVM answered otherwise than it should."""


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong)


def _ioctl(fd: int, request: int, name: str, argument: int | ctypes.Array[ctypes.c_char] = 0) -> int:
    value = argument if isinstance(argument, int) else ctypes.addressof(argument)
    while (result := int(_libc.ioctl(fd, request, value))) < 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise Failed(f"{name}: {os.strerror(code)}")
    return result


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _before_x86(vm: int) -> None:
    """Older Intel processors need three pages for themselves to run real mode; harmless elsewhere."""
    _ioctl(vm, SET_TSS_ADDR, "KVM_SET_TSS_ADDR", 0xFFFB_D000)


def _enter_real(special: ctypes.Array[ctypes.c_char], _memory: mmap.mmap) -> None:
    """A fresh vCPU stands at the reset vector, in real mode; only the code segment has to move."""
    # struct kvm_segment cs is the first: u64 base, u32 limit, u16 selector
    struct.pack_into("<Q", special, 0, 0)
    struct.pack_into("<H", special, 12, 0)


def _enter_protected(special: ctypes.Array[ctypes.c_char], _memory: mmap.mmap) -> None:
    for offset, value in protected_mode():
        struct.pack_into("<Q", special, offset, value)


def protected_mode() -> list[tuple[int, int]]:
    """Flat 32-bit segments, no paging: what to write into struct kvm_sregs, 64 bits at each offset."""
    special = bytearray(_CR4)
    _flat_segments(special, long=False)
    struct.pack_into("<Q", special, _CR0, _PE)
    return [(offset, *struct.unpack_from("<Q", special, offset)) for offset in (*range(0, _SEGMENTS, 8), _CR0)]


def _enter_long(special: ctypes.Array[ctypes.c_char], memory: mmap.mmap) -> None:
    """64-bit code behind page tables of four levels, the last left out by one large page."""
    present_writable, large = 3, 0x83
    struct.pack_into("<Q", memory, _TABLES, _TABLES + 0x1000 | present_writable)
    struct.pack_into("<Q", memory, _TABLES + 0x1000, _TABLES + 0x2000 | present_writable)
    struct.pack_into("<Q", memory, _TABLES + 0x2000, large)
    _flat_segments(special, long=True)
    struct.pack_into("<Q", special, _CR0, _PE | _PG)
    struct.pack_into("<Q", special, _CR3, _TABLES)
    struct.pack_into("<Q", special, _CR4, _PAE)
    struct.pack_into("<Q", special, _EFER, _LME | _LMA)


# struct kvm_sregs: eight segments of 24 bytes (cs ds es fs gs ss tr ldt), two descriptor tables of 16, cr0 cr2 cr3 cr4 cr8 efer
_SEGMENTS, _CR0, _CR3, _CR4, _EFER = 144, 224, 240, 248, 264
_PE, _PG, _PAE, _LME, _LMA = 1, 1 << 31, 1 << 5, 1 << 8, 1 << 10


def _flat_segments(special: ctypes.Array[ctypes.c_char] | bytearray, *, long: bool) -> None:
    """Code and data segments over all memory. struct kvm_segment: u64 base, u32 limit, u16 selector, u8 type, present, dpl,
    db, s, l, g, avl, unusable, padding."""
    segment = struct.Struct("<QIH10B")
    code = (0, 0xFFFF_FFFF, 8, 11, 1, 0, int(not long), 1, int(long), 1, 0, 0, 0)
    data = (0, 0xFFFF_FFFF, 16, 3, 1, 0, 1, 1, 0, 1, 0, 0, 0)
    for number, values in enumerate((code, data, data, data, data, data)):
        segment.pack_into(special, number * segment.size, *values)


def _enter_x86(vcpu: int, prepare: Callable[[ctypes.Array[ctypes.c_char], mmap.mmap], None], memory: mmap.mmap) -> None:
    special = ctypes.create_string_buffer(312)
    _ioctl(vcpu, GET_SREGS, "KVM_GET_SREGS", special)
    prepare(special, memory)
    _ioctl(vcpu, SET_SREGS, "KVM_SET_SREGS", special)
    # struct kvm_regs: rax rbx rcx rdx rsi rdi rsp rbp r8..r15 rip rflags; bit 1 of rflags is always set
    general = ctypes.create_string_buffer(struct.pack("<18Q", *[0] * 16, CODE, 2), 144)
    _ioctl(vcpu, SET_REGS, "KVM_SET_REGS", general)


def _x86_result(vcpu: int, _state: mmap.mmap) -> int:
    general = ctypes.create_string_buffer(144)
    _ioctl(vcpu, GET_REGS, "KVM_GET_REGS", general)
    return int(struct.unpack_from("<Q", general)[0])


def _before_arm(vm: int) -> None:
    """Some boards (Raspberry Pi 3) have no interrupt controller that KVM can share; QEMU's machines need one."""
    for kind in _ARM_VGICS:
        # struct kvm_create_device: u32 type, u32 fd, u32 flags
        wanted = ctypes.create_string_buffer(struct.pack("<III", kind, 0, _DEVICE_TEST), 12)
        if _libc.ioctl(vm, _CREATE_DEVICE, ctypes.addressof(wanted)) == 0:
            return
    raise Failed("KVM has no interrupt controller for guests here (neither GICv2 nor GICv3)")


def _enter_arm(vm: int, vcpu: int, _memory: mmap.mmap) -> None:
    """At CODE, in EL1 with the MMU off, as KVM_ARM_VCPU_INIT leaves it."""
    init = ctypes.create_string_buffer(32)
    _ioctl(vm, ARM_PREFERRED_TARGET, "KVM_ARM_PREFERRED_TARGET", init)
    _ioctl(vcpu, ARM_VCPU_INIT, "KVM_ARM_VCPU_INIT", init)
    value = ctypes.c_uint64(CODE)
    register = ctypes.create_string_buffer(struct.pack("<QQ", ARM_REG_PC, ctypes.addressof(value)), 16)
    _ioctl(vcpu, SET_ONE_REG, "KVM_SET_ONE_REG", register)


def _arm_result(_vcpu: int, state: mmap.mmap) -> int:
    # struct kvm_run, mmio: u64 phys_addr at 32, u8 data[8] at 40
    address, data = struct.unpack_from("<QI", state, 32)
    if address != _ARM_MMIO:
        raise Failed(f"the guest left at address {address:#x}, not at {_ARM_MMIO:#x}")
    return int(data)


@dataclass(frozen=True)
class _Guest:
    """How the loop is run in one mode: its code, how to stand at it, how it leaves, where the result is."""

    mode: str
    code: bytes
    before: Callable[[int], None]
    enter: Callable[[int, int, mmap.mmap], None]
    exit_reason: int
    result: Callable[[int, mmap.mmap], int]


def _x86_guest(mode: str, code: bytes, prepare: Callable[[ctypes.Array[ctypes.c_char], mmap.mmap], None]) -> _Guest:
    def enter(_vm: int, vcpu: int, memory: mmap.mmap) -> None:
        _enter_x86(vcpu, prepare, memory)

    return _Guest(mode, code, _before_x86, enter, EXIT_HLT, _x86_result)


_GUESTS = {
    "x86_64": (
        _x86_guest("real", _REAL_CODE, _enter_real),
        _x86_guest("protected", FLAT_CODE, _enter_protected),
        _x86_guest("long", FLAT_CODE, _enter_long),
    ),
    "aarch64": (_Guest("EL1", ARM_CODE, _before_arm, _enter_arm, EXIT_MMIO, _arm_result),),
}


def _once(guest: _Guest, kvm: int) -> float:
    """Run the loop once, in a new guest; seconds it took."""
    vm = _ioctl(kvm, CREATE_VM, "KVM_CREATE_VM")
    memory = mmap.mmap(-1, GUEST_MEMORY)
    memory[CODE : CODE + len(guest.code)] = guest.code
    # struct kvm_userspace_memory_region: u32 slot, u32 flags, u64 guest_phys_addr, u64 memory_size, u64 userspace_addr
    region = ctypes.create_string_buffer(struct.pack("<IIQQQ", 0, 0, 0, GUEST_MEMORY, _address(memory)), 32)
    _ioctl(vm, SET_USER_MEMORY_REGION, "KVM_SET_USER_MEMORY_REGION", region)
    guest.before(vm)
    vcpu = _ioctl(vm, CREATE_VCPU, "KVM_CREATE_VCPU")
    state = mmap.mmap(vcpu, _ioctl(kvm, GET_VCPU_MMAP_SIZE, "KVM_GET_VCPU_MMAP_SIZE"))
    guest.enter(vm, vcpu, memory)
    begin = time.perf_counter()
    _ioctl(vcpu, RUN, "KVM_RUN")
    seconds = time.perf_counter() - begin
    reason = struct.unpack_from("<I", state, 8)[0]
    if reason != guest.exit_reason:
        raise Failed(f"in {guest.mode} mode the guest left with KVM's exit reason {reason}, not {guest.exit_reason}")
    if (got := guest.result(vcpu, state)) != MAGIC:
        raise Failed(f"in {guest.mode} mode the loop computed {got:#x}, not {MAGIC:#x}")
    os.close(vcpu)
    os.close(vm)
    return seconds


def _best(guest: _Guest, kvm: int, *, emulated: bool) -> float:
    """The seconds of a mode; `emulated`: another mode was found to be."""
    seconds = _once(guest, kvm)
    for _ in range(1, _LOOKS):
        if seconds <= _SUSPICIOUS_SECONDS or (seconds > _EMULATED_SECONDS and emulated):
            break
        seconds = min(seconds, _once(guest, kvm))
        emulated |= seconds > _EMULATED_SECONDS
    return seconds


def measure(device: str, machine: str) -> dict[str, object]:
    """Run the loop through `device` on a `machine` as `uname -m` says it: seconds by mode (the best of some looks where the
    first was slow), the register's value, the nested state's size in bytes and whether guests may enter EL2 (0 where that is not
    known). Raises Failed where KVM does not do as it should, OSError where it cannot be opened."""
    if not (guests := _GUESTS.get(machine)):
        raise Failed(f"no loop was written for {machine}")
    # Cores of a board can differ, and a vCPU made on one kind does not run on the other.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    kvm = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    version = _ioctl(kvm, GET_API_VERSION, "KVM_GET_API_VERSION")
    if version != API_VERSION:
        raise Failed(f"KVM_GET_API_VERSION says {version}, not {API_VERSION}")
    taken: dict[str, float] = {}
    for guest in guests:
        taken[guest.mode] = _best(guest, kvm, emulated=any(before > _EMULATED_SECONDS for before in taken.values()))
    return {
        "seconds": taken,
        "value": MAGIC,
        "instructions": INSTRUCTIONS,
        "nested_state": _ioctl(kvm, _CHECK_EXTENSION, "KVM_CHECK_EXTENSION", _CAP_NESTED_STATE),
        "arm_el2": _ioctl(kvm, _CHECK_EXTENSION, "KVM_CHECK_EXTENSION", _CAP_ARM_EL2),
    }


def main(arguments: list[str]) -> int:
    """Print the figures, or why there are none; the exit code is 0 either way."""
    device = arguments[0] if arguments else "/dev/kvm"
    answer: dict[str, object]
    try:
        answer = measure(device, platform.machine())
    except Failed as failed:
        answer = {"failed": str(failed)}
    except OSError as error:
        answer = {"failed": f"{device}: {error.strerror}", "errno": error.errno}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
