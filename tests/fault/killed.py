"""Runs one command line of pocketcloud and ends it at a chosen point: `killed.py POINT SIGNAL DELAY -- ARGUMENTS`.

Nothing of the product is replaced. A profile function (sys.setprofile's hook, in every thread that works on the plan) sees
each call that changes something outside: file-system calls, commands, libvirt's verbs; and each event as it is shown. These
are the points, counted from 1 in the order they are met. SIGNAL (KILL, INT) is sent to this very process at point POINT,
which is a number or what the point is called; at point 0 never. A command or a verb of libvirt has a point in its middle,
too: the signal comes DELAY seconds after its begin. Each point that is passed is a line in the file POCKETCLOUD_POINTS.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

# By the C module it is in: what changes something outside, and whether the points are before, during or after it. Reading and
# asking are no points, nothing is different after them; nor is what comes just before another point, with nothing in between.
Kinds = dict[str, tuple[str, ...]]
FILES: Kinds = {**dict.fromkeys(("replace", "rename", "link", "unlink", "rmdir", "fsync"), ("before",)), "mkdir": ("after",)}
COMMANDS: Kinds = {"fork_exec": ("before", "during"), "waitpid": ("after",)}
LIBVIRT: Kinds = dict.fromkeys(
    (
        "virDomainDefineXML",
        "virDomainCreateWithFlags",
        "virDomainDestroy",
        "virDomainUndefineFlags",
        "virDomainSaveFlags",
        "virDomainRestoreFlags",
        "virDomainShutdownFlags",
        "virDomainManagedSaveRemove",
        "virNetworkDefineXML",
        "virNetworkCreate",
        "virNetworkDestroy",
        "virNetworkUndefine",
        "virNetworkUpdate",
    ),
    ("before", "during", "after"),
)
WATCHED: dict[str, Kinds] = {"posix": FILES, "_posixsubprocess": COMMANDS, "libvirtmod": LIBVIRT}


class Points:
    """Counts the points as they are passed, and sends the signal at the chosen one."""

    def __init__(self, chosen: str, number: int, delay: float, log: int) -> None:
        self._chosen, self._signal, self._delay, self._log = chosen, number, delay, log
        self._count = 0
        self._lock = threading.Lock()

    def profile(self, frame: FrameType, event: str, function: Any) -> None:
        """The hook: https://docs.python.org/3/library/sys.html#sys.settrace says what `event` and `function` are."""
        if event in ("c_call", "c_return"):
            name = function.__name__
            kinds = WATCHED.get(function.__module__ or "", {}).get(name, ())
            for kind in kinds:
                if (kind == "after") == (event == "c_return"):
                    self._passed(f"{kind} {name}", self._delay if kind == "during" else 0.0)
        elif event == "call" and frame.f_code.co_name == "emit" and frame.f_code.co_filename.endswith("cli/view.py"):
            shown = frame.f_locals["event"]
            self._passed(f"saying {type(shown).__name__} {getattr(shown, 'id', '')}".strip())

    def _passed(self, what: str, delay: float = 0.0) -> None:
        with self._lock:
            self._count += 1
            os.write(self._log, f"{self._count} {what}\n".encode())
            if self._chosen not in (str(self._count), what):
                return
            if delay:
                _thread.start_new_thread(self._send, (delay,))
            else:
                self._send(0.0)

    def _send(self, delay: float) -> None:
        time.sleep(delay)
        os.kill(os.getpid(), self._signal)


def main() -> int:
    chosen, name, delay, separator, *arguments = sys.argv[1:]
    assert separator == "--"
    log = os.open(os.environ["POCKETCLOUD_POINTS"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    points = Points(chosen, signal.Signals[f"SIG{name}"], float(delay), log)
    threading.setprofile(points.profile)
    from pocketcloud.cli.main import run

    sys.argv = ["pocketcloud", *arguments]
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
