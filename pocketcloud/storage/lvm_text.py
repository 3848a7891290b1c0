"""LVM's text form of a volume group, as `vgcfgbackup` writes and `vgcfgrestore` reads it: sections, lists, texts and numbers.

lvm.conf(5) and lib/config in lvm2's sources describe it. Here only what metadata has; comments are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TypeAlias

from pocketcloud.errors import Refused

Value: TypeAlias = "int | str | list[int | str] | Section"
Section: TypeAlias = dict[str, Value]

_TOKEN = re.compile(
    r"""
    (?P<space>\s+|\#[^\n]*)
    | (?P<text>"(?:[^"\\]|\\.)*")
    | (?P<number>-?\d+(?![\w.+-]))
    | (?P<key>[\w.+/-]+)
    | (?P<sign>[{}\[\]=,])
    """,
    re.VERBOSE | re.DOTALL,
)
_BARE_KEY = re.compile(r"[A-Za-z_][\w.+-]*")
_DEEPEST = 16


class _Tokens:
    """The tokens of a text, with one to look at before it is taken."""

    def __init__(self, text: str) -> None:
        self._tokens = self._read(text)
        self.kind, self.word = next(self._tokens)

    @staticmethod
    def _read(text: str) -> Iterator[tuple[str, str]]:
        at = 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise _damaged(f"line {text.count(chr(10), 0, at) + 1} is none of it")
            at = found.end()
            if found.lastgroup != "space":
                yield found.lastgroup or "", found[0]
        yield "end", ""

    def take(self) -> str:
        """The word at hand; goes on to the next."""
        word = self.word
        self.kind, self.word = next(self._tokens) if self.kind != "end" else ("end", "")
        return word

    def expect(self, word: str) -> None:
        """Pass over a sign. Raises Refused if it is not there."""
        if self.take() != word:
            raise _damaged(f"a {word!r} is missing")


def _damaged(what: str) -> Refused:
    return Refused(f"LVM's description of the volume group cannot be used: {what}")


def read_text(text: str) -> Section:
    """The sections of a text. Raises Refused for what is none."""
    tokens = _Tokens(text)
    found = _section(tokens, 0)
    if tokens.kind != "end":
        raise _damaged(f"{tokens.word!r} closes nothing")
    return found


def _section(tokens: _Tokens, depth: int) -> Section:
    if depth > _DEEPEST:
        raise _damaged("it is nested too deep")
    found: Section = {}
    while tokens.kind in ("key", "text", "number"):
        key = _text(tokens.take())
        if tokens.word == "{" and tokens.kind == "sign":
            tokens.take()
            found[key] = _section(tokens, depth + 1)
            tokens.expect("}")
        else:
            tokens.expect("=")
            found[key] = _value(tokens)
    return found


def _value(tokens: _Tokens) -> Value:
    if tokens.word != "[" or tokens.kind != "sign":
        return _scalar(tokens)
    tokens.take()
    found: list[int | str] = []
    while tokens.kind in ("text", "number"):
        found.append(_scalar(tokens))
        if tokens.word != ",":
            break
        tokens.take()
    tokens.expect("]")
    return found


def _scalar(tokens: _Tokens) -> int | str:
    match tokens.kind:
        case "number":
            return int(tokens.take())
        case "text":
            return _text(tokens.take())
        case _:
            raise _damaged(f"{tokens.word[:40]!r} is no value")


def _text(word: str) -> str:
    return re.sub(r"\\(.)", r"\1", word[1:-1], flags=re.DOTALL) if word.startswith('"') else word


def write_text(section: Mapping[str, Value]) -> str:
    """The text of sections, as LVM reads it."""
    return "".join(f"{line}\n" for line in _lines(section, ""))


def _lines(section: Mapping[str, Value], indent: str) -> Iterator[str]:
    for key, value in section.items():
        name = key if _BARE_KEY.fullmatch(key) else _quoted(key)
        if isinstance(value, dict):
            yield f"{indent}{name} {{"
            yield from _lines(value, f"{indent}\t")
            yield f"{indent}}}"
        else:
            told = f"[{', '.join(map(_written, value))}]" if isinstance(value, list) else _written(value)
            yield f"{indent}{name} = {told}"


def _written(value: int | str) -> str:
    return str(value) if isinstance(value, int) else _quoted(value)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
