"""What is judged to be wrong with a kit, from what was seen of it; the seeing is tried in User-Mode Linux."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketcloud.kit.diagnosis import Trouble, findings
from pocketcloud.kit.evidence import Checked, Evidence, Metadata, State, Target, read_metadata
from pocketcloud.kit.repair import _CURES
from pocketcloud.storage.devmapper import PoolMode, PoolStatus
from pocketcloud.storage.lvm import LogicalVolume

TARGET = Target("first", "pc_aaaaaa", "u", Path("/dev/sdb1"))
FINE = Checked(0, "")


def volume(name: str, thin_id: int = 0, *tags: str) -> LogicalVolume:
    pool = "pool" if thin_id else ""
    segtype = "thin" if thin_id else "thin-pool" if name == "pool" else "linear"
    return LogicalVolume(
        name,
        f"u{name}",
        1 << 22,
        pool,
        "",
        frozenset(tags),
        writable=True,
        active=False,
        open=False,
        thin_id=thin_id,
        segtype=segtype,
    )


VOLUMES = (
    volume("ballast", 2),
    volume("content", 1),
    volume("lvol0_pmspare"),
    volume("pool"),
    volume("pool_tmeta"),
    volume("state"),
    volume("v.base.x", 3, "pc:name=base.x"),
    volume("v.lab.a.m.root", 4, "pc:name=lab.a.m.root", "pc:lab=a"),
)
WELL = Evidence(
    TARGET,
    VOLUMES,
    expected=5,
    metadata=Metadata(FINE, frozenset({1, 2, 3, 4}), 5),
    state=State(FINE, tree=True, used=True, records=frozenset({"a"})),
)
WITHOUT_CONTENT = tuple(row for row in VOLUMES if row.name != "content")
STATE = WELL.state or State(FINE)
METADATA = WELL.metadata or Metadata(FINE, frozenset())
RUNNING = replace(WELL, metadata=None, pool=PoolStatus(PoolMode.WRITING, 5), state=replace(STATE, mounted=True))


def troubles(seen: Evidence) -> list[Trouble]:
    return [finding.trouble for finding in findings(seen)]


@pytest.mark.parametrize("seen", [WELL, RUNNING], ids=["detached", "attached"])
def test_nothing_is_found_where_nothing_is_wrong(seen: Evidence) -> None:
    assert findings(seen) == ()


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (replace(WELL, partial=True), [Trouble.PARTIAL]),
        (replace(WELL, becoming=True), [Trouble.BECOMING]),
        (replace(WELL, volumes=VOLUMES[:1], state=None), [Trouble.HALF_MADE]),
        (replace(WELL, state=State(None, blank=True)), [Trouble.HALF_MADE]),
        (replace(WELL, state=State(FINE, tree=True, fault="it has no kit.json")), [Trouble.HALF_MADE]),
        (replace(WELL, state=replace(STATE, fault="it has no kit.json")), [Trouble.MANIFEST]),
        (replace(WELL, state=replace(STATE, fault="damaged")), [Trouble.MANIFEST]),
        (replace(WELL, state=replace(STATE, filesystem=Checked(4, "bad"))), [Trouble.STATE]),
        (replace(WELL, state=replace(STATE, filesystem=Checked(4, "skipped"), journal=True)), [Trouble.JOURNAL]),
        (replace(WELL, state=State(FINE)), [Trouble.STATE]),
        (replace(WELL, state=replace(STATE, makers=(".making-1",))), [Trouble.MAKERS]),
        (replace(WELL, state=replace(STATE, records=frozenset())), [Trouble.LOST_LABS]),
        (replace(WELL, metadata=replace(METADATA, needs_check=True)), [Trouble.NEEDS_CHECK]),
        (replace(WELL, metadata=replace(METADATA, held=True)), [Trouble.HELD]),
        (replace(WELL, metadata=replace(METADATA, devices=frozenset({2, 3, 4}))), [Trouble.CONTENT]),
        (replace(WELL, metadata=replace(METADATA, devices=frozenset({3}))), [Trouble.CONTENT, Trouble.LOST_LABS]),
        (replace(WELL, volumes=WITHOUT_CONTENT), [Trouble.CONTENT]),
        (replace(WELL, volumes=WITHOUT_CONTENT, metadata=replace(METADATA, transaction=7)), [Trouble.TRANSACTION]),
        (replace(WELL, volumes=WITHOUT_CONTENT, state=State(FINE, tree=True, fault="it has no kit.json")), [Trouble.HALF_MADE]),
        (replace(RUNNING, volumes=WITHOUT_CONTENT), [Trouble.IN_USE]),
        (replace(RUNNING, volumes=WITHOUT_CONTENT, state=STATE), [Trouble.CONTENT]),
        (replace(WELL, metadata=replace(METADATA, transaction=7)), [Trouble.TRANSACTION]),
        (replace(WELL, metadata=replace(METADATA, check=Checked(1, "bad"), transaction=None)), [Trouble.METADATA]),
        (replace(WELL, volumes=tuple(v for v in VOLUMES if "pmspare" not in v.name)), [Trouble.NO_SPARE]),
        (replace(WELL, run_files=(Path("/run/lvm/x"),)), [Trouble.RUN_FILES]),
        (replace(WELL, loops=(Path("/dev/loop7"),)), [Trouble.LOOPS]),
        (replace(RUNNING, pool=PoolStatus(PoolMode.FAILED)), [Trouble.IN_USE]),
        (replace(RUNNING, pool=PoolStatus(PoolMode.READ_ONLY, 5)), [Trouble.IN_USE]),
        (replace(RUNNING, pool=PoolStatus(PoolMode.WRITING, 5, needs_check=True)), [Trouble.IN_USE]),
        (replace(RUNNING, pool=PoolStatus(PoolMode.WRITING, 6)), [Trouble.IN_USE]),
        (replace(RUNNING, pool=PoolStatus(PoolMode.WRITING, 5, held=9)), [Trouble.HELD]),
        (replace(RUNNING, state=replace(STATE, mounted=True, filesystem=Checked(4, "3 errors"))), [Trouble.IN_USE]),
        (Evidence(TARGET, dead=("pc_aaaaaa-state",)), [Trouble.DEAD_TREE]),
        (Evidence(TARGET, suspended=("pc_aaaaaa-pool",)), [Trouble.SUSPENDED]),
        (Evidence(replace(TARGET, device=None), entries=(Path("/run/x"),)), [Trouble.ENTRY]),
    ],
)
def test_each_damage_is_known_for_what_it_is(seen: Evidence, expected: list[Trouble]) -> None:
    assert troubles(seen) == expected


def test_volumes_that_a_cure_gives_up_are_named_and_the_ballast_is_none() -> None:
    damaged = Metadata(Checked(1, "bad checksum"), frozenset({1, 3}), 5)
    (finding,) = findings(replace(WELL, metadata=damaged))
    assert finding.loses == ("lab.a.m.root",)
    assert "keep 2 of 3" in finding.what
    (other,) = findings(replace(WELL, metadata=replace(METADATA, devices=frozenset({1, 2, 3}), transaction=9)))
    assert (other.trouble, other.loses) == (Trouble.TRANSACTION, ("lab.a.m.root",))


def test_what_lvm_puts_right_by_itself_is_no_trouble() -> None:
    """A command that was killed between its commit and its message to the pool: the message is sent at the activation."""
    behind = replace(METADATA, transaction=4, devices=frozenset({1, 2, 3}))
    assert troubles(replace(WELL, metadata=behind, pending=True)) == []
    assert troubles(replace(WELL, metadata=behind)) == [Trouble.TRANSACTION]


def test_a_volume_that_lvm_is_about_to_make_or_that_is_none_is_not_taken_for_lost() -> None:
    unknown = replace(METADATA, devices=frozenset({2, 3, 4}))
    assert troubles(replace(WELL, metadata=unknown, pending=True)) == []
    linear = tuple(replace(row, thin_id=0, segtype="linear") if row.name == "content" else row for row in VOLUMES)
    assert troubles(replace(WELL, volumes=linear, metadata=unknown)) == []


def test_a_held_snapshot_that_is_read_is_left_alone() -> None:
    (finding,) = findings(replace(RUNNING, pool=PoolStatus(PoolMode.WRITING, 5, held=9), metadata_free=False))
    assert not finding.curable


def test_cures_come_in_the_order_they_need() -> None:
    worst = replace(
        WELL,
        run_files=(Path("/run/lvm/x"),),
        state=replace(STATE, filesystem=Checked(4, "bad"), fault="damaged", makers=(".making-1",)),
        metadata=replace(METADATA, needs_check=True, transaction=8, held=True),
    )
    found = troubles(worst)
    assert found == sorted(found, key=list(Trouble).index)
    assert found.index(Trouble.STATE) < found.index(Trouble.NEEDS_CHECK) < found.index(Trouble.TRANSACTION)


@given(
    st.builds(
        Evidence,
        st.just(TARGET),
        st.lists(st.sampled_from(VOLUMES), unique=True).map(tuple),
        expected=st.integers(0, 9),
        pending=st.booleans(),
        dead=st.sampled_from([(), ("a",)]),
        suspended=st.sampled_from([(), ("a",)]),
        pool=st.none() | st.builds(PoolStatus, st.sampled_from(PoolMode), st.integers(0, 9), held=st.none() | st.integers(0, 9)),
        metadata=st.none()
        | st.builds(
            Metadata,
            st.builds(Checked, st.integers(0, 1), st.text(max_size=5)),
            st.frozensets(st.integers(1, 5)),
            st.none() | st.integers(0, 9),
            st.booleans(),
            st.booleans(),
        ),
        state=st.none()
        | st.builds(
            State,
            st.none() | st.builds(Checked, st.integers(0, 8), st.text(max_size=5)),
            mounted=st.booleans(),
            journal=st.booleans(),
            tree=st.booleans(),
            blank=st.booleans(),
            fault=st.sampled_from(["", "it has no kit.json", "damaged"]),
            used=st.booleans(),
        ),
    )
)
def test_whatever_is_seen_a_cure_is_there_for_what_is_called_curable(seen: Evidence) -> None:
    for finding in findings(seen):
        assert finding.what
        assert finding.cure
        assert not finding.curable or finding.trouble in _CURES
        # Nothing on the disk is judged while answers about it cannot be trusted.
        assert not (seen.dead or seen.suspended) or finding.trouble in (Trouble.DEAD_TREE, Trouble.SUSPENDED)


def test_the_superblock_is_read_as_the_kernel_writes_it() -> None:
    """The first words of a pool that aborted a transaction, on Linux 6.1: needs_check, transaction 2."""
    start = struct.pack("<IIQ16sIIIIQQ", 0x7F06E0EC, 1, 0, bytes(16), 27022010, 0, 2, 0, 2, 0)
    dump = '<superblock transaction="2">\n  <device dev_id="1" mapped_blocks="74">\n  </device>\n  <device dev_id="12">'
    assert read_metadata(FINE, dump, start) == Metadata(FINE, frozenset({1, 12}), 2, needs_check=True)
    assert read_metadata(FINE, "", bytes(64)).transaction is None
    assert read_metadata(FINE, "", b"").transaction is None
