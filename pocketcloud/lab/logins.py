"""How to come into a machine of a lab, from its record and its files."""

from __future__ import annotations

from pocketcloud.guest import Login
from pocketcloud.keys import kit_key, read_public
from pocketcloud.model.record import Record
from pocketcloud.records import InstanceFiles
from pocketcloud.specs import machine_address


def login_of(files: InstanceFiles, record: Record, machine: str, user: str = "root") -> Login | None:
    """The way into a machine; None if it is on no network. Raises NotFound or Refused where a key cannot be read."""
    address = machine_address(record, machine)
    if address is None:
        return None
    host_key = " ".join(read_public(files.host_key(machine)).split()[:2])
    return Login(address, host_key, kit_key(files.kit.path).private, user)
