"""What comes after the packages of a bootstrapped base: patches, steps, and the stage that is kept for the next try."""

from __future__ import annotations

import dataclasses
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketcloud.bases import bootstrap, stages
from pocketcloud.bases.bootstrap import take_steps
from pocketcloud.bases.namespace import confined, first_id, give
from pocketcloud.errors import PartlyDone, Refused
from pocketcloud.model.base import Arch, Wheels
from pocketcloud.system import run
from tests.built_base import kit_in
from tests.small_base import small_definition

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes a namespace")

PATCH = """\
--- a/etc/issue
+++ b/etc/issue
@@ -1 +1,2 @@
 Debian
+for a lab
"""


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """A work folder with a system of one program, as mmdebstrap leaves one."""
    tmp_path.chmod(0o711)
    folder = tmp_path / "work"
    for name in ("root/bin", "root/etc", "root/proc", "root/sys", "root/dev", "root/root", "root/run", "releases", "tmp"):
        (folder / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", folder / "root/bin/busybox")
    for applet in ("sh", "cat", "id", "ls", "test", "sleep", "grep", "true", "sed"):
        (folder / "root/bin" / applet).symlink_to("busybox")
    (folder / "root/etc/issue").write_text("Debian\n")
    (folder / "root/etc/resolv.conf").symlink_to("../run/nothing")
    (folder / "values").write_text("ROOT_ID=0\n")
    (folder / "post.sh").write_bytes(dict(bootstrap.parts())["post.sh"])
    for path in (folder, *folder.rglob("*")):
        give(path)
    yield folder
    shutil.rmtree(folder)


def taken(work: Path, *, patches: tuple[str, ...] = (), post: tuple[str, ...] = ()) -> list[str]:
    """The lines that were told while the steps were taken."""
    said: list[str] = []
    take_steps(small_definition(patches=patches, post=post), work, run, lambda text, _part: said.append(text))
    return said


def test_steps_are_taken_in_order_as_root_of_the_new_system(work: Path) -> None:
    steps = ("id -u > /etc/who; cat /etc/issue", "cat /etc/who; test ! -e /work; ls /dev; test -s /etc/resolv.conf")
    said = taken(work, patches=(PATCH,), post=steps)
    assert said[0] == "patch 1 of 1"
    assert "post step 1 of 2: for a lab" in said
    assert said.index("post step 1 of 2: for a lab") < said.index("post step 2 of 2: 0")
    assert {"post step 2 of 2: null", "post step 2 of 2: urandom"} <= set(said)
    assert (work / "root/etc/who").stat().st_uid == first_id(work), "root in there, nobody out here"
    assert list((work / "root/dev").iterdir()) == []
    assert not (work / "root/.step").exists()
    assert not (work / "root/etc/resolv.conf").is_symlink()


def test_a_step_can_read_nothing_of_its_own_script_and_leaves_nothing_running(work: Path) -> None:
    said = taken(work, post=("cat; sleep 1000 & \n true", "ls /proc | grep -c '^[0-9]' || true"))
    assert not [line for line in said if "sleep" in line]


@pytest.mark.parametrize(
    ("post", "words"),
    [
        (("true", "echo no such luck; false", "touch /never"), ("post step 2 of 3 failed", "no such luck")),
        (("exit 3",), ("post step 1 of 1 failed",)),
        (("unknown-program-5",), ("post step 1 of 1 failed", "not found")),
    ],
)
def test_a_step_that_fails_is_named(work: Path, post: tuple[str, ...], words: tuple[str, ...]) -> None:
    with pytest.raises(PartlyDone) as caught:
        taken(work, post=post)
    for word in words:
        assert word in caught.value.message
    assert not (work / "root/never").exists()
    assert not (work / "root/.step").exists()


def test_what_a_step_says_of_secrets_stays_in_it(work: Path) -> None:
    with pytest.raises(PartlyDone) as caught:
        taken(work, post=("TOKEN=hunter2 cat /nowhere",))
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize(
    "patch",
    [
        PATCH.replace("@@ -1 +1,2 @@\n Debian\n", "@@ -1 +1 @@\n-Fedora\n"),
        "this is no patch\n",
        PATCH.replace("etc/issue", "../../../outside"),
        PATCH.replace("a/etc/issue", "/outside").replace("b/etc/issue", "/outside"),
    ],
    ids=["does not fit", "no patch", "climbs out", "absolute"],
)
def test_a_patch_that_cannot_be_applied_is_named(work: Path, patch: str) -> None:
    with pytest.raises(PartlyDone, match="patch 1 of 1 failed"):
        taken(work, patches=(patch,))
    assert not list(work.rglob("*outside*")), "nothing outside of the system was touched"


def test_a_stage_comes_back_as_it_was(work: Path, tmp_path: Path) -> None:
    kit = kit_in(tmp_path / "kit")
    odd = work / "root/bin/odd"
    odd.write_bytes(b"x" * 10000)
    os.chown(odd, first_id(work) + 33, first_id(work) + 44)
    odd.chmod(0o4755)
    odd.with_name("second").hardlink_to(odd)
    run(confined(work, ["setcap", "cap_net_raw+ep", "root/bin/busybox"]))
    definition = small_definition(post=("true",))
    stage = stages.stage(kit, definition, Arch.X86_64, b"1")
    assert not stage.unpack(work, run)
    stage.keep(work, run)
    kept = stage.path.stat()
    assert (kept.st_uid, stat.S_IMODE(kept.st_mode)) == (0, 0o600), "what a step can do elsewhere does not reach it"
    run(confined(work, ["rm", "-rf", "root", "values", "releases"]))
    assert stages.stage(kit, dataclasses.replace(definition, post=("false",)), Arch.X86_64, b"1").unpack(work, run)
    told = odd.stat()
    assert (told.st_uid, told.st_gid, stat.S_IMODE(told.st_mode)) == (first_id(work) + 33, first_id(work) + 44, 0o4755)
    assert told.st_ino == odd.with_name("second").stat().st_ino
    assert "cap_net_raw" in run(confined(work, ["getcap", "root/bin/busybox"])).out
    assert (work / "values").read_text() == "ROOT_ID=0\n"
    assert sorted(path.name for path in work.iterdir()) == ["post.sh", "releases", "root", "tmp", "values"]


def test_a_stage_is_for_its_packages_and_there_is_only_one(work: Path, tmp_path: Path) -> None:
    kit = kit_in(tmp_path / "kit")
    definition = small_definition(post=("true",))
    first = stages.stage(kit, definition, Arch.X86_64, b"1")
    same = [dataclasses.replace(definition, post=("false",)), dataclasses.replace(definition, patches=(PATCH,), title="x")]
    assert {stages.stage(kit, each, Arch.X86_64, b"1").digest for each in same} == {first.digest}
    others = [
        stages.stage(kit, dataclasses.replace(definition, packages=("vim",)), Arch.X86_64, b"1"),
        stages.stage(kit, definition, Arch.AARCH64, b"1"),
        stages.stage(kit, definition, Arch.X86_64, b"2"),
    ]
    assert len({first.digest, *(other.digest for other in others)}) == 4
    first.keep(work, run)
    others[0].keep(work, run)
    assert [path.name for path in stages.folder(kit, "small", Arch.X86_64).iterdir()] == [others[0].path.name]
    stages.stage(kit, small_definition(), Arch.X86_64, b"1").keep(work, run)
    assert list(stages.folder(kit, "small", Arch.X86_64).iterdir()) == [], "without steps it is not worth its space"


@pytest.mark.parametrize("damage", ["cut short", "a byte turned"])
def test_a_damaged_stage_is_none(work: Path, tmp_path: Path, damage: str) -> None:
    stage = stages.stage(kit_in(tmp_path / "kit"), small_definition(post=("true",)), Arch.X86_64, b"1")
    stage.keep(work, run)
    content = bytearray(stage.path.read_bytes())
    middle = len(content) // 2
    if damage == "cut short":
        del content[middle:]
    else:
        content[middle] ^= 0xFF
    stage.path.write_bytes(content)
    run(confined(work, ["rm", "-rf", "root", "values", "releases"]))
    assert not stage.unpack(work, run)
    assert not stage.path.exists()
    assert sorted(path.name for path in work.iterdir()) == ["post.sh", "tmp"]


def test_what_a_step_leaves_in_the_place_of_what_is_built_leads_nowhere(work: Path, tmp_path: Path) -> None:
    """A step may get out of its folder; what the host's root reads after it is a plain file, or refused."""
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    odd = {
        "link": f"ln -s {secret} disk.raw",
        "pipe": "mkfifo disk.raw",
        "device": "ln -s /dev/zero disk.raw",
        "folder": "mkdir disk.raw",
    }
    for how, command in odd.items():
        run(confined(work, ["sh", "-c", f"rm -rf disk.raw; {command}"]))
        with pytest.raises(Refused, match="something else in the place of disk"):
            bootstrap.copy_sparse(work / "disk.raw", secret, lambda _done: None)
        assert secret.read_text() == "of the host", how
    run(confined(work, ["sh", "-c", f"rm -rf step post.sh; mkdir step; ln -s {secret} post.sh"]))
    with pytest.raises(PartlyDone):
        taken(work, post=("true",))  # there is no post.sh that could be run
    assert secret.read_text() == "of the host"


def test_a_step_without_an_end_is_ended(work: Path) -> None:
    definition = small_definition(post=("sleep 1000",))
    with pytest.raises(PartlyDone, match="not done after 1 s"):
        take_steps(definition, work, run, lambda _text, _part: None, 1.0)
    assert "sleep 1000" not in subprocess.run(["ps", "ax"], capture_output=True, text=True, check=True).stdout


def test_a_link_in_the_place_of_the_wheels_leads_nowhere(work: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    run(confined(work, ["sh", "-c", f"mkdir -p root/var/tmp; ln -s {secret} wheels.tar"]))
    carried = Wheels(("click",))
    bootstrap.carry(small_definition(wheels=carried), carried, work, run)
    assert secret.read_text() == "of the host"
    assert [path.name.split("-")[0] for path in (work / "root/var/tmp/wheels").iterdir()] == ["click"]
    assert not (work / "wheels.tar").exists()
