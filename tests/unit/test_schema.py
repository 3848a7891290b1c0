"""The JSON Schema of lab files, for editors: it is the one we ship, and it says what the parser says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pocketcloud.documents import lab_schema, load_lab, parse_lab
from pocketcloud.errors import BadDocument
from pocketcloud.resources import shipped

GOOD = """\
lab: demo
machines:
  web:
    base: debian-12
    networks: [front]
networks:
  front: {kind: nat}
"""
CONSOLE = "lab: demo\nmachines:\n  web:\n    base: tiny\n    ready: {console: x}\n"


@pytest.mark.parametrize("path", sorted(shipped("labs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_labs_load_and_have_the_comment_for_editors(path: Path) -> None:
    assert load_lab(path).lab == path.stem
    assert path.read_text().startswith("# yaml-language-server: $schema=./lab.schema.json\n")
    check_by_schema(YAML(typ="safe", pure=True).load(path), lab_schema(), lab_schema())


def test_the_shipped_schema_is_the_one_the_code_has() -> None:
    shipped_schema = json.loads(shipped("labs", "lab.schema.json").read_text())
    assert shipped_schema == lab_schema(), "pocketcloud lab schema > labs/lab.schema.json"


def test_the_schema_says_what_the_parser_says() -> None:
    schema = lab_schema()
    yaml = YAML(typ="safe", pure=True)
    for text in (
        GOOD,
        GOOD.replace("[front]", "{front: {address: 10}}"),
        GOOD.replace("{kind: nat}", ""),
        CONSOLE + "    memory: 64MiB\n",
    ):
        parse_lab(text, "f")
        check_by_schema(yaml.load(text), schema, schema)
    for text in (
        GOOD + "colour: red\n",
        GOOD.replace("lab: demo\n", ""),
        GOOD.replace("web:", "Web:"),
        GOOD.replace("nat", "bright"),
        GOOD.replace("[front]", "5"),
        GOOD.replace("[front]", "[Front]"),
        CONSOLE + "    memory: lots\n",
        CONSOLE + "    vcpus: two\n",
    ):
        with pytest.raises(BadDocument):
            parse_lab(text, "f")
        with pytest.raises(AssertionError):
            check_by_schema(yaml.load(text), schema, schema)


KINDS: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}
JUDGED = {
    "$ref",
    "anyOf",
    "enum",
    "type",
    "pattern",
    "properties",
    "required",
    "additionalProperties",
    "patternProperties",
    "items",
}
KNOWN = JUDGED | {"$defs", "$schema", "uniqueItems", "title", "description", "default", "examples"}


def check_by_schema(value: object, schema: dict[str, object], root: dict[str, object]) -> None:
    """Judge a value by the part of JSON Schema that ours uses; fails on a word that it does not know."""
    assert set(schema) <= KNOWN, f"the schema uses {set(schema) - KNOWN}"
    match schema:
        case {"$ref": str(name)}:
            definitions = root["$defs"]
            assert isinstance(definitions, dict)
            return check_by_schema(value, definitions[name.rpartition("/")[2]], root)
        case {"anyOf": list(choices)}:
            assert any(_fits(value, choice, root) for choice in choices), value
            return None
        case {"enum": list(allowed)}:
            assert value in allowed
        case _:
            pass
    kinds = schema.get("type", [])
    wanted = [kinds] if isinstance(kinds, str) else kinds
    assert isinstance(wanted, list)
    assert not wanted or any(_is(value, kind) for kind in wanted), f"{value!r} is no {wanted}"
    if isinstance(value, str):
        assert re.search(str(schema.get("pattern", "")), value), f"{value!r} does not match {schema.get('pattern')}"
    elif isinstance(value, dict):
        _check_object(value, schema, root)
    elif isinstance(value, list) and isinstance(items := schema.get("items"), dict):
        for item in value:
            check_by_schema(item, items, root)
    return None


def _is(value: object, kind: object) -> bool:
    return isinstance(value, KINDS[str(kind)]) and (kind == "boolean" or not isinstance(value, bool))


def _fits(value: object, schema: dict[str, object], root: dict[str, object]) -> bool:
    try:
        check_by_schema(value, schema, root)
    except AssertionError:
        return False
    return True


def _check_object(value: dict[str, object], schema: dict[str, object], root: dict[str, object]) -> None:
    properties, required, other = (
        schema.get("properties", {}),
        schema.get("required", []),
        schema.get("additionalProperties", True),
    )
    assert isinstance(properties, dict)
    assert isinstance(required, list)
    assert set(required) <= set(value)
    patterns = schema.get("patternProperties", {})
    assert isinstance(patterns, dict)
    for key, item in value.items():
        named = next((inner for pattern, inner in patterns.items() if re.search(pattern, key)), other)
        inner = properties.get(key, named)
        assert inner is not False, f"{key} is not allowed"
        if isinstance(inner, dict):
            check_by_schema(item, inner, root)
