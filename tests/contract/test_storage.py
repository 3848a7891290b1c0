"""What pocketcloud/storage/__init__.py promises, proven for each driver with real volumes and real QEMU.

A driver joins with a bench (stores.py): how to make an empty store, and what of it may be left behind. The rest is the same
for all. On the host the qcow2 driver is tried, in User-Mode Linux (tests/rig) the thin one.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from pocketcloud.errors import NoSpace, NotFound, PocketcloudError, Refused
from pocketcloud.storage import Clone, Image, Storage
from pocketcloud.storage.lvm import environment
from pocketcloud.system import CommandFailed, Completed, run
from tests.contract.stores import IN_RIG, UNIT, Bench, Watched, bench_in, content, filled, held, names, volume_of, write


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = bench_in(tmp_path)
    yield made
    made.close()


@pytest.fixture
def store(bench: Bench) -> Storage:
    return bench.store()


# -- what each verb promises


def test_an_empty_volume_reads_as_zeros_and_is_live(store: Storage) -> None:
    made = store.create("lab.demo.data", UNIT)
    assert (made.name, made.size, made.sealed, made.parent) == ("lab.demo.data", UNIT, False, None)
    assert store.volumes() == (made,)
    assert store.place("lab.demo.data") == (made.path, made.format)
    assert content(store, "lab.demo.data") == bytes(UNIT)
    assert made.used is None or made.used < UNIT


def test_a_filled_volume_is_sealed_and_sparse(store: Storage) -> None:
    before = store.usage().used
    made = store.create("base", 16 * UNIT, filled(7, at=UNIT))
    assert (made.size, made.sealed, made.parent) == (16 * UNIT, True, None)
    assert made.used is None or made.used < UNIT
    assert store.usage().used - before < UNIT
    read = content(store, "base")
    assert read[UNIT : UNIT + 4096] == b"\7" * 4096
    assert read.count(7) == 4096


def test_the_filler_gets_a_place_of_the_volumes_size(store: Storage) -> None:
    sizes = []

    def measure(path: Path) -> None:
        with path.open("rb") as image:
            sizes.append(image.seek(0, os.SEEK_END))

    store.create("base", 3 * UNIT, measure)
    assert sizes == [3 * UNIT]


def test_a_filler_that_fails_leaves_nothing(bench: Bench, store: Storage) -> None:
    def fail(path: Path) -> None:
        filled(6)(path)
        raise RuntimeError("the installer failed")

    with pytest.raises(RuntimeError, match="the installer failed"):
        store.create("base", UNIT, fail)
    assert names(store) == []
    assert bench.leftovers() == []


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_an_image_becomes_a_volume_in_one_pass(store: Storage, tmp_path: Path, form: str) -> None:
    raw, image, told = tmp_path / "raw", tmp_path / "image", list[float]()
    raw.write_bytes(bytes(UNIT) + b"\7" * 4096)
    run(["qemu-img", "convert", "-f", "raw", "-O", form, raw, image])
    made = store.create("base", 16 * UNIT, Image(image, form, told.append))
    assert (made.size, made.sealed, made.parent) == (16 * UNIT, True, None)
    assert made.used is None or made.used < UNIT
    read = content(store, "base")
    assert read[: UNIT + 4096] == raw.read_bytes()
    assert read.count(7) == 4096
    assert told == sorted(told)
    assert told[-1] == 1.0
    with pytest.raises(Refused, match="sealed"):
        store.grow("base", 17 * UNIT)


def test_an_image_that_cannot_be_read_leaves_nothing(bench: Bench, store: Storage, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"no image at all")
    with pytest.raises(CommandFailed):
        store.create("base", UNIT, Image(image, "qcow2"))
    with pytest.raises(CommandFailed):  # it does not fit
        store.create("base", UNIT, Image(_zeros(image, 2 * UNIT), "raw"))
    assert names(store) == []
    assert bench.leftovers() == []


def _zeros(path: Path, size: int) -> Path:
    path.write_bytes(bytes(size))
    return path


def test_a_clone_shares_and_goes_its_own_way(store: Storage) -> None:
    store.create("base", UNIT, filled(1))
    one, two = store.clone("base", "one"), store.clone("base", "two", 2 * UNIT)
    assert (one.size, one.sealed, one.parent) == (UNIT, False, "base")
    assert two.size == 2 * UNIT
    write(store, "one", 9)
    assert content(store, "one")[:4096] == b"\x09" * 4096
    assert content(store, "two")[: UNIT + 1] == content(store, "base") + b"\0"
    with pytest.raises(Refused, match="two"):
        store.clone("two", "small", UNIT)


def test_cloning_seals_a_live_source_until_its_clones_are_gone(store: Storage) -> None:
    store.create("first", UNIT)
    write(store, "first", 1)
    store.clone("first", "second")
    store.clone("first", "third")
    assert volume_of(store, "first") == (UNIT, True, None)
    store.remove("second")
    assert volume_of(store, "first")[1]
    store.remove("third")
    assert volume_of(store, "first") == (UNIT, False, None)
    write(store, "first", 2)


def test_a_filled_volume_stays_sealed_without_clones(store: Storage) -> None:
    store.create("base", UNIT, filled(1))
    store.clone("base", "one")
    store.remove("one")
    assert volume_of(store, "base")[1]


def test_a_sealed_clone_stays_sealed_and_shares(store: Storage) -> None:
    store.create("base", UNIT, filled(1))
    store.clone("base", "layer")
    write(store, "layer", 2)
    assert store.seal("layer").sealed
    assert store.seal("layer").sealed, "sealed already is success"
    store.clone("layer", "disk")
    write(store, "disk", 3)
    store.remove("disk")
    assert volume_of(store, "layer") == (UNIT, True, "base")
    assert content(store, "layer")[:4096] == b"\2" * 4096
    with pytest.raises(Refused, match="sealed"):
        store.grow("layer", 2 * UNIT)
    store.remove("layer")
    assert names(store) == ["base"]


def test_chains_hold(store: Storage) -> None:
    store.create("g0", UNIT, filled(1))
    for generation in range(1, 6):
        store.clone(f"g{generation - 1}", f"g{generation}")
        write(store, f"g{generation}", generation + 1, at=generation * 4096)
    read = content(store, "g5")
    assert [read[4096 * step] for step in range(6)] == [1, 2, 3, 4, 5, 6]


def test_replace_gives_old_or_new(store: Storage) -> None:
    store.create("base", UNIT, filled(1))
    store.create("newer", 2 * UNIT, filled(2))
    assert store.replace("disk", "base").parent == "base"
    write(store, "disk", 9)
    replaced = store.replace("disk", "newer")
    assert (replaced.size, replaced.parent, replaced.sealed) == (2 * UNIT, "newer", False)
    assert content(store, "disk")[:4096] == b"\2" * 4096
    store.clone("disk", "above")
    with pytest.raises(Refused, match=r"above|sealed"):
        store.replace("disk", "base")
    with pytest.raises(Refused, match="itself"):
        store.replace("above", "above")


def test_grow_keeps_the_content(store: Storage) -> None:
    store.create("base", UNIT, filled(1))
    store.clone("base", "disk")
    assert store.grow("disk", 4 * UNIT).size == 4 * UNIT
    assert store.grow("disk", 4 * UNIT).size == 4 * UNIT
    assert content(store, "disk") == (b"\1" * 4096).ljust(4 * UNIT, b"\0")
    with pytest.raises(Refused, match="shrink"):
        store.grow("disk", UNIT)
    with pytest.raises(Refused, match="sealed"):
        store.grow("base", 4 * UNIT)


def test_remove_frees_and_is_content_with_absence(bench: Bench, store: Storage) -> None:
    store.create("base", UNIT, filled(1))
    store.clone("base", "disk")
    with pytest.raises(Refused, match="disk"):
        store.remove("base")
    for name in ("disk", "base", "base", "never"):
        store.remove(name)
    assert store.volumes() == ()
    assert bench.leftovers() == []


def test_names_that_exist_or_do_not(store: Storage) -> None:
    store.create("base", UNIT, filled(1))
    store.create("disk", UNIT)
    verbs: list[Callable[[], object]] = [
        lambda: store.create("disk", UNIT),
        lambda: store.create("disk", UNIT, filled(2)),
        lambda: store.clone("base", "disk"),
    ]
    for verb in verbs:
        with pytest.raises(Refused, match="disk"):
            verb()
    absent: list[Callable[[], object]] = [
        lambda: store.clone("none", "new"),
        lambda: store.replace("disk", "none"),
        lambda: store.grow("none", UNIT),
    ]
    for verb in absent:
        with pytest.raises(NotFound, match="none"):
            verb()
    assert names(store) == ["base", "disk"]


NO_NAMES = ("", ".", "..", "../up", "a/b", "-rf", "a b", "Ä", "x" * 300, "a..b", ".hidden", "a\n", "json:{}")


def test_what_is_no_name_reaches_nothing(bench: Bench, store: Storage) -> None:
    store.create("base", UNIT, filled(1))
    for name in NO_NAMES:
        verbs: list[Callable[[], object]] = [
            partial(store.create, name, UNIT),
            partial(store.clone, "base", name),
            partial(store.clone, name, "new"),
            partial(store.replace, name, "base"),
            partial(store.remove, name),
            partial(store.place, name),
        ]
        for verb in verbs:
            with pytest.raises((PocketcloudError, ValueError)):
                verb()
    assert names(store) == ["base"]
    assert bench.leftovers() == []


def test_what_is_open_is_left_alone(store: Storage) -> None:
    store.create("base", UNIT, filled(1))
    store.clone("base", "disk")
    write(store, "disk", 3)
    verbs: list[Callable[[], object]] = [
        lambda: store.clone("disk", "above"),
        lambda: store.replace("disk", "base"),
        lambda: store.grow("disk", 2 * UNIT),
        lambda: store.remove("disk"),
        lambda: store.seal("disk"),
    ]
    with held(store, "disk"):
        for verb in verbs:
            with pytest.raises(Refused, match=r"disk.*(open|use)"):
                verb()
        store.clone("base", "sibling")  # the base is open too, but only for reading
    assert volume_of(store, "disk") == (UNIT, False, "base")
    assert names(store) == ["base", "disk", "sibling"]
    assert content(store, "disk")[:4096] == b"\3" * 4096


@pytest.mark.skipif(not IN_RIG, reason="only udev, which does not look into files, opens a volume for a moment")
def test_what_is_open_for_a_moment_is_cloned_when_it_is_closed(store: Storage) -> None:
    store.create("disk", UNIT)
    write(store, "disk", 3)
    with ThreadPoolExecutor(1) as pool:
        with held(store, "disk"):
            cloning = pool.submit(store.clone, "disk", "above")
            wait([cloning], timeout=0.3)
        cloning.result()
    assert volume_of(store, "above") == (UNIT, False, "disk")
    assert content(store, "above")[:4096] == b"\3" * 4096


def test_what_is_open_for_reading_may_be_cloned_and_not_removed(store: Storage) -> None:
    store.create("base", UNIT, filled(1))
    with held(store, "base", readonly=True):
        with pytest.raises(Refused, match=r"open|use"):
            store.remove("base")
        store.clone("base", "disk")
    assert names(store) == ["base", "disk"]


def test_a_clone_that_failed_leaves_its_source_live(bench: Bench, store: Storage) -> None:
    store.create("disk", 2 * UNIT)
    with pytest.raises(Refused):
        store.clone("disk", "above", UNIT)
    assert not volume_of(store, "disk")[1]

    def broken(argv: Sequence[str | Path], **_: object) -> Completed:
        raise NoSpace(f"{argv[0]} found no space")

    with pytest.raises(NoSpace):
        bench.store(broken).clone("disk", "above")
    assert not volume_of(store, "disk")[1]
    assert bench.leftovers() == []


def test_many_at_once(bench: Bench, store: Storage) -> None:
    store.create("base", UNIT, filled(1))
    store.create("live", UNIT)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: bench.store().clone("base" if n % 2 else "live", f"c{n}"), range(8)))
        outcomes = list(pool.map(lambda _: attempt(lambda: bench.store().clone("base", "same")), range(4)))
    assert sum(outcome is None for outcome in outcomes) == 1
    assert all(outcome is None or isinstance(outcome, Refused) for outcome in outcomes)
    assert len(names(store)) == 11
    assert volume_of(store, "live")[1]
    assert bench.leftovers() == []


def attempt(verb: Callable[[], object]) -> PocketcloudError | None:
    """The error that `verb` raises, None if it does not."""
    try:
        verb()
    except PocketcloudError as error:
        return error
    return None


def test_what_explain_says_can_be_done_by_hand(store: Storage) -> None:
    def by_hand(verb: str, name: str, *, source: str = "", size: int = 0) -> None:
        for line in store.explain(verb, name, source=source, size=size):
            run(["sh", "-ec", line], env=environment())

    by_hand("create", "disk", size=UNIT)
    by_hand("clone", "above", source="disk", size=2 * UNIT)
    assert volume_of(store, "disk") == (UNIT, True, None)
    assert volume_of(store, "above") == (2 * UNIT, False, "disk")
    by_hand("grow", "above", size=4 * UNIT)
    assert volume_of(store, "above")[0] == 4 * UNIT
    by_hand("activate", "above")
    write(store, "above", 1)
    by_hand("remove", "above")
    assert names(store) == ["disk"]


def test_many_are_cloned_and_removed_at_once(bench: Bench, store: Storage) -> None:
    store.create("base", UNIT, filled(1))
    store.create("live", UNIT)
    store.clone_all([Clone("base", "one"), Clone("live", "two", 2 * UNIT), Clone("base", "three", marks={"lab": "demo"})])
    assert volume_of(store, "one") == (UNIT, False, "base")
    assert volume_of(store, "two") == (2 * UNIT, False, "live")
    assert volume_of(store, "live")[1]
    marks = {volume.name: volume.marks for volume in store.volumes()}
    assert marks["three"] in ({"lab": "demo"}, {})  # a folder of images has no place for them
    with pytest.raises(Refused, match="two"):
        store.remove("one", "live")
    assert names(store) == ["base", "live", "one", "three", "two"]
    store.remove("one", "live", "two", "never", "three")
    assert names(store) == ["base"]
    assert bench.leftovers() == []


def test_a_batch_that_cannot_be_makes_nothing(store: Storage) -> None:
    store.create("base", 2 * UNIT, filled(1))
    with pytest.raises(NotFound, match="none"):
        store.clone_all([Clone("none", "one")])
    with pytest.raises(Refused, match="base"):
        store.clone_all([Clone("base", "one", UNIT)])
    store.clone_all([])
    assert names(store) == ["base"]


def test_what_is_prepared_is_nobodys_until_it_is_wanted(store: Storage) -> None:
    store.create("base", UNIT, filled(1))
    store.create("live", UNIT)
    write(store, "live", 3)
    store.prepare([Clone("base", "one"), Clone("live", "two")])
    store.prepare([Clone("base", "one"), Clone("live", "two")])
    spares = [volume.name for volume in store.volumes() if volume.spare]
    assert spares in ([], ["one", "two"])  # a store whose clones cost nothing makes none
    write(store, "live", 4)  # a spare seals nobody
    store.remove("live")  # and keeps nobody
    assert [volume.name for volume in store.volumes() if not volume.spare] == ["base"]
    store.clone_all([Clone("base", "one"), Clone("base", "three")])
    assert {v.name: (v.spare, v.parent) for v in store.volumes()} == {
        "base": (False, None), "one": (False, "base"), "three": (False, "base"),
    }  # fmt: skip
    assert content(store, "one")[:4096] == b"\1" * 4096
    with pytest.raises(Refused, match="one"):
        store.clone("base", "one")
    with pytest.raises(Refused, match="one"):
        store.prepare([Clone("base", "one")])


def test_what_is_to_be_opened_has_to_be_there(store: Storage) -> None:
    store.create("base", UNIT, filled(1))
    store.clone("base", "disk")
    store.activate("disk", "base")
    store.activate("disk")
    assert store.place("disk")[0].exists()
    with pytest.raises(NotFound, match="none"):
        store.activate("none")


def test_usage_adds_up(store: Storage) -> None:
    before = store.usage()
    assert 0 <= before.free <= before.size
    assert 0 <= before.used <= before.size


# -- crashes


@dataclass(frozen=True, slots=True)
class Case:
    """A verb to be killed, and the volumes (name, parent, size) that are there when it is done beside those of before. With
    `in_steps` what is new may be there while what goes is still."""

    verb: Callable[[Storage], object]
    made: frozenset[tuple[str, str | None, int]] = frozenset()
    gone: frozenset[str] = frozenset()
    always_dies: bool = False
    in_steps: bool = False


# In User-Mode Linux so many verbs are killed in every run, each at one point.
KILLED_IN_RIG = 1
SAMPLE = random.Random(os.environ.get("POCKETCLOUD_SEED"))  # noqa: S311 - keeps no secret


def _half(path: Path) -> None:
    filled(5)(path)
    os.kill(os.getpid(), signal.SIGKILL)


def _reset(store: Storage) -> None:
    """What a reset of a machine does to its disks: new before old, then a spare for the next."""
    if ("spare", "base", UNIT) not in _seen(store):
        store.clone_all([Clone("base", "spare")], reserve=True)
    store.activate("spare")
    store.remove("disk")
    store.prepare([Clone("base", "later")])


CASES = {
    "create": Case(lambda store: store.create("new", UNIT), frozenset({("new", None, UNIT)})),
    "fill": Case(lambda store: store.create("new", UNIT, filled(5)), frozenset({("new", None, UNIT)})),
    "half filled": Case(lambda store: store.create("new", UNIT, _half), always_dies=True),
    "clone": Case(lambda store: store.clone("live", "new"), frozenset({("new", "live", UNIT)})),
    "larger": Case(lambda store: store.clone("base", "new", 2 * UNIT), frozenset({("new", "base", 2 * UNIT)})),
    "replace": Case(lambda store: store.replace("disk", "live"), frozenset({("disk", "live", UNIT)}), frozenset({"disk"})),
    "seal": Case(lambda store: store.seal("disk")),
    "remove": Case(lambda store: store.remove("disk"), gone=frozenset({"disk"})),
    "reset": Case(lambda store: _reset(store), frozenset({("spare", "base", UNIT)}), frozenset({"disk"}), in_steps=True),
    "publish": Case(lambda store: store.clone_all([Clone("base", "spare")]), frozenset({("spare", "base", UNIT)})),
}


def _dies(bench: Bench, verb: Callable[[Storage], object], watched: Watched) -> int:
    """How a process of its own ends that does `verb`: 0, -9 if it is killed, 3 if it ends with an error."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            verb(bench.store(watched))
            os._exit(0)
        os._exit(3)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _commands(bench: Bench, name: str) -> int:
    """How many commands the verb takes when nobody kills it."""
    store, watched = bench.store(), Watched()
    _prepared(store)
    CASES[name].verb(bench.store(watched))
    store.remove(*names(store))
    return len(watched.commands)


def _prepared(store: Storage) -> None:
    if "base" not in names(store):
        store.create("base", UNIT, filled(1))
        store.create("live", UNIT)
    store.clone("base", "disk")
    store.prepare([Clone("base", "spare")])


@pytest.mark.parametrize("name", SAMPLE.sample(sorted(CASES), KILLED_IN_RIG) if IN_RIG else CASES)
def test_a_kill_before_a_command_leaves_it_done_or_not_begun(bench: Bench, name: str) -> None:
    """Every point of every verb on the host; in the rig, where a command takes a quarter of a second, one of some by the seed."""
    points: Sequence[int] = [1000] if CASES[name].always_dies else range(1, _commands(bench, name) + 1)
    _killed_at(bench, name, [SAMPLE.choice(points)] if IN_RIG else points)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if not CASES[name].always_dies])
def test_a_kill_before_any_command_leaves_it_done_or_not_begun(bench: Bench, name: str) -> None:
    points = range(1, _commands(bench, name) + 1)
    _killed_at(bench, name, points)
    print(f"{len(points)} kills")


@pytest.mark.slow
@pytest.mark.parametrize("both", [False, True], ids=["the command", "both"])
@pytest.mark.parametrize("name", [name for name in CASES if not CASES[name].always_dies])
def test_a_kill_in_the_middle_of_any_command(bench: Bench, name: str, *, both: bool) -> None:
    """Of the command alone, or of both; after a delay by the seed, that of a command's length here."""
    chooses = random.Random(f"{os.environ.get('POCKETCLOUD_SEED')}.{name}.{both}")  # noqa: S311 - keeps no secret
    points = range(1, _commands(bench, name) + 1)
    _killed_at(bench, name, points, lambda at: Watched(at, after=both, child=chooses.uniform(0.02, 0.4)))
    print(f"{len(points)} kills")


def _killed_at(bench: Bench, name: str, points: Iterable[int], watched: Callable[[int], Watched] = Watched) -> None:
    case, store = CASES[name], bench.store()
    for at in points:
        _prepared(store)
        before = _seen(store)
        ended = _dies(bench, case.verb, watched(at))
        assert ended == -signal.SIGKILL or watched is not Watched, f"{name} has no command {at}"
        done = frozenset(v for v in before if v[0] not in case.gone) | case.made
        between = (before | case.made,) if case.in_steps else ()
        assert _seen(store) in (before, done, *between), f"killed before command {at}"
        if at % 2 and watched is Watched:
            store.remove()
            assert bench.leftovers() == [], f"killed before command {at}"
        store.create("next", UNIT)  # whatever comes next puts right what was left
        if _seen(store) - {("next", None, UNIT)} != done and not case.always_dies:
            case.verb(store)  # the same again
            assert _seen(store) - {("next", None, UNIT)} == done
        assert bench.leftovers() == [], f"killed before command {at}"
        live = next(volume for volume in store.volumes() if volume.name == "live")
        assert live.sealed == any(volume.parent == "live" and not volume.spare for volume in store.volumes())
        if not live.sealed:
            write(store, "live", 7)
        assert content(store, "base") == (b"\1" * 4096).ljust(UNIT, b"\0")
        if "disk" in names(store) and volume_of(store, "disk")[2] == "base":
            assert content(store, "disk")[:4096] == b"\1" * 4096
        store.remove(*(set(names(store)) - {"base", "live"}))
        bench.check()


def _seen(store: Storage) -> frozenset[tuple[str, str | None, int]]:
    return frozenset((volume.name, volume.parent, volume.size) for volume in store.volumes() if not volume.spare)


def test_what_another_process_is_making_is_not_swept(bench: Bench) -> None:
    def meanwhile(path: Path) -> None:
        bench.store().create("other", UNIT)
        filled(4)(path)

    bench.store().create("base", UNIT, meanwhile)
    assert content(bench.store(), "base")[:4096] == b"\4" * 4096
    assert names(bench.store()) == ["base", "other"]
