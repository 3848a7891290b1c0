"""What a definition adds to a system that is there (`packages`, `patches`, `post`): done in a throw-away guest, which then seals
itself. Never as the host's root, which definitions of strangers must not get.

For cloud images and for layers. The guest starts from the very disk that is to be changed, with a seed whose user-data runs
`guest/customize.sh` from the seed's own disc; so the system needs cloud-init and its NoCloud source. It reports on the marker
port as installers do, and only `OK` and a clean end count.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from pocketcloud.bases.archives import guest_files
from pocketcloud.bases.definitions import lineage
from pocketcloud.bases.install.logs import keep_logs
from pocketcloud.bases.install.machine import DISPOSABLE, GuestOrder, run_guest
from pocketcloud.bases.install.preflight import check_guest, surroundings
from pocketcloud.bases.install.signs import KERNEL, NO_SPACE, Signs, Stages, any_of, stage
from pocketcloud.bases.install.watching import PORT, Failure, Fault, Watch
from pocketcloud.bases.install.way_out import way_out
from pocketcloud.bases.recipe import Order, plain_http
from pocketcloud.errors import NoSpace, NotReady, PartlyDone, PocketcloudError, UsageError
from pocketcloud.files import sync_file, write_whole
from pocketcloud.guest_packages import SCRIPT as _PACKAGES
from pocketcloud.iso import iso_image
from pocketcloud.model.base import Arch, Definition, Firmware, ImageDefinition
from pocketcloud.model.machine import DiskSpec
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import MIB

RECIPE = 1
"""The version of what this module does beside the scripts in `guest/`: raised when a base would come out differently."""

_PARTS = Path(__file__).resolve().parent / "guest"
_MEMORY = 1536 * MIB
_VCPUS = 2
# What the package managers take as names, versions and groups, and what means nothing to a shell.
_PACKAGE = re.compile(r"@?[A-Za-z0-9][A-Za-z0-9+._:=~@/-]*")
_START = "mkdir -p /run/pocketcloud && mount -o ro /dev/disk/by-label/CIDATA /run/pocketcloud && sh /run/pocketcloud/customize.sh"
_SIGNS = Signs(
    any_of(
        (*KERNEL, r"You are in (emergency|rescue) mode", r"Entering emergency mode", r"Give root password for maintenance",
         r"^\(initramfs\)", r"No bootable device", r"BdsDxe: No bootable option", r"UEFI Interactive Shell")
    ),
    (
        stage(r"pocketcloud: (?P<n>\d+)/(?P<of>\d+) (?P<what>[a-z]+ ?\d*)$", "in a guest: {what}", 0.35, 0.95),
        stage(r"Linux version ", "in a guest: starting the kernel", 0.05),
        stage(r"cloud-init.*running 'init", "in a guest: cloud-init", 0.2),
    ),
)  # fmt: skip


def wanted(definition: Definition) -> bool:
    """Whether there is anything to do."""
    return bool(definition.packages or definition.patches or definition.post)


def parts() -> Iterator[tuple[str, bytes]]:
    """What goes into a base beside the definition: for Recipe.inputs."""
    yield "customize", str(RECIPE).encode()
    for name, content in _scripts().items():
        yield f"guest/{name}", content


def _scripts() -> dict[str, bytes]:
    """The scripts on the seed's disc, by name."""
    found = {path.name: path.read_bytes() for path in _PARTS.glob("*.sh")} | {"packages.sh": _PACKAGES.read_bytes()}
    return dict(sorted(found.items()))


def check(order: Order[Definition]) -> None:
    """Raise UsageError for packages that cannot be meant, HostLacks where no such guest can be run. For Recipe.check."""
    if odd := [name for name in order.definition.packages if not _PACKAGE.fullmatch(name)]:
        raise UsageError(f"base {order.definition.base}: no package is called {odd[0][:100]!r}", hint="correct `packages:`")
    check_guest(order, memory(order.definition))


def memory(definition: Definition) -> int:
    """What the guest has, in bytes."""
    return definition.requires.memory or _MEMORY


def seed_files(definition: Definition, arch: Arch, build: str, proxy: str = "") -> dict[str, bytes]:
    """What is on the seed's disc, by name: NoCloud's files and the scripts. `proxy`: packages come by that and no other way, and
    on a cloud image from where its definition says, which is what the cache has them under."""
    files = {
        "meta-data": _document({"instance-id": f"pocketcloud-{build}"}),
        "user-data": b"#cloud-config\n" + _document(_config()),
        "build": f"OK {build}\n".encode(),
        **_scripts(),
    }
    if definition.packages:
        files["packages"] = "".join(f"{name}\n" for name in definition.packages).encode()
    if proxy:
        files["proxy"] = f"{proxy}\n".encode()
        bottom = lineage(definition)[0]
        files |= guest_files(bottom, arch, plain_http) if isinstance(bottom, ImageDefinition) else {}
    for kind, texts in (("patch", definition.patches), ("post", definition.post)):
        files |= {f"{kind}-{number:03}": f"{text}\n".encode() for number, text in enumerate(texts, start=1)}
    return files


def _config() -> dict[str, object]:
    """The user-data: nothing of the system is to be changed but by the scripts."""
    return {
        "users": [],
        "disable_root": False,
        "preserve_hostname": True,
        "manage_etc_hosts": False,
        "ssh_deletekeys": False,
        "ssh": {"emit_keys_to_console": False},
        "apt": {"preserve_sources_list": True},
        "package_update": False,
        "package_upgrade": False,
        "growpart": {"mode": "auto", "devices": ["/"]},
        "resize_rootfs": True,
        "runcmd": [["sh", "-c", _START]],
    }


def _document(data: object) -> bytes:
    return json.dumps(data, indent=2).encode() + b"\n"


def customize(
    order: Order[Definition],
    disk: Path,
    form: str,
    firmware: Firmware,
    start: float = 0.0,
    end: float = 1.0,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> int:
    """Do what the definition adds on `disk`, in QEMU's format `form`: a file or block device that nobody else has open, and that
    is of no use if this raises. It is sealed and trimmed afterwards, off and flushed. Progress goes from `start` to `end`.
    Returns the bytes that its files took before they were sealed, 0 if it did not tell.

    Its packages come through a NAT network, which a definition without packages does not get; offline from the kit's cache, and
    there is nobody else on its network. Raises PartlyDone with the step that failed and the lines that explain it, NoSpace,
    NotReady, HostLacks; what the guest said is kept in `media/logs`.
    """
    definition, around, build = order.definition, surroundings(order), order.digest[:16]
    folder = order.work / "customize"
    folder.mkdir(mode=0o711)
    seed, purpose = folder / "seed.iso", Name(f"customize-{definition.base}"[:31])
    with ExitStack() as ways:
        way = None
        if definition.packages:
            way = ways.enter_context(way_out(order.supply, around.hypervisor, around.facts, purpose))
        files = seed_files(definition, order.arch, build, way.proxy if way else "")
        write_whole(seed, iso_image("CIDATA", files), 0o600)
        guest = GuestOrder(
            purpose=purpose,
            title=f"customizes base {definition.base}",
            folder=folder,
            arch=order.arch,
            facts=around.facts,
            profile=around.profile,
            memory=memory(definition),
            vcpus=max(1, min(_VCPUS, around.facts.cpus, around.profile.max_vcpus)),
            firmware=firmware,
            disks=(DiskSpec("vda", disk, form, DISPOSABLE), DiskSpec("vdb", seed, "raw", DISPOSABLE, readonly=True)),
            ports=(PORT,),
            network=way.network if way else None,
        )
        order.tell("in a guest: starting it", start)
        watch = Watch(build, _SIGNS, Stages(_SIGNS.stages, order.tell, start, end), around.profile.install)
        failure = watch.failure(run_guest(around.hypervisor, guest, watch))
    if failure is not None:
        raise _explained(order, failure, keep_logs(order.kit, definition.base, order.arch, folder, now(), ()))
    sync_file(disk)
    return watch.used


def _explained(order: Order[Definition], failure: Failure, logs: Path) -> PocketcloudError:
    # By its number: what a step says may be a secret.
    text = f"base {order.definition.base} was not built: in the guest that customizes it, {failure.why}\n"
    text += "".join(f"  {line}\n" for line in failure.lines[-12:]) + f"all that it said is in {logs}"
    if failure.fault is Fault.FULL:
        return NoSpace(text, hint="remove labs or bases that are not needed, or move the kit to a larger disk")
    if failure.fault in (Fault.SILENT, Fault.LATE):
        return NotReady(text, hint="does the system have cloud-init, with its source NoCloud, and a console on the serial port?")
    if NO_SPACE.search("\n".join(failure.lines)):
        return NoSpace(text, hint="give the base a larger `size:` in its definition")
    return PartlyDone(text, hint="nothing half-made is left; correct the definition and run it again")
