"""The user that libvirt runs QEMU as, and what its groups let it open. From /etc/passwd and /etc/group, where libvirt's
packages make it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.host.files import number, text

# Debian's and Ubuntu's name, then that of Fedora and EL (which Debian also has, with nothing behind it).
_NAMES = ("libvirt-qemu", "qemu")


@dataclass(frozen=True, slots=True)
class Account:
    """A user with all of its groups."""

    name: str
    uid: int
    gids: frozenset[int]


def qemu_account(root: Path) -> Account | None:
    """The user that the system's libvirt runs QEMU as; None where no package has made one."""
    users = {fields[0]: fields for fields in _table(root, "etc/passwd", 4)}
    for name in _NAMES:
        uid, gid = (number(field) for field in users.get(name, [""] * 4)[2:4])
        if uid is not None and gid is not None:
            groups = (row for row in _table(root, "etc/group", 4) if name in row[3].split(","))
            others = {other for row in groups if (other := number(row[2])) is not None}
            return Account(name, uid, frozenset({gid, *others}))
    return None


def members(root: Path, group: str) -> frozenset[str]:
    """Who /etc/group says is in a group, besides those who have it as their first; empty for a group that is not there."""
    rows = (row[3] for row in _table(root, "etc/group", 4) if row[0] == group)
    return frozenset(name for row in rows for name in row.split(",") if name)


def may_use(account: Account, found: os.stat_result) -> bool:
    """Whether the mode bits of a file let the account read and write it, as the kernel judges: the first class that fits."""
    if found.st_uid == account.uid:
        wanted = stat.S_IRUSR | stat.S_IWUSR
    elif found.st_gid in account.gids:
        wanted = stat.S_IRGRP | stat.S_IWGRP
    else:
        wanted = stat.S_IROTH | stat.S_IWOTH
    return found.st_mode & wanted == wanted


def _table(root: Path, name: str, columns: int) -> Iterator[list[str]]:
    for row in text(root, name).splitlines():
        fields = row.split(":")
        if len(fields) >= columns:
            yield fields
