"""What a console says, as lines of plain text: nothing in them can move a cursor, whatever the guest prints.

Installers draw: with escape sequences (ECMA-48), carriage returns, and GNU screen around them. What moves the cursor ends a line
here, what only colours is left out, and so is everything that cannot be printed. A line has an end, also where the guest gives
it none.
"""

from __future__ import annotations

import codecs
import re

LONGEST = 2000
_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*(?P<final>[@-~])"  # CSI; its final letter says what it does
    r"|\x1b[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?"  # OSC, DCS and their like, up to their end
    r"|\x1b[ -/]+[0-~]"  # character sets
    r"|\x1b[0-Z\\-~]"
)
# An escape sequence whose end is still to come. What is longer is none.
_BEGUN = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b\n]*\x1b?|[ -/]*)\Z")
_BEGUN_MOST = 256
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_ENDS = re.compile(r"[\r\n\v\f\x85\u2028\u2029]+")


class Lines:
    """Takes bytes as they come, gives whole lines. `rest` is the beginning of the next one: a question often has no line end."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.rest = ""

    def feed(self, said: bytes) -> list[str]:
        """The lines that end in `said`, without those that are empty; a longer one than LONGEST is cut into several."""
        text = self._held + self._decoder.decode(said)
        self._held = ""
        if (begun := _BEGUN.search(text, max(0, len(text) - _BEGUN_MOST))) is not None:
            text, self._held = text[: begun.start()], text[begun.start() :]
        *whole, self.rest = _ENDS.split(self.rest + _ESCAPES.sub(_without, text))
        lines = [piece for line in whole for piece in _cut(line)]
        if len(self.rest) > LONGEST:
            *cut, self.rest = _cut(self.rest) or [""]
            lines += cut
        self.rest = _printable(self.rest)
        return lines


def _without(escape: re.Match[str]) -> str:
    final = escape["final"]
    return "" if final is None or final == "m" else "\n"


def _cut(line: str) -> list[str]:
    text = _printable(line).rstrip()
    return [text[at : at + LONGEST] for at in range(0, len(text), LONGEST)]


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    text = _CONTROLS.sub("", text.replace("\t", " "))
    return text if text.isprintable() else "".join(each for each in text if each.isprintable())
