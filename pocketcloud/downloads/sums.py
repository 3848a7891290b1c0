"""Lists of checksums as distributions publish them: which sum a list has for a file. Pure.

Formats: GNU coreutils' (`HEX  name`, `HEX *name`), BSD's tagged (`SHA256 (name) = HEX`, in Fedora's and AlmaLinux's CHECKSUM
files) and that of OVF manifests (`SHA256(name)= HEX`). SHA-256 and SHA-512 count; weaker sums are passed over.
Sources: coreutils' manual, "cksum output modes"; DMTF DSP0243, 5.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote, urljoin, urlsplit

_GNU = re.compile(r"([0-9a-fA-F]{64}|[0-9a-fA-F]{128}) [ *]?(\S.*)")
_TAGGED = re.compile(r"(SHA256|SHA512) ?\((.+)\) ?= ?([0-9a-fA-F]+)")
_ALGORITHMS = {64: "sha256", 128: "sha512"}


@dataclass(frozen=True, slots=True)
class Sum:
    """A checksum: `algorithm` as hashlib names it, `hexadecimal` in small letters."""

    algorithm: str
    hexadecimal: str


class NoSum(ValueError):
    """The list does not say what is asked; the text says why, for people."""


def entries(text: str) -> Iterator[tuple[str, Sum]]:
    """The names in a list and their sums, in its order; lines of other kinds are passed over."""
    for line in text.splitlines():
        stripped = line.strip()
        if match := _TAGGED.fullmatch(stripped):
            found = Sum(match[1].lower(), match[3].lower())
            name = match[2]
        elif match := _GNU.fullmatch(stripped):
            found, name = Sum(_ALGORITHMS[len(match[1])], match[1].lower()), match[2]
        else:
            continue
        if _ALGORITHMS.get(len(found.hexadecimal)) == found.algorithm:
            yield name, found


def sum_of(text: str, url: str, list_url: str) -> Sum:
    """The sum that the list at `list_url` has for the file at `url`: for its very place as seen from the list, else for its
    name, if the list has that once. A list with two algorithms is taken by the stronger. Raises NoSum."""
    listed = list(entries(text))
    if not listed:
        raise NoSum("it has no SHA-256 or SHA-512 sums in it")
    wanted = unquote(urlsplit(url).path)
    name = wanted.rpartition("/")[2]
    here = [found for entry, found in listed if unquote(urlsplit(urljoin(list_url, entry)).path) == wanted]
    named = [found for entry, found in listed if entry.rpartition("/")[2] == name]
    for candidates in (here, named):
        strongest = max((len(found.hexadecimal) for found in candidates), default=0)
        kept = {found for found in candidates if len(found.hexadecimal) == strongest}
        if len(kept) == 1:
            return kept.pop()
        if kept:
            raise NoSum(f"it has {len(kept)} different sums for {name}")
    raise NoSum(f"{name} is not in it")
