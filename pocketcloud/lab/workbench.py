"""What every lab command works with: the kit, its store, libvirt, the host's facts and the profile they lead to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from ipaddress import IPv4Network
from pathlib import Path

from pocketcloud import __version__
from pocketcloud.apply.world import World
from pocketcloud.bases import definitions
from pocketcloud.bases import records as base_records
from pocketcloud.bases.builder import sweep_unnamed
from pocketcloud.bases.cpu import lacking
from pocketcloud.cache.process import Servers
from pocketcloud.check import nesting
from pocketcloud.disk_space import spare
from pocketcloud.errors import HostLacks, PocketcloudError, Refused
from pocketcloud.events import Event, Note
from pocketcloud.host import firmware
from pocketcloud.host.bridges import read_free
from pocketcloud.host.computer import read_computer, read_processor
from pocketcloud.host.hardware import read_cpu_flags
from pocketcloud.host.packages import install_words
from pocketcloud.hypervisor import Hypervisor
from pocketcloud.keys import KeyPair, kit_key
from pocketcloud.kit.attached import Places
from pocketcloud.kit.device import CONTENT_FOLDER
from pocketcloud.lab.caching import ServedLab, has_cache
from pocketcloud.locks import held, whole_kit
from pocketcloud.memory_fit import COMPUTER, LIBVIRT, PROCESSOR, QEMU
from pocketcloud.model.base import Arch, Base, CpuLevel
from pocketcloud.model.facts import Facts, Subnet
from pocketcloud.model.inventory import Inventory
from pocketcloud.model.kit import Kit
from pocketcloud.model.lab import Lab
from pocketcloud.model.profile import Profile
from pocketcloud.model.record import Record
from pocketcloud.observe import Sight, observe, taken_subnets
from pocketcloud.plan.demands import Lack
from pocketcloud.plan.drafting import Ground
from pocketcloud.profiles import Shape, memory_for_labs, memory_needed, shape
from pocketcloud.records import InstanceFiles, instances, read_record, sweep_states, sweep_unfinished
from pocketcloud.storage import Storage
from pocketcloud.subnets import supernet


@dataclass
class Workbench:
    """One kit on one host. `now` gives ISO 8601 text in UTC; `command` is what the user typed, for those who wait for us;
    `offline`: labs use nothing but the kit's cache; `warm`: the state `clean` of labs that are brought up is taken with memory;
    `cold`: machines are not woken from it."""

    places: Places
    kit: Kit
    storage: Storage
    hypervisor: Hypervisor
    facts: Facts
    profile: Profile
    authorized: tuple[str, ...]
    now: Callable[[], str]
    emit: Callable[[Event], None]
    command: str
    wait: bool = True
    stop: threading.Event = field(default_factory=threading.Event)
    offline: bool = False
    warm: bool = False
    cold: bool = False
    candidate: Base | None = None
    """A base that no record names yet, which stands for that of its name: for the machine that is to prove it."""

    @property
    def arch(self) -> Arch:
        """The host's architecture. Raises HostLacks on one that pocketcloud does not know."""
        if self.facts.arch is None:
            raise HostLacks(f"this host is a {self.facts.machine}; pocketcloud runs on {', '.join(Arch)}")
        return self.facts.arch

    def bases(self, arch: Arch) -> dict[str, Base]:
        """The kit's bases for an architecture, by name."""
        return {base.name: base for base in self._all_bases() if base.arch is arch}

    def _all_bases(self) -> tuple[Base, ...]:
        built = base_records.built(self.kit)
        return built if self.candidate is None else (*built, self.candidate)

    def files(self, instance: str) -> InstanceFiles:
        """Where an instance's files lie."""
        return InstanceFiles(self.kit, instance)

    @contextmanager
    def lock(self, instance: str) -> Iterator[None]:
        """Hold the instance for this command; another command on it is waited for, or refused with `wait` off."""
        with (
            self._held(whole_kit(self.kit.id), shared=True),
            self._held(f"{self.kit.id}.{instance}"),
        ):
            self._sweep(instance)
            yield
            self._sweep(instance)

    def _held(self, name: str, *, shared: bool = False) -> AbstractContextManager[None]:
        say, stop = self._say_waiting, self.stop
        return held(self.places.locks, name, self.command, wait=self.wait, on_wait=say, stop=stop, shared=shared)

    def _sweep(self, instance: str) -> None:
        files = self.files(instance)
        sweep_unfinished(files)
        with suppress(Refused):  # nobody knows what a damaged record names
            if record := read_record(files):
                sweep_states(files, record)

    @property
    def servers(self) -> Servers:
        """The servers of the kit's cache."""
        return Servers(self.kit, self.places.run / "cache")

    @cached_property
    def served(self) -> bool:
        """Whether labs are served from the kit's cache."""
        return self.offline and has_cache(self.kit)

    def sweep_bases(self) -> None:
        """Remove older bases that nothing stands on any more. What keeps that from being done is no fault of the command that was
        asked for: the next one tries again."""

        def hold(name: str) -> AbstractContextManager[None]:
            return held(self.places.locks, f"{self.kit.id}.base.{name}", self.command, wait=False)

        kit = held(self.places.locks, whole_kit(self.kit.id), self.command, wait=False, shared=True)
        with suppress(PocketcloudError), kit:
            sweep_unnamed(self.kit, self.storage, hold)

    def allocation(self) -> AbstractContextManager[None]:
        """Hold the host's subnets, from looking which are free to having recorded which are taken."""
        return held(self.places.locks, "subnets", self.command, wait=True, stop=self.stop)

    def _say_waiting(self, holder: str) -> None:
        self.emit(Note(f"waiting for {holder} to end (--no-wait fails instead)", warn=True))

    def look(self) -> Sight:
        """One look at the store and at libvirt, for `observe` and `ground` of several instances."""
        return Sight(self.kit, self.storage, self.hypervisor)

    def observe(
        self, instance: str, lab: Lab | None = None, *, trust_record: bool = True, sight: Sight | None = None
    ) -> Inventory:
        """What there is of an instance, with the bases that `lab` may be made from, or else the recorded one; as of `sight`, or
        else as it is now."""
        have = observe(self.files(instance), sight or self.look(), {}, trust_record=trust_record)
        wanted = lab or (have.record.lab if have.record else None)
        return replace(have, bases=self.bases(wanted.arch_on(self.arch) if wanted else self.arch))

    def ground(self, have: Inventory, instance: str, lab: Lab | None = None, *, sight: Sight | None = None) -> Ground:
        """What the host and the kit can give an instance of `lab`, or of the recorded one; as of `sight`, or else now."""
        sight = sight or self.look()
        wanted = lab or (have.record.lab if have.record else None)
        arch = wanted.arch_on(self.arch) if wanted else self.arch
        others: dict[str, list[Arch]] = {}
        for base in self._all_bases():
            if base.arch is not arch:
                others.setdefault(base.name, []).append(base.arch)
        running = [d.memory for d in sight.domains if d.active]
        taken = (*taken_subnets(self.facts.subnets, sight, have), *self._recorded_subnets(instance))
        return Ground(
            kit=self.kit.name,
            arch=arch,
            profile=self.profile,
            memory=memory_for_labs(self.facts, self.profile, memory_needed(self.profile, running)),
            space=sight.free,
            taken=taken,
            supernet=supernet(self.facts),
            now=self.now(),
            made_with=__version__,
            spares=self.kit.manifest.storage == "lvm",
            cache=self.served,
            online=not self.offline,
            buildable=frozenset(definitions.names()),
            other_bases=others,
            bridges=read_free(Path("/")),
            kit_id=self.kit.id,
            cpu_lacks=self._cpu_lacks(arch),
            no_nesting=self._no_nesting(arch),
            cold=self.cold,
            svm="svm" in read_cpu_flags(Path("/")),
            no_secure_boot=self._no_secure_boot(arch),
            memory_space=spare(self.kit.path / CONTENT_FOLDER) if self.kit.vg else None,
        )

    def _cpu_lacks(self, arch: Arch) -> dict[CpuLevel, str]:
        """What machines lack here of the levels of processors that the kit's bases need."""
        levels = {base.cpu for base in self._all_bases() if base.cpu and base.arch is arch}
        if not levels:
            return {}  # the usual case, which shall not wait for libvirt's capabilities
        try:
            shaped = shape(self.profile, self.facts, arch)
        except HostLacks:  # told with its reason when a machine is defined
            return {}
        flags, qemu = read_cpu_flags(Path("/")), self.hypervisor.facts().qemu
        return {level: text for level in levels if (text := lacking(level, arch, shaped, flags, qemu))}

    def _no_nesting(self, arch: Arch) -> Lack | None:
        """Why machines in machines have no KVM here."""
        try:
            return nesting.lacking(nesting.Host(self.facts, Path("/")), shape(self.profile, self.facts, arch))
        except HostLacks:  # told with its reason when a machine is defined
            return None

    def _no_secure_boot(self, arch: Arch) -> Lack | None:
        """Why machines of that architecture have no firmware here that starts signed programs alone."""
        if arch is not Arch.X86_64:
            # Only x86's firmware keeps its keys from the guest by system management mode, and libvirt knew no other until 12.1.
            return Lack(f"libvirt has it for x86_64 only, and these machines are {arch}", f"say `arch: {Arch.X86_64}`")
        if firmware.described(Path("/"), arch, firmware.SECURE):
            return None
        folders = " or ".join(f"/{folder}" for folder in firmware.FOLDERS)
        words = install_words(self.facts.distribution, self.facts.machine, ["firmware"])
        lacks = f"no UEFI firmware for {arch} with enrolled keys is described in {folders}"
        return Lack(lacks, " ".join(words) if words else "install your distribution's package of OVMF")

    def _recorded_subnets(self, but: str) -> tuple[Subnet, ...]:
        """The subnets that other labs of this kit keep, up or down. Read leniently: a damaged record keeps nothing."""
        kept: list[Subnet] = []
        for name in instances(self.kit):
            if name != but:
                with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                    networks = json.loads(self.files(name).record.read_text())["networks"]
                    kept += [
                        Subnet(IPv4Network(network["subnet"]), f"lab {name}")
                        for network in networks.values()
                        if network.get("subnet")
                    ]
        return tuple(kept)

    @cached_property
    def kit_key(self) -> KeyPair:
        """The kit's ssh key."""
        return kit_key(self.kit.path)

    def shape(self, arch: Arch) -> Shape:
        """How a machine of that architecture runs here."""
        return shape(self.profile, self.facts, arch)

    @cached_property
    def _here(self) -> Mapping[str, str]:
        """What saved memory is bound to of this host."""
        root, libvirt = Path("/"), self.hypervisor.facts()
        return {
            COMPUTER: read_computer(root),
            PROCESSOR: read_processor(root),
            QEMU: libvirt.qemu,
            LIBVIRT: libvirt.libvirt,
        }

    def world(self, instance: str, record: Record | None, emit: Callable[[Event], None] | None = None) -> World:
        """The surroundings in which a plan for the instance is applied; `emit` left out: the bench's."""
        return World(
            files=self.files(instance),
            storage=self.storage,
            hypervisor=self.hypervisor,
            profile=self.profile,
            shape=self.shape,
            kit_key=lambda: self.kit_key,
            authorized=self.authorized,
            now=self.now,
            emit=emit or self.emit,
            near=lambda: tuple(taken.network for taken in (*self.facts.subnets, *self.hypervisor.subnets())),
            record=record,
            stop=self.stop,
            cache=ServedLab(self.servers, self.kit, instance) if self.served else None,
            here=lambda: self._here,
        )
