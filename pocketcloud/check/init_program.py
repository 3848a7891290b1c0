"""A program for the first process of a tiny Linux guest, made here: a static ELF file of a few kilobytes, whatever this host has.

It is a list of system calls and nothing else: the program takes them one after the other, keeps each result, where later
calls and we can use it, and writes it to its standard output, which is the guest's console. Everything that needs thought is
done by us, before and afterwards. So the guest needs no C library, no interpreter and no shell, and the machine code is short
enough to be written by hand, for each architecture.

Outside facts: the numbers of system calls are Linux's (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/
unistd.h), the calling conventions syscall(2)'s, the file's format elf(5)'s.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from pocketcloud.model.base import Arch

PREFIX = "pocketcloud:"
_LABEL = 8
_BASE = 0x40_0000
_STEPS = 0x200
_POOL = 0x4000
_MEMORY = 0x1_0000
"""Where, from _BASE on: first the code, then the table of calls, the numbers and texts that they use, and free memory."""
_SIZE = 0x5_0000
_STEP = struct.Struct(f"<q6QQ{_LABEL}s")
# Not a system call: the result is what the first argument says.
_MOVE = -1

# open's numbers are those of the call that takes a folder first: some architectures have no other.
_NUMBERS: Mapping[Arch, Mapping[str, int]] = {
    Arch.X86_64: {
        "write": 1, "mmap": 9, "ioctl": 16, "exit": 60, "mount": 165, "reboot": 169, "clock_gettime": 228, "openat": 257,
        "finit_module": 313,
    },
    Arch.AARCH64: {
        "write": 64, "mmap": 222, "ioctl": 29, "exit": 93, "mount": 40, "reboot": 142, "clock_gettime": 113, "openat": 56,
        "finit_module": 273,
    },
}  # fmt: skip
_ELF_MACHINES = {Arch.X86_64: 62, Arch.AARCH64: 183}


@dataclass(frozen=True, slots=True)
class At:
    """An address in the program's free memory, from its beginning: 64 bits there, when given as an argument's value."""

    offset: int

    @property
    def address(self) -> int:
        """As the guest's processor has it."""
        return _BASE + _MEMORY + self.offset


Value = int | str | At
"""A number; a text, of which the guest gets the address; or what is in memory by the time of the call."""


class InitProgram:
    """The list as it grows. `call` and `move` give the place of their result, which later calls may take as an argument.

    A call that fails has a negative result, as Linux has it (-ENOENT), and those after it are made all the same.
    """

    def __init__(self, arch: Arch) -> None:
        self.arch = arch
        self._steps: list[tuple[int, tuple[Value, ...], At, str]] = []
        self._filled: dict[int, bytes] = {}
        # Results are kept at the end of the memory, where nobody is given any.
        self._results = _SIZE - _MEMORY

    def call(self, name: str, *arguments: Value, label: str = "") -> At:
        """A system call; with a `label` (8 characters at most) its result is told."""
        return self._add(_NUMBERS[self.arch][name], arguments, None, label)

    def move(self, value: Value, *, to: At | None = None, label: str = "") -> At:
        """Put 64 bits somewhere, or tell them."""
        return self._add(_MOVE, (value,), to, label)

    def fill(self, place: At, content: bytes) -> None:
        """What is at this place in memory from the beginning."""
        self._filled[place.offset] = content

    def _add(self, number: int, arguments: tuple[Value, ...], to: At | None, label: str) -> At:
        if len(label) > _LABEL:
            raise ValueError(f"{label!r} has more than {_LABEL} characters")
        if to is None:
            self._results -= 8
            to = At(self._results)
        self._steps.append((number, arguments, to, label))
        return to

    def elf(self) -> bytes:
        """The program as a file. It ends by itself only if its last call does not return."""
        pool = bytearray(8)  # a zero, for arguments that a call does not have
        zero = _BASE + _POOL

        def pooled(value: Value) -> int:
            if isinstance(value, At):
                return value.address
            if isinstance(value, str):
                at = len(pool)
                text = value.encode() + b"\0"
                pool.extend(text + bytes(-len(text) % 8))
                value = _BASE + _POOL + at
            at = len(pool)
            pool.extend(struct.pack("<Q", value & (1 << 64) - 1))
            return _BASE + _POOL + at

        table = bytearray()
        for number, arguments, to, label in self._steps:
            cells = [pooled(argument) for argument in arguments] + [zero] * (6 - len(arguments))
            table += _STEP.pack(number, *cells, to.address, label.ljust(_LABEL).encode() if label else b"")
        line = len(pool)
        pool += f"{PREFIX}{' ' * _LABEL} {'0' * 16}\n0123456789abcdef".encode()
        code = _CODE[self.arch](_BASE + _STEPS, _BASE + _POOL + line)
        image = bytearray(_MEMORY + max((offset + len(content) for offset, content in self._filled.items()), default=0))
        header = _header(self.arch, len(image))
        for at, part, end in ((0, header + code, _STEPS), (_STEPS, table, _POOL), (_POOL, pool, _MEMORY)):
            if at + len(part) > end:
                raise ValueError(f"{len(part)} bytes do not fit between {at:#x} and {end:#x}")
            image[at : at + len(part)] = part
        for offset, content in self._filled.items():
            image[_MEMORY + offset : _MEMORY + offset + len(content)] = content
        return bytes(image)


def results(console: str) -> dict[str, int]:
    """What the program told on the console: results by label."""
    found = re.findall(rf"{PREFIX}(\S{{1,{_LABEL}}}) *([0-9a-f]{{16}})\s", console)
    return {label: struct.unpack(">q", bytes.fromhex(number))[0] for label, number in found}


def _header(arch: Arch, size: int) -> bytes:
    """One segment, which is all of the file and can be read, written and run."""
    entry = _BASE + 64 + 56
    file = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, _ELF_MACHINES[arch], 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return file + struct.pack("<IIQQQQQQ", 1, 7, 0, _BASE, _BASE, size, _SIZE, 0x1000)


_HEX_AT = len(PREFIX) + _LABEL + 1
_LINE = _HEX_AT + 17


def _x86(steps: int, line: int) -> bytes:
    def word(value: int) -> str:
        return struct.pack("<I", value).hex()

    parts = (
        ("bb", word(steps)),  # mov ebx, steps
        ("48 8b 03",),  # step: mov rax, [rbx]
        ("48 8b 7b 08",),  # mov rdi, [rbx + 8]
        ("48 8b 73 10",),  # mov rsi, [rbx + 16]
        ("48 8b 53 18",),  # mov rdx, [rbx + 24]
        ("4c 8b 53 20",),  # mov r10, [rbx + 32]
        ("4c 8b 43 28",),  # mov r8, [rbx + 40]
        ("4c 8b 4b 30",),  # mov r9, [rbx + 48]
        ("48 8b 3f",),  # mov rdi, [rdi]
        ("48 8b 36",),  # mov rsi, [rsi]
        ("48 8b 12",),  # mov rdx, [rdx]
        ("4d 8b 12",),  # mov r10, [r10]
        ("4d 8b 00",),  # mov r8, [r8]
        ("4d 8b 09",),  # mov r9, [r9]
        ("48 85 c0",),  # test rax, rax
        ("78 04",),  # js move
        ("0f 05",),  # syscall
        ("eb 03",),  # jmp keep
        ("48 89 f8",),  # move: mov rax, rdi
        ("48 8b 4b 38",),  # keep: mov rcx, [rbx + 56]
        ("48 89 01",),  # mov [rcx], rax
        ("48 8b 4b 40",),  # mov rcx, [rbx + 64]
        ("48 85 c9",),  # test rcx, rcx
        ("74 3e",),  # jz next
        ("48 89 0c 25", word(line + len(PREFIX))),  # mov [line + prefix], rcx
        ("bf", word(line + _HEX_AT)),  # mov edi, hex
        ("b9 10 00 00 00",),  # mov ecx, 16
        ("48 c1 c0 04",),  # digit: rol rax, 4
        ("89 c2",),  # mov edx, eax
        ("83 e2 0f",),  # and edx, 15
        ("8a 92", word(line + _LINE)),  # mov dl, [rdx + digits]
        ("88 17",),  # mov [rdi], dl
        ("48 ff c7",),  # inc rdi
        ("e2 ea",),  # loop digit
        ("b8 01 00 00 00",),  # mov eax, 1 (write)
        ("bf 01 00 00 00",),  # mov edi, 1
        ("be", word(line)),  # mov esi, line
        ("ba", word(_LINE)),  # mov edx, length
        ("0f 05",),  # syscall
        ("48 83 c3", f"{_STEP.size:02x}"),  # next: add rbx, size of a step
        ("e9", struct.pack("<i", 0).hex()),  # jmp step
    )
    code = bytearray(bytes.fromhex("".join("".join(part) for part in parts)))
    struct.pack_into("<i", code, len(code) - 4, 5 - len(code))
    return bytes(code)


def _arm(steps: int, line: int) -> bytes:
    def load(register: int, value: int) -> list[int]:
        """movz, movk of the upper half"""
        return [0xD2800000 | (value & 0xFFFF) << 5 | register, 0xF2A00000 | (value >> 16) << 5 | register]

    code = [
        *load(19, steps),
        0xF9400268,  # step: ldr x8, [x19]
        *(0xF9400260 | (number + 1) << 10 | number for number in range(6)),  # ldr x0..x5, [x19, #8..48]
        *(0xF9400000 | number << 5 | number for number in range(6)),  # ldr x0, [x0] .. ldr x5, [x5]
        0xB7F80048,  # tbnz x8, #63, keep
        0xD4000001,  # svc #0
        0xF9401E69,  # keep: ldr x9, [x19, #56]
        0xF9000120,  # str x0, [x9]
        0xF9402269,  # ldr x9, [x19, #64]
        0xB4000249,  # cbz x9, next
        *load(10, line),
        0xF8000149 | len(PREFIX) << 12,  # stur x9, [x10, #prefix]
        0x91000000 | _HEX_AT << 10 | 10 << 5 | 11,  # add x11, x10, #hex
        0x91000000 | _LINE << 10 | 10 << 5 | 12,  # add x12, x10, #digits
        0xD280020D,  # movz x13, #16
        0x93C0F000,  # digit: ror x0, x0, #60
        0x92400C0E,  # and x14, x0, #15
        0x386E698E,  # ldrb w14, [x12, x14]
        0x3800156E,  # strb w14, [x11], #1
        0xF10005AD,  # subs x13, x13, #1
        0x54FFFF61,  # b.ne digit
        0xD2800808,  # movz x8, #64 (write)
        0xD2800020,  # movz x0, #1
        0xAA0A03E1,  # mov x1, x10
        0xD2800002 | _LINE << 5,  # movz x2, #length
        0xD4000001,  # svc #0
        0x91000273 | _STEP.size << 10,  # next: add x19, x19, #size
    ]
    code.append(0x14000000 | (2 - len(code)) & 0x3FFFFFF)  # b step
    return struct.pack(f"<{len(code)}I", *code)


_CODE = {Arch.X86_64: _x86, Arch.AARCH64: _arm}
