"""Time limits: what never answers must not keep a check, and what comes after it, from ending.

A command has its own limit (system.run), a disk is read by a child. What is left are calls into libraries, which no signal
interrupts, and everything that nobody thought of.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")

# An alarm that came where exceptions are lost (the end of an object) comes again.
_AGAIN = 10.0


class Late(BaseException):
    """The time is up. No Exception, so that nobody takes it for the host's answer."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise Late in what is done in here once the time is up. By SIGALRM, so in the main thread only; others have no limit.

    What a call of run() has started is ended with it. An alarm that was set before (pytest-timeout's) comes when it would have.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    armed = True

    def late(*_: object) -> None:
        if armed:
            raise Late

    begun = time.monotonic()
    handler = signal.signal(signal.SIGALRM, late)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        yield
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (time.monotonic() - begun)), interval)


class Asked(Generic[T]):
    """A question that is asked in a thread from now on; one that is never answered is left alone, and ends with the program."""

    def __init__(self, question: Callable[[], T]) -> None:
        self._question = question
        self._answered = threading.Event()
        self._answer: T
        self._failure: Exception | None = None
        threading.Thread(target=self._ask, daemon=True).start()

    def _ask(self) -> None:
        try:
            self._answer = self._question()
        except Exception as failure:  # noqa: BLE001 - handed on to who wants the answer
            self._failure = failure
        self._answered.set()

    def answer(self, seconds: float) -> T:
        """The answer, or what the question raised; raises TimeoutError where it takes longer."""
        if not self._answered.wait(seconds):
            raise TimeoutError
        if self._failure is not None:
            raise self._failure
        return self._answer
