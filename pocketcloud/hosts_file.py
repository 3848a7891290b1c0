"""The host's own list of names, /etc/hosts: a marked block of it for each lab that asked for one; every other line is left alone.

Labs, kits and libvirt are not known here. Outside facts: hosts(5). It may be a link (as on NixOS) and may be a mount of its own
(as in containers), over which nothing can be renamed.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.errors import HostLacks, Refused

ETC_HOSTS = Path("/etc/hosts")
_BEGIN, _END = b"# BEGIN pocketcloud ", b"# END pocketcloud "


@dataclass(frozen=True, slots=True)
class HostLine:
    """An address and the names it has, the full one first."""

    address: str
    names: tuple[str, ...]

    @property
    def text(self) -> str:
        """The line, without its end."""
        return f"{self.address}\t{' '.join(self.names)}"


def with_block(content: bytes, name: str, lines: Sequence[HostLine]) -> bytes:
    """`content` with the block `name` saying `lines`: where it stands already, else at the end. Without lines: without it. Raises
    Refused for a block whose end is missing, as nobody knows then which lines are whose."""
    mark = name.encode()
    block = [_BEGIN + mark + b"\n", *(f"{line.text}\n".encode() for line in lines), _END + mark + b"\n"] if lines else []
    kept: list[bytes] = []
    place, inside = -1, 0
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        said = line.strip()
        if said == _BEGIN + mark and not inside:
            inside, place = number, len(kept) if place < 0 else place
        elif inside and said == _END + mark:
            inside = 0
        elif inside and said.startswith((_BEGIN, _END)):
            break
        elif not inside:
            kept.append(line)
    if inside:
        raise Refused(
            f"the lines that begin in line {inside} with `{(_BEGIN + mark).decode()}` have no end, so they are left alone",
            hint=f"remove those of them that are pocketcloud's, or put `{(_END + mark).decode()}` after the last",
        )
    if place < 0:
        place = len(kept)
        if block and kept and not kept[-1].endswith(b"\n"):
            kept[-1] += b"\n"
    return b"".join([*kept[:place], *block, *kept[place:]])


def has_block(path: Path, name: str) -> bool:
    """Whether the file has a block of that name; one that cannot be read has none."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return False
    return any(line.strip() == _BEGIN + name.encode() for line in lines)


def blocks_of(path: Path, kit: str) -> tuple[str, ...]:
    """The names of the file's blocks that are a kit's: `KIT.LAB`, each once."""
    try:
        lines = [line.strip() for line in path.read_bytes().splitlines()]
    except OSError:
        return ()
    begin = _BEGIN + kit.encode() + b"."
    return tuple(dict.fromkeys(line[len(_BEGIN) :].decode(errors="replace") for line in lines if line.startswith(begin)))


def change(path: Path, name: str, lines: Sequence[HostLine]) -> bool:
    """Have the file's block `name` say `lines` (none: be gone); whether that changed anything. A reader sees the old file or the
    new one, unless it is a mount of its own. Raises Refused as `with_block` does, HostLacks where it cannot be written."""
    try:
        there = path.resolve()
        before = there.read_bytes() if there.exists() else b""
        after = with_block(before, name, lines)
        if after != before:
            _replace(there, after)
    except Refused as refusal:
        raise Refused(f"{path}: {refusal.message}", hint=refusal.hint) from None
    except (OSError, RuntimeError) as failure:  # RuntimeError: links in a circle
        why = failure.strerror if isinstance(failure, OSError) else failure
        raise HostLacks(
            f"{path} cannot be changed: {why}",
            hint="pocketcloud lab hosts LAB prints the lines; put them where your system takes names from",
        ) from failure
    return after != before


def _replace(path: Path, content: bytes) -> None:
    """Owner, mode and label stay (SELinux knows the file by its label, and resolvers may read no other)."""
    aside = path.with_name(f".{path.name}.pocketcloud.{os.getpid()}")
    try:
        with aside.open("xb") as file:
            if path.exists():
                shutil.copystat(path, aside)
                os.fchown(file.fileno(), path.stat().st_uid, path.stat().st_gid)
            else:
                os.fchmod(file.fileno(), 0o644)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as failure:
        if failure.errno != errno.EBUSY:
            raise
        with path.open("r+b") as file:
            file.write(content)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
    finally:
        aside.unlink(missing_ok=True)
