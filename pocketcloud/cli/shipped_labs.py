"""`pocketcloud lab list --available`: the labs we ship, what they teach, and what they need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pocketcloud.cli.view import print_json, print_table

if TYPE_CHECKING:
    from pocketcloud.model.lab import Lab

_COLUMNS = ("LAB", "MACHINES", "MEMORY", "SPACE", "FROM OUTSIDE", "NESTING", "WHAT IT TEACHES")


def show(output: str) -> None:
    """List them: a line of figures each, and below it a line for each thing to learn."""
    from pocketcloud.documents import load_lab
    from pocketcloud.resources import shipped

    labs = [load_lab(path) for path in sorted(shipped("labs").glob("*.yaml"))]
    if output == "json":
        print_json([_told(lab) for lab in labs])
    else:
        print_table(_COLUMNS, [row for lab in labs for row in _rows(lab)])


def _rows(lab: Lab) -> Iterator[tuple[str, ...]]:
    from pocketcloud.model.sizes import size_text

    space = size_text(lab.needs.space) if lab.needs.space else "-"
    nesting = "yes" if lab.nesting else "emulated" if any(machine.runs_machines for machine in lab.machines.values()) else "no"
    yield lab.lab, str(len(lab.machines)), size_text(lab.memory), space, lab.needs.outside or "-", nesting, lab.title
    yield from (("", "", "", "", "", "", f"- {line}") for line in lab.teaches)


def _told(lab: Lab) -> dict[str, object]:
    """As JSON has it; sizes in bytes, `space` and `outside` null where the file does not say."""
    return {
        "lab": lab.lab,
        "title": lab.title,
        "teaches": lab.teaches,
        "machines": {name: machine.base for name, machine in lab.machines.items()},
        "needs": {
            "memory": lab.memory,
            "space": lab.needs.space,
            "outside": lab.needs.outside,
            "nesting": lab.nesting,
        },
    }
