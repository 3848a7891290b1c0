"""Documents that mean harm, and text at random: always one explained refusal, soon, and never a lab that cannot be written."""

from __future__ import annotations

import json
import os
from itertools import pairwise

import pytest
from hypothesis import example, given, seed, settings
from hypothesis import strategies as st

from pocketcloud.documents import MAX_BYTES, dump_json, parse_json, parse_lab
from pocketcloud.errors import BadDocument
from pocketcloud.model.lab import Lab, Machine

SEED = int(os.environ.get("POCKETCLOUD_SEED") or 0)

BOMBS = {
    "values": "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{b}: &{b} [{f'*{a},' * 9}]\n" for a, b in pairwise("abcdefghi")),
    "text": "lab: x\ntitle: &a " + "x" * 120_000 + "\nmachines:\n  a:\n    provision: [" + "*a," * 30_000 + "]\n",
    "keys": "? &a " + "x" * 900 + "\n: 1\nb: [" + "{*a : 1}," * 20_000 + "]\n",
    "itself": "&a [*a]",
    "itself in a mapping": "a: &a {b: *a}",
    "depth": "[" * 100_000,
    "depth of mappings": "{a: " * 60_000,
    "depth of lists": "- " * 100_000,
    "length": "#" * (MAX_BYTES + 1),
    "keys without end": "".join(f"k{i}:\n" for i in range(30_000)),
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused(bomb: str) -> None:
    with pytest.raises(BadDocument) as bad:
        parse_lab(BOMBS[bomb], "f")
    assert len(bad.value.faults) == (31 if bomb == "keys without end" else 1)


alphabet = st.sampled_from(
    [
        *"ab:-? [],{}#&*!|>'\"%@`\n\t 019._~=<",
        ": ",
        "\n  ",
        "- ",
        "lab: ",
        "machines:\n",
        "&a ",
        "*a",
        "!!int ",
        "0x",
        "é",
        "\x85",
    ]
)
yamlish = st.lists(alphabet, max_size=60).map("".join)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["web", "front", "512MiB", "5m", "tiny"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [*Machine.__dataclass_fields__, *Lab.__dataclass_fields__, "web", "front", "address", "run", "tcp", "console"]
            )
            | st.text(max_size=4),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


def answers(text: str) -> None:
    """Whatever the text: a lab, which can be written and read again, or an explained refusal."""
    refused: BadDocument | None = None
    try:
        found = parse_lab(text, "f")
    except BadDocument as bad:
        refused = bad
    else:
        assert parse_json(dump_json(found), Lab, "f") == found
    if refused:
        assert refused.faults
        assert all(fault.message and "\n" not in fault.path for fault in refused.faults)


@seed(SEED)
@settings(max_examples=2000, deadline=None)
@given(yamlish)
@example("%YAML 1.1\n---\non")
@example("a: !!float 0x1\n")
@example("a: !!int ''")
@example("a: 0x_")
@example("&a lab: &a ")
def test_text_like_yaml_has_an_answer(text: str) -> None:
    answers(text)


@seed(SEED)
@settings(max_examples=500, deadline=None)
@given(st.fixed_dictionaries({"lab": values, "machines": values}, optional={"networks": values, "title": values}))
def test_values_of_all_kinds_have_an_answer(raw: object) -> None:
    answers(json.dumps(raw, allow_nan=True).replace("NaN", ".nan").replace("Infinity", ".inf"))


@pytest.mark.slow
@seed(SEED)
@settings(max_examples=60_000, deadline=None)
@given(yamlish | values.map(json.dumps))
def test_text_like_yaml_has_an_answer_whole(text: str) -> None:
    answers(text)
