"""Quoting for answers: every value comes back as it was, or is refused; none becomes a line, an option or a key of its own.

5 000 values for each place, in ten parts; `make test` draws of them, `make test-slow` runs all.
"""

from __future__ import annotations

import ast
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, seed, settings
from hypothesis import strategies as st

from pocketcloud.quoting import FILTERS, Quoted, comment, ks, package, preseed, python, sh, sh_lines, unfit, yaml
from tests.answer_files import HOSTILE, read_kickstart, read_preseed, read_yaml

SEED = int(os.environ.get("POCKETCLOUD_SEED") or 0)
PARTS = pytest.mark.parametrize("part", range(10))
SAMPLED = pytest.mark.sampled(5)
# What means something to one of the readers, what ends lines for one of them, and a few that mean nothing.
CHARACTERS = "'\"\\$()`%#&*!|>{}[]:,;~=-+@.?<^ \tabnxuU09é😀\n\r\0\x0b\x0c\x1b\x1c\x85\u2028\u2029\ufeff\ufffe\x7f"
fit_values = st.text("".join(c for c in CHARACTERS if not unfit(c)), max_size=12)
any_values = st.text(CHARACTERS, max_size=12) | st.text(max_size=8) | fit_values


def of(part: int, count: int) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """The hypothesis settings of a part."""

    def decorate(test: Callable[[], None]) -> Callable[[], None]:
        return seed(SEED * 10 + part)(settings(max_examples=count, deadline=None, database=None)(test))

    return decorate


@PARTS
@SAMPLED
def test_a_value_is_one_value_or_refused(part: int) -> None:
    @of(part, 500)
    @given(any_values)
    @example("%end")
    @example("--")
    @example("")
    @example("@^minimal-environment")
    @example(HOSTILE)
    def holds(value: str) -> None:
        word_of_a_shell(value)
        text_of_several_lines(value)
        scalar(value)
        preseed_value(value)
        package_name(value)
        assert len(f"# {comment(value)}.".splitlines()) == 1

    holds()


def word_of_a_shell(value: str) -> None:
    for quote in (sh, ks):
        if unfit(value) or (quote is ks and value == "--"):
            with pytest.raises(ValueError, match="cannot stand"):
                quote(value)
            continue
        text = quote(value)
        assert shlex.split(text, comments=True) == [value]
        assert len(f"a{text}a".splitlines()) == 1
        assert not text.startswith(("%", "#"))


def text_of_several_lines(value: str) -> None:
    if unfit(value, lines=True):
        with pytest.raises(ValueError, match="cannot stand"):
            sh_lines(value)
        return
    words = sh_lines(value)
    assert [shlex.split(word, comments=True) for word in words] == [[line] for line in value.removesuffix("\n").split("\n")]
    assert all(len(f"{word} \\".splitlines()) == 1 and not word.startswith("%") for word in words)


def scalar(value: str) -> None:
    for text, read in ((yaml(value), json.loads), (python(value), ast.literal_eval)):
        assert read(text) == value
        assert len(f"a{text}a".splitlines()) == 1


def preseed_value(value: str) -> None:
    if unfit(value) or value != value.strip() or value.endswith("\\"):
        with pytest.raises(ValueError, match="cannot stand"):
            preseed(value)
        return
    line = f"d-i a/b string {preseed(value)}\nd-i c/d string x\n"
    assert read_preseed(line) == {"a/b": ("d-i", "string", value), "c/d": ("d-i", "string", "x")}


def package_name(value: str) -> None:
    try:
        text = package(value)
    except ValueError:
        return
    assert text == value
    assert shlex.split(text, comments=True) == [value]
    assert value[0] not in "-%#"


@PARTS
@SAMPLED
def test_documents_of_yaml_read_back(part: int) -> None:
    @of(part, 20)
    @given(st.lists(any_values, min_size=25, max_size=25))
    def reads_back(values: list[str]) -> None:
        text = "".join(f"- {yaml(value)}\n- key: {yaml(value)}\n" for value in values)
        for version in ((1, 1), (1, 2)):
            assert read_yaml(text, version) == [part for value in values for part in (value, {"key": value})]

    reads_back()


@PARTS
@SAMPLED
def test_options_of_kickstart_read_back(part: int) -> None:
    @of(part, 20)
    @given(st.lists(fit_values.filter(lambda value: value not in ("", "--")), min_size=25, max_size=25))
    def reads_back(values: list[str]) -> None:
        lines = [f"repo --name=r{n} --baseurl={ks(value)}\n" for n, value in enumerate(values)]
        handler = read_kickstart("".join(lines) + "rootpw --lock\n", "RHEL10")
        assert [repo.baseurl for repo in handler.repo.repoList] == values
        assert handler.rootpw.lock

    reads_back()


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_shells_agree(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    texts = [HOSTILE, "", "\n", "-n", "\t", *(c for c in CHARACTERS if not unfit(c, lines=True)), "$(x)", "`x`", "%end"]
    script = "".join(
        "printf '%s\\n' \\\n" + "".join(f"    {word} \\\n" for word in sh_lines(text)) + f"    > {tmp_path}/{number}\n"
        for number, text in enumerate(texts)
    )
    subprocess.run([shell, "-eu", "-c", script], check=True)
    for number, text in enumerate(texts):
        assert (tmp_path / str(number)).read_text(encoding="utf-8") == text.removesuffix("\n") + "\n"


def test_numbers_and_words_of_yaml() -> None:
    assert [yaml(value) for value in (1, -1, True, False, None, 1.5)] == ["1", "-1", "true", "false", "null", "1.5"]
    assert [python(value) for value in (1, True, None)] == ["1", "True", "None"]
    for quote in (yaml, python):
        with pytest.raises(ValueError, match="surrogates"):
            quote("\ud800")


def test_what_cannot_stand_is_named() -> None:
    said = {text: unfit(text) for text in ("a\nb", "a\tb", "\0", "\u2028", "fine", "a\r")}
    assert said == {
        "a\nb": "a line break",
        "a\tb": "a tab",
        "\0": "a NUL",
        "\u2028": "the character U+2028",
        "fine": "",
        "a\r": "a carriage return",
    }
    assert unfit("a\n\tb", lines=True) == ""


def test_filters_quote() -> None:
    for name, quote in FILTERS.items():
        made = quote("word")
        assert all(isinstance(part, Quoted) for part in (made if isinstance(made, list) else [made])), name
