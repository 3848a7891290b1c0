"""`check --deep` for real: machines on trial through libvirt's daemon, and the guest that looks for its KVM, under QEMU's
emulation of a processor with AMD's SVM. With a real KVM below they run in the emulated laptop."""

from __future__ import annotations

import fcntl
import json
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pocketcloud.check.deep import judge
from pocketcloud.check.judgement import Surroundings
from pocketcloud.check.nested_guest import Verdict, ask, verdict
from pocketcloud.check.trial import KIT_ID, LINE, NAME, sweep_folders, sweep_machines, trial_folder, trial_spec, try_machine
from pocketcloud.errors import HostLacks
from pocketcloud.host import read_facts
from pocketcloud.host.kernels import read_kernels
from pocketcloud.hypervisor import DomainState, Hypervisor
from pocketcloud.hypervisor.libvirt import LibvirtHypervisor
from pocketcloud.model.base import Arch
from pocketcloud.model.facts import Kvm, KvmState
from pocketcloud.model.judgement import State
from pocketcloud.model.machine import Mark
from pocketcloud.model.profile import Acceleration
from pocketcloud.profiles import Shape
from pocketcloud.system import run, which
from tests.bootsector import write_disk
from tests.host_trees import plant, x86_laptop
from tests.rig.emulated_laptop import LaptopFailed, kernel

SHAPES = {
    Arch.X86_64: Shape(Acceleration.EMULATION, "q35", "maximum"),
    Arch.AARCH64: Shape(Acceleration.EMULATION, "virt", "maximum"),
}
PLACE = Path("/var/tmp")


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """One test at a time: they look at what is left, and another checkout's may run beside these."""
    with Path(tempfile.gettempdir(), "pocketcloud-test-deep.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def hypervisor() -> Iterator[LibvirtHypervisor]:
    connected = LibvirtHypervisor.connect()
    yield connected
    connected.close()


def left() -> list[str]:
    """What trials have left: machines, processes of QEMU, folders."""
    machines = subprocess.run(["virsh", "list", "--all", "--name"], capture_output=True, text=True, check=True).stdout
    words = [path.read_bytes().decode(errors="replace") for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    processes = [text for text in words if "qemu" in text.partition("\0")[0] and NAME in text]
    return (
        [name for name in machines.split() if name.startswith(NAME)] + processes + [str(path) for path in PLACE.glob(f"{NAME}-*")]
    )


@pytest.mark.sampled(2)
@pytest.mark.parametrize("arch", Arch)
def test_a_machine_starts_says_its_line_and_switches_itself_off(hypervisor: LibvirtHypervisor, arch: Arch) -> None:
    if which(f"qemu-system-{arch}") is None:
        pytest.skip(f"there is no emulator for {arch} (`make test-slow` installs it)")
    with trial_folder() as folder:
        trial = try_machine(hypervisor, trial_spec(folder, arch, SHAPES[arch]), within=120)
    assert trial.state is DomainState.OFF, trial
    assert trial.said is not None
    assert LINE in trial.said
    assert left() == []


def test_one_that_stays_on_is_ended_at_the_deadline(hypervisor: LibvirtHypervisor) -> None:
    with trial_folder() as folder:
        spec = trial_spec(folder, Arch.X86_64, SHAPES[Arch.X86_64])
        write_disk(spec.disks[0].path, "here I stay")
        trial = try_machine(hypervisor, spec, within=5)
    assert trial.state is DomainState.RUNNING
    assert trial.seconds >= 5
    assert left() == []


def test_what_a_killed_run_left_goes_with_the_next(hypervisor: LibvirtHypervisor) -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    mark = Mark(NAME, KIT_ID, "deep", gone.stdout.strip())
    abandoned = PLACE / f"{NAME}-{mark.part}-test"
    abandoned.mkdir()
    with trial_folder() as folder:
        spec = trial_spec(folder, Arch.X86_64, SHAPES[Arch.X86_64])
        write_disk(spec.disks[0].path, "here I stay")
        abandoned_one = replace(spec, mark=mark, name=f"{NAME}.{mark.part}", uuid=str(uuid.uuid4()))
        hypervisor.define(abandoned_one)
        hypervisor.start(abandoned_one.name)
        hypervisor.define(spec)
        try:
            sweep_machines(hypervisor)
            assert hypervisor.domain(abandoned_one.name) is None
            assert hypervisor.domain(spec.name) is not None, "its process is there"
        finally:
            hypervisor.undefine(spec.name)
        sweep_folders()
        assert folder.exists(), "its process is there"
        assert not abandoned.exists()
    assert left() == []


def command() -> list[str]:
    return [sys.executable, "-m", "pocketcloud", "check", "--no-measure", "--deep", "-o", "json"]


def test_the_command_starts_guests_only_when_asked_to() -> None:
    done = subprocess.run(command(), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    found = {check["id"]: check for check in json.loads(done.stdout)}
    assert "Starting two tiny guests" in done.stderr
    assert found["deep-boot"]["state"] == "ok", found["deep-boot"]
    assert re.search(r"switched itself off after \d+\.\d s", found["deep-boot"]["evidence"])
    if found["kvm"]["state"] != "ok":
        assert "under emulation" in found["deep-boot"]["evidence"]
        assert found["deep-nesting"]["state"] == "not-applicable"
    shallow = subprocess.run([word for word in command() if word != "--deep"], capture_output=True, text=True, check=False)
    assert not [check["id"] for check in json.loads(shallow.stdout) if check["group"] == "deep"]
    assert left() == []


@pytest.mark.sampled(2)
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_ended_leaves_nothing(end: signal.Signals) -> None:
    with subprocess.Popen(command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL) as process:
        until = time.monotonic() + 60
        while not left():
            assert time.monotonic() < until
            assert process.poll() is None, "it was done before it could be ended"
            time.sleep(0.05)
        process.send_signal(end)
        assert process.wait(60) in (130, 143)
    assert left() == []


# -- the guest that looks for its KVM


@pytest.fixture(scope="module")
def root() -> Path:
    """Debian's kernel with its modules, laid out as on a system."""
    if platform.machine() != Arch.X86_64 or which("apt-get") is None:
        pytest.skip("Debian's kernel for x86-64 is fetched with apt")
    try:
        image = kernel()
    except LaptopFailed as failed:
        pytest.skip(str(failed))
    return image.parents[1]


def without_libvirt() -> Hypervisor:
    raise HostLacks("not asked here")


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("processor", "state", "words"),
    [
        ("max,+svm", State.OK, "opened its own /dev/kvm, and a loop of 200000 instructions took"),
        pytest.param("max,-svm", State.WARN, "does not load its kvm-amd: Operation not supported", marks=pytest.mark.slow),
    ],
)
def test_a_guest_finds_its_kvm_or_says_why_not(root: Path, tmp_path: Path, processor: str, state: State, words: str) -> None:
    """All of it as on a computer with AMD's processor, but that the processor is QEMU's, emulated."""
    emulator = tmp_path / "qemu"
    emulator.write_text(f"""#!/bin/sh
for word; do
  shift
  case $word in kvm) word=tcg ;; host) word={processor} ;; esac
  set -- "$@" "$word"
done
exec qemu-system-x86_64 "$@"
""")
    emulator.chmod(0o755)
    computer = tmp_path / "computer"
    release = next((root / "lib/modules").iterdir()).name
    plant(computer, x86_laptop("debian-12", flags="svm") | {"proc/sys/kernel/osrelease": f"{release}\n"})
    (computer / "boot").symlink_to(root / "boot")
    (computer / "lib").symlink_to(root / "lib")
    facts = replace(read_facts(computer), kvm=Kvm(KvmState.USABLE, "as if"))
    here = Surroundings(facts, computer / "kit", run, without_libvirt, computer, lambda _: emulator)
    found = {check.id: check for check in judge(here)}
    assert found["deep-boot"].state is State.UNKNOWN
    assert found["deep-nesting"].state is state, found["deep-nesting"]
    assert words in found["deep-nesting"].evidence
    assert f"Linux {release}" in found["deep-nesting"].evidence
    assert left() == []


def test_a_guest_that_hangs_is_ended(root: Path, tmp_path: Path) -> None:
    """Here before its kernel is up."""
    (first, *_) = read_kernels(root, "")
    began = time.monotonic()
    how = ("-accel", "tcg", "-cpu", "max", "-S")  # QEMU's -S: the processor waits for a monitor's word
    answer = ask(Path("qemu-system-x86_64"), Arch.X86_64, first.image, (), how, folder=tmp_path, within=2, run=run)
    assert time.monotonic() - began < 30
    assert verdict(answer, (), Arch.X86_64)[0] is Verdict.UNTOLD
    assert "not done after 2 s" in answer.ended
    words = [path.read_bytes().decode(errors="replace") for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [text for text in words if str(tmp_path) in text]
