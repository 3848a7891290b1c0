"""A stand-in for Anaconda, with an install tree around it: Debian's kernel, and an initramfs of busybox and a script (`init`).

It takes its kickstart from where Anaconda does, does to the disk what that says, says what Anaconda says, and ends as Anaconda
ends, after errors too. What it installs is no system: files that tell what was asked for.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.cpio import cpio
from pocketcloud.host.kernels import module_files
from tests.rig.emulated_laptop import kernel
from tests.web import Web

_MODULES = (
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio_net",
    "crc32c_generic",
    "ext4",
    "vfat",
    "nls_cp437",
    "nls_ascii",
)
# What busybox has not, or not as the scripts of our kickstarts want it.
_PROGRAMS = ("sfdisk", "dash", "find")
_FOLDER, _PROGRAM, _FILE, _NODE = 0o040755, 0o100755, 0o100644, 0o020600


def missing() -> str:
    """Why there can be no stand-in here, empty if there can."""
    absent = [tool for tool in ("busybox", *_PROGRAMS, "apt-get", "dpkg", "qemu-system-x86_64") if shutil.which(tool) is None]
    return f"not here: {', '.join(absent)}" if absent else ""


@dataclass(frozen=True, slots=True)
class Tree:
    """The stand-in's files."""

    kernel: bytes
    initrd: bytes

    def treeinfo(self, arch: str = "x86_64") -> str:
        """What the tree says of itself."""
        sums = {"vmlinuz": self.kernel, "initrd.img": self.initrd}
        lines = [f"images/pxeboot/{name} = sha256:{hashlib.sha256(content).hexdigest()}" for name, content in sums.items()]
        return "\n".join(
            [
                "[checksums]", *lines, "[general]", f"arch = {arch}", "family = Stand-in", "version = 10",
                f"[images-{arch}]", "kernel = images/pxeboot/vmlinuz", "initrd = images/pxeboot/initrd.img", "",
            ]
        )  # fmt: skip

    def lay_out(self, folder: Path) -> None:
        """Write the tree into a folder."""
        (folder / "images/pxeboot").mkdir(parents=True)
        (folder / "images/pxeboot/vmlinuz").write_bytes(self.kernel)
        (folder / "images/pxeboot/initrd.img").write_bytes(self.initrd)
        (folder / ".treeinfo").write_text(self.treeinfo())

    def serve(self, web: Web, place: str = "/tree") -> str:
        """Put the tree on a server, and return its URL."""
        web.put(f"{place}/images/pxeboot/vmlinuz", self.kernel)
        web.put(f"{place}/images/pxeboot/initrd.img", self.initrd)
        web.put(f"{place}/.treeinfo", self.treeinfo().encode(), kind="text/plain")
        return web.url(place)


def tree() -> Tree:
    """The stand-in, made from what is on this host; Debian's kernel is fetched once."""
    image = kernel()
    return Tree(image.read_bytes(), initramfs(image))


def initramfs(image: Path) -> bytes:
    """Its initramfs: busybox, sfdisk with its libraries, the kernel's modules, and the script."""
    release = image.name.removeprefix("vmlinuz-")
    modules: dict[str, bytes] = {}
    for name in _MODULES:
        for file in module_files(image.parents[1], release, name) or ():
            modules.setdefault(file.name, file.read_bytes())
    files: dict[str, tuple[int, bytes]] = {
        "init": (_PROGRAM, Path(__file__).with_name("init").read_bytes()),
        "bin/busybox": (_PROGRAM, Path(shutil.which("busybox") or "").read_bytes()),
        "modules/order": (_FILE, "".join(f"{name}\n" for name in modules).encode()),
        **{f"modules/{name}": (_FILE, content) for name, content in modules.items()},
    }
    for name in _PROGRAMS:
        program = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") or ""
        for path, source in [(f"usr/bin/{name}", program), *((library.lstrip("/"), library) for library in _libraries(program))]:
            files[path] = (_PROGRAM, Path(source).read_bytes())
    folders = sorted(
        {str(parent) for name in files for parent in Path(name).parents if str(parent) != "."} | {"dev", "proc", "sys"}
    )
    entries = [(name, _FOLDER, b"", 0) for name in folders]
    entries.append(("dev/console", _NODE, b"", 0x501))
    return cpio([*entries, *((name, mode, content, 0) for name, (mode, content) in files.items())])


def _libraries(program: str) -> list[str]:
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return [match[1] for match in re.finditer(r"(?:=> |^\s+)(/\S+) \(", said, re.M)]
