"""Work that is killed in the middle."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable

# Of how many works, by whether they were killed before they were done.
ENDS = Counter[bool]()


def killed_after(seconds: float, work: Callable[[], bool]) -> bool:
    """Do `work` in a process of its own, which is killed after so long; whether it was before it was done. Work that ends by
    itself has to have done what it was to."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    kill = threading.Timer(seconds, os.kill, (child, signal.SIGKILL))
    kill.start()
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # its number is its own until it is waited for
    kill.cancel()
    kill.join()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    ENDS[code != 0] += 1
    return code != 0
