"""Every error a user can meet, with its exit code and the next command.

    PocketcloudError
    +- Bug                  1   not expected, in one of many labs
    +- UsageError           2   the command line is wrong
    |  `- BadDocument       2   a file is wrong: every fault in it, with line and key path
    +- HostLacks            3   a tool, a service, a permission or a feature of the host is missing
    +- NotFound             4   no kit, base, lab, machine of that name
    +- Refused              5   it would harm something, or it is in use
    |  +- NotOurs           5   something of that name exists and does not carry our mark
    |  `- Busy              5   another command works on it (--no-wait)
    +- NoSpace              6   disk or memory does not suffice
    +- NotReady             7   a machine was not ready in time
    +- PartlyDone           8   some steps are done; run again
    `- GuestFailed        255   a guest cannot be reached (as ssh says it)

What is not in this tree is a bug: exit code 1, a traceback and "please report". Nothing here prints or exits; only the CLI does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class PocketcloudError(Exception):
    """An explained failure: what happened to which object, and what to do next.

    `message` names the object and the situation; `hint` is the next command or action, empty if there is none.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Bug(PocketcloudError):
    """Something that pocketcloud did not expect, where it is to hold up nobody else."""

    @classmethod
    def of(cls, error: Exception) -> Bug:
        """What an error that is not ours comes to, with where it was raised."""
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f" in {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return cls(f"a bug in pocketcloud: {said}{where}", hint="please report it with that line and the command you ran")


class UsageError(PocketcloudError):
    """The command line asks for something that cannot be meant."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong in a file: `line` counts from 1 (0: unknown), `path` is the key path (`machines.web.memory`)."""

    line: int
    path: str
    message: str


class BadDocument(UsageError):
    """A file is wrong; carries all its faults at once."""

    def __init__(self, source: str, faults: Sequence[Fault], *, hint: str = "") -> None:
        self.source = source
        self.faults = tuple(faults)
        lines = [f"{source}:{f.line}: {f.path + ': ' if f.path else ''}{f.message}" for f in self.faults]
        super().__init__("\n".join(lines), hint=hint)


class HostLacks(PocketcloudError):
    """A tool, a service, a permission or a feature of the host is missing."""

    exit_code = 3


class NotFound(PocketcloudError):
    """No object of that name."""

    exit_code = 4


class Refused(PocketcloudError):
    """The request would harm something, or what it wants is in use."""

    exit_code = 5


class NotOurs(Refused):
    """Something of that name exists that pocketcloud did not make; it is left alone."""


class Busy(Refused):
    """Another command works on the same object."""


class NoSpace(PocketcloudError):
    """Disk space or memory does not suffice."""

    exit_code = 6


class NotReady(PocketcloudError):
    """A machine was not ready in time."""

    exit_code = 7


class PartlyDone(PocketcloudError):
    """Some steps are done and kept, some failed; running the command again continues."""

    exit_code = 8


class GuestFailed(PocketcloudError):
    """A guest cannot be reached."""

    exit_code = 255
