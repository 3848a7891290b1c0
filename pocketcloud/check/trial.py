"""A machine on trial: started through libvirt as a lab's machines are, with a disk that says a line and switches it off.

Nothing is left of it. What a trial left that was killed in its midst (`kill -9`) goes with the next.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.check.boot_disk import boot_disk
from pocketcloud.errors import PocketcloudError
from pocketcloud.hypervisor import DomainState, Hypervisor
from pocketcloud.model.base import Arch, Firmware
from pocketcloud.model.machine import DiskSpec, MachineSpec, Mark
from pocketcloud.model.profile import DiskTuning
from pocketcloud.model.sizes import MIB
from pocketcloud.profiles import Shape

LINE = "pocketcloud check: this machine runs"
NAME = "pocketcloud-check"
KIT_ID = "7c0b9a5e-5c0e-4f0c-9d0e-6b1f3f0d8a11"
"""The mark of machines on trial: as if of a kit, which no kit has."""

_LOG_SECONDS = 2.0
_PLACE = Path("/var/tmp")  # noqa: S108 - libvirt's user must reach it; the folder in it is made anew, for us alone to write
_MEMORY = {Arch.X86_64: 32 * MIB, Arch.AARCH64: 256 * MIB}


@dataclass(frozen=True, slots=True)
class Trial:
    """How a machine fared: the seconds it took, what it ended as (RUNNING: the deadline was first), what its console has (None:
    we may not read it)."""

    seconds: float
    state: DomainState
    said: str | None


def trial_name() -> str:
    """This process's machine; others may have one on trial at the same time."""
    return f"{NAME}.{os.getpid()}"


def trial_spec(folder: Path, arch: Arch, shape: Shape) -> MachineSpec:
    """The machine, with its disk in `folder`."""
    disk = folder / "disk.img"
    disk.write_bytes(boot_disk(arch, LINE))
    process = str(os.getpid())
    return MachineSpec(
        name=trial_name(),
        uuid=str(uuid.uuid4()),
        mark=Mark(NAME, KIT_ID, "deep", process),
        title="pocketcloud check --deep: goes by itself",
        arch=arch,
        machine=shape.machine,
        acceleration=shape.acceleration,
        cpu_mode=shape.cpu_mode,
        vcpus=1,
        memory=_MEMORY[arch],
        firmware=Firmware.BIOS if arch is Arch.X86_64 else Firmware.EFI,
        nvram=None if arch is Arch.X86_64 else folder / "nvram.fd",
        disks=(DiskSpec("vda", disk, "raw", DiskTuning("writeback", "threads")),),
        nics=(),
        serial_log=folder / "console",
        cpus=shape.cpus,
    )


def try_machine(hypervisor: Hypervisor, spec: MachineSpec, *, within: float) -> Trial:
    """Start it and wait until it has switched itself off, `within` seconds at most; it is gone afterwards, whatever happens.
    Raises what the hypervisor room raises."""
    with contextlib.ExitStack() as undo:
        undo.callback(_remove, hypervisor, spec.name)
        hypervisor.define(spec)
        began = time.monotonic()
        hypervisor.start(spec.name)
        while (state := _state(hypervisor, spec.name)) is DomainState.RUNNING:
            if time.monotonic() - began > within:
                break
            time.sleep(0.1)
        seconds = time.monotonic() - began
        return Trial(seconds, state, _read(spec.serial_log, patient=state is DomainState.OFF))


def _state(hypervisor: Hypervisor, name: str) -> DomainState:
    domain = hypervisor.domain(name)
    return domain.state if domain else DomainState.OFF


def _remove(hypervisor: Hypervisor, name: str) -> None:
    # With a daemon that went meanwhile it cannot be; then the next trial does it.
    with contextlib.suppress(PocketcloudError):
        hypervisor.undefine(name)


def _read(log: Path, *, patient: bool) -> str | None:
    """The console. Another process writes it, and may be a moment behind."""
    until = time.monotonic() + _LOG_SECONDS
    try:
        while LINE not in (said := log.read_text(encoding="utf-8", errors="replace")) and patient and time.monotonic() < until:
            time.sleep(0.1)
    except OSError:
        return None
    return said


@contextlib.contextmanager
def trial_folder() -> Iterator[Path]:
    """A folder that other users may look into, as QEMU's must; named for this process, so that it can be known as left."""
    place = _PLACE if os.access(_PLACE, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix=f"{NAME}-{os.getpid()}-", dir=place, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def sweep_folders() -> None:
    """Remove folders of processes that are gone."""
    for folder in _PLACE.glob(f"{NAME}-*-*"):
        process = folder.name.removeprefix(f"{NAME}-").partition("-")[0]
        with contextlib.suppress(OSError):
            if process.isdigit() and not _alive(process) and folder.lstat().st_uid == os.geteuid():
                shutil.rmtree(folder)


def sweep_machines(hypervisor: Hypervisor) -> None:
    """Remove machines of processes that are gone. Raises what the hypervisor room raises."""
    for domain in hypervisor.domains(KIT_ID):
        if not _alive(domain.mark.part):
            hypervisor.undefine(domain.name)


def _alive(process: str) -> bool:
    return Path("/proc", process).exists()
