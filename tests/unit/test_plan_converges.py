"""Any commands, cut anywhere, in any order of what runs at once: running `up` again ends in a lab that is whole.

A model-based campaign over plans: steps are applied to a host of values (tests/simulation.py) up to a random cut, in a
random order that the graph allows. What the real rooms do when they are killed is tests/fault's.
"""

from __future__ import annotations

import os
import random
from contextlib import nullcontext, suppress
from dataclasses import replace
from ipaddress import IPv4Network

import pytest
from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st

from pocketcloud.errors import NotFound, Refused
from pocketcloud.model.base import Firmware
from pocketcloud.model.inventory import DomainState, Inventory
from pocketcloud.model.lab import Lab, LabNetwork, Machine, NetworkKind, ResetKind
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import Size
from pocketcloud.plan.drafting import Ground
from pocketcloud.plan.removal import plan_destroy, plan_down
from pocketcloud.plan.reset import plan_reset, plan_restore, plan_undo
from pocketcloud.plan.states import plan_forget, plan_snapshot
from pocketcloud.plan.steps import Plan
from pocketcloud.plan.taking import plan_taking_again
from pocketcloud.plan.up import plan_up
from tests.plans import check_plan, check_up, ids
from tests.simulation import INSTANCE, KIT, Host, base, ground, lab, machine

SEED = int(os.environ.get("POCKETCLOUD_SEED") or 0)
NETWORKS = ("front", "back")

machines = st.builds(
    machine,
    st.sampled_from(NETWORKS),
    base=st.sampled_from(["tiny", "other"]),
    memory=st.sampled_from([64 << 20, 128 << 20]),
    provision=st.sampled_from(["", "touch x"]),
    disks=st.lists(st.sampled_from(["data", "log"]), unique=True, max_size=2),
    address=st.none(),
)


@st.composite
def labs(draw: st.DrawFn) -> Lab:
    """One to three machines on one or two networks."""
    chosen: dict[str, Machine] = draw(st.dictionaries(st.sampled_from("abc"), machines, min_size=1, max_size=3))
    used = sorted({str(network) for made in chosen.values() for network in made.networks})
    extra = draw(st.sampled_from([(), ("spare",)]))
    return replace(lab((*used, *extra), **chosen), reset=draw(st.sampled_from(ResetKind)))


WAYS = ["up", "up", "up", "reset", "reset-one", "down", "destroy", "snapshot", "snapshot", "restore", "undo", "forget"]
commands = st.sampled_from([*WAYS, "reboot", "pause", "write", "rebuild"])
steps = st.lists(st.tuples(commands, st.integers(0, 40), st.integers(0, 8)), max_size=8)


def planned(command: str, host: Host, wanted: Lab, draw: random.Random) -> Plan | None:
    have, here = host.inventory(), replace(ground(spares=draw.random() < 0.5), cold=draw.random() < 0.2)
    name = draw.choice(sorted(host.record.machines)) if host.record else "a"
    match command:
        case "up":
            return plan_up(wanted, INSTANCE, have, here, reconfigure=draw.random() < 0.5, prune=draw.random() < 0.5)
        case "reset" | "reset-one":
            return plan_reset(INSTANCE, [name] if command == "reset-one" else [], have, here, undo=draw.random() < 0.5)
        case "snapshot" | "restore" | "undo" | "forget":
            return of_states(command, have, here, draw)
        case "down":
            return plan_down(INSTANCE, [], have, KIT, within=1)
        case "destroy":
            return plan_destroy(INSTANCE, have)
        case _:
            return None


def of_states(command: str, have: Inventory, here: Ground, draw: random.Random) -> Plan:
    there = sorted(have.record.snapshots) if have.record else []
    state = draw.choice([*there, "none"])
    match command:
        case "snapshot":
            if again := plan_taking_again(INSTANCE, have, here):
                return again
            return plan_snapshot(INSTANCE, draw.choice(["s1", "s2", "s3"]), have, here, ram=draw.random() < 0.5)
        case "restore":
            return plan_restore(INSTANCE, state, have, here, undo=draw.random() < 0.5)
        case "undo":
            return plan_undo(INSTANCE, have, here)
        case _:
            return plan_forget(INSTANCE, state, have, here)


def happens(command: str, host: Host, draw: random.Random) -> None:
    """What is not a command of ours."""
    running = [name for name, vm in sorted(host.domains.items()) if vm.state is DomainState.RUNNING]
    match command:
        case "reboot":
            host.reboot()
        case "rebuild":
            host.add_base(base("tiny", f"d{draw.randrange(100)}"))
        case "pause" if running:
            host.domains[draw.choice(running)].state = DomainState.PAUSED
        case "write" if running:
            name = draw.choice(running)
            if not host.volumes[host.domains[name].disks[0]].sealed:
                host.write(name, "work")
        case _:
            pass


def campaign(wanted: list[Lab], script: list[tuple[str, int, int]], draw: random.Random) -> None:
    host = Host.with_bases(base("tiny"), base("other", firmware=Firmware.EFI))
    if draw.random() < 0.8:
        host.apply(plan_up(draw.choice(wanted), INSTANCE, host.inventory(), ground()))
    for command, where, part in script:
        happens(command, host, draw)
        host.sweep()
        plan = None
        # Only `up` and `destroy` have an answer to everything that may be there.
        with nullcontext() if command in ("up", "destroy") else suppress(NotFound, Refused):
            plan = planned(command, host, draw.choice(wanted), draw)
        if plan is None:
            continue
        cut = where % (len(plan.steps) + 1)
        note(f"{command}, cut before step {cut} (+{part}): {' '.join(ids(plan))}")
        check_plan(plan, host.inventory())
        host.apply(plan, cut=cut, part=part, order=draw)
    host.sweep()
    last = plan_up(wanted[0], INSTANCE, host.inventory(), ground(spares=draw.random() < 0.5), reconfigure=True, prune=True)
    note(f"last up: {' '.join(ids(last))}")
    check_plan(last, host.inventory())
    host.apply(last, order=draw)
    check_up(host, wanted[0])
    host.apply(plan_reset(INSTANCE, [], host.inventory(), ground(spares=draw.random() < 0.5)), order=draw)
    check_up(host, wanted[0])
    assert all("work" not in host.content(name) or "work" in kept(host, name) for name in host.domains)
    host.apply(plan_destroy(INSTANCE, host.inventory()), order=draw)
    assert host.inventory().empty


def kept(host: Host, name: str) -> tuple[str, ...]:
    """What is on a machine's system disk in the state `clean`."""
    assert host.record is not None
    assert host.record.clean is not None
    return host.volumes[host.record.clean.machines[next(n for n in host.record.machines if n == name)].disks["root"]].content


@seed(SEED)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(labs(), min_size=1, max_size=2), steps, st.randoms(use_true_random=False))
def test_any_commands_cut_anywhere_are_completed_by_up(
    wanted: list[Lab], script: list[tuple[str, int, int]], draw: random.Random
) -> None:
    campaign(wanted, script, draw)


@pytest.mark.slow
@seed(SEED)
@settings(max_examples=5_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(labs(), min_size=1, max_size=3), steps, st.randoms(use_true_random=False))
def test_any_commands_cut_anywhere_are_completed_by_up_whole(
    wanted: list[Lab], script: list[tuple[str, int, int]], draw: random.Random
) -> None:
    campaign(wanted, script, draw)


def always() -> random.Random:
    """Choices that are always the same."""
    return random.Random(1)  # noqa: S311 - chooses, and keeps no secret


def _whole(script: list[str]) -> Host:
    """A host after these commands, none of them cut."""
    host = Host.with_bases(base("tiny"), base("other"))
    for command in script:
        plan = planned(command, host, EACH, always())
        assert plan is not None
        host.apply(plan)
    return host


EACH = lab(("front",), a=machine("front", provision="touch x", disks=["data"]), b=machine("front"))


@pytest.mark.parametrize(
    "script", [["up"], ["up", "up"], ["up", "reset"], ["up", "reset-one"], ["up", "down"], ["up", "destroy"]]
)
def test_every_cut_of_the_last_command_is_completed_by_that_command(script: list[str]) -> None:
    """Not sampled: each step, each effect inside it. After the same command again all is as if there had been no cut."""
    plan = planned(script[-1], _whole(script[:-1]), EACH, always())
    assert plan is not None
    cuts = 0
    for cut in range(len(plan.steps)):
        for part in range(10):
            host = _whole(script[:-1])
            plan = planned(script[-1], host, EACH, always())
            assert plan is not None
            host.apply(plan, cut=cut, part=part)
            again = planned(script[-1], host, EACH, always())
            assert again is not None
            check_plan(again, host.inventory())
            host.apply(again)
            cuts += 1
            if script[-1] == "destroy":
                assert host.inventory().empty
            elif script[-1] == "down":
                assert all(vm.state is DomainState.OFF for vm in host.domains.values())
                assert not host.networks
            else:
                check_up(host, EACH)
    assert cuts >= 10


@pytest.mark.parametrize("again", [True, False], ids=["the same command", "plain up"])
@pytest.mark.parametrize("what", ["kind", "subnet", "address", "memory"])
def test_every_cut_of_a_changed_network_is_completed(what: str, again: bool) -> None:
    """Machines that run on a network as it was are started again on it, or were stopped before it changed."""
    networks, machines = dict(EACH.networks), dict(EACH.machines)
    match what:
        case "kind":
            networks[Name("front")] = LabNetwork(kind=NetworkKind.ISOLATED)
        case "memory":
            machines[Name("a")] = replace(machines[Name("a")], memory=Size(128 << 20), vcpus=2)
        case "subnet":
            networks[Name("front")] = LabNetwork(subnet=IPv4Network("10.99.1.0/24"))
        case _:
            machines[Name("b")] = machine("front", address=77)
    changed = replace(EACH, networks=networks, machines=machines)
    plan = plan_up(changed, INSTANCE, _whole(["up"]).inventory(), ground(), reconfigure=True)
    for cut in range(len(plan.steps)):
        for part in range(4):
            host = _whole(["up"])
            host.write("a", "work")
            host.apply(plan_up(changed, INSTANCE, host.inventory(), ground(), reconfigure=True), cut=cut, part=part)
            committed = host.record is not None and host.record.lab == changed
            more = plan_up(changed, INSTANCE, host.inventory(), ground(), reconfigure=again or not committed)
            check_plan(more, host.inventory())
            host.apply(more)
            check_up(host, changed)
            assert {name: vm.memory for name, vm in host.domains.items()} == {n: m.memory for n, m in machines.items()}
            assert what == "address" or "work" in host.content("a")


def test_work_on_the_disks_outlives_every_cut_of_up() -> None:
    """`up` throws no disk away that people could have worked on."""
    for cut in range(12):
        for part in range(8):
            host = _whole(["up"])
            host.write("a", "work")
            host.reboot()
            host.apply(plan_up(EACH, INSTANCE, host.inventory(), ground()), cut=cut, part=part)
            host.apply(plan_up(EACH, INSTANCE, host.inventory(), ground()))
            check_up(host, EACH)
            assert "work" in host.content("a")
