"""The namespace that images are built in: real ones, so these tests need root, as `make test` has it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pocketcloud.bases.namespace import confined, first_id, give
from pocketcloud.system import CommandFailed, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="making a namespace with a range of users takes root")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A work folder; its parents are closed to others, as pytest makes them."""
    folder = tmp_path / "a work folder"
    folder.mkdir()
    give(folder)
    return folder


def test_root_in_there_is_nobody_out_here(work: Path) -> None:
    said = run(confined(work, ["sh", "-c", "id -u; touch mine; chown 42:43 mine; cat /proc/self/uid_map"])).out.split()
    assert said == ["0", "0", str(first_id(work)), "65536"]
    made = (work / "mine").stat()
    assert (made.st_uid, made.st_gid) == (first_id(work) + 42, first_id(work) + 43)


def test_what_is_built_in_one_folder_does_not_reach_another(work: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    other = tmp_path / "another"
    other.mkdir()
    give(other)
    (other / "file").write_text("of another build")
    give(other / "file")
    other.chmod(0o711)
    assert first_id(work) != first_id(other)
    said = run(confined(work, ["sh", "-c", f"cat {other}/file; echo x > {other}/file; rm -f {other}/file; true"]))
    assert "of another build" not in said.out
    assert (other / "file").read_text() == "of another build"


def test_the_host_s_root_is_out_of_reach(work: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("no", encoding="utf-8")
    secret.chmod(0o600)
    for command in (["cat", "/etc/shadow"], ["touch", "/etc/pocketcloud-was-here"], ["cat", str(secret)]):
        with pytest.raises(CommandFailed):
            run(confined(work, command))
    assert not Path("/etc/pocketcloud-was-here").exists()


def test_exit_codes_and_input_pass_through(work: Path) -> None:
    assert run(confined(work, ["sh", "-c", "exit 7"]), codes=(7,)).code == 7
    assert run(confined(work, ["cat"]), stdin=b"hello").out == "hello"


def test_no_mount_is_left_and_none_is_seen(work: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    assert run(confined(work, ["findmnt", "-n", "-o", "TARGET", "/mnt"])).out.strip() == "/mnt"
    assert Path("/proc/self/mountinfo").read_text(encoding="utf-8") == before


SLEEPER = """
import sys
from pathlib import Path
from pocketcloud.bases.namespace import confined
from pocketcloud.system import run
run(confined(Path(sys.argv[1]), ["sh", "-c", "touch begun; while :; do date +%N > beat; sleep 0.05; done"]))
"""


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_the_command(work: Path, ending: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEPER, work], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        try:
            while not (work / "beat").exists():
                assert time.monotonic() < deadline, "it did not begin"
                time.sleep(0.05)
            process.send_signal(ending)
            process.wait(30)
        finally:
            process.kill()
    deadline = time.monotonic() + 20
    while True:
        last = (work / "beat").read_text(encoding="utf-8")
        time.sleep(0.5)
        if (work / "beat").read_text(encoding="utf-8") == last:
            break
        assert time.monotonic() < deadline, "it still runs"


def test_a_disk_is_not_filled_to_its_end(tmp_path: Path) -> None:
    mounted = tmp_path / "media"
    mounted.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "size=256m,mode=755", "tmpfs", mounted])
    greedy = "fallocate -l 180M much; while :; do head -c 1M /dev/zero >> more || exit 3; sleep 0.05; done"
    try:
        give(mounted)
        with pytest.raises(CommandFailed, match="No space left on device") as raised:
            run(confined(mounted, ["sh", "-c", greedy]), timeout=60)
        assert raised.value.completed.code == 28
        assert shutil.disk_usage(mounted).free > 0
    finally:
        run(["umount", mounted])


def test_what_is_built_on_a_kit_that_is_mounted_noexec_can_run(tmp_path: Path) -> None:
    mounted = tmp_path / "media"
    mounted.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "nosuid,nodev,noexec,mode=755", "tmpfs", mounted])
    try:
        give(mounted)
        program = mounted / "program"
        program.write_text("#!/bin/sh\necho built\n")
        program.chmod(0o755)
        assert not os.access(program, os.X_OK)
        assert run(confined(mounted, ["./program"])).out == "built\n"
    finally:
        run(["umount", mounted])
