"""What puts a computer to sleep in the middle of a lab: its lid, idleness, its battery."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pocketcloud.check.fixes import Command, NewFile, lines
from pocketcloud.check.judgement import Check, Surroundings
from pocketcloud.host.drop_ins import assignments, drop_ins
from pocketcloud.host.files import line
from pocketcloud.model.judgement import State

_GROUP = "power"
_SUPPLIES = "sys/class/power_supply"
# Where logind looks, the first that has a file of a name hides the others of that name (logind.conf(5)).
_FOLDERS = (
    "etc/systemd/logind.conf.d",
    "run/systemd/logind.conf.d",
    "usr/local/lib/systemd/logind.conf.d",
    "usr/lib/systemd/logind.conf.d",
)
_MAIN = ("etc/systemd/logind.conf", "usr/lib/systemd/logind.conf")
_DEFAULT = "suspend"
# What logind may do that leaves machines running.
_HARMLESS = {"ignore", "lock"}
# A target that is a link to /dev/null is never reached (systemctl mask); all kinds of sleep go through the first.
_MASKED = ("sleep.target", "suspend.target")
_IDLE_FIX = (
    NewFile(
        Path("/etc/systemd/logind.conf.d/pocketcloud-idle.conf"),
        ("[Login]", "IdleAction=ignore"),
        "running labs are not put to sleep because nobody types",
        "systemctl kill -s HUP systemd-logind",
        folder=True,
    ),
    Command(("systemctl", "kill", "-s", "HUP", "systemd-logind")),
)
_FIX = (
    NewFile(
        Path("/etc/systemd/logind.conf.d/pocketcloud.conf"),
        ("[Login]", "HandleLidSwitch=ignore", "HandleLidSwitchExternalPower=ignore"),
        "closing the lid does not put running labs to sleep",
        "systemctl kill -s HUP systemd-logind",
        folder=True,
    ),
    Command(("systemctl", "kill", "-s", "HUP", "systemd-logind")),
)


def judge(here: Surroundings) -> Iterator[Check]:
    """Whether closing the lid or doing nothing stops a lab, and whether the computer runs on its battery."""
    batteries, mains = _supplies(here.root)
    yield _lid(here, laptop=bool(batteries))
    yield _idle(here)
    yield _battery(batteries, mains)


def _supplies(root: Path) -> tuple[list[str], list[bool]]:
    """The batteries that the computer runs on (not those of mice), and for each other supply whether it gives power."""
    batteries, mains = [], []
    folder = root / _SUPPLIES
    for name in sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else ():
        kind = line(root, f"{_SUPPLIES}/{name}/type")
        if kind == "Battery" and line(root, f"{_SUPPLIES}/{name}/scope") != "Device":
            batteries.append(name)
        elif kind in ("Mains", "USB"):
            mains.append(line(root, f"{_SUPPLIES}/{name}/online") == "1")
    return batteries, mains


def _lid(here: Surroundings, *, laptop: bool) -> Check:
    why = "Asleep, a computer takes its lab along, and a USB disk that loses its power counts as pulled."
    if not laptop or not here.facts.systemd:
        evidence = "no laptop: it has no battery" if not laptop else "no systemd here, which would act on the lid"
        return Check("lid", _GROUP, State.NOT_APPLICABLE, evidence, why)
    settings = _logind(here.root)
    lid = settings.get("HandleLidSwitch", _DEFAULT)
    powered = settings.get("HandleLidSwitchExternalPower", lid)
    if masked := _masked(here.root):
        return Check("lid", _GROUP, State.OK, f"closing the lid: {lid}, which cannot be: {masked} is masked", why)
    if {lid, powered} <= _HARMLESS:
        return Check("lid", _GROUP, State.OK, f"closing the lid: {lid}, on mains: {powered} (logind)", why)
    return Check("lid", _GROUP, State.WARN, f"closing the lid: {lid}, on mains: {powered} (logind)", why, lines(_FIX), _FIX)


def _idle(here: Surroundings) -> Check:
    """logind's part of it (logind.conf(5), IdleAction); a desktop's own settings are its users', and are not read."""
    why = "A lab that runs while nobody types looks idle."
    if not here.facts.systemd:
        return Check("idle", _GROUP, State.NOT_APPLICABLE, "no systemd here, which would act on it", why)
    if masked := _masked(here.root):
        return Check("idle", _GROUP, State.OK, f"it cannot sleep: {masked} is masked", why)
    action = _logind(here.root).get("IdleAction", "ignore")
    if action in _HARMLESS:
        return Check("idle", _GROUP, State.OK, f"when idle: {action} (logind); a desktop may have settings of its own", why)
    return Check("idle", _GROUP, State.WARN, f"when idle: {action} (logind)", why, lines(_IDLE_FIX), _IDLE_FIX)


def _masked(root: Path) -> str:
    """The masked target that keeps the computer awake; empty if there is none."""
    for name in _MASKED:
        link = root / "etc/systemd/system" / name
        if link.is_symlink() and link.readlink() == Path("/dev/null"):
            return name
    return ""


def _logind(root: Path) -> dict[str, str]:
    """logind's settings: its main file, then the others by name, wherever they lie; the last word counts."""
    main = next((name for name in _MAIN if (root / name).is_file()), "")
    files = [main, *drop_ins(root, _FOLDERS)] if main else drop_ins(root, _FOLDERS)
    return {name: value for file in files for name, value in assignments(root, file)}


def _battery(batteries: list[str], mains: list[bool]) -> Check:
    why = "On its battery a computer is slower, and a demo has an end."
    if not batteries:
        return Check("battery", _GROUP, State.NOT_APPLICABLE, "it has no battery", why)
    if mains and not any(mains):
        return Check("battery", _GROUP, State.WARN, f"it runs on {', '.join(batteries)}", why, ("Plug it in",))
    return Check(
        "battery", _GROUP, State.OK, "it is plugged in" if any(mains) else "nothing tells that it is not plugged in", why
    )
