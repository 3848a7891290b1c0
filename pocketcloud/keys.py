"""ssh key material: new pairs, the kit's own key, the public keys of the user at the keyboard.

Files and text only: nothing here speaks ssh (guest.py) and nothing knows cloud-init (seed.py). All keys of ours are ed25519:
small, quick to make even under emulation, and taken by every sshd since OpenSSH 6.5.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import pwd
import secrets
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pocketcloud.errors import NotFound, Refused
from pocketcloud.files import sync_folder, write_whole

_KIT_KEY = Path("keys", "id_ed25519")

# What sshd takes in authorized_keys (sshd(8), AUTHORIZED_KEYS FILE FORMAT); certificates and DSA are left out on purpose.
_AUTHORIZED = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
_LONGEST_PUBLIC = 16 * 1024
_PRINTABLE = frozenset(string.ascii_letters + string.digits + string.punctuation + " ")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An ed25519 key. `private` is OpenSSH's PEM without passphrase; `public` is one line, "ssh-ed25519 AAAA... comment"."""

    private: str = field(repr=False)
    public: str

    @property
    def bare(self) -> str:
        """The public key without its comment: "ssh-ed25519 AAAA...", as known_hosts and a comparison want it."""
        return " ".join(self.public.split(" ")[:2])


def new_key(comment: str) -> KeyPair:
    """Make a key. `comment` ends the public line; characters that are not printable ASCII become '_'."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    return _pair(private, key, comment)


def _pair(private: bytes, key: Ed25519PrivateKey, comment: str) -> KeyPair:
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode("ascii")
    return KeyPair(private.decode("ascii"), f"{public} {_clean(comment)}".rstrip())


def _clean(comment: str) -> str:
    # The line ends up in files of many formats (authorized_keys, YAML, ssh's options): plain characters are safe in all.
    return "".join(char if char in _PRINTABLE else "_" for char in comment.strip())


def write_private(path: Path, pair: KeyPair) -> None:
    """Write the pair as `path` (0600) and `path`.pub (0644), each whole or not at all; replaces what was there."""
    write_whole(path, pair.private, 0o600)
    write_whole(_public_path(path), pair.public + "\n")


def _public_path(path: Path) -> Path:
    return path.with_name(path.name + ".pub")


def read_key(path: Path, comment: str) -> KeyPair:
    """The pair whose private half is in `path`; the public half is computed, so that the two cannot disagree.

    Raises NotFound if there is no such file, Refused if it cannot be read or is not an ed25519 key without passphrase.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"there is no key {path}") from None
    except OSError as error:
        raise Refused(f"the key {path} cannot be read: {error.strerror}", hint="run the command as root") from None
    try:
        key = serialization.load_ssh_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise Refused(f"{path} is not an ed25519 key of ours", hint=f"move {path} away; a new key is made at the next run")
    return _pair(content, key, comment)


def read_public(path: Path) -> str:
    """The public line beside the private key `path`. Raises NotFound if there is none, Refused if it is not a public key."""
    line = _authorized_line(_public_path(path))
    if line is None:
        if not _public_path(path).exists():
            raise NotFound(f"there is no key {_public_path(path)}")
        raise Refused(f"{_public_path(path)} is not a public key")
    return line


def kit_key_path(kit_path: Path) -> Path:
    """Where the kit's own private key is, or will be."""
    return kit_path / _KIT_KEY


def kit_key(kit_path: Path) -> KeyPair:
    """The kit's own key, `keys/id_ed25519` in the kit; made at first use.

    Of two commands that make it at once one wins and both get the winner's. Raises Refused if it cannot be read or made.
    """
    path = kit_path / _KIT_KEY
    comment = f"pocketcloud kit {kit_path.name}"
    with contextlib.suppress(NotFound):
        return read_key(path, comment)
    made = new_key(comment)
    try:
        path.parent.mkdir(mode=0o755, exist_ok=True)
        with _aside(path, made.private, 0o600) as aside, contextlib.suppress(FileExistsError):
            # A link, unlike a rename, never replaces: whoever comes second reads the first one's key.
            path.hardlink_to(aside)
        pair = read_key(path, comment)
        with _aside(_public_path(path), pair.public + "\n", 0o644) as aside:
            aside.replace(_public_path(path))
    except OSError as error:
        raise Refused(f"the kit's key {path} cannot be made: {error.strerror}", hint="run the command as root") from None
    return pair


@contextlib.contextmanager
def _aside(path: Path, content: str, mode: int) -> Iterator[Path]:
    """A whole file under a name beside `path` that nobody else has, to be linked or moved; removed if it is still there."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        write_whole(aside, content, mode)
        yield aside
        sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def user_public_keys(home: Path) -> tuple[str, ...]:
    """The public keys `.ssh/id_*.pub` below `home`, checked, in the order of their names; other content is passed over."""
    folder = home / ".ssh"
    try:
        paths = sorted(path for path in folder.iterdir() if path.name.startswith("id_") and path.name.endswith(".pub"))
    except OSError:
        return ()
    lines = (_authorized_line(path) for path in paths)
    return tuple(dict.fromkeys(line for line in lines if line is not None))


def _authorized_line(path: Path) -> str | None:
    """The key line of a .pub file, its comment cleaned; None if there is none of a known type."""
    try:
        # A FIFO of that name would block us for ever.
        if not path.is_file():
            return None
        with path.open("rb") as file:
            text = file.read(_LONGEST_PUBLIC).decode(errors="replace")
    except OSError:
        return None
    words = text.strip().partition("\n")[0].split(None, 2)
    if len(words) < 2 or words[0] not in _AUTHORIZED or not _names_itself(words[0], words[1]):
        return None
    return " ".join([*words[:2], *(_clean(comment) for comment in words[2:])]).strip()


def _names_itself(kind: str, encoded: str) -> bool:
    """Whether the base64 blob begins with its own type, as RFC 4253 section 6.6 has it: a length of four bytes, then the name."""
    try:
        blob = base64.b64decode(encoded, validate=True)
    except (ValueError, binascii.Error):
        return False
    return blob.startswith(len(kind).to_bytes(4, "big") + kind.encode())


def invoking_home(environ: Mapping[str, str], home_of: Callable[[str], Path | None] | None = None) -> Path:
    """The home of the person at the keyboard: SUDO_USER's where that is set and known, else HOME, else the process's own.

    `home_of` looks a user up (None: unknown); the system's user database by default.
    """
    look_up = home_of or _home_of
    sudo_user = environ.get("SUDO_USER", "")
    home = look_up(sudo_user) if sudo_user else None
    if home is None and environ.get("HOME"):
        home = Path(environ["HOME"])
    return home or Path(pwd.getpwuid(os.getuid()).pw_dir)


def _home_of(user: str) -> Path | None:
    try:
        return Path(pwd.getpwnam(user).pw_dir)
    except KeyError:
        return None
