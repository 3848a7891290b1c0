"""`pocketcloud lab ...`: list, schema, plan, up, status, reset, down, destroy. Reaching into machines is in access.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pocketcloud.cli import access
from pocketcloud.cli.options import (
    dry_run_option,
    here_lab,
    instance_name,
    is_path,
    kit_option,
    lab_options,
    open_bench,
    open_kit,
    output_option,
    require_root,
    wait_option,
    yes_option,
)
from pocketcloud.cli.view import View, ask, open_view, print_json, print_table
from pocketcloud.errors import HostLacks, NotFound

if TYPE_CHECKING:
    from pocketcloud.lab.commands import Confirm, Done, Planned
    from pocketcloud.lab.workbench import Workbench
    from pocketcloud.model.lab import Lab
    from pocketcloud.model.names import Name
    from pocketcloud.plan.steps import Plan


@click.group("lab")
def command() -> None:
    """Bring labs up, use them, reset them, remove them.

    LAB is the name of a lab in the kit or of one we ship; a path if it holds `/` or ends in `.yaml`; left out it is
    lab.yaml in the current folder. `reset` means back to the state `clean`, not the reset button.
    """


for _access in access.COMMANDS:
    command.add_command(_access)


@contextmanager
def bench(
    kit_name: str | None, profile_name: str | None, progress: str, verbose: int, *, wait: bool = True, make: bool = False
) -> Iterator[Workbench]:
    """A workbench whose view is closed in every case."""
    view: View = open_view(progress, verbose)
    try:
        yield open_bench(open_kit(kit_name, make=make), view, profile_name=profile_name, wait=wait)
    finally:
        view.close()


def wanted_lab(text: str | None, kit_path: Path) -> tuple[Lab | None, Name]:
    """What LAB means: the lab of a file, or None and the name of an instance in the kit, or a shipped lab."""
    from pocketcloud.documents import load_lab
    from pocketcloud.resources import shipped

    if text is None or is_path(text):
        lab = load_lab(here_lab() if text is None else Path(text))
        return lab, lab.lab
    name = instance_name(text)
    if (kit_path / "labs" / name / "lab.json").exists():
        return None, name
    ours = shipped("labs", f"{name}.yaml")
    if ours.exists():
        return load_lab(ours), name
    known = ", ".join(sorted(path.stem for path in shipped("labs").glob("*.yaml")))
    raise NotFound(
        f"no lab {name} in the kit, and none that we ship ({known})",
        hint="pocketcloud lab list shows the kit's; a file needs a `/` or `.yaml`",
    )


def instance_of(text: str | None) -> Name:
    """The instance that LAB names: by its name, or by its file's."""
    from pocketcloud.documents import load_lab

    if text is None or is_path(text):
        return load_lab(here_lab() if text is None else Path(text)).lab
    return instance_name(text)


@command.command("list")
@kit_option
@output_option
def list_labs(kit_name: str | None, output: str) -> None:
    """List the kit's labs, and the ones we ship."""
    from pocketcloud.documents import load_lab
    from pocketcloud.hypervisor import open_hypervisor
    from pocketcloud.lab.status import lab_lines
    from pocketcloud.resources import shipped

    try:
        kit = open_kit(kit_name)
    except NotFound:
        if kit_name:
            raise
        kit = None
    try:
        hypervisor = open_hypervisor()
    except HostLacks as error:
        click.echo(f"note: {error.message.splitlines()[0]}; states are unknown", err=True)
        hypervisor = None
    lines = lab_lines(kit, hypervisor) if kit else ()
    ours = [load_lab(path) for path in sorted(shipped("labs").glob("*.yaml"))]
    if output == "json":
        print_json({"labs": lines, "shipped": [{"lab": lab.lab, "title": lab.title} for lab in ours]})
        return
    states = [
        (x.instance, x.lab, f"{'?' if x.running is None else x.running}/{x.machines} running", x.note or x.title) for x in lines
    ]
    states += [(lab.lab, lab.lab, "not raised", lab.title) for lab in ours if lab.lab not in {x.instance for x in lines}]
    print_table(("LAB", "DEFINITION", "MACHINES", "TITLE"), states, empty="No labs yet.")


@command.command()
def schema() -> None:
    """Print the JSON Schema of a lab file, for editors."""
    from pocketcloud.documents import lab_schema

    print_json(lab_schema())


def _print_plan(planned: Planned, bench: Workbench, output: str) -> None:
    from pocketcloud.lab.explain import explain
    from pocketcloud.plan.steps import title

    plan = planned.plan
    lines = explain(plan, bench.world(plan.instance, planned.have.record))
    if output == "json":
        steps = [
            {"id": s.id, "title": title(s), "machine": s.machine, "after": s.after, "reason": s.reason, "commands": lines[s.id]}
            for s in plan.steps
        ]
        print_json({"instance": plan.instance, "steps": steps, "notes": plan.notes, "loses": plan.loses})
        return
    for step in plan.steps:
        click.echo(click.style(title(step), bold=True) + f"  [{step.reason}]")
        for line in lines[step.id]:
            click.echo(f"    {line}")
    for note in plan.notes:
        click.echo(f"note: {note}")
    click.echo(f"{len(plan.steps)} steps; nothing was done.")


def _up_options(function: click.decorators.FC) -> click.decorators.FC:
    function = click.option("--prune", is_flag=True, help="Remove machines that left the file.")(function)
    function = click.option("--reconfigure", is_flag=True, help="Make the changes of an edited file.")(function)
    return click.argument("lab", required=False)(function)


@command.command()
@_up_options
@lab_options
@output_option
def plan(
    lab: str | None,
    kit_name: str | None,
    profile_name: str | None,
    progress: str,
    verbose: int,
    output: str,
    *,
    reconfigure: bool,
    prune: bool,
) -> None:
    """Show what `lab up` would do, with the exact commands and XML."""
    _plan_up(lab, kit_name, profile_name, progress, verbose, output, reconfigure=reconfigure, prune=prune)


def _plan_up(
    lab: str | None,
    kit_name: str | None,
    profile_name: str | None,
    progress: str,
    verbose: int,
    output: str,
    *,
    reconfigure: bool,
    prune: bool,
) -> None:
    from pocketcloud.lab.commands import plan_for_up

    require_root("look at all that a plan depends on")
    with bench(kit_name, profile_name, progress, verbose) as here:
        wanted, instance = wanted_lab(lab, here.kit.path)
        _print_plan(plan_for_up(here, wanted, instance, reconfigure=reconfigure, prune=prune), here, output)


@command.command()
@_up_options
@lab_options
@wait_option
@dry_run_option
@yes_option
@output_option
def up(
    lab: str | None,
    kit_name: str | None,
    profile_name: str | None,
    progress: str,
    verbose: int,
    output: str,
    *,
    reconfigure: bool,
    prune: bool,
    no_wait: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Bring LAB up: make what is missing, start what is off, end when every machine is ready.

    Interrupted or half there, running it again completes it. Changes of an edited file wait for --reconfigure.
    """
    from pocketcloud.lab.commands import up as bring_up

    if dry_run:
        _plan_up(lab, kit_name, profile_name, progress, verbose, output, reconfigure=reconfigure, prune=prune)
        return
    require_root("make and start machines")
    with bench(kit_name, profile_name, progress, verbose, wait=not no_wait, make=True) as here:
        wanted, instance = wanted_lab(lab, here.kit.path)
        done = bring_up(here, wanted, instance, reconfigure=reconfigure, prune=prune, confirm=_confirm_loss(yes=yes))
    _summary(here, instance, done, output, "is up")


def _confirm_loss(*, yes: bool) -> Confirm:
    def confirm(plan: Plan) -> None:
        if plan.loses:
            names = ", ".join(plan.loses)
            ask(f"{names} will be made anew from the base: what is on the disks is lost. Go on?", yes=yes)

    return confirm


def _summary(here: Workbench, instance: Name, done: Done, output: str, what: str) -> None:
    from pocketcloud.lab.status import lab_status
    from pocketcloud.model.sizes import duration_text

    status = lab_status(here, instance)
    if output == "json":
        print_json({"status": status, "seconds": done.seconds, "ready": done.ready, "steps": len(done.plan.steps)})
        return
    rows = [
        (m.machine, m.state, m.address or "-", m.base, duration_text(done.ready[m.machine]) if m.machine in done.ready else "-")
        for m in status.machines
    ]
    print_table(("MACHINE", "STATE", "ADDRESS", "BASE", "READY AFTER"), rows)
    click.echo(f"Lab {instance} {what} after {duration_text(done.seconds)}.")


@command.command()
@click.argument("lab", required=False)
@lab_options
@output_option
def status(lab: str | None, kit_name: str | None, profile_name: str | None, progress: str, verbose: int, output: str) -> None:
    """Show a lab's machines, addresses and networks."""
    from pocketcloud.lab.status import lab_status
    from pocketcloud.model.sizes import size_text

    with bench(kit_name, profile_name, progress, verbose) as here:
        found = lab_status(here, instance_of(lab))
    if output == "json":
        print_json(found)
        return
    rows = [
        (
            m.machine,
            m.state,
            m.address or "-",
            m.base,
            f"{m.vcpus} x {size_text(m.memory)}",
            size_text(m.disk),
            "yes" if m.clean else "no",
        )
        for m in found.machines
    ]
    print_table(("MACHINE", "STATE", "ADDRESS", "BASE", "VCPUS x MEMORY", "DISK", "CLEAN"), rows)
    for network, subnet in found.networks.items():
        click.echo(f"network {network}: {subnet}")
    for note in found.notes:
        click.echo(f"note: {note}")
    click.echo(f"Lab {found.instance} is {found.state}.")


@command.command()
@click.argument("lab", required=False)
@click.argument("machines", nargs=-1)
@lab_options
@wait_option
@dry_run_option
@yes_option
@output_option
def reset(
    lab: str | None,
    machines: tuple[str, ...],
    kit_name: str | None,
    profile_name: str | None,
    progress: str,
    verbose: int,
    output: str,
    *,
    no_wait: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Bring LAB, or only MACHINES of it, back to the state `clean`; what was changed on their disks since is lost."""
    from pocketcloud.lab.commands import plan_for_reset
    from pocketcloud.lab.commands import reset as bring_back

    require_root("exchange disks and restart machines")
    instance = instance_of(lab)
    with bench(kit_name, profile_name, progress, verbose, wait=not no_wait) as here:
        if dry_run:
            _print_plan(plan_for_reset(here, instance, machines), here, output)
            return
        ask(f"Bring {', '.join(machines) or 'all machines'} of lab {instance} back to clean?", yes=yes)
        done = bring_back(here, instance, machines, confirm=lambda _plan: None)
    _summary(here, instance, done, output, "is back to clean")


@command.command()
@click.argument("lab", required=False)
@click.argument("machines", nargs=-1)
@click.option(
    "--within",
    type=click.FloatRange(0, 3600),
    default=60.0,
    show_default=True,
    help="Seconds a machine has to power off by itself.",
)
@lab_options
@wait_option
@dry_run_option
@output_option
def down(
    lab: str | None,
    machines: tuple[str, ...],
    within: float,
    kit_name: str | None,
    profile_name: str | None,
    progress: str,
    verbose: int,
    output: str,
    *,
    no_wait: bool,
    dry_run: bool,
) -> None:
    """Stop LAB, or only MACHINES of it. Nothing is lost; `lab up` starts it again."""
    from pocketcloud.lab.commands import down as take_down
    from pocketcloud.lab.commands import plan_for_down

    require_root("stop machines")
    instance = instance_of(lab)
    with bench(kit_name, profile_name, progress, verbose, wait=not no_wait) as here:
        if dry_run:
            _print_plan(plan_for_down(here, instance, machines, within), here, output)
            return
        done = take_down(here, instance, machines, within=within)
    if output == "json":
        print_json({"instance": instance, "seconds": done.seconds, "steps": len(done.plan.steps)})
        return
    what = ", ".join(machines) if machines else f"lab {instance}"
    click.echo(f"Down: {what}. `pocketcloud lab up {instance}` starts it again.")


@command.command()
@click.argument("lab", required=False)
@lab_options
@wait_option
@dry_run_option
@yes_option
@output_option
def destroy(
    lab: str | None,
    kit_name: str | None,
    profile_name: str | None,
    progress: str,
    verbose: int,
    output: str,
    *,
    no_wait: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Remove all of LAB: machines, disks, networks, record. It can be raised anew from its file, not brought back."""
    from pocketcloud.lab.commands import destroy as remove_all
    from pocketcloud.lab.commands import plan_for_destroy

    require_root("remove machines and disks")
    instance = instance_of(lab)
    with bench(kit_name, profile_name, progress, verbose, wait=not no_wait) as here:
        if dry_run:
            _print_plan(plan_for_destroy(here, instance), here, output)
            return
        plan_for_destroy(here, instance)
        done = remove_all(here, instance, confirm=lambda _plan: ask(f"Destroy lab {instance} with all its disks?", yes=yes))
    if output == "json":
        print_json({"instance": instance, "seconds": done.seconds, "steps": len(done.plan.steps)})
        return
    click.echo(f"Lab {instance} is destroyed; nothing of it is left.")
