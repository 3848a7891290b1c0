"""Answers: what each build puts in, secrets, what is wrong in a template, the user's own templates, whole answers at random."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from pocketcloud.bases import answers, definitions
from pocketcloud.errors import BadDocument, HostLacks, NotFound
from pocketcloud.model.base import Arch, InstallDefinition, Registration
from pocketcloud.quoting import unfit
from pocketcloud.resources import overlaid, shipped
from tests.answer_files import (
    PATCH,
    hostile,
    hostile_site,
    kickstart_version,
    public_site,
    read_kickstart,
    read_preseed,
    read_yaml,
    registered,
    script_in,
    steps_in,
    text_of,
    written_by,
)

SEED = int(os.environ.get("POCKETCLOUD_SEED") or 0)
TOP = Path(__file__).resolve().parents[2]


def install(name: str) -> InstallDefinition:
    definition = definitions.find(name, shipped("bases"))
    assert isinstance(definition, InstallDefinition)
    return definition


FEDORA, RHEL, DEBIAN, UBUNTU = (install(name) for name in ("fedora-44", "rhel-10", "debian-13-installer", "ubuntu-2604"))


# -- what is particular to a build ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("definition", [FEDORA, RHEL, DEBIAN, UBUNTU], ids=lambda d: d.base)
def test_what_makes_another_base_of_it(definition: InstallDefinition) -> None:
    ours = shipped("kickstarts")

    def inputs(made_of: InstallDefinition, arch: Arch = Arch.X86_64) -> bytes:
        ((_, content),) = answers.inputs(made_of, arch, ours)
        return content

    kept = inputs(definition)
    assert kept == inputs(definition)
    others = [
        inputs(dataclasses.replace(definition, post=("true",))),
        inputs(dataclasses.replace(definition, patches=(PATCH,))),
        inputs(dataclasses.replace(definition, packages=("nano",))),
        inputs(definition, Arch.AARCH64),
    ]
    assert len({kept, *others}) == 5


def test_a_build_says_its_own_id_where_it_is_told_to() -> None:
    site = dataclasses.replace(
        public_site(FEDORA, Arch.X86_64), build_id="mine", port="other.port", console="hvc0", disk="nvme0n1"
    )
    text = text_of(FEDORA, Arch.X86_64, site).text
    assert "echo 'OK mine' > /dev/virtio-ports/other.port" in text
    assert "console=tty0 console=hvc0,115200" in text
    handler = read_kickstart(text, "F44")
    assert handler.ignoredisk.onlyuse == ["nvme0n1"]
    assert "grub2-install --target=i386-pc /dev/nvme0n1" in script_in(FEDORA, text_of(FEDORA, Arch.X86_64, site))


def test_trees_and_mirrors_are_spelled_as_the_distribution_has_them() -> None:
    assert answers.site(FEDORA, Arch.AARCH64, "x").tree.endswith("/aarch64/os/")
    debian = dataclasses.replace(DEBIAN, tree="http://example.com/{arch}")
    assert answers.site(debian, Arch.AARCH64, "x").tree == "http://example.com/arm64"


def test_a_mirror_by_https_is_asked_for_as_such() -> None:
    site = dataclasses.replace(public_site(DEBIAN, Arch.X86_64), apt_mirror="https://example.com:8443/deb/")
    said = read_preseed(text_of(DEBIAN, Arch.X86_64, site).text)
    assert said["mirror/protocol"][2] == "https"
    assert said["mirror/https/hostname"][2] == "example.com:8443"
    assert said["mirror/https/directory"][2] == "/deb"


def test_debians_installer_is_led_to_a_cache_that_has_packages_and_nothing_else() -> None:
    """No way out and nobody who knows names is no question; apt asks for no sources and no translations, and what told it so goes
    before the end."""
    definition = install("debian-13-installer")
    plain = answers.site(definition, Arch.X86_64, "1")
    alone = read_preseed(answers.render(definition, Arch.X86_64, plain).text)
    said = read_preseed(answers.render(definition, Arch.X86_64, dataclasses.replace(plain, proxy="http://192.0.2.1:3143")).text)
    new = {question: value for question, (_, _, value) in said.items() if alone.get(question) != said[question]}
    command = new.pop("preseed/early_command")
    assert new == {
        "mirror/http/proxy": "http://192.0.2.1:3143",
        "netcfg/no_default_route": "true",
        "netcfg/get_nameservers": "",
        "apt-setup/enable-source-repositories": "false",
    }
    files = written_by(command)
    hook, step = files["/usr/lib/base-installer.d/05pocketcloud"], files["/usr/lib/finish-install.d/94zpocketcloud"]
    (file,) = [line.split()[2] for line in hook.splitlines() if line.startswith("cat > ")]
    assert "Languages" in hook
    assert f"rm -f {file}\n" in step
    assert "base-installer.d" not in alone["preseed/early_command"][2]


def test_everything_but_x86_has_ubuntus_other_mirror() -> None:
    document = read_yaml(text_of(UBUNTU, Arch.AARCH64, public_site(UBUNTU, Arch.AARCH64)).text, (1, 1))
    assert document["autoinstall"]["apt"]["mirror-selection"] == {"primary": [{"uri": "http://ports.ubuntu.com/ubuntu-ports"}]}
    script = script_in(UBUNTU, text_of(UBUNTU, Arch.AARCH64, public_site(UBUNTU, Arch.AARCH64)))
    assert "archive.ubuntu.com" not in script
    assert script.count("ports.ubuntu.com") == 2


def test_a_disc_is_the_source_where_there_is_no_tree() -> None:
    by_disc = dataclasses.replace(FEDORA, tree="", repos={}, media=RHEL.media)
    text = text_of(by_disc, Arch.X86_64, public_site(by_disc, Arch.X86_64)).text
    assert re.findall(r"^(?:url|cdrom|rhsm)\b.*$", text, re.MULTILINE) == ["cdrom"]


# -- secrets ----------------------------------------------------------------------------------------------------------------


def test_secrets_are_masked_however_they_are_quoted() -> None:
    for definition in (RHEL, FEDORA, DEBIAN, UBUNTU):
        site = dataclasses.replace(
            hostile_site(definition, Arch.X86_64),
            proxy="http://me:pa%25ss'w0rd@10.0.0.1:3128",
            tree=definition.tree and "https://you:other-secret@example.com/os/",
            activation_key="1:ke'y\"wi-th" if definition.registration else "",
        )
        answer = text_of(definition, Arch.X86_64, site)
        assert "w0rd" in answer.text
        for part in ("w0rd", "other-secret", "ke'y", "wi-th"):
            assert part not in answer.shown.split("\n%packages")[0].split("late-commands")[0].split("preseed/early_command")[0]
        for shown in (repr(site), repr(answer), f"{answer}"):
            assert not [part for part in ("w0rd", "other-secret", "ke'y") if part in shown]


def test_what_base_render_prints_needs_no_secret() -> None:
    text = answers.preview(RHEL, Arch.X86_64, shipped("kickstarts"))
    assert "rhsm --organization=ORGANIZATION --activation-key='********'" in text
    mine = dataclasses.replace(RHEL, registration=Registration("/nowhere", "777"))
    assert "--organization=777 --activation-key='********'" in answers.preview(mine, Arch.X86_64, shipped("kickstarts"))


def test_an_error_of_a_template_does_not_tell_a_secret(tmp_path: Path) -> None:
    (tmp_path / "anaconda.ks.j2").write_text("{{ {}[registration[0].key] | ks }}\n", encoding="utf-8")
    site = dataclasses.replace(public_site(RHEL, Arch.X86_64), activation_key="1:very-secret")
    with pytest.raises(BadDocument, match=r"\*\*\*\*") as bad:
        answers.render(RHEL, Arch.X86_64, site, tmp_path)
    assert "very-secret" not in str(bad.value)


def test_the_activation_key_comes_from_a_file_of_root_alone(tmp_path: Path) -> None:
    path = tmp_path / "etc/pocketcloud/rhel-activation-key"
    with pytest.raises(NotFound, match=r"no file .*rhel-activation-key") as missing:
        answers.activation_key(RHEL, tmp_path)
    assert "chmod 600" in missing.value.hint
    path.parent.mkdir(parents=True)
    path.write_text("12345:very-secret\n")
    path.chmod(0o644)
    with pytest.raises(HostLacks, match="others can read") as open_to_all:
        answers.activation_key(RHEL, tmp_path)
    path.chmod(0o600)
    assert answers.activation_key(RHEL, tmp_path) == "12345:very-secret"
    assert answers.activation_key(FEDORA, tmp_path) == ""
    for wrong in ("", "very-secret", "12345:", "1:two words", "1:x\n2:very-secret"):
        path.write_text(wrong)
        with pytest.raises(BadDocument, match="expected one line") as bad:
            answers.activation_key(RHEL, tmp_path)
        assert "secret" not in str(bad.value)
    assert "secret" not in str(open_to_all.value)
    named = dataclasses.replace(RHEL, registration=Registration("/etc/pocketcloud/rhel-activation-key", "12345"))
    path.write_text("only-the-key\n")
    assert answers.activation_key(named, tmp_path) == "only-the-key"


def test_there_is_no_registration_without_a_key() -> None:
    with pytest.raises(HostLacks, match="activation key"):
        text_of(RHEL, Arch.X86_64, dataclasses.replace(public_site(RHEL, Arch.X86_64), activation_key=""))


# -- templates that are wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a\n{% for x in %}\n", 2, "Expected an expression"),
        ("a\nb\n{{ nothing_of_this_name }}\n", 3, "'nothing_of_this_name' is undefined"),
        ("a\n\n{{ base.nothing }}\n", 3, "has no attribute 'nothing'"),
        ("{{ title }}\n", 1, "give it the filter of its place: | sh"),
        ("a\n{{ title | nofilter }}\n", 2, "No filter named 'nofilter'"),
        ("a\n\n\n{{ post[0] | ks }}\n", 4, "a line break cannot stand in a value here"),
        ("{% include 'none.j2' %}\n", 1, "no template 'none.j2' to include"),
        ("a\n{% include 'fedora.j2' %}\n", 2, "includes itself"),
        ("a\n{{ 1 / 0 }}\n", 2, "division by zero"),
        ("{{ ''.__class__.__mro__ }}\n", 1, "is unsafe"),
        ("{{ title.format.__globals__ }}\n", 1, "is unsafe"),
        ("a\n{% for n in range(900000) %}x{% endfor %}\n", 2, "Range too big"),
        ("a\n{% for n in range(99999) %}{{ 'x' | sh }}          {% endfor %}\n", 0, "more than 1048576 characters"),
        ("{% if x %}\n", 1, "Unexpected end of template"),
        ("\n{{ post.append('x') }}\n", 2, "is unsafe"),
        ("\n{{ title | ks(1) }}\n", 2, "takes 1 positional argument"),
    ],
)
def test_an_error_names_file_and_line_of_the_template(text: str, line: int, words: str, tmp_path: Path) -> None:
    (tmp_path / "fedora.j2").write_text(text, encoding="utf-8")
    definition = dataclasses.replace(FEDORA, template="fedora.j2", post=("a\nb",), title="two words")
    with pytest.raises(BadDocument) as bad:
        answers.render(definition, Arch.X86_64, public_site(definition, Arch.X86_64), tmp_path)
    (fault,) = bad.value.faults
    assert words in fault.message
    if line:
        assert (bad.value.source, fault.line) == (str(tmp_path / "fedora.j2"), line)


def test_an_error_in_a_part_names_the_part(tmp_path: Path) -> None:
    (tmp_path / "seal.sh.j2").write_text("# mine\n\n: {{ oops }}\n", encoding="utf-8")
    with pytest.raises(BadDocument, match=rf"{tmp_path}/seal.sh.j2:3: template: 'oops' is undefined"):
        answers.render(FEDORA, Arch.X86_64, public_site(FEDORA, Arch.X86_64), tmp_path)


def test_a_template_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "anaconda.ks.j2").write_bytes(b"\xff\xfe")
    with pytest.raises(BadDocument, match="not UTF-8"):
        answers.render(FEDORA, Arch.X86_64, public_site(FEDORA, Arch.X86_64), tmp_path)


def test_a_template_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no template 'none\.ks\.j2'"):
        answers.render(
            dataclasses.replace(FEDORA, template="none.ks.j2"), Arch.X86_64, public_site(FEDORA, Arch.X86_64), tmp_path
        )


def test_no_line_of_a_script_becomes_a_section(tmp_path: Path) -> None:
    (tmp_path / "anaconda.sh.j2").write_text("true\n  %end\n", encoding="utf-8")
    with pytest.raises(BadDocument, match="line 2 of what it comes to begins with `%`"):
        answers.render(FEDORA, Arch.X86_64, public_site(FEDORA, Arch.X86_64), tmp_path)


def test_values_that_no_answer_can_carry_are_refused() -> None:
    for wrong in ("a\x0bb", "a\u2028%end", "a\x1b[31m", "\0"):
        with pytest.raises(BadDocument, match="cannot stand here"):
            text_of(dataclasses.replace(FEDORA, post=(wrong,)), Arch.X86_64, public_site(FEDORA, Arch.X86_64))


# -- the user's own -----------------------------------------------------------------------------------------------------------


def test_a_file_of_ones_own_takes_the_place_of_ours(tmp_path: Path) -> None:
    (tmp_path / "seal.sh.j2").write_text("echo mine {{ base }}\n", encoding="utf-8")
    site = public_site(FEDORA, Arch.X86_64)
    script = script_in(FEDORA, answers.render(FEDORA, Arch.X86_64, site, tmp_path))
    assert "echo mine fedora-44\n" in script
    assert "ssh_host" not in script
    assert "grub2-install" in script, "the other files are ours"


def test_a_template_without_a_script(tmp_path: Path) -> None:
    (tmp_path / "own.ks.j2").write_text("poweroff\n{% for line in script %}\n{{ line }}\n{% endfor %}\n", encoding="utf-8")
    definition = dataclasses.replace(FEDORA, template="own.ks.j2")
    assert answers.render(definition, Arch.X86_64, public_site(definition, Arch.X86_64), tmp_path).text == "poweroff\n"


def test_the_environment_names_the_users_folders(tmp_path: Path) -> None:
    assert overlaid("kickstarts", {}) == (shipped("kickstarts"),)
    assert overlaid("kickstarts", {"POCKETCLOUD_TEMPLATES": str(tmp_path)}) == (tmp_path, shipped("kickstarts"))
    with pytest.raises(NotFound, match=r"POCKETCLOUD_BASES: .*none is no folder"):
        overlaid("bases", {"POCKETCLOUD_BASES": str(tmp_path / "none")})


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("POCKETCLOUD_")}
    argv = [sys.executable, "-m", "pocketcloud", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=kept | environment, cwd=TOP)


def test_base_render_prints_the_answer(tmp_path: Path) -> None:
    said = command("base", "render", "fedora-44", "--arch", "aarch64")
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout == answers.preview(FEDORA, Arch.AARCH64, shipped("kickstarts"))
    (tmp_path / "seal.sh.j2").write_text("echo mine\n", encoding="utf-8")
    render = ("base", "render", "fedora-44", "--arch", "x86_64")
    for said in (command(*render, "--templates", str(tmp_path)), command(*render, POCKETCLOUD_TEMPLATES=str(tmp_path))):
        assert "\necho mine\n" in said.stdout


def test_base_render_refuses_with_a_reason(tmp_path: Path) -> None:
    for arguments, code, words in (
        (("debian-12",), 2, "it is made by bootstrap, not by an installer"),
        (("almalinux-10-v2", "--arch", "aarch64"), 2, "is not made for aarch64"),
        (("nothing",), 4, "there is no base 'nothing' to build"),
        (("fedora-44", "--templates", str(tmp_path / "none")), 2, "does not exist"),
    ):
        said = command("base", "render", *arguments)
        assert (said.returncode, said.stdout) == (code, ""), said.stderr
        assert words in said.stderr
        assert "Traceback" not in said.stderr


def test_definitions_of_ones_own_are_listed_with_ours(tmp_path: Path) -> None:
    text = (TOP / "bases/fedora-44.yaml").read_text(encoding="utf-8")
    (tmp_path / "fedora-44.yaml").write_text(text.replace("title: Fedora 44", "title: My own"), encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(text.replace("base: fedora-44", "base: mine"), encoding="utf-8")
    said = command("base", "list", "--available", "--bases", str(tmp_path))
    assert (said.returncode, said.stderr) == (0, "")
    lines = {line.split()[0]: line for line in said.stdout.splitlines()}
    assert "My own" in lines["fedora-44"]
    assert lines["fedora-44"].endswith("yours")
    assert lines["mine"].endswith("yours")
    assert not lines["fedora-43"].endswith("yours")
    assert "x86-64-v3" in lines["rocky-10"]


# -- what the script does ---------------------------------------------------------------------------------------------------


def run_steps(definition: InstallDefinition, folder: Path) -> tuple[str, str]:
    """The marker and the console of the part of the script that is about the definition, really run; with paths of the test's."""
    (folder / "anaconda.sh.j2").write_text('{% include "begin.sh.j2" %}\n{% include "requirements.sh.j2" %}\n', encoding="utf-8")
    (folder / "etc").mkdir()
    (folder / "etc/motd").write_text("old\n", encoding="utf-8")
    answer = answers.render(definition, Arch.X86_64, public_site(definition, Arch.X86_64), folder)
    script = script_in(definition, answer).replace("/dev/virtio-ports/org.pocketcloud.install.0", f"{folder}/port")
    script = script.replace("/dev/ttyS0", f"{folder}/console").replace("/var/tmp/", f"{folder}/").replace("-d /", f"-d {folder}")
    subprocess.run(["sh", "-c", script.replace("FOLDER", str(folder))], check=False, timeout=60)
    said = [folder / "port", folder / "console"]
    return tuple(path.read_text(encoding="utf-8") if path.exists() else "" for path in said)  # type: ignore[return-value]


def test_patches_and_steps_are_run_in_order(tmp_path: Path) -> None:
    post = (
        "cat FOLDER/etc/motd > FOLDER/seen",
        "cd /\nx='a  b'\nprintf '%s\\n' \"$x\" >> FOLDER/seen\nexit 0",
        "echo $x >> FOLDER/seen",
    )
    port, console = run_steps(dataclasses.replace(FEDORA, patches=(PATCH,), post=post), tmp_path)
    assert (tmp_path / "seen").read_text() == "new\na  b\n\n"
    told = re.fullmatch(r"USED (\d+)\n", port)
    assert told, "how much is there already, and nothing of how it ended: that is told when all is done"
    assert 0 < int(told[1]) < shutil.disk_usage("/").total
    assert console.splitlines()[-1] == "pocketcloud: post 3"


@pytest.mark.parametrize(
    ("change", "step", "words"),
    [
        ({"post": ("true", "echo because; false; echo not reached", "touch FOLDER/after")}, "post 2", "because"),
        ({"post": ("echo x | grep y",)}, "post 1", ""),
        ({"patches": (PATCH.replace("-old", "-other"),), "post": ("touch FOLDER/after",)}, "patch 1", "FAILED"),
        ({"post": ("if then",)}, "post 1", "yntax"),
    ],
)
def test_a_step_that_fails_is_named_with_its_last_lines(
    change: dict[str, tuple[str, ...]], step: str, words: str, tmp_path: Path
) -> None:
    definition = dataclasses.replace(FEDORA, patches=change.get("patches", ()), post=change.get("post", ()))
    port, console = run_steps(definition, tmp_path)
    assert port == f"FAIL {step}\n"
    assert words in console.partition(f"pocketcloud: {step}\n")[2]
    assert not (tmp_path / "after").exists()


# -- whole answers at random --------------------------------------------------------------------------------------------------

CHARACTERS = "'\"\\$()`%#&*!|>{}[]:,;~=-+@.?<^ \t\nabEND0é😀"
texts = st.text(CHARACTERS, min_size=1, max_size=40) | st.text(min_size=1, max_size=12)
usable_texts = texts.filter(lambda text: not unfit(text, lines=True) and bool(text.strip()))
words = st.text("'\"\\$()`%#&*!|>{};~=-+.?<^ab0é", max_size=10)


@pytest.mark.parametrize("part", range(20))
@pytest.mark.parametrize("name", ["rhel", "fedora", "debian", "ubuntu"])
@pytest.mark.sampled(40)
def test_whatever_is_said_stays_what_it_is(name: str, part: int) -> None:
    """5 000 and some in all: 63 in each of twenty parts for each of four kinds."""
    definition = {"rhel": registered(RHEL), "fedora": FEDORA, "debian": DEBIAN, "ubuntu": UBUNTU}[name]

    @seed(SEED * 20 + part)
    @settings(
        max_examples=63, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
    )
    @given(st.lists(usable_texts, max_size=3), st.lists(usable_texts, max_size=2), texts, words)
    def holds(post: list[str], patches: list[str], title: str, secret: str) -> None:
        made = dataclasses.replace(hostile(definition), title=title, post=tuple(post), patches=tuple(patches))
        site = dataclasses.replace(
            hostile_site(definition, Arch.X86_64),
            activation_key=f"12345:{secret}x",
            proxy=f"http://p:{secret.replace('#', '').replace('?', '')}x@10.77.0.1:1",
        )
        answer = text_of(made, Arch.X86_64, site)
        steps = steps_in(script_in(made, answer))
        expected = {f"patch {n}": text for n, text in enumerate(patches, 1)} | {
            f"post {n}": text for n, text in enumerate(post, 1)
        }
        assert steps == {step: text.removesuffix("\n") for step, text in expected.items()}
        shape(made, answer.text, site)

    holds()


def shape(definition: InstallDefinition, text: str, site: answers.Site) -> None:
    """The answer has the parts that it has with harmless values, and no other."""
    match definition.family:
        case "debian":
            said = read_preseed(text)
            assert set(said) == set(read_preseed(text_of(DEBIAN, Arch.X86_64, site).text))
            assert said["mirror/http/proxy"][2] == site.proxy
        case "ubuntu":
            said = read_yaml(text, (1, 1))["autoinstall"]
            assert set(said) == set(read_yaml(text_of(UBUNTU, Arch.X86_64, site).text, (1, 1))["autoinstall"])
            assert said["proxy"] == site.proxy
            assert (len(said["late-commands"]), len(said["error-commands"])) == (2, 2)
        case _:
            handler = read_kickstart(text, kickstart_version(definition))
            assert len(handler.scripts) == 3
            assert handler.rootpw.lock
            if definition.registration:
                assert handler.rhsm.activation_keys == [site.activation_key.partition(":")[2]]
                assert handler.rhsm.proxy == site.proxy
            else:
                assert handler.url.proxy == site.proxy
