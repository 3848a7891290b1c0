"""The plan of `up`, from each thing that may be there: what it does, what it only says, what it refuses."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from pocketcloud.cli.lab import loss_text
from pocketcloud.errors import NoSpace, NotFound, Refused
from pocketcloud.model.inventory import DomainState
from pocketcloud.model.lab import Lab, LabNetwork
from pocketcloud.model.names import Name
from pocketcloud.model.record import Stage
from pocketcloud.model.sizes import GIB, MIB, Size
from pocketcloud.plan.steps import (
    CloneVolumes,
    CommitRecord,
    CreateVolume,
    EnsureNetwork,
    KillMachine,
    Provision,
    RemoveNetwork,
    RemoveVolumes,
    ResumeMachine,
    SetNvram,
    StartMachine,
    StopMachine,
    TakeSnapshot,
    WaitReady,
    title,
)
from pocketcloud.plan.up import plan_up
from tests.plans import (
    LAB,
    before,
    check_up,
    cloned,
    edited,
    fresh_host,
    ids,
    planned,
    raise_lab,
    removed,
    texts,
    up_host,
)
from tests.simulation import INSTANCE, Host, ground, lab, machine

# -- what is made --------------------------------------------------------------------------------------------------------


def test_a_fresh_lab_is_made_whole() -> None:
    made = planned(fresh_host())
    assert [clone.name for clone in cloned(made)] == ["lab.demo.a.root.g1", "lab.demo.b.root.g1"]
    assert ids(made, CreateVolume) == ["volume.a.data"]
    assert ids(made, EnsureNetwork) == ["network.front"]
    assert ids(made, StartMachine) == ["start.a", "start.b"]
    assert ids(made, Provision) == ["provision.a"]
    assert [step.machines for step in made.steps if isinstance(step, TakeSnapshot)] == [("a", "b")]
    assert ids(made, RemoveVolumes, KillMachine, StopMachine) == []
    assert made.notes == made.loses == ()


def test_machines_do_not_wait_for_each_other() -> None:
    earlier = before(planned(fresh_host()))
    for mine, others in (("a", "b"), ("b", "a")):
        assert not {f"{verb}.{others}" for verb in ("define", "start", "provision", "ready")} & earlier[f"ready.{mine}"]
    assert {"ready.a", "ready.b"} <= earlier["clean"]


def test_every_step_has_a_title_that_names_its_object() -> None:
    for step in planned(fresh_host()).steps:
        assert "{" not in title(step)
        assert step.machine in title(step)


def test_a_lab_that_is_up_is_only_looked_at() -> None:
    made = planned(up_host())
    assert ids(made) == ["network.front", "ready.a", "ready.b"]
    assert made.notes == ()


def test_a_pinned_subnet_is_that_one_or_the_lab_is_refused() -> None:
    pinned = replace(LAB, networks={Name("front"): LabNetwork(subnet=IPv4Network("10.99.1.0/24"))})
    host = fresh_host()
    raise_lab(pinned, host)
    check_up(host, pinned)
    assert host.networks["front"].subnet == "10.99.1.0/24"
    with pytest.raises(Refused, match=r"front is pinned to 10\.99\.1\.0/24, which is taken here by .*a route of the host"):
        planned(fresh_host(), pinned, "10.99.0.0/16")
    waits = planned(up_host(), pinned)
    assert "waits for --reconfigure" in texts(waits.notes)
    host = up_host()
    host.apply(planned(host, pinned, reconfigure=True))
    check_up(host, pinned)
    assert host.networks["front"].subnet == "10.99.1.0/24"


def test_off_machines_are_started_and_nothing_is_made() -> None:
    host = up_host()
    host.reboot()
    made = planned(host)
    assert ids(made, StartMachine) == ["start.a", "start.b"]
    assert ids(made, CloneVolumes, CommitRecord, KillMachine, StopMachine, TakeSnapshot) == []
    host.apply(made)
    check_up(host, LAB)


def test_interrupted_provisioning_makes_the_machine_anew_and_only_that_one() -> None:
    host = up_host()
    assert host.record is not None
    known = host.record.machines[Name("a")]
    host.record = host.record.with_machine(Name("a"), replace(known, stage=Stage.PROVISIONING))
    made = planned(host)
    assert [clone.marks["machine"] for clone in cloned(made)] == ["a"]
    assert ids(made, KillMachine) == ["stop.a"]
    assert ids(made, Provision) == ["provision.a"]
    assert "interrupted" in next(step.reason for step in made.steps if step.id == "stop.a")
    assert [step.machines for step in made.steps if isinstance(step, TakeSnapshot)] == [("a",)]
    host.apply(made)
    check_up(host, LAB)


def test_a_machine_running_on_old_disks_is_started_on_its_own() -> None:
    host = up_host()
    old = host.domains["a"].disks
    assert host.record is not None
    live = host.record.machines[Name("a")].disks["root"]
    host.volumes["lab.demo.a.root.g77"] = replace(host.volumes[live])
    disks = {**host.record.machines[Name("a")].disks, "root": "lab.demo.a.root.g77"}
    host.record = host.record.with_machine(Name("a"), replace(host.record.machines[Name("a")], disks=disks))
    made = planned(host)
    assert ids(made, StopMachine, StartMachine) == ["stop.a", "start.a"]
    assert "old disks" in next(step.reason for step in made.steps if step.id == "stop.a")
    assert removed(made) == [live]
    host.apply(made)
    check_up(host, LAB)
    assert host.domains["a"].disks != old


def test_a_live_volume_left_sealed_is_cloned_on() -> None:
    host = up_host()
    host.write("a", "work")
    host.reboot()
    assert host.record is not None
    live = host.record.machines[Name("a")].disks["root"]
    host.volumes[live].sealed = True
    made = planned(host)
    assert [clone.source for clone in cloned(made)] == [live]
    host.apply(made)
    check_up(host, LAB)
    assert "work" in host.content("a")


def test_a_lost_volume_comes_back_from_clean() -> None:
    host = up_host()
    host.reboot()
    assert host.record is not None
    del host.volumes[host.record.machines[Name("a")].disks["root"]]
    clean = host.record.clean
    assert clean is not None
    kept = {name: replace(part, nvram=f"{name}.clean") for name, part in clean.machines.items()}
    host.nvrams = {"a.clean": (), "b.clean": ()}
    host.record = replace(host.record, snapshots=dict.fromkeys(host.record.snapshots, replace(clean, machines=kept)))
    made = planned(host)
    assert [(step.machine, step.source) for step in made.steps if isinstance(step, SetNvram)] == [("a", "a.clean")]
    assert [(clone.marks["machine"], clone.marks["disk"]) for clone in cloned(made)] == [("a", "root")]
    assert ids(made, Provision) == []
    assert "gone" in made.steps[0].reason
    assert made.loses == ("a",)
    assert made.notes == ("a: its disk root is gone, and comes back as it was in clean; data stays as it is",)
    assert loss_text(made) == "a: a disk is gone, and comes back as it was in clean; the others stay as they are."
    host.apply(made)
    check_up(host, LAB)


def test_a_lost_volume_takes_no_other_with_it() -> None:
    host = up_host()
    host.write("a", "thesis")
    host.reboot()
    assert host.record is not None
    del host.volumes[host.record.machines[Name("a")].disks["data"]]
    made = planned(host)
    assert made.loses == ("a",)
    assert ids(made, SetNvram) == []
    host.apply(made)
    check_up(host, LAB)
    assert "thesis" in host.content("a")
    assert planned(host).loses == ()


def test_a_volume_lost_with_its_clean_state_is_made_anew() -> None:
    host = up_host()
    host.reboot()
    for name in [name for name in host.volumes if name.startswith("lab.demo.a.")]:
        del host.volumes[name]
    made = planned(host)
    assert made.loses == ("a",)
    assert "it is made anew, and taken out of every state" in made.notes[0]
    assert "made anew from the base" in loss_text(made)
    assert ids(made, Provision) == ["provision.a"]
    assert [step.machines for step in made.steps if isinstance(step, TakeSnapshot)] == [("a",)]
    host.apply(made)
    check_up(host, LAB)


@pytest.mark.parametrize("state", [DomainState.PAUSED, DomainState.CRASHED])
def test_a_paused_or_crashed_machine_is_started_anew(state: DomainState) -> None:
    host = up_host()
    host.domains["b"].state = state
    made = planned(host)
    assert ids(made, KillMachine, StartMachine) == ["stop.b", "start.b"]
    assert f"it is {state}" in next(step.reason for step in made.steps if step.id == "stop.b")
    host.apply(made)
    check_up(host, LAB)


def test_a_network_that_is_down_is_started_and_its_machines_with_it() -> None:
    host = up_host(lab(("back", "front"), a=machine("front"), b=machine("back")))
    host.networks["front"] = replace(host.networks["front"], active=False)
    assert host.record is not None
    made = planned(host, host.record.lab)
    assert ids(made, StopMachine, KillMachine) == ["stop.a"]
    host.apply(made)
    check_up(host, host.record.lab)


# -- subnets and addresses -----------------------------------------------------------------------------------------------


def test_a_subnet_taken_meanwhile_is_left_and_addresses_keep_their_host_part() -> None:
    host = up_host()
    host.reboot()
    assert host.record is not None
    before_move = host.record
    old = before_move.networks[Name("front")].subnet
    made = planned(host, LAB, str(old))
    assert any(str(old) in note and "taken" in note for note in made.notes)
    host.apply(made)
    assert host.record.networks[Name("front")].subnet != old
    for name, known in host.record.machines.items():
        address, once = known.addresses[Name("front")], before_move.machines[name].addresses[Name("front")]
        assert int(address) & 0xFF == int(once) & 0xFF
        assert address in host.record.networks[Name("front")].range


def test_a_running_network_stays_whatever_is_taken() -> None:
    host = up_host()
    assert host.record is not None
    subnet = host.record.networks[Name("front")].subnet
    made = planned(host, LAB, str(subnet))
    assert made.record is not None
    assert made.record.networks == host.record.networks
    # Kept, and told: who is on it is not moved, and what was joined since is not reached.
    assert made.notes == (
        f"network front ({subnet}) overlaps {subnet} (a route of the host), so that one of the two is not reached from here;"
        " pocketcloud lab down demo, then lab up, moves it to a free subnet",
    )
    pinned = replace(LAB, networks={Name("front"): LabNetwork(subnet=subnet)})
    assert "it is pinned to that subnet: end what takes it" in texts(planned(host, pinned, "10.77.0.0/16").notes)
    assert planned(host, LAB, "10.78.0.0/16").notes == ()


def switched_off(wanted: Lab = LAB) -> Host:
    """A host with a lab whose networks are up and whose machines are off, as after `kit attach`."""
    host = up_host(wanted)
    for vm in host.domains.values():
        vm.state = DomainState.OFF
    return host


def test_a_network_on_which_nobody_runs_moves_from_what_is_taken_by_now() -> None:
    host = switched_off()
    subnet = host.networks["front"].subnet
    host.domains["b"].state = DomainState.PAUSED
    assert host.record is not None
    assert (kept := planned(host, LAB, subnet).record) is not None
    assert kept.networks == host.record.networks
    host.domains["b"].state = DomainState.OFF
    pinned = replace(LAB, networks={Name("front"): LabNetwork(subnet=IPv4Network(subnet))})
    with pytest.raises(Refused, match="which is taken here by"):
        planned(host, pinned, "10.77.0.0/16")
    made = planned(host, LAB, subnet)
    assert f"network front moves from {subnet} to " in texts(made.notes)
    host.apply(made)
    check_up(host, LAB)
    assert host.networks["front"].subnet != subnet


def test_a_network_that_is_up_makes_way_for_another_that_is_pinned_to_its_subnet() -> None:
    both = lab(("a", "b"), m=machine("a"), n=machine("b"))
    host = switched_off(both)
    first, second = (IPv4Network(host.networks[name].subnet) for name in "ab")
    swapped = replace(both, networks={Name("a"): LabNetwork(subnet=second), Name("b"): LabNetwork(subnet=first)})
    raise_lab(swapped, host, reconfigure=True)
    check_up(host, swapped)
    # Those whose machines run, too.
    back = replace(both, networks={Name("a"): LabNetwork(subnet=first), Name("b"): LabNetwork(subnet=second)})
    raise_lab(back, host, reconfigure=True)
    check_up(host, back)


def test_a_network_that_left_the_file_moves_from_what_is_taken_where_its_machines_stay() -> None:
    both = lab(("a", "b"), m=machine("a"), n=machine("b"))
    one = lab(("a",), m=machine("a"))
    host = up_host(both)
    subnet = host.networks["b"].subnet
    made = planned(host, one, subnet)
    assert f"network b ({subnet}) overlaps {subnet}" in texts(made.notes)
    host.apply(made)
    assert host.networks["b"].subnet == subnet
    host.reboot()
    made = planned(host, one, subnet)
    assert f"network b moves from {subnet} to " in texts(made.notes)
    host.apply(made)
    assert host.networks["b"].active
    assert host.networks["b"].subnet not in (subnet, host.networks["a"].subnet)
    assert host.record is not None
    assert host.record.machines[Name("n")].addresses[Name("b")] in IPv4Network(host.networks["b"].subnet)


def test_a_network_that_left_the_file_and_nobody_uses_takes_none_down() -> None:
    host = up_host(lab(("a", "b"), m=machine("a")))
    assert host.record is not None
    unused = host.record.networks[Name("b")].subnet
    renamed = replace(
        lab(("a", "c"), m=machine("a"), o=machine("c")), networks={Name("a"): LabNetwork(), Name("c"): LabNetwork(subnet=unused)}
    )
    host.apply(planned(host, renamed))
    assert host.networks["c"].subnet == str(unused)
    assert ids(planned(host, renamed), RemoveNetwork) == []


def test_networks_of_a_lab_do_not_overlap() -> None:
    names = tuple(f"n{i}" for i in range(40))
    made = planned(fresh_host(), lab(names, **{f"m{i}": machine(n) for i, n in enumerate(names)}))
    assert made.record is not None
    assert len({network.subnet for network in made.record.networks.values()}) == 40


@pytest.mark.parametrize("first", ["a", "b"])
def test_a_network_that_is_pinned_comes_before_one_that_is_not(first: str) -> None:
    both = lab(("a", "b"), m=machine("a"), n=machine("b"))
    made = planned(fresh_host(), both)
    assert made.record is not None
    chosen = {name: network.subnet for name, network in made.record.networks.items()}
    second = {"a": "b", "b": "a"}[first]
    # What the one would get the other is pinned to, wherever in the file it stands.
    pinned = replace(both, networks={**both.networks, Name(second): LabNetwork(subnet=chosen[Name(first)])})
    host = fresh_host()
    raise_lab(pinned, host)
    check_up(host, pinned)
    assert host.networks[second].subnet == str(chosen[Name(first)]) != host.networks[first].subnet


def test_a_network_that_is_new_in_the_file_leaves_the_others_theirs() -> None:
    fresh = planned(fresh_host(), lab(("a",), m=machine("a")))
    assert fresh.record is not None
    wished = fresh.record.networks[Name("a")].subnet
    one = lab(("b",), n=machine("b"))
    host = up_host(replace(one, networks={Name("b"): LabNetwork(subnet=wished)}))
    both = lab(("a", "b"), m=machine("a"), n=machine("b"))
    down = up_host(replace(one, networks={Name("b"): LabNetwork(subnet=wished)}))
    down.reboot()
    for there in (host, down):
        raise_lab(both, there)
        check_up(there, both)
        assert there.networks["b"].subnet == str(wished) != there.networks["a"].subnet

    # One that left the file keeps its own, too, as long as it is used.
    gone = lab(("a",), m=machine("a"))
    left = up_host(replace(one, networks={Name("b"): LabNetwork(subnet=wished)}))
    left.apply(planned(left, gone))
    assert left.networks["b"].subnet == str(wished) != left.networks["a"].subnet


def test_a_network_that_takes_the_subnet_of_one_that_left_the_file_waits_until_that_is_gone() -> None:
    subnet = IPv4Network("10.99.1.0/24")
    host = up_host(replace(lab(("b",), n=machine("b")), networks={Name("b"): LabNetwork(subnet=subnet)}))
    renamed = replace(lab(("a",), m=machine("a")), networks={Name("a"): LabNetwork(subnet=subnet)})
    with pytest.raises(Refused, match=r"taken here by .* \(network b of this lab, which left the file\)") as refusal:
        planned(host, renamed, prune=True)
    assert refusal.value.hint.startswith("pocketcloud lab down demo, then lab up --prune, frees it")
    host.reboot()
    with pytest.raises(Refused, match="which left the file"):
        planned(host, renamed)
    raise_lab(renamed, host, prune=True)
    check_up(host, renamed)


def test_no_subnet_left_is_refused() -> None:
    with pytest.raises(Refused, match=r"10\.77\.0\.0/16"):
        planned(fresh_host(), LAB, "10.77.0.0/16")


def test_the_file_says_an_address_and_the_others_go_around_it() -> None:
    wanted = lab(("front",), a=machine("front"), b=machine("front", address=10), c=machine("front", address=254))
    made = planned(fresh_host(), wanted)
    assert made.record is not None
    parts = {str(name): int(m.addresses[Name("front")]) & 0xFF for name, m in made.record.machines.items()}
    assert parts == {"a": 11, "b": 10, "c": 254}


def test_an_addition_takes_no_address_away_wherever_it_stands() -> None:
    host = up_host(lab(("front",), m=machine("front")))
    assert host.record is not None
    address = host.record.machines[Name("m")].addresses
    more = lab(("front",), a=machine("front"), m=machine("front"))
    made = planned(host, more)
    assert ids(made, StartMachine) == ["start.a"]
    host.apply(made)
    check_up(host, more)
    assert host.record.machines[Name("m")].addresses == address


def test_a_machine_whose_address_the_file_gives_away_moves_and_is_started_again() -> None:
    host = up_host(lab(("front",), m=machine("front")))
    more = lab(("front",), a=machine("front", address=10), m=machine("front"))
    made = planned(host, more)
    assert ids(made, StopMachine) == ["stop.m"]
    host.apply(made)
    check_up(host, more)
    assert host.record is not None
    assert host.record.machines[Name("m")].addresses[Name("front")] == IPv4Address(
        int(host.record.networks[Name("front")].range.network_address) + 11
    )


def test_253_machines_fit_a_network_and_254_do_not() -> None:
    plenty = replace(ground(memory=1 << 50), space=1 << 50)
    full = plan_up(lab(("n",), **{f"m{i}": machine("n") for i in range(253)}), INSTANCE, fresh_host().inventory(), plenty)
    assert full.record is not None
    assert len({m.addresses[Name("n")] for m in full.record.machines.values()}) == 253
    with pytest.raises(Refused, match="254 machines"):
        plan_up(lab(("n",), **{f"m{i}": machine("n") for i in range(254)}), INSTANCE, fresh_host().inventory(), plenty)


@pytest.mark.parametrize("reason", ["no space", "I/O error", "suspended"])
def test_a_machine_that_waits_goes_on(reason: str) -> None:
    host = up_host()
    host.write("b", "work")
    host.domains["b"].state, host.domains["b"].reason = DomainState.PAUSED, reason
    made = planned(host)
    assert [step.id for step in made.steps if step.machine == "b"] == ["resume.b", "ready.b"]
    assert reason in next(step.reason for step in made.steps if step.id == "resume.b")
    host.apply(made)
    assert host.content("b")[-1] == "work"
    check_up(host, LAB)


def test_a_machine_that_waits_and_has_to_change_is_started_anew() -> None:
    host = up_host()
    host.domains["a"].state, host.domains["a"].reason = DomainState.PAUSED, "suspended"
    made = planned(host, edited(memory=Size(128 * MIB)), reconfigure=True)
    assert ids(made, ResumeMachine, KillMachine, StopMachine, StartMachine) == ["stop.a", "start.a"]
    host.apply(made)


# -- what is refused before anything is done -----------------------------------------------------------------------------


def test_missing_bases_are_named_all_at_once() -> None:
    wanted = lab(("n",), a=machine("n", base="x"), b=machine("n", base="y"), c=machine("n"))
    with pytest.raises(NotFound, match="no base x, y for x86_64") as refused:
        planned(fresh_host(), wanted)
    assert refused.value.hint == "pocketcloud base build x; pocketcloud base build y"


def test_a_base_that_is_gone_matters_only_when_it_is_needed() -> None:
    host = up_host()
    host.bases.clear()
    assert ids(planned(host)) == ["network.front", "ready.a", "ready.b"]
    assert host.record is not None
    host.record = host.record.with_machine(Name("a"), replace(host.record.machines[Name("a")], stage=Stage.PROVISIONING))
    del host.volumes["base.tiny.d1"]
    with pytest.raises(NotFound, match="its base tiny is gone"):
        planned(host)


def test_memory_is_refused_with_the_figures_and_everything_else_that_is_wrong() -> None:
    wanted = lab(("n",), a=machine("n", memory=3 * GIB), b=machine("n", memory=GIB, vcpus=5))
    with pytest.raises(NoSpace) as refused:
        plan_up(wanted, INSTANCE, fresh_host().inventory(), ground(memory=2 * GIB, space=GIB))
    memory, space, vcpus = refused.value.message.splitlines()
    for figure in ("2 machines need 4.2 GiB", "a 3 GiB", "b 1 GiB", "100 MiB each for QEMU", "2 GiB", "emulated keeps 1 GiB"):
        assert figure in memory
    assert "4.5 GiB" in space
    assert "1 GiB free" in space
    assert vcpus == "b: 5 vcpus; profile emulated allows 4"
    assert refused.value.exit_code == 6
    assert "pocketcloud lab forget LAB@undo" in refused.value.hint


def test_a_lab_that_fits_exactly_is_not_refused() -> None:
    wanted = lab(("n",), a=machine("n", memory=GIB))
    need = GIB + 100 * MIB
    assert plan_up(wanted, INSTANCE, fresh_host().inventory(), ground(memory=need, space=GIB + 256 * MIB)).steps
    with pytest.raises(NoSpace, match="1 machine needs"):
        plan_up(wanted, INSTANCE, fresh_host().inventory(), ground(memory=need - 1))
    with pytest.raises(NoSpace, match="space"):
        plan_up(wanted, INSTANCE, fresh_host().inventory(), ground(memory=need, space=GIB + 256 * MIB - 1))


def test_running_machines_need_no_room_but_their_growth() -> None:
    host = up_host()
    have = host.inventory()
    assert plan_up(LAB, INSTANCE, have, ground(memory=0, space=0)).steps
    bigger = edited(memory=Size(64 * MIB + GIB))
    assert plan_up(bigger, INSTANCE, have, ground(memory=0, space=0)).steps
    with pytest.raises(NoSpace, match="a 1 GiB more"):
        plan_up(bigger, INSTANCE, have, ground(memory=GIB - 1), reconfigure=True)
    assert plan_up(bigger, INSTANCE, have, ground(memory=GIB), reconfigure=True).steps


def test_waiting_is_planned_for_every_machine_of_the_file() -> None:
    assert ids(planned(up_host()), WaitReady) == ["ready.a", "ready.b"]
