"""What must be there before an installer is started; everything that is missing is said at once, before anything is fetched."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pocketcloud import profiles
from pocketcloud.bases.cpu import lacking
from pocketcloud.bases.install.medium import Found
from pocketcloud.bases.recipe import Order
from pocketcloud.errors import HostLacks, NoSpace, NotFound, PocketcloudError, Refused, UsageError
from pocketcloud.host import read_facts
from pocketcloud.host.hardware import read_cpu_flags
from pocketcloud.hypervisor import Hypervisor
from pocketcloud.model.base import Definition, InstallDefinition
from pocketcloud.model.facts import Facts
from pocketcloud.model.profile import Profile
from pocketcloud.model.sizes import GIB, MIB, size_text

# Estimates, on the safe side: a minimal Fedora or Enterprise Linux takes 1.6 GiB. A folder of images has it twice for a moment,
# as it came and packed.
_INSTALLED = int(2.2 * GIB)
_MEDIA = 300 * MIB
_DISC = 4 * GIB


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an installer's machine is made by."""

    hypervisor: Hypervisor
    facts: Facts
    profile: Profile


@dataclass(frozen=True, slots=True)
class _Missing:
    text: str
    hint: str
    kind: type[PocketcloudError]


def surroundings(order: Order[Definition]) -> Surroundings:
    """The host and its hypervisor. Raises HostLacks without one."""
    facts = read_facts(order.here.root, run=order.run)
    return Surroundings(order.hypervisor(), facts, order.here.profile or profiles.choose(facts))


def check(order: Order[InstallDefinition], memory: int, found: Callable[[], Found], answer: Callable[[], object]) -> None:
    """Raise with all that is missing: HostLacks, or NoSpace if it is only that; one thing alone as what it is. `memory` is the
    machine's, in bytes; `found` looks for the medium and `answer` renders the answer file: what they raise is missing, too."""
    _say([*_host(order, memory), *_tried(answer), *_space(order), *_tried(found)], order)


def check_guest(order: Order[Definition], memory: int) -> None:
    """Raise with all that keeps a throw-away guest with that much memory from being started here, as `check` does."""
    _say(list(_host(order, memory)), order)


def _say(missing: Sequence[_Missing], order: Order[Definition]) -> None:
    if not missing:
        return
    what = f"base {order.definition.base} ({order.arch}) cannot be built here: "
    kinds = {each.kind for each in missing}
    kind = kinds.pop() if len(kinds) == 1 else HostLacks
    hint = "; ".join(dict.fromkeys(each.hint for each in missing if each.hint))
    raise kind(what + "; ".join(each.text for each in missing), hint=hint)


def _tried(asked: Callable[[], object]) -> Iterator[_Missing]:
    try:
        asked()
    except PocketcloudError as error:
        # Some kinds of errors have arguments of their own (BadDocument).
        kind = next((each for each in (UsageError, NotFound, NoSpace, Refused) if isinstance(error, each)), HostLacks)
        yield _Missing(error.message, error.hint, kind)


def _host(order: Order[Definition], memory: int) -> Iterator[_Missing]:
    if not order.here.privileged:
        yield _Missing("it takes root, to start a machine and to keep its disk", "run it with sudo", HostLacks)
    try:
        around = surroundings(order)
        shape = profiles.shape(around.profile, around.facts, order.arch)
        daemon = around.hypervisor.facts()
        domains = around.hypervisor.domains()
    except PocketcloudError as error:
        yield _Missing(error.message, error.hint, HostLacks)
        return
    if order.arch not in (*daemon.emulated, *daemon.kvm):
        yield _Missing(f"QEMU for {order.arch} is not installed", "pocketcloud check names its package", HostLacks)
    level, flags = order.definition.requires.cpu, read_cpu_flags(order.here.root)
    if text := lacking(level, order.arch, shape, flags, daemon.qemu):
        yield _Missing(text, "take another base, or a computer with a newer processor", HostLacks)
    running = profiles.memory_needed(around.profile, [domain.memory for domain in domains if domain.active])
    free, needed = profiles.memory_for_labs(around.facts, around.profile, running), around.profile.machine_overhead + memory
    if free < needed:
        text = f"the machine for it takes {size_text(needed)} of memory, {size_text(free)} are free for it"
        yield _Missing(text, "take labs down (pocketcloud lab down), or build it on another computer and import it", NoSpace)


def _space(order: Order[InstallDefinition]) -> Iterator[_Missing]:
    hint = "remove labs or bases that are not needed, or move the kit to a larger disk"
    media = order.kit.path / "media"
    needed = _MEDIA + (_DISC if order.arch in order.definition.media else 0)
    free = shutil.disk_usage(media).free
    if free < needed:
        yield _Missing(f"{size_text(free)} are free in {media}, the installer takes {size_text(needed)}", hint, NoSpace)
    stored = _INSTALLED * (2 if order.kit.manifest.storage == "qcow2" else 1)
    left = order.storage.usage().free
    if left < stored:
        yield _Missing(f"{size_text(left)} are free in the kit's store, it takes {size_text(stored)}", hint, NoSpace)
