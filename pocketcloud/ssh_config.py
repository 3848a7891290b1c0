"""Text for OpenSSH's client: the configuration that `lab ssh-config` prints, known_hosts lines, the argv of `lab ssh`.

Values in, text out: no files are read or written here, and nothing is started. Source: ssh_config(5) and sshd(8) of OpenSSH.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.errors import Refused

# No pattern characters (* ? !), no commas (known_hosts separates names by them), no leading dash (an option's).
_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9._-]*")

USERS_OWN = ("~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa")
"""The keys that ssh would try by itself if no IdentityFile were given; the user's are in every guest as well as the kit's."""


@dataclass(frozen=True, slots=True)
class SshHost:
    """One machine as ssh is to see it. `alias` is what is typed; `identity` and `known_hosts` are absolute paths.

    Raises ValueError where alias, address or user cannot be what they are said to be.
    """

    alias: str
    address: str
    user: str
    port: int
    identity: Path
    known_hosts: Path

    def __post_init__(self) -> None:
        _checked_alias(self.alias)
        ipaddress.ip_address(self.address)
        if not _USER.fullmatch(self.user):
            raise ValueError(f"{self.user!r} is not a user's name")
        if not 0 < self.port < 65536:
            raise ValueError(f"{self.port} is not a port")


def ssh_config(entries: Sequence[SshHost]) -> str:
    """The configuration for `ssh -F`, one Host block for each entry.

    The host key is looked up under the alias, in our known_hosts only, and must be there: no question, no trust at first sight.
    Raises Refused if a path cannot be written in that format.
    """
    return "\n".join(_block(entry) for entry in entries)


def _block(entry: SshHost) -> str:
    options = (
        ("HostName", entry.address),
        ("Port", str(entry.port)),
        ("User", entry.user),
        ("HostKeyAlias", entry.alias),
        ("HostKeyAlgorithms", "ssh-ed25519"),
        ("UserKnownHostsFile", quoted_path(entry.known_hosts)),
        ("GlobalKnownHostsFile", "/dev/null"),
        ("StrictHostKeyChecking", "yes"),
        ("CheckHostIP", "no"),
        ("UpdateHostKeys", "no"),
        ("IdentityFile", quoted_path(entry.identity)),
        *(("IdentityFile", path) for path in USERS_OWN),
        # An agent full of other keys would use up the server's patience before ours is tried.
        ("IdentitiesOnly", "yes"),
        ("PasswordAuthentication", "no"),
        ("KbdInteractiveAuthentication", "no"),
    )
    return f"Host {entry.alias}\n" + "".join(f"    {key} {value}\n" for key, value in options)


def quoted_path(path: Path) -> str:
    """A path as ssh's options name it, in quotes. Raises Refused if it cannot be written in that format."""
    text = str(path)
    # Quotes and backslashes are read differently by different OpenSSH versions, and `${` cannot be escaped at all.
    if not path.is_absolute() or not text.isprintable() or any(odd in text for odd in ('"', "\\", "${")):
        raise Refused(
            f"ssh's configuration cannot name the path {text!r}",
            hint='move the kit to an absolute path without ", \\, ${ and control characters',
        )
    return '"' + text.replace("%", "%%") + '"'


def known_hosts_line(alias: str, address: str, host_key: str) -> str:
    """The line, newline included, that makes `host_key` ("ssh-ed25519 AAAA...", a comment is dropped) known for both names."""
    kind, blob = host_key.split()[:2]
    return f"{_checked_alias(alias)},{ipaddress.ip_address(address)} {kind} {blob}\n"


def interactive_argv(config: Path, alias: str, command: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The argv that gives a terminal on `alias`: a login shell, or `command` if there is one."""
    start = ("ssh", "-F", str(config))
    if not command:
        return (*start, "--", _checked_alias(alias))
    return (*start, "-t", "--", _checked_alias(alias), command_line(command))


def command_line(words: Sequence[str]) -> str:
    """What the guest's shell is to be given for the words a user typed.

    One word is shell text ("ls | wc -l"), as with ssh; several are an argv whose words stay whole, as with docker exec.
    """
    return words[0] if len(words) == 1 else shlex.join(words)


def _checked_alias(alias: str) -> str:
    if not _ALIAS.fullmatch(alias):
        raise ValueError(f"{alias!r} is not a host alias")
    return alias
