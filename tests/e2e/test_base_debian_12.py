"""The base debian-12 for x86_64, really built: sealed as it should be, and started with Secure Boot enforced."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pocketcloud.bases import records
from pocketcloud.model.base import Arch
from pocketcloud.model.sizes import GIB, MIB
from pocketcloud.storage import Volume
from tests.built_base import CACHE, built_base, kit_in
from tests.e2e.conftest import BEGUN
from tests.emulated import emulated

ROOT_OFFSET = 65 * MIB


@pytest.fixture(scope="module")
def base(pytestconfig: pytest.Config) -> Iterator[Volume]:
    if (begun := pytestconfig.stash.get(BEGUN, None)) is not None:
        assert begun.wait() == 0, "what it said is above"
    with built_base("debian-12", Arch.X86_64) as (_, volume):
        yield volume


@dataclass(frozen=True, slots=True)
class Entry:
    """A directory entry as debugfs shows it."""

    path: str
    mode: int
    uid: int
    gid: int
    size: int

    @property
    def folder(self) -> bool:
        return self.mode & 0o170000 == 0o040000


class Image:
    """The root file system of a base, read with debugfs: no mount, no loop device."""

    def __init__(self, raw: Path) -> None:
        self.raw = raw
        self.place = f"{raw}?offset={ROOT_OFFSET}"

    def ask(self, commands: list[str]) -> str:
        done = subprocess.run(
            ["debugfs", "-f", "-", self.place], input="\n".join(commands) + "\n", capture_output=True, text=True, check=True
        )
        return done.stdout

    def text(self, path: str) -> str:
        return self.ask([f"cat {path}"]).partition("\n")[2]

    def tree(self) -> dict[str, Entry]:
        """Everything in the image, by path."""
        found: dict[str, Entry] = {}
        level = ["/"]
        while level:
            below = []
            # debugfs repeats each command before its answer.
            for part in re.split(r"^debugfs: ls -p ", self.ask([f'ls -p "{path}"' for path in level]), flags=re.M)[1:]:
                head, _, lines = part.partition("\n")
                folder = head.strip().strip('"').rstrip("/")
                for line in lines.splitlines():
                    fields = line.split("/")
                    if len(fields) < 7 or fields[5] in ("", ".", ".."):
                        continue
                    entry = Entry(f"{folder}/{fields[5]}", int(fields[2], 8), int(fields[3]), int(fields[4]), int(fields[6] or 0))
                    found[entry.path] = entry
                    if entry.folder:
                        below.append(entry.path)
            level = below
        return found


@pytest.fixture(scope="module")
def image(base: Volume, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    raw = tmp_path_factory.mktemp("image") / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(base.path), str(raw)], check=True)
    yield Image(raw)
    raw.unlink()


@pytest.fixture(scope="module")
def tree(image: Image) -> dict[str, Entry]:
    found = image.tree()
    assert len(found) > 5000, "debugfs did not show the tree"
    return found


def test_root_is_the_last_partition_and_reaches_the_end(image: Image, base: Volume) -> None:
    table = json.loads(subprocess.run(["sfdisk", "--json", image.raw], capture_output=True, check=True).stdout)["partitiontable"]
    esp, root = table["partitions"]
    assert (esp["name"], root["name"]) == ("esp", "root")
    assert root["start"] * 512 == ROOT_OFFSET
    assert (root["start"] + root["size"]) * 512 == base.size - MIB


def test_the_file_system_is_one_that_grub_reads_and_is_whole(image: Image) -> None:
    said = subprocess.run(["dumpe2fs", "-h", image.place], capture_output=True, text=True, check=True).stdout
    features = next(line for line in said.splitlines() if line.startswith("Filesystem features:")).split()
    assert not {"metadata_csum_seed", "orphan_file"} & set(features)
    assert "has_journal" in features
    subprocess.run(["e2fsck", "-fn", image.place], check=True, capture_output=True)


def test_owners_are_the_new_system_s(tree: dict[str, Entry]) -> None:
    assert not [entry for entry in tree.values() if entry.uid > 65534 or entry.gid > 65534]
    shadow = tree["/etc/shadow"]
    assert (shadow.uid, shadow.gid, shadow.mode & 0o777) == (0, 42, 0o640)
    assert tree["/usr/bin/passwd"].mode & 0o4000
    assert tree["/etc/cloud/cloud.cfg.d/90-pocketcloud.cfg"].uid == 0


def test_nothing_that_must_differ_between_machines_is_in_it(tree: dict[str, Entry]) -> None:
    assert tree["/etc/machine-id"].size == 0
    for gone in ("/etc/hostname", "/etc/machine-info", "/var/lib/systemd/random-seed", "/var/lib/cloud", "/root/.ssh"):
        assert gone not in tree
    assert not [path for path in tree if path.startswith("/etc/ssh/ssh_host_")]


def test_nothing_that_the_build_needed_is_left(image: Image, tree: dict[str, Entry]) -> None:
    def files(folder: str) -> list[str]:
        return [path for path, entry in tree.items() if path.startswith(folder + "/") and not entry.folder]

    assert files("/var/lib/apt/lists") == []
    assert files("/var/cache/apt") == []
    assert files("/tmp") == files("/var/tmp") == files("/run") == []
    logs = {path: tree[path].size for path in files("/var/log") if tree[path].mode & 0o170000 == 0o100000}
    assert not any(logs.values()), logs
    assert not [path for path in tree if "mmdebstrap" in path]
    assert files("/etc/apt/sources.list.d") == ["/etc/apt/sources.list.d/debian.sources"]
    assert "/etc/apt/sources.list" not in tree
    assert "mirrors.kernel.org" in image.text("/etc/apt/sources.list.d/debian.sources")
    assert "root:*:" in image.text("/etc/shadow") or "root:!" in image.text("/etc/shadow")


def test_its_record_tells_that_it_is_sealed_and_small(base: Volume, tree: dict[str, Entry]) -> None:
    """By the builder's own look into it, which is not this file's."""
    record = records.find(kit_in(CACHE), "debian-12", Arch.X86_64)
    assert record is not None
    assert record.sealed == f"{len(tree)} names on ext4 on partition 2"
    assert record.packages.digest
    assert record.packages.date
    sizes = record.sizes
    blocks = sum(-(-entry.size // 4096) * 4096 for entry in tree.values() if entry.mode & 0o170000 == 0o100000)
    assert blocks < sizes.files < 1.1 * blocks, "regular files are nearly all; folders and the EFI partition come to them"
    assert sizes.stored == base.used
    assert sizes.stored <= 1.1 * sizes.files
    assert sizes.unsealed > 1.1 * sizes.files, "lists and archives of packages lay in it"


@pytest.mark.slow
def test_it_starts_with_secure_boot_and_answers_ssh(base: Volume, tmp_path: Path) -> None:
    """On firmware that has never seen the disk and takes only signed programs; with a disk larger than the base."""
    with emulated(base.path, tmp_path, Arch.X86_64, 14 * GIB, secure=True, within=300) as machine:
        print(f"ssh after {machine.seconds:.1f} s")
        # The variable's four attribute bytes come before its value.
        assert machine.said("od -An -tu1 /sys/firmware/efi/efivars/SecureBoot-*").split()[-1] == "1"
        assert machine.said("cloud-init status --wait").strip(".\n").endswith("done")
        print(machine.said("systemd-analyze"))
        assert machine.said("systemctl --failed --quiet --no-legend") == ""
        assert machine.said("hostname -f").strip() == "web.demo"
        assert int(machine.said("df --output=size -B1 / | tail -1")) > 13 * GIB
        assert machine.said("getent ahosts web.demo")
        assert machine.said("cat /proc/cmdline").count("console=ttyS0") == 1
        assert machine.said("cat /etc/machine-id").strip() != ""
        assert machine.said("ls /etc/ssh/ssh_host_*_key").split() == ["/etc/ssh/ssh_host_ed25519_key"]
        # What a kernel update will do in the machine: the configuration is made anew, and still names the file system.
        machine.said("update-grub 2>&1")
        uuid = machine.said("findmnt -no UUID /").strip()
        assert f"root=UUID={uuid}" in machine.said("cat /boot/grub/grub.cfg")
        assert "BOOTX64.EFI" in machine.said("ls /boot/efi/EFI/BOOT")
