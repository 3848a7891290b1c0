"""A Runner that answers as a computer did, for tests that cannot run there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pocketcloud.system import Completed


class Recorded:
    """A Runner: `tell` gives what a command says, or how it ended, or raises as a Runner does; `asked` are the commands."""

    def __init__(self, tell: Callable[[tuple[str, ...]], str | Completed]) -> None:
        self._tell = tell
        self.asked: list[tuple[str, ...]] = []

    def __call__(
        self,
        argv: Sequence[str | Path],
        *,
        stdin: bytes | None = None,  # noqa: ARG002 - the shape of a Runner
        codes: Sequence[int] = (0,),  # noqa: ARG002
        timeout: float | None = None,  # noqa: ARG002
        env: Mapping[str, str] | None = None,  # noqa: ARG002
        cwd: Path | None = None,  # noqa: ARG002
        on_line: Callable[[str], None] | None = None,  # noqa: ARG002
    ) -> Completed:
        words = tuple(map(str, argv))
        self.asked.append(words)
        told = self._tell(words)
        return told if isinstance(told, Completed) else Completed(words, 0, told, "")
