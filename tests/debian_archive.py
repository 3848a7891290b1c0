"""A small Debian archive in a folder: real packages, indexes and a signed release, made with dpkg-deb and gpg."""

from __future__ import annotations

import hashlib
import lzma
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.signers import Signers

IMAGES = "main/installer-amd64/current/images"
NETBOOT = "netboot/debian-installer/amd64"


@dataclass(frozen=True, slots=True)
class Deb:
    """A package: its fields beside the usual ones, and how large a file it has (bytes that do not pack)."""

    name: str
    fields: dict[str, str] = field(default_factory=dict)
    version: str = "1"


def make_archive(
    top: Path,
    debs: Sequence[Deb],
    signers: Signers,
    suites: Sequence[str] = ("stable", "stable-updates"),
    udebs: Sequence[Deb] = (),
    updates: Sequence[Deb] = (),
    universe: Sequence[Deb] = (),
) -> None:
    """Make the archive anew in `top`: the packages are in the first suite, `updates` in the second. With `udebs` the first has an
    installer: these packages, a kernel, an initramfs. `universe`: packages of a second component of the first suite."""
    newer = "".join(_package(top, deb) for deb in updates)
    paragraphs = "".join(_package(top, deb) for deb in debs)
    for number, suite in enumerate(suites):
        folder = top / "dists" / suite / "main/binary-amd64"
        folder.mkdir(parents=True, exist_ok=True)
        plain = (paragraphs, newer)[number].encode() if number < 2 else b""
        lists = {"main/binary-amd64/Packages": plain, "main/binary-amd64/Packages.xz": lzma.compress(plain)}
        if universe:
            others = "".join(_package(top, deb) for deb in universe).encode() if number == 0 else b""
            lists |= {"universe/binary-amd64/Packages": others, "universe/binary-amd64/Packages.xz": lzma.compress(others)}
        if number == 0 and udebs:
            lists |= _installer(top, udebs)
        for name, content in lists.items():
            (top / "dists" / suite / name).parent.mkdir(parents=True, exist_ok=True)
            (top / "dists" / suite / name).write_bytes(content)
        sums = "".join(f" {hashlib.sha256(content).hexdigest()} {len(content)} {name}\n" for name, content in lists.items())
        release = (
            f"Origin: Tests\nSuite: {suite}\nCodename: {suite}\nArchitectures: amd64\n"
            f"Components: {'main universe' if universe else 'main'}\n"
            f"Date: Mon, 01 Jan 2024 00:00:00 UTC\nAcquire-By-Hash: yes\nSHA256:\n{sums}"
        )
        (top / "dists" / suite / "InRelease").write_bytes(signers.clearsigned("tests", release.encode()))
        (top / "dists" / suite / "Release").write_text(release)
        (top / "dists" / suite / "Release.gpg").write_bytes(signers.detached("tests", release.encode()))


def _installer(top: Path, udebs: Sequence[Deb]) -> dict[str, bytes]:
    """What of it a suite's release file names, by path below the suite's folder."""
    plain = "".join(_package(top, udeb, "udeb") for udeb in udebs).encode()
    lists = {
        f"main/debian-installer/binary-amd64/Packages{ending}": lzma.compress(plain) if ending else plain
        for ending in ("", ".xz")
    }
    sums = ""
    for name, content in {"linux": b"a kernel", "initrd.gz": b"an initramfs"}.items():
        lists[f"{IMAGES}/{NETBOOT}/{name}"] = content
        sums += f"{hashlib.sha256(content).hexdigest()}  ./{NETBOOT}/{name}\n"
    return lists | {f"{IMAGES}/SHA256SUMS": sums.encode(), "main/binary-amd64/Release": b"Architecture: amd64\n"}


def _package(top: Path, deb: Deb, kind: str = "deb") -> str:
    """Make a package's file; its paragraph for the index."""
    pool = top / "pool" / deb.name
    pool.mkdir(parents=True, exist_ok=True)
    tree = pool / "tree/DEBIAN"
    tree.mkdir(parents=True, exist_ok=True)
    fields = {
        "Package": deb.name, "Version": deb.version, "Architecture": "amd64", "Maintainer": "Tests <tests@example.com>",
        "Description": "for tests", **deb.fields,
    }  # fmt: skip
    control = "".join(f"{name}: {value}\n" for name, value in fields.items())
    (tree / "control").write_text(control)
    path = pool / f"{deb.name}_{deb.version}_amd64.{kind}"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree.parent, path], check=True, capture_output=True)
    content = path.read_bytes()
    sums = f"Size: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n"
    return f"{control}Filename: {path.relative_to(top)}\n{sums}\n"
