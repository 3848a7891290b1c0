"""Whether an image is sealed: nothing in it that must not be the same in two machines, no secrets, nothing that only its making
needed.

Purely judged from what image.py found. What makes up a seal: cloud-init's `clean`, virt-sysprep's operations and the clean-up of
AlmaLinux's and osbuild's images agree on nearly all of it; an empty machine-id, and not `uninitialized`, is systemd's own
advice for images (machine-id(5)).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.bases import needs
from pocketcloud.bases.image import Content, Kind, Tree, look
from pocketcloud.bases.namespace import give
from pocketcloud.disk_space import spare
from pocketcloud.errors import HostLacks, NoSpace, Refused
from pocketcloud.model.sizes import size_text
from pocketcloud.storage import Storage
from pocketcloud.system import Runner

_TOOLS = {"sfdisk": "fdisk", "debugfs": "e2fsprogs", "mdir": "mtools", "qemu-img": "qemu-img"}
_RAW = "sealed.raw"
_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Sealed:
    """What the check saw: `files` are the bytes of the image's content (see Content), `text` says in words what was looked at."""

    files: int
    text: str


@dataclass(frozen=True, slots=True)
class _Rule:
    """Files that may not be there (`path`, a regular expression for the whole path) unless they are empty (`empty`); with `says`
    only those in whose content that is found. `grave` are identities and secrets, the rest is litter."""

    path: str
    why: str
    empty: bool = True
    says: str = ""
    grave: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """What keeps an image from being sealed, in a line; `grave` is what several machines would share to their harm."""

    text: str
    grave: bool


_RULES = (
    _Rule("/etc/machine-id|/var/lib/dbus/machine-id", "every machine would have this id", says="[0-9a-f]{32}", grave=True),
    _Rule("/etc/machine-id|/var/lib/dbus/machine-id", "it should be empty: a first boot with questions would follow"),
    _Rule("/etc/ssh/ssh_host_.*", "every machine would have this host key", empty=False, grave=True),
    _Rule("/etc/hostname", "every machine would have this name", says=r"^(?!\s*localhost(\.localdomain)?\s*$)"),
    _Rule("/etc/machine-info", "it describes one machine"),
    _Rule("/var/lib/(systemd/(random-seed|credential\\.secret)|(urandom/)?random-seed)", "a secret of one machine", grave=True),
    _Rule("/var/lib/cloud/.*", "cloud-init would take a new machine for one it has set up already", empty=False),
    _Rule("/etc/cloud/cloud\\.cfg\\.d/99-installer\\.cfg", "the installer's user data", empty=False, grave=True),
    _Rule("/(root|home/[^/]+)/\\.ssh/(authorized_keys2?|id_.*|known_hosts)", "a key, or a trace of one", grave=True),
    _Rule("/root/\\.(bash_history|.*_history|lesshst|viminfo|wget-hsts)", "somebody's history"),
    _Rule("/root/(anaconda|original|initial-setup)-ks\\.cfg", "the installer's answers", grave=True),
    _Rule("/etc/NetworkManager/system-connections/.*", "it is bound to one machine's network",
          says=r"(?mi)^\s*(interface-name|mac-address|psk|password)\s*=\s*\S", grave=True),
    _Rule("/etc/netplan/(50-cloud-init|00-installer-config)\\.yaml", "the build machine's network", empty=False),
    _Rule("/etc/udev/rules\\.d/70-persistent-.*", "the build machine's devices"),
    _Rule("/var/lib/NetworkManager/(secret_key|.*\\.lease|timestamps|seen-bssids)", "the build machine's network"),
    _Rule("/var/lib/(dhcp|dhclient|dhcpcd)/.*leases?.*", "the build machine's network"),
    _Rule("/etc/resolv\\.conf", "the build machine's name servers", says=r"(?m)^\s*nameserver\s"),
    _Rule("/etc/iscsi/initiatorname\\.iscsi", "every machine would be this initiator", says=r"(?m)^\s*InitiatorName=\s*\S"),
    _Rule("/etc/lvm/(devices/system\\.devices|archive/.*|backup/.*)", "the build machine's disks"),
    _Rule("/etc/pki/(entitlement|consumer)/.*", "a subscription", grave=True),
    _Rule("/etc/shadow", "a password that every machine would have", says=r"(?m)^[^:\n]+:[^!*:\n]", grave=True),
    _Rule("/var/log/.*", "a log of the build"),
    _Rule("/var/lib/systemd/coredump/.*|/var/crash/.*", "a crash of the build"),
    _Rule("/var/lib/apt/lists/.*|/var/cache/apt/.*", "package lists and caches grow old"),
    _Rule("/var/cache/(dnf|libdnf5|yum)/.*|/var/lib/dnf/history.*", "package lists and caches grow old"),
    _Rule("/(tmp|var/tmp|run)/.*", "left over", empty=False),
)  # fmt: skip
_PATTERNS = tuple((re.compile(rule.path), rule) for rule in _RULES)
# A system without these is none, or was not read: that it has no host keys then means nothing.
_EXPECTED = ("/etc/passwd", "/usr", "/var/log")


def check_tools(here: needs.Ground) -> None:
    """Raise HostLacks for the tools that looking into an image takes, before one is made."""
    if lacking := needs.missing_tools(_TOOLS, here):
        text, remedy = lacking
        raise HostLacks(f"images cannot be looked into here: {text}", hint=remedy)


def check(storage: Storage, volume: str, work: Path, run: Runner, what: str, *, made_by_us: bool = True) -> Sealed:
    """Look through the sealed volume `volume`, in the folder `work` of the namespace's root, where a raw copy of what it
    holds has room; `what` names the base in errors. Raises Refused with all findings if it is not sealed: litter counts only in
    what we made ourselves, and is told of an image that its maker left so. Raises NoSpace before the copy is begun."""
    path, image_format = storage.place(volume)
    storage.activate(volume)
    raw = work / _RAW
    raw.unlink(missing_ok=True)
    _check_room(_content(storage, volume, run), work, what)
    try:
        run(["qemu-img", "convert", "-q", "-f", image_format, "-O", "raw", "--", path, raw])
        raw.chmod(0o600)
        give(raw)
        content = look(work, _RAW, run)
        found = findings(content)
    finally:
        for left in work.glob(f"{_RAW}*"):
            left.unlink()
    bad = [finding.text for finding in found if finding.grave or made_by_us]
    if bad:
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise Refused(
            f"{what} was not built: its image is not sealed\n" + "\n".join(f"  {line}" for line in bad[:_SHOWN]) + more,
            hint="a base holds nothing that must differ between machines; let a `post:` step remove it",
        )
    return Sealed(content.files if not content.unread else 0, _said(content, [finding.text for finding in found]))


def _content(storage: Storage, volume: str, run: Runner) -> int:
    """How many bytes a volume's content takes in a raw copy, about."""
    path, image_format = storage.place(volume)
    if image_format == "raw":  # of a block device QEMU knows no holes
        return next((found.used or 0 for found in storage.volumes() if found.name == volume), 0)
    said = run(["qemu-img", "measure", "-f", image_format, "-O", "qcow2", "--output=json", "--", path]).out
    return int(json.loads(said)["required"])


def _check_room(size: int, work: Path, what: str) -> None:
    room = max(0, spare(work))
    if size > room:
        raise NoSpace(
            f"{what} cannot be looked into: a copy of {size_text(size)} is made for that, and {size_text(room)} may be filled in "
            "the kit",
            hint="remove labs or bases that are not needed (pocketcloud kit status shows what holds how much)",
        )


def _said(content: Content, litter: Sequence[str]) -> str:
    text = f"{len(content.tree)} names on {', '.join(content.read)}" if content.read else ""
    unread = f"not looked into: {', '.join(content.unread)}" if content.unread else ""
    left = f"left as its maker left it: {', '.join(litter[:3])}{' and more' if len(litter) > 3 else ''}" if litter else ""
    return "; ".join(part for part in (text, unread, left) if part)


def findings(content: Content) -> tuple[Finding, ...]:
    """What keeps the image from being sealed; nothing is found in file systems that nobody read."""
    found = list(_found(content.tree, content.text))
    seeds = [name for name in content.esp if name.lower() == "/loader/random-seed"]
    found += [Finding(f"{name}: a secret of one machine", grave=True) for name in seeds]
    if content.read:
        missing = [path for path in _EXPECTED if path not in content.tree]
        found += [Finding(f"{path} is missing: is this a system?", grave=True) for path in missing]
    return tuple(found)


def _found(tree: Tree, text: Callable[[str], str]) -> Iterator[Finding]:
    for path in sorted(tree):
        entry = tree[path]
        if entry.kind is not Kind.FILE:
            continue
        for pattern, rule in _PATTERNS:
            if not pattern.fullmatch(path) or (rule.empty and not entry.size):
                continue
            if not rule.says or re.search(rule.says, text(path)):
                yield Finding(f"{path}: {rule.why}", rule.grave)
                break
