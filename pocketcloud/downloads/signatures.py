"""OpenPGP signatures, checked by the system's gpgv against a file of keys; nothing of the user's own keyring is read.

A signature counts if it is good, by a key of the file that is neither expired nor revoked, over a digest stronger than SHA-1.
Others beside it may be by keys that the file has not (a list signed by the old key and the new), none may be bad.
Source: doc/DETAILS of GnuPG, "Format of the --status-fd output".
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from pocketcloud.errors import HostLacks, NotFound, Refused
from pocketcloud.model.sizes import MIB
from pocketcloud.system import Runner, run, which

_ARMOR = b"-----BEGIN PGP "
_CLEARSIGNED = b"-----BEGIN PGP SIGNED MESSAGE-----"
_STATUS = "[GNUPG:] "
# Seconds, and the bytes that the slowest stick yields in one: gpgv reads all of a file that is signed.
_PATIENCE = 120
_SLOWEST = MIB
# What gpgv says of a signature that does not count, and what that means; the worst comes first.
_FAULTS = {
    "BADSIG": "the signature is not of this content",
    "REVKEYSIG": "the key {key} that signed it is revoked",
    "EXPKEYSIG": "the key {key} that signed it has expired",
    "EXPSIG": "the signature has expired",
    "ERRSIG": "it is signed by the key {key}, which is not among those that may sign",
}


def is_clearsigned(content: bytes) -> bool:
    """Whether a text carries its signature in itself."""
    return content.lstrip().startswith(_CLEARSIGNED)


def check_detached(content: Path | bytes, signature: bytes, keyring: Path, what: str, run: Runner = run) -> str:
    """Check the detached `signature` of a file, or of a text itself; return the fingerprint of the key that made it.

    `what` names the content in messages. Raises Refused if it does not count, NotFound without the keyring, HostLacks.
    """
    with tempfile.TemporaryDirectory(prefix="pocketcloud-gpgv-") as name:
        folder = Path(name)
        (folder / "signature").write_bytes(signature)
        if isinstance(content, bytes):
            (folder / "content").write_bytes(content)
        path = folder / "content" if isinstance(content, bytes) else content
        return _verified([folder / "signature", path], keyring, what, folder, run)


def check_clearsigned(text: bytes, keyring: Path, what: str, run: Runner = run) -> tuple[str, bytes]:
    """Check a text that carries its signature in itself; return the fingerprint of the key, and what of the text is signed:
    nothing else of it may be believed. Raises as `check_detached` does."""
    with tempfile.TemporaryDirectory(prefix="pocketcloud-gpgv-") as name:
        folder = Path(name)
        (folder / "message").write_bytes(text)
        signer = _verified(["--output", folder / "signed", folder / "message"], keyring, what, folder, run)
        return signer, (folder / "signed").read_bytes()


def _verified(words: list[str | Path], keyring: Path, what: str, folder: Path, run: Runner) -> str:
    if which("gpgv") is None:
        raise HostLacks(
            f"{what}: gpgv is not installed, which checks signatures",
            hint="pocketcloud check names the package for this distribution",
        )
    keys = _binary(keyring, what, folder, run)
    said = run(
        ["gpgv", "--homedir", folder, "--status-fd", "1", "--weak-digest", "SHA1", "--keyring", keys, *words],
        codes=range(256),
        timeout=_PATIENCE + Path(words[-1]).stat().st_size / _SLOWEST,
    )
    states = list(_signatures(said.out))
    signers = [fingerprint for state, _, fingerprint in states if state == "GOODSIG" and fingerprint]
    # ERROR: there is more than one message in it, or what follows is broken.
    if signers and not any(state == "BADSIG" for state, _, _ in states) and f"{_STATUS}ERROR " not in said.out:
        return signers[0]
    hint = f"do not use it: fetch it again, from elsewhere. If the keys have changed, {keyring} has to be brought up to date"
    for state, text in _FAULTS.items():
        for found, key, _ in states:
            if found == state:
                raise Refused(f"{what}: {text.format(key=key)}", hint=hint)
    raise Refused(f"{what}: there is no OpenPGP signature in what should be one", hint=hint)


def _signatures(status: str) -> Iterator[tuple[str, str, str]]:
    """Of each signature: what gpgv thinks of it, the key's id, and the key's fingerprint where the signature itself is right."""
    state, key, fingerprint = "", "", ""
    for line in (*status.splitlines(), f"{_STATUS}NEWSIG"):
        word, _, rest = line.removeprefix(_STATUS).partition(" ") if line.startswith(_STATUS) else ("", "", "")
        if word == "NEWSIG":
            if state:
                yield state, key, fingerprint
            state, key, fingerprint = "", "", ""
        elif word == "GOODSIG" or word in _FAULTS:
            state, key = word, rest.partition(" ")[0]
        elif word == "VALIDSIG":
            fingerprint = rest.partition(" ")[0]


def _binary(keyring: Path, what: str, folder: Path, run: Runner) -> Path:
    """The keyring as gpgv takes it: keys in ASCII, as they are published, are unpacked."""
    try:
        content = keyring.read_bytes()
    except OSError as error:
        raise NotFound(
            f"{what}: the keys that may sign it cannot be read: {keyring}: {error.strerror}",
            hint="install the package that brings them, or name another file of keys",
        ) from error
    if not content.lstrip().startswith(_ARMOR):
        return keyring.resolve()  # gpgv looks for a name without a slash in its own folder
    binary = folder / "keys.gpg"
    run(["gpg", "--homedir", folder, "--batch", "--quiet", "--output", binary, "--dearmor"], stdin=content, timeout=60)
    return binary
