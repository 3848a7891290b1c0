"""The order in which `check --fix` does what it can. One fix changes what the next has to do (a package starts a daemon), so each
is drawn up from the state just before it, and its check is run again after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from pocketcloud.check.fixes import Action
from pocketcloud.check.judgement import Check
from pocketcloud.errors import PocketcloudError, Refused, UsageError
from pocketcloud.model.judgement import State


class Outcome(StrEnum):
    """What became of a fix: `done` says nothing yet of whether it helped, which is the state after it."""

    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"
    PLANNED = "planned"


@dataclass(frozen=True, slots=True)
class Mended:
    """A check with a fix, and what became of it: `after` is the same check afterwards (None: not run again, or not there any
    more), `error` says why it was not done."""

    check: Check
    outcome: Outcome
    after: Check | None = None
    error: str = ""

    @property
    def helped(self) -> bool:
        """Whether nothing is left to be done about it."""
        return self.after is not None and self.after.state in (State.OK, State.NOT_APPLICABLE)

    @property
    def told(self) -> dict[str, object]:
        """As JSON has it."""
        state = self.after.state if self.after else State.UNKNOWN if self.outcome is Outcome.DONE else self.check.state
        return {
            "id": self.check.id,
            "actions": [action.line for action in self.check.fix],
            "outcome": self.outcome,
            "state": state,
            "evidence": (self.after or self.check).evidence,
            "error": self.error,
        }


def fixable(checks: Iterable[Check]) -> tuple[Check, ...]:
    """Those that found something which a fix could mend."""
    return tuple(check for check in checks if check.fix and check.state not in (State.OK, State.NOT_APPLICABLE))


def mend(checks: Iterable[Check], do: Callable[[Check], None], again: Callable[[], Iterable[Check]]) -> Iterator[Mended]:
    """Do the fixes of `checks` one after the other, and those that turn up on the way; what is in order by then is passed over.
    A check may have another fix after its first (what was installed is to be started), but none is done twice. `do` carries one
    out (Refused: it was not wanted, or would do harm), `again` runs all checks."""
    tried: set[tuple[str, tuple[Action, ...]]] = set()
    refused: set[str] = set()
    while left := [check for check in fixable(checks) if (check.id, check.fix) not in tried and check.id not in refused]:
        check = left[0]
        tried.add((check.id, check.fix))
        try:
            do(check)
        except UsageError:
            raise  # nobody can be asked: that is said once, not of each
        except Refused as no:
            refused.add(check.id)
            yield Mended(check, Outcome.REFUSED, error=no.message)
            continue
        except PocketcloudError as failure:
            # Some of it may have been done.
            checks = tuple(again())
            yield Mended(check, Outcome.FAILED, _same(checks, check), failure.message)
            continue
        checks = tuple(again())
        yield Mended(check, Outcome.DONE, _same(checks, check))


def all_helped(results: Iterable[Mended]) -> bool:
    """Whether nothing is left: the last word on each check counts."""
    return all({mended.check.id: mended.helped for mended in results}.values())


def _same(checks: Iterable[Check], wanted: Check) -> Check | None:
    return next((check for check in checks if check.id == wanted.id), None)
