"""Events: what apply says while it works. The views turn the same events into bars, plain lines or JSON lines."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PlanStarted:
    """A plan of `total` steps for `subject` begins."""

    subject: str
    total: int


@dataclass(frozen=True, slots=True)
class StepStarted:
    """A step begins."""

    id: str
    title: str
    machine: str


@dataclass(frozen=True, slots=True)
class StepProgress:
    """A step is at `fraction` (0 to 1; negative: not known) and does `text`."""

    id: str
    fraction: float
    text: str
    machine: str = ""


@dataclass(frozen=True, slots=True)
class StepDone:
    """A step is done after `seconds`."""

    id: str
    title: str
    machine: str
    seconds: float


@dataclass(frozen=True, slots=True)
class StepFailed:
    """A step failed after `seconds` with `message`."""

    id: str
    title: str
    machine: str
    seconds: float
    message: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something the user should know; `warn` when it wants attention."""

    text: str
    warn: bool = False


Event = PlanStarted | StepStarted | StepProgress | StepDone | StepFailed | Note
