"""How a throw-away guest installs packages from the kit's cache: the guest's script with real apt and dnf, which are kept in a
folder of their own and only download."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketcloud.bases import definitions
from pocketcloud.bases.archives import guest_files
from pocketcloud.bases.recipe import plain_http
from pocketcloud.cache.addresses import key_of
from pocketcloud.cache.serving import serving
from pocketcloud.cache.store import Store
from pocketcloud.guest_packages import SCRIPT
from pocketcloud.model.base import Arch, ImageDefinition
from pocketcloud.model.cache import CACHE_SCHEMA, Collection
from tests.debian_archive import Deb, make_archive
from tests.rpm_packages import needs_rpm, rpm
from tests.signers import signers

APT = """#!/bin/sh
exec {apt} -o Dir::State={top}/state -o Dir::State::status={top}/state/status -o Dir::Cache={top}/cache \\
  -o APT::Architecture=amd64 -o Acquire::Retries=0 -o APT::Get::Download-Only=true -o APT::Sandbox::User=root "$@"
"""
DNF = """#!/bin/sh
export PATH='{path}'
exec {dnf} --installroot={top}/root --releasever=1 --setopt=cachedir={top}/cache --downloadonly --destdir={top}/cache "$@"
"""


@pytest.fixture
def top() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="pocketcloud-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    for name in ("state/lists/partial", "cache/archives/partial", "bin", "seed", "empty"):
        (folder / name).mkdir(parents=True)
    (folder / "state/status").touch()
    yield folder
    shutil.rmtree(folder)


def kept(top: Path, archive: Path, url: str) -> Store:
    """A cache with all the files of an archive, under that URL."""
    store = Store(top / "kept")
    store.make()
    files = {}
    for path in archive.rglob("*"):
        if path.is_file():
            copy = store.folder / "work/new"
            shutil.copyfile(path, copy)
            files[key_of(f"{url}/{path.relative_to(archive)}")] = store.adopt(copy)
    store.publish("tests", Collection(CACHE_SCHEMA, "tests", "", files=files))
    return store


def install(top: Path, store: Store, *, tools: str) -> subprocess.CompletedProcess[str]:
    """Run the script; `tools`: the PATH behind our own programs."""
    with serving(store.folder) as proxy:
        (top / "seed/proxy").write_text(f"{proxy}\n")
        env = {"PATH": f"{top}/bin:{tools}", "POCKETCLOUD_ROOT": str(top), "no_proxy": "", "TMPDIR": str(top), "HOME": str(top)}
        return subprocess.run(["sh", SCRIPT, top / "seed"], env=env, capture_output=True, text=True, check=False, timeout=120)


def test_apt_takes_them_from_where_the_definition_says(top: Path) -> None:
    image = definitions.find("debian-12-cloud")
    assert isinstance(image, ImageDefinition)
    with signers() as keys:
        keys.key("tests")
        ring = keys.ring(top / "keys.gpg", "tests")
        ring.chmod(0o644)
        suites = (image.suite, f"{image.suite}-updates")
        make_archive(top / "archive", (Deb("hello", {"Depends": "libhello1"}), Deb("libhello1")), keys, suites=suites)
        make_archive(top / "security", (), keys, suites=(f"{image.suite}-security",))
    store = kept(top, top / "archive", image.tree)
    security = image.repos["security"]  # type: ignore[index] # names are texts
    more = kept(top, top / "security", security).collection("tests")
    first = kept(top, top / "archive", image.tree).collection("tests")
    assert more is not None
    assert first is not None
    store.publish("tests", Collection(CACHE_SCHEMA, "tests", "", files={**more.files, **first.files}))
    for name, content in guest_files(image, Arch.X86_64, plain_http).items():
        (top / "seed" / name).write_text(content.decode().replace(image.keyring, str(ring)))
    (top / "seed/packages").write_text("hello\n")
    (top / "bin/apt-get").write_text(APT.format(apt=shutil.which("apt-get"), top=top))
    (top / "bin/apt-get").chmod(0o755)
    done = install(top, store, tools=os.environ["PATH"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name.partition("_")[0] for path in (top / "cache/archives").glob("*.deb")} == {"hello", "libhello1"}
    (top / "seed/packages").write_text("hello\nno-such-package\n")
    done = install(top, store, tools=os.environ["PATH"])
    assert done.returncode != 0
    assert "no-such-package" in done.stderr


@needs_rpm
@pytest.mark.skipif(not shutil.which("dnf") or not shutil.which("rpmsign"), reason="dnf or rpmsign is not installed")
def test_dnf_takes_them_from_where_the_definition_says_and_trusts_its_own_keys(top: Path) -> None:
    """As the guest's own repositories name them, with variables; what nobody signed is refused."""
    (top / "tree").mkdir()
    for name in ("hello", "unsigned"):
        rpm(top / "tree", name, "1")
    with signers() as keys:
        keys.key("tests")
        keys.ring(top / "key-1", "tests", ascii_armor=True)
        signing = [
            "rpmsign",
            "--addsign",
            f"--define=_gpg_path {keys.home}",
            "--define=_gpg_name tests@example.com",
            f"--define=__gpg {shutil.which('gpg')}",
        ]
        subprocess.run([*signing, next((top / "tree").rglob("hello*.rpm"))], check=True, capture_output=True)
    subprocess.run(["createrepo_c", "--quiet", top / "tree"], check=True)
    store = kept(top, top / "tree", "http://repos.example/one")
    shipped = definitions.find("rocky-9-cloud")
    assert isinstance(shipped, ImageDefinition)
    image = dataclasses.replace(shipped, repos=dict.fromkeys(list(shipped.repos)[:1], "https://repos.example/one"))
    for name, content in guest_files(image, Arch.X86_64, plain_http).items():
        (top / "seed" / name).write_bytes(content)
    (top / "etc/yum.repos.d").mkdir(parents=True)
    own = f"[own]\ngpgkey = file://{top}/key-$releasever, https://elsewhere.example/key\n"
    (top / "etc/yum.repos.d/own.repo").write_text(own)
    for tool in ("cat", "dirname", "sed", "tr", "grep", "sort", "mktemp", "sh"):  # and no apt-get
        (top / "bin" / tool).symlink_to(str(shutil.which(tool)))
    (top / "bin/dnf").write_text(DNF.format(dnf=shutil.which("dnf"), top=top, path=os.environ["PATH"]))
    (top / "bin/dnf").chmod(0o755)
    (top / "seed/packages").write_text("hello\n")
    done = install(top, store, tools="/nonexistent")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in (top / "cache").glob("*.rpm")] == ["hello-1-1.noarch.rpm"]
    (top / "seed/packages").write_text("unsigned\n")
    done = install(top, store, tools="/nonexistent")
    assert done.returncode != 0
    assert "unsigned" in done.stdout + done.stderr
    assert "GPG check FAILED" in done.stdout + done.stderr
