"""What a station does with a disk that is plugged in: whether it is blank, or a copy of the master in some state, or is left
alone. Only reads, but for `made_way`, which takes an older copy away that nobody has used."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pocketcloud.copies.clone import note_on
from pocketcloud.copies.ledger import read_ledger
from pocketcloud.copies.shipped import read_all
from pocketcloud.copies.source import Source
from pocketcloud.copies.unfinished import Unfinished, read_note
from pocketcloud.copies.up_to_date import looked_into
from pocketcloud.errors import PocketcloudError, Refused
from pocketcloud.host import kits as host
from pocketcloud.kit.aside import release
from pocketcloud.kit.attached import Places, attached_kits
from pocketcloud.kit.disk import Chosen, choose
from pocketcloud.kit.erase import erase, plan_erasure
from pocketcloud.kit.interlocks import contents
from pocketcloud.kit.manifest import read_manifest
from pocketcloud.kit.plugged import PARTITION_START, Plugged, plugged_kits
from pocketcloud.kit.remains import put_to_rest
from pocketcloud.kit.target import opened
from pocketcloud.model.sizes import MIB
from pocketcloud.storage.devmapper import node_name
from pocketcloud.storage.lvm import Lvm
from pocketcloud.storage.thin_volumes import POOL, STATE
from pocketcloud.system import Runner


class Kind(StrEnum):
    """What a disk is to a station."""

    BLANK = "blank"
    UNFINISHED = "unfinished"  # a copy of the master that was interrupted
    OLD = "old"  # a copy of what the master was, which nobody has used
    DONE = "done"
    FOREIGN = "foreign"  # left alone


@dataclass(frozen=True, slots=True)
class Candidate:
    """A disk: `why` it is left alone, the `name` and `id` of the copy on it, `chosen` where it may be written to as it is."""

    kind: Kind
    path: Path
    why: str = ""
    name: str = ""
    id: str = ""
    chosen: Chosen | None = None


def judged(source: Source, path: Path, places: Places, run: Runner) -> Candidate:
    """What the disk `path` is to a station whose master is `source`. What is in doubt is left alone."""
    try:
        return _judged(source, path, places, run)
    except PocketcloudError as error:
        return Candidate(Kind.FOREIGN, path, error.message)
    except OSError as error:
        return Candidate(Kind.FOREIGN, path, f"it cannot be read: {error.strerror or error}")


def _judged(source: Source, path: Path, places: Places, run: Runner) -> Candidate:
    carriers = [path, *(host.node(part) for part in host.partitions(host.kernel_name(path)))]
    attached = {device: kit for kit in attached_kits(places) for device in kit.devices}
    for carrier in carriers:
        if carrier in attached:
            return Candidate(Kind.FOREIGN, path, f"kit {attached[carrier].name} is attached from it")
    for plugged in plugged_kits(run, [carrier for carrier in carriers if host.has_label(carrier)]):
        if beside := [str(carrier) for carrier in carriers[1:] if carrier != plugged.device]:
            # Neither written anew nor switched off, whatever the copy is: somebody may use that.
            return Candidate(Kind.FOREIGN, path, f"{', '.join(beside)} is on it beside kit {plugged.name}")
        return _of_kit(source, path, plugged, run)
    chosen = choose(places, path, run)
    note = note_on(chosen) or (_any_note(chosen.unfinished) if chosen.unfinished else None)
    if note is not None:
        if note.source != source.kit.id:
            return Candidate(Kind.FOREIGN, path, f"an unfinished copy of another kit is on it, {note.name}")
        return Candidate(Kind.UNFINISHED, path, name=note.name, id=note.id, chosen=chosen)
    if chosen.unfinished is None and (found := contents(chosen.devices, chosen.target)):
        return Candidate(Kind.FOREIGN, path, f"it is not empty: {'; '.join(found)}")
    # A partition of ours with nothing in it is what is left where a copy was interrupted before it began; the kernel may not
    # even know of it.
    begin, end = (PARTITION_START, PARTITION_START + chosen.room) if chosen.unfinished else (0, chosen.target.size)
    if not _is_zero(path, begin, end):
        return Candidate(Kind.FOREIGN, path, "it is not empty, although what is on it is nothing that is known")
    return Candidate(Kind.BLANK, path, chosen=chosen)


def _any_note(carrier: Path) -> Unfinished | None:
    """Also that of a copy that was killed while it got its label."""
    try:
        handle = os.open(carrier, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return read_note(handle)
    finally:
        os.close(handle)


def _is_zero(path: Path, begin: int, end: int) -> bool:
    """Whether the first and the last MiB between two bytes of a disk are zeros."""
    with path.open("rb", buffering=0) as disk:
        for place in (begin, max(begin, end - MIB)):
            disk.seek(place)
            data = disk.read(MIB)
            if not data or data.count(0) != len(data):
                return False
    return True


def _of_kit(source: Source, path: Path, plugged: Plugged, run: Runner) -> Candidate:
    if not _at_rest(plugged, run):
        return Candidate(Kind.FOREIGN, path, f"kit {plugged.name} on it is in use")
    generation = source.shipped.generation
    if any((one.id, one.generation) == (plugged.id, generation) for one in read_ledger(source.kit).copies):
        return Candidate(Kind.DONE, path, name=plugged.name, id=plugged.id)
    with looked_into(plugged, run) as tree:
        manifest = read_manifest(tree)
        shipped = [one.generation for one in read_all(tree)]
    if manifest.derived_from != source.kit.id:
        return Candidate(Kind.FOREIGN, path, f"another kit is on it, {plugged.name}")
    if generation in shipped:
        return Candidate(Kind.DONE, path, name=plugged.name, id=plugged.id)
    if manifest.last_host or manifest.dirty:
        why = f"{plugged.name}, a copy of an earlier state, is on it, and was used: what was done in it would be lost"
        return Candidate(Kind.FOREIGN, path, why)
    return Candidate(Kind.OLD, path, name=plugged.name, id=plugged.id)


def _at_rest(plugged: Plugged, run: Runner) -> bool:
    """Whether nothing stands on a copy. What a look into it left that was killed is taken away."""
    vg, users = plugged.group.name, host.above(host.kernel_name(plugged.device))
    looked_at = {node_name(vg, STATE), node_name(vg, f"{POOL}_tmeta")}
    if not {host.mapped_name(user) for user in users} <= looked_at:
        return False
    if users:
        release(Path("/dev/mapper", node_name(vg, STATE)), run)
        put_to_rest(Lvm([plugged.device], run), vg)
    return True


def made_way(candidate: Candidate, places: Places, run: Runner) -> Chosen:
    """The disk of an old copy that cannot be synced, to be made anew. Raises Refused if it is another
    kit by now, or in use."""
    with opened(str(candidate.path), places, run) as target:
        erasure = plan_erasure(target, places, run)
        if erasure.kit_id != candidate.id:
            raise Refused(f"{candidate.path} does not hold {candidate.name} any more", hint="plug the disk in again")
        erase(erasure, run, discard=False)
    return choose(places, erasure.whole.path, run)
