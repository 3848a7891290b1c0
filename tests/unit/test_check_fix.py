"""`check --fix`: each fix is drawn up from the state just before it, done, and its check run again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from pocketcloud.check import Check, State
from pocketcloud.check.fixes import Command, carry_out
from pocketcloud.check.mending import Mended, Outcome, all_helped, mend
from pocketcloud.errors import HostLacks, Refused, UsageError
from pocketcloud.host.disk_speed import measure
from pocketcloud.system import Completed
from tests.computers import LIBVIRTD, Computer, Libvirt
from tests.host_trees import plant, x86_laptop


class Repaired:
    """A Runner under which commands change a computer under test as the real ones would: a package brings more than its own."""

    def __init__(self, computer: Computer) -> None:
        self.computer = computer
        self.done: list[str] = []

    def __call__(self, argv: Iterable[str | Path], **_: object) -> Completed:
        words = tuple(map(str, argv))
        self.done.append(" ".join(words))
        if "libvirt-daemon-system" in words:
            self.computer.tools |= {"libvirtd", "dnsmasq"}
            plant(self.computer.root, {"proc/901/comm": "virtlogd\n"})
        elif "qemu-utils" in words:
            self.computer.tools |= {"qemu-img"}
        elif words == ("libvirtd", "-d"):
            plant(self.computer.root, LIBVIRTD)
            self.computer.libvirt = Libvirt()
        else:
            raise HostLacks(f"{words[0]}: that was not expected")
        return Completed(words, 0, "", "")


def test_each_fix_is_drawn_up_from_the_state_that_the_one_before_left(tmp_path: Path) -> None:
    """Installing libvirt starts virtlogd and brings dnsmasq: what is left is libvirtd, and qemu-img."""
    computer = Computer(tmp_path, x86_laptop("debian-13"))
    computer.change(systemd=False)
    for path in LIBVIRTD:
        (tmp_path / path).unlink()
    computer.tools -= {"libvirtd", "dnsmasq", "qemu-img"}
    computer.libvirt = HostLacks("libvirt's daemon is not installed")
    before = {check.id: check for check in computer.checks().values() if check.fix}
    assert set(before) == {"libvirt", "dnsmasq", "qemu-img"}
    assert before["libvirt"].remedy[1:] == ("virtlogd -d", "libvirtd -d")
    run = Repaired(computer)

    def do(check: Check) -> None:
        carry_out(check.fix, run, tmp_path)

    results = list(mend(before.values(), do, lambda: tuple(computer.checks().values())))
    assert run.done == ["apt-get install -y libvirt-daemon-system", "libvirtd -d", "apt-get install -y qemu-utils"]
    assert [(mended.check.id, mended.outcome, mended.helped) for mended in results] == [
        ("libvirt", Outcome.DONE, False),
        ("libvirt", Outcome.DONE, True),
        ("qemu-img", Outcome.DONE, True),
    ]
    assert all_helped(results)
    assert not all_helped(results[:1])


def check(name: str, state: State = State.WARN) -> Check:
    return Check(name, "group", state, f"{name} is {state}", "It matters.", (), (Command(("true",)),))


def test_a_fix_that_fails_leaves_the_others_and_is_not_tried_again() -> None:
    asked = []

    def do(wanted: Check) -> None:
        asked.append(wanted.id)
        if wanted.id == "a":
            raise HostLacks("it cannot be")
        if wanted.id == "b":
            raise Refused("nothing was done")

    left = (check("a"), check("b"), check("c"), check("d", State.OK))
    results = {mended.check.id: mended for mended in mend(left, do, lambda: left)}
    assert asked == ["a", "b", "c"]
    assert {name: mended.outcome for name, mended in results.items()} == {"a": "failed", "b": "refused", "c": "done"}
    assert not results["c"].helped, "its check is as it was"
    assert results["a"].told == {
        "id": "a", "actions": ["true"], "outcome": "failed", "state": "warn", "evidence": "a is warn", "error": "it cannot be",
    }  # fmt: skip


def test_where_nobody_can_be_asked_it_is_said_once() -> None:
    def do(_check: Check) -> None:
        raise UsageError("Nobody is there to ask.")

    with pytest.raises(UsageError):
        list(mend((check("a"), check("b")), do, tuple))


def test_a_check_that_is_gone_is_not_known_to_be_cured() -> None:
    mended = next(iter(mend((check("a"),), lambda _: None, tuple)))
    assert mended == Mended(check("a"), Outcome.DONE)
    assert not mended.helped
    assert mended.told["state"] is State.UNKNOWN


# A place of its own: /etc and /dev are copies, in which the product does what it does on a host that udev has not set up.
APART = r"""
set -eu
mount --make-rprivate /
mkdir "$1/etc" "$1/dev"
cp -a /etc/. "$1/etc"
mount --bind "$1/etc" /etc
cp -a /dev/null /dev/zero /dev/urandom "$1/dev"
mknod -m 0600 "$1/dev/kvm" c 10 232
mkdir "$1/dev/pts" "$1/dev/shm"
mount --bind "$1/dev" /dev
shift
exec "$@"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="a namespace with devices takes root")
def test_a_real_fix_cures_what_its_check_found(tmp_path: Path) -> None:
    """udev has left /dev/kvm to root alone: chgrp, chmod and usermod mend it, and JSON says so."""
    if not Path("/dev/kvm").exists() or shutil.which("libvirtd") is None:
        pytest.skip("this computer has no KVM, or no libvirt, that could be mended")
    group = Path("/etc/group").read_text()
    command = [sys.executable, "-m", "pocketcloud", "check", "--no-measure", "--fix", "-y", "-o", "json"]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", APART, "apart", tmp_path, *command],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=300,
    )  # fmt: skip
    if "Operation not permitted" in done.stderr and "mknod" in done.stderr:
        pytest.skip("no device can be made here")
    assert "Traceback" not in done.stderr, done.stderr
    found = {entry["id"]: entry for entry in json.loads(done.stdout)}
    entry = found["kvm-access"]
    assert (entry["outcome"], entry["state"], entry["error"]) == ("done", "ok", ""), entry
    assert entry["actions"][:2] == ["chgrp kvm /dev/kvm", "chmod 0660 /dev/kvm"]
    assert "may open it" in entry["evidence"]
    assert (tmp_path / "dev/kvm").stat().st_mode & 0o777 == 0o660
    assert Path("/etc/group").read_text() == group, "the host's own is as it was"


@pytest.mark.skipif(os.geteuid() != 0, reason="it is about root")
def test_root_is_not_told_to_be_root() -> None:
    """Where a control group keeps a disk away from root, which some containers and virtual machines do."""
    disk = next((path for path in map(Path, ("/dev/vda", "/dev/sda", "/dev/nvme0n1")) if path.is_block_device()), None)
    if disk is None:
        pytest.skip("no disk here")
    try:
        os.close(os.open(disk, os.O_RDONLY))
    except PermissionError:
        with pytest.raises(HostLacks, match="although this is root") as told:
            measure(disk, 0.1)
        assert "as root" not in told.value.hint
    else:
        pytest.skip("root may read disks here")
