"""The smallest machines that start as a lab's do: a disk of one mebibyte whose program says a line on the console, and switches
the machine off. On x86 a boot sector, on ARM, which knows only UEFI, a program that the firmware starts.

Outside facts: the BIOS loads 512 bytes to 0x7c00; q35's power-off is ACPI's S5 with PM1_CNT at 0x604, where QEMU's SeaBIOS has
it (tests/bootsector.py has shown both); the tables and the image of a UEFI program are those of the UEFI specification (4.3, 4.4,
2.1.1) and of Microsoft's PE format, the file system that of its FAT specification.
"""

from __future__ import annotations

import struct

from pocketcloud.model.base import Arch
from pocketcloud.model.sizes import MIB

SIZE = MIB
_SECTOR = 512
_TEXT = 0x40


def boot_disk(arch: Arch, line: str) -> bytes:
    """The disk whose machine says `line` (ASCII, 100 characters at most) and switches itself off."""
    if not line.isascii() or len(line) > 100:
        raise ValueError(f"{line!r} is not at most 100 characters of ASCII")
    return (_boot_sector(line) if arch is Arch.X86_64 else _fat(_uefi_program(line))).ljust(SIZE, b"\0")


# 16-bit code at 0x7c00, the text 0x40 after it.
_X86_CODE = bytes.fromhex(
    "31c0 8ed8"  # xor ax, ax; mov ds, ax
    "be407c"  # mov si, text
    "ac 84c0"  # next: lodsb; test al, al
    "7412"  # jz off
    "88c3 bafd03"  # mov bl, al; mov dx, 3fd: COM1's line status
    "ec a820 74fb"  # wait: in al, dx; test al, 20; jz wait
    "88d8 baf803 ee"  # mov al, bl; mov dx, 3f8; out dx, al
    "ebe9"  # jmp next
    "ba0406 b80020 ef"  # off: mov dx, 604; mov ax, 2000; out dx, ax
    "f4 ebfd"  # halt: hlt; jmp halt
)


def _boot_sector(line: str) -> bytes:
    return (_X86_CODE.ljust(_TEXT, b"\0") + line.encode() + b"\r\n\0").ljust(_SECTOR - 2, b"\0") + b"\x55\xaa"


# Entered with x1 = EFI_SYSTEM_TABLE: ConOut at 64, RuntimeServices at 88; OutputString at 8 of the one, ResetSystem at 104 of the
# other, whose type 2 is a shutdown.
_ARM_CODE = struct.pack(
    "<14I",
    0xAA0103F3,  # mov x19, x1
    0xF9402260,  # ldr x0, [x19, #64]
    0xF9400402,  # ldr x2, [x0, #8]
    0x100001A1,  # adr x1, text
    0xD63F0040,  # blr x2
    0xF9402E60,  # ldr x0, [x19, #88]
    0xF9403404,  # ldr x4, [x0, #104]
    0xD2800040,  # mov x0, #2
    0xD2800001,  # mov x1, #0
    0xD2800002,  # mov x2, #0
    0xD2800003,  # mov x3, #0
    0xD63F0080,  # blr x4
    0xD503207F,  # halt: wfi
    0x17FFFFFF,  # b halt
)
_HEADERS, _LOADED = 0x200, 0x1000


def _uefi_program(line: str) -> bytes:
    """A PE image of one section, which may be loaded anywhere: it refers to nothing by its address."""
    code = _ARM_CODE.ljust(_TEXT, b"\0") + f"{line}\r\n\0".encode("utf-16-le")
    size = -(-len(code) // _SECTOR) * _SECTOR
    dos = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    # machine, sections, time, symbols (2), size of the optional header, characteristics: executable, large addresses
    coff = b"PE\0\0" + struct.pack("<HHIIIHH", 0xAA64, 1, 0, 0, 0, 240, 0x22)
    optional = struct.pack("<HBBIIIII", 0x20B, 0, 0, size, 0, 0, _LOADED, _LOADED)
    optional += struct.pack("<QII6HIIIIHH", 0, _LOADED, _SECTOR, *[0] * 6, 0, 2 * _LOADED, _HEADERS, 0, 10, 0)  # 10: application
    optional += struct.pack("<4QII", 0, 0, 0, 0, 0, 16) + bytes(16 * 8)
    section = b".text\0\0\0" + struct.pack("<IIIIIIHHI", size, _LOADED, size, _HEADERS, 0, 0, 0, 0, 0x6000_0020)
    return (dos + coff + optional + section).ljust(_HEADERS, b"\0") + code.ljust(size, b"\0")


_FAT_SECTORS = 6
_ROOT_ENTRIES = 16


def _fat(program: bytes) -> bytes:
    """A FAT12 file system without partitions, of one-sector clusters, that holds \\EFI\\BOOT\\BOOTAA64.EFI."""
    jump, name, total = b"\xeb\x3c\x90", b"POCKETCL", SIZE // _SECTOR
    # bytes a sector, sectors a cluster, reserved, FATs, root entries, sectors, medium, sectors a FAT, geometry (2), hidden, large
    boot = jump + name + struct.pack("<HBHBHHBHHHII", _SECTOR, 1, 1, 2, _ROOT_ENTRIES, total, 0xF8, _FAT_SECTORS, 32, 2, 0, 0)
    boot += struct.pack("<BBBI11s8s", 0x80, 0, 0x29, 0, b"NO NAME    ", b"FAT12   ")
    clusters = len(program) // _SECTOR
    first = 4  # 2 and 3 are the folders
    links = [0xFF8, 0xFFF, 0xFFF, 0xFFF, *range(first + 1, first + clusters), 0xFFF]
    number = sum(link << 12 * place for place, link in enumerate(links))
    packed: bytes = number.to_bytes(_FAT_SECTORS * _SECTOR, "little")
    root = _entry("EFI", 0x10, 2)
    efi = _entry(".", 0x10, 2) + _entry("..", 0x10, 0) + _entry("BOOT", 0x10, 3)
    folder = _entry(".", 0x10, 3) + _entry("..", 0x10, 2) + _entry("BOOTAA64EFI", 0x20, first, len(program))
    head = boot.ljust(_SECTOR - 2, b"\0") + b"\x55\xaa"
    return head + 2 * packed + b"".join(part.ljust(_SECTOR, b"\0") for part in (root, efi, folder)) + program


def _entry(name: str, attributes: int, cluster: int, size: int = 0) -> bytes:
    # name, attributes, eight fields of times and of the cluster's upper half, the cluster, the size
    return struct.pack("<11sB14xHI", name.ljust(11).encode(), attributes, cluster, size)
