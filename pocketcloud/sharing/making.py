"""From a lab to a bundle: the definitions of its bases are gathered, and their templates; what must not be given away is looked
for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pocketcloud.bases import answers, definitions
from pocketcloud.documents import plain
from pocketcloud.model.base import Definition, InstallDefinition
from pocketcloud.model.lab import Lab
from pocketcloud.model.names import Name
from pocketcloud.resources import overlaid
from pocketcloud.sharing.bundle import Bundle

_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")


def bundle_of(lab: Lab) -> Bundle:
    """A lab with the definitions that there are here of its bases. Raises BadDocument for a definition that is wrong, as
    one is with a password in an address."""
    found: dict[Name, bytes] = {}
    templates: dict[str, bytes] = {}
    for base in sorted({machine.base for machine in lab.machines.values()}):
        definition = definitions.find_or_none(base)
        for each in definitions.lineage(definition) if definition else ():
            found[each.base] = definitions.origin(each.base).read_bytes()
            came = definitions.came_with(each.base)
            templates |= templates_of(each, (came / "kickstarts",) if came else ())
    return Bundle(lab, dict(sorted(found.items())), dict(sorted(templates.items())))


def templates_of(definition: Definition, first: Iterable[Path] = ()) -> dict[str, bytes]:
    """The templates that an installer's answer is made of, looked for in the folders `first`, then where they always are."""
    if not isinstance(definition, InstallDefinition):
        return {}
    return answers.templates(definition, (*first, *overlaid("kickstarts")))


def addresses(definition: Definition) -> tuple[str, ...]:
    """All addresses that a definition names, from which its base would be made."""
    return tuple(dict.fromkeys(text for text in _texts(plain(definition)) if re.match(r"[a-z][a-z0-9+.-]*://", text)))


def secrets_in(lab: Lab) -> tuple[str, ...]:
    """Where a lab holds a private key: it would be given away with it."""
    return tuple(
        f"{name}: provision[{index}] ({step.title})"
        for name, machine in lab.machines.items()
        for index, step in enumerate(machine.provision)
        if _PRIVATE_KEY.search(f"{step.content or ''}\n{step.run or ''}")
    )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(item)
