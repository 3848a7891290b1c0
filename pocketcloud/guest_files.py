"""Trees of files over sftp: the two recursions behind `Guest.put` and `Guest.get`.

The connection is guest.py's; what is needed of it is spelled out in the Protocol, so that paramiko stays there.
Every failure is an OSError whose text begins with the file's name.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

# OpenSSH's own sftp has as many requests on their way; without a limit paramiko asks for the whole file at once.
_REQUESTS = 64
_CHUNK = 256 * 1024


class Attributes(Protocol):
    """What sftp says of a file: its name in a listing, its mode with the kind of file (None: the server does not say)."""

    st_mode: int | None
    st_size: int | None
    filename: str


class Sftp(Protocol):
    """The verbs of paramiko's SFTPClient that copying takes. Paths may be bytes; errors are OSError."""

    def open(self, filename: bytes, mode: str, /) -> Any: ...
    def remove(self, path: bytes, /) -> None: ...
    def posix_rename(self, oldpath: bytes, newpath: bytes, /) -> None: ...
    def mkdir(self, path: bytes, /) -> None: ...
    def stat(self, path: bytes, /) -> Attributes: ...
    def lstat(self, path: bytes, /) -> Attributes: ...
    def listdir_iter(self, path: bytes, /) -> Iterator[Attributes]: ...
    def symlink(self, source: bytes, dest: bytes, /) -> None: ...
    def chmod(self, path: bytes, mode: int, /) -> None: ...
    def readlink(self, path: bytes, /) -> str | None: ...
    def normalize(self, path: bytes, /) -> str: ...


def put_tree(sftp: Sftp, local: Path, remote: str) -> None:
    """Copy `local` to `remote`, or into it if it is a folder or ends in "/"."""
    source = local.resolve(strict=True)
    target = os.fsencode(remote)
    if remote.endswith("/") or stat.S_ISDIR(_remote_mode(sftp, target)):
        target = posixpath.join(target, os.fsencode(source.name))
    skipped: list[str] = []
    _put(sftp, source, target, skipped)
    _complain(skipped)


def _put(sftp: Sftp, source: Path, target: bytes, skipped: list[str]) -> None:
    with _about(source):
        mode = source.lstat().st_mode
        if stat.S_ISLNK(mode):
            if stat.S_ISLNK(_remote_mode(sftp, target, follow=False)):
                sftp.remove(target)
            sftp.symlink(os.fsencode(source.readlink()), target)
            return
        if stat.S_ISREG(mode):
            _put_file(sftp, source, target, stat.S_IMODE(mode))
            return
        if not stat.S_ISDIR(mode):
            skipped.append(str(source))
            return
        if not stat.S_ISDIR(_remote_mode(sftp, target)):
            sftp.mkdir(target)
        children = sorted(source.iterdir())
    for child in children:
        _put(sftp, child, posixpath.join(target, os.fsencode(child.name)), skipped)
    with _about(source):
        # Last: a folder may be one that is not to be written to.
        sftp.chmod(target, stat.S_IMODE(mode))


def _put_file(sftp: Sftp, source: Path, target: bytes, mode: int) -> None:
    aside = posixpath.join(posixpath.dirname(target), f".{secrets.token_hex(8)}.part".encode())
    try:
        with source.open("rb") as read, sftp.open(aside, "wx") as write:
            # Before there is anything in it to be read by others.
            write.chmod(0o600)
            write.set_pipelined(True)
            while chunk := read.read(_CHUNK):
                write.write(chunk)
            size = read.tell()
        if sftp.stat(aside).st_size != size:
            raise OSError("not all of it arrived")
        sftp.chmod(aside, mode)
        sftp.posix_rename(aside, target)
    except BaseException:
        with contextlib.suppress(OSError, EOFError):
            sftp.remove(aside)
        raise


def _remote_mode(sftp: Sftp, path: bytes, *, follow: bool = True) -> int:
    """The mode of a file in the guest; 0 if it does not exist."""
    try:
        return (sftp.stat(path) if follow else sftp.lstat(path)).st_mode or 0
    except FileNotFoundError:
        return 0


def get_tree(sftp: Sftp, remote: str, local: Path) -> None:
    """Copy `remote` to `local`, or into it if it is a folder."""
    source = os.fsencode(remote)
    with _about(remote):
        mode = sftp.stat(source).st_mode or 0
        target = local / _plain(posixpath.basename(sftp.normalize(source))) if local.is_dir() else local
    links: list[tuple[Path, str]] = []
    skipped: list[str] = []
    _get(sftp, source, target, mode, links, skipped)
    for place, leads_to in links:
        with _about(place):
            if place.is_symlink():
                place.unlink()
            place.symlink_to(leads_to)
    _complain(skipped)


def _get(sftp: Sftp, source: bytes, target: Path, mode: int, links: list[tuple[Path, str]], skipped: list[str]) -> None:
    with _about(os.fsdecode(source)):
        if stat.S_ISLNK(mode):
            links.append((target, sftp.readlink(source) or ""))
            return
        if stat.S_ISREG(mode):
            _get_file(sftp, source, target, mode)
            return
        if not stat.S_ISDIR(mode):
            skipped.append(os.fsdecode(source))
            return
        # Not exist_ok: that would follow a link, which an earlier copy may have brought from the guest.
        if target.is_symlink() or not target.is_dir():
            target.mkdir(mode=0o700)
        children = sorted((_plain(child.filename), child.st_mode or 0) for child in sftp.listdir_iter(source))
    for name, child_mode in children:
        _get(sftp, posixpath.join(source, os.fsencode(name)), target / name, child_mode, links, skipped)
    with _about(target):
        target.chmod(stat.S_IMODE(mode) & 0o777)


def _get_file(sftp: Sftp, source: bytes, target: Path, mode: int) -> None:
    aside = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as write:
            with sftp.open(source, "rb") as read:
                read.prefetch(read.stat().st_size, _REQUESTS)
                shutil.copyfileobj(read, write, _CHUNK)
            os.fchmod(write.fileno(), stat.S_IMODE(mode) & 0o777)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def _plain(name: str) -> str:
    """A name in a folder that is nothing but that: the guest says it, and a false guest says "../../etc/passwd"."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise OSError(f"{name!r} is not a file's name")
    return name


def _complain(skipped: Sequence[str]) -> None:
    if skipped:
        more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        raise OSError(f"copied, but for what is neither file, folder nor link: {', '.join(skipped[:5])}{more}")


@contextlib.contextmanager
def _about(name: object) -> Iterator[None]:
    """Put the name of the file before the text of an OSError."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno or 0, f"{name}: {error.strerror or str(error) or 'no answer'}") from None
