"""Lab subnets: always free ones, the same for the same lab, kept while they are free."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketcloud.errors import Refused
from pocketcloud.model.facts import Distribution, Facts, Kvm, KvmState, Subnet
from pocketcloud.subnets import INSIDE, below, choose, room, supernet

TENS = IPv4Network("10.77.0.0/16")


def subnet(network: str, holder: str = "route via eth0") -> Subnet:
    return Subnet(IPv4Network(network), holder)


def facts(*taken: Subnet, virtualised: str = "") -> Facts:
    debian = Distribution("debian", "13", "trixie", "Debian 13")
    kvm = Kvm(KvmState.ABSENT, "")
    return Facts(
        None,
        "x86_64",
        "6.12",
        debian,
        "",
        device_tree=False,
        cpus=1,
        memory=1,
        memory_available=1,
        kvm=kvm,
        virtualised=virtualised,
        systemd=True,
        subnets=taken,
    )


@st.composite
def networks(draw: st.DrawFn) -> IPv4Network:
    """Networks in and around 10.77.0.0/16, of all sizes from a host to a /12."""
    prefix = draw(st.integers(12, 32))
    address = draw(st.integers(int(IPv4Network("10.76.0.0/14").network_address), int(IPv4Network("10.76.0.0/14")[-1])))
    return IPv4Network((address >> (32 - prefix) << (32 - prefix), prefix))


@settings(deadline=None)
@given(st.lists(networks(), max_size=40), st.text(max_size=20), st.none() | networks())
def test_what_is_chosen_overlaps_nothing_or_there_was_nothing(
    taken: list[IPv4Network], seed: str, keep: IPv4Network | None
) -> None:
    held = [Subnet(network, "x") for network in taken]
    free = [net for net in TENS.subnets(new_prefix=24) if not any(net.overlaps(other) for other in taken)]
    assert room(TENS, held) == len(free)
    if keep is not None and not any(keep.overlaps(other) for other in taken):
        assert choose(TENS, held, keep=keep, seed=seed) == keep
    elif free:
        chosen = choose(TENS, held, keep=keep, seed=seed)
        assert chosen in free
        assert choose(TENS, held, keep=chosen, seed="another") == chosen
        assert choose(TENS, held, seed=seed) == chosen
    else:
        with pytest.raises(Refused):
            choose(TENS, held, keep=keep, seed=seed)


@settings(deadline=None)
@given(st.integers(0, 255), st.text(max_size=10))
def test_the_last_free_one_is_found(index: int, seed: str) -> None:
    nets = list(TENS.subnets(new_prefix=24))
    held = [Subnet(net, "x") for position, net in enumerate(nets) if position != index]
    assert choose(TENS, held, seed=seed) == nets[index]


def test_labs_spread_over_the_supernet() -> None:
    chosen = {choose(TENS, (), seed=f"kit.lab-{number}.front") for number in range(100)}
    assert len(chosen) > 60


def test_a_kept_one_is_given_up_when_it_is_taken() -> None:
    keep = IPv4Network("10.77.5.0/24")
    assert choose(TENS, (subnet("10.77.5.128/25"),), keep=keep) != keep


def test_a_full_supernet_is_refused_with_what_fills_it() -> None:
    with pytest.raises(
        Refused, match=r"no /24 is left for a lab network in 10\.77\.0\.0/16: taken by 10\.0\.0\.0/8 \(route via tun0\)$"
    ):
        choose(TENS, (subnet("10.0.0.0/8", "route via tun0"), subnet("192.168.0.0/24")))
    many = [Subnet(net, f"lab {number}") for number, net in enumerate(TENS.subnets(new_prefix=24))]
    with pytest.raises(Refused, match=r"10\.77\.4\.0/24 \(lab 4\) and 251 more$") as refused:
        choose(TENS, many)
    assert refused.value.hint


def test_a_supernet_smaller_than_a_lab_network_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="holds no /24"):
        choose(IPv4Network("10.77.0.0/25"), ())
    assert choose(IPv4Network("10.77.9.0/24"), ()) == IPv4Network("10.77.9.0/24")


def test_the_supernet_follows_the_nesting() -> None:
    assert supernet(facts()) == TENS
    assert supernet(facts(subnet("10.77.3.0/24"))) == TENS
    assert supernet(facts(virtualised="kvm")) == IPv4Network("10.78.0.0/16")
    # A machine of a lab has an address in the range of the pocketcloud it lives in.
    assert supernet(facts(subnet("10.77.3.0/24"), virtualised="kvm")) == IPv4Network("10.78.0.0/16")
    assert supernet(facts(subnet("10.78.3.0/24"), virtualised="kvm")) == IPv4Network("10.79.0.0/16")


def test_where_all_of_ten_is_routed_elsewhere_another_private_range_is_taken() -> None:
    vpn = subnet("10.0.0.0/8", "route via tun0")
    assert supernet(facts(vpn)) == IPv4Network("172.29.0.0/16")
    assert supernet(facts(vpn, virtualised="kvm")) == IPv4Network("172.29.0.0/16")
    assert supernet(facts(vpn, subnet("172.16.0.0/12"))) == IPv4Network("192.168.0.0/16")
    everything = (vpn, subnet("172.16.0.0/12"), subnet("192.168.0.0/16"), subnet("198.18.0.0/15"))
    assert supernet(facts(*everything)) == TENS


@pytest.mark.parametrize("told", [True, False])
@settings(deadline=None, max_examples=60)
@given(st.lists(networks(), max_size=5), st.integers(3, 6), st.text(max_size=8))
def test_a_lab_in_a_lab_in_a_lab_has_a_subnet_unlike_all_around_it(
    told: bool, around: list[IPv4Network], levels: int, seed: str
) -> None:
    """`around` is what the outermost computer has; `told` whether machines know of it (/etc/pocketcloud/outer-subnets)."""
    here = facts(*(Subnet(network, "address on wlan0") for network in around))
    labs: list[IPv4Network] = []
    for level in range(levels):
        try:
            labs.append(choose(supernet(here), here.subnets, seed=f"{seed}{level}"))
        except Refused:
            # With what a VPN may take it can be that nothing is left, and that is said.
            assert room(supernet(here), here.subnets) == 0
            return
        seen = (Subnet(labs[-1], "address on eth0"), *(here.subnets if told else ()))
        here = facts(*seen, virtualised="kvm")
    for index, subnet in enumerate(labs):
        others = [*labs[:index], *(around if told or index == 0 else ())]
        assert not any(subnet.overlaps(other) for other in others), f"level {index} hides one around it"
        assert not any(subnet.overlaps(inside.network) for inside in INSIDE)


def test_what_machines_take_inside_is_left_to_them() -> None:
    vpn = subnet("10.0.0.0/8", "route via tun0")
    within = supernet(facts(vpn, subnet("172.16.0.0/12")))
    assert within == IPv4Network("192.168.0.0/16")
    libvirts = IPv4Network("192.168.122.0/24")
    assert room(within, ()) == 256 - 16 - 1, "libvirt's own, and those of Docker's second pool"
    alone = [Subnet(net, "x") for net in within.subnets(new_prefix=24) if net != libvirts]
    with pytest.raises(Refused, match="no /24 is left for a lab network"):
        choose(within, alone[16:])
    # A lab that has it keeps it, as one that is pinned to it does.
    assert choose(within, alone, keep=libvirts) == libvirts
    assert not any(below(facts()).overlaps(inside.network) for inside in INSIDE)
