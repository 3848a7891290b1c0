"""The plan of `up` for a lab file that was edited: additions at once, changes when asked for, removals when told to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pocketcloud.errors import Refused
from pocketcloud.model.inventory import DomainState
from pocketcloud.model.lab import Attachment, LabNetwork, NetworkKind, Ready
from pocketcloud.model.names import Name, mac_address
from pocketcloud.model.record import NetworkRecord, Stage
from pocketcloud.model.sizes import GIB, MIB, Size
from pocketcloud.plan.steps import (
    CloneVolumes,
    KillMachine,
    RemoveFiles,
    RemoveNetwork,
    RemoveVolumes,
    StartMachine,
    StopMachine,
    TakeSnapshot,
    UndefineMachine,
    WriteSeed,
)
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
    up_host,
)
from tests.simulation import INSTANCE, KIT_ID, base, lab, machine


def test_additions_are_made_at_once_and_join_clean() -> None:
    host = up_host()
    assert host.record is not None
    assert host.record.clean is not None
    kept = host.record.clean.machines[Name("a")]
    more = replace(
        LAB, machines={**LAB.machines, Name("c"): machine("back")}, networks={**LAB.networks, Name("back"): LabNetwork()}
    )
    made = planned(host, more)
    assert ids(made, StartMachine) == ["start.c"]
    assert [step.machines for step in made.steps if isinstance(step, TakeSnapshot)] == [("c",)]
    host.apply(made)
    check_up(host, more)
    assert host.record.clean.machines[Name("a")] == kept


@pytest.mark.parametrize(
    ("change", "anew"),
    [
        ({"memory": Size(128 * MIB)}, False),
        ({"vcpus": 2}, False),
        ({"base": Name("other")}, True),
        ({"disk": Size(2 * GIB)}, True),
        ({"disks": ()}, True),
        ({"provision": ()}, True),
        ({"networks": {Name("front"): Attachment(77)}}, True),
    ],
)
def test_a_change_waits_for_reconfigure(change: dict[str, object], anew: bool) -> None:
    host = up_host()
    host.write("a", "work")
    waits = planned(host, edited(**change))
    assert ids(waits, CloneVolumes, StopMachine, KillMachine, StartMachine) == []
    assert waits.loses == ()
    (said,) = waits.notes
    assert "--reconfigure" in said
    assert next(iter(change)) in said
    assert ("anew" in said) == anew
    host.apply(waits)
    made = planned(host, edited(**change), reconfigure=True)
    assert made.loses == (("a",) if anew else ())
    assert ids(made, StopMachine) == ([] if anew else ["stop.a"])
    assert ids(made, KillMachine) == (["stop.a"] if anew else [])
    host.apply(made)
    check_up(host, edited(**change))
    assert ("work" in host.content("a")) == (not anew)


def test_what_is_ready_is_taken_over_without_a_word() -> None:
    host = up_host()
    other = replace(LAB.machines[Name("a")].ready, console="bye")
    made = planned(host, edited(ready=other))
    assert ids(made) == ["commit", "network.front", "ready.a", "ready.b"]
    assert made.notes == ()


def test_a_machine_that_nobody_was_to_enter_has_no_key_for_it_and_is_made_anew() -> None:
    entered = lab(a=machine("front"))
    shut = replace(entered, machines={Name("a"): replace(entered.machines[Name("a")], ready=Ready(tcp=443))})
    asked = replace(shut, machines={Name("a"): replace(entered.machines[Name("a")], ready=Ready(ssh=True))})
    host = up_host(shut)
    waits = planned(host, asked)
    assert "ready changed in the file; waits for --reconfigure (makes it anew)" in waits.notes[0]
    assert waits.record is None or waits.record.machines[Name("a")].definition.ready == Ready(tcp=443)
    made = planned(host, asked, reconfigure=True)
    assert made.loses == ("a",)
    assert ids(made, WriteSeed) == ["seed.a"]
    assert "commit" in ids(planned(up_host(asked), shut)), "the other way it is just noted"


def test_the_order_of_networks_is_the_order_of_interfaces_so_it_is_a_change() -> None:
    host = up_host(lab(("x", "y"), a=machine("x", "y")))
    made = planned(host, lab(("x", "y"), a=machine("y", "x")))
    assert "networks changed" in made.notes[0]
    assert made.record is not None
    assert list(made.record.machines[Name("a")].definition.networks) == ["x", "y"]


def test_a_network_of_another_kind_waits_and_then_restarts_its_machines() -> None:
    host = up_host()
    isolated = replace(LAB, networks={Name("front"): LabNetwork(NetworkKind.ISOLATED)})
    waits = planned(host, isolated)
    assert "nat -> isolated waits for --reconfigure" in waits.notes[0]
    assert ids(waits, StopMachine) == []
    made = planned(host, isolated, reconfigure=True)
    assert ids(made, StopMachine) == ["stop.a", "stop.b"]
    host.apply(made)
    check_up(host, isolated)


def test_what_left_the_file_is_named_and_kept_until_prune() -> None:
    two = lab(("back", "front"), a=machine("front"), b=machine("back"))
    host = up_host(two)
    one = lab(("front",), a=machine("front"))
    keeps = planned(host, one)
    assert len(keeps.notes) == 2
    assert keeps.notes[0].startswith("b is no longer in the file")
    assert "network back is no longer in the file; b uses it" in keeps.notes[1]
    assert ids(keeps, UndefineMachine, RemoveVolumes, RemoveFiles, RemoveNetwork) == []
    host.apply(keeps)
    assert host.domains["b"].state is DomainState.RUNNING
    made = planned(host, one, prune=True)
    assert ids(made, UndefineMachine, RemoveFiles, RemoveNetwork) == ["undefine.b", "files.b", "network.back"]
    assert {"undefine.b"} <= before(made)["remove"], "its disk may be removed while it runs"
    host.apply(made)
    check_up(host, one)


def test_a_network_without_machines_is_kept_until_prune() -> None:
    host = up_host(lab(("spare", "front"), a=machine("front")))
    one = lab(("front",), a=machine("front"))
    assert planned(host, one).notes == ("network spare is no longer in the file; it is kept until --prune",)
    raise_lab(one, host, prune=True)
    check_up(host, one)


def test_what_an_interrupted_prune_left_is_swept() -> None:
    host = up_host()
    one = lab(("front",), b=LAB.machines[Name("b")])
    cut = planned(host, one, prune=True)
    host.apply(cut, cut=ids(cut).index("commit") + 1)
    assert "a" in host.domains
    made = planned(host, one)
    assert ids(made, UndefineMachine) == ["undefine.a"]
    host.apply(made)
    check_up(host, one)


def test_a_newer_base_is_mentioned_and_never_moved_onto() -> None:
    host = up_host()
    host.add_base(base("tiny", "d2"))
    made = planned(host)
    assert [note.split(":")[0] for note in made.notes] == ["a", "b"]
    assert all("newer tiny" in note for note in made.notes)
    assert ids(made) == ["network.front", "ready.a", "ready.b"]


def test_a_machine_made_anew_stays_on_its_base_and_an_added_one_takes_the_newer() -> None:
    host = up_host()
    host.add_base(base("tiny", "d2"))
    assert host.record is not None
    host.record = host.record.with_machine(Name("a"), replace(host.record.machines[Name("a")], stage=Stage.PROVISIONING))
    made = planned(host, replace(LAB, machines={**LAB.machines, Name("c"): machine("front")}))
    sources = {clone.marks["machine"]: clone.source for clone in cloned(made)}
    assert sources == {"a": "base.tiny.d1", "c": "base.tiny.d2"}


BRIDGED = LabNetwork(NetworkKind.BRIDGE, bridge="br0")


def test_a_network_that_is_a_bridge_of_the_host_has_no_addresses_of_ours() -> None:
    two = lab(("front", "out"), a=machine("front", "out"), b=machine("out"))
    two = replace(two, networks={**two.networks, Name("out"): BRIDGED})
    host = up_host(two)
    record = host.record
    assert record is not None
    assert record.networks[Name("out")] == NetworkRecord(NetworkKind.BRIDGE, bridge="br0")
    assert set(record.machines[Name("a")].addresses) == {"front"}
    assert host.networks["out"].bridge == "br0"
    # Where kits meet, a copy of this one must not have its MAC addresses; on the lab's own network it may.
    assert [mac for _, mac in record.macs(Name("a"), KIT_ID)] == [
        mac_address(INSTANCE, "a", 0),
        mac_address(INSTANCE, "a", 1, KIT_ID),
    ]
    assert mac_address(INSTANCE, "a", 1, KIT_ID) != mac_address(INSTANCE, "a", 1)

    other = replace(two, networks={**two.networks, Name("out"): replace(BRIDGED, bridge="br1")})
    waits = planned(host, other)
    assert "network out: bridge br0 -> br1 waits for --reconfigure" in waits.notes
    assert ids(waits, StopMachine) == []
    made = planned(host, other, reconfigure=True)
    assert ids(made, StopMachine) == ["stop.a", "stop.b"]
    assert made.loses == ()
    host.apply(made)
    check_up(host, other)

    gone = replace(two, networks={**two.networks, Name("out"): replace(BRIDGED, bridge="br7")})
    with pytest.raises(Refused, match=r"to be the bridge br7, and this host has none of that name \(it has: br0, br1;"):
        planned(fresh_host(), gone)


def test_a_network_that_becomes_a_bridge_makes_its_machines_anew_as_their_interfaces_are_others() -> None:
    host = up_host()
    bridged = replace(LAB, networks={Name("front"): BRIDGED})
    waits = planned(host, bridged)
    assert "nat -> bridge waits for --reconfigure" in waits.notes[0]
    assert waits.loses == ()
    made = planned(host, bridged, reconfigure=True)
    assert set(made.loses) == {"a", "b"}
    host.apply(made)
    check_up(host, bridged)
    assert "bridge -> nat waits" in planned(host, LAB).notes[0]
    host.apply(planned(host, LAB, reconfigure=True))
    check_up(host, LAB)
