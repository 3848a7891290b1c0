"""What `check --deep` starts its guests from, and what it makes of their answers. The guests themselves run in tests/contract,
and with real nesting in the emulated laptop."""

from __future__ import annotations

import errno
import gzip
import lzma
import os
import platform
import shutil
import struct
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from pocketcloud.check.boot_disk import SIZE, boot_disk
from pocketcloud.check.deep import booted, judge
from pocketcloud.check.init_program import At, InitProgram, results
from pocketcloud.check.judgement import Check, Surroundings
from pocketcloud.check.nested_guest import Answer, Module, Verdict, init_program, initramfs, proof, read_module, verdict
from pocketcloud.check.trial import LINE, Trial
from pocketcloud.cpio import cpio
from pocketcloud.errors import HostLacks
from pocketcloud.host import kvm_probe, read_facts
from pocketcloud.host.kernels import module_files, read_kernels
from pocketcloud.hypervisor import DomainState, Hypervisor
from pocketcloud.model.base import Arch
from pocketcloud.model.facts import Kvm, KvmState
from pocketcloud.model.judgement import State
from pocketcloud.system import run
from tests.host_trees import plant, x86_laptop

RELEASE = "6.1.0-56-amd64"
MODULES = f"lib/modules/{RELEASE}"
AMD = (Module("kvm", b"", compressed=False), Module("kvm-amd", b"", compressed=False))


# -- the program of the guest's first process: an ordinary program for Linux, so it is run here


def ran(program: InitProgram, folder: Path) -> tuple[int, dict[str, int]]:
    """Its exit code and what it told; a program for ARM is run by QEMU's user emulation."""
    file = folder / "init"
    file.write_bytes(program.elf())
    file.chmod(0o755)
    emulator = [] if program.arch == platform.machine() else [f"qemu-{program.arch}-static"]
    done = subprocess.run([*emulator, file], capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL)
    return done.returncode, results(done.stdout)


def runnable(arch: Arch) -> bool:
    return arch == platform.machine() or shutil.which(f"qemu-{arch}-static") is not None


@pytest.mark.parametrize("arch", Arch)
def test_a_list_of_calls_is_made_one_after_the_other(tmp_path: Path, arch: Arch) -> None:
    if not runnable(arch):
        pytest.skip(f"programs for {arch} do not run here")
    (tmp_path / "file").write_text("content\n")
    program = InitProgram(arch)
    at_cwd, write_only = -100, 1
    program.call("openat", at_cwd, str(tmp_path / "absent"), 0, label="absent")
    opened = program.call("openat", at_cwd, str(tmp_path / "file"), write_only, label="there")
    program.fill(At(0x40), b"CONTENT!")
    # A result is an argument of the next call, an address one of a place in memory.
    program.call("write", opened, At(0x40).address, 7, label="written")
    program.call("write", opened, At(0x40).address, 0)
    program.move(At(0x40), to=At(0x80))
    program.move(At(0x80), label="moved")
    program.move(-2, label="minus")
    program.call("exit", 42)
    code, told = ran(program, tmp_path)
    assert code == 42
    assert (tmp_path / "file").read_text() == "CONTENT\n"
    assert list(told) == ["absent", "there", "written", "moved", "minus"], "calls without a label are not told"
    assert told["absent"] == -errno.ENOENT
    assert told["there"] > 2
    assert told["written"] == 7
    assert struct.pack("<q", told["moved"]) == b"CONTENT!"
    assert told["minus"] == -2


def test_a_program_that_does_not_fit_is_not_made() -> None:
    program = InitProgram(Arch.X86_64)
    with pytest.raises(ValueError, match="more than 8"):
        program.move(1, label="ninechars")
    for _ in range(1000):
        program.move(1)
    with pytest.raises(ValueError, match="do not fit"):
        program.elf()


@pytest.mark.skipif(platform.machine() != Arch.X86_64, reason="the program is run here")
def test_the_proof_itself_runs_as_a_program() -> None:
    """As an ordinary user's program, which may not mount anything: it gets to its end all the same. Where that user has a KVM,
    it runs the loop."""
    program = proof(Arch.X86_64, ())
    program.call("exit", 0)
    child = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        file = Path(folder, "init")
        file.write_bytes(program.elf())
        file.chmod(0o755)
        done = subprocess.run([*child, file], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done
    told = results(done.stdout)
    assert {"open", "run", "value"} <= set(told)
    found, words = verdict(Answer(told, done.stdout, ""), (), Arch.X86_64)
    assert found in (Verdict.RUNS, Verdict.RUNS_NOT)
    assert (found is Verdict.RUNS) == (told["open"] >= 0), words


# -- kernels and their modules


def test_kernels_are_found_with_their_modules(tmp_path: Path) -> None:
    plant(
        tmp_path,
        {
            "boot/vmlinuz-6.9.1": "",
            f"boot/vmlinuz-{RELEASE}": "",
            "boot/vmlinuz-5.0-gone": "",
            "usr/lib/modules/6.12.7-arch1-1/vmlinuz": "",
            "lib/modules/6.9.1/modules.dep": "",
            f"{MODULES}/modules.dep": "",
        },
    )
    os.utime(tmp_path / "usr/lib/modules/6.12.7-arch1-1/vmlinuz", (1, 1))
    found = read_kernels(tmp_path, RELEASE)
    assert [kernel.release for kernel in found] == [RELEASE, "6.9.1", "6.12.7-arch1-1"]
    assert found[0].image == tmp_path / f"boot/vmlinuz-{RELEASE}"
    assert all(kernel.readable for kernel in found)
    assert read_kernels(tmp_path / "nothing", RELEASE) == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="root may read everything, and can become somebody who may not")
def test_an_image_that_only_root_may_read_is_known_as_such() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        plant(folder, {f"boot/vmlinuz-{RELEASE}": "", f"{MODULES}/modules.dep": ""})
        (folder / f"boot/vmlinuz-{RELEASE}").chmod(0o600)
        os.seteuid(65534)
        try:
            (kernel,) = read_kernels(folder, RELEASE)
        finally:
            os.seteuid(0)
    assert not kernel.readable


def test_modules_come_in_the_order_of_their_loading(tmp_path: Path) -> None:
    dep = (
        "kernel/arch/x86/kvm/kvm.ko.xz: kernel/virt/lib/irqbypass.ko.xz\n"
        "kernel/arch/x86/kvm/kvm-amd.ko.xz: kernel/drivers/crypto/ccp.ko.xz kernel/arch/x86/kvm/kvm.ko.xz"
        " kernel/virt/lib/irqbypass.ko.xz\n"
    )
    plant(tmp_path, {f"{MODULES}/modules.dep": dep, f"{MODULES}/modules.builtin": "kernel/arch/x86/kvm/kvm-intel.ko\n"})
    files = module_files(tmp_path, RELEASE, "kvm_amd")
    assert files is not None
    assert [file.name.partition(".")[0] for file in files] == ["irqbypass", "kvm", "ccp", "kvm-amd"]
    assert files[0] == tmp_path / MODULES / "kernel/virt/lib/irqbypass.ko.xz"
    assert module_files(tmp_path, RELEASE, "kvm_intel") == (), "it is part of the kernel"
    assert module_files(tmp_path, RELEASE, "absent") is None
    assert module_files(tmp_path, "4.19", "kvm") is None


def test_modules_are_unpacked_where_that_can_be_done(tmp_path: Path) -> None:
    content = b"\x7fELF" + bytes(1000)
    (tmp_path / "a.ko").write_bytes(content)
    (tmp_path / "a.ko.xz").write_bytes(lzma.compress(content))
    (tmp_path / "a.ko.gz").write_bytes(gzip.compress(content))
    (tmp_path / "a.ko.lz4").write_bytes(b"what nobody here unpacks")
    files = ["a.ko", "a.ko.xz", "a.ko.gz"]
    if shutil.which("zstd"):
        subprocess.run(["zstd", "-q", tmp_path / "a.ko"], check=True)
        files.append("a.ko.zst")
    for file in files:
        assert read_module(tmp_path / file, tmp_path, run) == Module("a", content, compressed=False)
    left = read_module(tmp_path / "a.ko.lz4", tmp_path, run)
    assert left.compressed, "the guest's kernel may be able to"
    for file in files[1:]:
        (tmp_path / file).write_bytes(b"not packed at all")
        with pytest.raises(OSError, match="cannot be unpacked"):
            read_module(tmp_path / file, tmp_path, run)


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio reads what was made")
def test_an_archive_is_one(tmp_path: Path) -> None:
    packed = cpio([("dev", 0o040755, b"", 0), ("one", 0o100644, b"1", 0), ("dev/kvm", 0o020600, b"", os.makedev(10, 232))])
    listed = subprocess.run(["cpio", "-itv", "--quiet"], input=packed, capture_output=True, check=True, cwd=tmp_path).stdout
    lines = listed.decode().splitlines()
    assert [line.split()[-1] for line in lines] == ["dev", "one", "dev/kvm"]
    assert [line[0] for line in lines] == ["d", "-", "c"]
    assert "10, 232" in lines[2]


def test_the_guest_gets_its_modules() -> None:
    made = initramfs(Arch.X86_64, (Module("kvm-amd", b"the module's content", compressed=False),))
    assert b"kvm-amd.ko\0" in made
    assert b"the module's content" in made
    assert b"/kvm-amd.ko\0" in init_program(Arch.X86_64, AMD), "its first process opens it by that name"


# -- what guests say

GOOD = {
    "mod0": 0, "mod1": 0, "open": 7, "version": 12, "vm": 8, "memory": 0, "tss": -errno.ENXIO, "vcpu": 9, "run": 0,
    "before": 5, "before_n": 900_000_000, "after": 6, "after_n": 1_500_000, "exit": 5, "value": kvm_probe.MAGIC,
}  # fmt: skip


@pytest.mark.parametrize(
    ("told", "console", "ended", "found", "words"),
    [
        (GOOD, "", "", Verdict.RUNS, "took 102 ms in a guest of its own"),
        (GOOD | {"mod0": -errno.EEXIST}, "", "", Verdict.RUNS, "opened its own /dev/kvm"),
        (
            GOOD | {"mod1": -errno.EOPNOTSUPP, "open": -errno.ENOENT},
            "[    1.2] kvm: no hardware support for 'kvm_amd'\n",
            "",
            Verdict.RUNS_NOT,
            "does not load its kvm-amd: Operation not supported (kvm: no hardware support for 'kvm_amd')",
        ),
        (GOOD | {"open": -errno.ENOENT}, "", "", Verdict.RUNS_NOT, "no /dev/kvm of its own: No such file"),
        (GOOD | {"vcpu": -errno.EINVAL}, "", "", Verdict.RUNS_NOT, "step `vcpu` failed: Invalid argument"),
        (GOOD | {"value": 1}, "", "", Verdict.RUNS_NOT, "exit reason 5 and 0x1, not with 5 and 0x600d"),
        (GOOD | {"exit": 17}, "", "", Verdict.RUNS_NOT, "exit reason 17"),
        ({"mod0": 0, "mod1": 0, "open": 7}, "", "not done after 240 s", Verdict.RUNS_NOT, "stopped while it ran a guest"),
        ({}, "[    0.5] Kernel panic - not syncing\n", "", Verdict.UNTOLD, "console ends with: [    0.5] Kernel panic"),
        ({}, "", "Could not access KVM kernel module", Verdict.UNTOLD, "Could not access KVM kernel module"),
        ({}, "", "", Verdict.UNTOLD, "its console is empty"),
    ],
)
def test_an_answer_is_understood(told: dict[str, int], console: str, ended: str, found: Verdict, words: str) -> None:
    judged, said = verdict(Answer(told, console, ended), AMD, Arch.X86_64)
    assert (judged, words in said) == (found, True), said


def test_a_module_that_the_guest_cannot_unpack_is_no_verdict_on_nesting() -> None:
    packed = (Module("kvm", b"", compressed=True),)
    judged, said = verdict(Answer({"mod0": -errno.EOPNOTSUPP, "open": -errno.ENOENT}, "", ""), packed, Arch.X86_64)
    assert judged is Verdict.PACKED
    assert "cannot unpack its module kvm" in said


@pytest.mark.parametrize(
    ("trial", "state", "words"),
    [
        (Trial(1.0, DomainState.OFF, f"BIOS\r\n{LINE}\r\n"), State.OK, "said"),
        (Trial(1.0, DomainState.OFF, None), State.OK, "only root may read"),
        (Trial(1.0, DomainState.OFF, "BIOS: no disk"), State.FAIL, "the last it said: BIOS: no disk"),
        (Trial(1.0, DomainState.OFF, ""), State.FAIL, "without a word"),
        (Trial(90.1, DomainState.RUNNING, ""), State.FAIL, "did not switch itself off within 90.1 s"),
        (Trial(1.0, DomainState.CRASHED, LINE), State.FAIL, "because QEMU did"),
        (Trial(1.0, DomainState.PAUSED, LINE), State.FAIL, "paused"),
    ],
)
def test_a_machine_on_trial_is_judged(trial: Trial, state: State, words: str) -> None:
    check = booted(trial, "a q35 machine", "Why.")
    assert check.state is state
    assert words in check.evidence
    assert bool(check.remedy) == (state is not State.OK)


@pytest.mark.parametrize("arch", Arch)
def test_a_boot_disk_is_of_its_size(arch: Arch) -> None:
    disk = boot_disk(arch, "a line")
    assert len(disk) == SIZE
    assert disk[510:512] == b"\x55\xaa"
    with pytest.raises(ValueError, match="ASCII"):
        boot_disk(arch, "é")
    with pytest.raises(ValueError, match="100"):
        boot_disk(arch, "x" * 101)


# -- what is said where no guest can be started


def without_libvirt() -> Hypervisor:
    raise HostLacks("libvirt's daemon does not answer", hint="start it")


def deep(
    root: Path, kvm: Kvm, *, emulator: Path | None = Path("/usr/bin/true"), files: dict[str, str] | None = None
) -> dict[str, Check]:
    """The checks of a laptop with Intel's processor, by their ids."""
    plant(root, x86_laptop("debian-12") | (files or {}))
    facts = replace(read_facts(root), kvm=kvm, kernel=RELEASE)
    here = Surroundings(facts, root / "kit", run, without_libvirt, root, lambda _: emulator)
    return {check.id: check for check in judge(here)}


KERNEL = {f"boot/vmlinuz-{RELEASE}": "", f"{MODULES}/modules.builtin": "kernel/arch/x86/kvm/kvm-intel.ko"}
USABLE = Kvm(KvmState.USABLE, "2 ns an instruction", 2.0)


@pytest.mark.parametrize(
    ("kvm", "state", "words"),
    [
        (Kvm(KvmState.SLOW, "emulated"), State.NOT_APPLICABLE, "KVM is slow here"),
        (Kvm(KvmState.ABSENT, "no /dev/kvm"), State.NOT_APPLICABLE, "KVM is absent here"),
        (Kvm(KvmState.DENIED, "may not be opened"), State.UNKNOWN, "may not be opened"),
    ],
)
def test_without_kvm_nothing_is_passed_on(tmp_path: Path, kvm: Kvm, state: State, words: str) -> None:
    found = deep(tmp_path, kvm, files=KERNEL)
    assert found["deep-nesting"].state is state
    assert words in found["deep-nesting"].evidence
    assert found["deep-boot"].state is State.UNKNOWN
    assert "libvirt's daemon does not answer" in found["deep-boot"].evidence


@pytest.mark.parametrize(
    ("files", "emulator", "words"),
    [
        ({}, Path("/usr/bin/true"), "there is no kernel with its modules"),
        (KERNEL, None, "qemu-system-x86_64 is not installed"),
        (KERNEL | {f"{MODULES}/modules.builtin": ""}, Path("/usr/bin/true"), f"Linux {RELEASE} has no module kvm_intel"),
        (
            KERNEL | {f"{MODULES}/modules.builtin": "", f"{MODULES}/modules.dep": "kernel/kvm-intel.ko:"},
            Path("/usr/bin/true"),
            "a module of Linux",
        ),
        # A QEMU that ends at once, with nothing said, and one that ends with an error.
        (KERNEL, Path("/usr/bin/true"), "said nothing of KVM; its console is empty"),
        (KERNEL, Path("/usr/bin/false"), "said nothing of KVM"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, files: dict[str, str], emulator: Path | None, words: str) -> None:
    check = deep(tmp_path, USABLE, emulator=emulator, files=files)["deep-nesting"]
    assert check.state is State.UNKNOWN
    assert words in check.evidence
    assert check.remedy
