"""The one door to other programs: every process that pocketcloud starts is started here.

Commands are argv lists, never a shell; their environment is small and their messages are English, because some are parsed.
Libraries that talk to the system in other ways (libvirt, ssh, udev) have rooms of their own.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn, Protocol

from pocketcloud.errors import HostLacks, PocketcloudError

# Administrators' tools lie in sbin, which an ordinary user's PATH leaves out on Debian.
_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LINE_END = re.compile(rb"\r?\n|\r")
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


def unproxied(run: Runner) -> Runner:
    """A runner as `run` whose commands see nothing of the proxies in the user's environment."""

    def ran(
        argv: Sequence[str | Path],
        *,
        stdin: bytes | None = None,
        codes: Sequence[int] = (0,),
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        none = dict.fromkeys(("http_proxy", "https_proxy", "no_proxy"), "")
        return run(argv, stdin=stdin, codes=codes, timeout=timeout, env=none | dict(env or {}), cwd=cwd, on_line=on_line)

    return ran


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
    are in `out`, merged); a line that it writes over, as progress is shown, counts as one.

    Raises HostLacks if the program is not installed, CommandFailed on any other exit code or when the time is up. The
    command does not outlive the call: an exception in here, Ctrl-C too, ends its whole process group; only one that the kernel
    does not let go of is left behind.
    """
    words = tuple(str(word) for word in argv)
    if which(words[0]) is None:
        raise HostLacks(f"{words[0]} is not installed", hint="pocketcloud check names the package for this distribution")
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if on_line else subprocess.PIPE,
        env=environment(env),
        cwd=cwd,
        process_group=0,
    )
    try:
        if on_line is None:
            out, err = process.communicate(stdin, timeout)
        else:
            out, err = _follow(process, on_line, timeout), b""
    except subprocess.TimeoutExpired:
        said = f"not done after {timeout:.0f} s" + ("" if _end(process) else ", and it cannot be ended: the kernel holds it")
        raise CommandFailed(Completed(words, -9, "", said)) from None
    except BaseException:
        _end(process)
        raise
    finally:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
    completed = Completed(words, process.returncode, out.decode(errors="replace"), (err or b"").decode(errors="replace"))
    if completed.code not in codes:
        raise CommandFailed(completed)
    return completed


# Of commands whose lines are told nobody needs all: what failed is explained by the end of it.
_MOST_HELD = 4 << 20
_LONGEST_LINE = 1 << 16


def _follow(process: subprocess.Popen[bytes], on_line: Callable[[str], None], timeout: float | None) -> bytes:
    """The last of what it says until it ends, each line told as it comes; raises TimeoutExpired."""
    assert process.stdout is not None  # noqa: S101 - Popen was given a pipe; this tells the type checker
    until = None if timeout is None else time.monotonic() + timeout
    seen, held, rest = deque[bytes](), 0, b""
    with selectors.DefaultSelector() as ready:
        ready.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not ready.select(None if until is None else max(0.0, until - time.monotonic())):
                raise subprocess.TimeoutExpired(process.args, timeout or 0.0)
            piece = os.read(process.stdout.fileno(), 65536)
            seen.append(piece)
            held += len(piece)
            while held > _MOST_HELD:
                held -= len(seen.popleft())
            *lines, rest = _LINE_END.split(rest + piece)
            if len(rest) > _LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            for line in [*lines, rest] if not piece and rest else lines:
                on_line(line.decode(errors="replace"))
            if not piece:
                break
    process.wait(None if until is None else max(0.0, until - time.monotonic()))
    return b"".join(seen)


# Kept, so that nobody waits for them: Popen's own end would say that they still run.
_abandoned: list[subprocess.Popen[bytes]] = []


def _end(process: subprocess.Popen[bytes]) -> bool:
    """End its process group; False where it does not end. A process that waits for a device which never answers (state D)
    takes no signal until it does: it is left behind, and ends by itself if the device comes back."""
    for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 2.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            return True
    _abandoned.append(process)
    return False


def start(argv: Sequence[str | Path], log: Path) -> Callable[[], int | None]:
    """Start `argv` as a process that outlives us, apart from our terminal, with all it says in the file `log`; the function that
    is returned tells its exit code, None while it runs."""
    with log.open("wb") as said:
        child = subprocess.Popen(
            [str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=_own_environment(),
            cwd="/", start_new_session=True,
        )  # fmt: skip
    _abandoned.append(child)
    return child.poll


# For a program that is to end when its input does, in seconds.
_PATIENCE = 2.0


@contextlib.contextmanager
def echoing(argv: Sequence[str | Path], within: float) -> Iterator[str]:
    """Have `argv` run meanwhile, which has to pass on what it reads, as `cat` does: yields what it complains of, or that it did
    not answer `within` seconds; empty if it did. It ends when its input does, so also when this process is killed."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [str(word) for word in argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
            env=environment(), process_group=0,
        )  # fmt: skip
        try:
            yield "" if _echoes(process, within) else _complaint(said) or "it does not answer"
        finally:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)
            if process.returncode is None:
                _end(process)


def _echoes(process: subprocess.Popen[bytes], within: float) -> bool:
    if process.stdin is None or process.stdout is None:
        return False
    with contextlib.suppress(BrokenPipeError):
        os.write(process.stdin.fileno(), b"\n")
    with selectors.DefaultSelector() as ready:
        ready.register(process.stdout, selectors.EVENT_READ)
        return bool(ready.select(within)) and os.read(process.stdout.fileno(), 1) == b"\n"


def _complaint(said: IO[bytes]) -> str:
    said.seek(0)
    return " ".join(said.read(_LONGEST_LINE).decode(errors="replace").split())


def _own_environment() -> dict[str, str]:
    """For children that are pocketcloud itself: what says where kits are, and where our modules are found."""
    ours = {name: value for name, value in os.environ.items() if name.startswith(("POCKETCLOUD_", "PYTHON"))}
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), *filter(None, [ours.get("PYTHONPATH")])])
    return environment(ours | {"PYTHONPATH": path})


def become(argv: Sequence[str], env: Mapping[str, str] | None = None) -> NoReturn:
    """Replace this process by another program (sudo, a pager, ssh); never returns. `env` is the whole new environment."""
    os.execvpe(argv[0], list(argv), dict(os.environ if env is None else env))  # noqa: S606 - argv, no shell
