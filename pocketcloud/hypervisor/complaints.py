"""libvirt's complaints, turned into errors for users. Pure: codes and texts in, an error with its hint out.

The codes are libvirt's virErrorNumber (include/libvirt/virterror.h); where a code stands for too much, its English text
decides (texts of libvirt 9.0; an unknown text still ends as Refused with libvirt's words).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.errors import HostLacks, NoSpace, NotOurs, PocketcloudError, Refused
from pocketcloud.model.machine import Mark

NO_DOMAIN, NO_NETWORK, NO_METADATA = 42, 43, 80
_NO_CONNECT, _AUTH_FAILED, _AUTH_CANCELLED, _ACCESS_DENIED, _AUTH_UNAVAILABLE = 5, 45, 79, 88, 94
_DENIED = {_AUTH_FAILED, _AUTH_CANCELLED, _ACCESS_DENIED, _AUTH_UNAVAILABLE}

CHECK = "pocketcloud check names what is missing and its package"


@dataclass(frozen=True, slots=True)
class _Rule:
    """An empty hint is the remedy for a log daemon that does not run."""

    pattern: str
    error: type[PocketcloudError]
    hint: str


# The first that matches decides; patterns are searched in libvirt's text, whatever the case of its letters.
_RULES = (
    _Rule("no space left|disk quota exceeded", NoSpace, "free some space where the file lies, then run the command again"),
    _Rule(
        "cannot allocate memory|cannot set up guest memory",
        NoSpace,
        "stop other machines (pocketcloud lab down), or give this one less memory",
    ),
    _Rule("virtlogd", HostLacks, ""),
    _Rule("suitable emulator|no emulator|cannot find qemu binary|unknown os type", HostLacks, CHECK),
    _Rule("unable to find .*firmware|firmware .*not supported", HostLacks, CHECK),
    _Rule(
        "virt type .?kvm|access kvm|kvm is not available",
        HostLacks,
        "pocketcloud check says what is wrong with KVM; --profile emulated does without",
    ),
    _Rule("(dnsmasq|iptables|nft|firewall backend).*(not found|no such file|initialize|cannot find)", HostLacks, CHECK),
    _Rule("cannot find .*(dnsmasq|iptables|nft)", HostLacks, CHECK),
    _Rule(
        "already in use by interface",
        Refused,
        "something on this host has that subnet (ip -4 addr; virsh net-list --all); take it down, or make the lab anew elsewhere",
    ),
    _Rule("bridge name .* already in use", Refused, "virsh net-list --all names the networks; one of them has that bridge"),
    _Rule("failed to create dnsmasq|address already in use", Refused, "another DNS or DHCP server listens there: ss -lnup"),
    _Rule(
        "failed to get .?(write|shared|consistent).*lock|another process using the image", Refused, "another program has it open"
    ),
    _Rule(
        "could not open|cannot access storage file|no such file",
        Refused,
        "QEMU must reach the file: look at it, and at the permissions of the folders above it",
    ),
    _Rule(
        "failed to set MSR|kvm_.*assertion",
        HostLacks,
        "KVM answers here but cannot run guests; pocketcloud check says more, --profile emulated does without",
    ),
    _Rule(
        "host cpu does not provide|incompatible with host cpu",
        Refused,
        "saved memory belongs to the computer it was made on; pocketcloud lab reset starts cold",
    ),
)


class AgentFailed(Refused):
    """A guest's agent answered that it could not do what it was asked."""


DENIED_HINT = "run the command as root (sudo), or join the group libvirt and log in again"


def explain(code: int, text: str, doing: str, root: Path = Path("/")) -> PocketcloudError:
    """The error for a complaint of libvirt's that came while `doing` something (`machine kit.demo.web cannot be started`);
    `root` is where the host's file system begins."""
    reason = text.strip()
    if code in _DENIED or ("sock" in reason and "permission denied" in reason.lower()):
        return HostLacks(f"{doing}: libvirt does not let this user in: {reason}", hint=DENIED_HINT)
    for rule in _RULES:
        if re.search(rule.pattern, reason, re.IGNORECASE):
            return rule.error(f"{doing}: {reason}", hint=rule.hint or _start_logd(root))
    return Refused(f"{doing}: {reason}")


def _start_logd(root: Path) -> str:
    return "systemctl start virtlogd.socket" if _systemd(root) else "virtlogd -d"


def unreachable(code: int, text: str, uri: str, which: Callable[[str], object | None], root: Path = Path("/")) -> HostLacks:
    """The error for a daemon that does not answer at `uri`, with the remedy for this host."""
    reason = text.strip()
    if code in _DENIED or re.search(r"permission denied|authentication", reason, re.IGNORECASE):
        return HostLacks(f"libvirt ({uri}) does not let this user in: {reason}", hint=DENIED_HINT)
    if not uri.startswith("qemu:///"):
        return HostLacks(f"libvirt does not answer at {uri}: {reason}", hint="look at LIBVIRT_DEFAULT_URI")
    modular, monolithic = which("virtqemud") is not None, which("libvirtd") is not None
    if not modular and not monolithic:
        return HostLacks("libvirt's daemon is not installed", hint=CHECK)
    if code == _NO_CONNECT:
        return HostLacks(f"libvirt has no driver for {uri}: {reason}", hint=CHECK)
    if _systemd(root):
        sockets = "virtqemud.socket virtnetworkd.socket virtlogd.socket"
        remedy = "systemctl start libvirtd" if monolithic else f"systemctl start {sockets}"
    else:
        remedy = "virtlogd -d && libvirtd -d" if monolithic else "virtlogd -d && virtnetworkd -d && virtqemud -d"
    return HostLacks(f"libvirt's daemon does not answer at {uri}: {reason}", hint=remedy)


_LOOK = {"domain": "virsh dominfo", "network": "virsh net-info"}


def not_ours(kind: str, name: str) -> NotOurs:
    """The error for a `domain` or `network` of that name without our mark."""
    return NotOurs(
        f"a {kind} {name} exists that pocketcloud did not make; it is left alone", hint=f"look at it: {_LOOK[kind]} {name}"
    )


def check_same(kind: str, name: str, wanted: tuple[str, Mark], there: tuple[str, Mark | None]) -> None:
    """Raise NotOurs unless the UUID and the kit of what is `there` are those `wanted`."""
    uuid, mark = there
    if mark is None:
        raise not_ours(kind, name)
    if mark.kit_id != wanted[1].kit_id or uuid.lower() != wanted[0].lower():
        raise NotOurs(
            f"the {kind} {name} that exists has the UUID {uuid} and belongs to kit {mark.kit} ({mark.kit_id}); ours would have"
            f" the UUID {wanted[0]} and belong to kit {wanted[1].kit} ({wanted[1].kit_id})",
            hint=f"look at it: {_LOOK[kind]} {name}",
        )


def _systemd(root: Path) -> bool:
    """As sd_booted(3) tells: the folder is there when systemd is the first process."""
    return (root / "run/systemd/system").is_dir()
