"""What is here runs in the emulated laptop only: it makes kits on the first USB disk that it sees."""

from __future__ import annotations

import os

# The laptop that has this host's files cannot be suspended (tests/rig/memory_root.py).
collect_ignore_glob = {"laptop": ["test_suspend.py"], "laptop-in-memory": []}.get(
    os.environ.get("POCKETCLOUD_RIG", ""), ["test_*.py"]
)
