"""Linters that are not `make lint`'s: shell scripts, and what must agree between the files around the code."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

TOP = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))
RUNTIME = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
DEVELOPMENT = [Requirement(text) for text in PROJECT["dependency-groups"]["dev"]]
BUILD = [Requirement(text) for text in PROJECT["build-system"]["requires"]]
# Addresses that anybody may write down.
PUBLIC = (
    "debian.org",
    "ubuntu.com",
    "kernel.org",
    "fedoraproject.org",
    "centos.org",
    "github.com",
)


def text_of(name: str) -> str:
    return (TOP / name).read_text(encoding="utf-8")


def shell_scripts() -> list[Path]:
    candidates = [path for folder in ("scripts", ".ci", "bench") for path in sorted((TOP / folder).glob("*")) if path.is_file()]
    return [path for path in candidates if re.match(rb"#!.*\b(ba)?sh\b", path.read_bytes()[:80])]


def tracked_files() -> list[Path]:
    """What belongs to the project: the files that git has or would take, or (unpacked without git) all that lie here."""
    listed = subprocess.run(
        ["git", "-C", TOP, "ls-files", "-z", "--cached", "--others", "--exclude-standard"], capture_output=True, check=False
    )
    if listed.returncode:
        hidden = {".venv", ".cache", ".git", "dist"}
        return [path for path in TOP.rglob("*") if path.is_file() and not hidden & set(path.relative_to(TOP).parts)]
    return [path for name in listed.stdout.decode().split("\0") if name and (path := TOP / name).is_file()]


def constraints() -> dict[str, Version]:
    lines = (line.partition("#")[0].strip() for line in text_of("constraints.txt").splitlines())
    pairs = (line.split("==") for line in lines if line)
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def make_targets() -> set[str]:
    phony = re.search(r"^\.PHONY:(.*)$", text_of("Makefile"), re.MULTILINE)
    assert phony
    return set(phony[1].split())


@pytest.mark.parametrize("script", shell_scripts(), ids=lambda path: path.relative_to(TOP).as_posix())
def test_shell_scripts_parse_and_can_be_run(script: Path) -> None:
    shell = "bash" if b"bash" in script.read_bytes().splitlines()[0] else "sh"
    parsed = subprocess.run([shell, "-n", script], capture_output=True, text=True, check=False)
    assert parsed.returncode == 0, parsed.stderr
    assert script.stat().st_mode & 0o111, "not executable"


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not to be had on this distribution")
@pytest.mark.parametrize("script", shell_scripts(), ids=lambda path: path.relative_to(TOP).as_posix())
def test_shellcheck_has_no_complaint(script: Path) -> None:
    said = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout


def test_make_lists_every_target() -> None:
    said = subprocess.run(["make", "-C", TOP, "--no-print-directory"], capture_output=True, text=True, check=True)
    listed = {line.split()[0] for line in said.stdout.splitlines()[1:]}
    assert listed == make_targets()
    assert {"setup", "demo", "demo-clean", "test", "test-slow", "lint", "fmt", "bench", "dist", "clean"} <= listed


def test_ci_runs_the_test_command_of_the_readme() -> None:
    commands = [line for line in text_of(".ci/run").splitlines() if line and not line.startswith(("#", "set ", "cd "))]
    assert commands == ["exec make test"]
    assert re.search(r"^make test\b", text_of("README.md"), re.MULTILINE)


def test_every_make_target_named_in_the_documents_exists() -> None:
    pages = [TOP / name for name in ("README.md", "CONTRIBUTING.md")] + sorted((TOP / "docs").rglob("*.md"))
    named = {
        (page.name, target) for page in pages for target in re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE)
    }
    assert named
    assert {(page, target) for page, target in named if target not in make_targets()} == set()


def test_links_between_the_documents_lead_somewhere() -> None:
    pages = [TOP / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted((TOP / "docs").rglob("*.md"))
    broken = [
        f"{page.relative_to(TOP)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not broken


@pytest.mark.parametrize("requirement", [*RUNTIME, *DEVELOPMENT, *BUILD], ids=str)
def test_constraints_hold_an_exact_version_of_every_dependency(requirement: Requirement) -> None:
    exact = constraints()
    assert canonicalize_name(requirement.name) in exact
    assert requirement.specifier.contains(exact[canonicalize_name(requirement.name)])
    assert [clause.operator for clause in requirement.specifier] == [">="], "a lower bound that was tried, and nothing else"


@pytest.mark.parametrize("requirement", RUNTIME, ids=lambda requirement: requirement.name)
def test_every_dependency_says_what_it_is_for(requirement: Requirement) -> None:
    assert re.search(rf"^\| (\[)?{re.escape(requirement.name)}\b", text_of("docs/dependencies.md"), re.MULTILINE | re.IGNORECASE)


def test_the_changelog_keeps_its_form() -> None:
    headings = re.findall(r"^## (.*)$", text_of("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", heading) for heading in headings[1:])
    kinds = set(re.findall(r"^### (.*)$", text_of("CHANGELOG.md"), re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def private_hosts() -> set[str]:
    """The package mirrors that this machine is configured with, unless they are public ones."""
    sources = [Path("/etc/apt/sources.list"), Path("/etc/pip.conf"), Path.home() / ".config/pip/pip.conf", Path.home() / ".npmrc"]
    for folder in ("/etc/apt/sources.list.d", "/etc/apt/apt.conf.d", "/etc/yum.repos.d"):
        sources += sorted(Path(folder).glob("*"))
    texts = [source.read_text(encoding="utf-8", errors="replace") for source in sources if source.is_file()]
    hosts = {urlsplit(url).hostname or "" for text in texts for url in re.findall(r"https?://[^\s\"']+", text)}
    # An address without a letter is some private network's, and may well stand in an example.
    return {
        host
        for host in hosts
        if re.search(r"[a-z].*\.", host) and not any(host == known or host.endswith("." + known) for known in PUBLIC)
    }


def test_no_file_names_a_mirror_of_this_machine() -> None:
    """Mirrors are read from the host's configuration when they are needed; one that is written down works nowhere else."""
    hosts = [host.encode() for host in private_hosts()]
    named = [path.relative_to(TOP).as_posix() for path in tracked_files() if any(host in path.read_bytes() for host in hosts)]
    assert not named
