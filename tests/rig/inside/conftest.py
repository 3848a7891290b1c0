"""What is here runs in User-Mode Linux only: it makes volume groups, and mounts them."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("POCKETCLOUD_RIG") == "uml" else ["test_*.py"]
