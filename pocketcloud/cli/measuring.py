"""Disks being measured, as the command line shows it: a bar or a line while it lasts, and the spread of the times after it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pocketcloud.errors import PocketcloudError
from pocketcloud.events import StepDone, StepFailed, StepProgress
from pocketcloud.model.disk import TIMES

if TYPE_CHECKING:
    from collections.abc import Callable

    from pocketcloud.cli.view import View
    from pocketcloud.model.disk import BlockDevice, Measured

_BLOCKS = "▁▂▃▄▅▆▇█"


@contextmanager
def measuring(progress: str, verbose: int, seconds: float) -> Iterator[Callable[[BlockDevice], Measured | None]]:
    """What measures a disk for so many seconds and shows how far it is; the view is opened with the first disk."""
    from pocketcloud.cli.view import open_view

    views: list[View] = []

    def measured(disk: BlockDevice) -> Measured | None:
        views[:] = views or [open_view(progress, verbose)]
        return _measured(disk, seconds, views[0])

    try:
        yield measured
    finally:
        for view in views:
            view.close()


def _measured(disk: BlockDevice, seconds: float, view: View) -> Measured | None:
    from pocketcloud.host.disk_speed import measure

    step, title = (
        f"measure {disk.name}",
        f"measuring how quickly {disk.path} can be read, for {seconds:.0f} s (nothing is written)",
    )
    begun = time.monotonic()

    def tell(fraction: float) -> None:
        view.emit(StepProgress(step, fraction, title))

    tell(0.0)
    try:
        found = measure(disk.path, seconds, tell=tell)
    except PocketcloudError as failure:
        view.emit(StepFailed(step, f"measure {disk.path}", "", time.monotonic() - begun, failure.message))
        raise
    tell(1.0)
    view.emit(StepDone(step, f"measure {disk.path}", "", time.monotonic() - begun))
    return found


def times_line(measured: Measured) -> str:
    """The spread of the random reads' times in a line: a column for each limit of TIMES, and one for what took longer."""
    most = max(measured.counts, default=0)
    if not most:
        return ""
    columns = "".join(_BLOCKS[(len(_BLOCKS) - 1) * count // most] if count else "·" for count in measured.counts)
    limits = " ".join(f"{limit * 1000:g}" for limit in TIMES)
    return f"random reads by their time: {columns} (columns: up to {limits} ms, and more)"
