"""The labs that we ship, all of them: their files hold together, their scripts are good shell, plans can be made of them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pocketcloud.bases import definitions
from pocketcloud.documents import load_lab
from pocketcloud.model.base import Firmware
from pocketcloud.model.lab import Lab, Outside
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import GIB
from pocketcloud.plan.drafting import ROOM_PER_MACHINE
from pocketcloud.plan.steps import Provision
from pocketcloud.plan.up import plan_up
from pocketcloud.resources import shipped
from tests.plans import check_plan
from tests.simulation import Host, base, ground

TOP = Path(__file__).resolve().parents[2]
PATHS = sorted(shipped("labs").glob("*.yaml"))
# A first line that makes a file a shell script; other files that are written need no check of ours.
SHELL = re.compile(r"#!\s*/\S*\b(?:ba|da)?sh\b")
# What fetches something from a public place.
FETCHES = re.compile(r"https?://[a-z0-9-]+\.|\bdnf\b.*\binstall\b|\bapt-get\b.*\binstall\b|\b(?:podman|docker) pull\b")
each_lab = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def scripts(lab: Lab) -> Iterator[tuple[str, str]]:
    """What runs in a lab's machines, by a name for people: as the shells that run it would read it."""
    for name, machine in lab.machines.items():
        for index, step in enumerate(machine.provision):
            if step.run is not None:
                yield f"{name}: provision[{index}]", f"#!/bin/sh -e\n{step.run}\n"
            elif SHELL.match(step.content or ""):
                yield f"{name}: {step.write}", step.content or ""
        if machine.ready.command:
            yield f"{name}: ready", f"#!/bin/sh\n{machine.ready.command}\n"
    for check in lab.checks:
        yield f"check {check.name}", f"#!/bin/sh\n{check.run}\n"


def _firmware(signed: bool) -> Firmware:
    return Firmware.EFI if signed else Firmware.BIOS


@each_lab
def test_it_says_what_it_teaches_and_needs(path: Path) -> None:
    lab = load_lab(path)
    assert lab.lab == path.stem
    assert lab.title
    assert lab.teaches or "# Teaches" in path.read_text(encoding="utf-8")
    assert lab.memory >= sum(machine.memory for machine in lab.machines.values())
    assert lab.needs.space
    assert lab.needs.space >= ROOM_PER_MACHINE * len(lab.machines)
    assert lab.needs.outside
    assert lab.needs.nesting or not lab.nesting


@each_lab
def test_its_bases_are_defined_or_it_says_how_they_are_imported(path: Path) -> None:
    lab = load_lab(path)
    known = {definition.base for definition in definitions.available()}
    for machine in lab.machines.values():
        imported = f"pocketcloud base import {machine.base} " in path.read_text(encoding="utf-8")
        assert machine.base in known or imported


@each_lab
def test_a_plan_can_be_made_of_it_where_there_is_what_it_needs(path: Path) -> None:
    lab = load_lab(path)
    bases = {machine.base: machine.secure_boot for machine in lab.machines.values()}
    have = Host.with_bases(*(replace(base(name), firmware=_firmware(signed)) for name, signed in bases.items())).inventory()
    rich = ground(memory=64 * GIB, space=(lab.needs.space or 0) + lab.memory + GIB)
    plan = plan_up(lab, lab.lab, have, rich)
    assert {step.machine for step in plan.steps if isinstance(step, Provision)} == {
        name for name, machine in lab.machines.items() if machine.to_provision
    }
    if lab.lab == "demo":
        check_plan(plan, have)


@each_lab
def test_its_scripts_are_good_shell(path: Path, tmp_path: Path) -> None:
    """With all that shellcheck has to say; it stands in packages.tsv."""
    wrong = []
    for number, (name, text) in enumerate(scripts(load_lab(path))):
        script = tmp_path / f"{number}.sh"
        script.write_text(text, encoding="utf-8")
        # Files that a machine has and this computer does not cannot be followed.
        said = subprocess.run(["shellcheck", "-e", "SC1091", script], capture_output=True, text=True, check=False)
        wrong += [f"{name}:\n{said.stdout}{said.stderr}"] if said.returncode else []
    assert not wrong, "\n".join(wrong)


@each_lab
def test_the_names_in_it_are_its_machines(path: Path) -> None:
    lab = load_lab(path)
    texts = [text for _, text in scripts(lab)]
    texts += [step.content or "" for machine in lab.machines.values() for step in machine.provision]
    called = {name for text in texts for name in re.findall(r"https?://([a-z][a-z0-9-]*)[:/\s]", text)}
    assert called <= {*lab.machines, "localhost"}
    assert {check.machine for check in lab.checks} <= set(lab.machines)


@each_lab
def test_what_says_that_it_needs_no_network_fetches_nothing_by_itself(path: Path) -> None:
    lab = load_lab(path)
    fetching = [name for name, text in scripts(lab) if FETCHES.search(text)]
    packages = any(machine.packages for machine in lab.machines.values())
    match lab.needs.outside:
        case Outside.NETWORK:
            assert fetching
        case Outside.CACHE:
            assert packages
            assert not fetching
        case _:
            assert not packages
            assert not fetching


def test_every_lab_has_its_section_in_the_documentation() -> None:
    page = (TOP / "docs/labs-shipped.md").read_text(encoding="utf-8")
    sections = {
        found[1]: found[2] for found in re.finditer(r"^## `([a-z0-9-]+)`\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    }
    assert set(sections) <= {path.stem for path in PATHS}
    # Or what would stand there stands in the file itself.
    silent = [path.stem for path in PATHS if path.stem not in sections and "# Teaches" not in path.read_text(encoding="utf-8")]
    assert silent == []
    for name, text in sections.items():
        assert "**Run:**" in text, f"{name}: what of it was run, and what not"


def test_a_lab_that_needs_more_than_that_is_found_out() -> None:
    """The tests above can fail: a script, a name and a fetch that must not be."""
    lab = load_lab(shipped("labs", "demo.yaml"))
    web = lab.machines[Name("web")]
    broken = replace(web, provision=(replace(web.provision[-1], run="cd $1; curl http://nobody/ https://example.com/x"),))
    texts = dict(scripts(replace(lab, machines={Name("web"): broken})))
    text = texts["web: provision[0]"]
    said = subprocess.run(["shellcheck", "-"], input=text, capture_output=True, text=True, check=False)
    assert "SC2086" in said.stdout
    assert FETCHES.search(text)
    assert re.findall(r"https?://([a-z][a-z0-9-]*)[:/\s]", text) == ["nobody"]
