"""How much of a thin pool each volume holds by itself and how much it shares: counted by `thin_ls` on the running pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.errors import HostLacks, Refused
from pocketcloud.storage.lvm import complaint
from pocketcloud.storage.metadata_snapshot import metadata_snapshot
from pocketcloud.system import CommandFailed, Runner, run

_FIELDS = "DEV,MAPPED_BYTES,EXCLUSIVE_BYTES,SHARED_BYTES"
# The tools before 1.0 count a terabyte in minutes.
_COUNT_TIMEOUT = 600.0


@dataclass(frozen=True, slots=True)
class Share:
    """What a thin volume occupies, in bytes: `exclusive` is given back when it is removed, `shared` other volumes have too."""

    mapped: int
    exclusive: int
    shared: int


def thin_shares(vg: str, run: Runner = run, folder: Path | None = None) -> Mapping[int, Share]:
    """The share of each thin volume of a kit's pool, by its thin id. `folder` is the one that all users of the kit share.

    A volume's figures are those of one moment. Raises NotFound if the pool is not active, Refused if it cannot be asked, or
    if another program holds a metadata snapshot, NoSpace if its metadata is too full for one, HostLacks without thin_ls.
    """
    with metadata_snapshot(vg, run, folder) as metadata:
        options = ["--metadata-snap", "--no-headers", "-o", _FIELDS]
        try:
            # Its output is taken from a pipe: it could not write to a file on a tmpfs.
            told = run(["thin_ls", *options, metadata], timeout=_COUNT_TIMEOUT).out
        except HostLacks as error:
            hint = "pocketcloud check names the package for this distribution"
            raise HostLacks("thin_ls (thin-provisioning-tools) is not installed", hint=hint) from error
        except CommandFailed as failed:
            raise Refused(
                f"what the volumes of volume group {vg} occupy cannot be counted: {complaint(failed)}",
                hint="pocketcloud kit repair looks at the pool",
            ) from failed
    return read_shares(told)


def read_shares(text: str) -> dict[int, Share]:
    """The rows of `thin_ls -o DEV,MAPPED_BYTES,EXCLUSIVE_BYTES,SHARED_BYTES`, with headers or without."""
    rows = (line.split() for line in text.splitlines())
    return {int(row[0]): Share(*map(int, row[1:4])) for row in rows if len(row) >= 4 and all(cell.isdigit() for cell in row[:4])}
