"""A base proves itself: a lab of one machine is raised from it, looked into, and removed.

The lab is like any other, with a record, a network and a domain that carry our mark, so that the next command knows what an
interruption left: the next proof of the same base removes it, and so does `lab destroy`.
"""

from __future__ import annotations

import hashlib
import shlex
import threading
from collections.abc import Callable
from dataclasses import replace

from pocketcloud.bases.progress import OnProgress
from pocketcloud.bases.refresh import NotProven
from pocketcloud.errors import GuestFailed, NotReady, PartlyDone, Refused
from pocketcloud.events import Event, StepProgress, StepStarted
from pocketcloud.guest import Guest
from pocketcloud.lab.commands import destroy, up
from pocketcloud.lab.workbench import Workbench
from pocketcloud.model.base import Base, Definition
from pocketcloud.model.lab import Attachment, Lab, LabNetwork, Machine, NetworkKind
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import GIB, MIB, Size
from pocketcloud.records import InstanceFiles, read_record

TITLE = "proves a base"
_MACHINE, _NETWORK = Name("machine"), Name("net")
_COMMAND_SECONDS = 120.0
_LOG = 64 * 1024
_MEMORY = {"debian": 512 * MIB}

# One login for all: os-release as shell variables, then what only a first boot can have made.
_LOOK = r"""
set -eu
. /etc/os-release
printf 'id=%s\nversion=%s\npretty=%s\n' "$ID" "${VERSION_ID:-}" "${PRETTY_NAME:-}"
printf 'machine=%s\n' "$(uname -m)"
printf 'machine-id=%s\n' "$(cat /etc/machine-id)"
printf 'failed=%s\n' "$(systemctl --failed --no-legend --plain 2> /dev/null | cut -d ' ' -f 1 | tr '\n' ' ')"
"""


def prove(bench: Workbench, base: Base, definition: Definition, on_progress: OnProgress) -> str:
    """Raise a machine from `base` and see that it is what its definition says: ssh lets us in with the key of the kit, the guest
    agent answers, os-release and the architecture are as wanted, the machine has an id of its own. What was seen, for people.

    Raises NotProven if the machine was not up in time or is not that; what the host lacks is raised as it is.
    """
    instance = instance_name(base)
    own = replace(bench, candidate=base, emit=_telling(on_progress))
    remove_left(own, instance)
    lab = _lab(instance, base, definition)
    try:
        up(own, lab, instance, reconfigure=False, prune=False, confirm=lambda _plan: None)
        seen = _looked(own, instance, base, definition)
    except (NotReady, GuestFailed, PartlyDone) as error:
        raise NotProven(error.message, _console(own, instance)) from error
    finally:
        on_progress("removing the machine that proved it", 0.95)
        _remove(own, instance)
    return seen


def instance_name(base: Base) -> Name:
    """The lab's name: the same for each proof of a base, so that what one left is found by the next."""
    return Name(f"proof-{hashlib.sha256(f'{base.name}.{base.arch}'.encode()).hexdigest()[:10]}")


def remove_left(bench: Workbench, instance: Name) -> None:
    """Remove what an interrupted proof left. Raises Refused if there is a lab of that name that is none of ours."""
    files = InstanceFiles(bench.kit, instance)
    record = read_record(files)
    if record is not None and record.lab.title != TITLE:
        raise Refused(f"lab {instance} is in the way: its name is that of the lab that proves this base", hint="rename the lab")
    _remove(bench, instance)


def _remove(bench: Workbench, instance: Name) -> None:
    if bench.observe(instance, trust_record=False).empty and not bench.files(instance).folder.exists():
        return
    # Also after a Ctrl-C, which stops whatever else the bench is at.
    destroy(replace(bench, stop=threading.Event()), instance, confirm=lambda _plan: None, allow=lambda _names: True)


def _lab(instance: Name, base: Base, definition: Definition) -> Lab:
    machine = Machine(base=base.name, memory=Size(_MEMORY.get(definition.family, GIB)), networks={_NETWORK: Attachment()})
    networks = {_NETWORK: LabNetwork(NetworkKind.ISOLATED)}
    return Lab(lab=instance, machines={_MACHINE: machine}, networks=networks, title=TITLE, arch=base.arch)


def _looked(bench: Workbench, instance: Name, base: Base, definition: Definition) -> str:
    """What the machine says of itself. Raises NotProven with all that is not as it should be."""
    world = bench.world(instance, read_record(InstanceFiles(bench.kit, instance)))
    with Guest.connect(world.login(_MACHINE), timeout=_COMMAND_SECONDS) as guest:
        done = guest.run(f"sh -c {shlex.quote(_LOOK)}", timeout=_COMMAND_SECONDS)
    said = dict(line.partition("=")[::2] for line in done.out.decode(errors="replace").splitlines())
    wrong = [] if done.code == 0 else [f"it could not be looked into: {done.err.decode(errors='replace').strip()[-200:]}"]
    domain = bench.hypervisor.domain(world.domain(_MACHINE))
    if domain is None or not domain.agent:
        wrong.append("its guest agent does not answer")
    wrong += _differences(said, base, definition) if done.code == 0 else []
    if wrong:
        raise NotProven("; ".join(wrong), _console(bench, instance))
    # Told, not judged: a unit may fail for want of something that this machine, and not every machine, is without.
    failed = f"; units that failed: {said['failed'].strip()}" if said["failed"].strip() else ""
    return f"{said.get('pretty') or said['id']}, {said['machine']}: ssh, guest agent{failed}"


def _differences(said: dict[str, str], base: Base, definition: Definition) -> list[str]:
    found = []
    if definition.family and said["id"] != definition.family:
        found.append(f"it calls itself {said['id']!r}, expected {definition.family!r}")
    version = said["version"]
    if definition.version and version != definition.version and not version.startswith(f"{definition.version}."):
        found.append(f"it is version {version!r}, expected {definition.version!r}")
    if said["machine"] != base.arch:
        found.append(f"it is a {said['machine']}, expected {base.arch}")
    if len(said["machine-id"]) != 32:
        found.append("it has no machine-id of its own")
    return found


def _console(bench: Workbench, instance: Name) -> str:
    try:
        with InstanceFiles(bench.kit, instance).console(_MACHINE).open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _LOG))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _telling(on_progress: OnProgress) -> Callable[[Event], None]:
    """The events of the lab as the progress of the proof: a first boot takes most of it."""
    parts = {"volumes": 0.02, "start": 0.05, "ready": 0.1, "clean": 0.85}
    reached = [0.0]

    def emit(event: Event) -> None:
        if isinstance(event, (StepStarted, StepProgress)):
            reached[0] = max(reached[0], parts.get(event.id.partition(".")[0], 0.0))
            on_progress(f"proof: {event.title if isinstance(event, StepStarted) else event.text}", reached[0])

    return emit
