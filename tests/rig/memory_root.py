"""An initramfs with what the tests in a laptop that suspends need: programs of this Debian, Python, the checkout, modules.

The other laptop has this host's files by a protocol (9p) whose device forgets them when it is suspended. Here all is in memory.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from pocketcloud.cpio import cpio

TOP = Path(__file__).resolve().parents[2]
BEGIN, END = "-- the job begins --", "-- the job ended with"
_PACKAGES = (
    "bash", "base-files", "coreutils", "dash", "dosfstools", "e2fsprogs", "fdisk", "findutils", "grep", "kmod", "libvirt0",
    "lvm2", "mount", "procps", "python3", "sed", "thin-provisioning-tools", "udev", "util-linux", "util-linux-extra", "xfsprogs",
)  # fmt: skip
_SETTINGS = ("passwd", "group", "nsswitch.conf", "ld.so.cache", "ld.so.conf", "os-release", "lvm", "udev", "alternatives")
_MODULES = (
    "virtio_pci", "virtio_console", "xhci_pci", "ehci_pci", "uas", "usb_storage", "sd_mod", "dm_snapshot", "dm_thin_pool", "loop",
    "ext4", "xfs",
)  # fmt: skip
_OF_CHECKOUT = (
    "pocketcloud",
    "profiles",
    "bases",
    "labs",
    "kickstarts",
    "tests",
    "pyproject.toml",
    "packages.tsv",
    "usb-bridges.tsv",
)
# What checks and installs, and what tests never load there.
_NOT_TAKEN = ("mypy", "mypyc", "pip", "ruff", "setuptools", "virtme", "pykickstart", "golden", "hosts")
_NOT_OF_PYTHON = ("site-packages", "dist-packages", "test", "idlelib", "ensurepip")
_INIT = """#!/bin/sh
PATH=/usr/sbin:/usr/bin LC_ALL=C.UTF-8 HOME=/root PYTHONDONTWRITEBYTECODE=1
export PATH LC_ALL HOME PYTHONDONTWRITEBYTECODE
mkdir -p /proc /sys /dev /run /tmp /root /var/tmp /var/lib /var/log
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for folder in /run /tmp /var/tmp; do mount -t tmpfs -o mode=1777 tmpfs $folder; done
chmod 755 /run
mkdir -p /run/lock /run/lvm
ln -sf /proc/self/fd /dev/fd
modprobe -a {modules}
/lib/systemd/systemd-udevd --daemon
udevadm trigger --action=add
udevadm settle --timeout=60
cd '{top}'
echo '{begin}'
sh /job </dev/null 2>&1
echo "{end} $?"
# QEMU ends at that.
echo b >/proc/sysrq-trigger
"""
Entry = tuple[str, int, bytes, int]


def missing() -> str:
    """Why it cannot be made here, empty if it can."""
    tools = [tool for tool in ("dpkg", "dpkg-query", "modprobe") if shutil.which(tool) is None]
    if tools:
        return f"not here: {', '.join(tools)}: the laptop's memory is filled from this Debian's packages"
    there = subprocess.run(["dpkg-query", "-W", "-f", "${Package} "], capture_output=True, text=True, check=True).stdout.split()
    absent = [name for name in _PACKAGES if name not in there]
    return f"not installed here: {', '.join(absent)}" if absent else ""


def write_initramfs(path: Path, kernel: Path, job: str) -> None:
    """Write what boots `kernel` into memory, and runs `job` there with sh. The kernel's modules lie beside it."""
    release = kernel.name.removeprefix("vmlinuz-")
    init = _INIT.format(modules=" ".join(_MODULES), top=TOP, begin=BEGIN, end=END)
    ours: list[Entry] = [
        ("dev", stat.S_IFDIR | 0o755, b"", 0),
        ("dev/console", stat.S_IFCHR | 0o600, b"", os.makedev(5, 1)),
        ("init", stat.S_IFREG | 0o755, init.encode(), 0),
        ("job", stat.S_IFREG | 0o644, job.encode(), 0),
    ]
    known: set[str] = {"dev"}
    with path.open("wb") as file:
        file.write(cpio(ours))
        for batch in (_debian(), _python(), _checkout(), _modules(kernel.parents[1], release)):
            file.write(cpio(list(_entries(batch, known))))


def _entries(files: Iterable[tuple[Path, str]], known: set[str]) -> Iterator[Entry]:
    """Files (where they are, what they are called there), each folder before what is in it: the kernel makes none by itself."""
    for source, name in files:
        for parent in reversed(Path(name).parents[:-1]):
            if str(parent) not in known:
                known.add(str(parent))
                yield str(parent), stat.S_IFDIR | 0o755, b"", 0
        mode = source.lstat().st_mode
        if name in known:
            continue
        known.add(name)
        if stat.S_ISLNK(mode):
            yield name, mode, bytes(source.readlink()), 0
        elif stat.S_ISDIR(mode):
            yield name, mode, b"", 0
        elif stat.S_ISREG(mode):
            yield name, mode, source.read_bytes(), 0


def _below(folder: Path) -> Iterator[tuple[Path, str]]:
    """A file, or all of a folder but what is not taken, called as here."""
    yield folder, str(folder).lstrip("/")
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.name not in _NOT_TAKEN and "__mypyc" not in path.name:
            yield from _below(path)


def _debian() -> Iterator[tuple[Path, str]]:
    for name in ("bin", "sbin", "lib", "lib64"):
        if (top := Path("/", name)).is_symlink():
            yield top, name
    yield Path("/usr/bin/sh"), "usr/bin/sh"
    for text in sorted(_said("dpkg", "-L", *_closure(_PACKAGES)).splitlines()):
        path = Path(text)
        if not text.startswith("/usr/share/") and (path.is_symlink() or path.is_file()):
            # Packages may call /usr/bin by its old name, which is a symlink.
            place = path.parent.resolve() / path.name
            yield place, str(place).lstrip("/")
    for name in _SETTINGS:
        if Path("/etc", name).exists():
            yield from _below(Path("/etc", name))


def _closure(names: Iterable[str]) -> list[str]:
    """Installed packages, and all that they depend on."""
    depends: dict[str, list[str]] = {}
    for line in _said("dpkg-query", "-W", "-f", "${Package}\\t${Pre-Depends}, ${Depends}\\n").splitlines():
        name, _, needs = line.partition("\t")
        depends[name] = [word.split()[0].split(":")[0] for each in needs.split(",") for word in each.split("|") if word.strip()]
    found: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        if name in depends and name not in found:
            found.add(name)
            left += depends[name]
    return sorted(found)


def _python() -> Iterator[tuple[Path, str]]:
    """Python, wherever it comes from, with its bytecode, and our virtual environment."""
    library, base = Path(sysconfig.get_path("stdlib")), Path(sys.base_prefix)
    yield library, str(library).lstrip("/")
    for path in sorted(library.iterdir()):
        if path.name not in _NOT_OF_PYTHON and not path.name.startswith("config-"):
            yield from _below(path)
    for path in (*base.glob("bin/python3*"), *base.glob("lib/libpython3*")):
        yield path, str(path).lstrip("/")
    yield from _below(Path(sys.prefix))


def _checkout() -> Iterator[tuple[Path, str]]:
    for name in _OF_CHECKOUT:
        yield from _below(TOP / name)


def _modules(root: Path, release: str) -> Iterator[tuple[Path, str]]:
    folder = root / "lib/modules" / release
    shown = _said("modprobe", "-d", str(root), "-S", release, "-a", "--show-depends", *_MODULES)
    files = [Path(line.split()[1]) for line in shown.splitlines() if line.startswith("insmod ")]
    for path in dict.fromkeys([*files, *folder.glob("modules.*")]):
        yield path, f"usr/lib/modules/{release}/{path.relative_to(folder)}"


def _said(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout
