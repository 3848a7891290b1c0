"""A disk's way over USB, judged: which hop is the slow one, UAS or not and why, power, bridges that are known for trouble."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pocketcloud.model.judgement import Remark, State, Topic
from pocketcloud.model.usb import Twin, UsbHop, UsbPath
from pocketcloud.resources import shipped

# Mbit/s of USB 3's slowest mode; and the version from which on a device could do it: on a USB 2 link a USB 3 device says 2.10
# (USB 3.2, 9.6.1), and so do some USB 2 devices.
_USB3, _USB3_VERSION = 5000, 2.1
# In mA, what a port gives: to all, and behind a hub without a power supply of its own (USB 2.0, 7.2.1, and USB 3.2, 11.4.1).
_FULL, _FULL_USB3, _UNIT, _UNIT_USB3 = 500, 900, 100, 150
# The hub on a Raspberry Pi 4, behind which all its sockets' USB 2 wires are.
_ON_BOARD = frozenset({"2109:3431"})
# Two bridges of ASMedia that share their ids, one of them with a broken UAS (uas_use_uas_driver in uas-detect.h).
_LIKE_ASM1051 = frozenset({"174c:5106", "174c:55aa"})
_USB3_PORT = "Plug it into a USB 3 port (blue, or marked SS), without a hub, with the cable it came with"


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge that is known for trouble: `handled` where Linux does without what is broken; `source` says who tells so."""

    name: str
    handled: bool
    trouble: str
    source: str


@functools.cache
def known_bridges() -> Mapping[str, Bridge]:
    """Those of the table that we ship, usb-bridges.tsv, by their id (`152d:0578`)."""
    lines = shipped("usb-bridges.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line.strip() and not line.startswith("#")]
    return {identity: Bridge(name, linux == "handled", trouble, source) for identity, name, linux, trouble, source in rows[1:]}


def judge_path(path: UsbPath | None) -> Iterator[Remark]:
    """The remarks on a disk's way, none for a disk that is not on USB."""
    if path is None:
        return
    known = State.OK if path.speed and path.driver else State.UNKNOWN
    yield Remark(Topic.USB, known, _told(path))
    yield from _speed(path)
    yield from _power(path)
    yield from _driver(path)
    yield from _bridge(path)
    if path.autosuspend:
        text = "USB may suspend it when idle (power/control is auto); some enclosures then drop off"
        yield Remark(Topic.USB, State.WARN, text, ("If it drops off: usbcore.autosuspend=-1 on the kernel's command line",))


def _told(path: UsbPath) -> str:
    speed = f"{path.speed} Mbit/s" if path.speed else "unknown speed"
    text = f"USB: {speed}, driver {path.driver or 'unknown'}, {path.id}"
    between = [_hop(hop) for hop in path.hops[1:] if not hop.is_root]
    return text + (f", by {' and '.join(between)}" if between else "") + (", built in" if path.disk.fixed else "")


def _hop(hop: UsbHop) -> str:
    return f"hub {hop.name} ({hop.product or hop.id}, {hop.speed or 'unknown'} Mbit/s)"


# -- speed


def _speed(path: UsbPath) -> Iterator[Remark]:
    disk = path.disk
    if not path.speed:
        return
    if path.speed >= _USB3:
        if disk.able > path.speed:
            slow = next(hop for hop in path.hops if hop.speed == path.speed)
            what = "its port or its cable" if slow is disk or slow.is_root else f"hub {slow.name} ({slow.product or slow.id})"
            yield Remark(Topic.USB, State.OK, f"the disk could do {disk.able} Mbit/s, {what} does {path.speed}")
    elif not _can(disk):
        text = "this is USB 2: some 40 MB/s at best"
        yield Remark(Topic.USB, State.WARN, text, ("Use a USB 3 disk in a USB 3 port",))
    else:
        text, remedy = _slow_hop(path)
        sure = "the disk can do USB 3" if disk.able else f"the disk can probably do USB 3 (it says {disk.version})"
        yield Remark(Topic.USB, State.WARN, f"{sure}, but {text}", (remedy,))


def _can(hop: UsbHop) -> bool:
    """Whether a device that runs at less could do USB 3: it says so, or may be one that does not say."""
    return hop.able >= _USB3 if hop.able else _version(hop.version) >= _USB3_VERSION


def _slow_hop(path: UsbPath) -> tuple[str, str]:
    """What keeps a USB 3 disk at USB 2's pace, in words, and what to do: looked for from the computer on, as nothing beyond a
    slow hop can be quicker."""
    for hub in reversed(path.hops[1:]):
        if hub.is_root or _on_board(hub):
            continue
        name = f"hub {hub.name} ({hub.product or hub.id})"
        if not _can(hub):
            return f"{name} is USB 2", "Plug the disk into the computer itself, or get a USB 3 hub"
        if hub.twin is Twin.NONE:
            return f"{name} is plugged into a USB 2 port of the computer", "Plug the hub into a USB 3 port (blue, or marked SS)"
        if hub.twin is Twin.FREE:
            text = f"{name} runs as USB 2 in a USB 3 port: its cable or plug is the slow one"
            return text, "Push the hub's plug in whole, or give it another cable that is meant for USB 3"
    if path.disk.twin in (Twin.FREE, Twin.USED):
        text = "runs as USB 2 in a USB 3 port: its cable has no USB 3 wires (as charging cables do not), or is not in whole"
        return text, "Push the plug in whole, quickly; then try the cable it came with, or another that is meant for USB 3"
    if path.disk.twin is Twin.NONE and not (len(path.hops) > 1 and _on_board(path.hops[1])):
        return "its port is USB 2", _USB3_PORT
    return "its port, hub or cable is USB 2", _USB3_PORT


def _on_board(hub: UsbHop) -> bool:
    """Whether a hub is part of the computer. The kernel does not know its ports' twins, which may be the computer's own."""
    return hub.fixed or hub.id in _ON_BOARD


# -- power


def _power(path: UsbPath) -> Iterator[Remark]:
    """What the disk asks for against what its port gives. Few disks say how much they draw, so that any behind a hub that draws
    its own from the computer is told of."""
    disk, above = path.disk, path.hops[1] if len(path.hops) > 1 else None
    if disk.self_powered or above is None or disk.fixed:
        return
    starved = not (above.is_root or above.self_powered or above.power is None)
    quick = disk.speed >= _USB3
    given = (_UNIT_USB3 if quick else _UNIT) if starved else (_FULL_USB3 if quick else _FULL)
    wants = f"asks for {disk.power} mA" if disk.power else "draws its power from its port"
    remedy = ("Plug it into the computer itself, or use a hub with a power supply of its own",)
    if starved:
        text = (
            f"it {wants}, and hub {above.name} ({above.product or above.id}) has no supply of its own: {given} mA for each port"
        )
        yield Remark(Topic.USB, State.WARN, text, remedy)
    elif (disk.power or 0) > given:
        yield Remark(Topic.USB, State.WARN, f"it {wants}, its port gives {given} mA", remedy)


# -- driver


def _driver(path: UsbPath) -> Iterator[Remark]:
    if path.driver != "usb-storage":
        return
    reason, remedy = _why_not_uas(path)
    text = "usb-storage does one command at a time: UAS is several times quicker with many machines"
    yield Remark(Topic.USB, State.WARN, f"{text}; {reason}", remedy)


def _why_not_uas(path: UsbPath) -> tuple[str, tuple[str, ...]]:
    """Why a disk runs without UAS, in words, and what to do."""
    steady = known_bridges().get(path.id)
    if path.offers_uas is False:
        return "its bridge does not offer UAS", ("Use an enclosure that speaks UAS",)
    if "u" in path.quirks:
        text = f"UAS was switched off for it by hand (usb-storage.quirks={path.id}:{path.quirks})"
        if steady:
            return text, ()
        again = "If that was not for trouble with it: take usb-storage.quirks off the kernel's command line and /etc/modprobe.d"
        return text, (again,)
    if steady and steady.handled:
        return "Linux does not use this bridge's UAS", ()
    if not path.has_uas:
        return "its bridge offers UAS, and this kernel has no module uas", (
            "Use the distribution's own kernel, and its package of all modules",
        )
    if path.id in _LIKE_ASM1051:
        text = "its bridge offers UAS, but Linux cannot tell it from one whose UAS is broken (ASM1051)"
        return text, ("Plug it into a USB 3 port: there it can be told",) if path.speed < _USB3 else ()
    if path.offers_uas:
        text = "its bridge offers UAS, and Linux chose not to use it"
        return text, ("dmesg | grep -i -e uas -e streams",)
    return "whether its bridge offers UAS is not known", ("Use an enclosure that speaks UAS",)


def _bridge(path: UsbPath) -> Iterator[Remark]:
    if (known := known_bridges().get(path.id)) is None:
        return
    text = f"its bridge, {known.name}, is known for trouble: {known.trouble}"
    if known.handled:
        yield Remark(Topic.USB, State.OK, f"{text} (Linux knows)")
    elif "u" in path.quirks:
        yield Remark(Topic.USB, State.OK, f"{text} (which the quirk is for)")
    else:
        quirk = f"If it drops off: usb-storage.quirks={path.id}:u on the kernel's command line (slower, and steady)"
        yield Remark(Topic.USB, State.WARN, text, (quirk,))


def _version(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
