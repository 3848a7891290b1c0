"""yaml_text.py: whatever is written is read back as it was, and looks as a person would write it."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from pocketcloud.yaml_text import yaml_text

TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.text(
    st.sampled_from("ab \n\t:#-|>'\"\\\r\x85\u2028é\U0001f600\x00\x7f")
)
SCALARS = TEXTS | st.integers(-(2**62), 2**62) | st.booleans() | st.none()
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.dictionaries(TEXTS, inner, max_size=4) | st.lists(inner.filter(lambda x: not isinstance(x, list)), max_size=4)
    ),
    max_leaves=12,
)


def read(text: str, version: tuple[int, int]) -> Any:
    yaml = YAML(typ="safe", pure=True)
    yaml.version = version
    return yaml.load(StringIO(text))


@given(st.dictionaries(TEXTS, VALUES, min_size=1, max_size=4))
def test_what_is_written_is_read_back(value: dict[str, Any]) -> None:
    text = yaml_text(value)
    assert read(text, (1, 2)) == value
    assert all(c.isprintable() or c in "\n\t" for c in text)


@pytest.mark.parametrize(
    "word",
    [
        "on",
        "No",
        "y",
        "N",
        "null",
        "~",
        "True",
        "22:22",
        "1_000",
        "0x1f",
        "1e3",
        ".inf",
        "2024-01-01",
        "=",
        "<<",
        "",
        " a",
        "a: b",
    ],
)
def test_no_version_of_yaml_takes_a_text_for_anything_else(word: str) -> None:
    for version in ((1, 1), (1, 2)):
        assert read(yaml_text({word: word}), version) == {word: word}


def test_it_looks_as_a_person_would_write_it() -> None:
    value = {
        "lab": "demo",
        "machines": {
            "web": {"memory": "512MiB", "provision": [{"write": "/etc/x", "content": " a: b\n\n\tc\n"}, {"run": "true\nfalse"}]}
        },
        "networks": {"front": {}},
        "list": [1, "two words", True],
        "kept": "a\n\n\n",
    }
    assert yaml_text(value) == (
        "lab: demo\n"
        "machines:\n"
        "  web:\n"
        '    memory: "512MiB"\n'
        "    provision:\n"
        "    - write: /etc/x\n"
        "      content: |2\n"
        "         a: b\n"
        "\n"
        "        \tc\n"
        "    - run: |2-\n"
        "        true\n"
        "        false\n"
        "networks:\n"
        "  front: {}\n"
        "list:\n"
        "- 1\n"
        '- "two words"\n'
        "- true\n"
        "kept: |2+\n"
        "  a\n"
        "\n"
        "\n"
    )


def test_what_is_no_plain_value_is_refused() -> None:
    for wrong in (object(), b"x", [[1]]):
        with pytest.raises(TypeError):
            yaml_text({"a": wrong})
