"""The recipe of the installers without a machine: what is started, with which words, what must be there before, what is kept."""

from __future__ import annotations

import gzip
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from pocketcloud import profiles
from pocketcloud.bases import builder, definitions
from pocketcloud.bases.cpu import lacking
from pocketcloud.bases.install import anaconda, debian, ubuntu
from pocketcloud.bases.install.installation import Installation
from pocketcloud.bases.install.logs import keep_logs
from pocketcloud.bases.install.machine import DISPOSABLE, GuestNetwork, GuestOrder, machine_spec
from pocketcloud.cpio import append, appendable, cpio
from pocketcloud.host import read_facts
from pocketcloud.hypervisor import xml
from pocketcloud.model.base import Arch, Builder, CpuLevel, Firmware, InstallDefinition
from pocketcloud.model.facts import Core
from pocketcloud.model.machine import DiskSpec, KernelBoot, Lease
from pocketcloud.model.names import Name
from pocketcloud.model.profile import Acceleration
from pocketcloud.model.sizes import GIB
from pocketcloud.profiles import Shape
from tests.built_base import kit_in

KVM = Shape(Acceleration.KVM, "q35", "host-passthrough")
EMULATED = Shape(Acceleration.EMULATION, "q35", "maximum")
HASWELL = [
    "pni",
    "ssse3",
    "fma",
    "cx16",
    "sse4_1",
    "sse4_2",
    "movbe",
    "popcnt",
    "xsave",
    "avx",
    "f16c",
    "lahf_lm",
    "abm",
    "bmi1",
    "avx2",
    "bmi2",
]


@pytest.mark.parametrize(
    ("level", "shape", "flags", "qemu", "words"),
    [
        (CpuLevel.V3, KVM, HASWELL, "9.0.0", ""),
        (CpuLevel.V2, KVM, HASWELL, "9.0.0", ""),
        (CpuLevel.V4, KVM, HASWELL, "9.0.0", "avx512bw"),
        (CpuLevel.V3, KVM, [flag for flag in HASWELL if flag not in ("avx2", "movbe")], "9.0.0", "lacks avx2, movbe"),
        (CpuLevel.V2, KVM, ["pni"], "9.0.0", "popcnt"),
        (CpuLevel.V1, KVM, [], "9.0.0", ""),
        (None, KVM, [], "9.0.0", ""),
        (CpuLevel.V3, EMULATED, [], "7.2.22", ""),
        (CpuLevel.V3, EMULATED, HASWELL, "7.1.0", "cannot emulate"),
        (CpuLevel.V2, EMULATED, [], "6.0.0", ""),
        (CpuLevel.V4, EMULATED, [], "9.2.0", "cannot emulate"),
        (CpuLevel.V2, replace(KVM, cpu_mode="custom"), HASWELL, "9.0.0", "get custom"),
    ],
)
def test_the_processor_is_judged_before_anything_starts(
    level: CpuLevel | None, shape: Shape, flags: list[str], qemu: str, words: str
) -> None:
    said = lacking(level, Arch.X86_64, shape, flags, qemu)
    assert (words in said) if words else said == ""
    assert lacking(level, Arch.AARCH64, shape, flags, qemu) == ""


# -- answers in an initramfs ------------------------------------------------------------------------------------------


def test_an_answer_is_laid_over_an_initramfs_which_stays_as_it_is(tmp_path: Path) -> None:
    packed = gzip.compress(cpio([("init", 0o100755, b"#!/bin/sh\n", 0)])) + b"odd"
    initrd = tmp_path / "initrd.gz"
    initrd.write_bytes(packed)
    append(initrd, tmp_path / "made", {"ks.cfg": b"text\n"})
    assert initrd.read_bytes() == packed
    made = (tmp_path / "made").read_bytes()
    assert made.startswith(packed)
    at = -(-len(packed) // 4) * 4
    assert made[len(packed) : at] == bytes(at - len(packed))
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["busybox", "cpio", "-idm"], input=made[at:], cwd=out, check=True, capture_output=True)
    assert (out / "ks.cfg").read_bytes() == b"text\n"
    assert out.stat().st_mode & 0o777 == 0o755, "the root folder is one that services can pass"
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o600, "there may be secrets in it"
    with pytest.raises(FileExistsError):
        append(initrd, tmp_path / "made", {})


@pytest.mark.parametrize(
    ("begin", "known"),
    [(b"070701", True), (gzip.compress(b"", mtime=0), True), (b"\x28\xb5\x2f\xfd", True), (b"MZ", False), (b"", False)],
)
def test_what_can_be_appended_to_is_known_by_its_beginning(tmp_path: Path, begin: bytes, known: bool) -> None:
    (tmp_path / "initrd").write_bytes(begin)
    assert appendable(tmp_path / "initrd") is known


# -- boot lines -------------------------------------------------------------------------------------------------------


def test_anacondas_words() -> None:
    words = anaconda.words("ttyS0,115200n8", tree="http://example.com/os", disc="", answer="/ks.cfg").split()
    assert {"inst.ks=file:/ks.cfg", "inst.stage2=http://example.com/os", "inst.cmdline", "inst.notmux", "ip=dhcp"} <= set(words)
    assert words[-1] == "console=ttyS0,115200n8", "the last console is Anaconda's"
    by_proxy = anaconda.words("ttyS0", tree="http://example.com/os", disc="", answer="/ks.cfg", proxy="http://10.1.1.1:9").split()
    assert {"inst.proxy=http://10.1.1.1:9", "inst.stage2=http://example.com/os"} <= set(by_proxy)
    disc = anaconda.words("ttyAMA0", tree="", disc="RHEL 9/x", answer="")
    assert "inst.stage2=hd:LABEL=RHEL\\x209\\x2fx" in disc
    assert "inst.ks=" not in disc


def test_a_password_in_a_trees_address_is_not_in_the_words() -> None:
    assert "s3cret" not in anaconda.words("ttyS0", tree="http://me:s3cret@example.com/os", disc="", answer="/ks.cfg")


def test_the_words_of_the_others() -> None:
    assert debian.words("ttyS0").endswith("---"), "what is behind it would stay in the new system"
    assert "autoinstall" in ubuntu.words("ttyS0").split()


# -- the machine ------------------------------------------------------------------------------------------------------


def guest(folder: Path, arch: Arch, *, profile: str = "emulated", cores: tuple[Core, ...] = ()) -> GuestOrder:
    facts = replace(read_facts(), cores=cores)
    return GuestOrder(
        purpose=Name("install-test"),
        title="a test",
        folder=folder,
        arch=arch,
        facts=facts,
        profile=profiles.find(profile),
        memory=GIB,
        vcpus=2,
        firmware=Firmware.EFI,
        disks=(
            DiskSpec("vda", folder / "disk", "raw", DISPOSABLE),
            DiskSpec("sda", folder / "disc.iso", "raw", DISPOSABLE, disc=True),
        ),
        kernel=KernelBoot(folder / "kernel", folder / "initrd", "quiet"),
        ports=("org.pocketcloud.install.0", anaconda.SIGNS.log),
        network=GuestNetwork("n", IPv4Address("10.1.1.1"), Lease("52:54:00:00:00:01", IPv4Address("10.1.1.2"), Name("g"))),
    )


@pytest.mark.parametrize("arch", list(Arch))
def test_the_machine_is_thrown_away_and_ends_with_a_reboot(tmp_path: Path, arch: Arch) -> None:
    text = xml.machine_xml(machine_spec(guest(tmp_path, arch)))
    assert "<on_reboot>destroy</on_reboot>" in text
    assert "cache='unsafe'" in text
    assert "discard='unmap'" in text
    assert "device='cdrom'" in text
    assert "<os firmware='efi'>" in text
    assert {Arch.X86_64: "machine='q35'", Arch.AARCH64: "machine='virt'"}[arch] in text
    for port in ("org.pocketcloud.install.0", "org.fedoraproject.anaconda.log.0"):
        assert f"<target type='virtio' name='{port}'/>" in text


# -- what is kept, what goes in ---------------------------------------------------------------------------------------


def test_logs_are_kept_as_text_without_secrets(tmp_path: Path) -> None:
    kit, folder = kit_in(tmp_path / "kit"), tmp_path / "guest"
    folder.mkdir()
    (folder / "console.log.0").write_bytes(b"earlier\n")
    (folder / "console.log").write_bytes(b"\x1b[2Jrhsm --activation-key=s3cret\r\nend")
    (folder / "org.pocketcloud.install.0.log").write_bytes(b"FAIL x\n")
    (folder / "initrd").write_bytes(b"s3cret")
    kept = [
        keep_logs(kit, Name("b"), Arch.X86_64, folder, datetime(2026, 1, day, tzinfo=UTC), ("s3cret",)) for day in range(1, 9)
    ]
    assert sorted(path.name for path in kept[-1].iterdir()) == ["console.log", "org.pocketcloud.install.0.log"]
    assert (kept[-1] / "console.log").read_text() == "earlier\nrhsm --activation-key=********\nend"
    assert sorted((kit.path / "media/logs").iterdir()) == kept[-5:], "of many the newest stay"


def install_definitions() -> list[InstallDefinition]:
    return [each for each in definitions.available() if isinstance(each, InstallDefinition)]


def test_every_builder_of_installers_has_its_recipe() -> None:
    found = install_definitions()
    assert {each.builder for each in found} == {Builder.KICKSTART, Builder.PRESEED, Builder.AUTOINSTALL}
    for definition in found:
        for arch in definition.architectures:
            assert len(builder.inputs_digest(definition, arch)) == 64


def test_the_answer_is_part_of_what_makes_a_base(tmp_path: Path) -> None:
    definition = next(each for each in install_definitions() if each.builder is Builder.KICKSTART)
    (tmp_path / definition.template).write_text("text\npoweroff\n")
    ours, theirs, again = (list(Installation(own).inputs(definition, Arch.X86_64)) for own in (None, tmp_path, None))
    assert ours != theirs
    assert ours == again
