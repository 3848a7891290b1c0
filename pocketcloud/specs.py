"""From a lab's record to what libvirt is to make of it: specifications of its machines and networks. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Network
from pathlib import Path

from pocketcloud.errors import Refused
from pocketcloud.model.base import Firmware
from pocketcloud.model.kit import Kit
from pocketcloud.model.lab import DISK_SERIAL, SEED_SERIAL
from pocketcloud.model.machine import DiskSpec, Lease, MachineSpec, Mark, NetworkSpec, NicSpec
from pocketcloud.model.names import Name, bridge_name, joined, machine_uuid, network_uuid
from pocketcloud.model.profile import Profile
from pocketcloud.model.record import MachineRecord, Record
from pocketcloud.profiles import Shape
from pocketcloud.records import InstanceFiles

Place = Callable[[str], tuple[Path, str]]
"""Where a volume is, and its format, by its name: `Storage.place`."""

# /dev/vda to /dev/vdz; the seed takes the last.
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def machine_spec(kit: Kit, record: Record, name: Name, profile: Profile, shape: Shape, place: Place) -> MachineSpec:
    """The specification of one machine. Raises Refused if it has more disks than there are names for."""
    machine = record.machines[name]
    files = InstanceFiles(kit, record.instance)
    return MachineSpec(
        name=joined(kit.name, record.instance, name),
        uuid=str(machine_uuid(kit.id, record.instance, name)),
        mark=Mark(kit.name, kit.id, record.instance, name),
        title=f"{name} of lab {record.instance} (pocketcloud kit {kit.name})",
        arch=machine.arch,
        machine=shape.machine,
        acceleration=shape.acceleration,
        cpu_mode=shape.cpu_mode,
        vcpus=machine.definition.vcpus,
        memory=machine.definition.memory,
        firmware=machine.firmware,
        nvram=files.nvram(name) if machine.firmware is Firmware.EFI else None,
        disks=_disks(machine, files.seed(name) if machine.definition.needs_ssh else None, profile, kit, place),
        nics=tuple(NicSpec(mac, joined(kit.name, record.instance, network)) for network, mac in record.macs(name, kit.id)),
        serial_log=files.console(name),
        cpus=shape.cpus,
        nested=machine.definition.runs_machines,
        secure_boot=machine.definition.secure_boot,
        screen=True,
    )


def _disks(machine: MachineRecord, seed: Path | None, profile: Profile, kit: Kit, place: Place) -> tuple[DiskSpec, ...]:
    tuning = profile.media[kit.medium]
    names = sorted(machine.disks, key=lambda disk: (disk != "root", disk))
    if len(names) >= len(_LETTERS):
        raise Refused(f"{len(names)} disks; a machine has at most {len(_LETTERS) - 1}")
    specs = []
    for letter, disk in zip(_LETTERS, names, strict=False):
        path, image_format = place(machine.disks[disk])
        # The guest finds it as /dev/disk/by-id/virtio-NAME.
        specs.append(DiskSpec(f"vd{letter}", path, image_format, tuning, serial=disk[:DISK_SERIAL]))
    if seed is not None:
        specs.append(DiskSpec("vdz", seed, "raw", tuning, serial=SEED_SERIAL, readonly=True))
    return tuple(specs)


def network_spec(kit: Kit, record: Record, name: Name, near: Sequence[IPv4Network] = ()) -> NetworkSpec:
    """The specification of one network: its leases are those of all machines on it. `near` are the networks that the host is on
    or has routes to, which are kept from machines that may not reach them."""
    network = record.networks[name]
    leases = []
    for machine_name, machine in record.machines.items():
        for attached, mac in record.macs(machine_name, kit.id):
            if attached == name and network.subnet:
                leases.append(Lease(mac, machine.addresses[name], str(machine_name)))
    return NetworkSpec(
        name=joined(kit.name, record.instance, name),
        uuid=str(network_uuid(kit.id, record.instance, name)),
        mark=Mark(kit.name, kit.id, record.instance, name),
        bridge=network.bridge or bridge_name(kit.id, record.instance, name),
        kind=network.kind,
        subnet=network.subnet,
        domain=lab_domain(record.instance),
        leases=tuple(leases),
        fenced=tuple(near) if is_fenced(record, name) else None,
    )


def is_fenced(record: Record, name: Name) -> bool:
    """Whether machines on a network are kept from the host's. On an isolated one, too: the host forwards nothing from there, and
    would answer by all of its addresses."""
    wanted = record.lab.networks.get(name)
    return not record.networks[name].bridged and not (wanted and wanted.lan)


def machine_address(record: Record, name: str) -> str | None:
    """Where the host reaches a machine: its address on the first of its networks; None if it is on none."""
    machine = record.machines[Name(name)]
    return next((str(machine.addresses[n]) for n in machine.definition.networks if n in machine.addresses), None)


def lab_domain(instance: str) -> str:
    """The DNS domain of a lab. `.internal` is reserved for private use (ICANN resolution 2024.07.29.06)."""
    return f"{instance}.internal"
