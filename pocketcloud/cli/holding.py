"""What commands that work on whole kits hold, so that no other does at the same time."""

from __future__ import annotations

import shlex
import sys
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pocketcloud.kit.attached import Places
    from pocketcloud.model.kit import Kit


def one_at_a_time(places: Places, *, shared: bool = False) -> AbstractContextManager[None]:
    """Hold what makes, attaches and detaches kits on this host; `shared` with others that do: the two ends of a pipe would wait
    for each other."""
    from pocketcloud.locks import held

    return held(places.locks, "kits", _command_line(), wait=True, on_wait=_say_waiting, shared=shared)


def _say_waiting(holder: str) -> None:
    click.echo(f"waiting for {holder} to end", err=True)


def _command_line() -> str:
    return shlex.join(["pocketcloud", *sys.argv[1:]])


def hold_labs(places: Places, kit: Kit, labs: ExitStack) -> None:
    """Hold all labs and bases of a kit, new ones too, so that no other command is at work in one; fails, naming it, if one is."""
    from pocketcloud.locks import held, whole_kit
    from pocketcloud.records import instances

    labs.enter_context(held(places.locks, whole_kit(kit.id), _command_line(), wait=False))
    names = {f"{kit.id}.{instance}" for instance in instances(kit)}
    names |= {path.name.removesuffix(".lock") for path in places.locks.glob(f"{kit.id}.*.lock")}
    for name in sorted(names):
        labs.enter_context(held(places.locks, name, _command_line(), wait=False))


def unhurried(held: ExitStack, why: str, verbose: int) -> None:
    """Keep the computer awake until `held` ends, and have our reads and writes stand back behind others'; with -v it is said
    where that cannot be had."""
    from pocketcloud.host.rest import awake, stand_back
    from pocketcloud.system import run

    faults = {"the computer is not kept awake": held.enter_context(awake(why)), "reads do not stand back": stand_back(run)}
    for what, fault in faults.items():
        if fault and verbose:
            click.echo(f"note: {what}: {fault}", err=True)
