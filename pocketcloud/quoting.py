"""Quoting for the places where a value stands in an installer's answer: kickstart options, shell words, YAML and JSON, Python,
preseed values, names of packages, comments. Pure; render.py gives these to templates as filters.

What no quoting can carry is refused with ValueError: line breaks and other control characters. Kickstart and preseed are read
line by line before anything is unquoted (pykickstart's parser by `str.splitlines`, which knows more line ends than `\\n`;
debian-installer's debconf-set-selections by grep and sed), so text of several lines is put in as words, one a line (`sh_lines`).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any

# Control characters (C0, C1), and what str.splitlines or YAML 1.1 take for the end of a line; also what is not a character
# at all (lone surrogates, noncharacters) and the byte order mark, which readers of UTF-8 swallow.
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]")
_MUST_ESCAPE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_PACKAGE = re.compile(r"(@\^?)?[A-Za-z0-9*][A-Za-z0-9+._:~^*-]*", re.ASCII)


class Quoted(str):
    """Text that is quoted for its place."""

    __slots__ = ()


def unfit(text: str, *, lines: bool = False) -> str:
    """What in `text` no answer can carry, for people; empty: nothing. With `lines` it may have several lines, and tabs."""
    found = _UNFIT.search(text) or (None if lines else re.search("[\t\n]", text))
    if found is None:
        return ""
    known = {"\n": "a line break", "\t": "a tab", "\r": "a carriage return", "\0": "a NUL", "\ufeff": "a byte order mark"}
    return known.get(found[0], f"the character U+{ord(found[0]):04X}")


def _one_line(value: object) -> str:
    text = str(value)
    if wrong := unfit(text):
        raise ValueError(f"{wrong} cannot stand in a value here")
    return text


def _quotes(text: str) -> str:
    # shlex.quote leaves words alone that mean nothing to a shell; at the start of a line one with `%` is a section of kickstart.
    return shlex.quote(text) if "%" not in text else "'" + text.replace("'", "'\"'\"'") + "'"


def sh(value: object) -> Quoted:
    """One word of a shell command."""
    return Quoted(_quotes(_one_line(value)))


def sh_lines(value: object) -> list[Quoted]:
    """Each line of a text as a word of a shell command; tabs stay."""
    text = str(value)
    if wrong := unfit(text, lines=True):
        raise ValueError(f"{wrong} cannot stand in a text here")
    return [Quoted(_quotes(line)) for line in text.removesuffix("\n").split("\n")]


def bare(value: object) -> Quoted:
    """Quoted words of a shell command without a backslash, for a shell whose variable `b` is one."""
    return Quoted(str(value).replace("\\", "'\"$b\"'"))


def ks(value: object) -> Quoted:
    """The value of a kickstart option or argument, which pykickstart reads by shlex with comments."""
    text = _one_line(value)
    if text == "--":
        raise ValueError("`--` cannot stand in a value here")  # argparse, which pykickstart stands on, drops it anywhere
    return Quoted(_quotes(text))


def yaml(value: object) -> Quoted:
    """A scalar of YAML 1.1, YAML 1.2 and JSON alike: text in double quotes, a number, true, false, null."""
    return Quoted(_MUST_ESCAPE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(_scalar(value), ensure_ascii=False)))


def _scalar(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return str(value).encode("utf-8").decode("utf-8")  # lone surrogates: UnicodeEncodeError, which is a ValueError


def python(value: object) -> Quoted:
    """A literal of Python."""
    return Quoted(ascii(_scalar(value)))


def preseed(value: object) -> Quoted:
    """A preseed value: the rest of its line. White space at its ends, and a backslash at its end, would be lost."""
    text = _one_line(value)
    if text != text.strip() or text.endswith("\\"):
        raise ValueError("white space at either end, or a backslash at the end, cannot stand in a preseed value")
    return Quoted(text)


def package(value: object) -> Quoted:
    """The name of a package, of a group of dnf (`@core`), or a pattern of names: a word that nothing need be quoted in."""
    text = str(value)
    if not _PACKAGE.fullmatch(text):
        raise ValueError("the name of a package is expected")
    return Quoted(text)


def comment(value: object) -> Quoted:
    """Text in a comment line: what would end the line is a space there."""
    return Quoted(" ".join(_UNFIT.sub(" ", str(value)).split()))


FILTERS: Mapping[str, Callable[[object], Any]] = {
    "sh": sh,
    "sh_lines": sh_lines,
    "bare": bare,
    "ks": ks,
    "yaml": yaml,
    "python": python,
    "preseed": preseed,
    "package": package,
    "comment": comment,
}
