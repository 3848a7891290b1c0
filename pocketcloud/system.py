"""The one door to other programs: every process that pocketcloud starts is started here.

Commands are argv lists, never a shell; their environment is small and their messages are English, because some are parsed.
Libraries that talk to the system in other ways (libvirt, ssh, udev) have rooms of their own.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from pocketcloud.errors import HostLacks, PocketcloudError

# Administrators' tools lie in sbin, which an ordinary user's PATH leaves out on Debian.
_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KEPT = ("HOME", "TMPDIR", "http_proxy", "https_proxy", "no_proxy", "SSH_AUTH_SOCK")


@dataclass(frozen=True, slots=True)
class Completed:
    """What a finished command said: exit code (negative: the signal that ended it), standard output and error as text."""

    argv: tuple[str, ...]
    code: int
    out: str
    err: str


class CommandFailed(PocketcloudError):
    """A command ended with an exit code that its caller did not expect; carries the `Completed`."""

    exit_code = 8

    def __init__(self, completed: Completed, *, hint: str = "") -> None:
        self.completed = completed
        last = "\n".join((completed.err or completed.out).strip().splitlines()[-12:])
        ended = f"exit code {completed.code}" if completed.code >= 0 else f"signal {-completed.code}"
        super().__init__(f"{shlex.join(completed.argv)}: {ended}" + (f"\n{last}" if last else ""), hint=hint)


class Runner(Protocol):
    """Runs one command to its end. The product uses `run`; a test may hand in one that watches, kills or refuses."""

    def __call__(
        self,
        argv: Sequence[str | Path],
        *,
        stdin: bytes | None = None,
        codes: Sequence[int] = (0,),
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> Completed: ...


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of our children: the user's PATH with the administrators' folders, UTF-8 English, little else."""
    own = os.environ.get("PATH", "")
    env = {"PATH": f"{own}:{_SEARCH_PATH}" if own else _SEARCH_PATH, "LC_ALL": "C.UTF-8"}
    env |= {name: os.environ[name] for name in _KEPT if name in os.environ}
    return env | dict(extra or {})


def which(tool: str) -> Path | None:
    """The path of a tool, or None; looks where `run` would."""
    found = shutil.which(tool, path=environment()["PATH"])
    return Path(found) if found else None


def run(
    argv: Sequence[str | Path],
    *,
    stdin: bytes | None = None,
    codes: Sequence[int] = (0,),
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Completed:
    """Run `argv` to its end and return what it said.

    `stdin` is what it reads (nothing by default); `codes` are the exit codes that are not failures; `timeout` is in seconds;
    `env` is added to `environment()`. `on_line` is called with each line of its output and errors as they come (then both
    are in `out`, merged).

    Raises HostLacks if the program is not installed, CommandFailed on any other exit code or when the time is up. The
    command never outlives the call: an exception in here, Ctrl-C too, ends its whole process group.
    """
    words = tuple(str(word) for word in argv)
    if which(words[0]) is None:
        raise HostLacks(f"{words[0]} is not installed", hint="pocketcloud check names the package for this distribution")
    with subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if on_line else subprocess.PIPE,
        env=environment(env),
        cwd=cwd,
        process_group=0,
    ) as process:
        try:
            if on_line is None:
                out, err = process.communicate(stdin, timeout)
            else:
                out, err = _follow(process, on_line), b""
                process.wait(timeout)
        except subprocess.TimeoutExpired:
            _end(process)
            raise CommandFailed(Completed(words, -9, "", f"not done after {timeout:.0f} s")) from None
        except BaseException:
            _end(process)
            raise
    completed = Completed(words, process.returncode, out.decode(errors="replace"), (err or b"").decode(errors="replace"))
    if completed.code not in codes:
        raise CommandFailed(completed)
    return completed


def _follow(process: subprocess.Popen[bytes], on_line: Callable[[str], None]) -> bytes:
    assert process.stdout is not None  # noqa: S101 - Popen was given a pipe; this tells the type checker
    seen = []
    for line in process.stdout:
        seen.append(line)
        on_line(line.decode(errors="replace").rstrip("\n"))
    return b"".join(seen)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, 15)
        process.wait(5)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        process.kill()
    finally:
        process.wait()


def become(argv: Sequence[str], env: Mapping[str, str] | None = None) -> NoReturn:
    """Replace this process by another program (sudo, a pager, ssh); never returns. `env` is the whole new environment."""
    os.execvpe(argv[0], list(argv), dict(os.environ if env is None else env))  # noqa: S606 - argv, no shell
