"""Boots an emulated ARM64 board (QEMU's virt machine with a Cortex-A53, by device tree) and runs commands of this checkout in it.

Its kernel and its few programs come from Debian's arm64 packages, what pocketcloud imports from PyPI; all are unpacked in
.cache, none is installed, and no program for ARM runs outside of the emulator. The board has no disk: its root file system is
the initramfs. There is no libvirt on it: the binding for Python comes as source only.

`python -m tests.rig.arm_board EL COMMAND`, with EL `el1` or `el2`: to look around.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from pocketcloud.cpio import cpio

TOP = Path(__file__).resolve().parents[2]
_CACHE = TOP / ".cache" / "arm-board"
_KERNEL = "linux-image-arm64"
_PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
_PACKAGES = (
    "base-files", "busybox-static", f"{_PYTHON}-minimal", f"lib{_PYTHON}-minimal", f"lib{_PYTHON}-stdlib",
    "libc6", "libgcc-s1", "libexpat1", "libffi8", "zlib1g", "liblzma5", "libbz2-1.0", "libssl3", "libudev1", "libuuid1",
)  # fmt: skip
_BEGIN, _END = "-- the job begins --", "-- the job ended with"
_INIT = f"""#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /sbin
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin PYTHONPATH=/packages PYTHONDONTWRITEBYTECODE=1 HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
ln -s /usr/bin/{_PYTHON} /bin/python3
cd /checkout
echo '{_BEGIN}'
sh /job </dev/null
echo "{_END} $?"
poweroff -f
"""


class BoardFailed(Exception):
    """The board could not be made or did not come to its end; carries what was said."""


def missing() -> str:
    """Why the board cannot be emulated here, empty if it can."""
    tools = [tool for tool in ("qemu-system-aarch64", "apt-get", "dpkg") if shutil.which(tool) is None]
    return f"not here: {', '.join(tools)} (`make test-slow` installs them on Debian and Ubuntu)" if tools else ""


def run_job(script: str, *, el2: bool, timeout: float) -> tuple[int, str]:
    """Boot, run `script` with sh in the checkout; its exit code, and what it said. `el2`: the kernel is entered at EL2, as by
    good firmware, else at EL1. `timeout` is in seconds. Raises BoardFailed."""
    with tempfile.TemporaryDirectory(prefix="pc-board-", dir="/var/tmp") as name:
        folder = Path(name)
        entries = _tree(_root(), "")
        for place, tree in (("packages", _python_packages()), ("checkout", _checkout(folder))):
            entries += [(place, 0o040755, b"", 0), *_tree(tree, f"{place}/")]
        entries.append(("dev", 0o040755, b"", 0))
        entries += [("init", 0o100755, _INIT.encode(), 0), ("job", 0o100644, script.encode(), 0)]
        entries += [("dev/console", 0o020600, b"", os.makedev(5, 1))]
        (folder / "initramfs").write_bytes(cpio(entries))
        said = _booted(kernel(), folder / "initramfs", el2=el2, timeout=timeout)
    _, began, job = said.partition(f"{_BEGIN}\n")
    job, ended, code = job.partition(_END)
    if not began or not ended:
        raise BoardFailed(said[-20000:])
    return int(code.split()[0]), job


def _booted(image: Path, initramfs: Path, *, el2: bool, timeout: float) -> str:
    argv: list[str | Path] = [
        "qemu-system-aarch64", "-machine", f"virt,gic-version=3,virtualization={'on' if el2 else 'off'}", "-accel", "tcg",
        "-cpu", "cortex-a53", "-smp", "2", "-m", "1024", "-nodefaults", "-display", "none", "-no-reboot",
        "-serial", "stdio", "-kernel", image, "-initrd", initramfs, "-append", "console=ttyAMA0 loglevel=3 panic=-1",
    ]  # fmt: skip
    try:
        done = subprocess.run(argv, capture_output=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as late:
        said = (late.stdout or b"").decode(errors="replace")
        raise BoardFailed(f"not done within {timeout:.0f} s\n{said[-20000:]}") from late
    return (done.stdout + done.stderr).decode(errors="replace").replace("\r\n", "\n")


def _tree(folder: Path, prefix: str) -> list[tuple[str, int, bytes, int]]:
    """All of a folder for the archive, each folder before what is in it: the kernel makes none by itself."""

    def walk() -> Iterator[tuple[str, int, bytes, int]]:
        for path in sorted(folder.rglob("*")):
            mode, name = path.lstat().st_mode, f"{prefix}{path.relative_to(folder)}"
            if stat.S_ISLNK(mode):
                yield name, mode, bytes(path.readlink()), 0
            elif stat.S_ISDIR(mode):
                yield name, mode, b"", 0
            elif stat.S_ISREG(mode):
                yield name, mode, path.read_bytes(), 0

    return list(walk())


def _checkout(folder: Path) -> Path:
    """What of this checkout the command needs, as it is now."""
    copy = folder / "checkout"
    for part in ("pocketcloud", "profiles", "bases", "labs", "kickstarts"):
        shutil.copytree(TOP / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    for path in TOP.glob("*.tsv"):
        shutil.copy(path, copy)
    _compile(copy)
    return copy


def _compile(folder: Path) -> None:
    """Python's bytecode, which is the same for all architectures: to make it takes the board longer than everything else."""
    words = ["-m", "compileall", "-q", "--invalidation-mode=unchecked-hash", str(folder)]
    # Some files of Python's own library cannot be compiled, and are not meant to be.
    subprocess.run([sys.executable, *words], check=False, capture_output=True)


# -- what it is made of, fetched once ---------------------------------------------------------------------------------


def kernel() -> Path:
    """Debian's kernel for arm64, whose KVM is built in. Raises BoardFailed if it cannot be fetched."""
    found = sorted((_CACHE / "kernel").glob("boot/vmlinuz-*"))
    if not found:
        depends = _said(*_apt("apt-cache"), "depends", "--important", _KERNEL)
        named = [line.split()[-1] for line in depends.splitlines() if "Depends: linux-image" in line]
        if not named:
            raise BoardFailed(f"apt knows no {_KERNEL}: only Debian's is known to have what is needed")
        _unpack("kernel", named[:1])
        shutil.rmtree(_CACHE / "kernel/lib")  # modules, of which it needs none
        found = sorted((_CACHE / "kernel").glob("boot/vmlinuz-*"))
    return found[-1]


def _root() -> Path:
    if not (_CACHE / "root").exists():
        _unpack("root", _PACKAGES)
    return _CACHE / "root"


def _python_packages() -> Path:
    target = _CACHE / "python"
    if not target.exists():
        wanted = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
        platforms = [f"--platform=manylinux{version}_aarch64" for version in ("_2_17", "2014", "_2_28", "_2_34")]
        with tempfile.TemporaryDirectory(dir=_made(_CACHE)) as folder:
            _said(
                sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-compile",
                "--only-binary=:all:",
                *platforms, f"--target={folder}/python", "-c", str(TOP / "constraints.txt"),
                *(word for word in wanted if not word.startswith("libvirt-python")),
            )  # fmt: skip
            _compile(Path(folder, "python"))
            Path(folder, "python").rename(target)
    return target


def _apt(command: str) -> list[str]:
    """apt for arm64, with lists of its own and the host's sources."""
    lists = _CACHE / "lists"
    options = ["APT::Architecture=arm64", "APT::Architectures=arm64", f"Dir::State::Lists={lists}", "APT::Sandbox::User=root"]
    # The host's cache of what it knows is of another architecture.
    options += ["Dir::Cache::pkgcache=", "Dir::Cache::srcpkgcache="]
    if command == "apt-cache" or not any(lists.glob("*Packages*")):
        _made(lists / "partial")
        _said("apt-get", "-qq", *(f"-o{option}" for option in options), "update")
    return [command, "-qq", *(f"-o{option}" for option in options)]


def _unpack(name: str, packages: tuple[str, ...] | list[str]) -> None:
    with tempfile.TemporaryDirectory(dir=_made(_CACHE)) as folder:
        _said(*_apt("apt-get"), "download", *packages, cwd=folder)
        for archive in sorted(Path(folder).glob("*.deb")):
            _said("dpkg", "-x", str(archive), f"{folder}/files")
        _compile(Path(folder, "files"))
        Path(folder, "files").rename(_CACHE / name)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _said(*argv: str, cwd: str | None = None) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode:
        raise BoardFailed(f"{' '.join(argv)}: {done.returncode}\n{done.stderr}")
    return done.stdout


def main(words: list[str]) -> int:
    if reason := missing():
        print(reason, file=sys.stderr)
        return 3
    level, *command = words
    code, said = run_job(" ".join(command), el2=level == "el2", timeout=600)
    print(said, end="")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
