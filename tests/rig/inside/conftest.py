"""What is here runs in User-Mode Linux only: it makes volume groups, and mounts them."""

from __future__ import annotations

import hashlib
import os

import pytest

collect_ignore_glob = [] if os.environ.get("POCKETCLOUD_RIG") == "uml" else ["test_*.py"]
# Of the tests marked `sampled` one in so many runs in `make test`.
ONE_IN = 5


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Choose the sample by the seed; the first of each file always runs, so that no file is skipped whole."""
    if not os.environ.get("POCKETCLOUD_SAMPLE"):
        return
    seed, seen = os.environ.get("POCKETCLOUD_SEED", "0"), set[str]()
    kept, left = list[pytest.Item](), list[pytest.Item]()
    for item in items:
        file = item.nodeid.partition("::")[0]
        digest = hashlib.blake2b(f"{seed}.{item.nodeid}".encode(), digest_size=8).digest()
        chosen = item.get_closest_marker("sampled") is None or file not in seen or int.from_bytes(digest) % ONE_IN == 0
        (kept if chosen else left).append(item)
        seen.add(file)
    config.hook.pytest_deselected(items=left)
    items[:] = kept
