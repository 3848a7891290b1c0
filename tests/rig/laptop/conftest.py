"""What is here runs in the emulated laptop only: it makes kits on the first USB disk that it sees."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("POCKETCLOUD_RIG") == "laptop" else ["test_*.py"]
