"""Work that takes long beside somebody's own: the computer stays awake for it, and its reads and writes stand back.

Outside facts: systemd-inhibit(1), whose lock goes with the process that holds it; ionice(1), where `best-effort 7` is what comes
last without ever coming to nothing, and threads and programs begin with what their maker has.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pocketcloud.system import CommandFailed, Runner, echoing, which

_ANSWERS = 10.0


@contextmanager
def awake(why: str) -> Iterator[str]:
    """Keep the computer from suspending, by itself or from a menu, while this is entered: `why` is shown to who asks. Yields why
    that cannot be had here, empty where it is. A kill ends it, too; a closed lid suspends all the same."""
    if which("systemd-inhibit") is None:
        yield "systemd-inhibit is not installed"
        return
    words = ["systemd-inhibit", "--what=sleep:idle", "--who=pocketcloud", f"--why={why}", "--mode=block", "cat"]
    with echoing(words, _ANSWERS) as fault:
        yield fault


def stand_back(run: Runner) -> str:
    """Let others' reads and writes go before those of this thread, and of what it starts from now on; why that cannot be had,
    empty where it can. Where the disks' scheduler knows no such thing, it changes nothing."""
    if which("ionice") is None:
        return "ionice is not installed"
    try:
        run(["ionice", "--class", "best-effort", "--classdata", "7", "--pid", str(threading.get_native_id())])
    except CommandFailed as failed:
        return " ".join(failed.message.split())
    return ""
