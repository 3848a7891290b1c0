"""Documents: what a lab file may say, and that whatever else it says ends in one explained refusal."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from pocketcloud.documents import dump_json, load_lab, parse_json, parse_lab, parse_yaml
from pocketcloud.errors import BadDocument, Fault, NotFound
from pocketcloud.model.lab import Attachment, Lab, LabNetwork, NetworkKind, ResetKind
from pocketcloud.model.names import Name
from pocketcloud.model.profile import Profile
from tests.simulation import lab, machine

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


def faults(text: str) -> list[Fault]:
    with pytest.raises(BadDocument) as bad:
        parse_lab(text, "lab.yaml")
    assert bad.value.exit_code == 2
    return list(bad.value.faults)


def the_fault(text: str) -> Fault:
    (fault,) = faults(text)
    return fault


# -- what is right -------------------------------------------------------------------------------------------------------


def test_the_short_form_and_the_long_one() -> None:
    short = parse_lab(GOOD, "f")
    assert short.machines[Name("web")].networks == {"front": Attachment()}
    assert parse_lab(GOOD.replace("[front]", "{front: }"), "f") == short
    long = parse_lab(GOOD.replace("[front]", "{front: {address: 10}}"), "f")
    assert long.machines[Name("web")].networks == {"front": Attachment(10)}
    assert parse_lab(GOOD.replace("{kind: nat}", ""), "f") == short


@pytest.mark.parametrize(
    ("written", "title"),
    [
        ("22:22", "22:22"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("off", "off"),
        ("2024-01-01", "2024-01-01"),
        ("'1e3'", "1e3"),
        ('"a\\tb"', "a\tb"),
        ("|\n  two\n  lines\n", "two\nlines\n"),
        ("ж 漢 😀", "ж 漢 😀"),
        ("!!str 5", "5"),
    ],
)
def test_words_are_those_of_yaml_1_2(written: str, title: str) -> None:
    assert parse_lab(f"{CONSOLE}title: {written}\n", "f").title == title


@pytest.mark.parametrize(("written", "number"), [("0o17", 15), ("0x10", 16), ("010", 10), ("+12", 12), ("1_2", 12), ("0b101", 5)])
def test_numbers_are_those_of_yaml_1_2(written: str, number: int) -> None:
    text = GOOD.replace("[front]", f"{{front: {{address: {written}}}}}")
    assert parse_lab(text, "f").machines[Name("web")].networks[Name("front")].address == number


def test_anchors_stand_for_what_they_name() -> None:
    text = "lab: x\nmachines:\n  a: &m {base: tiny, memory: 64MiB, ready: {console: x}}\n  b: *m\n"
    machines = parse_lab(text, "f").machines
    assert machines[Name("a")] == machines[Name("b")]
    again = text + "  c: &m {base: tiny, memory: 99MiB, ready: {console: x}}\n  d: *m\n"
    assert parse_lab(again, "f").machines[Name("d")].memory == 99 << 20


@pytest.mark.parametrize(
    "turn", [lambda text: "\ufeff" + text, lambda text: text.replace("\n", "\r\n"), lambda text: f"---\n{text}...\n"]
)
def test_editors_of_all_systems_write_it(turn: object) -> None:
    assert callable(turn)
    assert parse_lab(turn(GOOD), "f") == parse_lab(GOOD, "f")


# -- one rule at a time --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "path", "words"),
    [
        (GOOD + "machnes: {}\n", 8, "machnes", "did you mean `machines`?"),
        (GOOD.replace("base: debian-12", "bse: x"), 4, "machines.web.bse", "did you mean `base`?"),
        (
            CONSOLE + "    memory: lots\n",
            6,
            "machines.web.memory",
            "expected a size with its unit, as 512MiB or 10GiB, got 'lots'",
        ),
        (CONSOLE + "    vcpus: two\n", 6, "machines.web.vcpus", "expected a whole number, got 'two'"),
        (CONSOLE + "    vcpus: 1.5\n", 6, "machines.web.vcpus", "expected a whole number, got 1.5"),
        (CONSOLE + "    vcpus: true\n", 6, "machines.web.vcpus", "expected a whole number, got true"),
        (CONSOLE + "    vcpus: 0\n", 6, "machines.web.vcpus", "expected 1 to 512, got 0"),
        (CONSOLE + "    base: tiny\n", 6, "machines.web.base", "duplicate: the same name stands in line 4"),
        (CONSOLE + "  web: {base: x}\n", 6, "machines.web", "duplicate: the same name stands in line 3"),
        (GOOD.replace("[front]", "[front, front]"), 5, "machines.web.networks[1]", "duplicate: front stands here twice"),
        (GOOD.replace("[front]", "[frnt]"), 5, "machines.web.networks.frnt", "no such network (the lab has: front)"),
        (GOOD.replace("[front]", "{frnt: {}}"), 5, "machines.web.networks.frnt", "no such network (the lab has: front)"),
        (GOOD.split("networks:\n")[0], 5, "machines.web.networks.front", "no such network (the lab declares none)"),
        (GOOD.replace("[front]", "[1]"), 5, "machines.web.networks[0]", "expected a network's name, got 1"),
        (GOOD.replace("[front]", "front"), 5, "machines.web.networks", "expected a mapping (key: value), got 'front'"),
        (GOOD.replace("[front]", "{front: {address: 255}}"), 5, "machines.web.networks.front", "2 to 254, got 255"),
        (GOOD.replace("nat", "bright"), 7, "networks.front.kind", "'nat', 'isolated', 'routed' or 'bridge', got 'bright'"),
        (
            GOOD.replace("nat", "nat, subnet: 8.8.8.0/24"),
            7,
            "networks.front.subnet",
            "a private /24, as 10.99.1.0/24, got 8.8.8.0/24",
        ),
        (GOOD.replace("nat", "nat, subnet: 10.9.0.0/16"), 7, "networks.front.subnet", "a private /24"),
        *(
            (GOOD.replace("nat", f"nat, subnet: {net}"), 7, "networks.front.subnet", f"got {net} (of 10.0.0.0/8, 172.16.0.0/12,")
            for net in ("127.0.0.0/24", "0.0.0.0/24", "169.254.169.0/24", "240.0.0.0/24", "192.0.2.0/24", "198.20.0.0/24")
        ),
        (GOOD.replace("nat", "nat, subnet: 198.19.7.0/24"), 0, "", ""),
        (GOOD.replace("nat", "nat, subnet: some"), 7, "networks.front.subnet", "Expected 4 octets in 'some'"),
        (GOOD.replace("    networks: [front]\n", ""), 3, "machines.web", "needs a network"),
        (CONSOLE.replace("{console: x}", "{console: '('}"), 5, "machines.web.ready.console", "is not a regular expression"),
        (CONSOLE.replace("console: x", "console: x, within: 5"), 0, "", ""),
        (CONSOLE.replace("console: x", "console: x, within: 25h"), 5, "machines.web.ready.within", "at most 24h"),
        (CONSOLE.replace("console: x", "console: x, ssh: yes"), 5, "machines.web.ready.ssh", "expected true or false, got 'yes'"),
        (CONSOLE.replace("console: x", "tcp: 70000"), 5, "machines.web.ready.tcp", "1 to 65535, got 70000"),
        (CONSOLE + "    disks: [{name: root, size: 1GiB}]\n", 6, "machines.web.disks[0].name", "the system disk's name"),
        (
            CONSOLE + "    disks: [{name: seed, size: 1GiB}]\n",
            6,
            "machines.web.disks",
            "could not be told from the disk with the",
        ),
        (
            CONSOLE + f"    disks: [{{name: {'a' * 20}b, size: 1GiB}}, {{name: {'a' * 20}c, size: 1GiB}}]\n",
            6,
            "machines.web.disks",
            f"{'a' * 20}c could not be told from {'a' * 20}b",
        ),
        (
            CONSOLE + "    disks: [{name: d, size: 1GiB}, {name: d, size: 1GiB}]\n",
            6,
            "machines.web.disks[1].name",
            "disks[0] has this name",
        ),
        (CONSOLE + "    nested: yes\n", 6, "machines.web.nested", "expected False, True or 'emulate', got 'yes'"),
        (CONSOLE + "    secure_boot: 1\n", 6, "machines.web.secure_boot", "expected true or false, got 1"),
        (CONSOLE + "    disks: {name: d}\n", 6, "machines.web.disks", "expected a list, got a mapping"),
        (CONSOLE + "    disks: [{name: d}]\n", 6, "machines.web.disks[0].size", "missing"),
        (GOOD + "    provision: []\n", 8, "", "not YAML"),
        (GOOD.replace("lab: demo\n", ""), 1, "lab", "missing"),
        (GOOD.replace("lab: demo", "lab: ~"), 1, "lab", "expected a name, got nothing"),
        ("lab: x\nmachines: {}\n", 2, "machines", "expected at least one machine"),
        ("lab: x\nmachines:\n", 2, "machines", "expected a mapping (key: value), got nothing"),
        ("", 1, "", "the file is empty"),
        ("# only a comment\n", 1, "", "the file is empty"),
        ("- a\n", 1, "", "expected a mapping (key: value), got a list"),
        ("lab\n", 1, "", "expected a mapping (key: value), got 'lab'"),
        ("lab: [\n", 2, "", "not YAML"),
        ("lab: x\n\tmachines: {}\n", 2, "", "not YAML"),
        (GOOD + "---\n" + GOOD, 8, "", "expected a single document"),
        ("%YAML 1.1\n---\n" + GOOD, 1, "", "expected YAML 1.2"),
        ("? [a]\n: b\n" + GOOD, 1, "", "expected a plain word as key"),
        (GOOD + 'title: "\\ud800"\n', 8, "title", "lone surrogate"),
        (GOOD + "title: !!python/object/apply:os.system [id]\n", 8, "title", "expected text, got a list"),
        (GOOD + "title: !secret x\n", 8, "title", "expected a plain value, got the tag !secret"),
    ],
)
def test_a_rule_names_line_key_and_what_was_expected(text: str, line: int, path: str, words: str) -> None:
    if not words:
        assert isinstance(parse_lab(text, "lab.yaml"), Lab)
        return
    found = [fault for fault in faults(text) if words in fault.message]
    assert found, faults(text)
    assert (found[0].line, found[0].path) == (line, path)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("{run: a, write: /b, content: c}", "expected either `write:`"),
        ("{}", "expected either `write:`"),
        ("{write: /a}", "needs `content:`"),
        ("{write: a, content: b}", "expected an absolute path, got 'a'"),
        ("{run: a, content: b}", "goes with `write:`"),
        ("{write: /a, content: b, mode: '0999'}", "expected an octal mode"),
        ("{write: /a, content: b, mode: 0644}", "expected text, got 644"),
        ("{write: /a, content: 5}", "expected text, got 5"),
        ("run", "expected a mapping (key: value), got 'run'"),
    ],
)
def test_provision_steps(step: str, words: str) -> None:
    machines = GOOD.partition("networks:\n  front")[0]
    fault = the_fault(f"{machines}    provision:\n      - {step}\nnetworks: {{front: }}\n")
    assert words in fault.message
    assert fault.line == 7
    assert fault.path.startswith("machines.web.provision[0]")


def test_two_machines_cannot_have_one_address() -> None:
    machines = "".join(f"  {name}: {{base: t, networks: {{n: {{address: 9}}}}}}\n" for name in "ab")
    text = f"lab: x\nmachines:\n{machines}networks: {{n: }}\n"
    assert the_fault(text) == Fault(4, "machines.b.networks.n.address", "duplicate: 9 is a's on this network")


@pytest.mark.parametrize(
    "memory",
    [
        *(
            "-1",
            "0",
            "lots",
            "10 TiB",
            "10TiB",
            "1e400",
            ".inf",
            "-.inf",
            ".nan",
            "true",
            "~",
            "[]",
            "{}",
            "512MB",
            "1.5",
            "15MiB",
        ),
        *(
            "1e9",
            "512 mib",
            "512MiBs",
            "9" * 400,
            "0x" + "f" * 6000,
            f"'{'9' * 400}MiB'",
            "٣MiB",
            "'512MiB '",
            "!!int abc",
            "1023",
        ),
    ],
)
def test_memory_that_cannot_be_meant(memory: str) -> None:
    fault = the_fault(f"{CONSOLE}    memory: {memory}\n")
    assert (fault.line, fault.path) == (6, "machines.web.memory")
    assert "expected" in fault.message
    assert len(fault.message) < 200


@pytest.mark.parametrize(
    "name",
    [
        "a b",
        "a/b",
        "../a",
        "a.b",
        "A",
        "-a",
        "1a",
        "a_b",
        "a'b",
        'a"b',
        "a" * 32,
        "a" * 300,
        "ж",
        "a漢",
        "a\n",
        "\n",
        " a",
        "",
        "a\x00",
        "a\x1b[31m",
        "%s",
    ],
)
def test_names_that_are_none(name: str) -> None:
    quoted = json.dumps(name, ensure_ascii=True)
    for text, path in (
        (GOOD.replace("lab: demo", f"lab: {quoted}"), "lab"),
        (GOOD.replace("  web:", f"  {quoted}:"), "machines."),
        (GOOD.replace("debian-12", quoted), "machines.web.base"),
        (GOOD.replace("[front]", f"[{quoted}]").replace("  front:", f"  {quoted}:"), "networks."),
    ):
        found = [fault for fault in faults(text) if "is not a name" in fault.message]
        assert found
        assert all(fault.line > 0 for fault in found)
        assert any(fault.path.startswith(path) for fault in found)
        said = "".join(f"{fault.path}{fault.message}" for fault in found)
        assert said.isprintable(), "a name from a file could steer the terminal"
        assert len(said) < 600


def test_all_faults_are_told_at_once_in_the_order_of_lines() -> None:
    text = """\
lab: Demo
title: 5
machines:
  web:
    base: debian-12
    memory: lots
    vcpus: 0
    networks: [frnt, back]
    colour: red
  web: {base: x}
  "db 1": {networks: {back: {address: 1}}}
networks:
  back: {kind: bright}
"""
    found = faults(text)
    assert [fault.line for fault in found] == sorted(fault.line for fault in found)
    assert {(fault.line, fault.path) for fault in found} >= {
        (1, "lab"),
        (2, "title"),
        (6, "machines.web.memory"),
        (8, "machines.web.networks.frnt"),
        (9, "machines.web.colour"),
        (10, "machines.web"),
        (11, "machines.db 1"),
        (11, "machines.db 1.base"),
        (13, "networks.back.kind"),
    }
    with pytest.raises(BadDocument) as bad:
        parse_lab(text, "labs/x.yaml")
    assert all(re.match(r"labs/x\.yaml:\d+: ", line) for line in bad.value.message.splitlines())


def test_faults_without_end_are_cut_off_with_their_number() -> None:
    found = faults("lab: x\nmachines:\n" + "".join(f"  m{i}: {{base: B, ready: {{console: x}}}}\n" for i in range(200)))
    assert len(found) == 31
    assert found[-1].message == "and 170 more"


BRIDGED = """lab: demo
machines:
  web:
    base: tiny
    ready: {console: hello}
    networks: {out: {}}
networks:
  out: {kind: bridge, bridge: br0}
"""


def test_a_bridge_of_the_host_is_named_and_has_nothing_of_ours() -> None:
    assert parse_lab(BRIDGED, "f").networks["out"] == LabNetwork(NetworkKind.BRIDGE, bridge="br0")  # type: ignore[index] # a Name is a str
    for change, path, words in (
        ("{kind: bridge}", "networks.out.bridge", "names a bridge of the host"),
        ("{bridge: br0}", "networks.out.bridge", "for networks of kind bridge and for no others"),
        ("{kind: bridge, bridge: br0, subnet: 10.99.1.0/24}", "networks.out.subnet", "who serves on the bridge gives addresses"),
        ("{kind: bridge, bridge: br0, lan: true}", "networks.out.lan", "nothing is to be allowed"),
        ("{kind: bridge, bridge: ../x}", "networks.out.bridge", "is no name of an interface"),
        ("{kind: bridge, bridge: averyverylongname}", "networks.out.bridge", "is no name of an interface"),
        ("{kind: bridge, bridge: $(id)}", "networks.out.bridge", "is no name of an interface"),
        ("{kind: bridge, bridge: -f}", "networks.out.bridge", "is no name of an interface"),
        ('{kind: bridge, bridge: "br\\e[2J"}', "networks.out.bridge", "is no name of an interface"),
    ):
        fault = the_fault(BRIDGED.replace("{kind: bridge, bridge: br0}", change))
        assert fault.path == path
        assert words in fault.message
    addressed = the_fault(BRIDGED.replace("out: {}", "out: {address: 20}"))
    assert (addressed.path, addressed.line) == ("machines.web.networks.out.address", 6)


@pytest.mark.parametrize(
    "change", ["", "ready: {ssh: true}", "ready: {tcp: 22}", "ready: {console: x, command: y}", "PROVISION", "PACKAGES"]
)
def test_a_machine_that_is_reached_needs_a_network_of_ours(change: str) -> None:
    more = {"PROVISION": "provision: [{run: a}]", "PACKAGES": "packages: [vim]"}
    ready = f"ready: {{console: x}}\n    {more[change]}" if change in more else change
    text = BRIDGED.replace("ready: {console: hello}", ready)
    fault = the_fault(text)
    assert fault.path == "machines.web.networks"
    assert "on bridges alone nobody here knows its address" in fault.message
    assert parse_lab(text.replace("{out: {}}", "{out: {}, front: {}}") + "  front: {}\n", "f").networks["front"] == LabNetwork()  # type: ignore[index] # a Name is a str


# -- files ---------------------------------------------------------------------------------------------------------------


def file_fault(path: Path) -> str:
    with pytest.raises(BadDocument) as bad:
        load_lab(path)
    assert str(path) in bad.value.message
    assert len(bad.value.faults) == 1
    return bad.value.faults[0].message


@pytest.mark.timeout(10)
def test_files_that_are_none(tmp_path: Path) -> None:
    lab_file = tmp_path / "lab.yaml"
    lab_file.write_bytes(b"")
    assert file_fault(lab_file) == "the file is empty"
    lab_file.write_bytes(b"\x7fELF\x02\x01\x01\xff\xfe")
    assert file_fault(lab_file) == "not UTF-8 text (byte 7)"
    lab_file.write_bytes(GOOD.encode("utf-16"))
    assert file_fault(lab_file) == "not UTF-8 text (byte 0)"
    lab_file.write_bytes(b"lab: a\x00b\n")
    assert "not YAML" in file_fault(lab_file)
    lab_file.unlink()
    lab_file.mkdir()
    assert file_fault(lab_file) == "expected a file"


@pytest.mark.timeout(10)
def test_a_file_of_a_gigabyte_is_refused_unread(tmp_path: Path) -> None:
    lab_file = tmp_path / "lab.yaml"
    with lab_file.open("wb") as file:
        file.truncate(1 << 30)
    assert file_fault(lab_file).startswith("1073741824 bytes; expected at most 262144")


@pytest.mark.timeout(10)
def test_a_pipe_nobody_writes_to_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lab.yaml")
    assert file_fault(tmp_path / "lab.yaml") == "expected a file"


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    for path in (tmp_path / "no.yaml", tmp_path / "no" / "lab.yaml", tmp_path / "gone.yaml"):
        (tmp_path / "gone.yaml").unlink(missing_ok=True)
        (tmp_path / "gone.yaml").symlink_to("nowhere")
        with pytest.raises(NotFound, match="no such file"):
            load_lab(path)
    assert "too long" in file_fault(tmp_path / ("x" * 300 + ".yaml"))
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    assert "cannot be read" in file_fault(tmp_path / "loop.yaml")


# -- JSON ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "1e999", '"\\ud800"', "[" * 150, "[" * 900, "[" * 100_000, '{"lab": ' + "9" * 5000 + "}", "\x00"],
)
def test_json_that_is_none_of_ours_is_refused(text: str) -> None:
    for whole in (text, text + "]" * text.count("[")):
        with pytest.raises(BadDocument):
            parse_json(whole, Lab, "f")


def test_a_lab_survives_its_json_with_the_order_of_its_networks() -> None:
    made = lab(("z", "a", "m"), web=machine("z", "a", "m", provision="x", disks=["one", "two"], address=9), b=machine("m"))
    again = parse_json(dump_json(made), Lab, "f")
    assert again == made
    assert list(again.machines) == ["web", "b"]
    assert list(again.machines[Name("web")].networks) == ["z", "a", "m"]
    assert dump_json(again) == dump_json(made)


@pytest.mark.parametrize(("said", "is_to"), [("false", False), ("true", True), ("emulate", "emulate")])
def test_nested_is_yes_no_or_emulate(said: str, is_to: object) -> None:
    made = parse_lab(CONSOLE + f"    nested: {said}\n", "f")
    assert made.machines[Name("web")].nested == is_to
    assert made.machines[Name("web")].runs_machines is (said != "false")
    assert parse_json(dump_json(made), Lab, "f") == made


def test_resets_are_cold_or_warm() -> None:
    assert parse_lab(CONSOLE, "f").reset is ResetKind.COLD
    made = parse_lab(CONSOLE + "reset: warm\n", "f")
    assert made.reset is ResetKind.WARM
    assert parse_json(dump_json(made), Lab, "f") == made
    with pytest.raises(BadDocument, match="reset: expected 'cold' or 'warm', got 'hot'"):
        parse_lab(CONSOLE + "reset: hot\n", "f")


# -- other documents ----------------------------------------------------------------------------------------------------


def test_other_documents_are_as_strict() -> None:
    with pytest.raises(BadDocument, match="f:1: profil: unknown key; did you mean `profile`"):
        parse_yaml("profil: x\n", Profile, "f")


def test_networks_need_no_settings() -> None:
    assert parse_lab(GOOD, "f").networks == {"front": LabNetwork()}


# -- checks --------------------------------------------------------------------------------------------------------------

CHECKED = GOOD.replace("networks:\n  front", "  alone:\n    base: tiny\n    ready: {console: x}\nnetworks:\n  front")


def test_checks_are_read_with_their_defaults() -> None:
    found = parse_lab(CHECKED + "checks:\n- {name: up, machine: web, run: 'curl -f localhost'}\n", "f").checks
    assert [(c.name, c.machine, c.run, c.points, c.hint, c.within) for c in found] == [
        ("up", "web", "curl -f localhost", 1, "", 30.0)
    ]
    assert parse_lab(GOOD, "f").checks == ()


@pytest.mark.parametrize(
    ("check", "path", "said"),
    [
        ("{name: up, machine: db, run: x}", "checks[0].machine", "no such machine (the lab has: web, alone)"),
        ("{name: up, machine: alone, run: x}", "checks[0].machine", "on no network"),
        ("{name: Up, machine: web, run: x}", "checks[0].name", "is not a name"),
        ("{name: up, machine: web, run: ' '}", "checks[0].run", "expected a command line"),
        ("{name: up, machine: web, run: x, points: -1}", "checks[0].points", "expected 0 to 1000"),
        ("{name: up, machine: web, run: x, within: 0s}", "checks[0].within", "more than 0"),
        ("{name: up, machine: web, runs: x}", "checks[0].run", "missing"),
        ("{name: up, machine: web}", "checks[0].run", "missing"),
        ("7", "checks[0]", "expected a mapping"),
    ],
)
def test_bad_checks(check: str, path: str, said: str) -> None:
    found = faults(f"{CHECKED}checks:\n- {check}\n")
    assert any(fault.path == path and said in fault.message for fault in found), found


def test_checks_have_names_of_their_own() -> None:
    one = "- {name: up, machine: web, run: x}\n"
    assert the_fault(f"{GOOD}checks:\n{one}{one}") == Fault(10, "checks[1].name", "duplicate: checks[0] has this name")


# -- files beside it -----------------------------------------------------------------------------------------------------

FROM = GOOD.replace("    networks:", "    provision:\n    - {write: /etc/motd, from: PLACE}\n    networks:")


@pytest.fixture
def lab_folder(tmp_path: Path) -> Path:
    """A folder with files, links and worse in it, and a secret beside it."""
    folder = tmp_path / "a lab"
    (folder / "files").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (folder / "files/motd").write_text("welcome\n")
    (folder / "files/binary").write_bytes(b"\x7fELF\xff")
    (folder / "files/large").write_bytes(b"x" * ((1 << 20) + 1))
    (folder / "files/link").symlink_to("motd")
    (folder / "files/out").symlink_to("../../secret")
    (folder / "up").symlink_to("..")
    os.mkfifo(folder / "files/pipe")
    return folder


def test_a_file_is_taken_from_beside(lab_folder: Path) -> None:
    (lab_folder / "lab.yaml").write_text(FROM.replace("PLACE", "files/motd"))
    inline = FROM.replace("from: PLACE", '"content": "welcome\\n"')
    found = load_lab(lab_folder / "lab.yaml")
    assert found == parse_lab(inline, "f")
    assert parse_json(dump_json(found), Lab, "record") == found


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("/etc/passwd", "an absolute path"),
        ("../secret", "leads out"),
        ("files/../../secret", "leads out"),
        ("./files/motd", "a plain path"),
        ("files//motd", "a plain path"),
        ("files/out", "a link"),
        ("files/link", "a link"),
        ("up/secret", "a link"),
        ("files/motd/x", "a link"),
        ("files/pipe", "not a plain file"),
        ("files", "not a plain file"),
        ("files/none", "no such file"),
        ("files/binary", "not UTF-8"),
        ("files/large", "at most 1 MiB"),
        ("''", "not a path"),
        ("7", "expected the path of a file"),
        ("[a]", "expected the path of a file"),
        ("files/motd, content: x", "in place of `content:`"),
    ],
)
def test_files_that_are_not_taken(lab_folder: Path, place: str, said: str) -> None:
    (lab_folder / "lab.yaml").write_text(FROM.replace("PLACE", place))
    with pytest.raises(BadDocument) as bad:
        load_lab(lab_folder / "lab.yaml")
    (fault,) = bad.value.faults
    assert fault.path.startswith("machines.web.provision[0]")
    assert said in fault.message
    assert "secret" not in fault.message.replace("../secret", "").replace("up/secret", "")


def test_files_go_with_write_have_a_folder_and_a_bound_in_all(lab_folder: Path) -> None:
    assert "goes with `write:`" in the_fault(FROM.replace("write: /etc/motd, from: PLACE", "run: x, from: y")).message
    assert "no folder" in the_fault(FROM).message
    (lab_folder / "files/most").write_bytes(b"x" * (1 << 20))
    step = "    - {write: /etc/motd, from: files/most}\n"
    (lab_folder / "lab.yaml").write_text(FROM.replace("    - {write: /etc/motd, from: PLACE}\n", step * 5))
    with pytest.raises(BadDocument, match=r"provision\[4\]\.from: the files of this lab are more than 4 MiB"):
        load_lab(lab_folder / "lab.yaml")
