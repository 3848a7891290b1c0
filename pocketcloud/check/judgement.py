"""What a check is made of: the judgement it ends in, and what it may look at. The groups of checks have a module each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pocketcloud.check.fixes import Action, Command, lines
from pocketcloud.check.waiting import Asked
from pocketcloud.errors import HostLacks, PocketcloudError
from pocketcloud.host.disks import read_block_devices
from pocketcloud.host.packages import has_no_lists, install_words
from pocketcloud.hypervisor import Hypervisor, HypervisorFacts
from pocketcloud.model.base import Arch
from pocketcloud.model.disk import BlockDevice, BlockDevices, Measured
from pocketcloud.model.facts import Facts, KvmState, Subnet
from pocketcloud.model.inventory import LibvirtNetwork
from pocketcloud.model.judgement import State
from pocketcloud.model.kit import Kit
from pocketcloud.model.lab import Lab
from pocketcloud.model.profile import Profile
from pocketcloud.profiles import choose
from pocketcloud.system import Runner

PATIENCE = 30.0
"""Seconds; a daemon that just started asks each emulator what it can do, which takes a small board ten."""


@dataclass(frozen=True, slots=True)
class Check:
    """One judgement over the host.

    `id` is a stable name (`kvm`), unique over all groups; `evidence` says what was read or run and what it said; `why` says
    in one sentence why it matters; `remedy` holds command lines for this distribution, to be run as root, or a sentence
    starting with a capital where no command does it; empty where nothing is to be done. `fix` is what `check --fix` would do,
    empty where it cannot. `measured` are the figures of a disk's speed.
    """

    id: str
    group: str
    state: State
    evidence: str
    why: str
    remedy: tuple[str, ...] = ()
    fix: tuple[Action, ...] = ()
    measured: Measured | None = None

    @property
    def told(self) -> dict[str, object]:
        """The check as JSON has it."""
        words = {name: getattr(self, name) for name in ("id", "group", "state", "evidence", "why", "remedy")}
        figures = {"figures": self.measured.told} if self.measured else {}
        return {**words, "fixable": bool(self.fix), **figures}


@dataclass(frozen=True, slots=True)
class Daemon:
    """libvirt's daemon as it answered: its facts, its networks' subnets, the features of the processor that it gives
    machines under KVM (None: not known), and those of its networks that are labs'; `failure` where it did not answer, `silent`
    where it took the question."""

    facts: HypervisorFacts | None
    subnets: tuple[Subnet, ...] = ()
    cpu_features: frozenset[str] | None = None
    networks: tuple[LibvirtNetwork, ...] = ()
    failure: PocketcloudError | None = None
    silent: bool = False


def _cpu_features(connection: Hypervisor) -> frozenset[str] | None:
    try:
        return connection.cpu_features(Arch.X86_64)
    except PocketcloudError:
        return None


@dataclass(frozen=True)
class Surroundings:
    """What checks may look at. `root` is where the host's files lie, `find` gives the path of a command or None, `profile`
    was named by hand (None: chosen from the facts). `devices` are the disks asked for (none: all), `measure` reads a
    disk for some seconds (None: nothing is measured; its errors become judgements); `lab` is the one that is to fit. `patience`
    is how many seconds libvirt may take to answer; `kit` is the attached kit at `kit_path` (None: there is none yet)."""

    facts: Facts
    kit_path: Path
    run: Runner
    hypervisor: Callable[[], Hypervisor]
    root: Path
    find: Callable[[str], Path | None]
    named: Profile | None = field(default=None)
    devices: tuple[Path, ...] = ()
    measure: Callable[[BlockDevice], Measured | None] | None = None
    lab: Lab | None = None
    patience: float = PATIENCE
    kit: Kit | None = None

    @functools.cached_property
    def disks(self) -> BlockDevices:
        """The host's block devices, read once for all checks. Raises HostLacks, CommandFailed (see read_block_devices)."""
        return read_block_devices(self.root, self.run)

    @functools.cached_property
    def daemon(self) -> Daemon:
        """libvirt's daemon, asked once for all checks."""

        def question() -> Daemon:
            connection = self.hypervisor()
            asked = self.facts.kvm.state is KvmState.USABLE and self.facts.arch is Arch.X86_64
            features = _cpu_features(connection) if asked else None
            return Daemon(connection.facts(), connection.subnets(), features, connection.networks())

        try:
            return Asked(question).answer(self.patience)
        except PocketcloudError as failure:
            return Daemon(None, failure=failure)
        except TimeoutError:
            words = f"libvirt's daemon takes connections, but did not answer within {self.patience:.0f} s"
            return Daemon(None, failure=HostLacks(words), silent=True)

    @functools.cached_property
    def profile(self) -> Profile | None:
        """The profile labs are run by here, None on a host that none is meant for."""
        try:
            return self.named or choose(self.facts)
        except HostLacks:
            return None

    def installing(self, *capabilities: str) -> tuple[Action, ...]:
        """What installs that which brings these capabilities (rows of packages.tsv); empty where no package names are known."""
        words = install_words(self.facts.distribution, self.facts.machine, capabilities)
        if not words:
            return ()
        # New computers and containers have no lists of packages yet, and apt then knows of none; dnf fetches its own.
        listless = words[0] == "apt-get" and has_no_lists(self.root)
        return (*((Command(("apt-get", "update")),) if listless else ()), Command(words))

    def install(self, *capabilities: str) -> tuple[str, ...]:
        """The remedy that installs what brings these capabilities on this distribution."""
        known = lines(self.installing(*capabilities))
        name = self.facts.distribution.name
        return known or (f"Install what brings {', '.join(capabilities)} (no package names are known for {name})",)
