"""What pocketcloud/storage/__init__.py promises, proven for each driver with real volumes and real QEMU.

A driver joins with a `Bench`: how to make an empty store, and what of it may be left behind. The rest is the same for all.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketcloud.errors import NoSpace, NotFound, PocketcloudError, Refused
from pocketcloud.storage import Filler, Storage
from pocketcloud.storage.qcow2 import Qcow2Directory
from pocketcloud.system import Completed, run

MIB = 1 << 20
TOP = Path(__file__).resolve().parents[2]


class Watched:
    """A Runner that runs, and remembers what; at its `dies_at`-th command (from 1) its process dies, before or after it."""

    def __init__(self, dies_at: int = 0, *, after: bool = False) -> None:
        self.commands: list[tuple[str, ...]] = []
        self._dies_at = dies_at
        self._after = after

    def __call__(
        self,
        argv: Sequence[str | Path],
        *,
        stdin: bytes | None = None,
        codes: Sequence[int] = (0,),
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        self.commands.append(tuple(str(word) for word in argv))
        fatal = len(self.commands) == self._dies_at
        if fatal and not self._after:
            os.kill(os.getpid(), signal.SIGKILL)
        completed = run(argv, stdin=stdin, codes=codes, timeout=timeout, env=env, cwd=cwd, on_line=on_line)
        if fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return completed


class Qcow2Bench:
    """Stores of the qcow2 driver, each in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def store(self, runner: Watched | None = None) -> Storage:
        return Qcow2Directory(self.folder, runner or run)

    def leftovers(self) -> list[str]:
        """What lies in the store that is no volume."""
        volumes = {volume.path.name for volume in self.store().volumes()}
        return sorted(path.name for path in self.folder.iterdir() if path.name not in volumes)


@pytest.fixture(params=[Qcow2Bench])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Qcow2Bench:
    made: Qcow2Bench = request.param(tmp_path / "volumes")
    made.folder.mkdir()
    return made


@pytest.fixture
def store(bench: Qcow2Bench) -> Storage:
    return bench.store()


def filled(byte: int, at: int = 0, length: int = 4096) -> Filler:
    """A filler that writes `length` times `byte` at an offset."""

    def fill(path: Path) -> None:
        with path.open("r+b") as image:
            image.seek(at)
            image.write(bytes([byte]) * length)

    return fill


def write(store: Storage, name: str, byte: int, at: int = 0) -> None:
    """Write 4 KiB as a guest would, through QEMU."""
    path, image_format = store.place(name)
    run(["qemu-io", "-f", image_format, "-c", f"write -q -P {byte} {at} 4096", path])


def content(store: Storage, name: str) -> bytes:
    """All that a guest would read."""
    path, image_format = store.place(name)
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        run(["qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", path, raw])
        return raw.read_bytes()


def names(store: Storage) -> list[str]:
    return [volume.name for volume in store.volumes()]


def volume_of(store: Storage, name: str) -> tuple[int, bool, str | None]:
    """Size, sealed, parent."""
    (found,) = (volume for volume in store.volumes() if volume.name == name)
    return found.size, found.sealed, found.parent


@contextlib.contextmanager
def held(store: Storage, name: str, *, readonly: bool = False) -> Iterator[None]:
    """A real QEMU that has the volume open."""
    path, image_format = store.place(name)
    argv = ["qemu-io", *(["-r"] if readonly else []), "-f", image_format, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"length\n")
        process.stdin.flush()
        process.stdout.readline()  # it answers only when the image is open
        yield
        process.stdin.close()
        process.wait()


# -- what each verb promises


def test_an_empty_volume_reads_as_zeros_and_is_live(store: Storage) -> None:
    made = store.create("lab.demo.data", MIB)
    assert (made.name, made.size, made.sealed, made.parent) == ("lab.demo.data", MIB, False, None)
    assert store.volumes() == (made,)
    assert store.place("lab.demo.data") == (made.path, made.format)
    assert content(store, "lab.demo.data") == bytes(MIB)
    assert made.used < MIB


def test_a_filled_volume_is_sealed_and_sparse(store: Storage) -> None:
    made = store.create("base", 64 * MIB, filled(7, at=MIB))
    assert (made.size, made.sealed, made.parent) == (64 * MIB, True, None)
    assert made.used < 4 * MIB
    read = content(store, "base")
    assert read[MIB : MIB + 4096] == b"\7" * 4096
    assert read.count(7) == 4096


def test_the_filler_gets_a_file_of_the_volumes_size_that_qemus_user_can_read_afterwards(store: Storage) -> None:
    sizes = []
    made = store.create("base", 3 * MIB, lambda path: sizes.append(path.stat().st_size))
    assert sizes == [3 * MIB]
    assert made.path.stat().st_mode & 0o777 == 0o444
    assert store.clone("base", "disk").path.stat().st_mode & 0o777 == 0o644


def test_a_filler_that_fails_leaves_nothing(bench: Qcow2Bench, store: Storage) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("the installer failed")

    with pytest.raises(RuntimeError, match="the installer failed"):
        store.create("base", MIB, fail)
    assert names(store) == []
    assert bench.leftovers() == []


def test_a_clone_shares_and_goes_its_own_way(store: Storage) -> None:
    store.create("base", MIB, filled(1))
    one, two = store.clone("base", "one"), store.clone("base", "two", 2 * MIB)
    assert (one.size, one.sealed, one.parent) == (MIB, False, "base")
    assert two.size == 2 * MIB
    write(store, "one", 9)
    assert content(store, "one")[:4096] == b"\x09" * 4096
    assert content(store, "two")[: MIB + 1] == content(store, "base") + b"\0"
    with pytest.raises(Refused, match="base"):
        store.clone("base", "small", MIB // 2)


def test_cloning_seals_a_live_source_until_its_clones_are_gone(store: Storage) -> None:
    store.create("first", MIB)
    write(store, "first", 1)
    store.clone("first", "second")
    store.clone("first", "third")
    assert volume_of(store, "first") == (MIB, True, None)
    store.remove("second")
    assert volume_of(store, "first")[1]
    store.remove("third")
    assert volume_of(store, "first") == (MIB, False, None)
    assert store.place("first")[0].stat().st_mode & 0o222


def test_a_filled_volume_stays_sealed_without_clones(store: Storage) -> None:
    store.create("base", MIB, filled(1))
    store.clone("base", "one")
    store.remove("one")
    assert volume_of(store, "base")[1]


def test_chains_hold(store: Storage) -> None:
    store.create("g0", MIB, filled(1))
    for generation in range(1, 6):
        store.clone(f"g{generation - 1}", f"g{generation}")
        write(store, f"g{generation}", generation + 1, at=generation * 4096)
    read = content(store, "g5")
    assert [read[4096 * step] for step in range(6)] == [1, 2, 3, 4, 5, 6]


def test_replace_gives_old_or_new(store: Storage) -> None:
    store.create("base", MIB, filled(1))
    store.create("newer", 2 * MIB, filled(2))
    assert store.replace("disk", "base").parent == "base"
    write(store, "disk", 9)
    replaced = store.replace("disk", "newer")
    assert (replaced.size, replaced.parent, replaced.sealed) == (2 * MIB, "newer", False)
    assert content(store, "disk")[:4096] == b"\2" * 4096
    store.clone("disk", "above")
    with pytest.raises(Refused, match=r"above|sealed"):
        store.replace("disk", "base")
    with pytest.raises(Refused, match="itself"):
        store.replace("above", "above")


def test_grow_keeps_the_content(store: Storage) -> None:
    store.create("base", MIB, filled(1))
    store.clone("base", "disk")
    assert store.grow("disk", 4 * MIB).size == 4 * MIB
    assert store.grow("disk", 4 * MIB).size == 4 * MIB
    assert content(store, "disk") == (b"\1" * 4096).ljust(4 * MIB, b"\0")
    with pytest.raises(Refused, match="shrink"):
        store.grow("disk", MIB)
    with pytest.raises(Refused, match="sealed"):
        store.grow("base", 4 * MIB)


def test_remove_frees_and_is_content_with_absence(bench: Qcow2Bench, store: Storage) -> None:
    store.create("base", MIB, filled(1))
    store.clone("base", "disk")
    with pytest.raises(Refused, match="disk"):
        store.remove("base")
    for name in ("disk", "base", "base", "never"):
        store.remove(name)
    assert store.volumes() == ()
    assert bench.leftovers() == []


def test_names_that_exist_or_do_not(store: Storage) -> None:
    store.create("base", MIB, filled(1))
    store.create("disk", MIB)
    verbs: list[Callable[[], object]] = [
        lambda: store.create("disk", MIB),
        lambda: store.create("disk", MIB, filled(2)),
        lambda: store.clone("base", "disk"),
    ]
    for verb in verbs:
        with pytest.raises(Refused, match="disk"):
            verb()
    absent: list[Callable[[], object]] = [
        lambda: store.clone("none", "new"),
        lambda: store.replace("disk", "none"),
        lambda: store.grow("none", MIB),
    ]
    for verb in absent:
        with pytest.raises(NotFound, match="none"):
            verb()
    assert names(store) == ["base", "disk"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../up", "a/b", "-rf", "a b", "Ä", "x" * 300, "a..b", ".hidden", "a\n", "json:{}"]
)
def test_what_is_no_name_reaches_nothing(bench: Qcow2Bench, store: Storage, name: str) -> None:
    store.create("base", MIB, filled(1))
    verbs: list[Callable[[], object]] = [
        lambda: store.create(name, MIB),
        lambda: store.clone("base", name),
        lambda: store.clone(name, "new"),
        lambda: store.replace(name, "base"),
        lambda: store.remove(name),
        lambda: store.place(name),
    ]
    for verb in verbs:
        with pytest.raises((PocketcloudError, ValueError)):
            verb()
    assert [path.name for path in bench.folder.parent.iterdir()] == [bench.folder.name]
    assert names(store) == ["base"]
    assert bench.leftovers() == []


def test_what_is_open_is_left_alone(store: Storage) -> None:
    store.create("base", MIB, filled(1))
    store.clone("base", "disk")
    write(store, "disk", 3)
    verbs: list[Callable[[], object]] = [
        lambda: store.clone("disk", "above"),
        lambda: store.replace("disk", "base"),
        lambda: store.grow("disk", 2 * MIB),
        lambda: store.remove("disk"),
    ]
    with held(store, "disk"):
        for verb in verbs:
            with pytest.raises(Refused, match=r"disk.*(open|use)"):
                verb()
        store.clone("base", "sibling")  # the base is open too, but only for reading
    assert volume_of(store, "disk") == (MIB, False, "base")
    assert names(store) == ["base", "disk", "sibling"]
    assert content(store, "disk")[:4096] == b"\3" * 4096


def test_what_is_open_for_reading_may_be_cloned_and_not_removed(store: Storage) -> None:
    store.create("base", MIB, filled(1))
    with held(store, "base", readonly=True):
        with pytest.raises(Refused, match=r"open|use"):
            store.remove("base")
        store.clone("base", "disk")
    assert names(store) == ["base", "disk"]


def test_a_clone_that_failed_leaves_its_source_live(bench: Qcow2Bench, store: Storage) -> None:
    store.create("disk", MIB)
    with pytest.raises(Refused):
        store.clone("disk", "above", MIB // 2)
    assert not volume_of(store, "disk")[1]

    def broken(argv: Sequence[str | Path], **_: object) -> Completed:
        raise NoSpace(f"{argv[0]} found no space")

    with pytest.raises(NoSpace):
        Qcow2Directory(bench.folder, broken).clone("disk", "above")
    assert not volume_of(store, "disk")[1]
    assert bench.leftovers() == []


def test_a_clone_costs_one_process_and_a_look_none(bench: Qcow2Bench) -> None:
    bench.store().create("base", MIB, filled(1))
    bench.store().create("live", MIB)
    for source in ("base", "live"):
        watched = Watched()
        bench.store(watched).clone(source, f"of-{source}")
        assert [command[0] for command in watched.commands] == ["qemu-img"]
    watched = Watched()
    looking = bench.store(watched)
    looking.volumes()
    looking.usage()
    looking.place("base")
    looking.explain("clone", "new", source="base")
    assert watched.commands == []


def test_many_at_once(bench: Qcow2Bench, store: Storage) -> None:
    store.create("base", MIB, filled(1))
    store.create("live", MIB)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: bench.store().clone("base" if n % 2 else "live", f"c{n}"), range(16)))
        outcomes = list(pool.map(lambda _: _attempt(lambda: bench.store().clone("base", "same")), range(8)))
    assert sum(outcome is None for outcome in outcomes) == 1
    assert all(outcome is None or isinstance(outcome, Refused) for outcome in outcomes)
    assert len(names(store)) == 19
    assert volume_of(store, "live")[1]
    assert bench.leftovers() == []


def _attempt(verb: Callable[[], object]) -> PocketcloudError | None:
    try:
        verb()
    except PocketcloudError as error:
        return error
    return None


def test_what_explain_says_can_be_done_by_hand(store: Storage) -> None:
    def by_hand(verb: str, name: str, *, source: str = "", size: int = 0) -> None:
        for line in store.explain(verb, name, source=source, size=size):
            run(["sh", "-ec", line])

    by_hand("create", "disk", size=MIB)
    by_hand("clone", "above", source="disk", size=2 * MIB)
    assert volume_of(store, "disk") == (MIB, True, None)
    assert volume_of(store, "above") == (2 * MIB, False, "disk")
    by_hand("grow", "above", size=4 * MIB)
    assert volume_of(store, "above")[0] == 4 * MIB
    by_hand("remove", "above")
    assert names(store) == ["disk"]


def test_usage_adds_up(store: Storage) -> None:
    before = store.usage()
    assert 0 <= before.free <= before.size
    assert 0 <= before.used <= before.size


# -- crashes

VICTIM = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from pocketcloud.storage.qcow2 import Qcow2Directory
from tests.contract.test_storage import Watched, filled
folder, verb, at, after = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5] == "after"
def fill(path):
    filled(5)(path)
    if at == 0:
        os.kill(os.getpid(), signal.SIGKILL)
store = Qcow2Directory(folder, Watched(at, after=after))
{"create": lambda: store.create("new", 1 << 20), "fill": lambda: store.create("new", 1 << 20, fill),
 "clone": lambda: store.clone("live", "new"), "replace": lambda: store.replace("disk", "live")}[verb]()
"""


@pytest.mark.parametrize(
    ("verb", "at", "moment"),
    [
        ("create", 1, "before"),
        ("create", 1, "after"),
        ("fill", 0, "before"),
        ("fill", 1, "before"),
        ("fill", 1, "after"),
        ("clone", 1, "before"),
        ("clone", 1, "after"),
        ("replace", 1, "after"),
    ],
)
def test_a_kill_in_the_middle_leaves_nothing_that_counts(bench: Qcow2Bench, verb: str, at: int, moment: str) -> None:
    store = bench.store()
    store.create("base", MIB, filled(1))
    store.clone("base", "disk")
    store.create("live", MIB)
    before = store.volumes()
    argv = [sys.executable, "-c", VICTIM, str(TOP), str(bench.folder), verb, str(at), moment]
    assert subprocess.run(argv, check=False).returncode == -signal.SIGKILL
    assert [(v.name, v.parent, v.size) for v in store.volumes()] == [(v.name, v.parent, v.size) for v in before]
    store.create("next", MIB)
    assert bench.leftovers() == []
    assert not volume_of(store, "live")[1], "sealed for a clone that never came to be"
    assert content(store, "disk")[:4096] == b"\1" * 4096


def test_what_another_process_is_making_is_not_swept(bench: Qcow2Bench) -> None:
    def meanwhile(path: Path) -> None:
        bench.store().create("other", MIB)
        filled(4)(path)

    bench.store().create("base", MIB, meanwhile)
    assert content(bench.store(), "base")[:4096] == b"\4" * 4096
    assert names(bench.store()) == ["base", "other"]


# -- random sequences against a model

Model = dict[str, tuple[bytes, str | None, bool]]
NAMES = ("a", "b", "c", "d")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("create"), st.sampled_from(NAMES), st.integers(1, 255)),
        st.tuples(st.just("fill"), st.sampled_from(NAMES), st.integers(1, 255)),
        st.tuples(st.sampled_from(["clone", "replace"]), st.sampled_from(NAMES), st.sampled_from(NAMES)),
        st.tuples(st.just("write"), st.sampled_from(NAMES), st.integers(1, 255)),
        st.tuples(st.just("remove"), st.sampled_from(NAMES), st.just(0)),
    ),
    min_size=4,
    max_size=14,
)
SMALL = 64 * 1024


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_any_sequence_does_what_the_model_does(tmp_path: Path, steps: list[tuple[str, str, int | str]]) -> None:
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    store, model = Qcow2Directory(folder), Model()
    for verb, name, what in steps:
        expected = _step(model, verb, name, what)
        happened = _attempt(lambda verb=verb, name=name, what=what: _do(store, verb, name, what))  # type: ignore[misc]  # bound now
        assert type(happened) is expected, (verb, name, what, happened)
        parents = {parent for _, parent, _ in model.values()}
        said = {volume.name: (volume.parent, volume.sealed) for volume in store.volumes()}
        assert said == {key: (parent, born or key in parents) for key, (_, parent, born) in model.items()}
    for name, (data, _, _) in model.items():
        assert content(store, name) == data
    shutil.rmtree(folder)


def _do(store: Storage, verb: str, name: str, what: int | str) -> None:
    match verb, what:
        case "create", int():
            store.create(name, SMALL)
            write(store, name, what)
        case "fill", int():
            store.create(name, SMALL, filled(what))
        case "clone", str():
            store.clone(what, name)
        case "replace", str():
            store.replace(name, what)
        case "write", int():
            if any(volume.name == name and not volume.sealed for volume in store.volumes()):
                write(store, name, what, at=8192)
        case "remove", _:
            store.remove(name)
        case _:
            raise AssertionError(f"the strategy does not make {verb} with {what!r}")


def _step(model: Model, verb: str, name: str, what: int | str) -> type:
    """Change the model as the store should, or say the error that it should raise (NoneType: none)."""
    depended = any(parent == name for _, parent, _ in model.values())
    kept = name in model and (depended or model[name][2])
    match verb, what:
        case (("create" | "fill"), int()) if name not in model:
            model[name] = (bytes([what]) * 4096 + bytes(SMALL - 4096), None, verb == "fill")
        case "clone", str() if name not in model:
            return _clone(model, name, what)
        case "replace", str() if name != what and not kept:
            return _clone(model, name, what)
        case "write", int():
            if name in model and not kept:
                data, parent, _ = model[name]
                model[name] = (data[:8192] + bytes([what]) * 4096 + data[8192 + 4096 :], parent, False)
        case "remove", _ if not depended:
            model.pop(name, None)
        case _:
            return Refused
    return type(None)


def _clone(model: Model, name: str, source: str) -> type:
    if source not in model:
        return NotFound
    model[name] = (model[source][0], source, False)
    return type(None)
