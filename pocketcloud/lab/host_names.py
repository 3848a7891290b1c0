"""The names of a lab's machines on this host: in its /etc/hosts where that was asked for, kept true while the lab is up."""

from __future__ import annotations

from contextlib import AbstractContextManager

from pocketcloud.errors import PocketcloudError
from pocketcloud.events import Note
from pocketcloud.hosts_file import HostLine, change, has_block
from pocketcloud.hypervisor import Hypervisor
from pocketcloud.kit.attached import Places
from pocketcloud.lab.workbench import Workbench
from pocketcloud.locks import held
from pocketcloud.model.names import Name, joined
from pocketcloud.model.record import Record
from pocketcloud.records import InstanceFiles, read_record
from pocketcloud.specs import lab_domain, machine_address


def host_lines(record: Record) -> tuple[HostLine, ...]:
    """A line for each machine that the host reaches. `web` alone is not among the names: it would be another machine's in a copy
    of the lab, or one of the host's own network."""
    found = []
    for name in record.machines:
        if address := machine_address(record, name):
            names = (f"{name}.{lab_domain(record.instance)}", f"{name}.{record.instance}")
            found.append(HostLine(address, names))
    return tuple(found)


def is_up(hypervisor: Hypervisor, files: InstanceFiles) -> bool:
    """Whether the lab's networks are there, so that somebody may answer at its addresses. They may be others at the next `up`."""
    networks = hypervisor.networks(files.kit.id)
    return any(network.active for network in networks if network.mark.instance == files.instance)


def write_names(places: Places, files: InstanceFiles, record: Record, command: str) -> bool:
    """Have the host know the lab's names; whether that changed anything. Raises as `hosts_file.change`."""
    with _hosts_held(places, command):
        return change(places.hosts, _block(files), host_lines(record))


def remove_names(places: Places, files: InstanceFiles, command: str) -> bool:
    """Have the host forget them; whether it knew any."""
    with _hosts_held(places, command):
        return change(places.hosts, _block(files), ())


def settle_names(bench: Workbench, instance: Name) -> None:
    """After a command: where the host knows the lab's names, bring them to what is now, and take them away when the lab is down.
    What keeps that from being done is told, and is no failure of the command."""
    files = bench.files(instance)
    if not has_block(bench.places.hosts, _block(files)):
        return
    try:
        record = read_record(files) if is_up(bench.hypervisor, files) else None
        if record is None:
            remove_names(bench.places, files, bench.command)
            bench.emit(Note(f"the names of lab {instance} are taken out of {bench.places.hosts}"))
        elif write_names(bench.places, files, record, bench.command):
            bench.emit(Note(f"the names of lab {instance} are renewed in {bench.places.hosts}"))
    except PocketcloudError as failure:
        bench.emit(Note(failure.message, warn=True))


def _hosts_held(places: Places, command: str) -> AbstractContextManager[None]:
    return held(places.locks, "hosts", command, wait=True)


def _block(files: InstanceFiles) -> str:
    return joined(files.kit.name, files.instance)
