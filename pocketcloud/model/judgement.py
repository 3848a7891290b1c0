"""How something of the host was found to be, and what is remarked of a disk."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How a check ended. `warn`: labs run, but slower or not all of them; `fail`: they do not; `unknown`: it could not be
    found out, because something else failed."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"
    NOT_APPLICABLE = "not-applicable"


class Topic(StrEnum):
    """What of a disk is judged, and why it matters."""

    MEDIUM = "medium"
    SPEED = "speed"
    USB = "usb"
    TRIM = "trim"
    CACHE = "write-cache"
    LAYOUT = "layout"

    @property
    def why(self) -> str:
        """In one sentence."""
        return _WHY[self]


_WHY = {
    Topic.MEDIUM: "On a hard disk many machines at a time wait for one moving arm.",
    Topic.SPEED: "All machines of a lab share the disk, most of all when they start together.",
    Topic.USB: "The slowest hop between disk and computer sets the pace, and a bridge that drops off takes the lab with it.",
    Topic.TRIM: "Without TRIM the disk is not told what a reset frees, and flash gets slower when it believes to be full.",
    Topic.CACHE: "What a disk has only in its cache is lost in a power cut or an unplug, unless it is flushed.",
    Topic.LAYOUT: "Sectors and identity decide whether another enclosure or computer finds the kit again.",
}


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that was found of a disk, in words, and what to do about it: sentences, none where nothing helps."""

    topic: Topic
    state: State
    text: str
    remedy: tuple[str, ...] = ()
