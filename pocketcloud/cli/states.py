"""`pocketcloud lab snapshot|restore|undo|forget|protect|tree`: the states of a lab."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from pocketcloud.cli.options import LabOptions, bench, instance_name, instance_of, lab_options, require_root
from pocketcloud.cli.view import allowed, ask, print_json
from pocketcloud.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pocketcloud.lab.commands import Confirm
    from pocketcloud.lab.tree import StateNode, StateTree
    from pocketcloud.model.names import Name
    from pocketcloud.plan.steps import Plan


def _state_of(text: str) -> tuple[Name, Name]:
    """The instance and the state of `LAB@NAME`. Raises UsageError."""
    lab, at, state = text.rpartition("@")
    if not at or not lab:
        raise UsageError(f"{text!r}: expected LAB@NAME, the lab and the name of its state", hint="as in demo@before-lunch")
    return instance_of(lab), instance_name(state)


def left_text(plan: Plan, instance: Name) -> str:
    """What becomes of what is on the disks now, for a question."""
    from pocketcloud.plan.states import UNDO_DAYS

    kept = plan.record.undo.machines if plan.record and plan.record.undo else {}
    again = [name for name in plan.loses if name in kept]
    gone = [name for name in plan.loses if name not in kept]
    alone = sum(map(bool, (plan.keeps, again, gone))) == 1
    back = f"kept for {UNDO_DAYS} days: pocketcloud lab undo {instance}."

    def now(names: Sequence[str]) -> str:
        return "What is on the disks now is" if alone else f"What is on the disks of {', '.join(names)} now is"

    said = [f"{now(plan.keeps)} {back}"] if plan.keeps else []
    if again:
        said.append(
            f"{', '.join(again)}: the reset or restore before did not end. What that left stays kept: pocketcloud lab undo"
            f" {instance}. What was done since is lost."
        )
    said += [f"{now(gone)} lost."] if gone else []
    return " ".join(said) or "Nothing is lost."


def _confirmed(question: str, instance: Name, *, yes: bool) -> Confirm:
    return lambda plan: ask(f"{question} {left_text(plan, instance)}", yes=yes)


@click.command()
@click.argument("state", metavar="LAB@NAME")
@click.option("--protect", "protected", is_flag=True, help="Protect it from being forgotten.")
@click.option("--ram", is_flag=True, help="Keep the memory of those that run, too: `restore` wakes them from it.")
@lab_options("no_wait", "dry_run")
def snapshot(state: str, options: LabOptions, *, protected: bool, ram: bool) -> None:
    """Take the state NAME of LAB: all disks and UEFI variables of all machines at one moment.

    Running machines stand still for some seconds and go on; those that are off are taken as they lie.
    """
    from pocketcloud.cli.lab import print_plan
    from pocketcloud.lab.states import plan_for_snapshot
    from pocketcloud.lab.states import snapshot as take
    from pocketcloud.model.sizes import duration_text

    require_root("save machines and clone disks")
    instance, name = _state_of(state)
    with bench(options) as here:
        if options.dry_run:
            print_plan(plan_for_snapshot(here, instance, name, protected=protected, ram=ram), here, options.output)
            return
        done = take(here, instance, name, protected=protected, ram=ram)
    if options.output == "json":
        print_json({"instance": instance, "state": name, "seconds": done.seconds})
    else:
        click.echo(
            f"Taken: {instance}@{name}, in {duration_text(done.seconds)}. Back to it: pocketcloud lab restore {instance}@{name}"
        )


@click.command()
@click.argument("state", metavar="LAB@NAME")
@click.option("--no-undo", is_flag=True, help="Keep nothing of what is on the disks now.")
@lab_options("no_wait", "dry_run", "yes", "protected", "cold")
def restore(state: str, options: LabOptions, *, no_undo: bool) -> None:
    """Bring LAB back to its state NAME, in any order; states taken since stay, and new ones branch off from it.

    What is on the disks now is kept for `lab undo`.
    """
    from pocketcloud.cli.lab import print_plan, summary
    from pocketcloud.lab.commands import spared
    from pocketcloud.lab.states import plan_for_restore
    from pocketcloud.lab.states import restore as bring_back

    require_root("exchange disks and restart machines")
    instance, name = _state_of(state)
    with bench(options) as here:
        if options.dry_run:
            planned, _ = spared(
                here,
                instance,
                lambda but: plan_for_restore(here, instance, name, undo=not no_undo, but=but),
                (),
                lambda _names: options.take_protected,
            )
            print_plan(planned, here, options.output)
            return
        confirm = _confirmed(f"Bring lab {instance} back to its state {name}?", instance, yes=options.yes)
        done = bring_back(
            here, instance, name, confirm=confirm, undo=not no_undo, allow=allowed("brought back", given=options.take_protected)
        )
    summary(here, instance, done, options.output, f"is back to {name}")


@click.command()
@click.argument("lab", required=False)
@lab_options("no_wait", "dry_run", "yes", "protected")
def undo(lab: str | None, options: LabOptions) -> None:
    """Take LAB's last reset or restore back. A second undo takes the first back."""
    from pocketcloud.cli.lab import print_plan, summary
    from pocketcloud.lab.commands import spared
    from pocketcloud.lab.states import plan_for_undo
    from pocketcloud.lab.states import undo as take_back

    require_root("exchange disks and restart machines")
    instance = instance_of(lab)
    with bench(options) as here:
        if options.dry_run:
            planned, _ = spared(
                here, instance, lambda but: plan_for_undo(here, instance, but=but), (), lambda _names: options.take_protected
            )
            print_plan(planned, here, options.output)
            return
        question = f"Bring lab {instance} back to what its last reset or restore left?"
        done = take_back(
            here,
            instance,
            confirm=_confirmed(question, instance, yes=options.yes),
            allow=allowed("brought back", given=options.take_protected),
        )
    summary(here, instance, done, options.output, "is back to what was left")


@click.command()
@click.argument("state", metavar="LAB@NAME")
@lab_options("no_wait", "dry_run", "yes")
def forget(state: str, options: LabOptions) -> None:
    """Forget the state NAME of LAB; states that came from it stay."""
    from pocketcloud.cli.lab import print_plan
    from pocketcloud.lab.states import forget as let_go
    from pocketcloud.lab.states import plan_for_forget

    require_root("remove disks")
    instance, name = _state_of(state)
    with bench(options) as here:
        if options.dry_run:
            print_plan(plan_for_forget(here, instance, name), here, options.output)
            return
        question = f"Forget {instance}@{name}? What only that state holds is lost."
        done = let_go(here, instance, name, confirm=lambda _plan: ask(question, yes=options.yes))
    if options.output == "json":
        print_json({"instance": instance, "state": name, "seconds": done.seconds})
    else:
        click.echo(f"Forgotten: {instance}@{name}.")


@click.command()
@click.argument("state", metavar="LAB@NAME")
@click.option("--off", is_flag=True, help="Take the protection away.")
@lab_options("no_wait")
def protect(state: str, options: LabOptions, *, off: bool) -> None:
    """Protect the state NAME of LAB from being forgotten."""
    from pocketcloud.lab.states import protect as keep

    require_root("change the lab's record")
    instance, name = _state_of(state)
    with bench(options) as here:
        keep(here, instance, name, protected=not off)
    if options.output == "json":
        print_json({"instance": instance, "state": name, "protected": not off})
    else:
        click.echo(f"{instance}@{name} is {'not protected any more' if off else 'protected'}.")


@click.command()
@click.argument("lab", required=False)
@lab_options()
def tree(lab: str | None, options: LabOptions) -> None:
    """Show the states of LAB: what came from what, how old and large each is, and where the lab is now.

    OWN is what comes back, at least, when only that is forgotten; SHARED is what others have too.
    """
    from pocketcloud.lab.tree import state_tree

    instance = instance_of(lab)
    with bench(options) as here:
        found = state_tree(here, instance)
    if options.output == "json":
        print_json(found)
        return
    for line in picture(found, ascii_only=not _draws_boxes()):
        click.echo(line)
    if found.uncounted:
        click.echo(f"note: sizes are not known: {found.uncounted}", err=True)


def _draws_boxes() -> bool:
    try:
        "├└│─".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def picture(tree: StateTree, *, ascii_only: bool = False) -> list[str]:
    """The tree, drawn; a line for each state and one for where the lab is now."""
    rows = [(tree.instance, "")]
    branch, last, pipe = ("|- ", "`- ", "|  ") if ascii_only else ("├─ ", "└─ ", "│  ")

    def draw(parent: str, indent: str) -> Iterator[tuple[str, str]]:
        here = next((node for node in tree.states if node.name == parent and node.here), None) is not None
        nodes: list[StateNode | None] = [*tree.below(parent), *([None] if here or (not parent and not _placed(tree)) else [])]
        for node in nodes:
            is_last = node is nodes[-1]
            joint = last if is_last else branch
            if node is None:
                yield f"{indent}{joint}(now)", _sizes(tree.exclusive, tree.shared)
            else:
                yield f"{indent}{joint}{node.name}", _about(node)
                yield from draw(node.name, indent + ("   " if is_last else pipe))

    rows += draw("", "")
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {about}".rstrip() for name, about in rows]


def _placed(tree: StateTree) -> bool:
    return any(node.here for node in tree.states)


def _about(node: StateNode) -> str:
    from pocketcloud.model.record import CLEAN, UNDO
    from pocketcloud.model.sizes import duration_text

    age = f"{duration_text(node.age)} ago" if node.age is not None else f"at {node.taken}, by another clock"
    words = [_sizes(node.exclusive, node.shared), age]
    if node.memory:
        words.append(f"memory of {', '.join(node.memory)}")
    if node.name == CLEAN:
        words.append("reset returns here")
    elif node.name == UNDO:
        words.append("what the last reset or restore left")
    elif node.protected:
        words.append("protected")
    return "  ".join(words)


def _sizes(exclusive: int | None, shared: int | None) -> str:
    from pocketcloud.model.sizes import size_text

    own, others = ("?" if number is None else size_text(number) for number in (exclusive, shared))
    return f"own {own}, shared {others}"


COMMANDS = (snapshot, restore, undo, forget, protect, tree)
