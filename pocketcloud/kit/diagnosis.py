"""What is wrong with a kit, judged from what was seen of it, and the step that would cure each. Pure: it looks at nothing.

The order is that of the cures: a later one may need the earlier, and what is seen after one may be another thing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from pocketcloud.kit.evidence import META, Evidence, Metadata, State, complete, standing
from pocketcloud.storage.devmapper import PoolMode
from pocketcloud.storage.thin_volumes import CONTENT, NAME, POOL, STATE


class Trouble(StrEnum):
    """The kinds of damage, in the order in which they are cured."""

    DEAD_TREE = "nodes of a pulled disk"
    SUSPENDED = "suspended nodes"
    ENTRY = "stale entry"
    RUN_FILES = "stale files of LVM"
    LOOPS = "needless loop devices"
    PARTIAL = "missing device"
    BECOMING = "unfinished copy"
    HALF_MADE = "unfinished kit"
    JOURNAL = "journal to be replayed"
    STATE = "damaged state volume"
    MANIFEST = "lost manifest"
    METADATA = "damaged pool metadata"
    NEEDS_CHECK = "pool that wants a check"
    TRANSACTION = "transaction that does not match"
    HELD = "metadata snapshot left over"
    CONTENT = "lost content volume"
    IN_USE = "trouble while in use"
    NO_SPARE = "no spare metadata"
    MAKERS = "files of dead commands"
    LOST_LABS = "lost lab records"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: what, how it shows, and the cure in words. `curable`: `kit repair` does it; `loses`: the names
    of the volumes whose content is gone afterwards."""

    trouble: Trouble
    what: str
    evidence: str
    cure: str
    curable: bool = True
    loses: tuple[str, ...] = ()


def findings(seen: Evidence) -> tuple[Finding, ...]:
    """All that is wrong, in the order of the cures; empty if the kit is well."""
    order = list(Trouble)
    return tuple(sorted(_findings(seen), key=lambda finding: order.index(finding.trouble)))


def _findings(seen: Evidence) -> Iterator[Finding]:
    yield from _on_the_host(seen)
    if seen.dead or seen.suspended or seen.target.device is None:
        return
    kit, device = seen.target.name, seen.target.device
    if seen.partial:
        yield Finding(
            Trouble.PARTIAL,
            f"a part of the volume group {seen.target.vg} is not here",
            f"LVM finds only a part of it on {device}",
            "plug in what is missing; a kit lies on one device, so somebody has extended the group",
            curable=False,
        )
        return
    if seen.becoming:
        yield Finding(
            Trouble.BECOMING,
            "a byte copy was to become a kit of its own, which was interrupted",
            f"the tag pc:becoming on volume group {seen.target.vg}",
            f"end it: pocketcloud kit attach {device} --as NEWNAME",
            curable=False,
        )
    if not _was_finished(seen):
        there = ", ".join(row.name for row in seen.volumes) or "none"
        yield Finding(
            Trouble.HALF_MADE,
            "the kit was never finished: `kit init` was interrupted",
            f"the group has our tags and the volumes {there}, and no manifest was written",
            f"pocketcloud kit init {device} starts over; pocketcloud kit erase {device} gives the disk back",
            curable=False,
        )
        return
    if seen.state:
        yield from _of_state(seen, seen.state, kit)
    yield from _of_pool(seen)


def _was_finished(seen: Evidence) -> bool:
    """Whether `kit init` came to its end: it writes the manifest last."""
    if seen.state and seen.state.tree and not seen.state.fault:
        return {STATE, POOL} <= {row.name for row in seen.volumes}
    return complete(seen.volumes) and not (seen.state and _never_finished(seen.state))


def _never_finished(state: State) -> bool:
    return state.blank or (state.tree and bool(state.fault) and state.fault.startswith("it has no") and not state.used)


def _on_the_host(seen: Evidence) -> Iterator[Finding]:
    if seen.dead:
        yield Finding(
            Trouble.DEAD_TREE,
            "the disk was pulled while the kit was attached",
            f"these nodes stand on a device that is gone: {', '.join(seen.dead)}",
            "unmount what is on them and remove them from the top down; nothing on the disk is touched",
        )
    if seen.suspended:
        yield Finding(
            Trouble.SUSPENDED,
            "a command was killed while it had nodes suspended; reading them would hang for ever",
            f"suspended: {', '.join(seen.suspended)}",
            "resume them, the lowest first",
        )
    if seen.entries:
        yield Finding(
            Trouble.ENTRY,
            f"kit {seen.target.name} counts as attached, but is not mounted",
            ", ".join(map(str, seen.entries)),
            "remove the entry",
        )
    if seen.run_files:
        yield Finding(
            Trouble.RUN_FILES,
            "LVM still has notes of the disk under a number that it had before",
            ", ".join(map(str, seen.run_files)),
            "remove these notes, of this disk only",
        )
    if seen.loops:
        yield Finding(
            Trouble.LOOPS,
            "the kit's file lies behind more than one loop device",
            ", ".join(map(str, seen.loops)),
            "detach those that are not in use",
        )


def _of_state(seen: Evidence, state: State, kit: str) -> Iterator[Finding]:
    device = f"/dev/{seen.target.vg}/{STATE}"
    if state.journal:
        yield Finding(
            Trouble.JOURNAL,
            "the state volume was not unmounted; its last changes are in its journal",
            f"dumpe2fs -h {device}: needs_recovery",
            f"replay the journal, as mounting does: e2fsck -E journal_only {device}",
        )
    elif state.filesystem and state.filesystem.code and state.mounted:
        yield _while_in_use(kit, "its state volume is damaged", state.filesystem.said)
    elif (state.filesystem and state.filesystem.code) or not state.tree:
        yield Finding(
            Trouble.STATE,
            "the file system of the state volume is damaged",
            (state.filesystem and state.filesystem.said) or "it cannot be mounted",
            f"e2fsck -f -y {device}, with an undo file; what lost its name is in lost+found afterwards",
        )
    elif state.fault:
        yield Finding(
            Trouble.MANIFEST,
            "the kit's manifest is lost",
            state.fault,
            "write kit.json anew from the tags of the volume group; a damaged one is kept beside it",
        )
    if state.makers:
        yield Finding(
            Trouble.MAKERS,
            "commands that made volumes were killed",
            f"nobody holds {', '.join(state.makers)}",
            "remove these files; their volumes go with the next command that changes any",
        )
    if state.tree and not state.journal:
        yield from _lost_labs(seen, state)


def _lost_labs(seen: Evidence, state: State) -> Iterator[Finding]:
    volumes: dict[str, list[str]] = {}
    for row in seen.volumes:
        if lab := row.tagged("pc:lab"):
            volumes.setdefault(lab, []).append(row.tagged(NAME) or row.name)
    for lab, names in sorted(volumes.items()):
        if lab not in state.records:
            yield Finding(
                Trouble.LOST_LABS,
                f"lab {lab} has volumes and no record",
                f"tagged with it: {', '.join(sorted(names))}",
                f"their disks can be read; to give up the lab: pocketcloud lab destroy {lab}",
                curable=False,
            )


def _of_content(seen: Evidence) -> Iterator[Finding]:
    """Of the volume `content`, which the pool may know no more after a repair, or which a repair was about to make anew."""
    there = next((row for row in seen.volumes if row.name == CONTENT), None)
    metadata, pool = seen.metadata, seen.pool
    # Nothing can be made in a pool before such trouble is cured.
    if metadata and (metadata.check.code or metadata.needs_check or metadata.transaction not in _accepted(seen)):
        return
    if pool and (pool.mode is not PoolMode.WRITING or pool.needs_check or pool.transaction not in _accepted(seen)):
        return
    if there is None:
        evidence = "the group has no volume of that name"
    elif metadata and there.thin and there.thin_id not in metadata.devices and not seen.pending:
        evidence = _devices(metadata)
    else:
        return
    what = f"the volume {CONTENT} is gone, without which the kit cannot be attached"
    if seen.state and seen.state.mounted:
        yield _while_in_use(seen.target.name, what, evidence)
        return
    yield Finding(
        Trouble.CONTENT,
        what,
        evidence,
        "make it anew, empty: media and caches come again, and machines whose memory was saved there start cold",
    )


def _devices(metadata: Metadata) -> str:
    return f"thin_dump has the devices {', '.join(map(str, sorted(metadata.devices))) or 'none'}"


def _while_in_use(kit: str, what: str, evidence: str) -> Finding:
    return Finding(
        Trouble.IN_USE, f"{what}, and the kit is attached", evidence,
        f"pocketcloud kit detach {kit}, then repair it by its device", curable=False,
    )  # fmt: skip


def _of_pool(seen: Evidence) -> Iterator[Finding]:
    if seen.pool is not None:
        yield from _of_active_pool(seen)
    if seen.metadata is not None:
        yield from _of_metadata(seen)
    yield from _of_content(seen)
    if not any(row.name.endswith("_pmspare") for row in seen.volumes):
        yield Finding(
            Trouble.NO_SPARE,
            "the group has no spare metadata volume, which a repair of the pool needs",
            "no volume of it is named ..._pmspare",
            f"free space in the group for one as large as {META}: LVM makes one then, when it next makes or repairs a pool",
            curable=False,
        )


def _of_active_pool(seen: Evidence) -> Iterator[Finding]:
    pool = seen.pool
    if pool is None:
        return
    kit = seen.target.name
    if pool.mode in (PoolMode.FAILED, PoolMode.READ_ONLY) or pool.needs_check:
        said = f"the kernel says: {pool.mode}{', needs_check' if pool.needs_check else ''}"
        yield _while_in_use(kit, "its pool has failed" if pool.mode is PoolMode.FAILED else "its pool takes no writes", said)
        return
    if pool.transaction not in _accepted(seen):
        said = f"LVM expects {seen.expected}, the pool has {pool.transaction}"
        yield _while_in_use(kit, "its pool and LVM do not agree", said)
    if pool.held is not None:
        yield Finding(
            Trouble.HELD,
            "a metadata snapshot of the pool is held" + (", and nobody reads it" if seen.metadata_free else " and being read"),
            f"dmsetup status: held metadata root {pool.held}",
            "release it; while it is held it keeps freed space" if seen.metadata_free else "wait until who reads it is done",
            curable=seen.metadata_free,
        )


def _accepted(seen: Evidence) -> tuple[int, ...]:
    """The transactions that LVM puts right by itself: it sends messages that it has noted when the pool is activated."""
    return (seen.expected, seen.expected - 1) if seen.pending else (seen.expected,)


def _of_metadata(seen: Evidence) -> Iterator[Finding]:
    metadata = seen.metadata
    if metadata is None:
        return
    known = standing(seen.volumes)
    gone = tuple(sorted(name for number, name in known.items() if number not in metadata.devices))
    if metadata.check.code:
        yield Finding(
            Trouble.METADATA,
            f"the metadata of the pool is damaged; a repair would keep {len(known) - len(gone)} of {len(known)} volumes",
            f"thin_check: {metadata.check.said}",
            f"lvconvert --repair {seen.target.vg}/{POOL}; the old metadata stays as a volume ({POOL}_metaN)",
            loses=gone,
        )
        return
    if metadata.needs_check:
        yield Finding(
            Trouble.NEEDS_CHECK,
            "the pool aborted a change of its metadata and takes no writes until it is checked",
            "needs_check is set, and thin_check finds nothing wrong",
            "activate it once with thin_check --clear-needs-check-flag",
        )
    pending_makes = seen.pending and len(gone) == 1
    if metadata.transaction not in _accepted(seen):
        yield Finding(
            Trouble.TRANSACTION,
            "the pool and LVM do not agree on what was done last, so LVM does not activate it"
            + (f"; the pool does not know {', '.join(gone)}" if gone else ""),
            f"LVM expects transaction {seen.expected}, the metadata has {metadata.transaction}",
            "write the pool's number into LVM's metadata (vgcfgrestore); the pool is not touched",
            loses=gone,
        )
    elif lost := [name for name in gone if not pending_makes and name != CONTENT]:
        yield Finding(
            Trouble.LOST_LABS,
            f"the pool does not know {', '.join(lost)}: their content is gone",
            _devices(metadata),
            "remove what stands on them (lab destroy, base remove) and make it anew",
            curable=False,
        )
    if metadata.held:
        yield Finding(
            Trouble.HELD,
            "a metadata snapshot of the pool was left by a command that was killed; it keeps freed space",
            "the superblock has a held root",
            "activate the pool and release it",
        )
