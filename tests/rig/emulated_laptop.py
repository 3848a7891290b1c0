"""Boots an emulated laptop whose USB disks are plugged in and pulled while it runs: QEMU with an xHCI (USB 3) and an EHCI
(USB 2) controller, and Debian's kernel over a copy-on-write view of this host's files, with udev's daemon (virtme-ng).

The job inside has no hands: it asks for a disk to be plugged in or pulled through a virtio port (tests/rig/laptop/hands.py),
and that is done here over QMP. The kernel comes from Debian's packages and is unpacked in .cache, never installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qemu.qmp import EventListener, QMPClient, QMPError

from tests.rig.memory_root import BEGIN, END, write_initramfs

TOP = Path(__file__).resolve().parents[2]
PORT = "pocketcloud.rig"
_CACHE = TOP / ".cache" / "laptop-kernel"
_KERNEL_PACKAGE = "linux-image-amd64"
_UNPLUGGED_WITHIN = 30.0
_BIN = Path(sys.executable).parent


class LaptopFailed(Exception):
    """The emulated laptop could not be made ready; carries what was said."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job that ended: its exit code and all it said."""

    code: int
    log: str


def missing() -> str:
    """Why the laptop cannot be emulated here, empty if it can."""
    if platform.machine() != "x86_64":
        return "the emulated laptop is an x86-64 one with this host's files"
    tools = [tool for tool in ("qemu-system-x86_64", "busybox", "apt-get", "dpkg") if shutil.which(tool) is None]
    if not (_BIN / "vng").exists():
        tools.append("vng (virtme-ng)")
    if tools:
        return f"not here: {', '.join(tools)} (`make test` installs them on Debian and Ubuntu)"
    return "" if os.geteuid() == 0 else "the emulated laptop is root inside only if it is started by root"


def kernel() -> Path:
    """Debian's newest kernel, with its modules beside it as on a system. Raises LaptopFailed if it cannot be fetched."""
    found = sorted(_CACHE.glob("boot/vmlinuz-*"))
    if found:
        release = found[-1].name.removeprefix("vmlinuz-")
        # What a package's installation does, and its unpacking does not: which module needs which.
        if not (_CACHE / f"lib/modules/{release}/modules.dep").exists():
            _said("depmod", "-b", str(_CACHE), release)
        return found[-1]
    depends = _said("apt-cache", "depends", "--important", _KERNEL_PACKAGE)
    (package, *_) = [line.split()[-1] for line in depends.splitlines() if "Depends: linux-image" in line] or [""]
    if not package:
        raise LaptopFailed(f"apt knows no {_KERNEL_PACKAGE}: only Debian's kernel is known to have what is needed")
    _CACHE.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CACHE.parent) as folder:
        _said("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package, cwd=folder)
        (archive,) = Path(folder).glob("*.deb")
        _said("dpkg", "-x", str(archive), f"{folder}/files")
        Path(folder, "files").rename(_CACHE)
    return kernel()


def _said(*argv: str, cwd: str | None = None) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode:
        raise LaptopFailed(f"{' '.join(argv)}: {done.returncode}\n{done.stderr}")
    return done.stdout


def run_job(
    script: str, disks: Mapping[str, Path], *, timeout: float, env: Mapping[str, str] | None = None, in_memory: bool = False
) -> Job:
    """Boot, run `script` with sh in the checkout, halt. `disks` are the files of the disks that the job may ask for by name;
    `timeout` is in seconds. One that is `in_memory` has what it needs of this host's files there, and can be suspended. Raises
    LaptopFailed."""
    # A short path: a Unix socket's may have no more than 107 characters.
    with tempfile.TemporaryDirectory(prefix="pc-laptop-", dir="/tmp") as name:
        folder = Path(name)
        exports = "".join(f"export {key}='{value}'\n" for key, value in (env or {}).items())
        rig = "laptop-in-memory" if in_memory else "laptop"
        job = f"cd '{TOP}' || exit 99\nexport POCKETCLOUD_RIG={rig}\n{exports}{script}\n"
        if not in_memory:
            (folder / "job").write_text(job)
            return asyncio.run(_run(folder, _argv(folder, disks), timeout))
        # It is larger than some /tmp may be.
        with tempfile.NamedTemporaryFile(prefix="pc-laptop-", dir="/var/tmp") as initramfs:
            write_initramfs(Path(initramfs.name), kernel(), job)
            log = asyncio.run(_run(folder, _argv_in_memory(folder, disks, Path(initramfs.name)), timeout)).log.replace(
                "\r\n", "\n"
            )
    _, began, said = log.partition(f"{BEGIN}\n")
    said, ended, code = said.rpartition(END)
    if not began or not ended:
        raise LaptopFailed(log[-20000:])
    return Job(int(code.split()[0]), said)


def _hardware(folder: Path, disks: Mapping[str, Path]) -> list[str]:
    qemu = [
        "-cpu", "max,+svm", "-device", "qemu-xhci,id=xhci", "-device", "usb-ehci,id=ehci",
        "-qmp", f"unix:{folder}/qmp,server=on,wait=off",
        "-chardev", f"socket,id=rig,path={folder}/port,server=on,wait=off",
        "-device", "virtio-serial-pci", "-device", f"virtserialport,chardev=rig,name={PORT}",
    ]  # fmt: skip
    for node, file in disks.items():
        qemu += ["-blockdev", f"driver=raw,node-name={node},discard=unmap,file.driver=file,file.filename={file}"]
    return qemu


def _argv(folder: Path, disks: Mapping[str, Path]) -> list[str]:
    qemu = _hardware(folder, disks)
    return [
        str(_BIN / "vng"), "--run", str(kernel()), "--disable-kvm", "--user", "root", "--memory", "2G", "--cpus", "1",
        "--busybox", shutil.which("busybox") or "busybox", f"--qemu-opts={' '.join(qemu)}", "--", f"sh {folder}/job",
    ]  # fmt: skip


def _argv_in_memory(folder: Path, disks: Mapping[str, Path], initramfs: Path) -> list[str]:
    return [
        "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-m", "3G", "-smp", "1", "-nodefaults", "-display", "none",
        "-no-reboot", "-serial", "stdio", "-kernel", str(kernel()), "-initrd", str(initramfs),
        "-append", "console=ttyS0 panic=-1 loglevel=4", *_hardware(folder, disks),
    ]  # fmt: skip


async def _run(folder: Path, argv: Sequence[str], timeout: float) -> Job:
    # Its programs find each other by PATH; what it caches and its settings stay in the folder.
    env = os.environ | {"PATH": f"{_BIN}:{os.environ['PATH']}", "HOME": str(folder)}
    log = folder / "log"
    with log.open("wb") as said:
        laptop = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=said,
            stderr=asyncio.subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )
    hands = asyncio.create_task(_hands(folder))
    try:
        async with asyncio.timeout(timeout):
            # Its hands let go when it halts; before that they do only if something is wrong with them.
            await asyncio.wait({hands, asyncio.create_task(laptop.wait())}, return_when=asyncio.FIRST_COMPLETED)
            await (hands if hands.done() else laptop.wait())
            code = await laptop.wait()
    except (TimeoutError, QMPError, OSError) as error:
        raise LaptopFailed(f"{error!r}, within {timeout:.0f} s\n{log.read_text(errors='replace')[-20000:]}") from error
    finally:
        hands.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(laptop.pid, signal.SIGKILL)
        await laptop.wait()
        with contextlib.suppress(asyncio.CancelledError):
            await hands
    return Job(code, log.read_text(errors="replace"))


async def _hands(folder: Path) -> None:
    """Do what the job asks for, a line each: `plug DISK CONTROLLER PORT KIND`, `pull DISK`, `wake SECONDS [DISK]`; answer `done`
    or what failed."""
    while not (folder / "qmp").exists() or not (folder / "port").exists():
        await asyncio.sleep(0.1)
    qmp = QMPClient("laptop")
    await qmp.connect(str(folder / "qmp"))
    reader, writer = await asyncio.open_unix_connection(str(folder / "port"))
    asleep = EventListener("SUSPEND")
    qmp.register_listener(asleep)
    waking: list[asyncio.Task[None]] = []
    try:
        async for line in reader:
            verb, *words = line.decode().split()
            try:
                if verb == "wake":
                    waking.append(asyncio.create_task(_wake(qmp, asleep, *words)))
                else:
                    await (_plug(qmp, *words) if verb == "plug" else _pull(qmp, *words))
                answer = "done"
            except (QMPError, TimeoutError) as error:
                answer = f"failed: {error!r}"
            writer.write(f"{answer}\n".encode())
            await writer.drain()
    finally:
        for each in waking:
            each.cancel()
        writer.close()
        with contextlib.suppress(QMPError, EOFError):
            await qmp.disconnect()


async def _plug(qmp: QMPClient, disk: str, controller: str, port: str, kind: str) -> None:
    """`kind` is "uas" or "bot" (usb-storage). A plugged disk is seen by the laptop only once it is attached, with its LUN."""
    await qmp.execute("device_add", {"driver": f"usb-{kind}", "id": disk, "bus": f"{controller}.0", "port": port})
    lun = {"driver": "scsi-hd", "bus": f"{disk}.0", "scsi-id": 0, "lun": 0, "drive": disk, "product": "PocketSSD"}
    await qmp.execute("device_add", lun | {"rotation_rate": 1})
    await qmp.execute("qom-set", {"path": f"/machine/peripheral/{disk}", "property": "attached", "value": True})


async def _pull(qmp: QMPClient, disk: str) -> None:
    deleted = EventListener("DEVICE_DELETED")
    with qmp.listen(deleted):
        await qmp.execute("device_del", {"id": disk})
        async with asyncio.timeout(_UNPLUGGED_WITHIN):
            async for event in deleted:
                data = event["data"]
                if isinstance(data, dict) and data.get("device") == disk:
                    return


async def _wake(qmp: QMPClient, asleep: EventListener, seconds: str, *pulled: str) -> None:
    """Wake the laptop so long after it has suspended itself, which it has not yet; meanwhile pull disks."""
    await asleep.get()
    for disk in pulled:
        await _pull(qmp, disk)
    await asyncio.sleep(float(seconds))
    await qmp.execute("system_wakeup")


def main(words: list[str]) -> int:
    """`python -m tests.rig.emulated_laptop COMMAND`: to look around, with a disk `ssd` of 8 GiB."""
    if reason := missing():
        print(reason, file=sys.stderr)
        return 3
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.NamedTemporaryFile(dir="/var/tmp", prefix="pc-laptop-") as disk:
        disk.truncate(8 << 30)
        job = run_job(" ".join(words), {"ssd": Path(disk.name)}, timeout=1800)
    print(job.log, end="")
    return job.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
