"""From a lab to a bundle: the definitions of its bases are gathered, and their templates; what must not be given away is looked
for."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator
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
# The keys of definitions under which a file of the host is named.
_HOST_FILES = ("file", "keyring", "activation_key_file")


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


def host_files(definition: Definition) -> tuple[str, ...]:
    """All files of this host that a definition names, which would be read when its base is made: media, keyrings, keys."""
    return tuple(dict.fromkeys(text for text in _texts(plain(definition), _HOST_FILES) if text))


def own_templates(bundle: Bundle) -> dict[str, bytes]:
    """The templates of a bundle that are not as they are here, by file name."""
    folders = overlaid("kickstarts")

    def known(name: str) -> bytes | None:
        return next((place.read_bytes() for folder in folders if (place := folder / name).is_file()), None)

    return {name: text for name, text in bundle.templates.items() if text != known(name)}


def secrets_in(lab: Lab) -> tuple[str, ...]:
    """Where a lab holds a private key: it would be given away with it."""
    return tuple(
        f"{name}: provision[{index}] ({step.title})"
        for name, machine in lab.machines.items()
        for index, step in enumerate(machine.provision)
        if _PRIVATE_KEY.search(f"{step.content or ''}\n{step.run or ''}")
    )


def _texts(value: Any, keys: Container[str] | None = None, key: str = "") -> Iterator[str]:
    """The texts in a plain value; only those under `keys`, if given."""
    if isinstance(value, str) and (keys is None or key in keys):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(item, keys, name)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, keys, key)
