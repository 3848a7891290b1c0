"""Random sequences of the store's verbs against a model in memory, for each driver."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketcloud.errors import NotFound, Refused
from pocketcloud.storage import Storage
from tests.contract.stores import IN_RIG, UNIT, bench_in, content, filled, write
from tests.contract.test_storage import attempt

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
SMALL = UNIT


@settings(
    max_examples=1 if IN_RIG else 12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(steps=STEPS)
def test_any_sequence_does_what_the_model_does(tmp_path: Path, steps: list[tuple[str, str, int | str]]) -> None:
    bench = bench_in(Path(tempfile.mkdtemp(dir=tmp_path)))
    store, model = bench.store(), Model()
    for verb, name, what in steps:
        expected = _step(model, verb, name, what)
        happened = attempt(lambda verb=verb, name=name, what=what: _do(store, verb, name, what))  # type: ignore[misc]  # bound now
        assert type(happened) is expected, (verb, name, what, happened)
        parents = {parent for _, parent, _ in model.values()}
        said = {volume.name: (volume.parent, volume.sealed) for volume in store.volumes()}
        assert said == {key: (parent, born or key in parents) for key, (_, parent, born) in model.items()}
    for name, (data, _, _) in model.items():
        assert content(store, name) == data
    bench.close()


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
