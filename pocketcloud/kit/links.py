"""The links of the chain of discards, from guests to disk, as `kit trim` tells of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class LinkState(StrEnum):
    """What a link does with a discard."""

    PASSED = "ok"
    IN_PART = "in part"
    ENDS = "ends here"
    LEFT_OUT = "left out"


@dataclass(frozen=True, slots=True)
class Link:
    """One link of the chain, for people, with what can be done about it."""

    name: str
    state: LinkState
    text: str
    hint: str = ""
