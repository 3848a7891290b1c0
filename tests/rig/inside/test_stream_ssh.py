"""A kit goes to another computer by ssh: OpenSSH's own client and server, with a key each, on a port of the loopback network.

The other computer is this one with folders of its own (places and locks), as two computers have nothing in common but the stream.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketcloud.errors import NotFound
from pocketcloud.kit.attached import Places
from pocketcloud.kit.plugged import plugged_kits
from pocketcloud.model.kit import Kit
from pocketcloud.model.sizes import MIB
from pocketcloud.system import run
from tests.contract.stores import TOP
from tests.rig.inside.filed import attached, detached
from tests.rig.inside.test_clone import contents, disks, furnish, held, noise, one_base, targets
from tests.rig.inside.test_kit_device import in_file
from tests.rig.inside.test_stream import begun, ends
from tests.sshd import SSHD, Sshd

__all__ = ["disks", "targets"]

pytestmark = pytest.mark.skipif(not SSHD, reason="no sshd here: `make setup` installs it")
WITHIN = 800.0


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    run(["ip", "link", "set", "lo", "up"])
    with Sshd(tmp_path / "sshd") as server:
        yield server


class Far:
    """`kit import -` on the other computer, begun by ssh. What it says there, and its exit code, stand in files: nobody is told
    them when the connection is gone."""

    def __init__(self, sshd: Sshd, folder: Path, disk: Path, sender: subprocess.Popen[bytes], *, by_ssh: bool = False) -> None:
        """Takes what `sender` sends. `by_ssh`: what it says goes to ssh, as for people."""
        assert sender.stdout is not None
        folder.mkdir()
        self._code = folder / "code"
        self._said = folder / "said"
        self.places = Places(folder / "default", folder / "run")
        variables = {
            "POCKETCLOUD_DEFAULT_KIT": self.places.default,
            "POCKETCLOUD_RUN_DIR": self.places.run,
            "PYTHONPATH": TOP,
            "PATH": os.environ["PATH"],
        }
        words = ["env", *(f"{name}={value}" for name, value in variables.items()), sys.executable, "-m", "pocketcloud"]
        words += ["kit", "import", "-", str(disk), "--name", "copy", "-y"]
        told = "" if by_ssh else f" 2>{self._said}"
        aside = f"{self._code}.aside"
        line = f"{shlex.join(words)}{told}; code=$?; echo $code >{aside}; mv {aside} {self._code}; exit $code"
        argv = [*sshd.client_words(), line]
        self.ssh = subprocess.Popen(argv, stdin=sender.stdout, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        sender.stdout.close()

    def ends(self, code: int, *said: str) -> str:
        """Wait for the import's end, whatever has become of the connection; what it has said."""
        until = time.monotonic() + WITHIN
        while not self._code.exists():
            assert time.monotonic() < until, f"the import goes on without its stream: {self.said()}"
            time.sleep(0.1)
        assert int(self._code.read_text()) == code, self.said()
        assert "Traceback" not in self.said()
        assert [words for words in said if words not in self.said()] == [], self.said()
        return self.said()

    def said(self) -> str:
        return self._said.read_text(errors="replace") if self._said.exists() else ""


def sent_some(sender: subprocess.Popen[bytes]) -> None:
    """Wait until a third of it was read, and no more than that."""
    assert sender.stderr is not None
    # Not by lines of a buffered file: communicate() reads on where this ends.
    line = b""
    while True:
        byte = os.read(sender.stderr.fileno(), 1)
        assert byte, "the export has ended"
        line += byte
        if byte != b"\n":
            continue
        told, line = (json.loads(line) if line.startswith(b"{") else {}), b""
        if told.get("event") == "StepProgress" and told["fraction"] > 0.3:
            assert told["fraction"] < 1, "there was nothing left to be cut"
            return


def no_kit(places: Places, kit: Kit, disk: Path) -> None:
    """The cut import has made no kit, and both ends have let go of all they held."""
    assert [each.name for each in plugged_kits(run)] == ["usb"]
    with pytest.raises(NotFound, match="no kit"):
        attached(places, disk)
    assert held(kit) is None
    assert not list(Path("/var/tmp").glob("pocketcloud-*"))


def test_a_kit_goes_by_ssh(places: Places, tmp_path: Path, targets: tuple[Path, ...], sshd: Sshd) -> None:
    _, disk = targets
    kit = in_file(places, tmp_path / "usb.img")
    furnish(kit, 5)
    before = contents(kit)
    sender = begun(places, "kit", "export", "usb", "-", stdout=subprocess.PIPE)
    far = Far(sshd, tmp_path / "far", disk, sender)
    ends(sender, 0, "Kit usb is exported")
    far.ends(0, "in use, becomes kit copy")
    out, _ = far.ssh.communicate(timeout=WITHIN)
    assert far.ssh.returncode == 0
    assert "Kit copy is on" in out.decode(), "what it prints comes back by ssh"
    copy = attached(places, disk).kit
    assert copy.manifest.derived_from == kit.id
    assert contents(copy) == before
    assert (copy.path / "media/notes").read_bytes() == noise(3 * MIB, 5)

    # What is wrong there is told here, by ssh, and ends both.
    sender = begun(places, "kit", "export", "usb", "-", stdout=subprocess.PIPE)
    far = Far(sshd, tmp_path / "again", disk, sender, by_ssh=True)
    ends(sender, 5, "whoever read the stream is gone")
    far.ends(5)
    _, told = far.ssh.communicate(timeout=WITHIN)
    assert far.ssh.returncode == 5
    assert b"error:" in told
    assert b"Traceback" not in told
    for name in ("usb", "copy"):
        detached(places, name)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("which", ["here", "there", "there and nobody listens"])
def test_the_connection_is_cut(places: Places, tmp_path: Path, targets: tuple[Path, ...], sshd: Sshd, which: str) -> None:
    """By the end of the client, or of the server's process that serves it. Where the import's words went to the connection, they
    cannot be told: it ends as it would have otherwise."""
    _, disk = targets
    kit = in_file(places, tmp_path / "usb.img")
    one_base(kit, 96 * MIB)
    sender = begun(places, "kit", "export", "usb", "-", "--progress", "json", stdout=subprocess.PIPE)
    far = Far(sshd, tmp_path / "far", disk, sender, by_ssh="nobody" in which)
    sent_some(sender)
    if which == "here":
        far.ssh.kill()
    else:
        (session,) = sshd.sessions
        os.kill(session, signal.SIGKILL)
    ends(sender, 5, "whoever read the stream is gone")
    far.ssh.communicate(timeout=WITHIN)
    assert far.ssh.returncode == (-signal.SIGKILL if which == "here" else 255)
    far.ends(5, *([] if "nobody" in which else ["the stream cannot be used: it is cut short"]))
    no_kit(places, kit, disk)

    sender = begun(places, "kit", "export", "usb", "-", stdout=subprocess.PIPE)
    far = Far(sshd, tmp_path / "again", disk, sender)
    ends(sender, 0, "Kit usb is exported")
    far.ends(0)
    far.ssh.communicate(timeout=WITHIN)
    copy = attached(places, disk).kit
    assert contents(copy) == contents(kit)
    for name in ("usb", "copy"):
        detached(places, name)
