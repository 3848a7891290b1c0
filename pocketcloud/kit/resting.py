"""Trims the disks of machines that do not run, each in a throw-away guest: virt-sparsify(1) of libguestfs boots a small one,
mounts the disk's file systems there and has them trimmed. The host's own kernel never mounts what a guest has written.

Only what is no snapshot, and whose memory is not saved anywhere, is touched: a restored memory would not know its disk again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from pocketcloud.errors import Busy, NotFound, PocketcloudError
from pocketcloud.hypervisor import Domain, Hypervisor
from pocketcloud.kit.links import Link, LinkState
from pocketcloud.locks import held
from pocketcloud.model.kit import Kit
from pocketcloud.records import InstanceFiles
from pocketcloud.storage import Storage
from pocketcloud.system import CommandFailed, Runner, which

_TOOL = "virt-sparsify"
_LACKING = f"install guestfs-tools, which has {_TOOL}, or start them (pocketcloud lab up); then trim again"
# A guest of libguestfs without KVM needs half a minute to start; a large file system on a slow disk takes its time.
_WITHIN = 1800.0


def trim_resting(
    kit: Kit,
    hypervisor: Hypervisor,
    storage: Storage,
    locks: Path,
    run: Runner,
    *,
    emulated: bool,
    progress: Callable[[float, str], None],
) -> Link:
    """Trim the disks of those of the kit's machines that are off; `emulated` where KVM is of no use here. `progress` is told
    of each machine, with the part that is done. What cannot be trimmed is told of in the link."""
    resting = [domain for domain in hypervisor.domains(kit.id) if not domain.active]
    if not resting:
        return Link("stopped machines", LinkState.LEFT_OUT, "there are none")
    if which(_TOOL) is None:
        names = ", ".join(_title(domain) for domain in resting)
        return Link("stopped machines", LinkState.LEFT_OUT, f"{names}: {_TOOL} is not installed", _LACKING)
    done: list[str] = []
    left: list[str] = []
    for number, domain in enumerate(resting):
        progress(number / len(resting), _title(domain))
        try:
            _trim(kit, domain, hypervisor, storage, locks, run, emulated=emulated)
            done.append(_title(domain))
        except PocketcloudError as error:
            left.append(f"{_title(domain)} ({_reason(error)})")
    parts = [f"{len(done)} trimmed in a guest of its own"] if done else []
    parts += [f"not trimmed: {', '.join(left)}"] if left else []
    state = LinkState.PASSED if not left else LinkState.IN_PART if done else LinkState.LEFT_OUT
    return Link("stopped machines", state, "; ".join(parts))


def _title(domain: Domain) -> str:
    return f"{domain.mark.instance}.{domain.mark.part}"


def _trim(kit: Kit, seen: Domain, hypervisor: Hypervisor, storage: Storage, locks: Path, run: Runner, *, emulated: bool) -> None:
    instance = seen.mark.instance
    # No command may start the machine meanwhile, or clone its disk; one that is at work is not waited for.
    with held(locks, f"{kit.id}.{instance}", "pocketcloud kit trim", wait=False):
        # What was seen before may be old: the machine before this one took its time.
        domain = hypervisor.domain(seen.name)
        if domain is None or domain.active:
            raise Busy("it is not off any more")
        live = {volume.path: volume for volume in storage.volumes() if not volume.sealed and not volume.spare}
        if domain.saved or InstanceFiles(kit, instance).memories():
            raise Busy("its memory is saved, and belongs to its disks as they are")
        volumes = [live[path] for path in domain.disks.values() if path in live]
        if not volumes:
            raise NotFound("none of its disks is one of this kit")
        storage.activate(*(volume.name for volume in volumes))
        for volume in volumes:
            run(
                [_TOOL, "--quiet", "--in-place", "--format", volume.format, volume.path],
                env=_environment(emulated=emulated),
                timeout=_WITHIN,
            )


def _environment(*, emulated: bool) -> dict[str, str]:
    """libguestfs(3): QEMU started by itself, as its libvirt backend may not open a kit's volumes. What it caches (some 700 MiB,
    made of the host's own packages) stays on the host, in its own place or the user's: a kit that is full has no room for it."""
    own = {name: os.environ[name] for name in ("LIBGUESTFS_CACHEDIR", "LIBGUESTFS_TMPDIR") if name in os.environ}
    settings = {"LIBGUESTFS_BACKEND": "direct", **own}
    return settings | ({"LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"} if emulated else {})


def _reason(error: PocketcloudError) -> str:
    if not isinstance(error, CommandFailed):
        return error.message
    told = [line.partition("error: ")[2] for line in _lines(error) if "error: " in line]
    return told[0] if told else error.message.splitlines()[0]


def _lines(error: CommandFailed) -> Iterable[str]:
    return error.completed.err.splitlines()
