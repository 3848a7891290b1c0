"""The names of system packages on this distribution, from packages.tsv, the one home they have.

The table: tab-separated, `capability`, `needed-for`, then a column per family of distributions. A cell holds packages
separated by a space, `-` for none; `NAME@x86_64` is meant for hosts of that architecture alone. Lines with # are comments.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pocketcloud.model.facts import Distribution
from pocketcloud.resources import shipped


class Family(StrEnum):
    """Distributions that share their package names: a column of the table."""

    DEBIAN = "debian"
    UBUNTU = "ubuntu"
    FEDORA = "fedora"
    EL = "el"


@dataclass(frozen=True, slots=True)
class Capability:
    """Something the host must be able to do, what it is needed for, and the packages that bring it (with their `@arch`)."""

    name: str
    needed_for: str
    packages: Mapping[Family, tuple[str, ...]]


# The nearest first: Ubuntu also says that it is like Debian, CentOS that it is like Fedora.
_KINSHIP = (
    (Family.UBUNTU, ("ubuntu",)),
    (Family.DEBIAN, ("debian", "raspbian")),
    (Family.EL, ("rhel", "centos", "almalinux", "rocky", "ol")),
    (Family.FEDORA, ("fedora",)),
)


def family(distribution: Distribution) -> Family | None:
    """The column for a distribution: by its own id, else by those it says it is like; None for one of none of them."""
    for ids in ((distribution.id,), distribution.like):
        for kin, names in _KINSHIP:
            if set(names) & set(ids):
                return kin
    return None


@functools.cache
def capabilities(table: Path | None = None) -> Mapping[str, Capability]:
    """All capabilities of the table (left out: the one we ship), by name."""
    rows = [row for row in (table or shipped("packages.tsv")).read_text(encoding="utf-8").splitlines() if row.strip()]
    cells = [row.split("\t") for row in rows if not row.startswith("#")]
    header, body = cells[0], cells[1:]
    columns = {kin: header.index(kin) for kin in Family}
    return {row[0]: Capability(row[0], row[1], {kin: _packages(row[column]) for kin, column in columns.items()}) for row in body}


def _packages(cell: str) -> tuple[str, ...]:
    return () if cell.strip() == "-" else tuple(cell.split())


def packages(distribution: Distribution, machine: str, names: Iterable[str]) -> tuple[str, ...]:
    """The packages that bring the capabilities `names` on a host of architecture `machine`, each once; empty on an unknown
    distribution. Raises KeyError for a capability that the table does not have."""
    kin = family(distribution)
    if kin is None:
        return ()
    wanted = (package for name in names for package in capabilities()[name].packages[kin])
    split = (package.partition("@") for package in wanted)
    return tuple(dict.fromkeys(name for name, _, arch in split if arch in ("", machine)))


def install_command(distribution: Distribution, machine: str, names: Iterable[str]) -> str:
    """The command line that installs them, for root; empty where there is nothing to install or the distribution is not one
    whose package names we know."""
    return shlex.join(install_words(distribution, machine, names))


def install_words(distribution: Distribution, machine: str, names: Iterable[str]) -> tuple[str, ...]:
    """The words of `install_command`."""
    wanted = packages(distribution, machine, names)
    if not wanted:
        return ()
    apt = family(distribution) in (Family.DEBIAN, Family.UBUNTU)
    return ("apt-get" if apt else "dnf", "install", "-y", *wanted)


def has_no_lists(root: Path) -> bool:
    """Whether the apt of the host under `root` has no lists of packages yet (apt-get(8): /var/lib/apt/lists)."""
    folder = root / "var/lib/apt/lists"
    return folder.is_dir() and not any("_Packages" in name for name in _names(folder))


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return ["_Packages"]  # not ours to see: taken for a computer in use
