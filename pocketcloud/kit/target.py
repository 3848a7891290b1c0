"""Which kit `repair` and `erase` are to work on: on a disk, in a file, attached or not, and the nodes of a pulled one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pocketcloud.errors import NotFound, UsageError
from pocketcloud.host import kits as host
from pocketcloud.kit.attached import Places
from pocketcloud.kit.evidence import Target
from pocketcloud.kit.identity import is_group_name
from pocketcloud.kit.loops import put_before, take_away
from pocketcloud.kit.mounts import mounts
from pocketcloud.kit.plugged import Plugged, kit_on, plugged_kits
from pocketcloud.kit.remains import dead_trees
from pocketcloud.model.names import Name
from pocketcloud.storage.devmapper import Node
from pocketcloud.system import Runner


@contextmanager
def opened(what: str | None, places: Places, run: Runner) -> Iterator[Target]:
    """The kit that is meant: by a device, by its file (which gets a loop device for the time), by its name; without anything
    the only one there is. Raises NotFound, NotOurs, UsageError if there are several, Refused as `kit_on` does."""
    path = Path(what) if what and ("/" in what or Path(what).is_block_device()) else None
    if path is None:
        yield _named(what, places, run)
    elif path.is_file():
        file = path.resolve()
        device, _ = put_before(file, run)
        try:
            yield _on(kit_on(device, run))
        finally:
            if not host.above(device.name):
                take_away(device, file, run)
    elif path.exists():
        yield _on(kit_on(path, run))
    else:
        raise NotFound(f"{path}: there is nothing", hint="lsblk shows what is plugged in")


def _on(plugged: Plugged) -> Target:
    group = plugged.group
    return Target(_name(plugged.name, group.name), group.name, group.uuid, plugged.device)


def _name(told: str, vg: str) -> str:
    """The kit's name, which becomes a part of paths: a tag that is none is not taken for one."""
    try:
        return Name.parse(told)
    except ValueError:
        return Name.parse(vg.replace("_", "-"))


def _named(name: str | None, places: Places, run: Runner) -> Target:
    there = [_on(plugged) for plugged in plugged_kits(run)]
    known = {target.uuid.replace("-", "") for target in there}
    dead = {uuid: nodes for uuid, nodes in dead_trees().items() if uuid not in known and is_group_name(_group_of(nodes))}
    there += [_pulled(uuid, nodes, places) for uuid, nodes in dead.items()]
    found = [target for target in there if name in (None, target.name)]
    if len(found) == 1:
        return found[0]
    seen = ", ".join(f"{target.name} on {target.device or 'a disk that was pulled'}" for target in there) or "none"
    if found:
        raise UsageError(f"several kits are here: {seen}", hint="say which, by its device")
    raise NotFound(f"no kit {name or ''} is plugged in; there are: {seen}", hint="a kit in a file is named by its path, with a /")


def _group_of(nodes: tuple[Node, ...]) -> str:
    return host.group_of(nodes[0].name)


def _pulled(uuid: str, nodes: tuple[Node, ...], places: Places) -> Target:
    """A pulled kit tells no tags any more; where it is mounted still, the folder has its name."""
    kernels = {node.kernel for node in nodes}
    points = [
        mount.path.name
        for mount in mounts()
        if mount.path.parent == places.mounts and (host.BY_NUMBER / mount.number).resolve().name in kernels
    ]
    vg = _group_of(nodes)
    return Target(_name(points[0] if points else "", vg), vg, uuid, None)
