"""Debian's own installer, from its package, served as a mirror serves it: signed, by a key of the tests."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.signers import Signers
from tests.web import Web

TOP = Path(__file__).resolve().parents[2]
_CACHE = TOP / ".cache" / "debian-installer"
_PACKAGE = "debian-installer-12-netboot-amd64"
_FOLDER = "usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64"
SUITE = "bookworm"
IMAGES = f"/debian/dists/{SUITE}/main/installer-amd64/current/images"
NETBOOT = "netboot/debian-installer/amd64"


def missing() -> str:
    """Why it cannot be had here, empty if it can."""
    absent = [tool for tool in ("apt-get", "dpkg", "gpg", "qemu-system-x86_64") if shutil.which(tool) is None]
    if absent:
        return f"not here: {', '.join(absent)}"
    if not _CACHE.exists() and not subprocess.run(["apt-cache", "show", _PACKAGE], capture_output=True, check=False).stdout:
        return f"this host's apt knows no {_PACKAGE}"
    return ""


@dataclass(frozen=True, slots=True)
class DebianInstaller:
    """Its kernel and its initramfs."""

    kernel: bytes
    initrd: bytes

    def serve(self, web: Web, signers: Signers, signer: str) -> str:
        """Put it on a server, the release file signed by the key `signer`; the mirror's URL."""
        sums = b""
        for name, content in (("linux", self.kernel), ("initrd.gz", self.initrd)):
            web.put(f"{IMAGES}/{NETBOOT}/{name}", content)
            sums += f"{hashlib.sha256(content).hexdigest()}  ./{NETBOOT}/{name}\n".encode()
        web.put(f"{IMAGES}/SHA256SUMS", sums, kind="text/plain")
        listed = f" {hashlib.sha256(sums).hexdigest()} {len(sums):8} main/installer-amd64/current/images/SHA256SUMS\n"
        release = f"Origin: Debian\nSuite: stable\nCodename: {SUITE}\nSHA256:\n{listed}".encode()
        web.put(f"/debian/dists/{SUITE}/InRelease", signers.clearsigned(signer, release), kind="text/plain")
        return web.url("/debian")


def debian_installer() -> DebianInstaller:
    """Debian 12's installer; its package is fetched once, and never installed."""
    if not _CACHE.exists():
        _CACHE.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_CACHE.parent) as made:
            fetch = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", _PACKAGE]
            subprocess.run(fetch, cwd=made, check=True, capture_output=True)
            (archive,) = Path(made).glob("*.deb")
            subprocess.run(["dpkg", "-x", archive, f"{made}/files"], check=True)
            Path(made, "files").rename(_CACHE)
    folder = _CACHE / _FOLDER
    return DebianInstaller((folder / "linux").read_bytes(), (folder / "initrd.gz").read_bytes())
