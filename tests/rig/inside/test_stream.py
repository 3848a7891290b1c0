"""A kit goes through a pipe, or a file, and becomes a kit on another disk; what is not whole becomes none."""

from __future__ import annotations

import os
import random
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from pocketcloud.copies.ledger import read_ledger
from pocketcloud.copies.shipped import read_all
from pocketcloud.errors import NotFound
from pocketcloud.kit.attached import Places
from pocketcloud.kit.plugged import plugged_kits
from pocketcloud.model.sizes import MIB
from pocketcloud.storage import open_storage
from pocketcloud.system import run
from tests.contract.stores import TOP
from tests.rig.inside.cut import ENDS
from tests.rig.inside.filed import attached, detached
from tests.rig.inside.test_clone import (
    as_shipped,
    contents,
    disks,
    dumped,
    dumped_of,
    furnish,
    held,
    noise,
    one_base,
    same_maps,
    targets,
    write,
)
from tests.rig.inside.test_kit_device import in_file

__all__ = ["disks", "targets"]


def environment(places: Places) -> dict[str, str]:
    return os.environ | {
        "POCKETCLOUD_DEFAULT_KIT": str(places.default),
        "POCKETCLOUD_RUN_DIR": str(places.run),
        "PYTHONPATH": str(TOP),
    }


def begun(places: Places, *words: object, stdin: int | None = None, stdout: int | None = None) -> subprocess.Popen[bytes]:
    """A command that was started, without a terminal."""
    argv = [sys.executable, "-m", "pocketcloud", *map(str, words)]
    return subprocess.Popen(
        argv,
        env=environment(places),
        stdin=stdin or subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def ends(child: subprocess.Popen[bytes], code: int, *said: str) -> None:
    """Wait for its end: its exit code, and what it says on stderr."""
    told = child.communicate(timeout=800)[1].decode()
    assert child.returncode == code, told
    assert "Traceback" not in told
    assert "Exception ignored" not in told
    assert [words for words in said if words not in told] == [], told


def test_a_kit_goes_through_a_pipe(places: Places, tmp_path: Path, targets: tuple[Path, ...]) -> None:
    _, disk = targets
    kit = in_file(places, tmp_path / "usb.img")
    furnish(kit)
    before = contents(kit)
    sender = begun(places, "kit", "export", "usb", "-", stdout=subprocess.PIPE)
    assert sender.stdout is not None
    receiver = begun(places, "kit", "import", "-", disk, "--name", "copy", "-y", stdin=sender.stdout.fileno())
    sender.stdout.close()
    ends(sender, 0, "Kit usb is exported")
    ends(receiver, 0, "in use, becomes kit copy")
    assert held(kit) is None
    (shipped,) = read_all(kit.path)
    source = as_shipped(dumped(kit), kit)
    (plugged,) = [each for each in plugged_kits(run) if each.name == "copy"]
    assert same_maps(dumped_of(plugged), source)
    copy = attached(places, disk).kit
    assert (copy.name, copy.manifest.derived_from) == ("copy", kit.id)
    assert copy.id != kit.id
    assert copy.vg != kit.vg
    assert contents(copy) == before
    assert (copy.path / "media/notes").read_bytes() == noise(3 * MIB, 5)
    assert (copy.path / "labs/demo/lab.json").read_text() == "{}"
    assert (copy.path / "keys").stat().st_mode & 0o777 == (kit.path / "keys").stat().st_mode & 0o777
    assert not read_ledger(copy).copies
    assert read_all(copy.path) == (shipped,)
    # Both are used at once, each for itself.
    for number, one in enumerate((kit, copy)):
        write(open_storage(one), "lab.1", MIB, MIB, 500 + number)
    assert len({contents(one)["lab.1"] for one in (kit, copy)}) == 2
    assert all(contents(one)["lab.2"] == before["lab.2"] for one in (kit, copy))
    for name in ("usb", "copy"):
        detached(places, name)


@pytest.mark.sampled(2)
def test_what_is_not_whole_becomes_no_kit(places: Places, tmp_path: Path, targets: tuple[Path, ...]) -> None:
    _, disk = targets
    kit = in_file(places, tmp_path / "usb.img")
    one_base(kit, 8 * MIB)
    file = tmp_path / "usb.stream"
    ends(begun(places, "kit", "export", "usb", file), 0, "Kit usb is exported")
    assert not list(tmp_path.glob(".*.aside"))
    ends(begun(places, "kit", "export", "usb", file), 5, "is there already")
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 1
    bad = tmp_path / "bad.stream"
    for content, why in (
        (whole[: len(whole) // 2], "it is cut short"),
        (whole[:-1], "it is cut short"),
        (bytes(flipped), "is not what was written"),
    ):
        bad.write_bytes(content)
        ends(begun(places, "kit", "import", bad, disk, "--name", "copy", "-y"), 5, why)
        assert [each.name for each in plugged_kits(run)] == ["usb"]
        with pytest.raises(NotFound, match="no kit"):
            attached(places, disk)
    bad.write_bytes(noise(4096, 3))
    ends(begun(places, "kit", "import", bad, disk, "--name", "copy", "-y"), 5, "that is no stream of a kit")
    ends(begun(places, "kit", "import", file, disk, "-y"), 5, "there is a kit named usb plugged in")
    ends(begun(places, "kit", "import", file, disk, "--name", "copy"), 2, "Nobody is there to ask")
    # The stream comes on stdin, so the terminal is asked.
    words = shlex.join([sys.executable, "-m", "pocketcloud", "kit", "import", "-", str(disk), "--name", "copy"])
    for answer, code in (("n", 5), ("y", 0)):
        asked = pexpect.spawn("sh", ["-c", f"{words} < {file}"], env=environment(places), encoding="utf-8", timeout=800)
        asked.expect(r"Import it to .*\[y/N\]: ")
        asked.sendline(answer)
        asked.expect(pexpect.EOF)
        asked.close()
        assert asked.exitstatus == code, asked.before
    copy = attached(places, disk).kit
    assert contents(copy) == contents(kit)
    assert not list(Path("/var/tmp").glob("pocketcloud-*"))
    for name in ("usb", "copy"):
        detached(places, name)


def cut_off(child: subprocess.Popen[bytes], seconds: float) -> bool:
    """Kill a command after so long; whether it was before it was done."""
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.kill()
    child.communicate(timeout=800)
    assert child.returncode in (0, -signal.SIGKILL)
    ENDS[child.returncode != 0] += 1
    return child.returncode != 0


@pytest.mark.sampled(10)
@pytest.mark.parametrize("number", range(10))
def test_an_import_that_was_killed_is_no_kit_and_is_begun_anew(
    places: Places, tmp_path: Path, targets: tuple[Path, ...], number: int
) -> None:
    _, disk = targets
    kit = in_file(places, tmp_path / "usb.img")
    one_base(kit, 64 * MIB)
    file = tmp_path / "usb.stream"
    ends(begun(places, "kit", "export", "usb", file), 0, "Kit usb is exported")
    words = ("kit", "import", file, disk, "--name", "copy", "-y")
    chance = random.Random(f"{os.environ.get('POCKETCLOUD_SEED')}.import.{number}")  # noqa: S311 - keeps no secret
    for _ in range(2):
        if not cut_off(begun(places, *words), chance.uniform(2.0, 15.0)):
            break
        if "copy" in [each.name for each in plugged_kits(run)]:
            break  # it had nothing left to do but to say so
        with pytest.raises(NotFound, match="no kit"):
            attached(places, disk)
    else:
        ends(begun(places, *words), 0, "in use, becomes kit copy")
        assert not list(Path("/var/tmp").glob("pocketcloud-*")), "what the killed ones left"
    file.unlink()  # it takes memory
    copy = attached(places, disk).kit
    assert contents(copy) == contents(kit)
    for name in ("usb", "copy"):
        detached(places, name)


@pytest.mark.sampled(2)
def test_who_reads_may_go_away(places: Places, tmp_path: Path) -> None:
    kit = in_file(places, tmp_path / "usb.img")
    one_base(kit, 8 * MIB)
    sender = begun(places, "kit", "export", "usb", "-", stdout=subprocess.PIPE)
    assert sender.stdout is not None
    assert len(sender.stdout.read(100_000)) == 100_000
    sender.stdout.close()
    ends(sender, 5, "whoever read the stream is gone")
    assert held(kit) is None
    detached(places)
