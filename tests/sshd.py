"""A real OpenSSH server for tests: a plain process on a loopback port, with its configuration and keys in a temporary folder."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from pocketcloud.guest import Login
from pocketcloud.keys import KeyPair, new_key, write_private

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin:/usr/bin") or ""
_PRIVILEGE_FOLDER = Path("/run/sshd")


def free_port() -> int:
    """A port that nobody listens on right now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Sshd:
    """An sshd that lets the user who runs the tests in with `client`; a context manager that starts and ends it."""

    def __init__(self, folder: Path, *, sftp: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self.host = new_key("host")
        self.client = new_key("client")
        self._process: subprocess.Popen[bytes] | None = None
        write_private(folder / "host", self.host)
        (folder / "authorized").write_text(self.client.public + "\n")
        options = {
            "ListenAddress": f"127.0.0.1:{self.port}",
            "HostKey": folder / "host",
            "AuthorizedKeysFile": folder / "authorized",
            "PidFile": "none",
            "StrictModes": "no",
            "PermitRootLogin": "yes",
            "PasswordAuthentication": "no",
            "PermitUserRC": "no",
            # Without PAM sshd lets nobody in whose password is locked, as root's is on some distributions.
            "UsePAM": "yes" if _locked() else "no",
            "MaxSessions": "20",
        }
        if sftp:
            options["Subsystem"] = "sftp internal-sftp"
        # sshd wants words with spaces in quotes.
        lines = (f'{key} "{value}"' if isinstance(value, Path) else f"{key} {value}" for key, value in options.items())
        (folder / "config").write_text("\n".join(lines) + "\n")

    @property
    def login(self) -> Login:
        """How to come in."""
        return Login("127.0.0.1", self.host.bare, self.client.private, getpass.getuser(), self.port)

    def login_with(self, *, host: KeyPair | None = None, client: KeyPair | None = None) -> Login:
        """A login with another host key to be expected, or with another key to be shown."""
        right = self.login
        return Login(right.address, (host or self.host).bare, (client or self.client).private, right.user, right.port)

    def client_words(self) -> list[str]:
        """OpenSSH's own client on its way in, whatever the user has set up for it; what is to be run there comes after."""
        key, known = self.folder / "client", self.folder / "known"
        write_private(key, self.client)
        known.write_text(f"[127.0.0.1]:{self.port} {self.host.bare}\n")
        options = {
            "UserKnownHostsFile": known,
            "StrictHostKeyChecking": "yes",
            "IdentityFile": key,
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "BatchMode": "yes",
        }
        words = ["ssh", "-F", "none", "-p", str(self.port), "-l", getpass.getuser()]
        return [*words, *(f"-o{name}={value}" for name, value in options.items()), "127.0.0.1"]

    @property
    def sessions(self) -> list[int]:
        """The processes that serve its connections right now."""
        assert self._process is not None
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self._process.pid)], capture_output=True, check=False)
        return [int(word) for word in found.stdout.split()]

    def start(self) -> None:
        """Start it and return at once: it listens a moment later."""
        if os.geteuid() == 0:
            # sshd insists on it; where sshd is a service it is made at boot. It stays: another sshd may need it by now.
            _PRIVILEGE_FOLDER.mkdir(mode=0o755, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            argv = [SSHD, "-D", "-e", "-f", str(self.folder / "config")]
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def listen(self) -> None:
        """Wait until it listens."""
        assert self._process is not None
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.02)
        raise AssertionError(f"sshd does not listen: {self.log()}")

    def log(self) -> str:
        """What it said so far."""
        return (self.folder / "log").read_text(errors="replace")

    def __enter__(self) -> Self:
        self.start()
        try:
            self.listen()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """End it; its sessions go on until their connections close."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)


def _locked() -> bool:
    """Whether the password of the user (root) is locked; others cannot look and are taken for unlocked."""
    try:
        lines = Path("/etc/shadow").read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith(f"{getpass.getuser()}:!") for line in lines)
