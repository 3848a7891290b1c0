"""An extra disk of a machine, as a lab file or a base's definition asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from pocketcloud.model.names import Name
from pocketcloud.model.sizes import MIB, TIB, Size, bounded

DISK_BOUNDS = (1 * MIB, 64 * TIB)


@dataclass(frozen=True, slots=True)
class Disk:
    """An extra, empty disk."""

    # Keys that a file may not have are refused; pydantic reads this attribute of a plain dataclass (documents.py).
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    name: Name
    size: Size

    def __post_init__(self) -> None:
        bounded("size", self.size, DISK_BOUNDS)
