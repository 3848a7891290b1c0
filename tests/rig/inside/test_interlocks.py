"""The interlocks on real devices: md, crypt, LVM, swap, mounts, loops, partitions of two kinds, a read-only and a small disk.

All are refused with their reason, the free disk is accepted, and neither a refusal nor a claim changes a byte of any of them.
Most disks are RAM disks, which take memory for what is written only.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from pocketcloud.errors import Refused, UsageError
from pocketcloud.host.disk_speed import measure
from pocketcloud.host.disks import read_block_devices
from pocketcloud.kit.interlocks import check_target, claimed, confirmation, contents, objections
from pocketcloud.model.disk import BlockDevice, BlockDevices
from pocketcloud.model.sizes import GIB, MIB
from pocketcloud.verdict import verdict

SIZE = 4 * GIB
QUIET = {"DM_DISABLE_UDEV": "1", "LVM_SUPPRESS_FD_WARNINGS": "1"}
FREE, EMPTY, DECOY = "/dev/ram0", "/dev/ram1", "/dev/ram2"


def sh(command: str, stdin: bytes = b"") -> str:
    done = subprocess.run(["sh", "-ec", command], input=stdin, capture_output=True, env=os.environ | QUIET, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr.decode()}"
    return done.stdout.decode().strip()


@dataclass
class Bench:
    """What each test stands on; `undo` are commands, the last first."""

    folder: Path
    undo: list[str] = field(default_factory=list)

    def do(self, command: str, undo: str = "", stdin: bytes = b"") -> str:
        said = sh(command, stdin)
        if undo:
            self.undo.append(undo)
        return said

    def close(self) -> None:
        for command in reversed(self.undo):
            sh(command)


@pytest.fixture(scope="module")
def beginning() -> BlockDevices:
    """The disks as all tests find them and leave them."""
    sh("modprobe brd rd_nr=5 rd_size=4194304; modprobe loop; modprobe sd_mod; modprobe dm-crypt; modprobe raid1")
    # What is written to scsi_debug's disks repeats each 32 MiB: enough for their names and serials.
    sh("modprobe scsi_debug dev_size_mb=32 virtual_gb=4 num_tgts=1 max_luns=2")
    sh(f"mkfs.ext4 -q {DECOY}")
    return read_block_devices()


@pytest.fixture
def bench(tmp_path: Path, beginning: BlockDevices) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()
    assert read_block_devices() == beginning, "the test left something behind"


def named(devices: BlockDevices, path: str | Path) -> BlockDevice:
    found = devices.get(path)
    assert found is not None, f"{path} is not in {[device.name for device in devices]}"
    return found


def refuse(path: str, *words: str, others: Sequence[str] = ()) -> BlockDevices:
    """The device is refused for these reasons, also by those who claim it; the free disk is accepted all the while."""
    devices = read_block_devices()
    for target in (named(devices, path), *(named(devices, other) for other in others)):
        against = "; ".join(objections(devices, target))
        assert against, f"{target.name} could have been chosen"
        with pytest.raises(Refused, match="cannot be chosen"):
            check_target(devices, target, erase_serial=confirmation(devices, target), ask_serial=None)
    against = "; ".join(objections(devices, named(devices, path)))
    for word in words:
        assert word in against, against
    for accepted in (FREE, EMPTY):
        assert objections(devices, named(devices, accepted)) == ()
    return devices


def not_claimed(path: str, match: str, devices: BlockDevices | None = None) -> None:
    devices = devices or read_block_devices()
    with pytest.raises(Refused, match=match), claimed(named(devices, path), read_block_devices):
        pytest.fail(f"{path} was claimed")


def digest(path: str) -> str:
    """Of the first 64 MiB, where everything is that the tests write."""
    with Path(path).open("rb") as disk:
        return hashlib.sha256(disk.read(64 * MIB)).hexdigest()


# -- disks in use


def test_a_mounted_disk(bench: Bench) -> None:
    bench.do(f"mkfs.ext4 -q /dev/ram3; mkdir '{bench.folder}/a b'", "wipefs -qa /dev/ram3")
    bench.do(f"mount /dev/ram3 '{bench.folder}/a b'", f"umount '{bench.folder}/a b'")
    devices = refuse("/dev/ram3", f"ram3 is mounted on {bench.folder}/a b")
    not_claimed("/dev/ram3", "is in use", devices)


@pytest.mark.sampled(8)
def test_a_disk_mounted_in_another_namespace(bench: Bench) -> None:
    bench.do("mkfs.ext4 -q /dev/ram3", "wipefs -qa /dev/ram3")
    script = f"mount /dev/ram3 {bench.folder} && echo mounted && read line"
    with subprocess.Popen(["unshare", "-m", "sh", "-ec", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"mounted\n"
        assert str(bench.folder) not in Path("/proc/self/mountinfo").read_text()
        refuse("/dev/ram3", f"ram3 is mounted on {bench.folder}")
        not_claimed("/dev/ram3", "is in use")
        other.communicate(b"done\n")


@pytest.mark.parametrize("label", ["gpt", pytest.param("dos", marks=pytest.mark.sampled(8))])
def test_partitions_and_their_disk(bench: Bench, label: str) -> None:
    # The third is an extended one of dos, which has 1 KiB of its own, with one inside.
    more = ",,5\n,500M\n" if label == "dos" else ""
    bench.do(
        "sfdisk -q /dev/ram3",
        "wipefs -qa /dev/ram3; blockdev --rereadpt /dev/ram3",
        f"label: {label}\n,1G\n,2100M\n{more}".encode(),
    )
    bench.do(
        f"mkfs.ext4 -q -L Fotos /dev/ram3p1; mount /dev/ram3p1 {bench.folder}", f"umount {bench.folder}; wipefs -qa /dev/ram3p1"
    )
    refuse("/dev/ram3", "ram3p1 is mounted on", others=["/dev/ram3p1"])
    devices = read_block_devices()
    told = "\n".join(contents(devices, named(devices, "ram3")))
    assert f"partition table ({label})" in told
    assert "ext4, labelled 'Fotos', mounted on" in told
    # The other partition is its own; what is mounted beside it goes on.
    idle = named(devices, "ram3p2")
    assert objections(devices, idle) == ()
    with claimed(idle, read_block_devices):
        pass
    not_claimed("/dev/ram3", "is in use")


def test_swap(bench: Bench) -> None:
    bench.do("mkswap -q /dev/ram3; swapon /dev/ram3", "swapoff /dev/ram3; wipefs -qa /dev/ram3")
    devices = refuse("/dev/ram3", "ram3 is swap space in use")
    not_claimed("/dev/ram3", "is in use", devices)


def test_lvm_active_and_inactive(bench: Bench) -> None:
    bench.do("pvcreate -qq -y /dev/ram3; vgcreate -qq other /dev/ram3", "vgremove -qq -y other; pvremove -qq -y /dev/ram3")
    bench.do("lvcreate -qq -y -an -L 3g -n data other")
    refuse("/dev/ram3", "ram3 belongs to a volume group of LVM")
    devices = read_block_devices()
    assert objections(devices, named(devices, "ram3"), ours=["ram3"]) == ()
    bench.do("vgchange -qq -ay other", "vgchange -qq -an other")
    refuse(
        "/dev/ram3", "ram3 is in use by dm-0 (/dev/mapper/other-data)", "volume group", others=["/dev/mapper/other-data", "dm-0"]
    )
    devices = read_block_devices()
    assert objections(devices, named(devices, "ram3"), ours=["ram3"]) == ("ram3 is in use by dm-0 (/dev/mapper/other-data)",)
    not_claimed("/dev/ram3", "is in use")


def test_raid_running_and_stopped(bench: Bench) -> None:
    create = "mdadm --create /dev/md7 --assume-clean --level=1 --raid-devices=2 --run --metadata=1.2 /dev/ram3 /dev/ram4"
    stop = "mdadm --stop /dev/md7"
    sh(create)
    try:
        refuse("/dev/ram3", "ram3 is in use by md7", "belongs to a RAID", others=["/dev/ram4", "/dev/md7"])
        not_claimed("/dev/ram4", "is in use")
    finally:
        sh(stop)
    bench.undo.append("mdadm --zero-superblock /dev/ram3 /dev/ram4")
    refuse("/dev/ram3", "belongs to a RAID", others=["/dev/ram4"])


def test_encrypted_closed_open_and_carrying_a_stack(bench: Bench) -> None:
    options = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file -"
    bench.do(f"cryptsetup luksFormat -q {options} /dev/ram3", "wipefs -qa /dev/ram3", b"secret")
    refuse("/dev/ram3", "ram3 is encrypted (LUKS)")
    bench.do("cryptsetup open --key-file - /dev/ram3 vault", "cryptsetup close vault", b"secret")
    refuse("/dev/ram3", "is in use by dm-0 (/dev/mapper/vault)", others=["/dev/mapper/vault"])
    bench.do("pvcreate -qq -y /dev/mapper/vault; vgcreate -qq inner /dev/mapper/vault", "vgremove -qq -y inner")
    bench.do("lvcreate -qq -y -L 100m -n top inner; mkfs.ext4 -q /dev/mapper/inner-top", "vgchange -qq -an inner")
    bench.do(f"mount /dev/mapper/inner-top {bench.folder}", f"umount {bench.folder}")
    devices = refuse("/dev/ram3", f"dm-1 (/dev/mapper/inner-top) is mounted on {bench.folder}")
    not_claimed("/dev/ram3", "is in use", devices)


def test_a_plain_mapping_that_leaves_no_signature(bench: Bench) -> None:
    sectors = SIZE // 512
    bench.do(f"echo '0 {sectors} linear /dev/ram3 0' | dmsetup create plain", "dmsetup remove plain")
    devices = refuse("/dev/ram3", "ram3 is in use by dm-0 (/dev/mapper/plain)", others=["dm-0"])
    not_claimed("/dev/ram3", "is in use", devices)


@pytest.mark.sampled(8)
def test_a_loop_device_made_of_a_disk(bench: Bench) -> None:
    """The kernel itself would let it be claimed."""
    loop = sh("losetup --find --show /dev/ram3")
    bench.undo.append(f"losetup --detach {loop}")
    devices = refuse("/dev/ram3", f"ram3 is in use by {Path(loop).name}", others=[loop])
    not_claimed("/dev/ram3", "ram3 is in use by loop", devices)


@pytest.mark.sampled(8)
def test_loop_devices_of_files(bench: Bench) -> None:
    image, other = bench.folder / "kit.img", bench.folder / "other.img"
    for path in (image, other):
        with path.open("wb") as made:
            made.truncate(3 * GIB)
    loop = sh(f"losetup --find --show {image}")
    bench.undo.append(f"losetup --detach {loop}")
    refuse(loop, f"it is a loop device of {image}")
    devices = read_block_devices()
    target = named(devices, loop)
    assert objections(devices, target, file=image) == ()
    assert "give the file itself" in refusal_hint(devices, target, other)
    assert confirmation(devices, target) == str(image)
    with claimed(target, read_block_devices):
        pass
    twin = sh(f"losetup --find --show {image}")
    bench.undo.append(f"losetup --detach {twin}")
    devices = read_block_devices()
    assert f"its file is also behind {Path(twin).name}" in objections(devices, named(devices, loop), file=image)


def refusal_hint(devices: BlockDevices, target: BlockDevice, file: Path) -> str:
    with pytest.raises(Refused) as caught:
        check_target(devices, target, erase_serial=None, ask_serial=None, file=file)
    return caught.value.hint


@pytest.mark.skipif(shutil.which("mkfs.btrfs") is None, reason="mkfs.btrfs is not installed (btrfs-progs)")
def test_btrfs_of_two_disks(bench: Bench) -> None:
    bench.do("modprobe btrfs; mkfs.btrfs -q -f /dev/ram3 /dev/ram4", "wipefs -qa /dev/ram3 /dev/ram4")
    refuse("/dev/ram3", "one of several", others=["/dev/ram4"])
    bench.do(f"mount -o device=/dev/ram4 /dev/ram3 {bench.folder}", f"umount {bench.folder}")
    refuse("/dev/ram4", f"ram4 is mounted on {bench.folder}", others=["/dev/ram3"])


def test_a_read_only_disk(bench: Bench) -> None:
    bench.do("blockdev --setro /dev/ram3", "blockdev --setrw /dev/ram3")
    devices = refuse("/dev/ram3", "it is read-only")
    not_claimed("/dev/ram3", "is read-only", devices)


def test_two_signatures_on_one_disk(bench: Bench) -> None:
    """A label of LVM in the sector that ext4 leaves free: udev and lsblk then say nothing of either."""
    label = bench.folder / "label"
    bench.do(f"pvcreate -qq -y /dev/ram3; dd if=/dev/ram3 of={label} bs=512 skip=1 count=1 status=none; wipefs -qa /dev/ram3")
    bench.do(f"mkfs.ext4 -q /dev/ram3; dd if={label} of=/dev/ram3 bs=512 seek=1 conv=notrunc status=none", "wipefs -qa /dev/ram3")
    assert named(read_block_devices(), "ram3").signatures == ("LVM2_member", "ext4")
    refuse("/dev/ram3", "volume group")


@pytest.mark.sampled(8)
def test_another_process_writes_to_it(bench: Bench) -> None:
    """As QEMU does with a disk that it was given whole: it claims nothing."""
    del bench
    script = "import os, sys; os.open('/dev/ram3', os.O_RDWR); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        not_claimed("/dev/ram3", rf"is open for writing in python.* \({other.pid}\)")
        other.communicate()
    with claimed(named(read_block_devices(), "/dev/ram3"), read_block_devices):
        pass


# -- the free disk


@pytest.mark.sampled(8)
def test_serials_of_scsi_disks_are_read_and_wanted(bench: Bench) -> None:
    devices = read_block_devices()
    disks = [device for device in devices if device.name.startswith("sd")]
    assert [(disk.serial, disk.model) for disk in disks] == [("2000", "scsi_debug"), ("2001", "scsi_debug")]
    bench.do("mkswap -q /dev/sda", "wipefs -qa /dev/sda")
    devices = read_block_devices()
    target = named(devices, "sda")
    with pytest.raises(UsageError, match="sda, 4 GiB: swap") as caught:
        check_target(devices, target, erase_serial=None, ask_serial=None)
    assert caught.value.hint == "if all of that may be erased: --erase-serial '2000'"
    with pytest.raises(Refused, match="is not scsi_debug"):
        check_target(devices, target, erase_serial="2001", ask_serial=None)
    check_target(devices, target, erase_serial="2000", ask_serial=None)


def test_an_encrypted_disk_without_a_header_wants_its_serial(bench: Bench) -> None:
    bench.do(
        "dd if=/dev/urandom of=/dev/ram3 bs=1M count=2 status=none", "dd if=/dev/zero of=/dev/ram3 bs=1M count=2 status=none"
    )
    devices = read_block_devices()
    target = named(devices, "ram3")
    assert objections(devices, target) == ()
    with pytest.raises(UsageError, match="data of no known kind, as on an encrypted disk"):
        check_target(devices, target, erase_serial=None, ask_serial=None)
    check_target(devices, target, erase_serial=confirmation(devices, target), ask_serial=None)


@pytest.mark.sampled(8)
def test_a_claim_keeps_others_out_and_lets_go(beginning: BlockDevices) -> None:
    target = named(beginning, FREE)
    with claimed(target, read_block_devices) as handle:
        assert os.fstat(handle).st_rdev == os.stat(FREE).st_rdev  # noqa: PTH116 - beside fstat
        with pytest.raises(OSError, match="busy"):
            os.open(FREE, os.O_RDWR | os.O_EXCL)
        with Path(FREE).open("rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        not_claimed(FREE, "is in use")
    os.close(os.open(FREE, os.O_RDWR | os.O_EXCL))


@pytest.mark.sampled(8)
def test_another_disk_of_that_name_is_not_taken_for_it(beginning: BlockDevices) -> None:
    """The kernel tells disks apart by their sequence, whatever they are called."""
    target, decoy = named(beginning, FREE), named(beginning, DECOY)
    assert target.diskseq
    for stale in (
        replace(target, diskseq=target.diskseq + 100),
        replace(target, size=target.size - 512),
        replace(target, number="8:0"),
        replace(target, path=Path(DECOY)),
        replace(target, serial="OTHER"),
        replace(decoy, signatures=(), label=""),
    ):
        with pytest.raises(Refused, match=r"not the disk any more|has written to"), claimed(stale, read_block_devices):
            pytest.fail("it was claimed")


def test_no_byte_of_any_disk_changes(beginning: BlockDevices) -> None:
    """Refusals, claims and measuring, on the decoy that has a file system and on the empty disk."""
    before, devices = {path: digest(path) for path in (DECOY, FREE)}, beginning
    for path in (DECOY, FREE):
        target = named(devices, path)
        with claimed(target, read_block_devices):
            pass
        with pytest.raises((Refused, UsageError)):
            check_target(devices, target, erase_serial="nonsense", ask_serial=None)
        measured = measure(target.path, seconds=0.5)
        assert measured is not None
        assert measured.random_reads > 0
        assert verdict(target, measured)[0].text.startswith("SSD: ")
    assert {path: digest(path) for path in (DECOY, FREE)} == before
    assert named(read_block_devices(), DECOY).signatures == ("ext4",)
