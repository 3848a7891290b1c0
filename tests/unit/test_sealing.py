"""Whether an image is sealed: what is found in real file systems, and what of it is a finding."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

from pocketcloud.bases import sealing
from pocketcloud.bases.image import Content, Entry, Kind, look
from pocketcloud.bases.namespace import give
from pocketcloud.errors import NoSpace, Refused
from pocketcloud.model.sizes import MIB
from pocketcloud.storage import open_storage
from pocketcloud.system import run
from tests.built_base import kit_in
from tests.small_base import SEALED, small_image
from tests.small_disk import small_disk

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes a namespace")


def content(files: Mapping[str, str], esp: tuple[str, ...] = ()) -> Content:
    """What `look` would find in a system with these files."""
    tree: dict[str, Entry] = {}
    for number, (path, text) in enumerate(files.items(), 100):
        for parent in Path(path).parents:
            tree.setdefault(str(parent), Entry(Kind.FOLDER, 4096, -len(tree)))
        tree[path] = Entry(Kind.FILE, len(text), number)
    return Content(tree, esp, 0, ("ext4 on partition 2",), (), files.__getitem__)


def test_a_sealed_system_has_no_findings() -> None:
    assert sealing.findings(content(SEALED)) == ()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
        ("/etc/machine-id", "uninitialized\n"),
        ("/var/lib/dbus/machine-id", "0123\n"),
        ("/etc/ssh/ssh_host_ed25519_key", "key"),
        ("/etc/ssh/ssh_host_rsa_key.pub", ""),
        ("/etc/hostname", "build-42\n"),
        ("/etc/machine-info", "PRETTY_HOSTNAME=x\n"),
        ("/var/lib/systemd/random-seed", "\1\2"),
        ("/var/lib/systemd/credential.secret", "x"),
        ("/var/lib/cloud/instance/boot-finished", ""),
        ("/etc/cloud/cloud.cfg.d/99-installer.cfg", "users: []"),
        ("/root/.ssh/authorized_keys", "ssh-ed25519 AAAA"),
        ("/home/lab/.ssh/authorized_keys", "ssh-ed25519 AAAA"),
        ("/root/.bash_history", "ls"),
        ("/root/.python_history", "1"),
        ("/root/anaconda-ks.cfg", "rootpw x"),
        ("/etc/NetworkManager/system-connections/eth0.nmconnection", "[connection]\ninterface-name=eth0\n"),
        ("/etc/netplan/50-cloud-init.yaml", "network: {}"),
        ("/etc/udev/rules.d/70-persistent-net.rules", "x"),
        ("/var/lib/dhcp/dhclient.eth0.leases", "lease"),
        ("/etc/resolv.conf", "# by dhcp\nnameserver 192.0.2.1\n"),
        ("/etc/iscsi/initiatorname.iscsi", "InitiatorName=iqn.1993-08.org.debian:01:abc\n"),
        ("/etc/lvm/devices/system.devices", "x"),
        ("/etc/pki/consumer/cert.pem", "x"),
        ("/etc/shadow", "root:$y$j9T$abc:20000::::::\n"),
        ("/etc/shadow", "daemon:*:1::::::\nlab:abJnggxhB/yWI:20000::::::\n"),
        ("/var/log/syslog", "x"),
        ("/var/log/journal/0123/system.journal", "x"),
        ("/var/log/anaconda/anaconda.log", "x"),
        ("/var/lib/apt/lists/deb.example.com_Packages", "x"),
        ("/var/cache/apt/pkgcache.bin", "x"),
        ("/var/cache/dnf/fedora.solv", "x"),
        ("/tmp/left", ""),
        ("/var/tmp/left", ""),
    ],
)
def test_what_must_not_be_in_it_is_found(path: str, text: str) -> None:
    (found,) = sealing.findings(content({**SEALED, path: text}))
    assert found.text.startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/etc/hostname", "localhost.localdomain\n"),
        ("/etc/NetworkManager/system-connections/any.nmconnection", "[connection]\ntype=ethernet\n# psk=\n"),
        ("/etc/shadow", "root:!$y$j9T$abc:20000::::::\nlab:!!:20000::::::\n"),
        ("/home/lab/.ssh/authorized_keys", ""),
        ("/var/log/lastlog", ""),
        ("/usr/share/doc/tmp/x", "x"),
    ],
)
def test_what_may_be_in_it(path: str, text: str) -> None:
    assert sealing.findings(content({**SEALED, path: text})) == ()


def test_a_folder_without_a_system_is_not_called_sealed() -> None:
    assert any("/etc/passwd is missing" in finding.text for finding in sealing.findings(content({"/usr/bin/true": ""})))


def test_a_seed_on_the_efi_partition_is_found() -> None:
    (found,) = sealing.findings(content(SEALED, esp=("/EFI/BOOT/BOOTX64.EFI", "/loader/random-seed")))
    assert found.grave
    assert found.text.startswith("/loader/random-seed")


@needs_root
@pytest.mark.parametrize("xfs", [False, True], ids=["ext4", "XFS"])
def test_real_file_systems_are_looked_through(tmp_path: Path, *, xfs: bool) -> None:
    deep = "/usr/" + "/".join(f"level{number}" for number in range(30)) + "/file"
    many = {f"/var/lib/many/{number:04d}": "x" for number in range(700)}
    # mkfs.xfs takes no names with spaces in its prototype.
    odd = "/etc/with-no-space" if xfs else '/etc/with a space, a "quote" and \u00fc'
    files = {**SEALED, **many, deep: "deep", odd: "so"}
    raw = small_image(_work(tmp_path), files, xfs=xfs)
    found = look(tmp_path, _moved(raw, tmp_path), run)
    there = {path for path, entry in found.tree.items() if entry.kind is Kind.FILE}
    assert there == set(files)
    assert {path: found.tree[path].size for path in files} == {path: len(text) for path, text in files.items()}
    for path in ("/etc/shadow", deep, odd, "/usr/bin/true"):
        assert found.text(path) == files[path]
    assert found.esp == ("/EFI/boot.efi",)
    assert found.unread == ()
    tree = subprocess.run(["du", "-s", "--block-size=1", tmp_path / "make/tree"], capture_output=True, check=True).stdout
    # The tools count their folders differently; the EFI partition's one file takes two blocks.
    assert found.files == pytest.approx(int(tree.split()[0]) + 8192, rel=0.05)
    assert sealing.findings(found) == ()


@needs_root
def test_links_are_counted_once_and_not_followed(tmp_path: Path) -> None:
    work = _work(tmp_path)
    (work / "tree/etc").mkdir(parents=True)
    (work / "tree/etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    (work / "tree/etc/first").write_bytes(b"x" * 9000)
    (work / "tree/etc/second").hardlink_to(work / "tree/etc/first")
    files = {path: text for path, text in SEALED.items() if path != "/etc/resolv.conf"}
    found = look(tmp_path, _moved(small_image(work, files), tmp_path), run)
    assert found.tree["/etc/resolv.conf"].kind is Kind.LINK
    assert found.tree["/etc/first"].inode == found.tree["/etc/second"].inode
    assert sealing.findings(found) == ()
    alone = sum(entry.blocks for path, entry in found.tree.items() if path != "/etc/second")
    assert found.files == alone + 8192


@needs_root
def test_a_file_system_that_nobody_reads_is_told(tmp_path: Path) -> None:
    raw = small_image(_work(tmp_path), SEALED)
    with raw.open("r+b") as image:
        image.seek((3 << 20) + 0x438)
        image.write(b"\0\0")
        image.seek((3 << 20) + 0x10040)
        image.write(b"_BHRfS_M")
    found = look(tmp_path, _moved(raw, tmp_path), run)
    assert found.unread == ("partition 2 (btrfs)",)
    assert sealing.findings(found) == ()


@needs_root
def test_an_efi_partition_that_is_none_is_told_and_a_damaged_file_system_refused(tmp_path: Path) -> None:
    raw = small_image(_work(tmp_path), SEALED)
    with raw.open("r+b") as image:
        image.seek(1 << 20)
        image.write(bytes(4096))
    name = _moved(raw, tmp_path)
    found = look(tmp_path, name, run)
    assert found.unread == ("partition 1 (no FAT, though it is called an EFI partition)",)
    with (tmp_path / name).open("r+b") as image:
        image.seek((3 << 20) + 4096)
        image.write(os.urandom(1 << 20))
    with pytest.raises(Refused, match="ext4 on partition 2 cannot be looked through"):
        look(tmp_path, name, run)


@needs_root
def test_a_volume_that_is_not_sealed_is_refused_with_all_that_was_found(tmp_path: Path) -> None:
    store = open_storage(kit_in(tmp_path / "kit"))
    bad = {**SEALED, "/etc/ssh/ssh_host_rsa_key": "key", "/root/.bash_history": "ls", "/etc/shadow": "root:$6$x$secret:1:"}
    (tmp_path / "make").mkdir()
    raw = small_image(tmp_path / "make", bad)
    store.create("base.small", raw.stat().st_size, lambda target: _copy(raw, target))
    work = tmp_path / "work"
    work.mkdir()
    work.chmod(0o711)
    give(work)
    with pytest.raises(Refused) as caught:
        sealing.check(store, "base.small", work, run, "base small")
    for word in ("base small was not built", "/etc/ssh/ssh_host_rsa_key", "/root/.bash_history", "/etc/shadow"):
        assert word in caught.value.message
    assert "secret" not in caught.value.message
    assert list(work.iterdir()) == []


@needs_root
def test_litter_of_somebody_elses_image_is_told_and_its_secrets_are_refused(tmp_path: Path) -> None:
    store = open_storage(kit_in(tmp_path / "kit"))
    work = tmp_path / "work"
    work.mkdir()
    work.chmod(0o711)
    give(work)
    for name, files in (("litter", {"/var/log/dpkg.log": "x"}), ("secret", {"/var/lib/systemd/random-seed": "x"})):
        (tmp_path / name).mkdir()
        raw = small_image(tmp_path / name, {**SEALED, **files})
        store.create(f"base.{name}", raw.stat().st_size, partial(_copy, raw))
    said = sealing.check(store, "base.litter", work, run, "base litter", made_by_us=False)
    assert said.text.endswith("left as its maker left it: /var/log/dpkg.log: a log of the build")
    with pytest.raises(Refused, match="random-seed"):
        sealing.check(store, "base.secret", work, run, "base secret", made_by_us=False)


@needs_root
def test_a_copy_that_has_no_room_is_not_begun(tmp_path: Path) -> None:
    store = open_storage(kit_in(tmp_path / "kit"))
    (tmp_path / "make").mkdir()
    raw = small_image(tmp_path / "make", {**SEALED, "/usr/large": "x" * 12 * MIB})
    store.create("base.small", raw.stat().st_size, lambda target: _copy(raw, target))
    with small_disk(tmp_path / "small", 8 * MIB) as work:
        with pytest.raises(NoSpace, match=r"base small cannot be looked into: a copy of 1[0-9.]* MiB .* 7 MiB may") as caught:
            sealing.check(store, "base.small", work, run, "base small")
        assert "pocketcloud kit status" in caught.value.hint
        assert list(work.iterdir()) == []


def _copy(raw: Path, target: Path) -> None:
    target.write_bytes(raw.read_bytes())


def _work(folder: Path) -> Path:
    """A folder to make an image in, in one that belongs to the namespace's root."""
    folder.chmod(0o711)
    give(folder)
    (folder / "make").mkdir()
    return folder / "make"


def _moved(raw: Path, folder: Path) -> str:
    raw.rename(folder / raw.name)
    give(folder / raw.name)
    return raw.name
