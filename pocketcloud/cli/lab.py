"""`pocketcloud lab ...`: list, schema, plan, up, status, reset, down, destroy. Reaching into machines is in access.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pocketcloud.cli import access, lab_checks, lab_hosts, lab_sharing, many, states
from pocketcloud.cli.options import (
    LabOptions,
    bench,
    copies_of,
    instance_name,
    instance_of,
    is_new,
    kit_option,
    lab_options,
    lab_under,
    open_kit,
    output_option,
    require_root,
)
from pocketcloud.cli.view import allowed, ask, fit, print_json, print_table
from pocketcloud.errors import HostLacks, NotFound, UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from pocketcloud.lab.commands import Confirm, Done, Planned
    from pocketcloud.lab.workbench import Workbench
    from pocketcloud.model.names import Name
    from pocketcloud.plan.steps import Plan


@click.group("lab")
def command() -> None:
    """Bring labs up, use them, reset them, remove them.

    LAB is the name of a lab in the kit or of one we ship; a path if it holds `/` or ends in `.yaml`; left out it is
    lab.yaml in the current folder. `reset` means back to the state `clean`, not the reset button.
    """


for _command in (*access.COMMANDS, *lab_sharing.COMMANDS, *lab_hosts.COMMANDS, *states.COMMANDS):
    command.add_command(_command)


@command.command("list")
@click.option("--available", is_flag=True, help="The ones we ship: what each teaches, and what it needs.")
@kit_option
@output_option
def list_labs(kit_name: str | None, output: str, *, available: bool) -> None:
    """List the kit's labs, and the ones we ship."""
    if available:
        from pocketcloud.cli.shipped_labs import show

        show(output)
        return
    from pocketcloud.documents import load_lab
    from pocketcloud.hypervisor import open_hypervisor
    from pocketcloud.lab.status import lab_lines
    from pocketcloud.resources import shipped
    from pocketcloud.sharing.kept import imported_labs

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
    theirs = imported_labs(kit.path) if kit else ()
    if output == "json":
        print_json({"labs": lines, "shipped": [{"lab": lab.lab, "title": lab.title} for lab in ours], "imported": theirs})
        return
    states = [
        (x.instance, x.lab, f"{'?' if x.running is None else x.running}/{x.machines} running", x.note or x.title) for x in lines
    ]
    raised = {x.instance for x in lines}
    states += [(name, "-", "not raised", "imported") for name in theirs if name not in raised]
    states += [(lab.lab, lab.lab, "not raised", lab.title) for lab in ours if lab.lab not in {*raised, *theirs}]
    print_table(("LAB", "DEFINITION", "MACHINES", "TITLE"), states, empty="No labs yet.")


@command.command()
def schema() -> None:
    """Print the JSON Schema of a lab file, for editors."""
    from pocketcloud.documents import lab_schema

    print_json(lab_schema())


def print_plan(planned: Planned, bench: Workbench, output: str) -> None:
    """Show a plan that is not applied."""
    if output == "json":
        print_json(_plan_json(planned, bench))
    else:
        _print_plan_text(planned, bench)


def print_plans(plans: Sequence[Planned], bench: Workbench, output: str) -> None:
    """Show plans of several instances that are not applied."""
    if output == "json":
        print_json({"labs": [_plan_json(planned, bench) for planned in plans]})
        return
    for planned in plans:
        click.echo(click.style(f"== {planned.plan.instance}", bold=True))
        _print_plan_text(planned, bench)


def _plan_json(planned: Planned, bench: Workbench) -> dict[str, object]:
    from pocketcloud.lab.explain import explain
    from pocketcloud.plan.steps import title

    plan = planned.plan
    lines = explain(plan, bench.world(plan.instance, planned.have.record))
    steps = [
        {"id": s.id, "title": title(s), "machine": s.machine, "after": s.after, "reason": s.reason, "commands": lines[s.id]}
        for s in plan.steps
    ]
    return {"instance": plan.instance, "steps": steps, "notes": plan.notes, "loses": plan.loses}


def _print_plan_text(planned: Planned, bench: Workbench) -> None:
    from pocketcloud.lab.explain import explain
    from pocketcloud.plan.steps import title

    plan = planned.plan
    lines = explain(plan, bench.world(plan.instance, planned.have.record))
    for step in plan.steps:
        click.echo(click.style(fit(title(step)), bold=True) + f"  [{step.reason}]")
        for line in lines[step.id]:
            click.echo(f"    {fit(line)}")
    for note in plan.notes:
        click.echo(f"note: {fit(note)}")
    click.echo(f"{len(plan.steps)} steps; nothing was done.")


def _alias(_context: click.Context, _option: click.Parameter, text: str | None) -> Name | None:
    return None if text is None else instance_name(text)


def _up_options(function: click.decorators.FC) -> click.decorators.FC:
    copies = "Raise so many copies, side by side: LAB-1, LAB-2 and so on, or with --as NAME-1, NAME-2."
    function = click.option("--count", type=click.IntRange(1, 64), metavar="N", help=copies)(function)
    named = "Raise it under this name: a second copy, with networks, addresses and disks of its own."
    function = click.option("--as", "alias", metavar="NAME", callback=_alias, help=named)(function)
    function = click.option("--prune", is_flag=True, help="Remove machines that left the file.")(function)
    function = click.option("--reconfigure", is_flag=True, help="Make the changes of an edited file.")(function)
    return click.argument("lab", required=False)(function)


@command.command()
@_up_options
@lab_options("offline", "warm")
def plan(lab: str | None, alias: Name | None, count: int | None, options: LabOptions, *, reconfigure: bool, prune: bool) -> None:
    """Show what `lab up` would do, with the exact commands and XML."""
    _plan_up(lab, alias, count, options, reconfigure=reconfigure, prune=prune)


def _plan_up(
    lab: str | None, alias: Name | None, count: int | None, options: LabOptions, *, reconfigure: bool, prune: bool
) -> None:
    from pocketcloud.lab.commands import plan_for_up
    from pocketcloud.lab.many import plan_for_copies

    require_root("look at all that a plan depends on")
    with bench(options, raises=True) as here:
        if count:
            plans = plan_for_copies(here, copies_of(lab, here.kit, alias, count), reconfigure=reconfigure, prune=prune)
            print_plans(plans, here, options.output)
            return
        wanted, instance = lab_under(lab, here.kit, alias)
        print_plan(plan_for_up(here, wanted, instance, reconfigure=reconfigure, prune=prune), here, options.output)


@command.command()
@_up_options
@lab_options("no_wait", "dry_run", "yes", "protected", "offline", "warm")
def up(lab: str | None, alias: Name | None, count: int | None, options: LabOptions, *, reconfigure: bool, prune: bool) -> None:
    """Bring LAB up: make what is missing, start what is off, end when every machine is ready.

    Interrupted or half there, running it again completes it. Changes of an edited file wait for --reconfigure. With --count
    a copy that fails holds up no other.
    """
    from pocketcloud.lab.commands import up as bring_up

    if options.dry_run:
        _plan_up(lab, alias, count, options, reconfigure=reconfigure, prune=prune)
        return
    require_root("make and start machines")
    instance_of(lab)  # a bad file or name is told before a kit is made for it
    with bench(options, make=is_new(lab), raises=True) as here:
        if count:
            many.up(here, lab, alias, count, options, _confirm_loss(yes=options.yes), reconfigure=reconfigure, prune=prune)
            return
        wanted, instance = lab_under(lab, here.kit, alias)
        confirm = _confirm_loss(yes=options.yes)
        allow = allowed("made anew or removed", given=options.take_protected)
        done = bring_up(here, wanted, instance, reconfigure=reconfigure, prune=prune, confirm=confirm, allow=allow)
    summary(here, instance, done, options.output, "is up")


def _confirm_loss(*, yes: bool) -> Confirm:
    def confirm(plan: Plan) -> None:
        if plan.loses:
            ask(f"{loss_text(plan)} Go on?", yes=yes)

    return confirm


def loss_text(plan: Plan) -> str:
    """What an `up` costs the machines that lose something by it, for a question."""
    from pocketcloud.model.record import Stage

    if plan.record is None:  # of many copies: nobody says what becomes of which
        return (
            f"{', '.join(plan.loses)} will be made anew or removed: what is on the disks is lost, and the states taken of them."
        )
    after = {str(name): machine.stage for name, machine in plan.record.machines.items()}
    removed = [name for name in plan.loses if name not in after]
    mended = [name for name in plan.loses if after.get(name) is Stage.PROVISIONED]
    anew = [name for name in plan.loses if name not in {*removed, *mended}]
    said = []
    if removed:
        said.append(f"{', '.join(removed)} will be removed, with what is on the disks and in the states taken of them.")
    if anew:
        names = ", ".join(anew)
        said.append(f"{names} will be made anew from the base: what is on the disks is lost, and the states taken of them.")
    if mended:
        said.append(f"{', '.join(mended)}: a disk is gone, and comes back as it was in clean; the others stay as they are.")
    return " ".join(said)


def summary(here: Workbench, instance: Name, done: Done, output: str, what: str) -> None:
    """Show a lab that was brought somewhere, with when each machine was ready."""
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
@click.option("--checks", is_flag=True, help="Ask the machines what the lab file's `checks:` say, and count the points.")
@lab_options()
def status(lab: str | None, options: LabOptions, *, checks: bool) -> None:
    """Show a lab's machines, addresses and networks.

    With --checks the machines are asked what the `checks:` of the lab say: of the file, if LAB is a file, else those it was
    raised with. It ends with 0 when they were asked, whatever came of it: the answer says that.
    """
    from pocketcloud.lab.status import lab_status
    from pocketcloud.model.sizes import size_text

    instance = instance_of(lab)
    if checks:
        require_root("use the kit's key")
    with bench(options) as here:
        found = lab_status(here, instance)
        report = lab_checks.ask(here, instance, lab) if checks else None
    if options.output == "json":
        print_json(found if report is None else lab_checks.with_status(found, report))
        return
    rows = [
        (
            m.machine,
            m.state,
            m.address or "-",
            m.base,
            f"{m.vcpus} x {size_text(m.memory)}",
            "?" if m.disk is None else size_text(m.disk),
            "yes" if m.clean else "no",
            m.screen or "-",
        )
        for m in found.machines
    ]
    print_table(("MACHINE", "STATE", "ADDRESS", "BASE", "VCPUS x MEMORY", "DISK", "CLEAN", "SCREEN"), rows)
    for network, subnet in found.networks.items():
        click.echo(f"network {network}: {subnet}")
    for note in found.notes:
        click.echo(f"note: {fit(note)}")
    click.echo(f"Lab {found.instance} is {found.state}.")
    if report is not None:
        lab_checks.show(report)


@command.command()
@click.argument("lab", required=False)
@click.argument("machines", nargs=-1)
@click.option("--onto-new-base", is_flag=True, help="Make those anew whose base has a newer version in the kit.")
@click.option("--no-undo", is_flag=True, help="Keep nothing of what is on the disks now.")
@click.option("--all", "every", is_flag=True, help="Bring back every lab of the kit that has a clean state, up or down.")
@lab_options("no_wait", "dry_run", "yes", "protected", "cold")
def reset(
    lab: str | None, machines: tuple[str, ...], options: LabOptions, *, onto_new_base: bool, no_undo: bool, every: bool
) -> None:
    """Bring LAB, or only MACHINES of it, back to the state `clean`; what was changed on their disks since is kept for `lab undo`.

    With --onto-new-base they are provisioned anew from the base that the kit has now, and `clean` is taken of that; machines
    whose base has not changed are left as they are.
    """
    from pocketcloud.lab.commands import plan_for_reset, spared
    from pocketcloud.lab.commands import reset as bring_back

    if every and (lab or onto_new_base):
        raise UsageError("--all is for all labs, and takes neither LAB nor --onto-new-base", hint="name one, or leave --all out")
    require_root("exchange disks and restart machines")
    if every:
        many.reset_all(options, undo=not no_undo)
        return
    instance = instance_of(lab)
    with bench(options) as here:
        if options.dry_run:

            def plan(but: Collection[str]) -> Planned:
                return plan_for_reset(here, instance, machines, onto_new_base=onto_new_base, undo=not no_undo, but=but)

            print_plan(spared(here, instance, plan, machines, lambda _names: options.take_protected)[0], here, options.output)
            return
        question = f"Bring {', '.join(machines) or 'all machines'} of lab {instance} back to clean?"

        def confirm(plan: Plan) -> None:
            if onto_new_base:
                _confirm_loss(yes=options.yes)(plan)
            else:
                ask(f"{question} {states.left_text(plan, instance)}", yes=options.yes)

        allow = allowed("reset", given=options.take_protected)
        done = bring_back(here, instance, machines, confirm=confirm, onto_new_base=onto_new_base, undo=not no_undo, allow=allow)
    summary(here, instance, done, options.output, "stands on the newest bases" if onto_new_base else "is back to clean")


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
@lab_options("no_wait", "dry_run")
def down(lab: str | None, machines: tuple[str, ...], within: float, options: LabOptions) -> None:
    """Stop LAB, or only MACHINES of it. Nothing is lost; `lab up` starts it again."""
    from pocketcloud.lab.commands import down as take_down
    from pocketcloud.lab.commands import plan_for_down

    require_root("stop machines")
    instance = instance_of(lab)
    with bench(options) as here:
        if options.dry_run:
            print_plan(plan_for_down(here, instance, machines, within), here, options.output)
            return
        done = take_down(here, instance, machines, within=within)
    what = ", ".join(machines) if machines else f"lab {instance}"
    _ended(instance, done, options.output, f"Down: {what}. `pocketcloud lab up {instance}` starts it again.")


@command.command()
@click.argument("lab", required=False)
@lab_options("no_wait", "dry_run", "yes", "protected")
def destroy(lab: str | None, options: LabOptions) -> None:
    """Remove all of LAB: machines, disks, networks, record. It can be raised anew from its file, not brought back."""
    from pocketcloud.lab.commands import destroy as remove_all
    from pocketcloud.lab.commands import plan_for_destroy

    require_root("remove machines and disks")
    instance = instance_of(lab)
    with bench(options) as here:
        if options.dry_run:
            print_plan(plan_for_destroy(here, instance), here, options.output)
            return
        question = f"Destroy lab {instance} with all its disks?"
        allow = allowed("removed", given=options.take_protected)
        done = remove_all(here, instance, confirm=lambda _plan: ask(question, yes=options.yes), allow=allow)
    _ended(instance, done, options.output, f"Lab {instance} is destroyed; nothing of it is left.")


def _ended(instance: Name, done: Done, output: str, text: str) -> None:
    if output == "json":
        print_json({"instance": instance, "seconds": done.seconds, "steps": len(done.plan.steps)})
    else:
        click.echo(text)
