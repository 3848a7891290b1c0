"""Names: the one rule for everything a user names, and the identities that follow from names.

libvirt and volume names join parts with a dot, which the rule leaves out, so a joined name can be taken apart again.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from typing import Any, Self

NAME_PATTERN = r"^[a-z][a-z0-9-]{0,30}$"
_NAME = re.compile(NAME_PATTERN)
# As distributions allow them, and nothing that a package manager takes for an option, a pattern or a version.
_PACKAGE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9+._-]{0,127}")
_RULE = "a name starts with a-z and goes on with a-z, 0-9 and '-', 31 characters at most"


class Name(str):
    """A checked name. `Name.parse` raises ValueError with the rule in its text."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: object) -> Self:
        """The name in `text`; raises ValueError if it does not follow the rule."""
        if not isinstance(text, str):
            shown = "nothing" if text is None else str(text).lower() if isinstance(text, (bool, int, float)) else "no text"
            raise ValueError(f"expected a name, got {shown[:40]}; {_RULE}")
        # `$` also matches before a final newline, so fullmatch it is.
        if not _NAME.fullmatch(text):
            shown = text if len(text) <= 40 else text[:37] + "..."
            raise ValueError(f"{shown!r} is not a name: {_RULE}")
        return cls(text)

    # pydantic asks a class for its schema through these two; as plain dictionaries they need no import of pydantic here.
    @classmethod
    def __get_pydantic_core_schema__(cls, _source: object, _handler: object) -> dict[str, Any]:
        return {"type": "function-plain", "function": {"type": "no-info", "function": cls.parse}}

    @classmethod
    def __get_pydantic_json_schema__(cls, _core: object, _handler: object) -> dict[str, Any]:
        return {"type": "string", "pattern": NAME_PATTERN}


def is_package(text: str) -> bool:
    """Whether a package of a distribution may be called that."""
    return bool(_PACKAGE.fullmatch(text))


def joined(*parts: str) -> str:
    """`kit.instance.machine`: the name of a domain, network or volume."""
    return ".".join(parts)


def machine_uuid(kit_id: str, instance: str, machine: str) -> uuid.UUID:
    """The machine's UUID: the same at every raising, on every host; other in every kit."""
    return uuid.uuid5(uuid.UUID(kit_id), joined(instance, machine))


def network_uuid(kit_id: str, instance: str, network: str) -> uuid.UUID:
    """The network's UUID, kept apart from a machine of the same name."""
    return uuid.uuid5(uuid.UUID(kit_id), joined("network", instance, network))


def mac_address(instance: str, machine: str, index: int, kit_id: str = "") -> str:
    """The MAC of a machine's interface `index` (from 0), in QEMU's range 52:54:00.

    Not from the kit's id: on networks of its own a lab keeps its addresses when the kit is copied, so that guests which
    remember them (persistent interface names, licences) find them again. On a bridge it would
    meet its copy: there `kit_id` is given.
    """
    told = joined(*filter(None, (kit_id, instance, machine, str(index))))
    digest = hashlib.blake2b(told.encode(), digest_size=3).hexdigest()
    return f"52:54:00:{digest[0:2]}:{digest[2:4]}:{digest[4:6]}"


def bridge_name(kit_id: str, instance: str, network: str) -> str:
    """The host's bridge for a network. An interface name has at most 15 characters (IFNAMSIZ), so this one is a digest."""
    digest = hashlib.blake2b(joined(kit_id, instance, network).encode(), digest_size=5).hexdigest()
    return f"pc-{digest}"
