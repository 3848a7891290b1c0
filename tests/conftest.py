"""What holds for the whole test run."""

from __future__ import annotations

import hashlib
import os
import signal
from collections import defaultdict

import pytest


def pytest_configure() -> None:
    """Let Ctrl-C mean something to the commands under test: in the background of a shell SIGINT is ignored, and children,
    Python among them, leave it so."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where POCKETCLOUD_SAMPLE is set, as `make test` does, run one in N of the tests marked `sampled(N)`, chosen by the seed.

    Of each file it is the same number every time, and one at least.
    """
    if not os.environ.get("POCKETCLOUD_SAMPLE"):
        return
    seed = os.environ.get("POCKETCLOUD_SEED", "0")
    drawn = defaultdict[tuple[str, int], list[pytest.Item]](list)
    for item in items:
        if (mark := item.get_closest_marker("sampled")) is not None:
            drawn[item.nodeid.partition("::")[0], mark.args[0]].append(item)
    left = set[pytest.Item]()
    for (_, one_in), some in drawn.items():
        some.sort(key=lambda item: hashlib.sha256(f"{seed}.{item.nodeid}".encode()).digest())
        left.update(some[max(1, round(len(some) / one_in)) :])
    config.hook.pytest_deselected(items=[item for item in items if item in left])
    items[:] = [item for item in items if item not in left]
