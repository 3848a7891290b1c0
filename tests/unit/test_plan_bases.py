"""Labs and the bases they stand on: what is made anew from a newer one, and on which architecture."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pocketcloud.errors import NotFound, Refused
from pocketcloud.model.base import Arch, Base, CpuLevel
from pocketcloud.model.inventory import DomainState
from pocketcloud.model.lab import Lab
from pocketcloud.model.names import Name
from pocketcloud.model.record import Snapshot
from pocketcloud.plan.drafting import Ground
from pocketcloud.plan.reset import plan_reset
from pocketcloud.plan.steps import DefineMachine, KillMachine, Plan, RemoveVolumes, TakeSnapshot
from pocketcloud.plan.up import plan_onto_new_base, plan_up
from tests.plans import LAB, check_up, fresh_host, ids, raise_lab, up_host
from tests.simulation import INSTANCE, Host, base, ground

ARM = replace(ground(), arch=Arch.AARCH64)


def renewed(host: Host) -> Host:
    """The host after a refresh: the same inputs, so the same digest, and a volume of its own."""
    before = host.bases["tiny"]
    host.add_base(replace(before, volume=f"{before.volume}.2", built="2024-02-01T00:00:00+00:00"))
    return host


def onto_new(host: Host, *machines: str) -> Plan:
    return plan_onto_new_base(INSTANCE, machines, host.inventory(), ground())


def on(arch: str) -> Lab:
    return replace(LAB, arch="native" if arch == "native" else Arch(arch))


def test_up_only_tells_of_a_newer_base() -> None:
    plan = plan_up(LAB, INSTANCE, renewed(up_host()).inventory(), ground())
    told = [note for note in plan.notes if "newer tiny" in note]
    assert len(told) == len(LAB.machines)
    assert all("lab reset demo --onto-new-base" in note for note in told)
    assert plan.loses == ()
    assert not ids(plan, KillMachine, DefineMachine)


def test_all_machines_are_made_anew_and_provisioned_and_clean_is_taken_of_that() -> None:
    host = renewed(up_host())
    host.write("a", "work of a student")
    old = set(host.volumes)
    plan = onto_new(host)
    assert set(plan.loses) == set(LAB.machines)
    assert ids(plan, TakeSnapshot) == ["clean"]
    host.apply(plan)
    check_up(host, LAB)
    record = host.record
    assert record is not None
    for name in LAB.machines:
        assert record.machines[name].base_volume == host.bases["tiny"].volume
        assert "work of a student" not in host.volumes[record.machines[name].disks["root"]].content
    left = {volume for volume in set(host.volumes) & old if volume.startswith("lab.")}
    assert left == set(), "the disks of before go"
    assert ids(onto_new(host), KillMachine, RemoveVolumes, TakeSnapshot) == [], "again: nothing to do"


def test_what_is_lost_is_said() -> None:
    host = renewed(up_host())
    assert host.record is not None
    clean = host.record.clean
    assert clean is not None
    host.record = replace(
        host.record, snapshots={**host.record.snapshots, Name("before-lunch"): Snapshot("2024", clean.machines)}
    )
    notes = [note for note in onto_new(host).notes if note.startswith("a is made anew")]
    assert notes == [
        "a is made anew from the tiny built 2024-02-01T00:00:00+00:00; lost: what is on its disks, its state clean, its state"
        " before-lunch"
    ]
    record = onto_new(host).record
    assert record is not None
    assert not [name for name, state in record.snapshots.items() if name == "before-lunch" and "a" in state.machines]


def test_machines_that_are_not_named_stay_where_they_are() -> None:
    host = renewed(up_host())
    plan = onto_new(host, "a")
    assert plan.loses == ("a",)
    host.apply(plan)
    record = host.record
    assert record is not None
    assert record.machines[Name("a")].base_volume != record.machines[Name("b")].base_volume
    with pytest.raises(NotFound, match="has no machine z"):
        onto_new(host, "z")


def test_without_a_newer_base_nothing_is_lost() -> None:
    plan = onto_new(up_host())
    assert plan.loses == ()
    assert "a: there is no newer tiny; it is left as it is" in plan.notes
    assert not ids(plan, KillMachine, DefineMachine, RemoveVolumes)


def test_an_interrupted_change_of_base_is_gone_on_with() -> None:
    """At each step: `up` then ends with the lab on one of the bases, `--onto-new-base` on the new one."""
    for steps in range(len(onto_new(renewed(up_host())).steps) + 1):
        host = renewed(up_host())
        plan = onto_new(host)
        host.apply(replace(plan, steps=plan.steps[:steps]))
        raise_lab(LAB, host)
        check_up(host, LAB)
        host.apply(onto_new(host))
        check_up(host, LAB)
        record = host.record
        assert record is not None
        assert {machine.base_volume for machine in record.machines.values()} == {host.bases["tiny"].volume}


# -- architectures ----------------------------------------------------------------------------------------------------


def arm_host(made: Ground = ARM) -> Host:
    """A host whose lab was made for ARM64."""
    arm = Base(**{**base_fields(base("tiny", "arm")), "arch": Arch.AARCH64})  # type: ignore[arg-type] # the fields of a base
    host = Host.with_bases(arm)
    host.apply(plan_up(LAB, INSTANCE, host.inventory(), made))
    host.reboot()
    return host


def base_fields(made: Base) -> dict[str, object]:
    return {name: getattr(made, name) for name in Base.__dataclass_fields__ if not name.startswith("__")}


def test_a_base_of_another_architecture_is_no_base_until_it_is_asked_for() -> None:
    kit = replace(ground(), other_bases={"tiny": [Arch.AARCH64]})
    with pytest.raises(NotFound, match="no base tiny for x86_64") as refused:
        plan_up(LAB, INSTANCE, Host().inventory(), kit)
    assert refused.value.hint.startswith("pocketcloud base build tiny; or say `arch: aarch64` in the lab file")
    with pytest.raises(NotFound, match="no base tiny for aarch64") as refused:
        plan_up(on("aarch64"), INSTANCE, Host().inventory(), ARM)
    assert refused.value.hint == "pocketcloud base build tiny --arch aarch64"


def test_a_base_that_nobody_defined_is_imported() -> None:
    with pytest.raises(NotFound, match="no base tiny") as refused:
        plan_up(LAB, INSTANCE, Host().inventory(), replace(ground(), buildable={"debian-12"}))
    assert refused.value.hint == "pocketcloud base import tiny IMAGE"


def test_a_native_lab_is_not_emulated_on_another_computer() -> None:
    host = arm_host()
    with pytest.raises(Refused, match="made for aarch64, this host is x86_64") as refused:
        plan_up(LAB, INSTANCE, host.inventory(), ground())
    assert "arch: aarch64" in refused.value.hint
    assert "--reconfigure" in refused.value.hint
    with pytest.raises(Refused, match="is not emulated"):
        plan_reset(INSTANCE, (), host.inventory(), ground())


def test_a_lab_that_names_its_architecture_is_emulated_elsewhere() -> None:
    host = arm_host()
    plan = plan_up(on("aarch64"), INSTANCE, host.inventory(), ARM)
    assert plan.loses == ()
    host.apply(plan)
    assert host.record is not None
    assert {machine.arch for machine in host.record.machines.values()} == {Arch.AARCH64}
    assert host.record is not None
    assert plan_reset(INSTANCE, (), host.inventory(), ARM).steps


def test_another_architecture_means_machines_made_anew_and_waits_for_reconfigure() -> None:
    host = up_host()
    arm = Base(**{**base_fields(base("tiny", "arm")), "arch": Arch.AARCH64})  # type: ignore[arg-type] # the fields of a base
    host.add_base(arm)
    plan = plan_up(on("aarch64"), INSTANCE, host.inventory(), ARM)
    assert any("a: arch changed in the file; waits for --reconfigure (makes it anew)" in note for note in plan.notes)
    assert plan.loses == ()
    plan = plan_up(on("aarch64"), INSTANCE, host.inventory(), ARM, reconfigure=True)
    assert set(plan.loses) == set(LAB.machines)
    host.apply(plan)
    assert host.record is not None
    assert {machine.arch for machine in host.record.machines.values()} == {Arch.AARCH64}


def test_a_lab_is_for_this_host_unless_it_says_otherwise() -> None:
    assert fresh_host().record is None
    assert LAB.arch == "native"
    assert LAB.arch_on(Arch.AARCH64) is Arch.AARCH64
    assert on("x86_64").arch_on(Arch.AARCH64) is Arch.X86_64


def test_a_base_for_newer_processors_is_refused_before_anything_is_begun() -> None:
    """As on an older laptop that the kit was carried to: by up and by reset, but for machines that run."""
    host = up_host()
    host.add_base(replace(host.bases["tiny"], cpu=CpuLevel.V3))
    old = replace(ground(), cpu_lacks={CpuLevel.V3: "its system needs x86-64-v3, and this one lacks avx2"})
    plan_up(LAB, INSTANCE, host.inventory(), old)
    for machine in host.domains.values():
        machine.state = DomainState.OFF
    with pytest.raises(Refused, match="lacks avx2") as caught:
        plan_up(LAB, INSTANCE, host.inventory(), old)
    assert caught.value.message.count("tiny") == len(LAB.machines)
    with pytest.raises(Refused, match="lacks avx2"):
        plan_reset(INSTANCE, [], host.inventory(), old)
    plan_up(LAB, INSTANCE, host.inventory(), ground())
    fresh = fresh_host()
    fresh.add_base(replace(fresh.bases["tiny"], cpu=CpuLevel.V3))
    with pytest.raises(Refused, match="lacks avx2"):
        plan_up(LAB, INSTANCE, fresh.inventory(), old)
