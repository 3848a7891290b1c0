"""Disk images: told by their content, refused where hostile, broken or something else; unpacked with bounds."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import lzma
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketcloud.bases.disk_image import Disk, Format, Packing, fits, kind_of, look
from pocketcloud.bases.packed import unpacked
from pocketcloud.errors import NoSpace, NotFound, PocketcloudError, Refused
from pocketcloud.model.base import Arch, Firmware
from pocketcloud.model.sizes import GIB, KIB, MIB
from tests.small_disk import needs_mount, small_disk

SIZE = 8 * MIB


def quiet(_share: float) -> None:
    """Progress nobody looks at."""


def qemu_img(*words: str | Path) -> None:
    subprocess.run(["qemu-img", *words], check=True, capture_output=True)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A disk with an EFI system partition and a root, and some content."""
    path = tmp_path / "disk.raw"
    path.touch()
    os.truncate(path, SIZE)
    table = "label: gpt\nsize=1MiB, type=uefi\nsize=4MiB, type=linux\n"
    subprocess.run(["sfdisk", "-q", path], input=table.encode(), check=True)
    with path.open("r+b") as file:
        for at in range(2 * MIB, 3 * MIB, 64 * KIB):
            file.seek(at)
            file.write(os.urandom(4 * KIB))
    return path


def converted(raw: Path, form: str, *options: str) -> Path:
    path = raw.with_name(f"disk.{form}")
    qemu_img("convert", "-f", "raw", "-O", form, *options, raw, path)
    return path


@pytest.mark.parametrize("form", list(Format))
def test_every_format_is_told_by_its_content(raw: Path, form: Format) -> None:
    path = converted(raw, form) if form is not Format.RAW else raw
    path = path.rename(path.with_name("a name that says nothing"))
    assert kind_of(path) is form
    disk = look(path, form)
    assert (disk.size, disk.format, disk.firmware) == (SIZE, form, Firmware.EFI)
    assert 64 * KIB <= disk.needs < (16 * MIB if form is Format.VHDX else 4 * MIB)  # its blocks are large


@pytest.mark.parametrize("options", [("-c",), ("-o", "compat=0.10"), ("-o", "cluster_size=2M"), ("-o", "extended_l2=on")])
def test_qcow2_of_all_kinds(raw: Path, options: tuple[str, ...]) -> None:
    assert look(converted(raw, "qcow2", *options), Format.QCOW2).size == SIZE


def test_a_stream_optimized_vmware_disk(raw: Path) -> None:
    assert look(converted(raw, "vmdk", "-o", "subformat=streamOptimized"), Format.VMDK).size == SIZE


# -- what starts it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "firmware"),
    [
        ("label: gpt\ntype=linux\n", Firmware.BIOS),
        ("label: dos\ntype=83\n", Firmware.BIOS),
        ("label: dos\nsize=1MiB,type=ef\ntype=83\n", Firmware.EFI),
        ("label: gpt\nsize=1MiB,type=21686148-6449-6E6F-744E-656564454649\nsize=1MiB,type=uefi\ntype=linux\n", Firmware.EFI),
    ],
)
def test_firmware_follows_from_the_partitions(tmp_path: Path, table: str, firmware: Firmware) -> None:
    path = tmp_path / "disk"
    path.touch()
    os.truncate(path, SIZE)
    subprocess.run(["sfdisk", "-q", path], input=table.encode(), check=True)
    assert look(path, Format.RAW).firmware is firmware


def test_a_disk_with_large_sectors(tmp_path: Path, raw: Path) -> None:
    content = raw.read_bytes()
    path = tmp_path / "4k"
    header = bytearray(content[512:604])
    header[32:40] = struct.pack("<Q", SIZE // 4096 - 1)
    start = content[:512].ljust(4096, b"\0") + bytes(header).ljust(4096, b"\0") + content[1024 : 1024 + 16 * KIB]
    path.write_bytes(start.ljust(SIZE, b"\0"))
    assert look(path, Format.RAW).firmware is Firmware.EFI


def test_what_is_wanted_has_to_fit() -> None:
    both, old = (Disk(Path("/x"), Format.RAW, SIZE, SIZE, firmware) for firmware in (Firmware.EFI, Firmware.BIOS))
    assert fits(both, Arch.X86_64) is Firmware.EFI
    assert fits(both, Arch.X86_64, Firmware.BIOS) is Firmware.BIOS
    assert fits(old, Arch.X86_64) is Firmware.BIOS
    for disk, arch, wanted in ((old, Arch.X86_64, Firmware.EFI), (old, Arch.AARCH64, None), (both, Arch.AARCH64, Firmware.BIOS)):
        with pytest.raises(Refused):
            fits(disk, arch, wanted)


# -- hostile ones -----------------------------------------------------------------------------------------------------


def refused(path: Path, *words: str) -> str:
    def looked_at() -> None:
        kind = kind_of(path)
        assert isinstance(kind, Format)
        look(path, kind)

    with pytest.raises(Refused) as caught:
        looked_at()
    for word in words:
        assert word in caught.value.message
    assert caught.value.hint
    return caught.value.message


def test_an_image_on_top_of_another_is_refused(raw: Path, tmp_path: Path) -> None:
    for number, backing in enumerate(("/etc/passwd", raw.name, "json:{}", "nbd:localhost:10809")):
        path = tmp_path / f"overlay-{number}"
        qemu_img("create", "-u", "-f", "qcow2", "-F", "raw", "-b", backing, path, "10M")
        refused(path, "does not stand by itself", backing)
    child = tmp_path / "child.vmdk"
    qemu_img("create", "-f", "vmdk", "-F", "vmdk", "-b", converted(raw, "vmdk"), child)
    refused(child, "snapshot")


def test_an_image_whose_content_is_elsewhere_is_refused(raw: Path, tmp_path: Path) -> None:
    path = tmp_path / "outside"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'}", path, "10M")
    refused(path, "data file")
    for kind in ("monolithicFlat", "twoGbMaxExtentSparse"):
        path = tmp_path / f"{kind}.vmdk"
        qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={kind}", raw, path)
        refused(path, "in other files")
    refused(tmp_path / "twoGbMaxExtentSparse-s001.vmdk", "other files")


def test_a_vmware_disk_that_hides_a_description_is_refused(raw: Path) -> None:
    """Without a capacity QEMU would take the description in the file, and open what that names."""
    path = converted(raw, "vmdk")
    content = bytearray(path.read_bytes())
    content[12:20] = bytes(8)
    path.write_bytes(content)
    refused(path, "other files")


def test_an_encrypted_image_is_refused(tmp_path: Path) -> None:
    secret, path, luks = tmp_path / "secret", tmp_path / "image", tmp_path / "luks"
    secret.write_text("secret")
    options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    for left in reversed(range(20)):
        try:
            qemu_img("create", "--object", f"secret,id=s,file={secret}", "-f", "qcow2", "-o", options, path, "10M")
            break
        except subprocess.CalledProcessError as error:
            # On a busy machine it gives up when it cannot measure how long a round of the key's derivation takes.
            if not left or b"accurate CPU usage" not in error.stderr:
                raise
    refused(path, "encrypted")
    luks.write_bytes(b"LUKS\xba\xbe".ljust(MIB, b"\0"))
    refused(luks, "encrypted")


def test_an_absurd_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    qemu_img("create", "-f", "qcow2", "-o", "cluster_size=2M", path, "60T")
    refused(path, "60 TiB")
    with path.open("r+b") as file:
        file.seek(24)
        file.write(struct.pack(">Q", 1 << 62))
    refused(path)


@pytest.mark.parametrize("form", [Format.QCOW2, Format.VMDK, Format.RAW])
@pytest.mark.parametrize("share", [0.4, 0.9])
def test_half_an_image_is_refused(raw: Path, form: Format, share: float) -> None:
    path = raw if form is Format.RAW else converted(raw, form)
    os.truncate(path, int(path.stat().st_size * share))
    refused(path)


def test_a_head_alone_is_refused(raw: Path) -> None:
    for form in (Format.QCOW2, Format.VMDK, Format.VDI, Format.VHDX):
        path = converted(raw, form)
        os.truncate(path, 100)
        refused(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (bytes(MIB), "is empty"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"PK\3\4 something", "no disk image that is known"),
        (bytes(32769) + b"CD001", "installer's disc"),
        (b"conectix", "a VHD image"),
        (b"just text", "no disk image that is known"),
    ],
)
def test_files_of_other_kinds(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    refused(path, words)


def test_what_is_not_there_or_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        kind_of(tmp_path / "none")
    with pytest.raises(Refused, match="folder"):
        kind_of(tmp_path)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_header_never_ends_in_a_traceback(raw: Path, data: st.DataObject) -> None:
    form = data.draw(st.sampled_from([Format.QCOW2, Format.VMDK, Format.VDI, Format.VHDX]))
    path = raw.with_name(f"kept.{form}")
    if not path.exists():
        shutil.copy(converted(raw, form), path)
    damaged = raw.with_name("damaged")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(4, 1200))] = data.draw(st.integers(0, 255))
    damaged.write_bytes(content)
    # What is wrong with it is explained; anything else that is raised fails this.
    with contextlib.suppress(PocketcloudError):
        kind = kind_of(damaged)
        if isinstance(kind, Format):
            look(damaged, kind)


# -- packed -----------------------------------------------------------------------------------------------------------


def zst(content: bytes) -> bytes:
    return zstd.compress(content)


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress, zst])
def test_packed_images_are_unpacked(raw: Path, tmp_path: Path, pack: object) -> None:
    assert callable(pack)
    content, path = raw.read_bytes(), tmp_path / "disk.packed"
    for parts in ([content], [content[:MIB], content[MIB:]]):  # in one stream, and in two
        path.write_bytes(b"".join(pack(part) for part in parts))
        work = tmp_path / f"work{len(parts)}"
        work.mkdir()
        told: list[float] = []
        image, form = unpacked(path, work, told.append)
        assert (form, image.read_bytes() == content) == (Format.RAW, True)
        assert image.stat().st_blocks * 512 < SIZE / 2, "zeros take space"
        assert told == sorted(told)
        assert told[-1] == 1.0
    assert kind_of(path) in set(Packing)


def test_xz_with_padding_between_streams(raw: Path, tmp_path: Path) -> None:
    content = raw.read_bytes()
    path = tmp_path / "disk.xz"
    path.write_bytes(lzma.compress(content[:MIB]) + bytes(2 * MIB) + lzma.compress(content[MIB:]) + bytes(8))
    assert unpacked(path, tmp_path, quiet)[0].read_bytes() == content


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress, zst])
def test_what_is_packed_and_broken_is_refused(raw: Path, tmp_path: Path, pack: object) -> None:
    assert callable(pack)
    content = pack(raw.read_bytes())
    path = tmp_path / "disk.packed"
    for number, broken in enumerate((content[: len(content) // 2], content[:100] + b"\xff" * 64 + content[164:], content[:20])):
        path.write_bytes(broken)
        work = tmp_path / f"work{number}"
        work.mkdir()
        with pytest.raises(Refused, match="cannot be unpacked"):
            unpacked(path, work, quiet)


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress, zst])
def test_a_bomb_is_stopped(tmp_path: Path, pack: object) -> None:
    assert callable(pack)
    path = tmp_path / "bomb"
    path.write_bytes(pack(bytes(64 * MIB)))
    with pytest.raises(Refused, match=r"holds more than 32 MiB"):
        unpacked(path, tmp_path, quiet, most=32 * MIB)
    twice = tmp_path / "twice"
    for _ in range(5):
        path.write_bytes(gzip.compress(path.read_bytes()))
    (tmp_path / "deep").mkdir()
    with pytest.raises(Refused, match="packed more than"):
        unpacked(path.rename(twice), tmp_path / "deep", quiet)


def test_xz_that_asks_for_much_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "greedy.xz"
    path.write_bytes(greedy())
    with pytest.raises(Refused, match="cannot be unpacked"):
        unpacked(path, tmp_path, quiet)


def greedy() -> bytes:
    """An xz stream whose header says that it takes a dictionary of 1.5 GiB: the byte that says so is changed in a small one."""
    content = bytearray(lzma.compress(b"x" * 1000))
    header = content[12 : 12 + (content[12] + 1) * 4]
    at = header.index(b"\x21\x01") + 2
    header[at] = 37
    header[-4:] = struct.pack("<I", zlib.crc32(bytes(header[:-4])))
    return bytes(content[:12]) + bytes(header) + bytes(content[12 + len(header) :])


def test_a_disk_that_does_not_fit_is_said_so(raw: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk.gz"
    path.write_bytes(gzip.compress(raw.read_bytes()))
    code = (
        "import resource, sys; from pathlib import Path; from pocketcloud.bases.packed import unpacked;"
        "from pocketcloud.errors import NoSpace; import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({2 * MIB}, {2 * MIB}))\n"
        "try:\n    unpacked(Path(sys.argv[1]), Path(sys.argv[2]), lambda share: None)\n"
        "except NoSpace as error:\n    print(error.message)"
    )
    done = subprocess.run([sys.executable, "-c", code, path, tmp_path], capture_output=True, text=True, check=False)
    assert "disk.gz does not fit" in done.stdout, done.stderr


@needs_mount
def test_the_last_of_a_disk_is_not_filled(tmp_path: Path) -> None:
    path = tmp_path / "disk.gz"
    path.write_bytes(gzip.compress(b"x" * 15 * MIB))
    with small_disk(tmp_path / "small", 16 * MIB) as work:
        with pytest.raises(NoSpace, match=r"disk\.gz does not fit when it is unpacked: too little would stay free"):
            unpacked(path, work, quiet)
        assert shutil.disk_usage(work).free >= 2 * MIB


# -- archives ---------------------------------------------------------------------------------------------------------


def archive(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as made:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                made.addfile(member)
            else:
                entry = tarfile.TarInfo(member[0])
                entry.size = len(member[1])
                made.addfile(entry, io.BytesIO(member[1]))
    return path


def test_an_appliance_is_taken_out_of_its_archive(raw: Path, tmp_path: Path) -> None:
    vmdk = converted(raw, "vmdk", "-o", "subformat=streamOptimized").read_bytes()
    manifest = f"SHA256(box.ovf)= {'0' * 64}\nSHA256(box-disk1.vmdk)= {hashlib.sha256(vmdk).hexdigest()}\n".encode()
    path = archive(tmp_path / "box.ova", ("box.ovf", b"<xml/>"), ("box.mf", manifest), ("box-disk1.vmdk", vmdk))
    image, form = unpacked(path, tmp_path, quiet)
    assert form is Format.VMDK
    assert look(image, form).size == SIZE
    packed = archive(tmp_path / "packed.ova", ("box.ovf", b""), ("box-disk1.vmdk.gz", gzip.compress(vmdk)))
    (tmp_path / "w").mkdir()
    assert unpacked(packed, tmp_path / "w", quiet)[1] is Format.VMDK
    wrong = archive(tmp_path / "wrong.ova", ("box-disk1.vmdk", vmdk + b"x"), ("box.mf", manifest))
    (tmp_path / "v").mkdir()
    with pytest.raises(Refused, match="not what its manifest says"):
        unpacked(wrong, tmp_path / "v", quiet)


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def device(name: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type = tarfile.BLKTYPE
    return entry


@pytest.mark.parametrize(
    "member",
    [
        ("../../etc/cron.d/evil", b"x"),
        ("/etc/cron.d/evil", b"x"),
        ("a/../../evil", b"x"),
        link("evil", "/etc/passwd"),
        link("evil", "../../../etc/passwd"),
        link("evil", "../../etc/passwd", tarfile.LNKTYPE),
        device("evil"),
    ],
)
def test_an_archive_whose_members_leave_its_folder_is_refused(raw: Path, tmp_path: Path, member: tuple[str, bytes]) -> None:
    path = archive(tmp_path / "box.ova", ("disk.img", raw.read_bytes()), member)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(Refused, match="outside of its folder"):
        unpacked(path, tmp_path, quiet)
    assert sorted(tmp_path.iterdir()) == before


def test_archives_that_do_not_help(raw: Path, tmp_path: Path) -> None:
    content = raw.read_bytes()
    for members, words in (
        ([("a.txt", b"x")], "it has 0: none"),
        ([("a.img", content), ("b.img", content)], "it has 2: a.img, b.img"),
        ([(f"{number}.txt", b"") for number in range(300)], "more than 200 members"),
        ([link("disk.img", "other.img")], "it has 0"),
    ):
        with pytest.raises(Refused, match=words):
            unpacked(archive(tmp_path / "box.tar", *members), tmp_path, quiet)
    whole = archive(tmp_path / "box.tar", ("disk.img", content)).read_bytes()
    (tmp_path / "half.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Refused, match="no whole archive"):
        unpacked(tmp_path / "half.tar", tmp_path, quiet)


def header(kind: bytes, size: int) -> bytes:
    """The block before a member, or before a longer header, of `size` bytes."""
    entry = tarfile.TarInfo("disk.img")
    entry.type, entry.size = kind, size
    return entry.tobuf(tarfile.GNU_FORMAT)


def long_header(kind: bytes, content: bytes) -> bytes:
    return header(kind, len(content)) + content.ljust(-(-len(content) // 512) * 512, b"\0")


HOSTILE = {
    "a pax header of 3 TiB": (header(tarfile.XHDTYPE, 3 << 40), "a header of 3 TiB"),
    "a global one": (header(tarfile.XGLTYPE, 3 << 40), "a header of 3 TiB"),
    "a name of 3 TiB": (header(tarfile.GNUTYPE_LONGNAME, 3 << 40), "a header of 3 TiB"),
    "a target of 3 TiB": (header(tarfile.GNUTYPE_LONGLINK, 3 << 40), "a header of 3 TiB"),
    "a header of less than nothing": (header(tarfile.XHDTYPE, -512), "without end"),
    "keywords in keywords": (long_header(tarfile.XHDTYPE, b"2 " * 16384 + b"="), "a header of 32"),
    "names of names": (header(tarfile.GNUTYPE_LONGNAME, 0) * 1000, "no whole archive"),
    "numbers that are none": (
        long_header(tarfile.XHDTYPE, b"30 GNU.sparse.map=one,two,thr\n") + header(b"0", 0),
        "no whole archive",
    ),
    "places without end": (
        long_header(tarfile.XHDTYPE, b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n")
        + header(b"0", 0) + b"999999\n" + b"1\n" * MIB,
        "headers take more than 512 KiB",
    ),
}  # fmt: skip


def test_headers_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    """Of files of few KiB on the disk: what they claim is a hole."""
    for number, (content, _) in enumerate(HOSTILE.values()):
        path = tmp_path / f"{number}.ova"
        path.write_bytes(content)
        os.truncate(path, len(content) + 4 * GIB)
    limited = (
        "import resource, sys; from pathlib import Path; from pocketcloud.bases.packed import unpacked;"
        "from pocketcloud.errors import Refused\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({GIB}, {GIB}))\n"
        "for path in map(Path, sys.argv[1:]):\n"
        "    try:\n        unpacked(path, path.parent, lambda share: None)\n"
        "    except Refused as error:\n        print(error.message, '-', error.hint)\n"
        "    except BaseException as error:\n        print(repr(error))"
    )
    files = sorted(tmp_path.iterdir())
    done = subprocess.run([sys.executable, "-c", limited, *files], capture_output=True, text=True, check=True)
    said = done.stdout.splitlines()
    assert [name for name, line in zip(HOSTILE, said, strict=True) if HOSTILE[name][1] not in line] == [], done.stdout
    assert all(f"{number}.ova is no whole archive" in line and " - fetch" in line for number, line in enumerate(said))
    assert sorted(tmp_path.iterdir()) == files
