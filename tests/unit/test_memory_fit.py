"""Whether saved memory may be used: every thing that it is bound to, changed one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from pocketcloud.memory_fit import bound_to, why_not
from pocketcloud.model.base import Arch, Firmware
from pocketcloud.model.inventory import Domain, DomainState
from pocketcloud.model.lab import NetworkKind
from pocketcloud.model.machine import DiskSpec, MachineSpec, Mark, NicSpec
from pocketcloud.model.names import Name
from pocketcloud.model.profile import Acceleration, DiskTuning
from pocketcloud.model.record import Memory, NetworkRecord

TUNING = DiskTuning("none", "threads")
MARK = Mark("k", "id", "demo", "web")
SPEC = MachineSpec(
    name="k.demo.web",
    uuid="0f5c4a9e-8f55-5e2e-9a52-0d6f7f1f4c11",
    mark=MARK,
    title="web",
    arch=Arch.X86_64,
    machine="q35",
    acceleration=Acceleration.KVM,
    cpu_mode="host-passthrough",
    vcpus=2,
    memory=512 << 20,
    firmware=Firmware.EFI,
    nvram=Path("/kit/nvram/demo.web.fd"),
    disks=(DiskSpec("vda", Path("/kit/g1"), "qcow2", TUNING, "root"), DiskSpec("vdz", Path("/s"), "raw", TUNING, "seed", True)),  # noqa: FBT003 - a value, in order
    nics=(NicSpec("52:54:00:01:02:03", "k.demo.front"),),
    serial_log=Path("/kit/console"),
)
FRONT = Name("front")
PLACE = {FRONT: IPv4Address("10.77.3.10")}
NETS = {FRONT: NetworkRecord(NetworkKind.NAT, IPv4Network("10.77.3.0/24"))}
DOMAIN = Domain(SPEC.name, MARK, DomainState.RUNNING, {}, agent=True, machine_type="pc-q35-7.2")
HERE = {"computer": "c1", "processor": "AMD EPYC, f00", "QEMU": "7.2.0", "libvirt": "9.0.0"}


def now(
    spec: MachineSpec = SPEC,
    place: Mapping[Name, IPv4Address] = PLACE,
    nets: Mapping[Name, NetworkRecord] = NETS,
    domain: Domain | None = DOMAIN,
    **here: str,
) -> dict[str, str]:
    return bound_to(spec, place, nets, domain, HERE | here)


MEMORY = Memory("demo.web@clean.g2.ram", 4096, "ab" * 32, now())


def test_memory_is_used_where_all_is_as_it_was() -> None:
    assert why_not(MEMORY, now()) == ""
    elsewhere = replace(SPEC, title="renamed", serial_log=Path("/other"), cpus="0-3", nvram=Path("/n"))
    disks = tuple(replace(disk, path=Path("/kit/g9"), tuning=DiskTuning("writeback", "native")) for disk in SPEC.disks)
    assert why_not(MEMORY, now(replace(elsewhere, disks=disks))) == "", "where its files lie is nothing that a guest sees"
    later = replace(DOMAIN, state=DomainState.OFF, agent=False)
    assert why_not(MEMORY, now(domain=later)) == ""


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"computer": "c2"}, "it was taken on another computer"),
        ({"processor": "AMD EPYC, f01"}, "the processor was AMD EPYC, f00, is AMD EPYC, f01"),
        ({"QEMU": "9.0.1"}, "QEMU was 7.2.0, is 9.0.1"),
        ({"libvirt": "11.3.0"}, "libvirt was 9.0.0, is 11.3.0"),
        ({"spec": replace(SPEC, uuid="other")}, "it is that of another machine"),
        ({"spec": replace(SPEC, acceleration=Acceleration.EMULATION)}, "it ran by KVM, would run by emulation"),
        ({"domain": replace(DOMAIN, machine_type="pc-q35-9.0")}, "the machine type was pc-q35-7.2, is pc-q35-9.0"),
        ({"domain": None}, "the machine type was pc-q35-7.2, is not known"),
        ({"spec": replace(SPEC, memory=1 << 30)}, "the machine had 512 MiB of memory, has 1024 MiB"),
        ({"spec": replace(SPEC, memory=(512 << 20) + 1)}, "has 536870913 B"),
        ({"spec": replace(SPEC, vcpus=4)}, "the machine had 2 vcpus, has 4"),
        ({"spec": replace(SPEC, cpu_mode="host-model")}, "was host-passthrough, is host-model"),
        ({"spec": replace(SPEC, nested=True)}, "was host-passthrough, is host-passthrough with nesting"),
        ({"spec": replace(SPEC, firmware=Firmware.BIOS)}, "the firmware was"),
        ({"spec": replace(SPEC, disks=SPEC.disks[:1])}, "the disks were vda root qcow2, vdz seed raw ro, are vda root qcow2"),
        ({"spec": replace(SPEC, disks=(replace(SPEC.disks[0], format="raw"), SPEC.disks[1]))}, "the disks were"),
        ({"spec": replace(SPEC, nics=(NicSpec("52:54:00:01:02:04", "k.demo.front"),))}, "the networks were"),
        ({"spec": replace(SPEC, nics=())}, "the networks were"),
        ({"place": {FRONT: IPv4Address("10.77.3.11")}}, "10.77.3.11"),
        ({"nets": {**NETS, Name("lan"): NetworkRecord(NetworkKind.BRIDGE, bridge="br1")}}, "lan on br1"),
        ({"nets": {FRONT: replace(NETS[FRONT], subnet=IPv4Network("10.77.0.0/16"))}}, "are 52:54:00:01:02:03 on k.demo.front"),
    ],
)
def test_memory_is_not_used_where_something_differs(changed: dict[str, Any], said: str) -> None:
    why = why_not(MEMORY, now(**changed))
    assert said in why
    assert "\n" not in why


def test_what_explains_the_rest_is_said_first() -> None:
    other = now(replace(SPEC, uuid="x", vcpus=1), QEMU="9.0.1", processor="Cortex", computer="c2")
    assert why_not(MEMORY, other) == "it was taken on another computer"
    del other["computer"]
    assert why_not(MEMORY, other) == "it was taken on another computer", "what is not known is not the same"


def test_a_binding_that_this_pocketcloud_does_not_know_is_kept() -> None:
    newer = replace(MEMORY, made_on={**MEMORY.made_on, "colour": "blue"})
    assert why_not(newer, now()) == "its colour was blue, is not known"
    older = replace(MEMORY, made_on={key: value for key, value in MEMORY.made_on.items() if key != "vcpus"})
    assert why_not(older, now()) == "the machine had not told vcpus, has 2"
    assert why_not(replace(MEMORY, made_on={}), now()) == "it was taken on another computer"
