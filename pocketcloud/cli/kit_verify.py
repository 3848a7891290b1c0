"""`pocketcloud kit verify`."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from pocketcloud.cli.holding import hold_labs, one_at_a_time, unhurried
from pocketcloud.cli.options import now, open_kit, output_option, progress_options, require_root
from pocketcloud.cli.view import open_view, print_json, print_table
from pocketcloud.errors import Refused, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pocketcloud.copies.verify import Verified


@click.command()
@click.argument("name", metavar="[KIT]", required=False)
@click.option("--record", is_flag=True, help="Write down what KIT holds now, to verify it against that later; its labs are down.")
@click.option(
    "--forget", is_flag=True, help="Give up what KIT keeps of what was shipped, and the space that takes; reads nothing."
)
@output_option
@progress_options
def verify(name: str | None, record: bool, forget: bool, output: str, progress: str, verbose: int) -> None:
    """Read all that [KIT] was shipped with, and prove that it still holds that: each base and each lab as it was copied.

    What was changed since by those who use it is told, and is no fault. Labs may be up.
    """
    from pocketcloud.copies import verify as work
    from pocketcloud.events import StepDone, StepProgress, StepStarted
    from pocketcloud.kit.attached import Places
    from pocketcloud.system import run

    require_root("read disks")
    places = Places.from_environment()
    kit = open_kit(name)
    if not kit.vg:
        raise Refused(f"kit {kit.name} is a folder; what is verified are kits on disks", hint="pocketcloud kit list shows them")
    if record and forget:
        raise UsageError("--record and --forget say opposite things", hint="leave out one")
    stop, view = threading.Event(), open_view(progress, verbose)
    title = f"read kit {kit.name}"
    with ExitStack() as held:
        held.callback(view.close)
        held.enter_context(one_at_a_time(places))
        hold_labs(places, kit, held)
        if forget:
            _say_forgotten(kit.name, work.forget(kit, run), output)
            return
        unhurried(held, f"reading kit {kit.name}", verbose)
        view.emit(StepStarted(kit.name, title, ""))
        tell = _Teller(kit.name, lambda fraction, text: view.emit(StepProgress(kit.name, fraction, text)))
        if record:
            work.record(kit, run, now=now(), stop=stop, tell=tell)
        found = work.verify(kit, run, stop=stop, tell=tell)
        view.emit(StepDone(kit.name, title, "", tell.seconds()))
    _show(kit.name, found, output)
    if not found.whole:
        raise Refused(
            f"kit {kit.name} does not hold what it was shipped with: {', '.join(found.faults[:5])}",
            hint="copy it anew from the kit it came from: pocketcloud kit clone, or kit sync",
        )


def _say_forgotten(name: str, freed: int, output: str) -> None:
    from pocketcloud.model.sizes import size_text

    if output == "json":
        print_json({"kit": name, "freed": freed})
        return
    click.echo(
        f"Kit {name} keeps nothing any more of what was shipped, {size_text(freed)} came back; a sync with it copies whole."
    )


class _Teller:
    """Tells now and then how many bytes were read, at what rate, and how long it still takes."""

    def __init__(self, name: str, show: Callable[[float, str], None]) -> None:
        import time

        self._name, self._show, self._clock = name, show, time.monotonic
        self._begun = self._clock()
        self._at = 0.0

    def __call__(self, done: int, total: int) -> None:
        from pocketcloud.model.sizes import progress_text

        if self._clock() - self._at < 0.5:
            return
        self._at = self._clock()
        self._show(done / max(total, 1), f"read {progress_text(done, total, self.seconds())}")

    def seconds(self) -> float:
        """How long it has taken."""
        return self._clock() - self._begun


def _show(name: str, found: Verified, output: str) -> None:
    from pocketcloud.model.sizes import size_text

    if output == "json":
        print_json({"kit": name, "whole": found.whole, "found": found})
        return
    rows = [
        (proof.volume, str(proof.held), ", ".join(proof.bases) or "-", size_text(proof.changed) if proof.changed else "-")
        for proof in found.proofs
        if proof.held != "intact" or proof.bases or proof.changed
    ]
    rows += [(volume, "added", "-", size_text(own)) for volume, own in found.added]
    print_table(("VOLUME", "STATE", "BASE", "CHANGED"), rows)
    intact = sum(proof.held == "intact" for proof in found.proofs)
    click.echo(
        f"kit {name}: {intact} of {len(found.proofs)} volumes are what was shipped on {found.made} (generation"
        f" {found.generation}); {size_text(found.read)} were read"
    )
