"""What the sources of a base have now, asked of real servers: a change of what is in them counts, a new date does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import pytest

from pocketcloud.bases.freshness import ask
from pocketcloud.model.base import (
    UNKNOWN,
    Arch,
    Builder,
    Download,
    ImageDefinition,
    InstallDefinition,
    LayerDefinition,
    Newest,
)
from pocketcloud.model.names import Name
from tests.web import Web, serving

X86 = Arch.X86_64
REPOMD = """\
<?xml version="1.0" encoding="UTF-8"?>
<repomd xmlns="http://linux.duke.edu/metadata/repo">
  <revision>{time}</revision>
  <data type="filelists"><checksum type="sha256">{other}</checksum><timestamp>{time}</timestamp></data>
  <data type="primary">
    <checksum type="sha256">{packed}</checksum><open-checksum type="sha256">{plain}</open-checksum>
    <location href="repodata/x-primary.xml.zst"/><timestamp>{time}</timestamp>
  </data>
</repomd>
"""
RELEASE = """\
Codename: {suite}
Date: {date} 02:11:10 UTC
SHA256:
 {sum} 1234 main/binary-amd64/Packages
"""


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as made:
        yield made


def repomd(plain: str, packed: str = "e", time: int = 1_790_000_000, other: str = "f") -> bytes:
    return REPOMD.format(plain=plain * 64, packed=packed * 64, other=other * 64, time=time).encode()


Installer = Literal[Builder.KICKSTART, Builder.PRESEED, Builder.AUTOINSTALL]


def installed(web: Web, builder: Installer, family: str, **repos: str) -> InstallDefinition:
    return InstallDefinition(
        base=Name("box"), title="Box", family=family, version="1", builder=builder, architectures=(X86,), template="x.j2",
        tree=web.url("/tree/{arch}/os/"), suite="stable", repos={Name(name): web.url(path) for name, path in repos.items()},
    )  # fmt: skip


def test_repositories_are_compared_by_their_packages(web: Web) -> None:
    definition = installed(web, Builder.KICKSTART, "fedora", updates="/updates/{arch}")
    assert ask(definition, X86) == UNKNOWN
    web.put("/tree/x86_64/os/repodata/repomd.xml", repomd("a"))
    assert ask(definition, X86) == UNKNOWN, "one of two repositories is not enough: the other would look like a change"
    web.put("/updates/x86_64/repodata/repomd.xml", repomd("b", time=1_795_000_000))
    first = ask(definition, X86)
    assert first.date == "2026-11-18T11:06:40+00:00"
    web.put("/updates/x86_64/repodata/repomd.xml", repomd("b", packed="d", time=1_796_000_000, other="0"))
    assert ask(definition, X86).digest == first.digest, "made anew and packed otherwise, with the same packages"
    web.put("/updates/x86_64/repodata/repomd.xml", repomd("c", time=1_796_000_000))
    newer = ask(definition, X86)
    assert newer.digest not in ("", first.digest)
    assert ask(definition, X86, mirror=web.url("/tree/x86_64/os")) == newer, "another way to the same"


@pytest.mark.parametrize(
    "content",
    [b"<html>log in</html>", b"", b"<repomd/>", repomd("a").replace(b"a" * 64, b"a"), repomd("a", time=-5), b"\xff\xfe" * 99],
)
def test_what_is_no_repository_says_nothing(web: Web, content: bytes) -> None:
    web.put("/tree/x86_64/os/repodata/repomd.xml", content)
    assert ask(installed(web, Builder.KICKSTART, "fedora"), X86) == UNKNOWN


@pytest.mark.parametrize("builder", [Builder.PRESEED, Builder.AUTOINSTALL])
def test_suites_are_compared_by_their_lists(web: Web, builder: Installer) -> None:
    # A family that this host is not of: its own mirror would be asked instead.
    definition = replace(installed(web, builder, "elsewhere", security="/safe"), tree=web.url("/tree"))

    def published(place: str, suite: str, digit: str, date: str) -> None:
        web.put(f"{place}/dists/{suite}/InRelease", RELEASE.format(suite=suite, sum=digit * 64, date=date).encode())

    published("/tree", "stable", "a", "Fri, 20 Nov 2026")
    published("/tree", "stable-updates", "b", "Fri, 20 Nov 2026")
    assert ask(definition, X86) == UNKNOWN
    published("/safe", "stable-security", "c", "Sat, 21 Nov 2026")
    first = ask(definition, X86)
    assert first.date == "2026-11-21T02:11:10+00:00"
    published("/safe", "stable-security", "c", "Sun, 22 Nov 2026")
    assert ask(definition, X86).digest == first.digest
    published("/safe", "stable-security", "d", "Sun, 22 Nov 2026")
    assert ask(definition, X86).digest != first.digest


def test_images_are_compared_by_their_sums(web: Web) -> None:
    plain = ImageDefinition(
        base=Name("cloud"), title="Cloud", family="debian", version="1", builder=Builder.CLOUD_IMAGE, architectures=(X86,),
        images={X86: Download(url=web.url("/a.qcow2"), sums=web.url("/SUMS"))},
    )  # fmt: skip
    assert ask(plain, X86) == UNKNOWN
    web.put("/SUMS", f"{'a' * 128}  a.qcow2\n{'b' * 128}  other\n".encode())
    assert ask(plain, X86) == Newest("a" * 128)
    web.put("/SUMS", f"{'c' * 128}  other\n".encode())
    assert ask(plain, X86) == UNKNOWN
    asked = len(web.asked)
    pinned = replace(plain, images={X86: Download(url=web.url("/a.qcow2"), sha256="d" * 64)})
    assert ask(pinned, X86) == Newest("d" * 64)
    signed = Download(url=web.url("/a.qcow2"), signature=web.url("/a.sig"), keyring="/etc/keys")
    assert ask(replace(plain, images={X86: signed}), X86) == UNKNOWN
    assert ask(plain, Arch.AARCH64) == UNKNOWN
    assert len(web.asked) == asked


def test_a_layer_has_no_sources_of_its_own() -> None:
    assert ask(LayerDefinition(base=Name("web"), title="Web", from_=Name("debian-13")), X86) == UNKNOWN
