"""Steps: a plan as data. Each is one verb of one room, says why it is there and what it comes after; apply.py runs them.

A plan is a graph: what does not depend on each other runs at once, so that eight machines start together and one slow
guest holds up nobody else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pocketcloud.model.inventory import Clone, Marks
from pocketcloud.model.record import Memory, Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One verb. `id` is unique in its plan, `after` the ids of the steps that must be done before, `reason` is for people;
    `machine` is the machine it works for, empty if it is the whole lab."""

    id: str
    reason: str
    after: tuple[str, ...] = ()
    machine: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneVolumes(Step):
    """Make live volumes as clones, and have them ready to be opened. `reserve`: on a store that is nearly full, too."""

    clones: tuple[Clone, ...]
    reserve: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateVolume(Step):
    """Make the empty live volume `name` of `size` bytes."""

    name: str
    size: int
    marks: Marks = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveVolumes(Step):
    """Remove volumes; those that stand on others come first."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareVolumes(Step):
    """Make the clones of the next reset in advance."""

    clones: tuple[Clone, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteSeed(Step):
    """Write the machine's cloud-init seed, with its host key, which is made if it has none yet. `macs` are its interfaces in
    order; `generation` tells cloud-init that a machine made anew is a new one; `outer` are the subnets in use around a machine
    that runs machines of its own."""

    macs: tuple[str, ...]
    generation: int
    outer: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRecord(Step):
    """Replace the lab's record: the commit point."""

    record: Record


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsureNetwork(Step):
    """Define and start the lab's network `network`, as the record has it by then."""

    network: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleFence(Step):
    """Have the lab's network `network`, which is up, fenced or not, as the record has it by then."""

    network: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveNetwork(Step):
    """Stop and undefine the lab's network `network`."""

    network: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeCache(Step):
    """Have the kit's cache served on the lab's `networks`, as long as they are there."""

    networks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetNvram(Step):
    """Give the machine the UEFI variables kept in `source` (a file in the kit's `nvram/`; empty: new ones at its start)."""

    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepNvram(Step):
    """Keep the machine's UEFI variables as they are now in the file `target` of the kit's `nvram/`."""

    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DefineMachine(Step):
    """Define the machine's domain, as the record has it by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartMachine(Step):
    """Start the machine cold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WakeMachine(Step):
    """Bring the machine back from `memory`, on disks of the same moment; where that is not possible, start it cold."""

    memory: Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeMachine(Step):
    """Let the machine, which is paused, go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopMachine(Step):
    """Ask the machine to power off, and after `within` seconds make it."""

    within: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KillMachine(Step):
    """Power the machine off at once; with `flush` its file systems are made whole first, where an agent can do that."""

    flush: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UndefineMachine(Step):
    """Remove the machine's domain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provision(Step):
    """Do what the lab file says under `provision:`, once, as root, over ssh."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitReady(Step):
    """Wait until all that `ready:` demands holds. `first` after the machine's first start: also until that is finished."""

    first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EndRestoring(Step):
    """Record that `machines`, which were brought back together or were off for a state, are all ready: from here on what they do
    is worth keeping."""

    machines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeSnapshot(Step):
    """Take the snapshot `name` of `machines`, all at one moment; `generation` names the volumes they live on afterwards.
    Those that are off are taken as they lie. One that is there is completed by machines that it lacks. Of those of `memory`
    that run the memory is kept with it."""

    name: str
    machines: tuple[str, ...]
    generation: int
    protected: bool = False
    memory: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveFiles(Step):
    """Remove the files of a machine (`machine`) or of the whole instance, its record with them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done: `steps` in an order that respects `after`, and `notes` on what is seen and left alone.

    `loses` names the machines whose disks are thrown away, which the CLI asks about, `keeps` those that leave theirs for
    `lab undo`; `record` is the record as the plan leaves it (None: none, or unchanged), for those who show it beforehand.
    """

    instance: str
    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()
    loses: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    record: Record | None = field(default=None, compare=False)


_TITLES: dict[type[Step], str] = {
    CreateVolume: "create the empty disk {0.name}",
    WriteSeed: "write the seed of {0.machine}",
    CommitRecord: "commit the record",
    EnsureNetwork: "start network {0.network}",
    SettleFence: "settle the fence of network {0.network}",
    RemoveNetwork: "remove network {0.network}",
    ServeCache: "serve the kit's cache",
    SetNvram: "set the UEFI variables of {0.machine}",
    KeepNvram: "keep the UEFI variables of {0.machine}",
    DefineMachine: "define {0.machine}",
    StartMachine: "start {0.machine}",
    WakeMachine: "wake {0.machine} from its memory",
    ResumeMachine: "resume {0.machine}",
    StopMachine: "stop {0.machine}",
    KillMachine: "power off {0.machine}",
    UndefineMachine: "undefine {0.machine}",
    Provision: "provision {0.machine}",
    WaitReady: "wait until {0.machine} is ready",
    EndRestoring: "record that all are back",
    TakeSnapshot: "take the state {0.name}",
    RemoveFiles: "remove the files of {0.machine}",
}


def title(step: Step) -> str:
    """The step in a few words, in the imperative."""
    match step:
        case RemoveFiles() if not step.machine:
            return "remove the lab's files and its record"
        case CloneVolumes(clones=(one,)):
            return f"clone {one.source} to {one.name}"
        case CloneVolumes():
            return f"clone {len(step.clones)} volumes: {', '.join(clone.name for clone in step.clones)}"
        case RemoveVolumes():
            return f"remove {', '.join(step.names)}"
        case PrepareVolumes():
            return f"prepare {len(step.clones)} clones for the next reset"
        case _:
            return _TITLES[type(step)].format(step)
