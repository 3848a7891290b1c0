"""What `check --fix` does: commands, and files that say who wrote them and how to take them back. Each fix is shown before it is
done, and its check is run again after; what needs a decision (a reboot, machines to be stopped, hardware) stays a remedy."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.errors import Refused
from pocketcloud.files import write_whole
from pocketcloud.system import Runner

_MARK = "# Written by `pocketcloud check --fix`"
# Packages may have to be fetched over a slow line.
_TIMEOUT = 1800.0


@dataclass(frozen=True, slots=True)
class Command:
    """A command, as words; it is run as root."""

    argv: tuple[str, ...]

    @property
    def line(self) -> str:
        """What a person would type for it."""
        return shlex.join(self.argv)


@dataclass(frozen=True, slots=True)
class NewFile:
    """A settings file of our own: its lines, and why it is there, and what takes it back beside its removal; `folder` where its
    folder may have to be made first. Its format takes comments that begin with `#`."""

    path: Path
    lines: tuple[str, ...]
    why: str
    undo: str = ""
    folder: bool = False

    @property
    def line(self) -> str:
        """What a person would type for it."""
        words = shlex.join(self.lines)
        make = f"mkdir -p {self.path.parent} && " if self.folder else ""
        command = "echo" if len(self.lines) == 1 else r"printf '%s\n'"
        return f"{make}{command} {words} > {self.path}"

    @property
    def text(self) -> str:
        """All of the file."""
        back = f"# To take it back: rm {self.path}" + (f" && {self.undo}" if self.undo else "")
        return "\n".join((f"{_MARK}: {self.why}.", back, *self.lines, ""))


Action = Command | NewFile


def lines(actions: Sequence[Action]) -> tuple[str, ...]:
    """The actions as a remedy: a line each."""
    return tuple(action.line for action in actions)


def carry_out(actions: Sequence[Action], run: Runner, root: Path) -> None:
    """Do them in their order. Raises CommandFailed, and Refused for a file of that name that is not ours; what was done before
    stays."""
    for action in actions:
        if isinstance(action, Command):
            run(action.argv, timeout=_TIMEOUT, env={"DEBIAN_FRONTEND": "noninteractive"})
        else:
            _write(root / str(action.path).lstrip("/"), action)


def _write(path: Path, file: NewFile) -> None:
    if path.exists() and not path.read_text(errors="replace").startswith(_MARK):
        raise Refused(f"{path} is there, and was not written by pocketcloud", hint=f"look into it, then by hand: {file.line}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, file.text, mode=0o644)
