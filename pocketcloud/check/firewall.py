"""The way out for machines: forwarding by the kernel, and firewalls beside libvirt's own rules."""

from __future__ import annotations

from collections.abc import Iterator

from pocketcloud.check.judgement import Check, Surroundings
from pocketcloud.host.bridges import read_active
from pocketcloud.host.firewall import Chain, Firewall, read_firewall, read_forwarding
from pocketcloud.host.packages import Family, family
from pocketcloud.model.judgement import State

_GROUP = "networks"
# From this libvirt on its rules are nftables' unless network.conf says otherwise (its NEWS).
_NFTABLES = (10, 4)
_CONF = "/etc/libvirt/network.conf"


def judge(here: Surroundings) -> Iterator[Check]:
    """Whether packets are forwarded, and what may drop them on the way."""
    yield _forwarding(here)
    yield _firewall(here)


def _forwarding(here: Surroundings) -> Check:
    """libvirt writes 1 there whenever a network with NAT starts, so nothing has to be done in advance."""
    why = "Machines of networks with NAT reach the world only while the kernel forwards."
    found = read_forwarding(here.root)
    up = [network.name for network in read_active(here.root) or () if network.nat]
    now = {True: "on", False: "off", None: "not told"}[found.on]
    evidence = f"net.ipv4.ip_forward is {now}"
    if found.on is False and up:
        evidence += f", although {', '.join(up)} {'is' if len(up) == 1 else 'are'} up"
        return Check("forwarding", _GROUP, State.WARN, evidence, why, ("sysctl -w net.ipv4.ip_forward=1",))
    if found.forced_off:
        evidence += f"; {found.forced_off} switches it off: each time it is read, networks that are up lose their way out"
        return Check("forwarding", _GROUP, State.WARN, evidence, why, (f"Take net.ipv4.ip_forward out of {found.forced_off}",))
    if found.on is None:
        return Check("forwarding", _GROUP, State.UNKNOWN, evidence, why)
    return Check("forwarding", _GROUP, State.OK, evidence + ("" if found.on else "; libvirt switches it on with a network"), why)


def _firewall(here: Surroundings) -> Check:
    why = "libvirt lets machines through by rules of its own; what another firewall drops stays dropped."
    found = read_firewall(here.root, here.run)
    backend = _backend(here, found)
    evidence = (
        f"libvirt's rules: {backend or 'not known'}; running besides: {', '.join(found.others) or 'no firewall that is known'}"
    )
    if "firewalld" in found.others and not found.zone:
        remedy = ("Install libvirt's network driver again: it brings firewalld's zone", "firewall-cmd --reload")
        return Check("firewall", _GROUP, State.WARN, f"{evidence}; firewalld has no zone `libvirt`", why, remedy)
    if found.drops is None:
        state = State.UNKNOWN if found.others else State.OK
        return Check("firewall", _GROUP, state, f"{evidence}; the rules are shown to root only", why)
    cutting = [chain for chain in found.drops if _cuts(chain, backend, found)]
    if not cutting:
        return Check("firewall", _GROUP, State.OK, evidence, why)
    names = ", ".join(map(str, cutting))
    evidence += f"; {names} drops what is forwarded, and an accept among libvirt's rules does not save it"
    return Check("firewall", _GROUP, State.WARN, evidence, why, _remedy(here, cutting, found))


def _backend(here: Surroundings, found: Firewall) -> str:
    if here.daemon.facts is None:
        return found.backend
    numbers = tuple(int(part) for part in here.daemon.facts.libvirt.split(".") if part.isascii() and part.isdecimal())
    return "iptables" if numbers < _NFTABLES or here.find("nft") is None else found.backend or "nftables"


def _cuts(chain: Chain, backend: str, found: Firewall) -> bool:
    """Whether a chain stops libvirt's machines: a packet passes all chains of a hook, and an accept ends only its own. libvirt's
    iptables rules go into iptables' chain; firewalld's lets the zone of libvirt's bridges through."""
    if chain.table == "firewalld":
        return not found.zone
    return not (chain.iptables and backend == "iptables")


def _remedy(here: Surroundings, cutting: list[Chain], found: Firewall) -> tuple[str, ...]:
    """Docker sets the policy of iptables' chain when it is what switched forwarding on (moby/moby#50646), ufw by its settings."""
    lines: list[str] = []
    if any(chain.iptables for chain in cutting):
        daemon = "virtnetworkd" if family(here.facts.distribution) in (Family.FEDORA, Family.EL) else "libvirtd"
        restart = f"systemctl restart {daemon}" if here.facts.systemd else f"Restart {daemon}"
        lines += [f"echo 'firewall_backend = \"iptables\"' >> {_CONF}", restart]
        if "docker" in found.others:
            lines.append('Or put "ip-forward-no-drop": true into /etc/docker/daemon.json, and start the computer again')
    for chain in cutting:
        if not chain.iptables:
            lines += [f"nft insert rule {chain} {side} 'pc-*' accept" for side in ("iifname", "oifname")]
    return tuple(lines)
