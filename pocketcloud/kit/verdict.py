"""What a disk is worth as a kit, in words for people: SSD or not and how that is known, speed, USB, TRIM, write cache.

Judges values only. Nothing here refuses anything: what must not be chosen is interlocks.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from pocketcloud.model.disk import BlockDevice, Measured
from pocketcloud.model.sizes import KIB, MIB, size_text

# Of a random read of 4 KiB, in seconds, at the median: flash needs less than the one, a moving arm more than the other.
_FLASH, _ARM = 0.001, 0.004
# Below these, twenty machines that start at once make people wait.
_SLOW_SEQUENCE, _SLOW_RANDOM = 100 * 1000 * 1000, 2000
# Mbit/s of USB 3's slowest mode; and the version from which on a device could do it (a USB 3 device on a USB 2 port says 2.10).
_USB3, _USB3_VERSION = 5000, 2.1
_LARGEST_CHUNK = MIB
# 65535 sectors, as USB bridges report it: no multiple of anything that flash is made of.
NONSENSE_IO = 33553920


def verdict(target: BlockDevice, measured: Measured | None) -> tuple[str, ...]:
    """The lines, the most important first. Without `measured` it is said that nothing was measured."""
    about = (_medium(target, measured), _speed(measured), _usb(target), _trim(target), _cache(target), _oddities(target))
    return tuple(line for lines in about for line in lines)


def is_ssd(target: BlockDevice, measured: Measured | None) -> bool | None:
    """Whether it is flash; None if that is not known. A disk that says so is believed; one that says it rotates is only if it
    is not on USB, where bridges hide the truth (usb-storage does not ask for VPD page B1h)."""
    if not target.rotational:
        return True
    if measured is not None and measured.random_reads:
        if measured.p50 < _FLASH:
            return True
        if measured.p50 > _ARM:
            return False
    return None if target.transport in ("usb", "") else False


def _medium(target: BlockDevice, measured: Measured | None) -> Iterator[str]:
    told = (
        "it says so itself"
        if not target.rotational
        else "by the time of its reads; it calls itself rotating, as many USB bridges do"
    )
    match is_ssd(target, measured):
        case True:
            yield f"SSD: yes ({told})"
            if not target.rotational and measured is not None and measured.p50 > _ARM:
                yield f"but a random read takes {_ms(measured.p50)}, as on a hard disk: this disk or its cable is in trouble"
        case False:
            by_time = measured is not None and measured.p50 > _ARM
            known = "by the time of its reads" if by_time else "it says so itself"
            yield f"SSD: no, a hard disk ({known}); labs work on it, but start and reset slowly"
        case None:
            yield "SSD: not known; it calls itself rotating, which many USB bridges say of SSDs too"


def _speed(measured: Measured | None) -> Iterator[str]:
    if measured is None:
        yield "speed: not measured"
        return
    if measured.random_reads:
        yield (
            f"speed: {measured.sequential / 1e6:.0f} MB/s in sequence, {measured.random_reads:.0f} random reads of 4 KiB per "
            f"second (half of them within {_ms(measured.p50)}, 99 % within {_ms(measured.p99)})"
        )
        slow = measured.sequential < _SLOW_SEQUENCE or measured.random_reads < _SLOW_RANDOM
        if slow:
            yield "slow for several machines at a time"
    if measured.failed:
        yield f"ATTENTION: {measured.failed} reads failed: the disk or its cable is failing; do not keep work on it"


def _usb(target: BlockDevice) -> Iterator[str]:
    if target.transport != "usb":
        return
    speed = f"{target.usb_speed} Mbit/s" if target.usb_speed else "unknown speed"
    yield f"USB: {speed}, driver {target.usb_driver or 'unknown'}" + (f", {target.usb_id}" if target.usb_id else "")
    if target.usb_speed and target.usb_speed < _USB3:
        if _version(target.usb_version) >= _USB3_VERSION:
            yield "the disk can do USB 3, but its port, hub or cable is USB 2: move it to a blue port or one marked SS"
        else:
            yield "this is USB 2: some 40 MB/s at best"
    if target.usb_driver == "usb-storage":
        yield "usb-storage does one command at a time: an enclosure with UAS is several times quicker with many machines"
    if target.usb_autosuspend:
        yield "USB may suspend it when idle (power/control is auto); some enclosures then drop off"


def _version(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _trim(target: BlockDevice) -> Iterator[str]:
    consequence = "freed space is used again by the kit, but the disk is not told of it"
    if target.discard_max >= _LARGEST_CHUNK:
        yield "TRIM: yes"
    elif target.discard_max:
        yield f"TRIM: only {size_text(target.discard_max)} at a time, maybe less than a chunk of the pool; then {consequence}"
    elif target.transport == "usb":
        yield f"TRIM: no, the enclosure does not offer it; {consequence}"
    else:
        yield f"TRIM: no; {consequence}"


def _cache(target: BlockDevice) -> Iterator[str]:
    if target.transport == "usb" and target.write_cache == "write through":
        yield (
            "write cache: the enclosure says there is none, so the kernel sends no flushes; if there is one after all, a power "
            "cut or an unplug without `pocketcloud kit detach` can cost more than the last second"
        )
    elif target.write_cache:
        yield "write cache: flushed when it matters" if target.write_cache == "write back" else "write cache: none"


def _oddities(target: BlockDevice) -> Iterator[str]:
    if target.optimal_io and (target.optimal_io == NONSENSE_IO or target.optimal_io % (4 * KIB)):
        yield f"its optimal I/O size ({target.optimal_io}) is nonsense and is not used: everything is aligned to 1 MiB"
    if target.logical_sector != 512:
        yield f"its sectors have {target.logical_sector} bytes: it will not be readable in an enclosure that shows other ones"
    if not target.serial and target.kind != "loop":
        yield "it has no serial number of its own, so other disks of this kind cannot be told from it"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
