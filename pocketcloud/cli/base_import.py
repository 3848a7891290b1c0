"""`pocketcloud base import`: a disk image of any origin becomes a base."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from pocketcloud.cli.base_life import holding
from pocketcloud.cli.options import arch_option, instance_name, kit_option, open_kit, progress_options, require_root, wanted_arch
from pocketcloud.cli.view import open_view
from pocketcloud.errors import UsageError

_FILE = click.Path(path_type=Path)


@click.command("import")
@click.argument("name")
@click.argument("file", type=_FILE)
@arch_option
@click.option(
    "--firmware", type=click.Choice(["efi", "bios"]), help="What starts it; left out: UEFI if it has an EFI system partition."
)
@click.option("--sha256", metavar="HEX", default="", help="The checksum that the file must have.")
@click.option("--signature", metavar="FILE", type=_FILE, help="A detached OpenPGP signature of the file.")
@click.option("--keyring", metavar="FILE", type=_FILE, help="The keys that may have signed it.")
@click.option("--title", metavar="TEXT", default="", help="A line that tells people what it is.")
@kit_option
@progress_options
def import_base(
    name: str,
    file: Path,
    arch: str | None,
    firmware: str | None,
    sha256: str,
    signature: Path | None,
    keyring: Path | None,
    title: str,
    kit_name: str | None,
    progress: str,
    verbose: int,
) -> None:
    """Make the base NAME of a disk image: qcow2, raw, VMDK, VDI or VHDX, packed (xz, gzip, zstd) or in an OVA. It is taken as it
    is; the file is not changed. The same file again: nothing is done."""
    from pocketcloud.bases.importing import Import, import_image
    from pocketcloud.events import StepProgress
    from pocketcloud.model.base import Arch, Download, Firmware
    from pocketcloud.model.sizes import duration_text, size_text
    from pocketcloud.storage import open_storage

    kind = Arch(wanted_arch(arch))
    try:
        image = Download(file=_absolute(file), sha256=sha256.lower(), signature=_absolute(signature), keyring=_absolute(keyring))
    except ValueError as error:
        raise UsageError(str(error).replace("`keyring:`", "--keyring"), hint="pocketcloud base import --help") from None
    require_root("keep a base where QEMU can read it")
    wanted = Import(instance_name(name), kind, image, Firmware(firmware) if firmware else None, title)
    kit = open_kit(kit_name, make=True)
    storage = open_storage(kit)
    started = time.monotonic()
    view = open_view(progress, verbose)
    try:
        with holding(kit, [name], f"pocketcloud base import {name}", view):
            built = import_image(kit, storage, wanted, lambda text, done: view.emit(StepProgress(f"base {name}", done, text)))
    finally:
        view.close()
    if not built.fresh:
        click.echo(f"Base {name} ({kind}) is this image already, since {built.base.built}: nothing to do.")
        return
    volume = next(volume for volume in storage.volumes() if volume.name == built.base.volume)
    took = duration_text(time.monotonic() - started)
    click.echo(f"Base {name} ({kind}) is imported in {took}: {size_text(volume.size)}, started by {built.base.firmware}.")
    for before in built.base.earlier:
        click.echo(f"The one built {before.built[:10]} is kept: pocketcloud base rollback {name}.")


def _absolute(path: Path | None) -> str:
    return os.path.abspath(path) if path else ""  # noqa: PTH100 - unlike resolve() it leaves links, whose names are the user's
