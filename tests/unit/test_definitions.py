"""Definitions of bases: those we ship, and everything that can be wrong with one, said with line and key, all at once."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema
import pytest

from pocketcloud.bases import definitions
from pocketcloud.bases.faults import faults
from pocketcloud.errors import BadDocument, UsageError
from pocketcloud.model.base import (
    Arch,
    BootstrapDefinition,
    Builder,
    CpuLevel,
    Definition,
    Download,
    ImageDefinition,
    InstallDefinition,
    spelled,
)
from pocketcloud.model.sizes import GIB
from pocketcloud.resources import shipped
from tests.answer_files import read_yaml

ONLY_X86 = ("almalinux-10-v2", "pocketcloud")
OURS = definitions.available(shipped("bases"))
INSTALL = """\
base: mine
title: Mine
family: fedora
version: "44"
builder: kickstart
template: anaconda.ks.j2
architectures: [x86_64, aarch64]
tree: https://example.com/{arch}/os/
"""
IMAGE = """\
base: mine
title: Mine
family: debian
version: "13"
builder: cloud-image
architectures: [x86_64]
images:
  x86_64:
    url: https://example.com/a.qcow2
"""


def read(text: str, folder: Path) -> Definition:
    (folder / "mine.yaml").write_text(text, encoding="utf-8")
    return definitions.find("mine", folder)


# -- those we ship ----------------------------------------------------------------------------------------------------------


def test_there_is_one_for_everything_that_is_promised() -> None:
    made = {(d.family, d.version, d.builder) for d in OURS}
    el = [(family, version) for family in ("centos", "almalinux", "rocky", "rhel") for version in ("9", "10")]
    for family, version in [("fedora", "43"), ("fedora", "44"), *el]:
        assert (family, version, Builder.KICKSTART) in made
        assert family == "rhel" or (family, version, Builder.CLOUD_IMAGE) in made
    for version in ("12", "13"):
        for builder in (Builder.BOOTSTRAP, Builder.PRESEED, Builder.CLOUD_IMAGE):
            assert ("debian", version, builder) in made
    for version in ("24.04", "26.04"):
        for builder in (Builder.AUTOINSTALL, Builder.CLOUD_IMAGE):
            assert ("ubuntu", version, builder) in made


@pytest.mark.parametrize("definition", OURS, ids=lambda d: d.base)
def test_it_holds_together(definition: Definition) -> None:
    assert list(faults(definition)) == []
    assert definition.architectures == ((Arch.X86_64,) if definition.base in ONLY_X86 else tuple(Arch))
    expected = GIB * (10 if isinstance(definition, BootstrapDefinition) else 40)
    assert definition.size == expected
    assert (shipped("kickstarts") / getattr(definition, "template", "README.md")).is_file()


@pytest.mark.parametrize("definition", OURS, ids=lambda d: d.base)
def test_processors_are_asked_for_as_the_distribution_needs_them(definition: Definition) -> None:
    """EL 9 is built for x86-64-v2, EL 10 for v3, but for AlmaLinux's second tree."""
    el = definition.family in ("centos", "almalinux", "rocky", "rhel")
    level = {"9": CpuLevel.V2, "10": CpuLevel.V3}[definition.version] if el else None
    assert definition.requires.cpu is (CpuLevel.V2 if definition.base == "almalinux-10-v2" else level)


@pytest.mark.parametrize("definition", OURS, ids=lambda d: d.base)
def test_downloads_are_known_to_be_the_right_ones(definition: Definition) -> None:
    found = definition.images if isinstance(definition, ImageDefinition) else getattr(definition, "media", {})
    for arch, download in found.items():
        if download.file:
            assert definition.family == "rhel", "only RHEL's disc has to be fetched by hand"
            continue
        assert download.sha256 or download.sums, f"{arch}: nothing says what it must be"
        for url in (download.url, download.sums, download.signature):
            assert not url or url.startswith("https://"), url
        name = urlsplit(download.url).path
        assert (arch.debian if definition.family in ("debian", "ubuntu") else arch) in name
        if download.sums:
            assert urlsplit(download.sums).hostname == urlsplit(download.url).hostname


def test_images_are_of_the_version() -> None:
    for definition in OURS:
        if isinstance(definition, ImageDefinition):
            for download in definition.images.values():
                assert re.search(rf"[-_/]{re.escape(definition.version)}[-.]", download.url), download.url


def test_editors_get_a_schema_that_ours_fit() -> None:
    checker = jsonschema.Draft202012Validator(definitions.schema())
    jsonschema.Draft202012Validator.check_schema(checker.schema)
    for definition in OURS:
        text = (shipped("bases") / f"{definition.base}.yaml").read_text(encoding="utf-8")
        document = read_yaml(text, (1, 2))
        assert list(checker.iter_errors(document)) == []
        for wrong in (document | {"temlate": "x"}, document | {"size": []}, {k: v for k, v in document.items() if k != "title"}):
            assert list(checker.iter_errors(wrong)), "an editor shall mark it"


# -- what can be wrong ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "line", "said"),
    [
        (("[x86_64, aarch64]", "[]"), 7, "architectures: expected at least one"),
        (("aarch64]", "x86_64]"), 7, "architectures[1]: duplicate: x86_64 stands here twice"),
        (("aarch64]", "riscv64]"), 7, "architectures[1]: expected 'x86_64' or 'aarch64', got 'riscv64'"),
        (("kickstart\n", "kickstat\n"), 5, "builder: expected one of bootstrap, kickstart, preseed"),
        (("template:", "temlate:"), 6, "temlate: unknown key; did you mean `template`?"),
        (("anaconda.ks.j2", "../x.j2"), 6, "template: expected the name of a file in kickstarts/, NAME.j2"),
        (("anaconda.ks.j2", "/etc/passwd"), 6, "template: expected the name of a file"),
        (("https://example.com/{arch}/os/", "ftp://example.com/"), 8, "tree: expected a URL, http:// or https://"),
        (("https://example.com/", "https://a b/"), 8, "tree: expected a URL"),
        (("https://example.com/{arch}/os/", "https:///os/"), 8, "tree: expected a URL"),
        (("{arch}", "{ach}"), 8, "tree: `{ach}`: only `{arch}` is filled in"),
        (("{arch}", "{arch"), 8, "tree: `{arch`: only `{arch}` is filled in"),
        (("tree: https://example.com/{arch}/os/\n", ""), 1, "tree: missing: the installer starts from an install tree"),
        (("title: Mine", 'title: "a\\nb"'), 2, "title: a line break cannot stand here"),
        (('version: "44"', 'version: "4 4"'), 4, "version: expected digits, letters"),
        (('version: "44"', "version: 44"), 4, "version: expected text, got 44"),
        (("tree:", "suite: trixie\ntree:"), 8, "suite: is for Debian and Ubuntu"),
        (("tree:", "size: 1GiB\ntree:"), 8, "size: 1 GiB; the installer needs 8 GiB"),
        (("tree:", "packages: [vim, '-vim']\ntree:"), 8, "packages[1]: expected the name of a package"),
        (("tree:", "packages: [vim, vim]\ntree:"), 8, "packages[1]: duplicate: vim stands here twice"),
        (("tree:", "packages:\n  - vim\n  - '%end'\ntree:"), 10, "packages[1]: expected the name of a package"),
        (("tree:", 'post:\n  - "true"\n  - "a\\u2028b"\ntree:'), 10, "post[1]: the character U+2028 cannot stand here"),
        (("tree:", "post: ['']\ntree:"), 8, "post[0]: is empty"),
        (("tree:", "patches: [nonsense]\ntree:"), 8, "patches[0]: expected a unified diff"),
        (("tree:", "requires: {cpu: x86-64-v9}\ntree:"), 8, "requires.cpu: expected"),
        (("tree:", "repos: {updates: 'file:///x'}\ntree:"), 8, "repos.updates: expected a URL"),
        (("tree:", "repos: {Up: 'https://example.com'}\ntree:"), 8, "repos.Up: 'Up' is not a name"),
        (("tree:", "registration: {activation_key_file: /x}\ntree:"), 8, "registration: packages come from the registration or"),
        (("tree:", "media: {x86_64: {url: 'https://example.com/x.iso'}}\ntree:"), 8, "media: nothing for aarch64"),
        (("tree:", "title: Again\ntree:"), 8, "title: duplicate: the same name stands in line 2"),
        (
            ("kickstart\ntemplate: anaconda.ks.j2", "preseed\ntemplate: debian.preseed.j2"),
            1,
            "suite: missing, and preseed needs it",
        ),
        (("kickstart\ntemplate: anaconda.ks.j2", "autoinstall\ntemplate: x.j2"), 1, "media: missing, and autoinstall needs it"),
    ],
)
def test_a_fault_is_told_with_its_line(change: tuple[str, str], line: int, said: str, tmp_path: Path) -> None:
    assert change[0] in INSTALL
    with pytest.raises(BadDocument) as bad:
        read(INSTALL.replace(*change), tmp_path)
    assert f"{tmp_path}/mine.yaml:{line}: {said}" in str(bad.value)


@pytest.mark.parametrize(
    ("change", "line", "said"),
    [
        (("[x86_64]", "[x86_64, aarch64]"), 7, "images: nothing for aarch64, which is among the architectures"),
        (("[x86_64]", "[aarch64]"), 8, "images.x86_64: is not among the architectures"),
        (("a.qcow2", "a.qcow2\n    sha256: abc"), 10, "images.x86_64.sha256: expected 64 hexadecimal digits"),
        (("    url: https://example.com/a.qcow2", "    file: disk.img"), 9, "images.x86_64.file: expected the path of a file"),
        (
            ("    url: https://example.com/a.qcow2", "    file: /srv/a.img"),
            9,
            "images.x86_64.file: needs its `sha256:` beside it",
        ),
        (
            ("    url: https://example.com/a.qcow2", "    file: /var/lib/pocketcloud/media/../../../srv/a.img"),
            9,
            "images.x86_64.file: needs its `sha256:` beside it",
        ),
        (("    url: https://example.com/a.qcow2", "    {}"), 8, "images.x86_64: expected either `url:` or `file:`"),
        (("a.qcow2", "{arch}.qcow2"), 9, "images.x86_64.url: `{arch}`: nothing is filled in here"),
        (("a.qcow2", "a.qcow2\n    signature: https://example.com/a.asc"), 10, "images.x86_64.signature: needs `keyring:`"),
        (("a.qcow2", "a.qcow2\n    sums: nowhere"), 10, "images.x86_64.sums: expected a URL"),
        (("images:", "tree: http://x.org\nimages:"), 1, "suite: missing, and cloud-image needs it"),
        (("images:", "suite: trixie\nimages:"), 1, "tree: missing, and cloud-image needs it"),
        (("images:", "suite: 'a b'\ntree: http://x.org\nimages:"), 7, "suite: expected the name of a release"),
        (("images:", "repos: {updates: 'http://x.org'}\nimages:"), 7, "repos.updates: cloud-image knows only: security, ports"),
        (("images:", "repos: {security: nowhere}\nimages:"), 7, "repos.security: expected a URL"),
        (("images:", "keyring: '/x] http://y.org'\nimages:"), 7, "keyring: expected the path of a file"),
        (("debian", "rocky\nsuite: trixie"), 4, "suite: is for Debian and Ubuntu; others name"),
    ],
)
def test_a_fault_of_an_image_is_told_with_its_line(change: tuple[str, str], line: int, said: str, tmp_path: Path) -> None:
    assert change[0] in IMAGE
    with pytest.raises(BadDocument) as bad:
        read(IMAGE.replace(*change), tmp_path)
    assert f"{tmp_path}/mine.yaml:{line}: {said}" in str(bad.value)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    text = INSTALL.replace("anaconda.ks.j2", "nothing").replace("{arch}", "{x}") + "packages: ['a b']\npost: ['']\n"
    with pytest.raises(BadDocument) as bad:
        read(text, tmp_path)
    assert [(fault.line, fault.path) for fault in bad.value.faults] == [
        (6, "template"),
        (8, "tree"),
        (9, "packages[0]"),
        (10, "post[0]"),
    ]


@pytest.mark.parametrize("keyring", ["/a trusted=yes", '"/a\\nb"', "keys.gpg", "/a]", "/ä"])
def test_a_keyring_says_nothing_else_to_apt(keyring: str, tmp_path: Path) -> None:
    text = (shipped("bases") / "debian-12.yaml").read_text(encoding="utf-8").replace("base: debian-12", "base: mine")
    changed = re.sub("(?m)^keyring: .*$", lambda _: f"keyring: {keyring}", text)
    assert changed != text
    with pytest.raises(BadDocument, match="keyring: expected the path of a file"):
        read(changed, tmp_path)


@pytest.mark.parametrize("key", ["tree: https://me:hush@example.com/\n", "repos: {updates: 'https://hush@example.com/x'}\n"])
def test_a_password_is_refused_and_not_repeated(key: str, tmp_path: Path) -> None:
    text = INSTALL.replace("tree: https://example.com/{arch}/os/\n", "") if key.startswith("tree") else INSTALL
    with pytest.raises(BadDocument, match="does not belong in a definition") as bad:
        read(text + key, tmp_path)
    assert "hush" not in str(bad.value)


def test_a_definition_may_say_all_it_can(tmp_path: Path) -> None:
    patch = "--- a/etc/x\n+++ b/etc/x\n@@ -1 +1 @@\n-a\n+b\n"
    text = (
        INSTALL
        + "packages: ['@development', vim-enhanced, g++]\npost: [\"a\\n\\tb\"]\nsize: 8GiB\nrepos: {updates: 'http://x.org/{arch}'}\n"
    )
    definition = read(text + f"patches: [{patch!r}]\n".replace("'", '"'), tmp_path)
    assert isinstance(definition, InstallDefinition)
    assert definition.patches == (patch,)
    definitions.refuse_other(definition, Arch.AARCH64)


def test_an_architecture_that_is_not_offered_is_refused() -> None:
    older = definitions.find("almalinux-10-v2", shipped("bases"))
    with pytest.raises(UsageError, match="is not made for aarch64") as refused:
        definitions.refuse_other(older, Arch.AARCH64)
    assert refused.value.hint == "--arch takes: x86_64"


def test_architectures_are_spelled_as_the_distribution_has_them() -> None:
    assert spelled("a/{arch}/b", "debian", Arch.X86_64) == "a/amd64/b"
    assert spelled("a/{arch}/b", "ubuntu", Arch.AARCH64) == "a/arm64/b"
    assert spelled("a/{arch}/b", "rocky", Arch.AARCH64) == "a/aarch64/b"


def test_a_download_is_a_url_or_a_file() -> None:
    with pytest.raises(ValueError, match="either"):
        Download()
