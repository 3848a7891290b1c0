"""What a machine's saved memory is bound to, and whether it may be used: values compared, nothing read.

A guest that is woken goes on as if nothing had been: with the instructions its kernel found at its boot, with devices at the
addresses it gave them, with the addresses it has on its networks. Where any of that differs it would fail in strange ways hours
later, so it is started cold instead, and the reason is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address

from pocketcloud.model.inventory import Domain
from pocketcloud.model.machine import MachineSpec
from pocketcloud.model.names import Name
from pocketcloud.model.record import Memory, NetworkRecord
from pocketcloud.model.sizes import MIB

COMPUTER, PROCESSOR, QEMU, LIBVIRT = "computer", "processor", "QEMU", "libvirt"

# What is told first explains what comes after it: on another computer nearly all is different.
_SAID: Mapping[str, str] = {
    COMPUTER: "it was taken on another computer",
    "machine": "it is that of another machine",
    PROCESSOR: "the processor was {was}, is {now}",
    "acceleration": "it ran by {was}, would run by {now}",
    QEMU: "QEMU was {was}, is {now}",
    LIBVIRT: "libvirt was {was}, is {now}",
    "machine type": "the machine type was {was}, is {now}",
    "cpu": "the machine's processor was {was}, is {now}",
    "memory": "the machine had {was} of memory, has {now}",
    "vcpus": "the machine had {was} vcpus, has {now}",
    "firmware": "the firmware was {was}, is {now}",
    "disks": "the disks were {was}, are {now}",
    "networks": "the networks were {was}, are {now}",
}


def bound_to(
    spec: MachineSpec,
    addresses: Mapping[Name, IPv4Address],
    networks: Mapping[Name, NetworkRecord],
    domain: Domain | None,
    here: Mapping[str, str],
) -> dict[str, str]:
    """What has to be the same where the memory of a machine is used, by names that people know. `addresses` and `networks` are
    those of its record, `domain` is what libvirt has of it (None: not defined, its machine type is not known yet), `here` says
    what this host is (`COMPUTER`, `PROCESSOR`, `QEMU`, `LIBVIRT`)."""
    nics = [f"{nic.mac} on {nic.network}" for nic in spec.nics]
    places = [f"{name} {address} in {networks[name].subnet_text}" for name, address in addresses.items() if name in networks]
    places += [f"{name} on {network.bridge}" for name, network in networks.items() if network.bridge]
    disks = [f"{disk.target} {disk.serial or '-'} {disk.format}{' ro' * disk.readonly}" for disk in spec.disks]
    found = {
        **here,
        "machine": spec.uuid,
        "acceleration": "KVM" if spec.acceleration == "kvm" else "emulation",
        "cpu": f"{spec.cpu_mode}{' with nesting' * spec.nested}",
        "memory": f"{spec.memory} B" if spec.memory % MIB else f"{spec.memory // MIB} MiB",
        "vcpus": str(spec.vcpus),
        "firmware": str(spec.firmware),
        "disks": ", ".join(disks),
        "networks": ", ".join((*nics, *places)) or "none",
    }
    return found | ({"machine type": domain.machine_type} if domain else {})


def why_not(memory: Memory, now: Mapping[str, str]) -> str:
    """Why the memory may not be used where things are as `now` (from `bound_to`) says, in words for people; empty: it may."""
    was = memory.made_on
    different = [key for key in {**was, **now} if was.get(key) != now.get(key)]
    first = next((key for key in _SAID if key in different), different[0] if different else "")
    if not first:
        return ""
    said = _SAID.get(first, f"its {first} was {{was}}, is {{now}}")
    return said.format(was=was.get(first) or "not told", now=now.get(first) or "not known")
