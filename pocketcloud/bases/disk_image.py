"""Disk images from elsewhere: what a file is, whether it stands by itself and is whole, how large a disk it is, what starts it.

An image can name other files (a backing file, extents, an external data file), and QEMU would open those: so its header is read
here first, and what names any is refused; only then QEMU looks at it, with the format named and never guessed. Formats:
QEMU's docs/interop/qcow2.txt; "Virtual Disk Format 5.0" (VMware), 4; VirtualBox's VDICore.h; MS-VHDX, 2.2.1; UEFI 2.10, 5.
What hostile images did to others: OpenStack's OSSA-2024-001 and CVE-2024-4467 (qemu-img).
"""

from __future__ import annotations

import json
import re
import struct
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pocketcloud.errors import HostLacks, NotFound, PocketcloudError, Refused
from pocketcloud.model.base import Arch, Firmware
from pocketcloud.model.sizes import GIB, KIB, MIB, TIB, size_text
from pocketcloud.storage import qcow2_header
from pocketcloud.system import CommandFailed, Runner, run


class Format(StrEnum):
    """How a disk is kept in a file, as QEMU calls it."""

    QCOW2 = "qcow2"
    RAW = "raw"
    VMDK = "vmdk"
    VDI = "vdi"
    VHDX = "vhdx"


class Packing(StrEnum):
    """What an image can be packed in: compressed, or an archive (an OVA is a tar)."""

    XZ = "xz"
    GZ = "gz"
    ZST = "zst"
    TAR = "tar"


@dataclass(frozen=True, slots=True)
class Disk:
    """An image that has been looked at: `size` in bytes of the disk, `needs` about how many its content takes in a store, and
    what it can be started by."""

    path: Path
    format: Format
    size: int
    needs: int
    firmware: Firmware


LARGEST = 16 * TIB
"""No disk of a lab is larger; what claims to be is not meant well."""

_HEAD = 64 * KIB
_BEGINNINGS: Mapping[bytes, Format | Packing] = {
    qcow2_header.MAGIC: Format.QCOW2,
    b"KDMV": Format.VMDK,
    b"vhdxfile": Format.VHDX,
    b"\xfd7zXZ\0": Packing.XZ,
    b"\x1f\x8b": Packing.GZ,
    b"\x28\xb5\x2f\xfd": Packing.ZST,
}
_VDI_AT, _VDI = 64, b"\x7f\x10\xda\xbe"
_TAR_AT, _TAR = 257, b"ustar"
_DISC_AT, _DISC = 32769, b"CD001"
_BOOT_AT, _BOOT = 510, b"\x55\xaa"
_PAGE = re.compile(rb"\s*(<!doctype html|<html|<\?xml)", re.I)
# What is known, and cannot be used as it is: how it begins, what it is, what to do.
_OTHERS = (
    (b"# Disk DescriptorFile", "the description of a VMware disk whose content is in other files", "vmdk"),
    (b"COWD", "a VMware disk in several files", "vmdk"),
    (b"conectix", "a VHD image", "vpc"),
    (b"WithoutFreeSpace", "a Parallels image", "parallels"),
    (b"WithouFreSpacExt", "a Parallels image", "parallels"),
    (b"QED\0", "a QED image", "qed"),
)
_VMDK = struct.Struct("<4sIIQQQ")
_VMDK_DESCRIPTOR = slice(512, 512 + 20 * 512)
_VMDK_KINDS = (b'createtype="monolithicsparse"', b'createtype="streamoptimized"')
_VDI_KINDS = (1, 2)
_ESP = uuid.UUID("C12A7328-F81F-11D2-BA4B-00A0C93EC93B").bytes_le
_ESP_MBR = 0xEF
_PATIENCE = 600
# What QEMU may take to look at an image: a header can ask it for any amount (CVE-2015-5162).
_BOUNDS = ["prlimit", f"--as={4 * GIB}", "--"]


def kind_of(path: Path) -> Format | Packing:
    """What a file is, by its content. Raises Refused for what is no disk image, or none that can be used; NotFound, HostLacks."""
    head = _head(path)
    for beginning, kind in _BEGINNINGS.items():
        if head.startswith(beginning):
            return kind
    if head[_VDI_AT:].startswith(_VDI):
        return Format.VDI
    for beginning, what, form in _OTHERS:
        if head.startswith(beginning):
            hint = f"make one file of it, where all of it is: qemu-img convert -f {form} -O qcow2 {path.name} {path.stem}.qcow2"
            raise Refused(f"{path.name} is {what}, which cannot be taken as it is", hint=hint)
    if head[_TAR_AT:].startswith(_TAR):
        return Packing.TAR
    return _raw(path, head)


def _raw(path: Path, head: bytes) -> Format:
    """A raw disk has nothing that it could be known by, but what a firmware starts from has this mark."""
    if not head.strip(b"\0"):
        raise Refused(f"{path.name} is empty: there is nothing in its first {len(head)} bytes", hint="was it fetched whole?")
    if _PAGE.match(head):
        raise Refused(
            f"{path.name} is a web page (HTML), not a disk image", hint="fetch the file itself, not the page that leads to it"
        )
    if head.startswith(b"LUKS\xba\xbe"):
        raise Refused(f"{path.name} is encrypted as a whole; machines cannot start from it", hint="import it decrypted")
    if head[_DISC_AT:].startswith(_DISC):
        raise Refused(f"{path.name} is an installer's disc (ISO 9660), not a disk that a machine starts from", hint=_ISO_HINT)
    if head[_BOOT_AT : _BOOT_AT + 2] != _BOOT:
        raise Refused(f"{path.name} is no disk image that is known here ({', '.join(Format)}, packed or not)", hint=_KNOWN_HINT)
    return Format.RAW


_ISO_HINT = "a definition with `builder: kickstart` (preseed, autoinstall) and `media:` installs from one: docs/bases.md"
_KNOWN_HINT = "it has neither a known beginning nor a partition table; is it the right file?"


def look(path: Path, form: Format, run: Runner = run) -> Disk:
    """Look at an image of that format: at its header, and then, with QEMU, at all of its tables. Raises Refused if it needs other
    files, is not whole or is absurd."""
    path = path.absolute()  # QEMU takes `name:` at the beginning of a name for a protocol
    _alone(path, form)
    said = _asked(path, run, ["info", "-f", form, "--output=json"])
    size = int(said.get("virtual-size", 0))
    if not 0 < size <= LARGEST:
        raise Refused(f"{path.name} claims to be a disk of {size_text(size)}", hint="is it the right file?")
    for needed in ("backing-filename", "full-backing-filename"):
        if said.get(needed):
            raise _needs_others(path, f"the image {said[needed]} below it")
    _whole(path, form, run)
    needs = int(_asked(path, run, ["measure", "-f", form, "-O", "qcow2", "--output=json"])["required"])
    start = _beginning(path, form, run)
    if _end_of_table(start) > size:
        raise Refused(f"{path.name} ends before its partition table says so", hint="fetch it again; is it whole?")
    return Disk(path, form, size, needs, _firmware(start))


def fits(disk: Disk, arch: Arch, wanted: Firmware | None = None) -> Firmware:
    """What machines are started from the disk by: what is `wanted`, else what it has. Raises Refused where that cannot be."""
    if arch is Arch.AARCH64 and wanted is Firmware.BIOS:
        raise Refused(f"{arch} machines have no BIOS", hint="--firmware efi, or leave it out")
    if disk.firmware is Firmware.BIOS and (arch is Arch.AARCH64 or wanted is Firmware.EFI):
        raise Refused(
            f"{disk.path.name} has no EFI system partition, so UEFI firmware has nothing to start from it",
            hint="is it an image for another architecture?"
            if arch is Arch.AARCH64
            else "--firmware bios (in a definition: firmware)",
        )
    return wanted or disk.firmware


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file", hint="give the path of an existing file") from None
    except IsADirectoryError:
        raise Refused(f"{path} is a folder, not a disk image", hint="give the path of the image") from None
    except OSError as error:
        raise HostLacks(f"{path} cannot be read: {error.strerror}", hint="run it with sudo, or as who may read it") from error


def _needs_others(path: Path, what: str) -> PocketcloudError:
    return Refused(
        f"{path.name} does not stand by itself: it needs {what}",
        hint=f"make one file of it, where all of it is: qemu-img convert -O qcow2 {path.name} whole.qcow2",
    )


def _alone(path: Path, form: Format) -> None:
    """Raise Refused unless the header says that the whole disk is in this file."""
    head = _head(path)
    match form:
        case Format.QCOW2:
            try:
                header = qcow2_header.read_header(path)
            except qcow2_header.NotQcow2 as error:
                raise Refused(f"{path.name} is no whole qcow2 image", hint="fetch it again") from error
            if header.backing is not None:
                raise _needs_others(path, f"the image {header.backing[:200]!r} below it")
            if header.data_file:
                raise _needs_others(path, "a data file beside it")
            if header.encrypted:
                raise Refused(f"{path.name} is encrypted", hint="import it decrypted: qemu-img convert takes the key off")
        case Format.VMDK:
            _, _, _, capacity, _, descriptor = _VMDK.unpack_from(head.ljust(_VMDK.size, b"\0"))
            words = head[_VMDK_DESCRIPTOR].lower().replace(b" ", b"")
            if not capacity or descriptor != 1 or not any(kind in words for kind in _VMDK_KINDS):
                raise _needs_others(path, "other files of the same disk")
            if b"parentfilenamehint" in words:
                raise _needs_others(path, "the disk that it is a snapshot of")
        case Format.VDI:
            if int.from_bytes(head[76:80], "little") not in _VDI_KINDS:
                raise _needs_others(path, "the disk that it is a snapshot of")
        case Format.VHDX | Format.RAW:
            pass  # QEMU refuses a VHDX that has a parent (block/vhdx.c); a raw image cannot name anything


def _asked(path: Path, run: Runner, words: list[str]) -> dict[str, Any]:
    try:
        said = run([*_BOUNDS, "qemu-img", *words, "--", path], timeout=_PATIENCE).out
    except CommandFailed as error:
        last = (error.completed.err.strip().splitlines() or ["it does not say why"])[-1]
        raise Refused(f"{path.name} cannot be read: {last}", hint="fetch it again; is it whole?") from error
    found: dict[str, Any] = json.loads(said)
    return found


def _whole(path: Path, form: Format, run: Runner) -> None:
    """Raise Refused if the file ends before its content does: what is missing QEMU would read as zeros."""
    if form in (Format.RAW, Format.VHDX):
        return  # qemu-img check knows nothing of them; a raw one is looked at by its partition table
    argv: list[str | Path] = [*_BOUNDS, "qemu-img", "check", "-q", "-f", form, "--output=json", "--", path]
    # 3: clusters that nobody uses, which is no harm.
    done = run(argv, codes=(0, 1, 2, 3, 63), timeout=_PATIENCE)
    if done.code in (1, 2):
        raise Refused(f"{path.name} is damaged, or was not fetched whole", hint="fetch it again; qemu-img check tells more")


def _beginning(path: Path, form: Format, run: Runner) -> bytes:
    """The disk's first MiB."""
    if form is Format.RAW:
        with path.open("rb") as file:
            return file.read(MIB)
    # dd writes a file of its own making, beside which there is no pipe that it takes.
    with tempfile.TemporaryDirectory(prefix="pocketcloud-look-") as folder:
        target = Path(folder) / "beginning"
        count = [f"if={path}", f"of={target}", "bs=1048576", "count=1"]
        run([*_BOUNDS, "qemu-img", "dd", "-f", form, "-O", "raw", *count], timeout=_PATIENCE)
        return target.read_bytes()


def _firmware(start: bytes) -> Firmware:
    """UEFI if there is an EFI system partition, in a GPT with either sector size or in an MBR; else the BIOS."""
    kinds = [start[446 + 16 * number + 4] for number in range(4)] if len(start) >= 512 else []
    if _ESP_MBR in kinds:
        return Firmware.EFI
    for sector, header in _tables(start):
        first, count, size = struct.unpack_from("<QII", header, 72)
        places = (first * sector + size * number for number in range(min(count, 256)))
        if any(start[place : place + 16] == _ESP for place in places if place < len(start)):
            return Firmware.EFI
    return Firmware.BIOS


def _end_of_table(start: bytes) -> int:
    """Where a disk with this GPT ends, in bytes: behind the second copy of its table. 0 without one."""
    return max(((int.from_bytes(header[32:40], "little") + 1) * sector for sector, header in _tables(start)), default=0)


def _tables(start: bytes) -> Iterator[tuple[int, bytes]]:
    """The size of sectors and the header, if there is a GPT (UEFI 2.10, 5.3.2)."""
    for sector in (512, 4096):
        header = start[sector : sector + 92]
        if len(header) == 92 and header.startswith(b"EFI PART"):
            yield sector, header
