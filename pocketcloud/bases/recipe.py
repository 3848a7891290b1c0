"""What a builder is to builder.py: a recipe, which says what goes into a base, what it takes, and makes the volume.

The recipes are in modules of their own (bootstrap.py and others). When a base is needed, under which name, its record and what is
left of older ones are builder.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from pocketcloud.bases.needs import Ground
from pocketcloud.bases.progress import OnProgress
from pocketcloud.hypervisor import Hypervisor
from pocketcloud.model.base import UNKNOWN, Arch, Base, Definition, Firmware, Newest
from pocketcloud.model.kit import Kit
from pocketcloud.storage import Storage
from pocketcloud.system import Runner

D_co = TypeVar("D_co", bound=Definition, covariant=True)
D_contra = TypeVar("D_contra", bound=Definition, contravariant=True)


class Supply(Protocol):
    """The kit's content cache, as far as builds go: it stands in for the network."""

    def lacking(self, definition: Definition, arch: Arch) -> tuple[str, ...]:
        """What the build would fetch and the cache does not have, a line each; empty where all is there. Starts nothing."""
        ...

    def serve(self, address: str = "127.0.0.1") -> AbstractContextManager[str]:
        """An HTTP proxy on that address of the host while the context lasts, which answers from the cache alone; its URL.
        Addresses must be asked for by http://, whatever they are elsewhere. Raises Refused or HostLacks."""
        ...

    def kept(self, url: str) -> Path | None:
        """The file of that address as the cache has it, whole; None if it has none."""
        ...


def plain_http(url: str) -> str:
    """The address by which a supply is asked for it."""
    return f"http://{url.removeprefix('https://')}" if url.startswith("https://") else url


@dataclass(frozen=True, slots=True)
class Order(Generic[D_co]):
    """One build. `work` is an empty folder in the kit, owned by the namespace's root, which goes afterwards whatever happens;
    `digest` that of all that goes in; `mirror` is where the user wants packages from; `hypervisor` connects when it is asked;
    `tell` gets the fraction done of the whole build; `supply`: the kit's cache, and nothing may be fetched but from there;
    None: from anywhere. `anew`: nothing that an earlier build of the same inputs kept is to be used; `parent` is the base that a
    layer stands on; `measured` takes what else the recipe knows of what it made."""

    kit: Kit
    storage: Storage
    definition: D_co
    arch: Arch
    digest: str
    work: Path
    mirror: str | None
    here: Ground
    run: Runner
    tell: OnProgress
    hypervisor: Callable[[], Hypervisor]
    supply: Supply | None = None
    anew: bool = False
    parent: Base | None = None
    measured: Callable[[Measured], None] = lambda _: None

    @property
    def offline(self) -> bool:
        """Whether nothing may be fetched but from the kit's cache."""
        return self.supply is not None


@dataclass(frozen=True, slots=True)
class Measured:
    """What a recipe may know of what it made: the bytes of its files before they were sealed and trimmed, and what the package
    sources had."""

    unsealed: int = 0
    packages: Newest = UNKNOWN


class Recipe(Protocol[D_contra]):
    """How bases of one builder are made. Raises HostLacks, NoSpace, NotFound or PartlyDone, with the lines that explain it."""

    def inputs(self, definition: D_contra, arch: Arch) -> Iterator[tuple[str, bytes]]:
        """What makes the base beside its definition and the architecture: names and contents in a fixed order. Touches no
        network and asks nobody."""
        ...

    def check(self, order: Order[D_contra]) -> None:
        """Raise with everything that is missing at once, before anything is begun."""
        ...

    def make(self, order: Order[D_contra], volume: str) -> str:
        """Make the volume of that name in the store, whole or not at all; return what it was made with, for people."""
        ...

    def firmware(self, definition: D_contra, arch: Arch) -> Firmware:
        """What starts machines from it."""
        ...
