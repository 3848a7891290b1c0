"""Checks: judgements over the host, each with its evidence and its remedy. They change nothing and start no guest.

A group is a module with a `judge` function that yields its checks; a new group is a new module and a line in `_GROUPS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pocketcloud.check import disks, kvm, lvm, memory, nesting, space, subnets, tools
from pocketcloud.check.judgement import Check, Surroundings
from pocketcloud.hypervisor import Hypervisor
from pocketcloud.model.disk import BlockDevice, Measured
from pocketcloud.model.facts import Facts
from pocketcloud.model.judgement import State
from pocketcloud.model.profile import Profile
from pocketcloud.system import Runner, which

__all__ = ["Check", "State", "failed", "run_checks"]

_ROOT = Path("/")
_GROUPS: tuple[Callable[[Surroundings], Iterator[Check]], ...] = (
    kvm.judge,
    nesting.judge,
    disks.judge,
    memory.judge,
    space.judge,
    tools.judge,
    lvm.judge,
    subnets.judge,
)


def run_checks(
    facts: Facts,
    *,
    kit_path: Path,
    run: Runner,
    hypervisor: Callable[[], Hypervisor],
    profile: Profile | None = None,
    root: Path = _ROOT,
    find: Callable[[str], Path | None] = which,
    devices: tuple[Path, ...] = (),
    measure: Callable[[BlockDevice], Measured | None] | None = None,
) -> tuple[Check, ...]:
    """All checks of this host, in the order of their groups.

    `kit_path` is the kit's folder, which need not exist yet; `hypervisor` connects to libvirt (called once; its errors become
    judgements); `profile` is the one named by hand, else it is chosen. Files of the host are read under `root`. `devices` are the
    disks to be judged (none: all that could carry a kit), `measure` reads one for some seconds (None: none is measured).
    """
    here = Surroundings(facts, kit_path, run, hypervisor, root, find, profile, devices, measure)
    return tuple(check for judge in _GROUPS for check in _finished(judge, here))


def _finished(judge: Callable[[Surroundings], Iterator[Check]], here: Surroundings) -> Iterator[Check]:
    """What a group finds; a fault in it is told, and leaves the other groups' answers."""
    try:
        yield from judge(here)
    except Exception as error:  # noqa: BLE001 - hosts hold what nobody thought of, and one answer less is better than none
        group = judge.__module__.rpartition(".")[2]
        evidence = f"these checks ended with {type(error).__name__}: {error}"
        why = "What they would have said is not known; this is a fault of pocketcloud worth reporting."
        yield Check(f"{group}-unfinished", group, State.UNKNOWN, evidence, why)


def failed(checks: Iterable[Check]) -> bool:
    """Whether labs cannot run here: the command then ends with exit code 3."""
    return any(check.state is State.FAIL for check in checks)
