"""libvirt: does it answer, which of its daemons run, do they come back after a restart of the computer, who may ask them."""

from __future__ import annotations

import os
from collections.abc import Iterator

from pocketcloud.check.fixes import Action, Command, lines
from pocketcloud.check.judgement import Check, Surroundings
from pocketcloud.host.accounts import members
from pocketcloud.host.daemons import Daemons, read_daemons
from pocketcloud.host.files import text
from pocketcloud.host.packages import Family, capabilities, family
from pocketcloud.hypervisor.complaints import DENIED_HINT
from pocketcloud.model.judgement import State

_GROUP = "services"
# Firmware features can be switched off by name from this one on (libvirt's formatdomain, <firmware>).
_OLDEST_LIBVIRT = (8, 6, 0)
_MODULAR = ("virtqemud", "virtnetworkd", "virtlogd")
_MONOLITHIC = ("libvirtd", "virtlogd")
_GROUP_OF_LIBVIRT = "libvirt"


def judge(here: Surroundings) -> Iterator[Check]:
    """libvirt's answer, its daemons, their start at boot, and who may ask them."""
    daemons = read_daemons(here.root)
    yield _libvirt(here, daemons)
    yield _form(here, daemons)
    yield _boot(here, daemons)
    yield _access(here, daemons)


def _libvirt(here: Surroundings, daemons: Daemons) -> Check:
    purpose = capabilities()["libvirt"].needed_for
    why = f"libvirt {purpose}."
    facts, failure = here.daemon.facts, here.daemon.failure
    if facts is not None:
        evidence = f"{facts.uri} answers: libvirt {facts.libvirt}, QEMU {facts.qemu}"
        numbers = tuple(int(part) for part in facts.libvirt.split(".") if part.isascii() and part.isdecimal())
        if numbers < _OLDEST_LIBVIRT:
            oldest = ".".join(str(number) for number in _OLDEST_LIBVIRT)
            evidence = f"{evidence}; {oldest} is the oldest that can be told which firmware is meant"
            return Check("libvirt", _GROUP, State.FAIL, evidence, why, ("Use a newer release of the distribution",))
        return Check("libvirt", _GROUP, State.OK, evidence, why)
    evidence = failure.message if failure else "no answer"
    if failure and failure.hint == DENIED_HINT:
        return Check("libvirt", _GROUP, State.UNKNOWN, evidence, why, ("Run this check as root: labs are root's too",))
    if here.daemon.silent:
        name = "virtqemud" if "virtqemud" in daemons.running else "libvirtd"
        restart = f"systemctl restart {name}" if here.facts.systemd else f"Restart {name}"
        return Check("libvirt", _GROUP, State.UNKNOWN, evidence, why, (restart,))
    if not any(here.find(daemon) for daemon in ("libvirtd", "virtqemud")):
        evidence = f"neither libvirtd nor virtqemud is installed ({evidence})"
        # Its packages start it on most distributions; where they do not, that is the next fix.
        remedy = (*here.install("libvirt"), *lines(_start(here, daemons)))
        return Check("libvirt", _GROUP, State.FAIL, evidence, why, remedy, here.installing("libvirt"))
    start = _start(here, daemons)
    hint = (
        (f"{failure.hint[0].upper()}{failure.hint[1:]}",) if failure and failure.hint and failure.hint not in lines(start) else ()
    )
    return Check("libvirt", _GROUP, State.FAIL, evidence, why, (*lines(start), *hint), start)


def _modular(here: Surroundings) -> bool:
    """Whether the distribution's libvirt has one daemon per task: by what is installed, else by what Fedora and EL do."""
    one, many = here.find("libvirtd") is not None, here.find("virtqemud") is not None
    return many if one != many else family(here.facts.distribution) in (Family.FEDORA, Family.EL)


def _start(here: Surroundings, daemons: Daemons) -> tuple[Action, ...]:
    """The commands that start libvirt's daemons; without systemd, those that do not run yet."""
    modular = _modular(here)
    if here.facts.systemd:
        units = tuple(f"{name}.socket" for name in _MODULAR) if modular else ("libvirtd",)
        return (Command(("systemctl", "enable", "--now", *units)),)
    wanted = ("virtlogd", *(("virtnetworkd", "virtqemud") if modular else ("libvirtd",)))
    return tuple(Command((name, "-d")) for name in wanted if name not in daemons.running)


def _form(here: Surroundings, daemons: Daemons) -> Check:
    why = "libvirt comes as one daemon or as one per task; both at once fight over the machines, and half of either starts none."
    seen = sorted(daemons.running | set(daemons.sockets))
    if not seen:
        return Check("libvirt-form", _GROUP, State.NOT_APPLICABLE, "no daemon of libvirt's is to be seen here", why)
    where = ", ".join(f"{name} {'runs' if name in daemons.running else 'starts when it is asked'}" for name in seen)
    if {"libvirtd", "virtqemud"} <= daemons.running:
        units = [f"libvirtd{kind}" for kind in (".service", ".socket", "-ro.socket", "-admin.socket")]
        stop = f"systemctl disable --now {' '.join(units)}" if here.facts.systemd else "Stop libvirtd"
        return Check("libvirt-form", _GROUP, State.WARN, f"both forms run: {where}", why, (stop,))
    modular = daemons.reachable("virtqemud") and "libvirtd" not in daemons.running
    needed = _MODULAR if modular else _MONOLITHIC
    form = "one daemon per task (modular)" if modular else "one daemon for all (monolithic)"
    optional = {"virtlogd"} if 'stdio_handler = "file"' in text(here.root, "etc/libvirt/qemu.conf").splitlines() else set()
    lacking = [name for name in needed if not daemons.reachable(name) and name not in optional]
    if not lacking:
        return Check("libvirt-form", _GROUP, State.OK, f"{form}: {where}", why)
    if here.facts.systemd:
        sockets = [f"{name}.socket" for name in lacking]
        fix: tuple[Action, ...] = (Command(("systemctl", "enable", "--now", *sockets)),)
    else:
        fix = tuple(Command((name, "-d")) for name in lacking)
    evidence = f"{form}, but {' and '.join(lacking)} neither runs nor is listened for: {where}"
    return Check("libvirt-form", _GROUP, State.FAIL, evidence, why, lines(fix), fix)


def _boot(here: Surroundings, daemons: Daemons) -> Check:
    why = "What was started by hand is gone after the computer's next start."
    if not any(here.find(name) for name in ("libvirtd", "virtqemud")):
        return Check("libvirt-boot", _GROUP, State.NOT_APPLICABLE, "libvirt is not installed", why)
    if not here.facts.systemd:
        words = "; ".join(lines(_start(here, Daemons(frozenset(), {}, frozenset()))))
        evidence = f"no systemd here; by hand, after each start of the computer: {words}"
        return Check("libvirt-boot", _GROUP, State.NOT_APPLICABLE, evidence, why)
    modular = _modular(here)
    needed = ("virtqemud", "virtnetworkd") if modular else ("libvirtd",)
    lacking = [name for name in needed if not daemons.starts_at_boot(name)]
    if not lacking:
        units = sorted(unit for unit in daemons.enabled if unit.rpartition(".")[0] in needed)
        return Check("libvirt-boot", _GROUP, State.OK, f"enabled: {', '.join(units)}", why)
    fix = _start(here, daemons)
    return Check("libvirt-boot", _GROUP, State.WARN, f"not enabled: {', '.join(lacking)}", why, lines(fix), fix)


def _access(here: Surroundings, daemons: Daemons) -> Check:
    """Nothing of pocketcloud needs the group: disks, mounts and what QEMU reads are root's anyway."""
    why = "Commands that change labs run as root; the group libvirt is for virsh by hand, and is as good as root."
    name = next((name for name in ("virtqemud", "libvirtd") if name in daemons.sockets), "")
    if not name:
        return Check("libvirt-access", _GROUP, State.NOT_APPLICABLE, "no socket of libvirt's is to be seen here", why)
    ruled = any((here.root / "usr/share/polkit-1/rules.d").glob("*libvirt*.rules"))
    user, group = os.environ.get("SUDO_USER", ""), members(here.root, _GROUP_OF_LIBVIRT)
    there = ", ".join(sorted(group)) or "nobody"
    told = f"{name}'s socket has mode {daemons.sockets[name]}; in the group {_GROUP_OF_LIBVIRT}: {there}"
    told += " (let in by polkit)" if ruled else ""
    if user not in ("", "root", *group):
        told += f"; for virsh without sudo: usermod -aG {_GROUP_OF_LIBVIRT} {user}"
    if here.daemon.failure is not None and here.daemon.failure.hint == DENIED_HINT:
        remedy = ("sudo pocketcloud check",)
        return Check("libvirt-access", _GROUP, State.UNKNOWN, f"this user is not let in: {told}", why, remedy)
    return Check("libvirt-access", _GROUP, State.OK, told, why)
