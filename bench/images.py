"""Importing a cloud image, against verifying and converting the same file by hand: `sha256sum`, then `qemu-img convert`."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from pathlib import Path

from bench.measure import Row, command, interleaved, seconds

GIB, MIB = 1 << 30, 1 << 20
_DISK = 10 * GIB
_SMALLEST = GIB


def cloud_image(folder: Path) -> Path:
    """A compressed qcow2 image of more than 1 GiB, of a disk of 10 GiB: incompressible and compressible content, and holes, in
    pieces as file systems leave them."""
    raw, image = folder / "disk.raw", folder / "cloud.qcow2"
    source = random.Random(5)  # noqa: S311 - content for a measurement
    with raw.open("wb") as file:
        file.truncate(_DISK)
        for number in range(350):
            file.seek(number * 28 * MIB)
            file.write(source.randbytes(3 * MIB + 256 * 1024))
            file.write((b"line %d of a file that compresses well\n" % number) * 26000)
        file.seek(510)
        file.write(b"\x55\xaa")
    command("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", str(raw), str(image))
    raw.unlink()
    if image.stat().st_size < _SMALLEST:
        raise RuntimeError(f"the image has {image.stat().st_size} bytes, and was to have 1 GiB at least")
    return image


def import_rows(pocketcloud: str, rounds: int) -> list[Row]:
    """Each import goes into a new kit, and is on the disk when it is done; what is converted by hand need not be."""
    with tempfile.TemporaryDirectory(prefix="pocketcloud-bench-", dir="/var/tmp") as name:
        room = Path(name)
        room.chmod(0o755)
        image, kit, copy = cloud_image(room), room / "kit", room / "copy.qcow2"
        os.environ |= {"POCKETCLOUD_DEFAULT_KIT": str(kit), "POCKETCLOUD_RUN_DIR": str(room / "run")}

        def ours() -> float:
            shutil.rmtree(kit, ignore_errors=True)
            command("sync", str(room))
            return seconds(lambda: command(pocketcloud, "base", "import", "cloud", str(image), "--progress", "none"))

        def by_hand() -> float:
            copy.unlink(missing_ok=True)
            command("sync", str(room))
            script = 'sha256sum "$1" && qemu-img convert -f qcow2 -O qcow2 "$1" "$2"'
            return seconds(lambda: command("sh", "-c", script, "sh", str(image), str(copy)))

        command("sha256sum", str(image))  # in memory for both
        us, peer = interleaved(rounds, ours, by_hand)
        size = f"{image.stat().st_size / GIB:.1f} GiB"
    return [Row(f"base import of a cloud image, {size}", us, peer, 1.3, "sha256sum, qemu-img convert")]
