"""What a disk is worth as a kit: SSD or not and how that is known, speed, USB path, TRIM, write cache, sectors.

Judges values only. `kit init` shows it before its question, `check` of each disk. Nothing here refuses anything: what must not
be chosen is kit/interlocks.py.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from pocketcloud.model.disk import BlockDevice, Measured
from pocketcloud.model.judgement import State
from pocketcloud.model.sizes import KIB, MIB, size_text
from pocketcloud.resources import shipped

# Of a random read of 4 KiB, in seconds, at the median: flash needs less than the one, by USB 2 too; a moving arm more than the
# other, as half a turn alone takes 2 ms at 15 000 turns a minute and 4.2 ms at 7200, and the way there as long again.
_FLASH, _ARM = 0.0025, 0.004
# Below these, twenty machines that start at once make people wait.
_SLOW_SEQUENCE, _SLOW_RANDOM = 100 * 1000 * 1000, 2000
# Mbit/s of USB 3's slowest mode; and the version from which on a device could do it (a USB 3 device on a USB 2 port says 2.10).
_USB3, _USB3_VERSION = 5000, 2.1
_LARGEST_CHUNK = MIB
# 65535 sectors, as USB bridges report it: no multiple of anything that flash is made of.
NONSENSE_IO = 33553920


class Topic(StrEnum):
    """What of a disk is judged, and why it matters."""

    MEDIUM = "medium"
    SPEED = "speed"
    USB = "usb"
    TRIM = "trim"
    CACHE = "write-cache"
    LAYOUT = "layout"

    @property
    def why(self) -> str:
        """In one sentence."""
        return _WHY[self]


_WHY = {
    Topic.MEDIUM: "On a hard disk many machines at a time wait for one moving arm.",
    Topic.SPEED: "All machines of a lab share the disk, most of all when they start together.",
    Topic.USB: "The slowest hop between disk and computer sets the pace, and a bridge that drops off takes the lab with it.",
    Topic.TRIM: "Without TRIM the disk is not told what a reset frees, and flash gets slower when it believes to be full.",
    Topic.CACHE: "What a disk has only in its cache is lost in a power cut or an unplug, unless it is flushed.",
    Topic.LAYOUT: "Sectors and identity decide whether another enclosure or computer finds the kit again.",
}


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that was found of a disk, in words, and what to do about it: sentences, none where nothing helps."""

    topic: Topic
    state: State
    text: str
    remedy: tuple[str, ...] = ()


def verdict(target: BlockDevice, measured: Measured | None) -> tuple[Remark, ...]:
    """The remarks, the most important first. Without `measured` it is said that nothing was measured."""
    about = (
        _medium(target, measured),
        _speed(measured),
        _circumstances(measured),
        _usb(target),
        _trim(target),
        _cache(target),
        _layout(target),
    )
    return tuple(remark for remarks in about for remark in remarks)


def is_ssd(target: BlockDevice, measured: Measured | None) -> bool | None:
    """Whether it is flash; None if that is not known. A disk that says so is believed; one that says it rotates is only if it
    is not on USB, where bridges hide the truth (usb-storage does not ask for VPD page B1h)."""
    if not target.rotational:
        return True
    if measured is not None and measured.random_reads:
        if measured.p50 < _FLASH:
            return True
        if measured.p50 > _ARM and not measured.others:
            return False
    return None if target.transport in ("usb", "") else False


def _medium(target: BlockDevice, measured: Measured | None) -> Iterator[Remark]:
    told = (
        "it says so itself"
        if not target.rotational
        else "by the time of its reads; it calls itself rotating, as many USB bridges do"
    )
    match is_ssd(target, measured):
        case True:
            yield Remark(Topic.MEDIUM, State.OK, f"SSD: yes ({told})")
            if not target.rotational and measured is not None and measured.p50 > _ARM and not measured.others:
                text = f"but a random read takes {_ms(measured.p50)}, as on a hard disk: this disk or its cable is in trouble"
                yield Remark(Topic.MEDIUM, State.WARN, text, ("Try another cable and another port, then another disk",))
        case False:
            by_time = measured is not None and measured.p50 > _ARM
            known = "by the time of its reads" if by_time else "it says so itself"
            text = f"SSD: no, a hard disk ({known}); labs work on it, but start and reset slowly"
            yield Remark(Topic.MEDIUM, State.WARN, text, ("Keep kits on an SSD",))
        case None:
            text = "SSD: not known; it calls itself rotating, which many USB bridges say of SSDs too"
            yield Remark(Topic.MEDIUM, State.UNKNOWN, text, ("Have its reads measured: that tells",) if measured is None else ())


def _speed(measured: Measured | None) -> Iterator[Remark]:
    if measured is None:
        yield Remark(Topic.SPEED, State.UNKNOWN, "speed: not measured", ("pocketcloud check --device DISK, as root",))
        return
    if measured.random_reads:
        text = (
            f"speed: {measured.sequential / 1e6:.0f} MB/s in sequence, {measured.random_reads:.0f} random reads of 4 KiB per "
            f"second (half of them within {_ms(measured.p50)}, 99 % within {_ms(measured.p99)})"
        )
        yield Remark(Topic.SPEED, State.OK, text)
        if measured.sequential < _SLOW_SEQUENCE or measured.random_reads < _SLOW_RANDOM:
            remedy = ("Fewer machines at a time, or a quicker disk",)
            yield Remark(Topic.SPEED, State.WARN, "slow for several machines at a time", remedy)
    if measured.failed:
        text = f"ATTENTION: {measured.failed} reads failed: the disk or its cable is failing; do not keep work on it"
        yield Remark(Topic.SPEED, State.FAIL, text, ("Try another cable and another port; copy what is on it",))


def _circumstances(measured: Measured | None) -> Iterator[Remark]:
    """What else is to be known of the figures: hdparm's, and what falsified them."""
    if measured is None:
        return
    if measured.first:
        # 2 MiB at a time, and what it calls MB is MiB (hdparm.c, time_device).
        text = f"from its beginning on {measured.first / MIB:.0f} MiB/s, which `hdparm -t --direct` calls MB/sec"
        yield Remark(Topic.SPEED, State.OK, text)
    if measured.asleep:
        text = f"it was asleep: the first read took {measured.asleep:.0f} s, which is not counted"
        yield Remark(Topic.SPEED, State.OK, text)
    if measured.others:
        text = f"busy: others read and wrote {size_text(measured.others)} meanwhile, twice in a row, so the figures are too low"
        yield Remark(Topic.SPEED, State.OK, text)


def _usb(target: BlockDevice) -> Iterator[Remark]:
    if target.transport != "usb":
        return
    speed = f"{target.usb_speed} Mbit/s" if target.usb_speed else "unknown speed"
    text = f"USB: {speed}, driver {target.usb_driver or 'unknown'}" + (f", {target.usb_id}" if target.usb_id else "")
    yield Remark(Topic.USB, State.OK if target.usb_speed and target.usb_driver else State.UNKNOWN, text)
    if target.usb_speed and target.usb_speed < _USB3:
        if _version(target.usb_version) >= _USB3_VERSION:
            text = "the disk can do USB 3, but its port, hub or cable is USB 2: move it to a blue port or one marked SS"
            remedy = "Plug it into a USB 3 port (blue, or marked SS), without a hub, with the cable it came with"
        else:
            text, remedy = "this is USB 2: some 40 MB/s at best", "Use a USB 3 disk in a USB 3 port"
        yield Remark(Topic.USB, State.WARN, text, (remedy,))
    if target.usb_driver == "usb-storage":
        text = "usb-storage does one command at a time: an enclosure with UAS is several times quicker with many machines"
        yield Remark(Topic.USB, State.WARN, text, ("Use an enclosure that speaks UAS",))
    yield from _bridge(target)
    if target.usb_autosuspend:
        text = "USB may suspend it when idle (power/control is auto); some enclosures then drop off"
        yield Remark(Topic.USB, State.WARN, text, ("If it drops off: usbcore.autosuspend=-1 on the kernel's command line",))


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


def _bridge(target: BlockDevice) -> Iterator[Remark]:
    if (known := known_bridges().get(target.usb_id)) is None:
        return
    text = f"its bridge, {known.name}, is known for trouble: {known.trouble}"
    if known.handled:
        yield Remark(Topic.USB, State.OK, f"{text} (Linux knows)")
    else:
        quirk = f"If it drops off: usb-storage.quirks={target.usb_id}:u on the kernel's command line (slower, and steady)"
        yield Remark(Topic.USB, State.WARN, text, (quirk,))


def _version(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _trim(target: BlockDevice) -> Iterator[Remark]:
    consequence = "freed space is used again by the kit, but the disk is not told of it"
    if target.discard_max >= _LARGEST_CHUNK:
        yield Remark(Topic.TRIM, State.OK, "TRIM: yes")
    elif target.discard_max:
        text = f"TRIM: only {size_text(target.discard_max)} at a time, maybe less than a chunk of the pool; then {consequence}"
        yield Remark(Topic.TRIM, State.WARN, text)
    elif target.transport == "usb":
        text = f"TRIM: no, the enclosure does not offer it; {consequence}"
        yield Remark(Topic.TRIM, State.WARN, text, ("Use an enclosure that passes TRIM on (UAS with UNMAP)",))
    else:
        yield Remark(Topic.TRIM, State.WARN, f"TRIM: no; {consequence}")


def _cache(target: BlockDevice) -> Iterator[Remark]:
    if target.transport == "usb" and target.write_cache == "write through":
        text = (
            "write cache: the enclosure says there is none, so the kernel sends no flushes; if there is one after all, a power "
            "cut or an unplug without `pocketcloud kit detach` can cost more than the last second"
        )
        yield Remark(Topic.CACHE, State.WARN, text, ("Always `pocketcloud kit detach` before it is unplugged",))
    elif target.write_cache:
        flushed = target.write_cache == "write back"
        yield Remark(Topic.CACHE, State.OK, "write cache: flushed when it matters" if flushed else "write cache: none")


def _layout(target: BlockDevice) -> Iterator[Remark]:
    if target.optimal_io and (target.optimal_io == NONSENSE_IO or target.optimal_io % (4 * KIB)):
        text = f"its optimal I/O size ({target.optimal_io}) is nonsense and is not used: everything is aligned to 1 MiB"
        yield Remark(Topic.LAYOUT, State.OK, text)
    if target.logical_sector != 512:
        text = f"its sectors have {target.logical_sector} bytes: it will not be readable in an enclosure that shows other ones"
        yield Remark(Topic.LAYOUT, State.WARN, text, ("Keep it in this enclosure once it is a kit",))
    if not target.serial and target.kind != "loop":
        text = "it has no serial number of its own, so other disks of this kind cannot be told from it"
        yield Remark(Topic.LAYOUT, State.WARN, text, ("Plug in one of them at a time when kits are made",))


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
