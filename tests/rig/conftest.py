"""The boots of User-Mode Linux begin with the run, beside the tests that come before them: those wait more than they compute."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.rig.boots import Boot, Boots
from tests.rig.uml import missing

BOOTS = pytest.StashKey[Boots]()
"""The boots that this run wants, where it wants any."""


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have one worker begin. The second starts when their own tests' turn comes."""
    calls = (item.callspec for item in session.items if hasattr(item, "callspec"))
    boots = (call.params.get("boot") for call in calls)
    wanted = tuple(boot for boot in boots if isinstance(boot, Boot))
    if wanted and not missing() and not session.config.option.collectonly:
        session.config.stash[BOOTS] = Boots(Path(tempfile.mkdtemp(prefix="pocketcloud-uml-")), wanted)
        session.config.stash[BOOTS].start_worker()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave no process and no file behind, however the run ended."""
    if (boots := config.stash.get(BOOTS, None)) is not None:
        boots.end()
        shutil.rmtree(boots.folder)
