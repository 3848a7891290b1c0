"""The command line as a process, where it takes no machine: help, errors, answers as JSON, completion, gone readers."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from pocketcloud import __version__
from pocketcloud.cli.main import command as root_command

TOP = Path(__file__).resolve().parent.parent.parent
GOOD = "lab: x\nmachines:\n  a: {base: tiny, ready: {console: x}}\n"


def tree(group: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with its path."""
    yield path, group
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            inner = group.get_command(context, name)
            assert inner is not None
            yield from tree(inner, (*path, name))


COMMANDS = dict(tree(root_command))
LEAVES = [path for path, found in COMMANDS.items() if not isinstance(found, click.Group)]


@dataclass(frozen=True, slots=True)
class Cli:
    """Runs the command line with places of its own, in which there is no kit at first."""

    folder: Path

    def __call__(
        self, *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self.env | dict(env or {}),
            cwd=cwd or self.folder,
            timeout=60,
            check=False,
        )

    def argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "pocketcloud", *arguments]

    @property
    def kit(self) -> Path:
        return self.folder / "default"

    @property
    def env(self) -> dict[str, str]:
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("POCKETCLOUD_", "COLUMNS"))}
        places = {"POCKETCLOUD_DEFAULT_KIT": str(self.kit), "POCKETCLOUD_RUN_DIR": str(self.folder / "run")}
        # libvirt where there is none: these tests take no machine.
        return (
            mine
            | places
            | {
                "PYTHONPATH": str(TOP),
                "PYTHONWARNINGS": "error",
                "LIBVIRT_DEFAULT_URI": "qemu+unix:///system?socket=/nonexistent",
            }
        )


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    # The folders above have mode 0700 and QEMU could not pass; what is made here is only looked at.
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o001)
    return Cli(tmp_path)


def explained(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The message of a command that failed as it should: on stderr only, `error:` first, a next action last."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert lines[-1].startswith("next:  "), done.stderr
    assert all(line.startswith("  ") for line in lines[1:-1])
    return done.stderr


# -- help ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_of_every_command(path: tuple[str, ...]) -> None:
    """In this process: a start of Python for each would take long."""
    found = COMMANDS[path]
    text = found.get_help(click.Context(found, info_name="pocketcloud " + " ".join(path), terminal_width=100))
    assert text.startswith("Usage: ")
    assert found.help, "it says nothing of what it does"
    assert found.help.strip().splitlines()[0].endswith((".", ":")) or "\n" in found.help
    for parameter in found.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{parameter.name} says nothing"
        else:
            name = (parameter.metavar or str(parameter.name)).upper().removesuffix("S")
            assert name in found.help.upper() or path[:1] == ("lab",), f"{name} is not in the help of {' '.join(path)}"


def test_help_and_version_as_a_process(cli: Cli) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        done = cli(*arguments)
        assert done.returncode == 0
        for word in (
            "Exit codes: 0 done; 2 usage",
            "check",
            "kit",
            "base",
            "lab",
            "profile",
            "_POCKETCLOUD_COMPLETE=bash_source",
        ):
            assert word in done.stdout
    assert cli("--version").stdout == f"pocketcloud, version {__version__}\n"
    assert cli("lab", "up", "--help").stdout.startswith("Usage: pocketcloud lab up [OPTIONS] [LAB]")


@pytest.mark.parametrize("columns", ["1", "40", "10000", "many", ""])
def test_help_on_terminals_of_all_widths(cli: Cli, columns: str) -> None:
    done = cli("lab", "--help", env={"COLUMNS": columns})
    assert done.returncode == 0
    assert all(len(line) <= 110 for line in done.stdout.splitlines())


def test_help_and_completion_load_nothing_heavy(cli: Cli) -> None:
    code = (
        "import sys\nfrom pocketcloud.cli.main import run\ncode = run(sys.argv[1:])\n"
        "print(code, sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    for arguments, env in (
        (["--help"], {}),
        (["--version"], {}),
        (["lab", "up", "--help"], {}),
        ([], {"_POCKETCLOUD_COMPLETE": "bash_complete", "COMP_WORDS": "pocketcloud lab ", "COMP_CWORD": "2"}),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=cli.env | env, check=True, timeout=60
        )
        assert done.stderr.startswith("0 ")
        for heavy in ("pydantic", "libvirt", "paramiko", "jinja2", "pyudev", "rich", "ruamel", "pycdlib"):
            assert f"'{heavy}'" not in done.stderr, f"{arguments} loads {heavy}"


# -- what is wrong on the command line -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("nonsense", "No such command 'nonsense'"),
        ("lab nonsense", "No such command 'nonsense'"),
        ("--nonsense", "No such option '--nonsense'"),
        ("lab up --reconfigur", "--reconfigure"),
        ("lab list -o xml", "'xml' is not one of 'table', 'json'"),
        ("lab up --progress loud", "'loud' is not one of"),
        ("lab down --within soon", "--within"),
        ("lab down --within -1", "--within"),
        ("lab exec", "Missing argument"),
        ("base build debian-12 --arch riscv64", "'riscv64' is not one of"),
        ("lab status Demo", "is not a name"),
        ("lab status " + "a" * 300, "is not a name"),
        ("lab up a b", "unexpected extra argument"),
    ],
)
def test_usage_errors(cli: Cli, arguments: str, words: str) -> None:
    assert words in explained(cli(*arguments.split(" ")), 2)
    assert not cli.kit.exists()
    assert not (cli.folder / "run").exists()


@pytest.mark.parametrize("name", ["a b", "a'b", 'a"b', "a\nb", "a\n", "ж", "a" * 32, "-", "a_b", "*", "$(id)", "\x1b[31m"])
def test_strange_names_are_refused_and_not_repeated_raw(cli: Cli, name: str) -> None:
    assert "\x1b" not in explained(cli("lab", "status", "--", name), 2)
    assert not cli.kit.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"lab: x\nmachines: {a: {base: b, memory: 10TiB, ready: {console: x}}}\n", "lab.yaml:2: machines.a.memory"),
        (b"lab: x\nmachines: {a: {base: b, memory: -1}}\n", "lab.yaml:2: machines.a.memory"),
        (b"a: &a [*a]\n", "nested deeper"),
        (b"\xff\xfe", "not UTF-8"),
        (b"lab: x\n" + b"#" * 300_000, "expected at most 262144"),
    ],
)
def test_bad_lab_files_are_told_and_nothing_is_made(cli: Cli, content: bytes, words: str) -> None:
    (cli.folder / "lab.yaml").write_bytes(content)
    for arguments in (("lab", "up"), ("lab", "up", "lab.yaml"), ("lab", "plan", "./lab.yaml")):
        done = cli(*arguments)
        assert "Traceback" not in done.stderr
        if arguments[1] == "up":
            assert done.returncode == 2
            assert words in done.stderr
        assert done.stdout == ""
        assert not cli.kit.exists()


def test_which_lab_is_asked_where_none_is_named(cli: Cli) -> None:
    assert "There is no lab.yaml here" in explained(cli("lab", "up"), 2)


def test_a_file_that_is_not_there(cli: Cli) -> None:
    assert "no such file" in explained(cli("lab", "up", "./no.yaml"), 4)
    assert not cli.kit.exists()


def test_without_any_kit(cli: Cli) -> None:
    for arguments in (("kit", "status"), ("lab", "status", "demo"), ("base", "list"), ("lab", "reset", "demo", "-y")):
        assert "there is no kit here" in explained(cli(*arguments), 4)
    assert "no kit 'other'" in explained(cli("kit", "status", "--kit", "other"), 4)
    assert "there is no kit here" in explained(cli("lab", "up", "nobody-knows-this"), 4)
    assert not cli.kit.exists()


def test_an_environment_of_ours_stands_for_the_options(cli: Cli) -> None:
    assert "no kit 'other'" in explained(cli("kit", "status", env={"POCKETCLOUD_KIT": "other"}), 4)
    assert "no profile 'huge'" in explained(cli("check", env={"POCKETCLOUD_PROFILE": "huge"}), 4)
    assert "'loud' is not one of" in explained(cli("lab", "up", env={"POCKETCLOUD_PROGRESS": "loud"}), 2)


def test_libvirt_that_is_not_there_is_no_bug(cli: Cli) -> None:
    assert cli("kit", "init").returncode == 0
    (cli.folder / "lab.yaml").write_text(GOOD)
    explained(cli("lab", "up"), 3)
    assert sorted((cli.kit / "labs").iterdir()) == []


# -- answers -------------------------------------------------------------------------------------------------------------


def test_kits_are_made_listed_and_shown(cli: Cli) -> None:
    assert json.loads(cli("kit", "list", "-o", "json").stdout) == []
    assert "is made in" in cli("kit", "init", "--name", "mine").stdout
    (found,) = json.loads(cli("kit", "list", "-o", "json").stdout)
    assert (found["name"], found["path"], found["storage"]) == ("mine", str(cli.kit), "qcow2")
    status = json.loads(cli("kit", "status", "-o", "json").stdout)
    assert status["manifest"]["id"] == found["id"]
    assert status["volumes"] == status["bases"] == status["labs"] == []
    assert "mine" in cli("kit", "status").stdout
    assert "already" in explained(cli("kit", "init", "--name", "mine"), 5)


@pytest.mark.parametrize(
    "path", [path for path in LEAVES if any(p.name == "output" for p in COMMANDS[path].params)], ids=" ".join
)
def test_json_is_json_or_an_explained_error(cli: Cli, path: tuple[str, ...]) -> None:
    assert cli("kit", "init").returncode == 0
    states = {verb: ["demo@before"] for verb in ("snapshot", "restore", "forget", "protect")}
    words = {"show": ["emulated"], "remove": ["x"], "clone": ["x", "/dev/null"], "sync": ["x"], "verify": ["x"], **states}.get(
        path[-1], ["demo"] if path[0] == "lab" and path[-1] != "list" else []
    )
    done = cli(*path, *words, "-o", "json")
    assert "Traceback" not in done.stderr
    if done.returncode == 0 or path == ("check",):
        assert done.returncode in (0, 3)
        json.loads(done.stdout)
    else:
        explained(done, done.returncode)
        assert done.returncode in (3, 4)


def test_lists_of_an_empty_kit(cli: Cli) -> None:
    cli("kit", "init")
    labs = json.loads(cli("lab", "list", "-o", "json").stdout)
    assert labs["labs"] == []
    assert "demo" in {lab["lab"] for lab in labs["shipped"]}
    assert json.loads(cli("base", "list", "-o", "json").stdout) == []
    assert "debian-12" in {base["base"] for base in json.loads(cli("base", "list", "--available", "-o", "json").stdout)}
    profiles = json.loads(cli("profile", "list", "-o", "json").stdout)
    assert sum(profile["chosen"] for profile in profiles) == 1
    assert json.loads(cli("lab", "schema").stdout)["title"] == "pocketcloud lab"
    empty = cli("base", "list")
    assert empty.stdout == ""
    assert "No bases yet" in empty.stderr


def test_profile_show_says_where_each_value_comes_from(cli: Cli) -> None:
    told = json.loads(cli("profile", "show", "pine64", "-o", "json").stdout)
    assert told["from"]["host_memory"] == "profiles/pine64.yaml"
    assert told["from"]["media.usb"] == "profiles/arm64-board.yaml"
    assert told["board"]["memory"] == [2 << 30]
    lines = cli("profile", "show", "pine64").stdout.splitlines()
    (kept,) = (line for line in lines if line.startswith("kept for the host"))
    assert kept.split()[-3:] == ["400", "MiB", "profiles/pine64.yaml"]
    assert any(line.startswith("CPU mode") and line.endswith("profiles/arm64-board.yaml") for line in lines)


def test_profile_show_without_a_name_is_the_one_labs_get(cli: Cli) -> None:
    (chosen,) = (p["profile"] for p in json.loads(cli("profile", "list", "-o", "json").stdout) if p["chosen"])
    told = json.loads(cli("profile", "show", "-o", "json").stdout)
    assert told["profile"] == chosen
    here = {entry["key"]: entry for entry in told["here"]}
    assert here["profile"]["from"].startswith("chosen: ")
    assert "available of" in here["memory for labs"]["from"]
    by_hand = json.loads(cli("profile", "show", "-o", "json", env={"POCKETCLOUD_PROFILE": "rk3588"}).stdout)
    assert by_hand["profile"] == "rk3588"
    assert by_hand["here"][0]["from"].startswith(f"named; by itself this computer gets {chosen}")


def test_a_lab_of_imported_bases_asks_nothing_of_the_cache(cli: Cli) -> None:
    done = cli("cache", "add", "--lab", "manageiq")
    assert done.stdout == (
        "Lab manageiq: nothing of manageiq can be kept, without a definition; what `base import` brings is in the kit.\n"
    )


def test_all_that_an_imported_lab_would_do_is_shown_first(cli: Cli) -> None:
    base = """\
base: mine
title: t
family: fedora
version: "44"
builder: kickstart
architectures: [x86_64]
template: own.ks.j2
media:
  x86_64: {file: /var/lib/pocketcloud/media/x.iso}
registration: {activation_key_file: /etc/pocketcloud/key}
patches:
- |
  --- a/etc/shadow
  +++ b/etc/shadow
  @@ -1 +1,2 @@
   x
  +y
"""
    source = cli.folder / "src"
    for name, text in {
        "lab.yaml": "lab: course\nmachines:\n  a: {base: mine, networks: [n], nested: true, disks: [{name: d, size: 7GiB}]}\n"
        "networks: {n: {subnet: 10.99.1.0/24}}\n",
        "bases/mine.yaml": base,
        "kickstarts/own.ks.j2": "%pre\nrm -rf /\n%end\n",
    }.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    shown = cli("lab", "import", str(source), "--dry-run").stdout
    for words in (
        "always 10.99.1.0/24",
        "disk d of 7 GiB, runs machines of its own",
        "template own.ks.j2 comes with the lab, for installers of new bases: 19 bytes",
        "reads, on this computer: /var/lib/pocketcloud/media/x.iso",
        "reads, on this computer: /etc/pocketcloud/key",
        "patch 1: ",
    ):
        assert words in shown, shown
    assert "rm -rf" not in shown
    loud = cli("lab", "import", str(source), "--dry-run", "-v").stdout
    assert "| rm -rf /" in loud
    assert "| +++ b/etc/shadow" in loud
    found = json.loads(cli("lab", "import", str(source), "--dry-run", "-o", "json").stdout)
    assert found["templates"] == {"own.ks.j2": "%pre\nrm -rf /\n%end\n"}
    assert "/etc/pocketcloud/key" in found["bases"][0]["reads"]
    assert "etc/shadow" in found["bases"][0]["definition"]["patches"][0]
    cli("kit", "init")
    asked = cli("lab", "import", str(source), "-o", "json")
    assert (asked.returncode, asked.stdout) == (2, "")
    assert "template own.ks.j2" in asked.stderr, "shown before the question"


def test_definitions_of_imported_labs_are_found_wherever_bases_are_named(cli: Cli) -> None:
    source = cli.folder / "src"
    for name, text in {
        "lab.yaml": "lab: course\nmachines:\n  a: {base: mine, networks: [n]}\nnetworks: {n: }\n",
        "bases/mine.yaml": (TOP / "bases/debian-12-installer.yaml")
        .read_text()
        .replace("base: debian-12-installer", "base: mine"),
        "kickstarts/debian.preseed.j2": "# the lab's own: {{ base | ks }}\n",
    }.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    cli("kit", "init")
    imported = cli("lab", "import", str(source), "-y")
    assert imported.returncode == 0
    assert imported.stdout.splitlines()[-1] == "next:  pocketcloud base build mine; pocketcloud lab up course"
    again = cli("lab", "import", str(source), "-y")
    assert again.stdout.splitlines()[-1].startswith("next:  pocketcloud base build mine;"), "known, and still not built"
    assert ("mine", "imported") in [
        (line.split()[0], line.split()[-1]) for line in cli("base", "list", "--available").stdout.splitlines()
    ]
    assert cli("base", "render", "mine").stdout == "# the lab's own: mine\n"
    mine = {"POCKETCLOUD_TEMPLATES": str(TOP / "kickstarts")}
    assert "the lab's own" not in cli("base", "render", "mine", env=mine).stdout, "the user's own come first"
    assert "is to keep base mine" in cli("cache", "add", "mine").stdout
    assert "is to keep base mine" in cli("cache", "add", "--lab", "course").stdout
    assert "course" in cli("cache", "list").stdout
    assert "Forgot" not in cli("cache", "prune", "-y").stdout


def test_check_of_a_board_and_a_lab_from_here(cli: Cli, tmp_path: Path) -> None:
    done = cli("check", "--profile", "pine64", "--lab", "demo", "--no-measure", "-o", "json")
    states = {check["id"]: check["state"] for check in json.loads(done.stdout)}
    assert (done.returncode, states["lab:demo"], states["kvm"]) == (0, "ok", "unknown")
    lab = tmp_path / "big.yaml"
    lab.write_text("lab: big\nmachines:\n  a: {base: debian-12, memory: 3GiB, ready: {console: x}}\n")
    big = cli("check", "--profile", "pine64", "--lab", str(lab), "--no-measure")
    assert big.returncode == 3
    assert big.stdout.splitlines()[-1] == "No: lab:big would not do on a pine64."
    assert "no lab nothing" in explained(cli("check", "--lab", "nothing", "--no-measure"), 4)


# -- completion and readers that are gone --------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(cli: Cli, shell: str) -> None:
    # click asks the bash there is for its version.
    done = cli(env={"_POCKETCLOUD_COMPLETE": f"{shell}_source"})
    assert done.returncode == 0
    assert f"_POCKETCLOUD_COMPLETE={shell}_complete" in done.stdout
    documented = (TOP / "docs" / "completion.md").read_text()
    assert f"_POCKETCLOUD_COMPLETE={shell}_source pocketcloud" in documented


def test_completion_knows_commands_and_options(cli: Cli) -> None:
    def complete(line: str) -> list[str]:
        words = line.split(" ")
        env = {"_POCKETCLOUD_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
        return [answer.partition(",")[2] for answer in cli(env=env).stdout.splitlines()]

    assert complete("pocketcloud l") == ["lab"]
    assert {"up", "reset", "destroy"} <= set(complete("pocketcloud lab "))
    assert complete("pocketcloud lab up --rec") == ["--reconfigure"]
    assert complete("pocketcloud lab list -o ") == ["table", "json"]


@pytest.mark.parametrize("arguments", ["--help", "lab schema", "profile list", "lab list", "lab up nothing"])
def test_a_reader_that_is_gone_is_no_bug(cli: Cli, arguments: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            cli.argv(*arguments.split()), stdout=writing, stderr=subprocess.PIPE, text=True, env=cli.env, check=False, timeout=60
        )
    finally:
        os.close(writing)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    # Where nothing is answered, the error counts, which is that there is no kit.
    assert done.returncode == (4 if "nothing" in arguments else 141)


@pytest.mark.parametrize(("arguments", "code"), [("kit nonsense", 2), ("lab up nothing", 4)])
def test_errors_that_nobody_reads_keep_their_code(cli: Cli, arguments: str, code: int) -> None:
    """As of a command whose ssh connection broke: neither a bug (1) nor the interpreter's own code for it (120)."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(cli.argv(*arguments.split()), stdout=writing, stderr=writing, env=cli.env, check=False, timeout=60)
    finally:
        os.close(writing)
    assert done.returncode == code


def test_what_was_fetched_for_bases_can_be_pruned(cli: Cli) -> None:
    cli("kit", "init")
    content = b"x" * 70000
    fetched = cli.kit / "media" / f"{hashlib.sha256(content).hexdigest()[:16]}-disc.iso"
    fetched.write_bytes(content)
    own = fetched.with_name(f"{'0' * 16}-mine.iso")
    own.write_bytes(content)
    assert "1 file that was fetched" in explained(cli("base", "prune", "--media"), 2)
    assert fetched.exists()
    assert f"Removed {fetched.name} (" in cli("base", "prune", "--media", "-y").stdout
    assert (fetched.exists(), own.exists()) == (False, True)
    assert "Nothing is kept" in cli("base", "prune", "--media").stdout
    for wrong in (("prune",), ("prune", "debian-12", "--all")):
        assert "which base?" in explained(cli("base", *wrong), 2)
    assert "is for all bases" in explained(cli("base", "prune", "debian-12", "--media"), 2)


def test_what_a_file_says_does_not_steer_the_terminal(cli: Cli) -> None:
    (cli.folder / "bad.yaml").write_text("lab: !%1b%5b2Jx a\nmachines: {a: {base: tiny, ready: {console: x}}}\n")
    said = explained(cli("lab", "export", "bad.yaml", "out"), 2)
    assert "got the tag" in said
    assert "\x1b" not in said
    assert "\x1b" not in explained(cli("lab", "export", "./\x1b[2Jx.yaml", "out"), 4)
