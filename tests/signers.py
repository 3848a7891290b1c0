"""Throw-away OpenPGP keys for tests, in a GnuPG home of their own that goes with its agent."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Signers:
    """A GnuPG home."""

    home: Path

    def gpg(self, *words: str | Path, stdin: bytes = b"", at: str = "") -> bytes:
        """Run gpg, as if it were the time `at` (20200101T000000) where that is given."""
        clock = ["--faked-system-time", f"{at}!"] if at else []
        done = subprocess.run(
            ["gpg", "--homedir", self.home, "--batch", "--quiet", "--no-tty", "--passphrase", "", *clock, *words],
            input=stdin, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def key(self, name: str, *, days: str = "0", at: str = "") -> None:
        """Make a key."""
        self.gpg("--quick-generate-key", f"{name} <{name}@example.com>", "ed25519", "sign", days, at=at)

    def ring(self, path: Path, *names: str, ascii_armor: bool = False) -> Path:
        """Write the public keys of `names` into a file."""
        path.write_bytes(self.gpg(*(["--armor"] if ascii_armor else []), "--export", *(f"{name}@example.com" for name in names)))
        return path

    def detached(self, name: str, content: bytes, *, ascii_armor: bool = False, at: str = "") -> bytes:
        """A detached signature."""
        form = ["--armor"] if ascii_armor else []
        return self.gpg(*form, "--local-user", f"{name}@example.com", "--detach-sign", stdin=content, at=at)

    def clearsigned(self, name: str, text: bytes) -> bytes:
        """A text with its signature in it."""
        return self.gpg("--local-user", f"{name}@example.com", "--clearsign", stdin=text)

    def revoke(self, name: str) -> None:
        """Revoke a key, as its owner would."""
        fingerprint = next(
            line.split(":")[9]
            for line in self.gpg("--with-colons", "--list-keys", f"{name}@example.com").decode().splitlines()
            if line.startswith("fpr")
        )
        text = (self.home / "openpgp-revocs.d" / f"{fingerprint}.rev").read_bytes()
        # GnuPG puts a colon before the line, so that nobody imports it by accident.
        self.gpg("--import", stdin=text.replace(b":-----BEGIN", b"-----BEGIN"))


@contextmanager
def signers() -> Iterator[Signers]:
    """A GnuPG home; in /tmp, for its agent's socket has a short path only."""
    home = Path(tempfile.mkdtemp(prefix="pc-gpg-", dir="/tmp"))
    home.chmod(0o700)
    try:
        yield Signers(home)
    finally:
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False, capture_output=True)
        shutil.rmtree(home, ignore_errors=True)
