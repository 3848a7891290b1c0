"""Sizes in bytes and durations in seconds: parsed once at the edge, shown the same way everywhere."""

from __future__ import annotations

import re
from typing import Any, Self

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
_UNITS = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB}
# What libvirt, QEMU and file systems count bytes with.
_LARGEST = (1 << 63) - 1
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(B|KiB|MiB|GiB|TiB)")
_SIZE_RULE = "expected a size with its unit, as 512MiB or 10GiB"
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(s|m|h)")
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_DURATION_RULE = "expected a time with its unit, as 90s, 5m or 1h"


class Size(int):
    """A size in bytes, more than 0. Written with an IEC unit, because 1GB means two things."""

    @classmethod
    def parse(cls, value: object) -> Self:
        """The size in a text such as `512MiB`; an int is bytes. Raises ValueError with the rule in its text."""
        if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
            number = int(min(float(match[1]), _LARGEST) * _UNITS[match[2]])
        elif isinstance(value, int) and not isinstance(value, bool):
            if 0 < value < KIB and not isinstance(value, Size):
                raise ValueError(f"{value} bytes is hardly meant; {_SIZE_RULE}")
            number = value
        else:
            raise ValueError(f"{_SIZE_RULE}, got {_shown(value)}")
        if number <= 0:
            raise ValueError(f"{_SIZE_RULE}, more than 0, got {_shown(value)}")
        if number > _LARGEST:
            raise ValueError(f"{_SIZE_RULE}, less than 8388608TiB, got {_shown(value)}")
        return cls(number)

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: object, _handler: object) -> dict[str, Any]:
        return {"type": "function-plain", "function": {"type": "no-info", "function": cls.parse}}

    @classmethod
    def __get_pydantic_json_schema__(cls, _core: object, _handler: object) -> dict[str, Any]:
        return {"type": ["string", "integer"], "pattern": f"^{_SIZE.pattern}$", "examples": ["512MiB", "10GiB"]}


class Duration(float):
    """A time in seconds, more than 0 and at most a day."""

    @classmethod
    def parse(cls, value: object) -> Self:
        """The time in a text such as `5m`; a number is seconds. Raises ValueError with the rule in its text."""
        if isinstance(value, str) and (match := _DURATION.fullmatch(value)):
            seconds = float(match[1]) * _SECONDS[match[2]]
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            seconds = value
        else:
            raise ValueError(f"{_DURATION_RULE}, got {_shown(value)}")
        if not 0 < seconds <= 86400:
            raise ValueError(f"{_DURATION_RULE}, more than 0 and at most 24h, got {_shown(value)}")
        return cls(seconds)

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: object, _handler: object) -> dict[str, Any]:
        return {"type": "function-plain", "function": {"type": "no-info", "function": cls.parse}}

    @classmethod
    def __get_pydantic_json_schema__(cls, _core: object, _handler: object) -> dict[str, Any]:
        return {"type": ["string", "number"], "pattern": f"^{_DURATION.pattern}$", "examples": ["90s", "5m"]}


def _shown(value: object) -> str:
    text = "nothing" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def size_text(number: int) -> str:
    """`1.5 GiB`: a size for people, three digits at most after the first."""
    for unit, factor in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if number >= factor:
            value = number / factor
            return f"{value:.0f} {unit}" if value >= 100 or value == int(value) else f"{value:.1f} {unit}"
    return f"{number} B"


def duration_text(seconds: float) -> str:
    """`1 min 05 s`: a time for people."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def progress_text(done: int, total: int, seconds: float) -> str:
    """`1 GiB of 4 GiB, 50 MB/s, 1 min 04 s left`: how far work on bytes is that has taken so long. MB are a million bytes, as
    disks are sold."""
    rate = done / max(seconds, 0.001)
    left = f", {duration_text(max(total - done, 0) / rate)} left" if rate else ""
    return f"{size_text(done)} of {size_text(total)}, {rate / 1e6:.0f} MB/s{left}"


def bounded(what: str, size: Size, bounds: tuple[int, int]) -> None:
    """Raise ValueError, naming `what`, unless the size is within these bounds."""
    low, high = bounds
    if not low <= size <= high:
        raise ValueError(f"{what}: expected {size_text(low)} to {size_text(high)}, got {size_text(size)}")
