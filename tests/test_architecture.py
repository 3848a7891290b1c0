"""The rules that the rooms of docs/architecture.md live by, read out of the source itself."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
PACKAGE = TOP / "pocketcloud"

# From top to bottom; a room imports from lines below its own and never from its own line or one above.
LINES: tuple[tuple[str, ...], ...] = (
    ("cli", "__main__"),
    ("lab",),
    ("cache", "copies", "sharing"),
    ("kit", "bases", "check"),
    ("apply", "observe"),
    ("storage", "hypervisor", "host", "guest"),
    ("plan", "specs"),
    ("downloads", "memory_fit", "profiles", "records", "seed", "verdict"),
    (
        "documents",
        "guest_cache",
        "guest_files",
        "guest_packages",
        "hosts_file",
        "keys",
        "locks",
        "readiness",
        "scratch",
        "ssh_config",
        "subnets",
        "usb_path",
    ),
    ("cpio", "disk_space", "events", "files", "iso", "provision_files", "render", "resources", "system", "yaml_text"),
    ("below",),
    ("model", "errors", "quoting"),
)
LINE_OF = {room: number for number, line in enumerate(LINES) for room in line}

# Who alone may import what; a folder stands for all in it.
OWNERS = {
    "subprocess": "system.py",
    "libvirt": "hypervisor/",
    "paramiko": "guest.py",
    "pyudev": "host/",
    "jinja2": "render.py",
    "click": "cli/",
    "urllib3": "downloads/",
    "pycdlib": "iso.py",
}
LONGEST = 500
# Words that say nothing of what is in a module or a class.
EMPTY_WORDS = re.compile(r"(^|_)(utils?|common|helpers?|managers?|misc|stuff)(_|$)", re.IGNORECASE)
EMPTY_CLASS = re.compile(r"^Abstract|(Manager|Helper|Utils?|Mixin)$")
# A base is a sealed system image here, so the name is free for values; what is inherited from is named for what it is.
PARENT_CLASS = re.compile(r"^Base(?!Exception$)")

MODULES = sorted(PACKAGE.rglob("*.py"))


def parsed(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"), str(module))


def room(module: Path) -> str:
    """The room that a module lies in; the package's own __init__ is the bottom and has no name."""
    first = module.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py") if first != "__init__.py" else ""


def imported(module: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a module imports, inside functions too; `from a import b` counts as `a.b`."""
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def our_rooms(module: Path) -> Iterator[tuple[int, str]]:
    """Line and room of each import of ours."""
    for line, name in imported(module):
        parts = name.split(".")
        if parts[0] == "pocketcloud" and len(parts) > 1 and not parts[1].startswith("__"):
            yield line, parts[1]


def relative(module: Path) -> str:
    return module.relative_to(PACKAGE).as_posix()


def test_every_room_has_a_line() -> None:
    unplaced = {room(module) for module in MODULES} - set(LINE_OF) - {""}
    assert not unplaced, f"give these rooms a line in LINES and in docs/architecture.md: {sorted(unplaced)}"


def test_rooms_import_only_from_below() -> None:
    wrong = [
        f"{relative(module)}:{line} imports {target}"
        for module in MODULES
        for line, target in our_rooms(module)
        if target != room(module)
        and room(module) != "__main__"
        and (room(module) == "" or LINE_OF.get(target, -1) <= LINE_OF[room(module)])
    ]
    assert not wrong, "\n".join(wrong)


def test_the_model_does_no_work() -> None:
    """Values import no room of ours, nothing installed, and nothing that reads or writes."""
    allowed = {"__future__", "collections", "dataclasses", "datetime", "enum", "functools", "hashlib", "ipaddress", "itertools"}
    allowed |= {"math", "pathlib", "pocketcloud", "re", "string", "typing", "uuid"}
    outside = [
        f"{relative(module)}:{line} imports {name}"
        for module in MODULES
        if room(module) in ("model", "errors")
        for line, name in imported(module)
        if name.split(".")[0] not in allowed
    ]
    assert not outside, "\n".join(outside)


@pytest.mark.parametrize(("library", "owner"), OWNERS.items())
def test_one_room_owns_each_door(library: str, owner: str) -> None:
    users = {relative(module) for module in MODULES for _, name in imported(module) if name.split(".")[0] == library}
    strangers = {user for user in users if not (user.startswith(owner) if owner.endswith("/") else user == owner)}
    assert not strangers, f"{library} belongs to {owner}: {sorted(strangers)}"


def test_only_the_command_line_prints() -> None:
    printing = [
        f"{relative(module)}:{node.lineno}"
        for module in MODULES
        if room(module) != "cli"
        for node in ast.walk(parsed(module))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not printing, "\n".join(printing)


def test_only_the_command_line_exits() -> None:
    exiting = [
        f"{relative(module)}:{node.lineno}"
        for module in MODULES
        # The probes of KVM and of disks are programs of their own, run as children.
        if room(module) != "cli" and relative(module) not in ("host/kvm_probe.py", "host/disk_probe.py")
        for node in ast.walk(parsed(module))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("sys.exit", "exit", "SystemExit", "os._exit")
    ]
    assert not exiting, "\n".join(exiting)


def test_modules_are_short_and_say_what_lives_in_them() -> None:
    wrong = []
    for module in MODULES:
        lines = len(module.read_text(encoding="utf-8").splitlines())
        if lines > LONGEST:
            wrong.append(f"{relative(module)} has {lines} lines, {LONGEST} is the end")
        if not ast.get_docstring(parsed(module)):
            wrong.append(f"{relative(module)} has no docstring")
    assert not wrong, "\n".join(wrong)


def test_names_say_something() -> None:
    wrong = [f"{relative(module)}: a module is a noun" for module in MODULES if EMPTY_WORDS.search(module.stem)]
    wrong += [
        f"{relative(module)}:{node.lineno}: class {node.name}"
        for module in MODULES
        for node in ast.walk(parsed(module))
        if isinstance(node, ast.ClassDef)
        and (EMPTY_CLASS.search(node.name) or any(PARENT_CLASS.search(ast.unparse(parent)) for parent in node.bases))
    ]
    assert not wrong, "\n".join(wrong)


def test_exemptions_from_the_linters_have_a_reason() -> None:
    """`noqa` and `type: ignore` name their rule, and the reason stands beside it."""
    rules = r"(?::\s*[A-Z]+[0-9]+(?:,\s*[A-Z]+[0-9]+)*|\[[a-z-]+(?:,\s*[a-z-]+)*\])"
    bare = re.compile(rf"#\s*(noqa|type:\s*ignore)(?!{rules}\s*[-#(,]\s*\S)")
    sources = [path for folder in ("pocketcloud", "bench") for path in sorted((TOP / folder).rglob("*.py"))]
    wrong = [
        f"{path.relative_to(TOP)}:{number}: {text.strip()}"
        for path in sources
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if bare.search(text)
    ]
    assert not wrong, "\n".join(wrong)


HEAVY = ("pydantic", "libvirt", "paramiko", "jinja2", "pyudev", "ruamel", "rich", "pycdlib", "cryptography", "urllib3")
PROBE = """
import json, os, sys
from pocketcloud.cli.main import main
sys.argv = ["pocketcloud", *json.loads(os.environ["PROBE_ARGS"])]
try:
    main()
finally:
    with open(os.environ["PROBE_OUT"], "w") as out:
        json.dump(sorted(sys.modules), out)
"""


@pytest.mark.parametrize(
    ("args", "env"),
    [
        (["--help"], {}),
        (["--version"], {}),
        (["lab", "up", "--help"], {}),
        ([], {"_POCKETCLOUD_COMPLETE": "bash_source"}),
        ([], {"_POCKETCLOUD_COMPLETE": "bash_complete", "COMP_WORDS": "pocketcloud lab ", "COMP_CWORD": "2"}),
        ([], {"_POCKETCLOUD_COMPLETE": "bash_complete", "COMP_WORDS": "pocketcloud lab up --", "COMP_CWORD": "3"}),
    ],
    ids=["help", "version", "help of a command", "completion script", "completing a command", "completing an option"],
)
def test_quick_answers_load_nothing_heavy(tmp_path: Path, args: list[str], env: dict[str, str]) -> None:
    out = tmp_path / "modules.json"
    environment = os.environ | {"PROBE_ARGS": json.dumps(args), "PROBE_OUT": str(out)} | env
    answer = subprocess.run(
        [sys.executable, "-c", PROBE], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip(), "an answer was expected"
    loaded = {name.split(".")[0] for name in json.loads(out.read_text(encoding="utf-8"))}
    assert not loaded & set(HEAVY)
