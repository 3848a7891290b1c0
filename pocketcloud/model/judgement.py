"""How something of the host was found to be."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """How a check ended. `warn`: labs run, but slower or not all of them; `fail`: they do not; `unknown`: it could not be
    found out, because something else failed."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"
    NOT_APPLICABLE = "not-applicable"
