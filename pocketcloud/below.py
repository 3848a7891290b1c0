"""Files below a folder that may be a stranger's, by relative paths: no way leads out of it, and no link is followed.

Why a path is refused is a ValueError, whose text completes "PATH: ...".
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack
from pathlib import Path

from pocketcloud.model.sizes import size_text

MAX_PATH = 200


def wrong_path(text: str) -> str:
    """Why a relative path cannot be taken, or an empty text: it has to have the one form that it can be written in, in characters
    that can be shown, without a way up."""
    parts = text.split("/")
    if not text or not text.isprintable() or "\\" in text:
        return "not a path that can be shown"
    if text.startswith("/"):
        return "an absolute path; expected one below the folder"
    if ".." in parts:
        return "`..` leads out of the folder"
    if "." in parts or "" in parts:
        return "expected a plain path, as files/motd"
    return "" if len(text.encode()) <= MAX_PATH else f"longer than {MAX_PATH} bytes"


def read_below(folder: Path, name: str, most: int) -> bytes:
    """The content of the file `name` below `folder`, at most so many bytes of it. Raises ValueError where it is no plain file
    there, a link is on the way, or it is larger."""
    if wrong := wrong_path(name):
        raise ValueError(wrong)
    *folders, last = name.split("/")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with ExitStack() as opened:

            def step(part: str, at: int | None, extra: int) -> int:
                handle = os.open(part, flags | extra, dir_fd=at)
                opened.callback(os.close, handle)
                return handle

            # The folder itself is the caller's: it may be a link.
            at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.callback(os.close, at)
            for part in folders:
                at = step(part, at, os.O_DIRECTORY)
            handle = step(last, at, os.O_NONBLOCK)
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise ValueError("not a plain file")
            if found.st_size > most:
                raise ValueError(f"{size_text(found.st_size)}; at most {size_text(most)} are taken")
            with os.fdopen(os.dup(handle), "rb") as file:
                return file.read(most)
    except FileNotFoundError:
        raise ValueError("no such file") from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise ValueError("there is a link on the way, and none is followed") from None
        raise ValueError(f"cannot be read: {error.strerror}") from None
