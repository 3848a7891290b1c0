"""Starts a disk in QEMU under emulation, by UEFI firmware with fresh variables, and comes in by ssh. libvirt is not involved."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketcloud.files import copy_whole
from pocketcloud.guest import Guest, Login, wait_ssh
from pocketcloud.keys import new_key
from pocketcloud.model.base import Arch
from pocketcloud.seed import Seed, SeedNic, write_seed
from tests.sshd import free_port

MAC = "52:54:00:12:34:56"
_MACHINES = {Arch.X86_64: ["-machine", "q35,smm=on", "-cpu", "max"], Arch.AARCH64: ["-machine", "virt", "-cpu", "cortex-a72"]}
_SECURE = ["-global", "driver=cfi.pflash01,property=secure,value=on"]


@dataclass(frozen=True, slots=True)
class Emulated:
    """A running guest, and the seconds from the start of QEMU to the login."""

    guest: Guest
    seconds: float
    console: Path

    def said(self, command: str) -> str:
        """The output of a command that must succeed."""
        done = self.guest.run(command, timeout=120)
        assert done.code == 0, f"{command}: {done.code}\n{done.out.decode()}{done.err.decode()}"
        return done.out.decode()


def firmware(arch: Arch, *, secure: bool) -> tuple[Path, Path]:
    """The code and the template of the variables, by the firmware descriptors that QEMU's packages bring.

    Source of the format: QEMU's docs/interop/firmware.json."""
    for path in sorted(Path("/usr/share/qemu/firmware").glob("*.json")):
        described: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        mapping, features = described["mapping"], set(described["features"])
        fits = any(target["architecture"] == arch for target in described["targets"])
        if not fits or "uefi" not in described["interface-types"] or "nvram-template" not in mapping:
            continue
        if secure == ({"secure-boot", "enrolled-keys"} <= features) and (secure or "secure-boot" not in features):
            return Path(mapping["executable"]["filename"]), Path(mapping["nvram-template"]["filename"])
    raise AssertionError(f"no UEFI firmware for {arch} (secure boot: {secure}) is installed")


@contextmanager
def emulated(backing: Path, folder: Path, arch: Arch, size: int, *, secure: bool, within: float) -> Iterator[Emulated]:
    """A guest on a new overlay of the qcow2 image `backing`, `size` bytes large: 512 MiB, one processor, a seed of our own."""
    disk, seed, console, nvram = (folder / name for name in ("disk.qcow2", "seed.iso", "console.log", "vars.fd"))
    made = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(backing), str(disk), str(size)]
    subprocess.run(made, check=True)
    code, template = firmware(arch, secure=secure)
    copy_whole(template, nvram)
    host, user = new_key("host"), new_key("user")
    write_seed(seed, Seed("i-1", "web", "demo", host, (user.public,), (SeedNic(MAC),)))
    port = free_port()
    argv = [
        f"qemu-system-{arch}", *_MACHINES[arch], "-accel", "tcg", "-m", "512", "-smp", "1",
        "-display", "none", "-monitor", "none",
        "-drive", f"if=pflash,format=raw,readonly=on,file={code}", "-drive", f"if=pflash,format=raw,file={nvram}",
        "-drive", f"if=none,id=disk,format=qcow2,cache=unsafe,discard=unmap,file={disk}", "-device", "virtio-blk-pci,drive=disk",
        "-drive", f"if=none,id=seed,format=raw,readonly=on,file={seed}", "-device", "virtio-blk-pci,drive=seed",
        "-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:22", "-device", f"virtio-net-pci,netdev=net,mac={MAC}",
        "-device", "virtio-rng-pci", "-serial", f"file:{console}", *(_SECURE if secure and arch is Arch.X86_64 else []),
    ]  # fmt: skip
    started = time.monotonic()
    with subprocess.Popen(argv) as qemu:
        try:
            login = Login("127.0.0.1", host.bare, user.private, port=port)
            with _come_in(login, started + within, console) as guest:
                yield Emulated(guest, time.monotonic() - started, console)
        finally:
            qemu.terminate()


def _come_in(login: Login, deadline: float, console: Path) -> Guest:
    try:
        return wait_ssh(login, deadline=deadline, stop=threading.Event())
    except Exception:  # whatever went wrong, the guest's console tells more of it, and it is raised again
        print(console.read_text(encoding="utf-8", errors="replace")[-4000:] if console.exists() else "no console")
        raise
