"""Folders for what is needed for a moment: gone afterwards, and after a kill gone with the next."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from pocketcloud.scratch import scratch
from pocketcloud.system import run


def begin_in_another_process(place: Path) -> tuple[int, int]:
    """A process that works in a folder, with a file in it, until it is killed; its id, and what tells that it is there."""
    there, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with scratch(run, place) as folder:
                (folder / "image").write_text("large")
                os.write(told, b"x")
                signal.pause()
        finally:
            os._exit(1)
    os.close(told)
    assert os.read(there, 1) == b"x"
    return child, there


def test_it_is_ours_alone_and_goes(tmp_path: Path) -> None:
    with scratch(run, tmp_path) as folder:
        (folder / "tree").mkdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        with scratch(run, tmp_path) as other:
            assert other != folder
            assert folder.exists()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_one_left_goes_and_nothing_else(tmp_path: Path) -> None:
    at_work, there = begin_in_another_process(tmp_path)
    killed, gone = begin_in_another_process(tmp_path)
    try:
        before = set(tmp_path.iterdir())
        os.kill(killed, signal.SIGKILL)
        os.waitpid(killed, 0)
        beside = tmp_path / "beside"
        beside.mkdir()
        (beside / "image").write_text("somebody's")
        (tmp_path / "pocketcloud-scratch-link").symlink_to(beside)
        (tmp_path / "pocketcloud-scratch-file").write_text("somebody's")
        with scratch(run, tmp_path) as mine:
            left = set(tmp_path.glob("pocketcloud-scratch-????????")) - {mine}
        assert len(before) == 2
        assert len(left) == 1
        assert (beside / "image").exists()
        assert (tmp_path / "pocketcloud-scratch-link").is_symlink()
        assert (tmp_path / "pocketcloud-scratch-file").exists()
    finally:
        os.kill(at_work, signal.SIGKILL)
        os.waitpid(at_work, 0)
        os.close(there)
        os.close(gone)


def test_many_at_once(tmp_path: Path) -> None:
    faults: list[Exception] = []

    def work() -> None:
        try:
            for number in range(50):
                with scratch(run, tmp_path) as folder:
                    (folder / "file").write_text(str(number))
                    assert (folder / "file").read_text() == str(number)
        except Exception as error:  # noqa: BLE001 - all that goes wrong in a thread is told below
            faults.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert not list(tmp_path.iterdir())
