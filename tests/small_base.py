"""Small images with a real partition table and real file systems, and a recipe that makes bases of them: what builds, looks and
refreshes in tests does so with these in half a second."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pocketcloud.bases.bootstrap import copy_sparse
from pocketcloud.bases.recipe import Measured, Order
from pocketcloud.model.base import Arch, BootstrapDefinition, Builder, Definition, Firmware, Newest
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import MIB, Size

SEALED: Mapping[str, str] = {
    "/etc/passwd": "root:x:0:0::/root:/bin/sh\n",
    "/etc/shadow": "root:*:20000:0:99999:7:::\ndaemon:!*:20000::::::\n",
    "/etc/machine-id": "",
    "/etc/hostname": "localhost\n",
    "/etc/resolv.conf": "# made by the machine\n",
    "/usr/bin/true": "#!/bin/sh\n" * 1000,
    "/var/log/wtmp": "",
    "/var/lib/dpkg/status": "",
}
"""A system in which nothing is amiss, by path."""

_MKE2FS = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-E", f"offset={3 * MIB}", "-d"]


def small_image(folder: Path, files: Mapping[str, str], *, xfs: bool = False) -> Path:
    """A raw image of 40 MiB (with `xfs` 360) in `folder`: an EFI partition with one file, and a root with these files."""
    tree = folder / "tree"
    for path, text in files.items():
        (tree / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (tree / path.lstrip("/")).write_text(text, encoding="utf-8")
    raw, esp = folder / "small.raw", folder / "esp.img"
    size = 360 if xfs else 40
    table = f"label: gpt\nstart=1MiB, size=2MiB, type=U\nstart=3MiB, size={size - 4}MiB, type=L\n"
    subprocess.run(["truncate", "-s", f"{size}M", raw], check=True)
    subprocess.run(["truncate", "-s", "2M", esp], check=True)
    subprocess.run(["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", raw], input=table, text=True, check=True)
    subprocess.run(["mkfs.vfat", esp], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["mmd", "-i", esp, "::EFI"], check=True)
    subprocess.run(["mcopy", "-i", esp, "-", "::EFI/boot.efi"], input=b"x" * 5000, check=True)
    subprocess.run(["dd", f"if={esp}", f"of={raw}", "bs=1M", "seek=1", "conv=notrunc", "status=none"], check=True)
    if xfs:
        part = folder / "xfs.img"
        subprocess.run(["truncate", "-s", f"{size - 4}M", part], check=True)
        (folder / "prototype").write_text(_prototype(tree), encoding="utf-8")
        subprocess.run(["mkfs.xfs", "-q", "-p", folder / "prototype", part], check=True)
        subprocess.run(["dd", f"if={part}", f"of={raw}", "bs=1M", "seek=3", "conv=notrunc,sparse", "status=none"], check=True)
    else:
        subprocess.run([*_MKE2FS, tree, raw, f"{size - 4}M"], check=True)
    return raw


def _prototype(tree: Path) -> str:
    """The tree as mkfs.xfs(8) takes it."""

    def below(folder: Path) -> Iterator[str]:
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                yield f"{path.name} d--755 0 0"
                yield from below(path)
            else:
                yield f"{path.name} ---644 0 0 {path}"
        yield "$"

    return "\n".join(["/", "0 0", "d--755 0 0", *below(tree)]) + "\n"


FIRST = Newest("1", "2026-01-01T00:00:00+00:00")


@dataclass
class SmallRecipe:
    """A recipe whose images hold `files`; see Recipe. `made` counts them."""

    files: Mapping[str, str] = field(default_factory=lambda: dict(SEALED))
    packages: Newest = FIRST
    made: int = 0

    def inputs(self, definition: Definition, arch: Arch) -> Iterator[tuple[str, bytes]]:
        """See Recipe.inputs."""
        yield "small", f"{definition.base} {arch}".encode()

    def check(self, order: Order[BootstrapDefinition]) -> None:
        """See Recipe.check."""

    def make(self, order: Order[BootstrapDefinition], volume: str) -> str:
        """See Recipe.make."""
        self.made += 1
        folder = order.work / "small"
        folder.mkdir()
        raw = small_image(folder, {**self.files, "/etc/number": str(self.made)})
        order.measured(Measured(10 * MIB, self.packages))
        order.storage.create(volume, raw.stat().st_size, lambda target: copy_sparse(raw, target, lambda _done: None))
        return "a test"

    def firmware(self, definition: Definition, arch: Arch) -> Firmware:  # noqa: ARG002 - the same for all
        """See Recipe.firmware."""
        return Firmware.EFI


def small_definition(name: str = "small", **changes: object) -> BootstrapDefinition:
    """A definition for SmallRecipe."""
    values: dict[str, object] = {
        "base": Name(name),
        "title": "Small",
        "family": "debian",
        "version": "12",
        "builder": Builder.BOOTSTRAP,
        "architectures": tuple(Arch),
        "size": Size(40 * MIB),
        "suite": "bookworm",
        "mirror": "https://example.com/debian",
        "keyring": "/usr/share/keyrings/debian-archive-keyring.gpg",
    }
    return BootstrapDefinition(**(values | changes))  # type: ignore[arg-type] # the fields of the definition
