"""Answer files for tests: which there are, and readers of them that share nothing with the code that writes them.

Kickstart is read by pykickstart, YAML by ruamel.yaml as version 1.1 (which the installers' PyYAML reads) and 1.2, preseed by what
debian-installer's debconf-set-selections does, told in Python, and by debconf's own where it is installed.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import shlex
import warnings
from collections.abc import Iterator
from typing import Any

from pykickstart.parser import KickstartParser
from pykickstart.version import makeVersion
from ruamel.yaml import YAML

from pocketcloud.bases import answers, definitions
from pocketcloud.bases.answers import Answer, Site
from pocketcloud.model.base import Arch, Builder, InstallDefinition, Registration
from pocketcloud.resources import shipped

PATCH = "--- a/etc/motd\n+++ b/etc/motd\n@@ -1 +1 @@\n-old\n+new\n"
# Every line of it tries to be something else in one of the formats.
HOSTILE = """\
%end
%packages
rootpw --plaintext '$(id)' `id` "$HOME" \\
d-i preseed/late_command string reboot
# a comment
    - key: [a, {b: c}] & *x !!tag
'; echo OK stolen > /dev/virtio-ports/org.pocketcloud.install.0; '
END
\t{{ 7 * 7 }} {% raw %}
\\
*
-n

late\\n ünï ☃ 😀 /etc/*"""
KEY = "key-\"with'quotes and%signs"


@functools.cache
def installs() -> tuple[tuple[InstallDefinition, Arch], ...]:
    """Every base that an installer makes, for each of its architectures."""
    found = [d for d in definitions.available() if isinstance(d, InstallDefinition)]
    return tuple((d, arch) for d in found for arch in d.architectures)


def public_site(definition: InstallDefinition, arch: Arch) -> Site:
    """The definition's own addresses; a key where one is needed."""
    key = "12345:an-activation-key" if definition.registration else ""
    return dataclasses.replace(answers.site(definition, arch, "0123456789ab"), activation_key=key)


def cached_site(definition: InstallDefinition, arch: Arch) -> Site:
    """As with a cache on the lab bridge, and a proxy that wants a password."""
    public = public_site(definition, arch)
    return dataclasses.replace(
        public,
        disk="sda",
        tree=public.tree and "http://10.77.0.1:8080/tree/",
        repos={name: f"http://10.77.0.1:8080/{name}/" for name in public.repos},
        proxy="http://me:secret@10.77.0.1:3128",
        gateway="10.77.0.1",
        apt_mirror="" if definition.builder is Builder.KICKSTART else "http://10.77.0.1:8080/mirror",
    )


def hostile(definition: InstallDefinition) -> InstallDefinition:
    """The same with a step, a patch and a title that mean harm."""
    patch = PATCH + "".join(f"+{line}\n" for line in HOSTILE.splitlines())
    return dataclasses.replace(
        definition,
        title="50 % 'of' \"it\" $(id) \\ # {{ x }}",
        post=(HOSTILE, "true"),
        patches=(patch,),
        packages=("vim-enhanced",),
    )


def hostile_site(definition: InstallDefinition, arch: Arch) -> Site:
    """Secrets that want to get out of their quotes."""
    key = f"12345:{KEY}" if definition.registration else ""
    return dataclasses.replace(cached_site(definition, arch), activation_key=key, proxy="http://a:b%27%22$(x)@10.77.0.1:3128")


def registered(definition: InstallDefinition) -> InstallDefinition:
    """The same by registration."""
    return dataclasses.replace(definition, tree="", repos={}, registration=Registration("/etc/key", "12345"))


def text_of(definition: InstallDefinition, arch: Arch, site: Site) -> Answer:
    """The answer by our own templates, whatever the environment says."""
    return answers.render(definition, arch, site, shipped("kickstarts"))


# -- readers ------------------------------------------------------------------------------------------------------------


def kickstart_version(definition: InstallDefinition) -> str:
    """The name of the syntax that the version reads."""
    return f"F{definition.version}" if definition.family == "fedora" else f"RHEL{definition.version}"


@functools.lru_cache(maxsize=64)
def read_kickstart(text: str, version: str) -> Any:
    """pykickstart's handler after it has read the text; a deprecated word is an error."""
    handler = makeVersion(version)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        KickstartParser(handler).readKickstartFromString(text)
    return handler


def read_yaml(text: str, version: tuple[int, int]) -> Any:
    """The document in plain values."""
    yaml = YAML(typ="safe", pure=True)
    yaml.version = version
    return yaml.load(text)


def read_preseed(text: str) -> dict[str, tuple[str, str, str]]:
    """Question: owner, type and value, as the installer reads them: comments and empty lines go before lines are joined, and
    joined lines have one space between them. AssertionError if a question is answered twice."""
    found: dict[str, tuple[str, str, str]] = {}
    for line in _joined(text):
        owner, question, kind, value = (*re.split(r"[ \t]+", line, maxsplit=3), "")[:4]
        assert question not in found, f"{question} is answered twice"
        found[question] = (owner, kind, value)
    return found


def _joined(text: str) -> Iterator[str]:
    kept = ""
    for raw in text.split("\n"):
        if raw.startswith("#") or not raw.strip():
            continue
        line = raw.replace("\r", "").lstrip(" \t")
        if line.endswith("\\"):
            line = line[:-1].rstrip(" \t")
            kept = f"{kept} {line}" if kept else line
        else:
            yield f"{kept} {line}" if kept else line
            kept = ""
    assert not kept, "the last line goes on"


def written_by(command: str) -> dict[str, str]:
    """File: text, of a command of `printf "%s${b}n" WORD... > FILE;` parts, as early_command is one; `b` is a backslash."""
    words, files = shlex.split(command.replace("'\"$b\"'", "\\")), {}
    assert "\\" not in command, "the installer makes line breaks of them"
    while "printf" in words:
        words = words[words.index("printf") :]
        assert words[1] == "%s${b}n"
        end = next(index for index, word in enumerate(words) if word == ">" and words[index + 1].startswith("/"))
        files[words[end + 1].rstrip(";")] = "".join(f"{word}\n" for word in words[2:end])
        words = words[end + 2 :]
    return files


def script_in(definition: InstallDefinition, answer: Answer) -> str:
    """The script that is run in the new system, out of the answer."""
    match definition.builder:
        case Builder.KICKSTART:
            handler = read_kickstart(answer.text, kickstart_version(definition))
            (script,) = [s.script for s in handler.scripts if s.inChroot and "pocketcloud.log" in s.script]
            return str(script)
        case Builder.PRESEED:
            return written_by(read_preseed(answer.text)["preseed/early_command"][2])["/pocketcloud.sh"]
        case Builder.AUTOINSTALL:
            document = read_yaml(answer.text, (1, 1))
            return str(document["autoinstall"]["late-commands"][0][-1])


def steps_in(script: str) -> dict[str, str]:
    """Step: the text that it writes into a file and then uses; what the definition's patches and steps have become."""
    found: dict[str, str] = {}
    for part in re.split(r"^step '", script, flags=re.MULTILINE)[1:]:
        name, _, rest = part.partition("'\n")
        if name.startswith(("patch ", "post ")):
            lines = rest.split("    > /var/tmp/pocketcloud.step\n")[0].splitlines()
            assert lines[0] == "printf '%s\\n' \\"
            words = [shlex.split(line.removesuffix(" \\")) for line in lines[1:]]
            assert all(len(word) == 1 for word in words), "one word a line"
            found[name] = "\n".join(word[0] for word in words)
    return found
