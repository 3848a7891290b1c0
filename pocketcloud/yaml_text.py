"""Plain values as YAML text: the same bytes everywhere, which YAML 1.1 and 1.2 read alike.

Texts stand without quotes only where no version of YAML takes them for anything else; texts of several lines stand as they are
(`|`). Reading YAML is documents.py's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_BARE = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
# What YAML 1.1 reads as something else than text: bool and null.
_WORDS = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null"))
_STEP = "  "


def yaml_text(value: Mapping[str, Any]) -> str:
    """A mapping of texts to texts, numbers, booleans, None, lists and such mappings, as a document that ends with a newline."""
    return "\n".join(_mapping(value, "")) + "\n"


def _mapping(value: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, item in value.items():
        yield from _entry(f"{indent}{_scalar(key)}:", item, indent)


def _entry(head: str, item: Any, indent: str) -> Iterator[str]:
    if isinstance(item, Mapping) and item:
        yield head
        yield from _mapping(item, indent + _STEP)
    elif isinstance(item, (list, tuple)) and item:
        yield head
        for each in item:
            yield from _listed(each, indent)
    elif isinstance(item, str) and _stands_as_it_is(item):
        yield from _block(head, item, indent + _STEP)
    else:
        yield f"{head} {_scalar(item)}"


def _listed(item: Any, indent: str) -> Iterator[str]:
    if isinstance(item, (list, tuple)) and item:
        raise TypeError("a list in a list")
    if not (isinstance(item, Mapping) and item):
        yield from _entry(f"{indent}-", item, indent)
        return
    first = True
    for line in _mapping(item, indent + _STEP):
        yield f"{indent}- {line[len(indent) + 2 :]}" if first else line
        first = False


def _stands_as_it_is(text: str) -> bool:
    return "\n" in text and bool(text.strip()) and all(c.isprintable() or c in "\n\t" for c in text)


def _block(head: str, text: str, indent: str) -> Iterator[str]:
    body = text.rstrip("\n")
    ends = len(text) - len(body)
    # The number says how far it is indented, so that it may begin with blanks.
    yield f"{head} |{len(_STEP)}{'-' if not ends else '' if ends == 1 else '+'}"
    yield from (f"{indent}{line}" if line else "" for line in [*body.split("\n"), *[""] * (ends - 1)])


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return value if _BARE.fullmatch(value) and value.lower() not in _WORDS else _quoted(value)
    if value is None or isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if isinstance(value, (Mapping, list, tuple)):
        return "{}" if isinstance(value, Mapping) else "[]"
    raise TypeError(f"a {type(value).__name__} cannot be written as YAML")


def _quoted(text: str) -> str:
    """In double quotes, where all that JSON escapes means the same; beyond that, characters by their number."""
    return "".join(c if c.isprintable() else _escaped(c) for c in json.dumps(text, ensure_ascii=False))


def _escaped(char: str) -> str:
    return f"\\U{ord(char):08x}" if ord(char) > 0xFFFF else f"\\u{ord(char):04x}"
