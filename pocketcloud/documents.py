"""Documents: YAML and JSON into the model's values, strictly, with every fault at once; values into JSON and JSON Schema.

The types are declared once, as the model's dataclasses; pydantic reads those. YAML is read as YAML 1.2 (`22:22` and `on`
are text), with line numbers, duplicate keys refused, and bounds on size, depth and what aliases expand to. What the keys
*mean* is not checked here, except the references inside one lab file.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pocketcloud.errors import BadDocument, Fault, NotFound
from pocketcloud.model.base import key_of
from pocketcloud.model.lab import Lab
from pocketcloud.model.names import NAME_PATTERN
from pocketcloud.provision_files import ReadFile, files_below, put_in

T = TypeVar("T")
KeyPath = tuple[str | int, ...]
Lines = dict[KeyPath, int]

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_NODES = 50_000
MAX_TEXT = 1024 * 1024
MAX_FAULTS = 30

# The directive for another version of YAML changes what plain words mean: `on` would be true.
_OTHER_YAML = re.compile(r"^%YAML\s+(?!1\.2\s*$)", re.MULTILINE)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_LARGEST_INT = 1 << 63


def load(path: Path, kind: type[T]) -> T:
    """Read a YAML file as `kind`, a dataclass of the model. Raises NotFound, or BadDocument with all faults."""
    return parse_yaml(_read(path), kind, str(path))


def load_lab(path: Path) -> Lab:
    """Read a lab file; as `load`, and the references inside it hold."""
    try:
        return parse_lab(_read(path), str(path), files_below(path.parent))
    except BadDocument as bad:
        bad.hint = bad.hint or f"mend {path} and run the command again; pocketcloud lab schema prints every key and its type"
        raise


def parse_lab(text: str, source: str, read: ReadFile | None = None) -> Lab:
    """A lab from YAML text; `source` names it in messages, `read` gives the files that are beside it."""
    raw, lines, faults = _read_yaml(text, source)
    faults += [_fault(lines, path, message) for path, message in put_in(raw, read)]
    raw = _spread_networks(raw, lines, faults)
    faults += [_fault(lines, path, message) for path, message in _broken_references(raw)]
    return _validated(raw, Lab, source, lines, faults)


def parse_yaml(text: str, kind: type[T], source: str) -> T:
    """A value of `kind` from YAML text; `source` names it in messages. Raises BadDocument."""
    raw, lines, faults = _read_yaml(text, source)
    return _validated(raw, kind, source, lines, faults)


def load_one_of(
    path: Path,
    key: str,
    kinds: Mapping[str, type[T]],
    faults_of: Callable[[T], Iterable[tuple[KeyPath, str]]] = lambda _value: (),
) -> T:
    """Read a YAML file whose text under `key` says which of `kinds` it is. Raises NotFound, or BadDocument with all faults.

    `faults_of` says what is wrong with a value whose keys and types are right: key paths and messages.
    """
    source = str(path)
    raw, lines, faults = _read_yaml(_read(path), source)
    said = raw.get(key) if isinstance(raw, dict) else None
    kind = kinds.get(said) if isinstance(said, str) else None
    if kind is None:
        got = "missing" if said is None else f"expected one of {', '.join(kinds)}, got {_shown(said)}"
        raise BadDocument(source, [*faults, _fault(lines, (key,), got)])
    value = _validated(raw, kind, source, lines, faults)
    if wrong := [_fault(lines, at, message) for at, message in faults_of(value)]:
        raise BadDocument(source, sorted(wrong, key=lambda fault: fault.line))
    return value


def parse_json(text: str, kind: type[T], source: str) -> T:
    """A value of `kind` from JSON text as `dump_json` writes it. Raises BadDocument (line 0: JSON has no lines for us)."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadDocument(source, [Fault(getattr(error, "lineno", 0), "", f"not JSON: {error}")]) from error
    return _validated(raw, kind, source, {}, [])


def dump_json(value: object) -> str:
    """A model value as JSON text: two spaces, a final newline. Keys keep their order, which has a meaning: that of a machine's
    networks is that of its interfaces."""
    return json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n"


def plain(value: object) -> Any:
    """A model value as plain dictionaries, lists, strings and numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {key_of(f.name): plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, frozenset, set)):
        return [plain(item) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    return str(value)


def lab_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a lab file, for editors."""
    schema: dict[str, Any] = _adapter(Lab).json_schema()
    for owner in (schema, *schema["$defs"].values()):
        for key in owner.get("properties", {}).values():
            if named := key.get("patternProperties"):
                # A name that does not follow the rule is refused, and nothing need follow the name of a network.
                key["additionalProperties"] = False
                key["patternProperties"] = {p: _or_nothing(v) for p, v in named.items()}
    networks = schema["$defs"]["Machine"]["properties"]["networks"]
    short = {"type": "array", "items": {"type": "string", "pattern": NAME_PATTERN}, "uniqueItems": True}
    schema["$defs"]["Machine"]["properties"]["networks"] = {"anyOf": [short, networks], "title": "Networks"}
    schema["$defs"]["ProvisionStep"]["properties"]["from"] = {"type": "string", "title": "From"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema | {"title": "pocketcloud lab"}


def schema_of_one(kinds: Iterable[type], title: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a document that is of one of `kinds`, for editors."""
    shared: dict[str, Any] = {}
    found = []
    for kind in dict.fromkeys(kinds):
        schema: dict[str, Any] = _adapter(kind).json_schema()
        shared |= schema.pop("$defs", {})
        found.append(schema)
    for owner in (*found, *shared.values()):
        for key in owner.get("properties", {}).values():
            if key.get("patternProperties"):
                key["additionalProperties"] = False
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, "oneOf": found, "$defs": shared}


def _or_nothing(schema: dict[str, Any]) -> dict[str, Any]:
    empty_too = str(schema.get("$ref", "")).rpartition("/")[2] in ("LabNetwork", "Attachment")
    return {"anyOf": [schema, {"type": "null"}]} if empty_too else schema


# -- YAML to plain values, with lines ---------------------------------------------------------------------------------


def _read(path: Path) -> str:
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise BadDocument(str(path), [Fault(0, "", "expected a file")])
        if size > MAX_BYTES:
            raise BadDocument(
                str(path), [Fault(0, "", f"{size} bytes; expected at most {MAX_BYTES}: this is hardly the file meant")]
            )
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file", hint="give the path of an existing file") from None
    except UnicodeDecodeError as error:
        raise BadDocument(str(path), [Fault(0, "", f"not UTF-8 text (byte {error.start})")]) from None
    except OSError as error:
        raise BadDocument(str(path), [Fault(0, "", f"cannot be read: {error.strerror}")]) from None


def _read_yaml(text: str, source: str) -> tuple[Any, Lines, list[Fault]]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    if len(text.encode()) > MAX_BYTES:
        raise BadDocument(source, [Fault(0, "", f"expected at most {MAX_BYTES} bytes")])
    if other := _OTHER_YAML.search(text):
        raise BadDocument(source, [Fault(text.count("\n", 0, other.start()) + 1, "", "expected YAML 1.2 (leave out `%YAML`)")])
    yaml = YAML(typ="safe", pure=True)
    yaml.composer.warn_double_anchors = False  # the later one counts, says YAML 1.2; there is nothing to warn of
    try:
        node = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = " ".join(part for part in (error.context, error.problem) if part)
        raise BadDocument(source, [Fault(mark.line + 1 if mark else 0, "", f"not YAML: {said}")]) from None
    except YAMLError as error:
        raise BadDocument(source, [Fault(0, "", f"not YAML: {str(error).splitlines()[0]}")]) from None
    except (RecursionError, ValueError) as error:
        raise BadDocument(source, [Fault(0, "", f"nested too deep or malformed: {type(error).__name__}")]) from None
    if node is None:
        raise BadDocument(source, [Fault(1, "", "the file is empty")])
    reader = _NodeReader(source)
    return reader.value(node, ()), reader.lines, reader.faults


class _NodeReader:
    """Turns a composed YAML graph into plain values, noting lines and duplicate keys, within bounds."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines: Lines = {}
        self.faults: list[Fault] = []
        self.count = 0
        self.length = 0

    def value(self, node: Any, path: KeyPath) -> Any:
        """The plain value of a node. An alias is read again wherever it stands, so that its bounds are those of its expansion."""
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        self.count += 1
        if self.count > MAX_NODES or self.length > MAX_TEXT or len(path) > MAX_DEPTH:
            much = f"more than {MAX_NODES} values" if self.count > MAX_NODES else f"more than {MAX_TEXT} characters"
            what = f"nested deeper than {MAX_DEPTH}" if len(path) > MAX_DEPTH else much
            raise BadDocument(self.source, [Fault(line, "", f"{what}, aliases expanded: this is not a document of ours")])
        if node.id == "mapping":
            return self._mapping(node, path)
        if node.id == "sequence":
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: Any, path: KeyPath) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.id != "scalar":
                self.faults.append(Fault(line, _dotted(path), "expected a plain word as key"))
                continue
            key = self._text(key_node, path)
            if key in found:
                first = self.lines.get((*path, key), 0)
                self.faults.append(Fault(line, _dotted((*path, key)), f"duplicate: the same name stands in line {first}"))
                continue
            self.lines[(*path, key)] = line
            found[key] = self.value(value_node, (*path, key))
        return found

    def _scalar(self, node: Any, path: KeyPath) -> Any:
        tag, text = str(node.tag), self._text(node, path)
        kind = tag.rsplit(":", 1)[-1]
        try:
            match kind:
                case "null":
                    return None
                case "bool":
                    return {"true": True, "false": False}.get(text.lower(), text)
                case "int":
                    number = int(text.replace("_", ""), 0 if text.lstrip("+-")[:2].lower() in ("0x", "0o", "0b") else 10)
                    return number if abs(number) < _LARGEST_INT else text
                case "float":
                    measure = float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan").lower())
                    return measure if abs(measure) < float("inf") else text
                case "str" | "timestamp":
                    return text
                case _:
                    pass
        except ValueError:
            return text
        self.faults.append(Fault(node.start_mark.line + 1, _dotted(path), f"expected a plain value, got the tag {_safe(tag)}"))
        return None

    def _text(self, node: Any, path: KeyPath) -> str:
        text = str(node.value)
        self.length += len(text)
        if not _LONE_SURROGATE.search(text):
            return text
        self.faults.append(Fault(node.start_mark.line + 1, _dotted(path), "expected text, got a lone surrogate"))
        return _LONE_SURROGATE.sub("?", text)


# -- plain values to the model ----------------------------------------------------------------------------------------


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _validated(raw: Any, kind: type[T], source: str, lines: Lines, faults: list[Fault]) -> T:
    from pydantic import ValidationError

    value: T | None = None
    try:
        # Strict validation in JSON mode: "1" is not a number, and yet a list may become a tuple and a text an enum.
        value = _adapter(cast(Any, kind)).validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        faults += [_translated(item, kind, lines) for item in error.errors(include_url=False)]
    if faults or value is None:
        ordered = sorted(set(faults), key=lambda f: (f.line, f.path))
        left = len(ordered) - MAX_FAULTS
        shown = ordered[:MAX_FAULTS] + ([Fault(ordered[-1].line, "", f"and {left} more")] if left > 0 else [])
        raise BadDocument(source, shown)
    return value


def _translated(item: Any, kind: type, lines: Lines) -> Fault:
    path: KeyPath = tuple(part for part in item["loc"] if part != "[key]")
    got = _shown(item.get("input"))
    message = str(item["msg"])
    match item["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            message = _unknown_key(str(path[-1]), _keys_of(kind, path[:-1]))
        case "missing":
            message = "missing"
        case "value_error" | "assertion_error":
            message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
            # What a value says about one of its keys is said at that key.
            key, colon, rest = message.partition(": ")
            if colon and key in _keys_of(kind, path):
                path, message = (*path, key), rest
        case "string_type":
            message = f"expected text, got {got}"
        case "int_type" | "int_parsing" | "int_from_float":
            message = f"expected a whole number, got {got}"
        case "bool_type" | "bool_parsing":
            message = f"expected true or false, got {got}"
        case "dict_type" | "dataclass_type" | "mapping_type" | "dataclass_exact_type":
            message = f"expected a mapping (key: value), got {got}"
        case "list_type" | "tuple_type":
            message = f"expected a list, got {got}"
        case "enum" | "literal_error":
            message = f"expected {item.get('ctx', {}).get('expected', 'another value')}, got {got}"
        case _:
            pass
    return _fault(lines, path, message)


def _unknown_key(key: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(key, names, n=1)
    meant = f"; did you mean `{close[0]}`?" if close else ""
    return f"unknown key{meant} (expected one of: {', '.join(names)})" if names else "unknown key"


def _keys_of(kind: Any, path: KeyPath) -> list[str]:
    """The keys that may stand at `path` in a document of `kind`; empty where any may."""
    for part in path:
        kind = _inner(kind, part)
        if kind is None:
            return []
    kind = _plain_type(kind)
    return [key_of(f.name) for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def _plain_type(kind: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        return next((arg for arg in get_args(kind) if arg is not type(None)), None)
    return kind


def _inner(kind: Any, part: str | int) -> Any:
    kind = _plain_type(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return get_type_hints(kind).get(str(part))
    args = get_args(kind)
    if not args:
        return None
    return args[0] if isinstance(part, int) else args[-1]


def _fault(lines: Lines, path: KeyPath, message: str) -> Fault:
    """A fault at `path`, with the line of the nearest thing that has one."""
    for length in range(len(path), -1, -1):
        if (line := lines.get(path[:length])) is not None:
            return Fault(line, _dotted(path), message)
    return Fault(0, _dotted(path), message)


def _dotted(path: KeyPath) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f"{'.' if text else ''}{_safe(part)}"
    return text


def _safe(text: str) -> str:
    """A user's text fit for one line of a terminal."""
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean if len(clean) <= 40 else clean[:37] + "..."


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    return repr(_safe(value)) if isinstance(value, str) else _safe(json.dumps(value, default=str))


# -- what is special about labs ---------------------------------------------------------------------------------------


def _machines(raw: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    machines = raw.get("machines") if isinstance(raw, dict) else None
    if isinstance(machines, dict):
        yield from ((str(name), machine) for name, machine in machines.items() if isinstance(machine, dict))


def _spread_networks(raw: Any, lines: Lines, faults: list[Fault]) -> Any:
    """`networks: [a, b]` of a machine in its long form, `{a: {}, b: {}}`."""
    for name, machine in _machines(raw):
        listed = machine.get("networks")
        at: KeyPath = ("machines", name, "networks")
        if isinstance(listed, list):
            spread: dict[str, Any] = {}
            for index, network in enumerate(listed):
                line = lines.get((*at, index), 0)
                if not isinstance(network, str):
                    faults.append(Fault(line, _dotted((*at, index)), f"expected a network's name, got {_shown(network)}"))
                elif network in spread:
                    faults.append(Fault(line, _dotted((*at, index)), f"duplicate: {_safe(network)} stands here twice"))
                else:
                    spread[network] = {}
                    lines[(*at, network)] = line
            machine["networks"] = spread
        elif isinstance(listed, dict):
            machine["networks"] = {network: {} if value is None else value for network, value in listed.items()}
    if isinstance(raw, dict) and isinstance(raw.get("networks"), dict):
        raw["networks"] = {name: {} if value is None else value for name, value in raw["networks"].items()}
    return raw


def _broken_references(raw: Any) -> Iterator[tuple[KeyPath, str]]:
    declared = raw.get("networks") if isinstance(raw, dict) else None
    networks = [str(name) for name in declared] if isinstance(declared, dict) else []
    entries = declared.items() if isinstance(declared, dict) else ()
    bridged = {name for name, network in entries if isinstance(network, dict) and network.get("kind") == "bridge"}
    taken: dict[tuple[str, int], str] = {}
    if isinstance(raw, dict) and raw.get("machines") == {}:
        yield ("machines",), "expected at least one machine"
    for name, machine in _machines(raw):
        attached = machine.get("networks")
        for network, attachment in attached.items() if isinstance(attached, dict) else ():
            at: KeyPath = ("machines", name, "networks", network)
            if network not in networks:
                there = f"the lab has: {', '.join(_safe(n) for n in networks)}" if networks else "the lab declares none"
                yield at, f"no such network ({there})"
            address = attachment.get("address") if isinstance(attachment, dict) else None
            if network in bridged and address is not None:
                yield (*at, "address"), f"{_safe(network)} is a bridge of the host: who serves there gives addresses, not the lab"
            if type(address) is int and (other := taken.setdefault((network, address), name)) != name:
                yield (*at, "address"), f"duplicate: {address} is {_safe(other)}'s on this network"
        if isinstance(attached, dict) and attached and bridged.issuperset(attached) and _is_visited(machine):
            yield (
                ("machines", name, "networks"),
                "on bridges alone nobody here knows its address: give it a network of another kind, or no more than a `console`"
                " to be `ready`",
            )
        yield from _double_disks(name, machine)
    yield from _misplaced_checks(raw, dict(_machines(raw)))


def _is_visited(machine: Mapping[str, Any]) -> bool:
    """Whether bringing it up takes its address: to provision it, or to prove it ready."""
    ready = machine.get("ready")
    named = ready if isinstance(ready, dict) else {}
    entered = machine.get("provision") or machine.get("packages")
    return bool(entered or not named.get("console") or {"ssh", "command", "tcp"} & set(named))


def _misplaced_checks(raw: Any, machines: Mapping[str, dict[str, Any]]) -> Iterator[tuple[KeyPath, str]]:
    checks = raw.get("checks") if isinstance(raw, dict) else None
    seen: dict[str, int] = {}
    for index, check in enumerate(checks if isinstance(checks, list) else ()):
        name, machine = (check.get("name"), check.get("machine")) if isinstance(check, dict) else (None, None)
        if isinstance(name, str) and (first := seen.setdefault(name, index)) != index:
            yield ("checks", index, "name"), f"duplicate: checks[{first}] has this name"
        if isinstance(machine, str) and machine not in machines:
            there = ", ".join(_safe(other) for other in machines) or "none"
            yield ("checks", index, "machine"), f"no such machine (the lab has: {there})"
        elif isinstance(machine, str) and not machines[machine].get("networks"):
            yield ("checks", index, "machine"), f"{machine} is on no network, over which it could be asked"


def _double_disks(name: str, machine: dict[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    disks = machine.get("disks")
    seen: dict[str, int] = {"root": -1}
    for index, disk in enumerate(disks if isinstance(disks, list) else ()):
        label = disk.get("name") if isinstance(disk, dict) else None
        if isinstance(label, str):
            if label in seen:
                other = "the system disk's name" if label == "root" else f"disks[{seen[label]}] has this name"
                yield ("machines", name, "disks", index, "name"), f"duplicate: {other}"
            seen[label] = index
