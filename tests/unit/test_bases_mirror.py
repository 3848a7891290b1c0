"""Which mirror packages come from, and what of the host's apt configuration goes with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketcloud.bases import definitions
from pocketcloud.bases.mirror import Source, carried, choose, sources
from pocketcloud.errors import UsageError
from pocketcloud.model.base import BootstrapDefinition


def _debian() -> BootstrapDefinition:
    definition = definitions.find("debian-12")
    assert isinstance(definition, BootstrapDefinition)
    return definition


DEBIAN = _debian()
NEW = """\
# a comment
Types: deb deb-src
URIs: http://ftp.debian.org/debian/
Suites: bookworm
 bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://security.debian.org/debian-security
Suites: bookworm-security
Components: main

Types: deb
Enabled: no
URIs: http://off.debian.org/debian
Suites: bookworm
Components: main
"""
OLD = """\
# deb http://commented.debian.org/debian bookworm main
deb cdrom:[Debian GNU/Linux 12]/ bookworm main
deb [arch=amd64 signed-by=/x.gpg] https://download.ubuntu.com/linux bookworm main # a vendor's
deb-src http://src.debian.org/debian bookworm main
deb\thttp://ftp.debian.org/debian  bookworm main
deb http://security.debian.org/debian-security bookworm-security main
"""


def host(folder: Path, files: dict[str, str], distribution: str = "debian") -> Path:
    (folder / "etc/apt/sources.list.d").mkdir(parents=True)
    (folder / "etc/os-release").write_text(f"ID={distribution}\nVERSION_CODENAME=bookworm\n", encoding="utf-8")
    for name, text in files.items():
        (folder / "etc/apt" / name).write_text(text, encoding="utf-8")
    return folder


def test_both_formats_are_read(tmp_path: Path) -> None:
    archive = Source("http://ftp.debian.org/debian", "bookworm", ("main", "contrib"))
    new = sources(host(tmp_path / "new", {"sources.list.d/debian.sources": NEW}))
    assert new[0] == archive
    assert [source.suite for source in new] == ["bookworm", "bookworm-updates", "bookworm-security"]
    old = sources(host(tmp_path / "old", {"sources.list": OLD}))
    assert [source.url for source in old] == [
        "https://download.ubuntu.com/linux",
        "http://ftp.debian.org/debian",
        "http://security.debian.org/debian-security",
    ]


@pytest.mark.parametrize("files", [{"sources.list.d/debian.sources": NEW}, {"sources.list": OLD}])
def test_the_host_s_own_mirror_where_it_is_the_same_distribution(tmp_path: Path, files: dict[str, str]) -> None:
    """Not the vendor's, though it comes first and calls its suite the same."""
    mirror = choose(DEBIAN, None, host(tmp_path, files))
    assert mirror.archive == "http://ftp.debian.org/debian"
    assert mirror.security == "http://security.debian.org/debian-security"


def test_the_definition_s_mirror_elsewhere(tmp_path: Path) -> None:
    mirror = choose(DEBIAN, None, host(tmp_path, {"sources.list": OLD}, "ubuntu"))
    assert (mirror.archive, mirror.security) == (DEBIAN.mirror, DEBIAN.security)
    assert choose(DEBIAN, None, tmp_path / "nothing").archive == DEBIAN.mirror
    only_vendor = "deb https://download.ubuntu.com/linux bookworm main\n"
    assert choose(DEBIAN, None, host(tmp_path / "vendor", {"sources.list": only_vendor})).archive == DEBIAN.mirror


def test_the_mirror_asked_for_comes_first(tmp_path: Path) -> None:
    root = host(tmp_path, {"sources.list.d/debian.sources": NEW})
    assert choose(DEBIAN, "https://mirrors.kernel.org/debian/", root).archive == "https://mirrors.kernel.org/debian"
    for wrong in ("", "mirrors.kernel.org/debian", "-o Evil=1", "gopher://kernel.org"):
        with pytest.raises(UsageError, match="mirror"):
            choose(DEBIAN, wrong, root)


def test_what_reaching_a_mirror_takes_is_carried_and_no_more() -> None:
    dump = [
        'Acquire "";',
        'Acquire::http "";',
        'Acquire::http::Proxy "http://proxy:3128";',
        'Acquire::https::CaInfo "/etc/ssl/own.pem";',
        'Acquire::Check-Valid-Until "false";',
        'Acquire::IndexTargets::deb::Packages::MetaKey "x";',
        'Acquire::cdrom::mount "/media/cdrom/";',
        'APT::Update::Post-Invoke-Success:: "rm -rf /";',
        'Dir::Cache "var/cache/apt";',
    ]
    assert carried(dump) == "".join(f"{dump[number]}\n" for number in (2, 3, 4))
