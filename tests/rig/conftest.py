"""The boots of User-Mode Linux begin beside the tests that come before them and wait more than they compute."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.rig.boots import Boot, Boots
from tests.rig.uml import missing

BOOTS = pytest.StashKey[Boots]()
"""The boots that this run wants, where it wants any."""


class _Beginner:
    """Has the first worker begin with a test."""

    def __init__(self, boots: Boots, first: str) -> None:
        self._boots, self._first = boots, first

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if item.nodeid == self._first:
            self._boots.start_worker()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have one worker begin after the last of the end-to-end tests, whose guests want each processor there is. The second
    worker starts when their own tests' turn comes."""
    calls = (item.callspec for item in session.items if hasattr(item, "callspec"))
    boots = (call.params.get("boot") for call in calls)
    wanted = tuple(boot for boot in boots if isinstance(boot, Boot))
    if not wanted or missing() or session.config.option.collectonly:
        return
    session.config.stash[BOOTS] = Boots(Path(tempfile.mkdtemp(prefix="pocketcloud-uml-")), wanted)
    last = max((number for number, item in enumerate(session.items) if "tests/e2e/" in item.nodeid), default=-1)
    after = session.items[min(last + 1, len(session.items) - 1)]
    session.config.pluginmanager.register(_Beginner(session.config.stash[BOOTS], after.nodeid))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave no process and no file behind, however the run ended."""
    if (boots := config.stash.get(BOOTS, None)) is not None:
        boots.end()
        shutil.rmtree(boots.folder)
