"""What a disk is worth as a kit: SSD or not and how that is known, speed, USB path, TRIM, write cache, sectors.

Judges values only. `kit init` shows it before its question, `check` of each disk. Nothing here refuses anything: what must not
be chosen is kit/interlocks.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pocketcloud.model.disk import BlockDevice, Measured
from pocketcloud.model.judgement import Remark, State, Topic
from pocketcloud.model.profile import DiskSpeed, Medium
from pocketcloud.model.sizes import KIB, MIB, size_text
from pocketcloud.usb_path import judge_path

# Of a random read of 4 KiB, in seconds, at the median: flash needs less than the one, by USB 2 too; a moving arm more than the
# other, as half a turn alone takes 2 ms at 15 000 turns a minute and 4.2 ms at 7200, and the way there as long again.
_FLASH, _ARM = 0.0025, 0.004
_LARGEST_CHUNK = MIB
# 65535 sectors, as USB bridges report it: no multiple of anything that flash is made of.
NONSENSE_IO = 33553920


def verdict(
    target: BlockDevice, measured: Measured | None, least: Mapping[Medium, DiskSpeed] | None = None
) -> tuple[Remark, ...]:
    """The remarks, the most important first. Without `measured` it is said that nothing was measured. `least` is what the
    profile asks of a kit's disk (`Profile.disk_speed`); left out, its speed is not judged."""
    asked = least.get(Medium.USB if target.transport == "usb" else Medium.INTERNAL) if least else None
    about = (
        _medium(target, measured),
        _speed(target, measured, asked),
        _circumstances(measured),
        judge_path(target.usb),
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
        # Disks that turn quicker than 7200 times a minute, where half a turn takes 4.2 ms, are not sold with USB; on USB 2, three
        # transfers to a read, flash needs some milliseconds too.
        if measured.p50 < (_ARM if target.transport == "usb" else _FLASH):
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
                text = (
                    f"but a random read takes {_ms(measured.p50)}, as on a hard disk: it is one, or it or its cable is in trouble"
                )
                yield Remark(Topic.MEDIUM, State.WARN, text, ("Try another cable and another port, then another disk",))
        case False:
            by_time = measured is not None and measured.p50 > _ARM
            known = "by the time of its reads" if by_time else "it says so itself"
            text = f"SSD: no, a hard disk ({known}); labs work on it, but start and reset slowly"
            yield Remark(Topic.MEDIUM, State.WARN, text, ("Keep kits on an SSD",))
        case None:
            text = "SSD: not known; it calls itself rotating, which many USB bridges say of SSDs too"
            remedy = "Have its reads measured: that tells"
            if measured is not None and measured.random_reads:
                text += f", and its reads, {_ms(measured.p50)} each, do not tell"
                remedy = f"When this computer has nothing else to do: sudo pocketcloud check --device {target.path}"
            yield Remark(Topic.MEDIUM, State.UNKNOWN, text, (remedy,))


def _speed(target: BlockDevice, measured: Measured | None, least: DiskSpeed | None) -> Iterator[Remark]:
    if measured is None:
        yield Remark(Topic.SPEED, State.UNKNOWN, "speed: not measured", (f"sudo pocketcloud check --device {target.path}",))
        return
    if measured.random_reads:
        text = (
            f"speed: {measured.sequential / 1e6:.0f} MB/s in sequence, {measured.random_reads:.0f} random reads of 4 KiB per "
            f"second (half of them within {_ms(measured.p50)}, 99 % within {_ms(measured.p99)})"
        )
        yield Remark(Topic.SPEED, State.OK, text)
        if least and (measured.sequential < least.sequential * 1e6 or measured.random_reads < least.random_reads):
            wanted = f"{least.sequential} MB/s and {least.random_reads} reads a second"
            remedy = ("Fewer machines at a time, or a quicker disk",)
            yield Remark(Topic.SPEED, State.WARN, f"slow for several machines at a time, which take {wanted}", remedy)
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


def _trim(target: BlockDevice) -> Iterator[Remark]:
    """The chain from the disk up, and where it ends. Kits' pools are made to pass discards on, and machines' disks to ask for
    them (`discard=unmap`), so what decides is the disk and what the kernel made of it."""
    scsi = target.scsi
    consequence = "freed space is used again by the kit, but the disk is not told of it"
    if target.discard_max:
        mode = f"{scsi.provisioning}, " if scsi and scsi.provisioning else ""
        pieces = f" in pieces of {size_text(target.discard_granularity)}" if target.discard_granularity else ""
        passed = f"the disk takes it, Linux passes it on ({mode}up to {size_text(target.discard_max)} at a time{pieces})"
        if target.discard_max >= _LARGEST_CHUNK:
            yield Remark(Topic.TRIM, State.OK, f"TRIM: yes: {passed}, so do a kit's pool and machines' disks")
        else:
            text = f"TRIM: {passed}: maybe less than a chunk of the pool, which then passes nothing on; {consequence}"
            yield Remark(Topic.TRIM, State.WARN, text)
    elif scsi and scsi.provisioning == "disabled":
        text = f"TRIM: not any more: the disk declared it and then refused it, so Linux gave it up; {consequence}"
        yield Remark(Topic.TRIM, State.WARN, text, ("Use an enclosure that passes TRIM on (UAS with UNMAP)",))
    elif may_unmap(target):
        text = (
            f"TRIM: the chain ends in Linux: the disk declares UNMAP, which is not used (provisioning_mode full); {consequence}"
        )
        yield Remark(Topic.TRIM, State.WARN, text, (f"pocketcloud check --fix --device {target.path}",))
    elif target.usb:
        asked = scsi is not None and scsi.declares_unmap is not None
        why = "declares no UNMAP" if asked else f"was not asked for it by {target.usb.driver or 'Linux'}"
        text = f"TRIM: no, the chain ends in the enclosure, which {why}; {consequence}"
        yield Remark(Topic.TRIM, State.WARN, text, ("Use an enclosure that passes TRIM on (UAS with UNMAP)",))
    elif target.transport in ("", "virtio"):
        text = f"TRIM: no, the virtual disk does not take it; {consequence}"
        yield Remark(Topic.TRIM, State.WARN, text, ("Give it discard=unmap on the computer that it is a file of",))
    else:
        yield Remark(Topic.TRIM, State.WARN, f"TRIM: no, the chain ends in the disk, which does not take it; {consequence}")


def may_unmap(target: BlockDevice) -> bool:
    """Whether the disk says that it can UNMAP, and the kernel makes no use of it: then it may be told to."""
    scsi = target.scsi
    return scsi is not None and not target.discard_max and scsi.provisioning == "full" and scsi.declares_unmap is True


def _cache(target: BlockDevice) -> Iterator[Remark]:
    disk = target.scsi.cache if target.scsi else ""
    forced = {True: "; single writes are forced out", False: "; no forced writes (FUA), a flush instead", None: ""}[target.fua]
    if target.write_cache == "write through" and disk.startswith("write back"):
        text = (
            "write cache: the disk has one, and somebody has told Linux not to flush it (queue/write_cache is write through): a "
            "power cut or an unplug loses what machines believe to be written"
        )
        yield Remark(Topic.CACHE, State.WARN, text, (f"echo 'write back' > /sys/block/{target.name}/queue/write_cache",))
    elif target.usb and target.write_cache == "write through":
        text = (
            "write cache: the enclosure says there is none, so the kernel sends no flushes; if there is one after all, a power "
            "cut or an unplug without `pocketcloud kit detach` can cost more than the last second"
        )
        yield Remark(Topic.CACHE, State.WARN, text, ("Always `pocketcloud kit detach` before it is unplugged",))
    elif target.write_cache:
        flushed = target.write_cache == "write back"
        text = f"write cache: flushed when it matters{forced}" if flushed else "write cache: none"
        yield Remark(Topic.CACHE, State.OK, text)


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
