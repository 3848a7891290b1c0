"""Makes the smallest guests there are: a boot sector that speaks on the first serial port. No assembler is needed.

Such a guest starts within a second under emulation (SeaBIOS, Firmware.BIOS), so tests can use real QEMU and libvirt.
What it does: it prints a line, then sleeps; it obeys the power button (ACPI, QEMU's pc and q35); and, when asked to, it
reads the disk's second sector about every second and prints that sector's first byte, which shows from outside that
it is still the same run, and which disk it has; or it counts, in memory only, and prints its counter.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

SECTOR = 512
_ORIGIN = 0x7C00
_TEXT_AT = 0xC0
_TEXT_ROOM = 510 - _TEXT_AT
_PACKET = 0x0500  # free memory below the boot sector: the BIOS call's address packet, then variables
_TICKS = 0x0510
_DRIVE = 0x0512
_COUNTER = 0x0514
_BUFFER = 0x0600


def boot_sector(text: str, *, beat: bool = False, counts: bool = False) -> bytes:
    """A 512-byte disk image that prints `text` and a line end on COM1, then sleeps until the power button is pressed.

    `beat`: about once a second (18 timer ticks) it also prints the first byte of the disk's sector 1, freshly read; the
    image then needs a second sector (see `disk`). `counts` (instead): six times a second a line of four letters, see `counted`.
    Raises ValueError if the text does not fit.
    """
    message = text.encode() + b"\r\n\0"
    if len(message) > _TEXT_ROOM:
        raise ValueError(f"the text takes {len(message)} bytes, a boot sector has room for {_TEXT_ROOM}")
    code = _Code()
    code.add("31 C0 8E D8 8E C0 8E D0 BC 00 7C")  # xor ax,ax; ds = es = ss = 0; sp = 7c00
    code.add("88 16", _word(_DRIVE))  # mov [drive],dl
    code.add("C7 06", _word(_TICKS), "00 00")  # mov word [ticks],0
    code.add("C7 06", _word(_COUNTER), "00 00")  # mov word [counter],0
    code.add("BE", _word(_ORIGIN + _TEXT_AT))  # mov si,text
    code.label("print")
    code.add("AC 84 C0")  # lodsb; test al,al
    code.jump("74", "armed")  # jz
    code.call("put")
    code.jump("EB", "print")
    code.label("armed")
    code.add("BA 02 06 B8 00 01 EF")  # PM1_EN (602): the power button sets its status bit
    code.label("sleep")
    code.add("FB F4")  # sti; hlt: the timer wakes us 18 times a second
    code.add("BA 00 06 ED F6 C4 01")  # PM1_STS (600), bit 8: was the button pressed?
    code.jump("74", "on")
    code.add("BA 04 06 B8 00 20 EF")  # PM1_CNT (604): sleep enable with type 0, which is S5 for QEMU
    code.label("on")
    if beat:
        code.add("FF 06", _word(_TICKS))  # inc word [ticks]
        code.add("83 3E", _word(_TICKS), "12")  # cmp word [ticks],18
        code.jump("72", "sleep")  # jb
        code.add("C7 06", _word(_TICKS), "00 00")
        for offset, value in enumerate((0x0010, 1, _BUFFER, 0, 1, 0, 0, 0)):  # size, count, buffer, sector 1
            code.add("C7 06", _word(_PACKET + 2 * offset), _word(value))
        code.add("BE", _word(_PACKET), "8A 16", _word(_DRIVE), "B4 42 CD 13")  # int 13h, extended read
        code.add("A0", _word(_BUFFER))  # mov al,[buffer]
        code.call("put")
    if counts:
        code.add("FF 06", _word(_TICKS), "83 3E", _word(_TICKS), "03")  # inc word [ticks]; cmp word [ticks],3
        code.jump("72", "sleep")  # jb
        code.add("C7 06", _word(_TICKS), "00 00", "FF 06", _word(_COUNTER))  # mov word [ticks],0; inc word [counter]
        code.add("8B 1E", _word(_COUNTER), "B9 04 00")  # mov bx,[counter]; mov cx,4
        code.label("digit")
        code.add("C1 C3 04 88 D8 24 0F 04 41")  # rol bx,4; mov al,bl; and al,15; add al,'A'
        code.call("put")
        code.jump("E2", "digit")  # loop
        code.add("B0 0A")  # mov al,line end
        code.call("put")
    code.jump("EB", "sleep")
    code.label("put")  # al to COM1, when its transmitter is free
    code.add("50 BA FD 03")  # push ax; mov dx,3fd
    code.label("wait")
    code.add("EC A8 20")  # in al,dx; test al,20
    code.jump("74", "wait")
    code.add("58 BA F8 03 EE C3")  # pop ax; out 3f8,al; ret
    program = code.linked()
    assert len(program) <= _TEXT_AT
    return program.ljust(_TEXT_AT, b"\0") + message.ljust(_TEXT_ROOM, b"\0") + b"\x55\xaa"


def disk(text: str, *, letter: str = "", counts: bool = False, size: int = 1 << 20) -> bytes:
    """A raw disk of `size` bytes with the boot sector; with `letter`, it beats that letter (see `boot_sector`)."""
    return (boot_sector(text, beat=bool(letter), counts=counts) + letter.encode().ljust(SECTOR, b"\0")).ljust(size, b"\0")


def write_disk(path: Path, text: str, *, letter: str = "", counts: bool = False, size: int = 1 << 20) -> Path:
    """Write `disk(...)` to a file and return its path."""
    path.write_bytes(disk(text, letter=letter, counts=counts, size=size))
    return path


def counted(console: str) -> list[int]:
    """The numbers that a counting boot sector has printed, in order: hexadecimal, its digits being A to P."""
    lines = re.findall(r"^([A-P]{4})\n", console.replace("\r", ""), re.MULTILINE)
    return [sum((ord(letter) - ord("A")) << shift for letter, shift in zip(text, (12, 8, 4, 0), strict=True)) for text in lines]


def _word(value: int) -> str:
    return struct.pack("<H", value).hex()


class _Code:
    """Machine code as it grows: bytes in hexadecimal, labels, short jumps and near calls to labels."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._labels: dict[str, int] = {}
        self._short: list[tuple[int, str]] = []
        self._near: list[tuple[int, str]] = []

    def add(self, *parts: str) -> None:
        for part in parts:
            self._bytes += bytes.fromhex(part)

    def label(self, name: str) -> None:
        self._labels[name] = len(self._bytes)

    def jump(self, opcode: str, label: str) -> None:
        self.add(opcode, "00")
        self._short.append((len(self._bytes), label))

    def call(self, label: str) -> None:
        self.add("E8 00 00")
        self._near.append((len(self._bytes), label))

    def linked(self) -> bytes:
        for after, label in self._short:
            struct.pack_into("<b", self._bytes, after - 1, self._labels[label] - after)
        for after, label in self._near:
            struct.pack_into("<h", self._bytes, after - 2, self._labels[label] - after)
        return bytes(self._bytes)
